"""Who took part in what: kept by client and phase, and every absence by round; and in words."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from server.evidence.phases import PHASES

if TYPE_CHECKING:  # it brings torch and Flower along
    from server.nodes.federation import Part

# Times the length of the other clients' updates from which on one is worth a look.
LONG: Final = 5.0


@dataclass(frozen=True)
class Participation:
    """What one client did in the rounds of one phase.

    Attributes:
        client: Its name.
        phase: The phase.
        rounds: In which its answer counted, or was missed; not those that did without it
            (`over_select`).
        answered: In which its answer counted.
        idle: In which it was to unlearn and says that nothing was left to do.
        examples: Most that it used in one: its weight in the mean.
        used: In which it used any: a client whose data are forgotten answers all the same.
        update_norm: Median length of its updates.
        largest_update_norm: Longest of them.
        largest_in_round: The round of that.
        not_needed: Rounds in which it was asked, and which were over before it answered.
    """

    client: str | None = None
    phase: str | None = None
    rounds: int | None = None
    answered: int | None = None
    idle: int | None = None
    examples: float | None = None
    update_norm: float | None = None
    largest_update_norm: float | None = None
    largest_in_round: int | None = None
    used: int | None = None
    not_needed: int | None = None


@dataclass(frozen=True)
class Absence:
    """A client that did not do its part in one round, and why: in words, and as a code."""

    client: str | None = None
    phase: str | None = None
    round: int | None = None
    code: str | None = None
    reason: str | None = None


def gathered(parts: "Sequence[Part]") -> tuple[tuple[Participation, ...], tuple[Absence, ...]]:
    """Return what every client did in every phase, and all absences, measuring included."""
    absences = tuple(
        Absence(failure.client, part.phase, part.round, failure.code, failure.reason)
        for part in parts
        for failure in part.failures
    )
    found = []
    for phase in PHASES:
        rounds = [part for part in parts if part.phase == phase]
        names = {
            name
            for part in rounds
            for name in (*part.answered, *(f.client for f in part.failures), *part.not_needed)
        }
        found += [_one(name, phase, rounds) for name in sorted(names)]
    return tuple(found), absences


def _one(client: str, phase: str, rounds: "Sequence[Part]") -> Participation:
    norms = [(part.norms[client], part.round) for part in rounds if client in part.norms]
    largest = max(norms, default=(None, None), key=lambda found: found[0])
    answered = sum(client in part.answered for part in rounds)
    missed = sum(client in (f.client for f in part.failures) for part in rounds)
    return Participation(
        client,
        phase,
        answered + missed,
        answered,
        sum(client in part.idle for part in rounds),
        max((part.answered.get(client, 0.0) for part in rounds), default=0.0),
        statistics.median([norm for norm, _ in norms]) if norms else None,
        largest_update_norm=largest[0],
        largest_in_round=largest[1],
        used=sum(part.answered.get(client, 0.0) > 0 for part in rounds),
        not_needed=sum(client in part.not_needed for part in rounds),
    )


def standing_out(norms: Mapping[str, float]) -> dict[str, float]:
    """Return whose updates are `LONG` times the others' median or longer, and how many times.

    Args:
        norms: Lengths of updates, by client; of fewer than three none stands out.
    """
    ordered = sorted(norm for norm in norms.values() if norm)
    if len(ordered) < 3:
        return {}
    # Whichever of those above the middle is left out: the others' median is the same.
    usual = statistics.median(ordered[:-1])
    return {name: norm / usual for name, norm in norms.items() if norm >= LONG * usual}


def remarks(participation: Sequence[Participation], absences: Sequence[Absence]) -> list[str]:
    """Return in words what is to be known of who took part; nothing where all did, alike."""
    found = []
    norms: dict[str | None, dict[str, float]] = {one.phase: {} for one in participation}
    for one in participation:
        if one.update_norm:
            norms[one.phase][str(one.client)] = one.update_norm
    for one in participation:
        rounds, answered = one.rounds or 0, one.answered or 0
        if answered < rounds:
            codes = [
                a.code
                for a in absences
                if (a.client, a.phase) == (one.client, one.phase) and a.code
            ]
            why = ", ".join(f"{code} {codes.count(code)}" for code in sorted(set(codes)))
            found.append(
                f"remark: {one.client} took part in {answered} of {rounds} rounds of {one.phase} "
                f"({why})"
            )
        if one.idle:
            found.append(
                f"remark: {one.client} changed nothing in {one.idle} of {rounds} rounds of "
                f"{one.phase}: it says that nothing was left to do"
            )
        times = standing_out(norms[one.phase]).get(str(one.client))
        if times is not None:
            found.append(
                f"remark: updates of {one.client} in {one.phase} are {times:.1f} times as long as "
                "the other clients'"
            )
    measured = {(a.client, a.phase): 0 for a in absences if a.phase not in PHASES}
    for absence in absences:
        if (absence.client, absence.phase) in measured:
            measured[absence.client, absence.phase] += 1
    found += [
        f"remark: {client} was left out of {count} of the measurements ({phase})"
        for (client, phase), count in measured.items()
    ]
    return found
