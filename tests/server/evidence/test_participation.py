"""Who took part, from the rounds to the record."""

from server.evidence.participation import gathered, remarks
from server.nodes.federation import Part
from strategies.rounds.failures import TIMEOUT, Failure


def test_a_client_that_was_asked_and_not_needed_has_a_row() -> None:
    late = Failure("client-2", "no answer before the deadline", TIMEOUT)
    parts = [
        Part("train", 1, {"client-0": 40.0, "client-1": 30.0}, not_needed=["client-2", "client-3"]),
        Part("train", 2, {"client-1": 30.0}, [late], not_needed=["client-3"]),
    ]
    found, absences = gathered(parts)
    rows = {one.client: (one.rounds, one.answered, one.not_needed) for one in found}
    assert rows == {
        "client-0": (1, 1, 0),
        "client-1": (2, 2, 0),
        "client-2": (1, 0, 1),
        "client-3": (0, 0, 2),
    }
    # It is nobody's fault: who was not needed has missed nothing, and nothing is remarked.
    assert [absence.client for absence in absences] == ["client-2"]
    assert [text for text in remarks(found, absences) if "client-3" in text] == []


def test_a_part_that_an_older_journal_kept_can_be_read() -> None:
    kept = {"phase": "train", "round": 1, "answered": {"client-0": 40.0}, "failures": []}
    assert Part.of(kept).not_needed == []
