"""A part in a sum, on disk: each step is taken once, also if two messages come at a time."""

from dataclasses import replace
from pathlib import Path

import pytest

from client.errors import AggregationRefused
from client.secure import member
from client.secure.aggregations import Aggregations
from client.secure.member import Part
from tests.sums import Played, context_of, identity_of

FOUR = [f"node-{i}" for i in range(4)]
ME = identity_of("node-0")


@pytest.fixture
def sums(tmp_path: Path) -> Aggregations:
    return Aggregations(tmp_path)


@pytest.fixture
def played() -> Played:
    made = Played(context_of(FOUR))
    made.keys(FOUR)
    return made


def twice(sums: Aggregations, before: Part, one: Part, other: Part) -> None:
    """Two messages have read the same part: the second is refused, and nothing is overwritten."""
    sums.advance(before, one)
    with pytest.raises(AggregationRefused, match="each is taken once"):
        sums.advance(before, other)
    assert sums.part(before.context) == one


def test_secrets_are_shared_once_though_two_messages_ask_at_a_time(
    sums: Aggregations, played: Played
) -> None:
    # Both would seal other seeds with the same keys.
    part = played.parts["node-0"]
    sums.begin(part)
    shared = [member.share(part, played.published, ME) for _ in range(2)]
    assert shared[0][0].seed != shared[1][0].seed
    twice(sums, part, shared[0][0], shared[1][0])


def test_a_vector_is_masked_once_though_two_messages_ask_at_a_time(
    sums: Aggregations, played: Played
) -> None:
    # With two sets of peers the difference of both answers would be a mask.
    played.shares(FOUR)
    part = played.parts["node-0"]
    sums.begin(part)
    sent = {name: own["node-0"] for name, own in played.sealed.items() if name != "node-0"}
    few = {name: sent[name] for name in FOUR[1:3]}
    twice(sums, part, member.receive(part, sent), member.receive(part, few))


def test_a_sum_ends_once(sums: Aggregations, played: Played) -> None:
    part = replace(played.parts["node-0"], stage="signed", survivors=tuple(FOUR))
    sums.begin(part)
    sums.end(part)
    with pytest.raises(AggregationRefused, match="begun last and not ended"):
        sums.end(part)


def test_a_power_cut_in_the_middle_of_a_line_forgets_no_sum_and_stops_none(
    sums: Aggregations, played: Played
) -> None:
    part = replace(played.parts["node-0"], stage="signed", survivors=tuple(FOUR))
    sums.begin(part)
    sums.end(part)
    for name, half in (("revealed.jsonl", b'["2222'), ("begun", b"1234567")):
        with (sums.folder / name).open("ab") as file:
            file.write(half)
    three = FOUR[:3]
    with pytest.raises(AggregationRefused, match="got node-3 more or less"):
        sums.check_cohort(part.context, three)
    with pytest.raises(AggregationRefused, match="must be a new one"):
        sums.begin(part)
    other = Part(context_of(FOUR, model="3" * 64), "node-0", "signed", b"1" * 32, b"2" * 32)
    other = replace(other, survivors=tuple(three))
    sums.begin(other)
    sums.end(other)
    assert len((sums.folder / "revealed.jsonl").read_text().splitlines()) == 2
    for one in (part, other):
        with pytest.raises(AggregationRefused, match="must be a new one"):
            sums.begin(one)
    with pytest.raises(AggregationRefused, match="got node-3 more or less"):
        sums.check_cohort(other.context, FOUR)
