"""Whole requests under secure aggregation: as without, and the coordinator saw sums alone."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.errors import BadSetting
from server.evidence.record import Record
from server.nodes.grid import NamedGrid
from server.report.tables import provenance_rows
from server.requests.intake import Service
from server.runner import run
from server.settings import RunSettings
from server.storage.home import Home
from strategies.rounds.secure import is_summed
from strategies.table import METHODS

JOB: dict[str, Any] = {
    "num_clients": 4,
    "model_width": 8,
    "rounds": 4,
    "lr": 0.1,
    "engine": "inline",
    "device": "cpu",
    "evaluate_every": 0,
    "max_forget_accuracy": 100.0,
    "max_relearning_gap": 100.0,
    "accept": "not-shown",
}
CLASS, CLIENT = {"forget_classes": "3"}, {"forget_clients": "client-1"}
# Short, and the same with and without: nothing waits for an accuracy.
OPTIONS = {
    "quickdrop": "recover-epochs=1,threshold=100,tolerance=100,finetune-steps=1",
    "quickdrop-calibrated": "recover-rounds=2,threshold=100,tolerance=100",
    "quickdrop-subset": "recover-epochs=1,threshold=100,tolerance=100",
    "quickdrop-calibrated-subset": "recover-rounds=2,threshold=100,tolerance=100",
    "class-pruning": "rounds=1,target=100",
    "influential-de": "rounds=2",
    "sga": "unlearn-epochs=2,unlearn-rounds=1,rounds=1",
    "not": "rounds=1",
    "puf": "rounds=1",
    "rapid-retraining": "rounds=2",
}
SERVED = [(name, level) for name, kind in METHODS.items() for level in sorted(kind.needs.sums)]


class Silent:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


def settings(home: Path, mode: str, **more: Any) -> RunSettings:
    return RunSettings(mode=mode, home=str(home), **{**JOB, **more}).check()


def asked(home: Path, mode: str, **more: Any) -> Record:
    return run(settings(home, mode, **more), Silent())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    homes = {}
    for secure in (False, True):
        homes[secure] = tmp_path_factory.mktemp("sums") / "home"
        asked(homes[secure], "train", secure_aggregation=secure)
    return homes


@pytest.fixture
def fresh(trained: dict[bool, Path], tmp_path: Path) -> Callable[[bool], Path]:
    return lambda secure: Path(shutil.copytree(trained[secure], tmp_path / f"home-{secure}"))


def forget(home: Path, method: str, level: str, **more: Any) -> Record:
    target = CLASS if level == "class" else CLIENT
    told = {"method": method, "method_options": OPTIONS.get(method, ""), **target, **more}
    if METHODS[method].needs.server_data:
        told["server_samples"] = "test:100"
    return asked(home, "forget", **told)


@pytest.mark.parametrize(("method", "level"), SERVED)
def test_a_method_forgets_in_sums_as_it_does_without(
    fresh: Callable[[bool], Path],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    level: str,
) -> None:
    plain = forget(fresh(False), method, level)
    answers: list[Message] = []
    original = NamedGrid.replies

    def watched(grid: NamedGrid, messages: Any, **more: Any) -> Iterator[Message]:
        for reply in original(grid, messages, **more):
            # As they came: a reply in a sum is filled with the mean later.
            if not reply.has_error():
                kind = reply.metadata.message_type
                answers.append(Message(reply.content, dst_node_id=1, message_type=kind))
            yield reply

    monkeypatch.setattr(NamedGrid, "replies", watched)
    summed = forget(fresh(True), method, level)

    assert answers
    for answer in answers:
        arrays = next(iter(answer.content.array_records.values()))
        numbers = next(iter(answer.content.metric_records.values()))
        assert numbers["num-examples"] == 0
        if is_summed(answer.metadata.message_type):
            assert set(arrays) == {"masked", "forms"}
        else:
            assert {array.dtype for array in arrays.values()} <= {"uint8"}
    one, other = plain.recovered, summed.recovered
    assert one is not None
    assert other is not None
    for name in ("forget_accuracy", "retain_accuracy"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), abs=0.5), name
    assert summed.rounds == plain.rounds
    assert summed.settings["secure-aggregation"]  # of the training: nobody asked again
    assert ("Answers", "in sums alone") in [(n, v[:13]) for n, v in provenance_rows(summed)]
    assert "Answers" not in dict(provenance_rows(plain))


def test_training_in_sums_is_training(trained: dict[bool, Path]) -> None:
    plain, summed = (
        Service.open(Home(trained[secure])).registry.load("v0001") for secure in (False, True)
    )
    for name, array in plain[0].items():
        # Means are rounded differently, and every round builds on the last.
        assert summed[0][name] == pytest.approx(array, abs=1e-4)
    assert summed[1]["settings"]["secure-aggregation"] is True
    up = [card["training"]["train"]["up"] for _, card in (plain, summed)]
    assert 1.5 < up[1] / up[0] < 3  # numbers of 64 bits in place of 32, and keys and shares


def test_what_was_forgotten_in_sums_is_relearned_in_sums(fresh: Callable[[bool], Path]) -> None:
    homes = {secure: fresh(secure) for secure in (False, True)}
    found = {}
    for secure, home in homes.items():
        done = forget(home, "quickdrop-calibrated", "class", trial=False)
        record = asked(
            home,
            "relearn",
            method="quickdrop-calibrated",
            method_options="relearn-holder-rounds=1,relearn-rounds=1",
            version=str(done.model_version),
            **CLASS,
        )
        assert record.relearned is not None
        found[secure] = record.relearned
    assert found[True].forget_accuracy == pytest.approx(found[False].forget_accuracy, abs=0.5)
    assert found[True].retain_accuracy == pytest.approx(found[False].retain_accuracy, abs=0.5)


@pytest.mark.parametrize(
    ("method", "level", "why"),
    [
        ("fedosd", "class", "each client's own update"),
        ("s2u", "client", "each client's own update"),
        ("federaser", "class", "each client's own update"),
        ("quickdrop-calibrated", "client", "counts by client"),
    ],
)
def test_a_method_that_cannot_work_in_sums_is_refused_before_anything_starts(
    trained: dict[bool, Path], method: str, level: str, why: str
) -> None:
    words = (
        f"method must be one that can work in sums (--secure-aggregation), got {method}, which "
        f"needs {why} to forget at level {level}; choose another method: quickdrop"
    )
    with pytest.raises(BadSetting, match=re.escape(words)):
        forget(trained[True], method, level)
    assert len(Service.open(Home(trained[True])).ledger.requests()) == 1
    with pytest.raises(BadSetting, match=re.escape(words[:80])):
        forget(trained[False], method, level, secure_aggregation=True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"num_clients": 2}, "clients asked in a round must be at least 3"),
        ({"fraction": 0.5}, "at least 3 with --secure-aggregation, got 2"),
        ({"keep_updates": 2}, "keep-updates must be 0 with --secure-aggregation, got 2"),
        ({"over_select": 0.2}, "over-select must be 0 with --secure-aggregation, got 0.2"),
    ],
)
def test_what_sums_cannot_do_is_refused_before_training(
    tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadSetting, match=words):
        asked(tmp_path / "home", "train", secure_aggregation=True, **more)


def test_the_dry_run_counts_the_messages_and_bytes_of_sums(fresh: Callable[[bool], Path]) -> None:
    home = fresh(True)
    told = settings(home, "forget", method="puf", method_options=OPTIONS["puf"], **CLASS)
    plan = Service.open(Home(home)).plan(told)
    planned = {phase["phase"]: phase for phase in plan["phases"]}
    done = forget(home, "puf", "class")
    for phase in ("unlearn", "recover"):
        assert planned[phase]["messages"] == 5 * 4 * planned[phase]["rounds"]
        for way in ("up", "down"):
            spent = getattr(done.bytes[phase], way)
            # Names and settings are not counted to the byte.
            assert planned[phase]["bytes"][way] == pytest.approx(spent, rel=0.1), (phase, way)
    assert planned["guard"]["messages"] == 5 * 4 * planned["guard"]["rounds"]


def test_a_request_can_ask_for_sums_on_what_was_trained_without(
    fresh: Callable[[bool], Path],
) -> None:
    home = fresh(False)
    done = forget(home, "puf", "class", secure_aggregation=True)
    assert done.settings["secure-aggregation"]
    card = Service.open(Home(home)).registry.load(str(done.model_version))[1]
    assert card["settings"]["secure-aggregation"]


def test_needs_say_where_sums_serve() -> None:
    for name, kind in METHODS.items():
        needs = kind.needs
        assert needs.sums <= needs.levels, name
        assert not (needs.sums and (needs.individual_updates or needs.history)), name
    assert replace(METHODS["puf"].needs, sums=frozenset()).sums == frozenset()
