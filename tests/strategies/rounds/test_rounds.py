"""Rounds: who is asked, who must answer, and what is averaged."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

from client import wire
from client.app import app
from client.data.site import open_site
from client.learning.models import build
from client.learning.spec import image_model
from client.messages import Common
from client.seeds import generator
from client.steps.ascent import Ascend
from client.steps.recovery import Descend
from client.steps.training import Fit
from server.nodes.engines.inline import InlineGrid
from server.nodes.grid import NamedGrid
from strategies.rounds.base import (
    AscentRounds,
    ClientLost,
    FederatedAveraging,
    NothingTouched,
    RecoveryRounds,
    Rounds,
    num_drawn,
)
from strategies.rounds.scaling import ScaledAveraging, scaled_average
from tests.messages import network, reply, told, weights
from tests.supervisor import supervised

ROOT = Path(__file__).parents[3]
NAMES = ["a", "b", "c", "d"]
FIT = {"steps": 1, "batch_size": 32, "lr": 0.1}


@pytest.fixture(autouse=True)
def _identity() -> None:
    # Outside a Flower task nobody has set the identity that messages are stamped with.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class Online:
    """As much of a Grid as choosing nodes needs."""

    def __init__(self, names: Sequence[str]) -> None:
        # Ids run against the names: an order by ids would show.
        self.ids = {name: 100 - position for position, name in enumerate(sorted(names))}

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=number, name=name) for name, number in self.ids.items()]


def averaging(**more: Any) -> FederatedAveraging:
    return FederatedAveraging(told(Fit, **FIT), **more)


def ascent(**more: Any) -> AscentRounds:
    return AscentRounds(told(Ascend, lr=0.1, phase="unlearn"), **more)


def model(value: float) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.array([value], dtype=np.float32))})


def asked(rounds: Rounds, names: Sequence[str], server_round: int = 1) -> list[Message]:
    grid: Any = Online(names)
    return list(rounds.configure_train(server_round, model(0.0), ConfigRecord(), grid))


def names_of(messages: list[Message]) -> list[str]:
    return [str(m.content.config_records["config"]["client"]) for m in messages]


def answer(question: Message, value: float, examples: float, **metrics: float) -> Message:
    return reply(question, model(value), examples, **metrics)


def failure(question: Message) -> Message:
    return Message(Error(2, "DataError: the node's own log says why"), reply_to=question)


def averaged(rounds: Rounds, replies: list[Message]) -> float:
    found, _ = rounds.aggregate_train(1, replies)
    assert found is not None
    return float(found["w"].numpy()[0])


# ---- who is asked -------------------------------------------------------------------------------


def test_every_node_is_told_its_own_name_the_round_and_the_same_settings() -> None:
    rounds = averaging()
    messages = asked(rounds, ["c", "a", "b"], server_round=4)
    assert names_of(messages) == ["a", "b", "c"]
    for message in messages:
        assert message.metadata.message_type == Fit.message.name
        settings = Fit.parse(message.content.config_records["config"])
        assert (settings.server_round, settings.lr, settings.steps) == (4, 0.1, 1)
    assert [m.metadata.dst_node_id for m in messages] == [100, 99, 98]


def test_only_participants_are_asked() -> None:
    assert names_of(asked(averaging(participants=["d", "b"]), NAMES)) == ["b", "d"]


def test_sampling_depends_on_seed_and_round_and_not_on_who_came_first() -> None:
    names = [f"client-{i:02d}" for i in range(20)]
    rounds = averaging(fraction=0.3)
    drawn = [names_of(asked(rounds, names, r)) for r in (1, 2, 3)]
    assert all(len(d) == 6 and d == sorted(d) for d in drawn)
    assert drawn[0] != drawn[1] != drawn[2]
    np.random.default_rng(0).shuffle(names)
    assert [names_of(asked(averaging(fraction=0.3), names, r)) for r in (1, 2, 3)] == drawn
    other = FederatedAveraging(told(Fit, **FIT, seed=1), fraction=0.3)
    assert names_of(asked(other, names, 1)) != drawn[0]


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 4), (0.5, 2), (0.01, 1)])
def test_at_least_one_node_is_drawn(fraction: float, count: int) -> None:
    assert len(asked(averaging(fraction=fraction), NAMES)) == count


def test_a_holder_that_is_offline_stops_the_ascent_before_it_starts() -> None:
    with pytest.raises(ClientLost, match=r"must be online for unlearn: \['x'\]"):
        asked(ascent(participants=["a", "x"]), NAMES)
    # Averaging goes on without it.
    assert names_of(asked(averaging(participants=["a", "x"]), NAMES)) == ["a"]


def test_evaluation_is_nobodys_business_here() -> None:
    grid: Any = Online(NAMES)
    assert list(averaging().configure_evaluate(1, model(0), ConfigRecord(), grid)) == []


# ---- what is averaged ---------------------------------------------------------------------------


def test_models_weigh_as_many_examples_as_each_node_used() -> None:
    rounds = averaging()
    one, two, three = asked(rounds, ["a", "b", "c"])
    # (10 * 1 + 30 * 2 + 60 * 5) / 100 = 3.7.
    replies = [answer(one, 1.0, 10), answer(two, 2.0, 30), answer(three, 5.0, 60)]
    assert averaged(rounds, replies) == pytest.approx(3.7)


def test_totals_are_summed_and_the_loss_is_weighted() -> None:
    rounds = averaging()
    one, two = asked(rounds, ["a", "b"])
    replies = [
        answer(one, 1.0, 10, loss=1.0, samples=64),
        answer(two, 1.0, 30, loss=2.0, samples=32),
    ]
    _, metrics = rounds.aggregate_train(1, replies)
    assert metrics is not None
    # (10 * 1 + 30 * 2) / 40 = 1.75; 0.5 s each.
    assert (metrics["loss"], metrics["samples"], metrics["client-seconds"]) == (1.75, 96.0, 1.0)
    assert (metrics["num-clients"], metrics["num-failures"]) == (2, 0)


def test_the_order_of_arrival_does_not_matter() -> None:
    rounds = averaging()
    messages = asked(rounds, NAMES)
    # Sums in another order would differ in the last bits.
    values = [0.1, 1e8, -1e8, 0.7]
    replies = [answer(m, v, 3 + i) for i, (m, v) in enumerate(zip(messages, values, strict=True))]
    found = {averaged(rounds, [replies[i] for i in order]) for order in
             ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1])}  # fmt: skip
    assert len(found) == 1


def test_a_node_without_examples_does_not_weigh() -> None:
    rounds = RecoveryRounds(told(Descend, lr=0.1))
    one, two = asked(rounds, ["a", "b"])
    assert averaged(rounds, [answer(one, 1.0, 10), answer(two, 99.0, 0)]) == 1.0


def test_no_example_at_all_is_an_error_and_no_success() -> None:
    rounds = ascent()
    replies = [answer(m, 1.0, 0) for m in asked(rounds, ["a", "b"])]
    with pytest.raises(
        NothingTouched, match="unlearn must use at least one example, got none on 2"
    ):
        rounds.aggregate_train(1, replies)


# ---- scaled updates -----------------------------------------------------------------------------


def scaled(scales: dict[str, float], *, others: float = 1.0) -> float:
    """Return the model after nodes made of 0.0 (see `asked`) 1, 2 and 5 on 10, 30, 60 examples."""
    rounds = ScaledAveraging(told(Fit, **FIT), scales=scales, others=others)
    one, two, three = asked(rounds, ["a", "b", "c"])
    replies = [answer(one, 1.0, 10), answer(two, 2.0, 30), answer(three, 5.0, 60)]
    return averaged(rounds, replies)


@pytest.mark.parametrize(
    ("scales", "others", "expected"),
    [
        ({}, 1.0, 3.7),  # 0.1 * 1 + 0.3 * 2 + 0.6 * 5: federated averaging
        ({"b": 0.0}, 1.0, 3.1),
        ({"b": 0.5}, 2.0, 6.5),  # 2 * 0.1 + 0.5 * 0.6 + 2 * 3
        ({}, -2.0, -7.4),
        ({"c": -1.0, "nobody": 9.0}, 1.0, -2.3),  # 0.1 + 0.6 - 3
    ],
)
def test_an_update_counts_as_often_as_its_scale_says(
    scales: dict[str, float], others: float, expected: float
) -> None:
    assert scaled(scales, others=others) == pytest.approx(expected)


def test_scales_are_of_updates_and_not_of_models() -> None:
    # From 10 to 12 and 8, of equal weight: 10 + (3 * 2 - 2) / 2.
    found = scaled_average(model(10.0), [model(12.0), model(8.0)], [1.0, 1.0], [3.0, 1.0])
    assert found["w"].numpy().tolist() == [12.0]


def test_running_statistics_are_never_extrapolated() -> None:
    def norm(value: float, count: int) -> ArrayRecord:
        mean, batches = np.array([value], dtype=np.float32), np.array(count)
        return ArrayRecord({"n.running_var": Array(mean), "n.num_batches_tracked": Array(batches)})

    after = [norm(5.0, 7)]
    for scale, variance, batches in [(-2.0, 1.0, 4), (0.5, 3.0, 6), (1.0, 5.0, 7), (2.0, 5.0, 7)]:
        found = scaled_average(norm(1.0, 4), after, [1.0], [scale])
        assert found["n.running_var"].numpy().tolist() == [variance]
        count = found["n.num_batches_tracked"].numpy()
        # Half way from 4 to 7 is 5.5, rounded to the even 6.
        assert (count.dtype, int(count)) == (np.int64, batches)


def test_the_model_that_is_scaled_from_is_left_as_it_was() -> None:
    start = model(10.0)
    scaled_average(start, [model(12.0)], [1.0], [-1.0])
    assert start["w"].numpy().tolist() == [10.0]


@pytest.mark.parametrize(
    ("models", "weights_", "message"),
    [
        ([], [], "weights must be at least 0 and of positive sum"),
        ([model(1.0)], [0.0], "weights must be at least 0 and of positive sum"),
        ([ArrayRecord({"v": Array(np.zeros(1))})], [1.0], "must hold the same tensors"),
        ([ArrayRecord({"w": Array(np.zeros(2))})], [1.0], "tensor w must have one shape and dtype"),
    ],
)
def test_models_that_do_not_fit_are_not_scaled(
    models: list[ArrayRecord], weights_: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scaled_average(model(0.0), models, weights_, [1.0] * len(models))


def test_scaling_no_example_at_all_is_an_error() -> None:
    rounds = ScaledAveraging(told(Fit, **FIT), scales={})
    replies = [answer(m, 1.0, 0) for m in asked(rounds, ["a", "b"])]
    with pytest.raises(NothingTouched, match="must use at least one example, got none on 2"):
        rounds.aggregate_train(1, replies)


# ---- who must answer ----------------------------------------------------------------------------


def test_a_lost_client_is_tolerated_above_the_share_and_named() -> None:
    rounds = averaging(min_share=0.5)
    messages = asked(rounds, NAMES)
    replies = [answer(messages[0], 1.0, 10), answer(messages[1], 3.0, 10), failure(messages[2])]
    assert averaged(rounds, replies) == 2.0
    assert [(f.client, f.reason) for f in rounds.failures] == [
        ("c", "DataError: the node's own log says why"),
        ("d", "no answer before the deadline"),
    ]


def test_too_few_answers_end_the_round_with_the_reasons() -> None:
    rounds = averaging(min_share=0.6)  # ceil(0.6 * 4) = 3
    messages = asked(rounds, NAMES)
    replies = [answer(m, 1.0, 10) for m in messages[:2]] + [failure(messages[2])]
    with pytest.raises(
        ClientLost,
        match=r"must have 3 answers of 4 clients, got 2 .*c: DataError.*d: no answer before",
    ):
        rounds.aggregate_train(1, replies)


def test_nobody_online_is_an_error_whatever_the_share() -> None:
    rounds = averaging(min_share=0.01)
    assert asked(rounds, []) == []
    with pytest.raises(ClientLost, match=r"must have 1 answer of 0 clients, got 0 .*none online"):
        rounds.aggregate_train(1, [])


@pytest.mark.parametrize("lost", [lambda m: [], lambda m: [failure(m)]])
def test_the_ascent_needs_every_holder(lost: Callable[[Message], list[Message]]) -> None:
    rounds = ascent(participants=["a", "b"], min_share=0.5)
    one, two = asked(rounds, NAMES)
    with pytest.raises(ClientLost, match="must have 2 answers of 2 clients, got 1"):
        rounds.aggregate_train(1, [answer(one, 1.0, 10), *lost(two)])


@pytest.mark.parametrize("lost", [lambda m: [], lambda m: [failure(m)]])
def test_those_that_unlearning_depends_on_must_answer_whatever_the_share(
    lost: Callable[[Message], list[Message]],
) -> None:
    rounds = averaging(min_share=0.1, required=["b"])
    one, two = asked(rounds, ["a", "b"])
    assert averaged(rounds, [*lost(one), answer(two, 3.0, 10)]) == 3.0
    with pytest.raises(ClientLost, match=r"must have the answers of .* got none of b"):
        rounds.aggregate_train(1, [answer(one, 1.0, 10), *lost(two)])


def test_those_that_unlearning_depends_on_must_be_online() -> None:
    with pytest.raises(ClientLost, match=r"clients must be online for test: \['z'\]"):
        asked(averaging(min_share=0.1, required=["z"]), ["a", "b"])


@pytest.mark.parametrize(
    ("fraction", "count", "expected"),
    [(1.0, 3, 3), (0.5, 3, 2), (0.5, 2, 1), (0.1, 100, 10), (0.1, 3, 1), (0.1, 0, 0)],
)
def test_a_share_of_the_nodes_is_drawn_and_at_least_one(
    fraction: float, count: int, expected: int
) -> None:
    assert num_drawn(fraction, count) == expected


def test_a_reply_of_other_code_is_that_nodes_failure() -> None:
    rounds = averaging()
    one, two = asked(rounds, ["a", "b"])
    assert averaged(rounds, [answer(one, 3.0, 10), answer(two, 9.0, 10, code=7)]) == 3.0
    (failure,) = rounds.failures
    assert (failure.client, failure.code) == ("b", "code-mismatch")
    with pytest.raises(
        ClientLost,
        match=f"b: client must run the coordinator's client code {wire.fingerprint()[:12]}, got 7",
    ):
        rounds.aggregate_train(1, [answer(q, 1.0, 10, code=7) for q in (one, two)])


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({"arrays": model(1.0)}),
        RecordDict({"metrics": MetricRecord({"num-examples": 1})}),
        RecordDict({"arrays": model(1), "more": model(2), "metrics": MetricRecord()}),
        RecordDict({"arrays": model(1), "metrics": MetricRecord(), "more": ConfigRecord()}),
    ],
)
def test_a_reply_of_another_form_is_refused(content: RecordDict) -> None:
    rounds = averaging()
    (one,) = asked(rounds, ["a"])
    with pytest.raises(ClientLost, match="a: reply must hold one ArrayRecord and one MetricR"):
        rounds.aggregate_train(1, [Message(content, reply_to=one)])


def test_a_node_that_is_away_is_a_failure_of_every_round_it_misses() -> None:
    rounds = averaging()
    rounds.members = ["a", "b", "c"]
    one, two = asked(rounds, ["a", "b"])
    assert averaged(rounds, [answer(one, 1.0, 10), answer(two, 3.0, 10)]) == 2.0
    assert [(f.client, f.code, f.passing) for f in rounds.failures] == [("c", "unavailable", True)]


# ---- as Flower's own Strategy -------------------------------------------------------------------


@pytest.fixture
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path))


@pytest.mark.usefixtures("_store")
@pytest.mark.parametrize("named", [True, False])
def test_rounds_run_with_flowers_own_start(named: bool) -> None:
    with InlineGrid(app, 3) as inner:
        grid = NamedGrid(inner, 60.0, 0.001) if named else inner
        result = averaging(fraction=0.67).start(grid, weights(), num_rounds=2)
    assert list(result.train_metrics_clientapp) == [1, 2]
    # 300 digits over 3 nodes, 90 to train on; 2 of 3 drawn; 32 images a step.
    first = result.train_metrics_clientapp[1]
    assert (first["num-clients"], first["num-examples"], first["samples"]) == (2, 180, 64)
    assert list(result.arrays) == list(weights())
    assert not np.array_equal(
        result.arrays["classifier.bias"].numpy(), weights()["classifier.bias"].numpy()
    )


class Unnamed(InlineGrid):
    """Nodes as Flower's own simulation gives them: without names."""

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node.node_id) for node in super().get_nodes()]


