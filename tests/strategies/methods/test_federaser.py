"""FedEraser: calibrated updates by hand, equality with retraining, and requests on digits."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.errors import BadSetting
from client.steps.training import Fit
from client.wire import ForgetSpec
from server.evidence.record import to_json
from server.nodes.engines.inline import InlineGrid
from server.nodes.federation import GridFederation, to_numpy
from server.nodes.grid import NamedGrid
from server.requests.intake import Service
from server.runner import run
from server.settings import RunSettings
from server.storage.history import History
from server.storage.home import Home
from server.storage.journal import Journal
from server.storage.registry import unpack
from strategies.federation import Plan, StoredRound
from strategies.methods.federaser import CalibratedRound, FedEraser, calibrated
from strategies.methods.retraining import train
from strategies.rounds.base import NothingTouched
from strategies.rounds.replay import ReplayedRound, after, difference
from tests.messages import reply, told, values, weights
from tests.recording import Recording

CLIENT_2 = ForgetSpec("client", (), ("client-2",))


@pytest.fixture(autouse=True)
def _identity() -> None:
    # Outside a Flower task nobody has set the identity that messages are stamped with.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def record(**tensors: list[float]) -> ArrayRecord:
    return ArrayRecord(
        {name: Array(np.array(tensor, dtype=np.float32)) for name, tensor in tensors.items()}
    )


def tensor(of: ArrayRecord, name: str = "w") -> list[float]:
    found: list[float] = of[name].numpy().tolist()
    return found


# ---- an update ----------------------------------------------------------------------------------


def test_a_calibrated_update_has_the_new_direction_and_the_stored_length() -> None:
    # Lengths 5 and 2, tensor by tensor: of both tensors as one vector they would be others.
    found = calibrated(record(w=[3.0, 4.0], b=[-2.0]), record(w=[0.0, 0.5], b=[8.0]))
    assert (tensor(found), tensor(found, "b")) == ([0.0, 5.0], [2.0])
    assert found["w"].numpy().dtype == np.float32


def test_an_update_that_goes_nowhere_stays_where_it_is() -> None:
    assert tensor(calibrated(record(w=[3.0, 4.0]), record(w=[0.0, 0.0]))) == [0.0, 0.0]


def test_running_statistics_are_those_after_calibration_training() -> None:
    start = ArrayRecord(
        {"norm.running_var": Array(np.ones(1, np.float32)), "norm.n": Array(np.zeros(1))}
    )
    stored = record(**{"norm.running_var": [9.0], "norm.n": [4.0]})
    end = record(**{"norm.running_var": [1.5], "norm.n": [1.0]})
    found = calibrated(stored, difference(end, start))
    assert tensor(found, "norm.running_var") == [0.5]
    assert tensor(found, "norm.n") == [4.0]


# ---- a round ------------------------------------------------------------------------------------


class Online:
    """As much of a Grid as choosing nodes needs."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=i + 1, name=name) for i, name in enumerate(self.names)]


def answer(question: Message, arrays: ArrayRecord, examples: float) -> Message:
    return reply(question, arrays, examples)


def test_a_round_adds_the_weighted_mean_of_the_calibrated_updates() -> None:
    stored = StoredRound(3, {"a": record(w=[3, 4]), "b": record(w=[0, 1])}, {"a": 9.0, "b": 9.0})
    settings = told(Fit, steps=1, lr=0.1)
    rounds = CalibratedRound(settings, stored, participants=["a", "b"])
    grid: Any = Online(["a", "b", "c"])
    asked = list(rounds.configure_train(1, record(w=[1, 1]), ConfigRecord(), grid))
    assert [m.content.config_records["config"]["client"] for m in asked] == ["a", "b"]

    # Directions (0, 1) and (1, 0); weights are the examples that are left: 1 and 3.
    replies = [answer(asked[0], record(w=[1, 3]), 1.0), answer(asked[1], record(w=[3, 1]), 3.0)]
    model, metrics = rounds.aggregate_train(1, replies)

    assert model is not None
    assert tensor(model) == [1 + 0.75 * 1, 1 + 0.25 * 5]
    assert metrics is not None
    assert metrics["num-examples"] == 4.0
    assert rounds.kept is not None
    assert (rounds.kept.number, rounds.kept.weights) == (3, {"a": 1.0, "b": 3.0})
    assert {n: tensor(u) for n, u in rounds.kept.updates.items()} == {"a": [0, 5], "b": [1, 0]}


