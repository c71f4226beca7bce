"""Which verification heads a request's page, and what a certificate says of each."""

from typing import Any

import pytest

from server.evidence.later import otherwise, sentences


def found(*told: tuple[str, int]) -> list[dict[str, Any]]:
    """Return verifications, of these verdicts beside so many retrained models, as JSON."""
    return [
        {
            "request": f"r{number:04}",
            "finished": "2026-01-02T03:04:05+00:00",
            "state": state,
            "retrainings": count or None,
            "false_alarms": 0.05 if count > 2 else None,
            "asked_clients": False,
        }
        for number, (state, count) in enumerate(told, start=3)
    ]


FAILED, PASSED, OPEN = "failed", "passed", "not-shown"


@pytest.mark.parametrize(
    ("own", "told", "heads"),
    [
        ((PASSED, 0), [], None),
        ((PASSED, 0), [(PASSED, 5)], None),
        ((PASSED, 0), [(FAILED, 5)], "r0003: failed"),
        # One with fewer retrained models does not take it back, one with as many does.
        ((PASSED, 0), [(FAILED, 5), (PASSED, 1)], "r0003: failed"),
        ((PASSED, 0), [(FAILED, 5), (PASSED, 1), (OPEN, 4)], "r0003: failed"),
        ((PASSED, 0), [(FAILED, 5), (PASSED, 5)], None),
        ((OPEN, 0), [(FAILED, 5), (PASSED, 6)], "r0004: passed"),
        # A worse one is said, whatever it was compared with, until one with as many is better.
        ((PASSED, 5), [(FAILED, 1)], "r0003: failed"),
        ((PASSED, 5), [(OPEN, 3), (FAILED, 1)], "r0004: failed"),
        ((PASSED, 5), [(OPEN, 3), (FAILED, 1), (PASSED, 1)], "r0003: not shown"),
        ((PASSED, 5), [(FAILED, 1), (PASSED, 1)], None),
        # One that had no retrained model any more shows nothing, and takes nothing back.
        ((PASSED, 1), [(OPEN, 0)], None),
        ((PASSED, 0), [(PASSED, 3), (OPEN, 0)], None),
        ((PASSED, 1), [(FAILED, 0)], "r0003: failed"),
        ((PASSED, 0), [(OPEN, 0)], "r0003: not shown"),
        # The request's own is not bettered by one with fewer.
        ((FAILED, 5), [(PASSED, 1)], None),
        ((FAILED, 5), [(PASSED, 5)], "r0003: passed"),
        ((OPEN, 0), [(PASSED, 3), (PASSED, 5)], "r0004: passed"),
    ],
)
def test_the_worst_verdict_that_nothing_better_founded_takes_back_heads_the_page(
    own: tuple[str, int], told: list[tuple[str, int]], heads: str | None
) -> None:
    said = otherwise(own[0], found(*told), own[1] or None)
    assert said == (None if heads is None else f"Judged again since, by {heads}")


def test_one_whose_record_does_not_verify_takes_nothing_back() -> None:
    failed, odd = found((FAILED, 5), (PASSED, 5))
    odd["state"] = odd["retrainings"] = None
    assert otherwise(PASSED, [failed, odd]) == "Judged again since, by r0003: failed"
    assert sentences([odd])[0].endswith("by r0004: its record does not verify any more.")


def test_it_says_whether_the_limits_were_set_by_hand() -> None:
    by_hand, by_spread = sentences(found((PASSED, 1), (PASSED, 5)))
    assert "passed, beside 1 retrained model, limits set by hand, measured" in by_hand
    assert "beside 5 retrained models, limits by the spread of these 5, measured" in by_spread
