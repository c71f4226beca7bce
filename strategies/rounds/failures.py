"""Nodes that did not do their part: here what they say comes in, and is cleaned before all else."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

from flwr.app import Error
from flwr.common.constant import ErrorCode

from client.errors import split_mark

# Codes of failures for which a node names no error of its own.
RAISED: Final = "raised"
TIMEOUT: Final = "timeout"
UNAVAILABLE: Final = "unavailable"
UNCHANGED: Final = "unchanged"  # asked to unlearn, it sent what it had been sent
_LOST: Final = (
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
)
# What may pass by itself: the same request goes on when it has.
PASSING: Final = frozenset({TIMEOUT, UNAVAILABLE, "data-missing", "disk-full"})

LONGEST: Final = 500  # characters of what a node says
_ESCAPES: Final = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\|$)|\x1b[PX^_].*?(?:\x1b\\|$)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)
# Flower's text for an exception in a ClientApp.
_RAISED: Final = re.compile(r"<class '([\w.]+)'>:<'(.*)'>", re.DOTALL)
_OURS: Final = frozenset({"client.node.NodeError"})  # says what it means by itself


def cleaned(text: str, *, longest: int = LONGEST) -> str:
    """Return a node's text as one line that a terminal, a page and a file may show.

    Escape sequences and every character that steers a terminal or turns the writing are left out.

    Args:
        text: What a node, or an error that quotes it, says.
        longest: Characters kept.
    """
    # A long text is cut first: what is left out of it can be as long as it likes.
    text = _ESCAPES.sub("", text[: 8 * longest])
    kept = "".join(
        " " if c.isspace() else c
        for c in text
        if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )
    line = " ".join(kept.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


@dataclass(frozen=True)
class Failure:
    """A node that did not do its part, and why: in words, and as a code for programs.

    Here what nodes say comes in: name and reason are cleaned, and may be shown anywhere.
    """

    client: str
    reason: str
    code: str = RAISED

    def __post_init__(self) -> None:
        """Clean what a node may have chosen."""
        object.__setattr__(self, "client", cleaned(self.client, longest=100))
        object.__setattr__(self, "reason", cleaned(self.reason))
        object.__setattr__(self, "code", cleaned(self.code, longest=40))

    @property
    def passing(self) -> bool:
        """Whether it may be over when the node is asked again."""
        return self.code in PASSING

    def __str__(self) -> str:
        return f"{self.client}: {self.reason}"


def failure_in(error: Error, client: str) -> Failure:
    """Return what an error reply says of a node."""
    reason = str(error.reason or "")[: 8 * LONGEST]
    told = _RAISED.fullmatch(reason.strip())
    if told is not None:
        kind, text = told[1], told[2]
        reason = text if kind in _OURS else f"{kind.rpartition('.')[2]}: {text}"
    code, text = split_mark(cleaned(reason, longest=2 * LONGEST))
    if code is None:
        code = UNAVAILABLE if error.code in _LOST else RAISED
    return Failure(client, text or "no reason given", code)


def listed(failures: list[Failure], *, most: int = 8) -> str:
    """Return failures in words, the first of them where there are many."""
    text = "; ".join(map(str, failures[:most]))
    return text + (f"; and {len(failures) - most} more" if len(failures) > most else "")
