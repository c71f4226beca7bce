"""What nobody names becomes what serves the task; what somebody names is refused with a remedy."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import efface
from client.errors import BadSetting
from client.task import Task
from server.evidence.record import Record
from server.requests.asked import asked
from server.requests.intake import Service
from server.requests.predicting import predict
from server.runner import plan, run
from server.storage.home import Home
from server.storage.ledger import TransitionError
from server.storage.opened import give_up

TASKS = Path(__file__).parents[2] / "tasks"
JOB = {
    **{"engine": "inline", "num-clients": 3, "partition": "iid", "device": "cpu", "rounds": 2},
    **{"local-steps": 4, "batch-size": 16, "lr": 0.02, "evaluate-every": 0},
}


class Told:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None:
        self.texts.append(text)


def train(home: Path, task: str, told: Told | None = None, **more: Any) -> Record:
    values = {**JOB, "task": f"{TASKS / task}", **more}
    return run(asked(values, mode="train", home=str(home)), told or Told())


def change(home: Path, mode: str, told: Told | None = None, **more: Any) -> Record:
    values, named = {"engine": "inline", "device": "cpu", **more}, {}
    for key in ("clients", "classes", "options"):
        named[key] = [values.pop(key)] if key in values else []
    return run(asked(values, mode=mode, home=str(home), **named), told or Told())


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("others.py:Sugar", "task Sugar has a loss of its own"),
        ("others.py:Words", "inputs must be floating-point"),
    ],
)
def test_a_task_that_cannot_be_distilled_is_trained_without_synthetic_sets(
    tmp_path: Path, task: str, why: str
) -> None:
    told = Told()
    record = train(tmp_path, task, told)
    assert record.settings["scale"] == 0
    assert len(told.texts) == 1
    assert told.texts[0].startswith("no synthetic examples are made, as by --scale 0: ")
    assert why in told.texts[0]
    assert not list(tmp_path.glob("clients/*/*/*/*.safetensors"))


def test_synthetic_sets_are_made_where_they_can_be(tmp_path: Path) -> None:
    told = Told()
    assert train(tmp_path, "tables.py:Wine", told).settings["scale"] == 10
    assert told.texts == []
    assert list(tmp_path.glob("clients/*/*/*/*.safetensors"))


def test_under_noise_none_are_made(tmp_path: Path) -> None:
    told = Told()
    train(tmp_path, "tables.py:Wine", told, **{"noise-multiplier": 1.0})
    assert any("they are made from gradients without noise" in text for text in told.texts)


def test_a_scale_that_is_named_is_refused_where_it_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"scale must be 0 for task Sugar, got 10: .*--scale 0"):
        train(tmp_path, "others.py:Sugar", scale=10)
    with pytest.raises(BadSetting, match=r"scale must be 0 with noise-multiplier.*add --scale 0"):
        train(tmp_path, "tables.py:Wine", scale=10, **{"noise-multiplier": 1.0})


def test_the_default_method_gives_way_to_one_that_serves_and_so_to_relearn(tmp_path: Path) -> None:
    train(tmp_path, "others.py:Sugar")
    told = Told()
    record = change(tmp_path, "forget", told, clients="client-1", accept="not-shown")
    assert record.method in ("puf", "retraining")
    assert record.chosen is not None
    assert record.chosen["method"] == record.method
    assert f"method {record.method} takes the place of quickdrop-calibrated" in told.texts[0]
    assert "got Sugar with a loss of its own" in told.texts[0]

    back = change(tmp_path, "relearn", clients="client-1")
    assert (back.method, back.model_version) == (record.method, "v0003")


def test_a_method_that_is_named_or_given_options_is_refused_where_it_cannot_serve(
    tmp_path: Path,
) -> None:
    train(tmp_path, "others.py:Sugar")
    for more in ({"method": "quickdrop-calibrated"}, {"options": "recover-rounds=1"}):
        with pytest.raises(BadSetting, match=r"got Sugar with a loss .* choose another method: "):
            change(tmp_path, "forget", clients="client-1", **more)
    assert len(Service.open(Home(tmp_path)).ledger.requests()) == 1


def test_a_dry_run_says_what_takes_the_defaults_place(tmp_path: Path) -> None:
    train(tmp_path, "others.py:Words")
    told = asked({"engine": "inline"}, mode="forget", home=str(tmp_path), classes=["b"])
    found = plan(told)
    assert found["method"] == found["chosen"]["method"] != "quickdrop-calibrated"
    assert "takes the place of quickdrop-calibrated, the default" in found["warnings"][0]


def test_the_default_stays_where_it_serves(tmp_path: Path) -> None:
    train(tmp_path, "tables.py:Wine", scale=4)
    found = plan(asked({"engine": "inline"}, mode="forget", home=str(tmp_path), classes=["0"]))
    assert (found["method"], found["chosen"]) == ("quickdrop-calibrated", None)


def test_python_has_the_same_defaults(tmp_path: Path) -> None:
    federation = efface.Federation.inline(
        f"{TASKS / 'others.py'}:Sugar", num_clients=3, home=tmp_path, partition="iid",
        local_steps=4, lr=0.02, progress=False,
    )  # fmt: skip
    version = federation.train(rounds=2)
    assert version.result.record.settings["scale"] == 0
    assert federation.plan(client="client-1").method != "quickdrop-calibrated"
    with pytest.raises(BadSetting, match="scale must be 0 for task Sugar"):
        federation.train(rounds=2, scale=5)
    with pytest.raises(BadSetting, match="method quickdrop cannot serve it"):
        federation.forget(client="client-1", method="quickdrop")


def test_a_request_that_has_ended_is_not_given_up(tmp_path: Path) -> None:
    train(tmp_path, "others.py:Sugar")
    with pytest.raises(TransitionError, match="must not have ended yet, got r0001 which is done"):
        give_up(tmp_path, "r0001")


def test_a_table_without_the_trainings_columns_file_is_not_predicted() -> None:
    network, task = nn.Linear(13, 3), Task()
    with pytest.raises(BadSetting, match=r"must name the columns file of v0001's .*&columns="):
        predict(network, task, {"version": "v0001"}, "table:new.csv?label=kind")