def test_a_node_that_has_no_example_left_counts_for_nothing() -> None:
    stored = StoredRound(1, {"a": record(w=[3, 4]), "b": record(w=[0, 1])}, {"a": 9.0, "b": 9.0})
    rounds = CalibratedRound(told(Fit, steps=1, lr=0.1), stored, participants=["a", "b"])
    grid: Any = Online(["a", "b"])
    asked = list(rounds.configure_train(1, record(w=[1, 1]), ConfigRecord(), grid))
    replies = [answer(asked[0], record(w=[1, 3]), 1.0), answer(asked[1], record(w=[1, 1]), 0.0)]
    model, _ = rounds.aggregate_train(1, replies)
    assert model is not None
    assert tensor(model) == [1, 6]
    with pytest.raises(NothingTouched, match="must use at least one example, got none on 1"):
        rounds.aggregate_train(1, [answer(asked[1], record(w=[1, 1]), 0.0)])


def test_the_stored_round_is_added_as_it_is_without_asking_anybody() -> None:
    rounds = ReplayedRound(
        told(Fit, steps=1, lr=0.1),
        StoredRound(1, {"a": record(w=[4.0]), "b": record(w=[0.0])}, {"a": 1.0, "b": 3.0}),
    )
    grid: Any = Online(["a", "b"])
    assert list(rounds.configure_train(1, record(w=[1.0]), ConfigRecord(), grid)) == []
    model, metrics = rounds.aggregate_train(1, [])
    assert model is not None
    assert metrics is not None
    assert tensor(model) == [2.0]
    assert (metrics["samples"], metrics["num-clients"]) == (0, 0)
    assert rounds.kept is rounds.stored


# ---- the protocol, on nodes that descend to a point of their own --------------------------------


@dataclass
class Points(Recording):
    """Nodes with loss |w - a_i|^2 / 2, whose training can be followed by hand; lr is 0.5."""

    points: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, list[float]] = field(default_factory=dict)
    stored: list[StoredRound] = field(default_factory=list)
    steps_of_training: int = 1
    asked: list[tuple[str, int]] = field(default_factory=list)  # node and steps, in order

    def ordinary(self, **more: Any) -> Fit:
        told_: Fit = self.settings(Fit, **{"steps": self.steps_of_training, "lr": 0.5, **more})
        return told_

    def class_counts(self) -> dict[str, list[float]]:
        return self.counts

    def initial(self) -> ArrayRecord:
        return record(w=[0.0, 0.0])

    @property
    def plan(self) -> Plan:
        return Plan(num_rounds=3, fraction=1.0, min_share=1.0)

    def history(self) -> Iterator[StoredRound]:
        yield from self.stored

    def run(self, phase: str, rounds: Any, model: ArrayRecord, *, num_rounds: int) -> ArrayRecord:
        for number in range(1, num_rounds + 1):
            grid: Any = Online(sorted(self.points))
            asked = list(rounds.configure_train(number, model, ConfigRecord(), grid))
            replies, updates, sizes = [], {}, {}
            for question in asked:
                config = question.content.config_records["config"]
                name, steps = str(config["client"]), int(config["steps"])  # type: ignore[arg-type]
                w, size = model["w"].numpy(), sum(self.counts[name])
                self.asked.append((name, steps))
                for _ in range(steps):
                    w = w - 0.5 * (w - np.array(self.points[name], dtype=np.float32))
                end = ArrayRecord({"w": Array(w)})
                replies.append(answer(question, end, size))
                updates[name], sizes[name] = difference(end, model), size
            if phase == "train":
                self.stored.append(StoredRound(number, updates, sizes))
            model, _ = rounds.aggregate_train(number, replies)
        return model