@pytest.mark.usefixtures("_store")
def test_nodes_without_names_are_told_apart_by_their_numbers() -> None:
    with Unnamed(app, 3) as grid:
        result = averaging().start(grid, weights(), num_rounds=1)
        chosen = averaging(participants=["node-2"]).start(grid, weights(), num_rounds=1)
    assert result.train_metrics_clientapp[1]["num-clients"] == 3
    assert chosen.train_metrics_clientapp[1]["num-clients"] == 1


STRANGER = ClientApp()


@STRANGER.train("ascend")
def somebodys_own(message: Message, context: Context) -> Message:
    """Answer as another app may that knows nothing of ours: a model, and how much it weighs."""
    sent = message.content.array_records["arrays"]
    arrays = ArrayRecord(
        {name: Array(array.numpy() + np.float32(1)) for name, array in sent.items()}
    )
    return Message(
        RecordDict({"theirs": arrays, "numbers": MetricRecord({"num-examples": 5})}),
        reply_to=message,
    )


def beside_ours(message: Message, context: Context) -> Message:
    """Run our ClientApp on the first node, a stranger's on the others."""
    ours = int(context.node_config["partition-id"]) == 0
    return (app if ours else STRANGER)(message, context)


RETAINS = {"lr": 0.1, "data": "original", "forget_level": "class", "forget_classes": [3]}


