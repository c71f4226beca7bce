"""Rounds about channels, with real nodes on digits: what crosses the wire, and what changes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord

from client.app import app
from client.channels.layout import from_text, layout
from client.data.site import open_site
from client.steps.channels import Ablation, FitChannels, Representation
from server.nodes.engines.inline import InlineGrid
from server.nodes.grid import NamedGrid
from server.nodes.sizes import size
from strategies.rounds.base import ClientLost, NothingTouched
from strategies.rounds.channels import AblationRounds, PartialChannelFedAvg, RepresentationRounds
from tests.messages import NUM_CLIENTS, network, told, weights

CLASS_3 = {"forget_level": "class", "forget_classes": [3]}
CHANNELS = ["body.0:0,3", "body.4:5", "classifier:3"]
ROWS = {"body.0": [0, 3], "body.1": [0, 3], "body.4": [5], "body.5": [5], "classifier": [3]}


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NamedGrid]:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path))
    with InlineGrid(app, NUM_CLIENTS, workers=1) as inner:
        yield NamedGrid(inner, round_timeout=300.0)


def partial(**more: Any) -> PartialChannelFedAvg:
    asked = told(FitChannels, channels=CHANNELS, steps=2, lr=0.5, **CLASS_3, **more)
    return PartialChannelFedAvg(asked, layout(network()))


def run(rounds: Any, grid: Any, number: int, model: ArrayRecord) -> tuple[list[Any], ArrayRecord]:
    asked = list(rounds.configure_train(number, model, ConfigRecord(), grid))
    averaged, _ = rounds.aggregate_train(number, grid.send_and_receive(asked))
    return asked, averaged


def test_nothing_outside_the_channels_changes_a_bit(grid: NamedGrid) -> None:
    rounds, model = partial(), weights()
    for number in (1, 2):
        _, model = run(rounds, grid, number, model)
    for name, before in weights().items():
        rows = ROWS.get(name.rpartition(".")[0], [])
        old, new = before.numpy(), model[name].numpy()
        assert np.array_equal(np.delete(old, rows, 0), np.delete(new, rows, 0))
        # A convolution's bias in front of its norm is without effect, and may stay.
        assert not rows or name.endswith("bias") or not np.array_equal(old[rows], new[rows])


def test_the_whole_model_goes_down_once_and_slices_afterwards(grid: NamedGrid) -> None:
    rounds = partial()
    first, model = run(rounds, grid, 1, weights())
    second, _ = run(rounds, grid, 2, model)
    assert {m.content.config_records["config"]["whole"] for m in first} == {True}
    assert {m.content.config_records["config"]["whole"] for m in second} == {False}
    slices = second[0].content.array_records["arrays"]
    expected = sum(
        weights()[f"{name}.{kind}"].numpy()[rows].nbytes
        for name, rows in ROWS.items()
        for kind in ("weight", "bias")
    )
    assert sum(array.numpy().nbytes for array in slices.values()) == expected
    assert list(slices) == ["slices"]  # one row: a name and a header for each would outweigh them
    assert sum(map(size, second)) < sum(map(size, first))


def test_the_bytes_counted_are_those_of_the_messages(grid: NamedGrid) -> None:
    rounds = partial()
    _, model = run(rounds, grid, 1, weights())
    grid.take_traffic()
    asked = list(rounds.configure_train(2, model, ConfigRecord(), grid))
    answers = grid.send_and_receive(asked)
    traffic = grid.take_traffic()
    assert traffic.down == sum(map(size, asked))
    assert traffic.up == sum(map(size, answers))
    # A row of numbers with its header, and at most 500 bytes of counts.
    row = asked[0].content.array_records["arrays"]["slices"]
    for answer in answers:
        assert len(row.data) <= size(answer) <= len(row.data) + 500


def test_a_node_that_did_not_answer_gets_the_whole_model_again(grid: NamedGrid) -> None:
    rounds, model = partial(), weights()
    asked = list(rounds.configure_train(1, model, ConfigRecord(), grid))
    model, _ = rounds.aggregate_train(1, grid.send_and_receive(asked[:2]))  # type: ignore[assignment]
    again = list(rounds.configure_train(2, model, ConfigRecord(), grid))
    assert [m.content.config_records["config"]["whole"] for m in again] == [False, False, True]


def test_the_same_slices_whether_they_come_alone_or_with_the_model(grid: NamedGrid) -> None:
    one, model = partial(), weights()
    for number in (1, 2):
        _, model = run(one, grid, number, model)
    other = weights()
    for number in (1, 2):  # a new strategy knows no node: the whole model goes down every time
        _, other = run(partial(), grid, number, other)
    assert all(np.array_equal(model[name].numpy(), other[name].numpy()) for name in model)


def test_class_means_are_those_of_all_the_data_together(grid: NamedGrid) -> None:
    rounds = RepresentationRounds(told(Representation, **CLASS_3))
    asked = list(rounds.configure_train(1, weights(), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(asked))
    means, metrics = rounds.aggregate_train(1, replies)
    assert means is not None
    assert metrics is not None
    assert list(means) == ["body.0", "body.4"]
    # The sum over nodes of sums, over the sum of counts: not the mean of the nodes' means.
    contents = [reply.content for reply in replies]
    counts = np.sum([c.metric_records["metrics"]["count-per-class"] for c in contents], axis=0)
    sums = np.sum([c.array_records["arrays"]["body.4"].numpy() for c in contents], axis=0)
    np.testing.assert_allclose(means["body.4"].numpy(), sums / counts[:, None])
    assert metrics["num-examples"] == counts.sum()


def test_no_lone_examples_activations_go_up(grid: NamedGrid) -> None:
    few = RepresentationRounds(told(Representation, max_samples=40, **CLASS_3))
    asked = list(few.configure_train(1, weights(), ConfigRecord(), grid))
    contents = [reply.content for reply in grid.send_and_receive(asked)]
    site = open_site(told(Representation, max_samples=40), {"partition-id": 0})
    of_class = np.bincount(site.train.labels, minlength=10)
    assert 1 in of_class  # or this test shows nothing
    counts = np.asarray(contents[0].metric_records["metrics"]["count-per-class"])
    assert list(counts) == [0 if n == 1 else n for n in of_class]
    for sums in contents[0].array_records["arrays"].values():
        assert not sums.numpy()[of_class == 1].any()
        assert sums.numpy()[of_class > 1].any(axis=1).all()


def test_a_class_of_lone_examples_is_refused_before_anything_is_pruned(grid: NamedGrid) -> None:
    told_few = told(Representation, max_samples=40, forget_level="class")
    counts = [
        np.bincount(open_site(told_few, {"partition-id": i}).train.labels, minlength=10)
        for i in range(NUM_CLIENTS)
    ]
    lone = next(c for c in range(10) if max(n[c] for n in counts) == 1)
    rounds = RepresentationRounds(replace(told_few, forget_classes=[lone]))
    asked = list(rounds.configure_train(1, weights(), ConfigRecord(), grid))
    with pytest.raises(NothingTouched, match=f"class {lone} must have at least 2 examples on one"):
        rounds.aggregate_train(1, grid.send_and_receive(asked))


def test_other_examples_stand_for_a_class_with_every_number(grid: NamedGrid) -> None:
    # Were one selection part of the next, the difference of two answers would be one example's.
    sums = []
    for number in (5, 6):
        rounds = RepresentationRounds(told(Representation, samples_per_class=number, **CLASS_3))
        asked = list(rounds.configure_train(1, weights(), ConfigRecord(), grid))
        (answer, *_) = grid.send_and_receive(asked)
        sums.append(answer.content.array_records["arrays"]["body.0"].numpy())
    # Pooled activations are 0 or more: the larger of nested selections would exceed everywhere.
    assert (sums[1] < sums[0]).any()


def test_effects_are_averaged_by_the_examples_behind_them(grid: NamedGrid) -> None:
    rounds = AblationRounds(told(Ablation, **CLASS_3))
    asked = list(rounds.configure_train(1, weights(), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(asked))
    effects, _ = rounds.aggregate_train(1, replies)
    assert effects is not None
    assert set(effects) == {
        f"{kind}/{layer.name}" for layer in layout(network())[:-1] for kind in ("accuracy", "loss")
    }
    records = [
        (r.content.array_records["arrays"], r.content.metric_records["metrics"]) for r in replies
    ]
    total = sum(float(m["num-examples"]) for _, m in records)
    name = "loss/body.4"
    expected = sum(a[name].numpy() * (float(m["num-examples"]) / total) for a, m in records)
    np.testing.assert_allclose(effects[name].numpy(), expected)


def test_all_holders_must_answer_with_their_effects(grid: NamedGrid) -> None:
    rounds = AblationRounds(told(Ablation, **CLASS_3))
    asked = list(rounds.configure_train(1, weights(), ConfigRecord(), grid))
    with pytest.raises(ClientLost):
        rounds.aggregate_train(1, grid.send_and_receive(asked[:2]))


def test_the_text_of_the_channels_is_what_is_trained() -> None:
    assert partial().channels == from_text(CHANNELS)
    assert partial().message_type == FitChannels.message.name == "train.channels"