def points(
    names: list[str],
    *,
    forget: ForgetSpec = CLIENT_2,
    steps: int = 1,
    kind: type[Points] = Points,
    **more: Any,
) -> Any:
    known = {"client-0": [8.0, 0.0], "client-1": [0.0, 4.0], "client-2": [-8.0, 8.0]}
    sizes = {"client-0": [1.0, 0.0], "client-1": [2.0, 1.0], "client-2": [0.0, 4.0]}
    return kind(
        forget=forget,
        points={name: known[name] for name in names},
        counts=sizes,
        steps_of_training=steps,
        **more,
    )


ALL, REST = ["client-0", "client-1", "client-2"], ["client-0", "client-1"]


def history(names: list[str], **more: Any) -> list[StoredRound]:
    """Return what training with these nodes leaves when every round is kept."""
    federation = points(names, **more)
    train(federation, phase="train")
    return list(federation.stored)


def retrained(*, num_rounds: int = 3, **more: Any) -> list[float]:
    federation = points(REST, **more)
    model = federation.initial()
    for stored in history(REST, **more)[:num_rounds]:
        model = after(model, stored)
    return tensor(model)


def test_calibration_takes_its_share_of_the_local_steps_and_asks_those_that_stay() -> None:
    federation = points(ALL, stored=history(ALL, steps=5), steps=5)
    FedEraser(ratio=0.5).forget(federation, federation.initial())
    # Round 1 needs nobody; 3 is the ceiling of 2.5.
    assert federation.asked == [("client-0", 3), ("client-1", 3)] * 2


def test_the_first_round_without_a_client_is_retrainings_own() -> None:
    stored = history(ALL)[:1]
    federation = points(ALL, stored=stored)
    found = FedEraser(ratio=1.0).forget(federation, federation.initial())
    # Half way to (8, 0) with one example, to (0, 4) with three: (4, 0) / 4 + 3 (0, 2) / 4.
    assert tensor(found) == [1.0, 1.5]
    assert tensor(found) == retrained(num_rounds=1)
    assert federation.asked == []


def test_with_the_history_of_those_that_stay_every_round_is_retrainings_own() -> None:
    federation = points(ALL, stored=history(REST))
    found = FedEraser(ratio=1.0).forget(federation, federation.initial())
    assert tensor(found) == pytest.approx(retrained(), rel=1e-6)
    # With the client in the history the lengths of later rounds are others.
    federation = points(ALL, stored=history(ALL))
    found = FedEraser(ratio=1.0).forget(federation, federation.initial())
    assert tensor(found) != pytest.approx(retrained(), rel=1e-2)


def test_fewer_steps_are_enough_where_they_lead_the_same_way() -> None:
    # Towards a point the way is straight: a third of the steps has the direction of all.
    federation = points(ALL, stored=history(REST, steps=3), steps=3)
    found = FedEraser(ratio=0.3).forget(federation, federation.initial())
    assert {steps for _, steps in federation.asked} == {1}
    assert tensor(found) == pytest.approx(retrained(steps=3), rel=1e-6)


def test_every_round_is_calibrated_where_a_class_is_forgotten() -> None:
    federation = points(ALL, stored=history(ALL)[:1], forget=ForgetSpec("class", (0,)))
    FedEraser().forget(federation, federation.initial())
    # client-0 has nothing but class 0.
    assert federation.asked == [("client-1", 1), ("client-2", 1)]


