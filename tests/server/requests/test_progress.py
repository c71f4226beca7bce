"""Who hears of a request's rounds: programs go by codes, never by words."""

from pathlib import Path
from typing import Any

import pytest

from server.nodes.federation import Cost, Round
from server.nodes.metrics import Metrics
from server.requests.progress import EventFile, Listeners, MetricsListener
from server.runner import _Tail
from strategies.rounds.base import Failure

# Words that say another thing than the code, and hold what once parted a name from its reason.
FAILURES = [
    Failure("ward: 3", "BadSetting: no answer: CodeMismatch", "raised"),
    Failure("client-1", "verification failed: no", "timeout"),
    Failure("client-2", "", "store-error"),
]
NORMS = {"client-3": 0.5, "client-4": 0.25, "client-5": 12.0}
ROUND = Round("recover", 1, 2, Cost(seconds=1.5, rounds=1), 0.25, 7, FAILURES, NORMS)


class Listening:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        self.heard.append((done, scores))

    def note(self, text: str) -> None:
        self.heard.append(text)


def test_a_round_is_heard_in_another_process_as_it_was_told(tmp_path: Path) -> None:
    path, listening = tmp_path / "events.jsonl", Listening()
    tail, written = _Tail(path, listening), EventFile(path)

    assert not tail.read()
    written.round(ROUND, {"forget_accuracy": 1.0})
    written.note("round: BadSetting: no answer")
    assert tail.read()

    assert listening.heard == [(ROUND, {"forget_accuracy": 1.0}), "round: BadSetting: no answer"]
    assert not tail.read()


class Patient(Listening):
    def answers(self, come: int, of: int) -> None:
        self.heard.append((come, of))


def test_who_waits_hears_how_many_have_answered_also_in_another_process(tmp_path: Path) -> None:
    path, patient, hasty = tmp_path / "events.jsonl", Patient(), Listening()
    tails = [_Tail(path, listener) for listener in (patient, hasty)]
    Listeners([EventFile(path), patient, hasty]).answers(2, 5)
    for tail in tails:
        assert tail.read()
    assert patient.heard == [(2, 5), (2, 5)]
    assert hasty.heard == []


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.code)
def test_failures_are_counted_by_their_code(failure: Failure) -> None:
    counted: list[str] = []

    class Counting(Metrics):
        def client_failure(self, reason: str) -> None:
            counted.append(reason)

    listener = MetricsListener(Counting())
    listener.round(Round("train", 1, 1, Cost(), 0.0, 1, [failure]), None)

    assert counted == [failure.code]
