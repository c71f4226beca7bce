"""What a certificate says of what the coordinator had derived from what was forgotten."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

_KINDS: Final = {
    "version": "weights of",
    "updates": "clients' updates of",
    "yardstick": "the retrained model",
    "rounds": "rounds of",
}
_AT_HOME: Final = {
    "destroyed": "Destroyed at the coordinator",
    "kept": "Kept at the coordinator, and still knowing it",
}
_ELSEWHERE: Final = {
    "there": "To be asked back, with all copies: written to files that are there still",
    "not there": "Written to files that are no longer there",
}


@dataclass(frozen=True)
class Left:
    """Something derived from what was forgotten, and what became of it at the coordinator.

    All that a certificate says of it: no path. `server.requests.derived` knows where it is.

    Attributes:
        kind: What it is: a version's weights, a file that they were written to, clients' updates of
            a training, a retrained model, or the rounds of a request that was stopped.
        name: A version's id (of an exported file, the one whose weights it holds), or the name that
            the home has for it.
        state: "kept", "destroyed"; of an exported file "there" or "not there", where it was
            written.
        at: When it was destroyed, or written; ISO 8601.
        sha256: Of a version's or an exported file.
    """

    kind: Literal["version", "exported", "updates", "yardstick", "rounds"]
    name: str
    state: Literal["kept", "destroyed", "there", "not there"]
    at: str | None = None
    sha256: str | None = None


def sentences(derived: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in words what became of it, from a certificate's predicate."""
    of_state = {
        state: [_text(one) for one in derived if one["state"] == state]
        for state in (*_AT_HOME, *_ELSEWHERE)
    }
    words = _AT_HOME | _ELSEWHERE
    return [f"{words[state]}: {', '.join(named)}." for state, named in of_state.items() if named]


def _text(one: Mapping[str, Any]) -> str:
    if one["kind"] == "exported":
        return f"weights of {one['name']} (SHA-256 {one['sha256']})"
    return f"{_KINDS[one['kind']]} {one['name']}"