def test_ordinary_rounds_follow_until_the_accuracy_is_back() -> None:
    class Learning(Points):
        """90 % before the request; 80 % after the replay, and 5 points more with every round."""

        def accuracies(self, model: ArrayRecord) -> Any:
            rounds = self.asked.count(("client-2", 1))  # it is asked in ordinary rounds alone
            self.retain = 80.0 + 5 * rounds if self.asked else 90.0
            return super().accuracies(model)

    replayed = [("client-0", 1), ("client-1", 1)]  # the second of two rounds; the first asks nobody
    ordinary = [*replayed, ("client-2", 1)]
    asked: list[tuple[dict[str, Any], int]] = [
        ({}, 0),
        ({"rounds": 1}, 1),
        ({"rounds": 3}, 2),
        ({"rounds": 3, "tolerance": 5.0}, 1),
    ]
    for options, recovery in asked:
        federation = points(ALL, stored=history(ALL)[:2], kind=Learning)
        FedEraser(**options).forget(federation, federation.initial())
        assert federation.asked == [*replayed, *ordinary * recovery]


def test_erased_clients_and_rounds_of_nobody_left_are_skipped() -> None:
    all_, client_2 = history(ALL), history(["client-2"])
    federation = points(ALL, stored=[client_2[0], all_[1]], erased_clients=("client-0",))
    found = FedEraser(ratio=1.0).forget(federation, federation.initial())
    assert federation.asked == [("client-1", 1)]
    length = np.linalg.norm(all_[1].updates["client-1"]["w"].numpy())
    assert tensor(found) == pytest.approx([0.0, float(length)])
    federation = points(ALL, stored=client_2)
    with pytest.raises(NothingTouched, match="must hold clients with data left, got none"):
        FedEraser().forget(federation, federation.initial())


# ---- on real nodes ------------------------------------------------------------------------------


def test_on_real_nodes_it_equals_retraining_where_the_history_is_that_of_those_that_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "stores"))
    kept = History(tmp_path / "updates")
    job = {k: v for k, v in values(max_samples=0).items() if k not in ("client", "phase")}
    # All of a node's data in every step: no draw of batches tells two phases apart.
    training = {"steps": 2, "batch_size": 2000, "lr": 0.1}

    def federation(name: str, **more: Any) -> GridFederation:
        return GridFederation(
            grid,
            {**job, **more},
            Journal(tmp_path / name, {}),
            training=training,
            plan=Plan(3, 1.0, 1.0),
            first_weights=weights,
        )

    with InlineGrid(app, 3) as inner:
        grid = NamedGrid(inner, 60.0, 0.005)
        without = federation("without", erased_clients=["client-2"])
        without.keep = kept.keep
        wanted = to_numpy(train(without, phase="train"))
        erasing = federation("erasing", forget_level="client", forget_clients=["client-2"])
        erasing.history = kept.rounds
        found = to_numpy(FedEraser(ratio=1.0).forget(erasing, weights()))

    assert [(r.number, sorted(r.updates)) for r in kept.rounds()] == [(n, REST) for n in (1, 2, 3)]
    assert erasing.costs["unlearn"].rounds == 3
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6)


# ---- requests -----------------------------------------------------------------------------------

JOB: dict[str, Any] = {
    "num_clients": 3,
    "partition": "iid",
    "model_width": 8,
    "rounds": 5,
    "local_steps": 10,
    "batch_size": 32,
    "lr": 0.2,
    "scale": 0,
    "keep_updates": 2,
    "engine": "inline",
    "device": "cpu",
    "max_relearning_gap": 100.0,
    "accept": "not-shown",
}


class Silent:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


def ask(home: Path, mode: str, **more: Any) -> dict[str, Any]:
    told_ = {"mode": mode, "home": str(home), **JOB, **more}
    if mode == "forget":
        told_ = {"method": "federaser", **told_}
    return to_json(run(RunSettings(**told_).check(), Silent()))