@pytest.mark.usefixtures("_store")
def test_a_strangers_app_beside_ours_counts_if_it_may() -> None:
    with Unnamed(beside_ours, 3) as grid:
        rounds = AscentRounds(told(Ascend, **RETAINS), same_code=False)
        result = rounds.start(grid, weights(), num_rounds=1)
        with pytest.raises(ClientLost, match="node-2: client must run the coordinator's client c"):
            AscentRounds(told(Ascend, **RETAINS)).start(grid, weights(), num_rounds=1)
    totals = result.train_metrics_clientapp[1]
    assert (totals["num-clients"], totals["num-failures"]) == (3, 0)
    assert float(totals["num-examples"]) > 10  # theirs, and what the first node ascended on
    assert not np.array_equal(
        result.arrays["classifier.bias"].numpy(), weights()["classifier.bias"].numpy()
    )


def test_a_reply_that_does_not_say_how_much_it_weighs_is_refused() -> None:
    rounds = averaging(same_code=False)
    (one,) = asked(rounds, ["a"])
    content = RecordDict({"arrays": model(1.0), "metrics": MetricRecord({"loss": 1.0})})
    with pytest.raises(ClientLost, match=r"a: reply must say num-examples, got \['loss'\]"):
        rounds.aggregate_train(1, [Message(content, reply_to=one)])


