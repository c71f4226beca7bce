"""Secure aggregation over a grid: what rounds get of it, whoever drops out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from client.channels.layout import layout
from client.errors import BadSetting, EffaceError
from client.steps.ascent import Ascend
from client.steps.channels import Ablation, FitChannels, Representation
from client.steps.fedosd import Gradient
from client.steps.measuring import Describe, Fisher, Heldout, Totals
from client.steps.secure import Confirm, MakeKeys, ShareSecrets, Unmask
from client.steps.training import Fit
from strategies.methods.fisher import FisherRounds
from strategies.rounds.base import (
    AscentRounds,
    ClientLost,
    FederatedAveraging,
    NothingTouched,
    Rounds,
)
from strategies.rounds.channels import AblationRounds, PartialChannelFedAvg, RepresentationRounds
from strategies.rounds.secure import SecureGrid, is_summed
from strategies.rounds.sums import SumOutOfRange
from strategies.rounds.unmasking import at_zero
from tests.messages import network, told, weights
from tests.sum_grids import Between, fit_settings, lost, name_of, one_round, open_grid

CLASS_3: dict[str, Any] = {"forget_level": "class", "forget_classes": [3]}
FOUR: dict[str, Any] = {"num_clients": 4, "max_samples": 400}


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "private"))


@pytest.fixture
def grid() -> Iterator[Between]:
    with open_grid(4) as made:
        yield made


def near(one: ArrayRecord, other: ArrayRecord, most: float = 1e-6) -> bool:
    assert set(one) == set(other)
    return all(
        one[name].dtype == other[name].dtype
        and np.abs(one[name].numpy() - other[name].numpy()).max() <= most
        for name in one
    )


def kinds() -> dict[str, Rounds]:
    """Return one of every kind of round that sums serve; nodes of different sizes."""
    return {
        "fit": FederatedAveraging(fit_settings(4)),
        "forget": FederatedAveraging(fit_settings(4, side="forget", **CLASS_3)),
        "ascend": AscentRounds(told(Ascend, data="original", lr=0.01, **CLASS_3, **FOUR)),
        "sums": RepresentationRounds(told(Representation, **CLASS_3, **FOUR)),
        "effects": AblationRounds(told(Ablation, max_examples=8, **CLASS_3, **FOUR)),
        "fisher": FisherRounds(told(Fisher, max_examples=8, **CLASS_3, **FOUR)),
        "slices": PartialChannelFedAvg(
            told(
                FitChannels,
                channels=["body.0:0,3", "classifier:3"],
                steps=2,
                batch_size=16,
                lr=0.1,
                **CLASS_3,
                **FOUR,
            ),
            layout(network()),
        ),
    }


@pytest.mark.parametrize("kind", list(kinds()))
def test_every_kind_of_round_gives_what_plain_averaging_gives(grid: Between, kind: str) -> None:
    plain, metrics, _ = one_round(grid, kinds()[kind])
    summed, numbers, rounds = one_round(SecureGrid(grid), kinds()[kind])
    assert near(plain, summed)
    assert rounds.failures == []
    for name in ("num-examples", "samples", "num-clients", "num-failures"):
        assert numbers[name] == pytest.approx(metrics[name]), name
    assert numbers["loss"] == pytest.approx(metrics["loss"], abs=1e-6)
    # Masks are drawn anew and leave no trace.
    again, _, _ = one_round(SecureGrid(grid), kinds()[kind])
    assert near(summed, again, 0.0)


def test_no_number_and_no_weight_of_a_single_node_comes_up(grid: Between) -> None:
    one_round(SecureGrid(grid))
    assert len(grid.seen) == 5 * 4
    for kind, arrays, numbers in grid.seen:
        assert numbers.pop("num-examples") == 0
        assert numbers.pop("partition") in range(4)
        assert set(numbers) <= {"seconds", "code"}
        assert (numbers["seconds"] == 0) == (kind == "train.fit")
        assert {array.dtype for array in arrays.values()} <= {"uint8", "int64"}
    vectors = [arrays["masked"].numpy() for kind, arrays, _ in grid.seen if kind == "train.fit"]
    assert len(vectors) == 4
    # Numbers and a model of small weights, without their masks, would all lie below 2^50.
    assert all((np.abs(vector / 2**50) > 1).mean() > 0.99 for vector in vectors)


@pytest.mark.parametrize("step", [MakeKeys, ShareSecrets, Fit, Confirm, Unmask])
def test_one_of_four_may_be_lost_at_any_step(grid: Between, step: Any) -> None:
    kind = step.message.name
    rest = ["client-0", "client-1", "client-3"]
    in_sum = rest if step in (MakeKeys, ShareSecrets, Fit) else [*rest, "client-2"]
    expected, _, _ = one_round(
        grid, FederatedAveraging(fit_settings(4), participants=sorted(in_sum))
    )
    grid.down = lost("client-2", at=kind)
    model, metrics, rounds = one_round(SecureGrid(grid))
    assert near(model, expected)
    assert metrics["num-clients"] == len(in_sum)
    assert [f.client for f in rounds.failures] == sorted({"client-2"} - set(in_sum))


@pytest.mark.parametrize("step", [MakeKeys, ShareSecrets, Fit, Confirm, Unmask])
def test_with_two_of_four_lost_the_round_fails_and_the_next_has_new_keys(
    grid: Between, step: Any
) -> None:
    grid.down = lost("client-1", "client-2", at=step.message.name)
    with pytest.raises(ClientLost, match="must have at least 3 of 4 clients until its end, got 2"):
        one_round(SecureGrid(grid))
    grid.down = Between.down
    model, _, _ = one_round(SecureGrid(grid))
    assert near(model, one_round(grid)[0])
    told_attempts = [
        m.content.config_records["config"]["secure-attempt"] for m in grid.of("query.keys")
    ]
    assert len(set(told_attempts)) == 2


def test_holders_are_not_known_and_those_that_hold_nothing_weigh_nothing(grid: Between) -> None:
    # Client 1 alone goes; all are asked to train on what goes.
    gone = {"forget_level": "client", "forget_clients": ["client-1"]}
    settings = fit_settings(4, side="forget", **gone)
    alone, metrics, _ = one_round(grid, FederatedAveraging(settings, participants=["client-1"]))
    summed, numbers, _ = one_round(SecureGrid(grid), FederatedAveraging(settings))
    assert near(alone, summed)
    assert numbers["num-examples"] == metrics["num-examples"]
    assert numbers["num-clients"] == 4
    nobody = fit_settings(4, side="forget")
    with pytest.raises(NothingTouched):
        one_round(SecureGrid(grid), FederatedAveraging(nobody), arrays=weights(7))


def test_answers_that_are_counts_add_up_to_the_counts(grid: Between) -> None:
    for kind in (Heldout, Totals):
        settings = told(kind, holdout=0.2, **CLASS_3, **FOUR)
        answers = []
        for one in (grid, SecureGrid(grid)):
            asked = list(Rounds(settings).configure_train(0, weights(), ConfigRecord(), one))
            replies = list(one.send_and_receive(asked))
            found = [dict(r.content.metric_records["metrics"]) for r in replies]
            answers.append(found)
        for name in kind.message.metrics:
            plain, summed = (np.sum([a[name] for a in each], axis=0) for each in answers)
            assert np.allclose(plain, summed, atol=1e-5), name
        assert len({str(a["num-examples"]) for a in answers[1]}) == 1


def test_messages_that_are_no_sums_pass_through_without_counts(grid: Between) -> None:
    assert not is_summed(Describe.message.name)
    settings = told(Describe, sums_only=True, **CLASS_3, **FOUR)
    asked = list(Rounds(settings).configure_train(0, ArrayRecord(), ConfigRecord(), grid))
    for reply in SecureGrid(grid).send_and_receive(asked):
        metrics = reply.content.metric_records["metrics"]
        assert [metrics[name] for name in Describe.message.metrics] == [*[0] * 5, [0.0] * 10]
        assert metrics["num-examples"] == 0
        assert len(reply.content.array_records["arrays"]) == 1


def test_where_only_sums_go_up_a_node_answers_no_question_alone(grid: Between) -> None:
    for kind, more in ((Fit, {"steps": 1, "lr": 0.1}), (Gradient, {"side": "retain"})):
        settings = told(kind, sums_only=True, **more, **FOUR)
        with pytest.raises(ClientLost, match="must be answered in sums here"):
            one_round(grid, FederatedAveraging(settings))


def test_two_nodes_are_too_few() -> None:
    with open_grid(2) as two, pytest.raises(BadSetting, match="at least 3 clients, got 2"):
        one_round(SecureGrid(two), num_nodes=2)


def test_messages_that_ask_different_things_are_no_sum(grid: Between) -> None:
    asked = list(
        FederatedAveraging(fit_settings(4)).configure_train(1, weights(), ConfigRecord(), grid)
    )
    asked[0].content.config_records["config"]["lr"] = 0.2
    with pytest.raises(EffaceError, match="must ask all nodes the same"):
        SecureGrid(grid).send_and_receive(asked)


def test_a_diverged_node_is_refused_by_itself(grid: Between) -> None:
    # At this rate weights overflow: the node refuses to send them, and its peers go on.
    settings = fit_settings(4, lr=1e30, steps=20)
    with pytest.raises(ClientLost, match=r"must lie in .* to be added up"):
        one_round(SecureGrid(grid), FederatedAveraging(settings))


def test_a_sum_out_of_range_fails_the_round(grid: Between) -> None:
    def spoil(reply: Any) -> Any:
        if reply.metadata.src_node_id == 2 and "masked" in reply.content.array_records["arrays"]:
            arrays = reply.content.array_records["arrays"]
            vector = arrays["masked"].numpy() + 2**62 + 12345
            arrays["masked"] = Array(vector)
        return reply

    grid.up = spoil
    with pytest.raises(SumOutOfRange, match="must be one of 4 answers that keep to the protocol"):
        one_round(SecureGrid(grid))


def test_updates_are_clipped_at_the_node(grid: Between) -> None:
    start = weights()

    def length(model: ArrayRecord) -> float:
        return float(
            np.sqrt(sum(np.square(model[n].numpy() - start[n].numpy()).sum() for n in model))
        )

    free, _, _ = one_round(SecureGrid(grid))
    short, _, _ = one_round(SecureGrid(grid, clip=0.01), arrays=start)
    assert length(free) > 0.02
    assert 0.001 < length(short) <= 0.01 + 1e-6


def test_with_the_same_weights_who_was_lost_stays_away(grid: Between) -> None:
    secure = SecureGrid(grid)
    grid.down = lost("client-2", at="train.fit")
    one_round(secure)
    grid.down = Between.down
    grid.sent = []
    _, metrics, rounds = one_round(secure)
    assert metrics["num-clients"] == 3
    assert [f.client for f in rounds.failures] == ["client-2"]
    assert {name_of(m) for m in grid.of("query.keys")} == {"client-0", "client-1", "client-3"}
    # Other weights are another question.
    _, metrics, _ = one_round(secure, arrays=weights(5))
    assert metrics["num-clients"] == 4


def test_nothing_is_left_of_a_sum_on_disk(grid: Between, tmp_path: Path) -> None:
    one_round(SecureGrid(grid))
    stores = sorted((tmp_path / "private").rglob("_sums"))
    assert len(stores) == 4
    for store in stores:
        assert {path.name for path in store.iterdir()} == {"begun", "revealed.jsonl"}
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in store.iterdir())
        assert store.stat().st_mode & 0o777 == 0o700
        assert (store / "begun").stat().st_size == 32


def test_one_set_of_weights_serves_all_secrets_of_a_sum() -> None:
    at_zero.cache_clear()
    assert at_zero((1, 2, 3)) == at_zero((1, 2, 3))
    assert at_zero.cache_info().hits == 1