def stored(home: Path) -> list[tuple[str, int, list[str]]]:
    """Return what is kept: request, round, clients."""
    return [
        (folder.name.partition("-")[0], kept.number, sorted(kept.updates))
        for folder in sorted((home / "updates").iterdir())
        for kept in History(folder).rounds()
    ]


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained") / "home"
    patch = pytest.MonkeyPatch()
    patch.setenv("EFFACE_STORE", "")
    ask(home, "train")
    patch.undo()
    return home


@pytest.fixture
def home(trained_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFACE_STORE", "")
    return Path(shutil.copytree(trained_home, tmp_path / "home"))


def test_one_class_after_another_is_forgotten_from_what_was_calibrated_before(home: Path) -> None:
    assert stored(home) == [("r0001", n, ALL) for n in (1, 3, 5)]
    first = ask(home, "forget", forget_classes="3")
    assert first["rounds"] == {"unlearn": 3}
    assert first["recovered"]["forget_accuracy"] == 0.0
    assert first["recovered"]["retain_accuracy"] > 70
    assert first["storage"]["updates"] > 3 * 3 * 1000
    # Every update of training knew the class.
    assert stored(home) == [("r0002", n, ALL) for n in (1, 3, 5)]

    second = ask(home, "forget", forget_classes="5")
    per_class = second["recovered"]["per_class_accuracy"]
    assert (per_class[3], per_class[5]) == (0.0, 0.0)
    assert second["recovered"]["retain_accuracy"] > 60
    assert stored(home) == [("r0003", n, ALL) for n in (1, 3, 5)]


def test_a_client_is_forgotten_and_the_others_are_not_asked_for_the_first_round(home: Path) -> None:
    record_ = ask(home, "forget", forget_clients="client-1")
    assert record_["rounds"] == {"unlearn": 3}
    assert record_["client_seconds"]["unlearn"] > 0
    assert stored(home) == [("r0002", n, ["client-0", "client-2"]) for n in (1, 3, 5)]
    ask(home, "relearn", forget_clients="client-1")
    assert stored(home) == []
    with pytest.raises(BadSetting, match="got v0003 without: a later request destroyed them"):
        ask(home, "forget", forget_clients="client-1")


def test_with_one_round_it_is_retraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_STORE", "")
    once = {"rounds": 1, "keep_updates": 1, "batch_size": 2000}
    ask(tmp_path, "train", **once)
    ask(tmp_path, "forget", forget_clients="client-1", compare="retrain")
    (path,) = Home(tmp_path).cache.glob("retrained-*.safetensors")
    wanted, _ = unpack(path.read_bytes(), path)
    found = Service.open(Home(tmp_path)).registry.load("v0002")[0]
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6)


def test_a_stopped_request_goes_on_and_ends_with_the_same_weights_and_updates(
    home: Path, tmp_path: Path
) -> None:
    class Stop(Silent):
        def round(self, done: Any, scores: Any) -> None:
            if done.number == 2:
                raise KeyboardInterrupt

    whole = Path(shutil.copytree(home, tmp_path / "whole"))
    ask(whole, "forget", forget_classes="3")
    told_ = {**JOB, "mode": "forget", "home": str(home), "method": "federaser"}
    with pytest.raises(KeyboardInterrupt):
        run(RunSettings(**told_, forget_classes="3").check(), Stop())
    assert {name for name, _, _ in stored(home)} == {"r0001", "r0002"}
    ask(home, "forget", forget_classes="3")

    def all_of(at: Path) -> tuple[dict[str, np.ndarray], list[bytes]]:
        files = sorted((at / "updates").rglob("*.update"))
        return Service.open(Home(at)).registry.load("v0002")[0], [f.read_bytes() for f in files]

    (arrays, kept), (arrays_of_whole, kept_of_whole) = all_of(home), all_of(whole)
    assert all(np.array_equal(arrays[name], arrays_of_whole[name]) for name in arrays)
    assert kept == kept_of_whole