SIMULATED = """
import os, sys
from flwr.serverapp import ServerApp
from flwr.clientapp import ClientApp
from flwr.simulation import run_simulation
from strategies.rounds.base import AscentRounds
from client.steps.ascent import Ascend
from tests.messages import told, weights
from tests.strategies.rounds.test_rounds import RETAINS, beside_ours

client = ClientApp()

@client.train("ascend")
def both(message, context):
    from tests.strategies.rounds.test_rounds import beside_ours
    return beside_ours(message, context)

server = ServerApp()

@server.main()
def main(grid, context):
    rounds = AscentRounds(told(Ascend, **RETAINS), same_code=False)
    result = rounds.start(grid, weights(), num_rounds=1)
    print("names:", sorted({node.name for node in grid.get_nodes()}), flush=True)
    print("asked:", dict(result.train_metrics_clientapp[1])["num-clients"], flush=True)

run_simulation(server, client, 3, backend_config={
    "init_args": {"include_dashboard": False, "num_cpus": 2},
    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
})
"""


@pytest.mark.processes
def test_rounds_run_in_flowers_own_simulation_beside_a_strangers_app(tmp_path: Path) -> None:
    environment = {**os.environ, "EFFACE_STORE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        supervised([sys.executable, "-c", SIMULATED]),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "names: ['']" in done.stdout, done.stderr[-3000:]
    assert "asked: 3" in done.stdout, done.stderr[-3000:]


@pytest.mark.usefixtures("_store")
def test_a_round_on_one_node_is_that_nodes_sgd() -> None:
    # One node, one batch of all its data: the round is the ordinary gradient step.
    settings = told(Fit, steps=1, batch_size=1000, lr=0.1, num_clients=1, max_samples=50)
    with InlineGrid(app, 1) as grid:
        result = FederatedAveraging(settings).start(grid, weights(), num_rounds=1)
    site = open_site(told(Common, num_clients=1, max_samples=50), {"partition-id": 0})
    own = network()
    images, labels = site.inputs(site.train), site.train.labels
    torch.nn.functional.cross_entropy(own(images), labels).backward()
    for name, parameter in own.named_parameters():
        expected = (parameter - 0.1 * parameter.grad).detach()  # type: ignore[operator]
        found = torch.from_numpy(result.arrays[name].numpy())
        # The order of the images differs: sums in another order, in float32.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_store")
def test_batch_norms_buffers_are_averaged_in_their_dtype() -> None:
    spec = image_model("resnet20", num_classes=10, channels=1, image_size=8)
    start = ArrayRecord(build(spec, torch.Generator().manual_seed(0)).state_dict())
    settings = told(
        Fit, steps=3, batch_size=8, lr=0.1, **Fit.of_model(spec), num_clients=2, max_samples=40
    )
    with InlineGrid(app, 2) as grid:
        result = FederatedAveraging(settings).start(grid, start, num_rounds=1)
    counts = [name for name in start if name.endswith("num_batches_tracked")]
    assert counts
    for name in counts:
        found = result.arrays[name].numpy()
        assert (found.dtype, found.shape, int(found)) == (np.int64, (), 3)  # steps of each node


def test_seeds_depend_on_every_part_of_their_path() -> None:
    draws = {
        int(generator(*path).initial_seed())
        for path in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a", "1"), (0, "a1")]
    }
    assert len(draws) == 6
    assert re.fullmatch(r"\d+", str(min(draws)))
