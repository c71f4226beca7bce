"""Partial participation: who is drawn, who must not be, and that recovery draws as training did."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.wire import ForgetSpec
from server.evidence.record import to_json
from server.requests.intake import Service
from server.runner import run
from server.settings import RunSettings
from server.storage.home import Home
from strategies.federation import Plan
from strategies.parts.participation import as_in_training
from strategies.table import METHODS
from tests.recording import MODEL, Recording

CLASS, NONE = ForgetSpec("class", (3,)), ForgetSpec("none")
CLIENT = ForgetSpec("client", (), ("client-0",))
# Client-0 holds examples of these alone.
FIRST_CLASSES = ForgetSpec("class", (0, 1, 2))
EVERYBODY = ["client-0", "client-1", "client-2"]


class Everybody(Recording):
    @property
    def plan(self) -> Plan:
        return Plan(num_rounds=7, fraction=1.0, min_share=0.25)


@pytest.mark.parametrize(
    ("federation", "back", "left"),
    [
        (Recording(CLASS), False, EVERYBODY),
        (Recording(FIRST_CLASSES), False, ["client-1", "client-2"]),
        (Recording(CLIENT), False, ["client-1", "client-2"]),
        (Recording(CLIENT), True, EVERYBODY),
        (Recording(CLIENT, erased_clients=("client-1",)), False, ["client-2"]),
        (Recording(CLIENT, erased_clients=("client-1",)), True, ["client-0", "client-2"]),
        # What comes back is there again, although its tombstone is not yet lifted.
        (
            Recording(CLIENT, erased_clients=("client-0",)),
            True,
            ["client-0", "client-1", "client-2"],
        ),
        (Recording(NONE), False, None),
    ],
)
def test_nodes_whose_data_are_gone_are_not_drawn(
    federation: Recording, back: bool, left: list[str] | None
) -> None:
    found = as_in_training(federation, back=back)
    assert found == {"participants": left, "fraction": 0.5, "min_share": 0.25, "over_select": 0.0}


def test_where_all_take_part_those_without_data_say_so_themselves() -> None:
    found = as_in_training(Everybody(CLIENT))
    assert found == {"participants": None, "fraction": 1.0, "min_share": 0.25, "over_select": 0.0}


RECOVERING = [
    *("quickdrop", "quickdrop-calibrated", "quickdrop-subset", "quickdrop-calibrated-subset"),
    *("sga", "puf", "not"),
]


@pytest.mark.parametrize("spec", [CLASS, CLIENT], ids=["class", "client"])
@pytest.mark.parametrize("name", RECOVERING)
def test_holders_all_unlearn_and_as_many_as_in_training_recover(
    name: str, spec: ForgetSpec
) -> None:
    # An accuracy that is never back: all rounds are run.
    federation = Falling(spec)
    METHODS[name]().forget(federation, MODEL)
    recovered = [step for step in federation.steps if step.phase == "recover"]
    assert recovered
    drawn = as_in_training(federation)
    for step in recovered:
        found = step.rounds
        assert (found.participants, found.fraction) == (drawn["participants"], 0.5)
        assert found.min_share == 0.25
    # Nodes that never took part in training have no synthetic data.
    assert set(federation.asked_for_synthetic[:-1]) == {METHODS[name].needs.synthetic_data}
    for step in federation.steps:
        if step.phase == "unlearn" and step.rounds is not None:  # not on the coordinator's machine
            assert (step.participants, step.rounds.fraction) == (["client-0", "client-2"], 1.0)


class Falling(Recording):
    """Its model was once better than it will ever be again."""

    def accuracies(self, model: Any) -> Any:
        found = super().accuracies(model)
        self.retain = 50.0
        return found


JOB = {
    **{"dataset": "digits", "num_clients": 4, "partition": "iid", "fraction": 0.25, "rounds": 6},
    **{"local_steps": 2, "batch_size": 16, "model_width": 4, "model_depth": 1, "seed": 0},
    **{"evaluate_every": 0, "max_forget_accuracy": 100.0, "max_relearning_gap": 100.0},
    "accept": "not-shown",
    "compare": "none",
    "engine": "inline",
}


class Drawn:
    """Remembers how many nodes each round had; presses Ctrl-C in one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.clients: list[int] = []

    def round(self, done: Any, scores: Any) -> None:
        if len(self.clients) == self.stop_at:
            raise KeyboardInterrupt
        self.clients.append(done.num_clients)

    def note(self, text: str) -> None: ...


def ask(home: Path, mode: str, watching: Drawn, **more: Any) -> dict[str, Any]:
    told = RunSettings(**{**JOB, "home": str(home), "mode": mode, **more}).check()
    return to_json(run(told, watching))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained") / "home"
    ask(home, "train", Drawn())
    return home


@pytest.mark.parametrize("method", ["retraining", "puf"])
def test_one_node_a_round_is_never_the_one_that_left(trained: Path, method: str) -> None:
    for client in ("client-0", "client-3"):  # of six rounds with one of four nodes
        watching = Drawn()
        told = {"method": method, "forget_clients": client, "trial": True}
        record = ask(trained, "forget", watching, **told)
        assert set(watching.clients) == {1}
        assert record["recovered"]["retain_accuracy"] > 10


def test_a_stopped_request_draws_the_same_nodes_again(trained: Path, tmp_path: Path) -> None:
    told = {"method": "retraining", "forget_clients": "client-1", "trial": True}
    found = []
    for name, stop_at in (("whole", None), ("stopped", 3)):
        home = Path(shutil.copytree(trained, tmp_path / name))
        if stop_at is not None:
            with pytest.raises(KeyboardInterrupt):
                ask(home, "forget", Drawn(stop_at), **told)
        version = ask(home, "forget", Drawn(), **told)["model_version"]
        found.append(Service.open(Home(home)).registry.load(version)[0])
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_nodes_that_never_trained_have_no_synthetic_data_and_are_not_drawn(tmp_path: Path) -> None:
    watching = Drawn()
    ask(tmp_path, "train", watching, rounds=2, scale=20)  # of four nodes two at most take part
    told = {"method": "quickdrop", "forget_classes": "3", "trial": True, "rounds": 2, "scale": 20}
    told["method_options"] = "recover-rounds=4,recover-epochs=1,threshold=100,tolerance=100"
    watching = Drawn()
    ask(tmp_path, "forget", watching, **told)
    assert watching.clients[-4:] == [1, 1, 1, 1]
