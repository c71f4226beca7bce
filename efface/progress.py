"""Who is told while a request runs: the terminal, the caller's own function, or nobody."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from server.cli.command import console_for
from server.nodes.federation import Round
from server.report import display
from server.requests.progress import Listener, node_log


@dataclass(frozen=True)
class Progress:
    """What a function given as `progress` is called with: a round that is over, or a note.

    Attributes:
        phase: "train", "unlearn", "recover", "retrain", ...; empty for a note.
        round: Number of the round that is over, from 1 in each phase.
        rounds: Rounds of the phase as planned.
        seconds: Wall seconds of the round.
        clients: Clients that answered.
        failed: Names of those that did not take part, with the reason.
        forget_accuracy: Percent, where the round was evaluated.
        retain_accuracy: Likewise.
        text: The note.

    Example:
        ```python
        def show(step: efface.Progress) -> None:
            print(step.text or f"{step.phase} {step.round}/{step.rounds}")

        federation = efface.Federation.inline("digits", progress=show)
        ```
    """

    phase: str = ""
    round: int = 0
    rounds: int = 0
    seconds: float = 0.0
    clients: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    forget_accuracy: float | None = None
    retain_accuracy: float | None = None
    text: str = ""


Watcher: TypeAlias = bool | Callable[[Progress], object] | None


class _Silent:
    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        """Nobody watches."""

    def note(self, text: str) -> None:
        """Nobody reads."""


class _Calls:
    """Calls a function of the caller's."""

    def __init__(self, function: Callable[[Progress], object]) -> None:
        self.function = function

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        self.function(
            Progress(
                phase=done.phase,
                round=done.number,
                rounds=done.of,
                seconds=done.cost.seconds,
                clients=done.num_clients,
                failed=tuple((failure.client, failure.reason) for failure in done.failures),
                forget_accuracy=(scores or {}).get("forget_accuracy"),
                retain_accuracy=(scores or {}).get("retain_accuracy"),
            )
        )

    def note(self, text: str) -> None:
        self.function(Progress(text=text))


@contextmanager
def watching(watcher: Watcher) -> Iterator[Listener]:
    """Give the listener of a request.

    Args:
        watcher: A function; True for the terminal's bars, or lines where standard error is none;
            False for silence; None for bars where standard error is a terminal, else silence.
    """
    with ExitStack() as stack:
        if callable(watcher):
            yield _Calls(watcher)
            return
        terminal = sys.stderr is not None and sys.stderr.isatty()
        if not (terminal if watcher is None else watcher):
            yield _Silent()
            return
        listener = stack.enter_context(display.watching(console_for(sys.stderr)))
        stack.enter_context(node_log(listener))
        yield listener


@contextmanager
def as_before() -> Iterator[None]:
    """Put back at the end what a run sets for its whole process: torch's threads, variables."""
    threads = torch.get_num_threads()
    variables = {name: os.environ.get(name) for name in ("EFFACE_STORE", "EFFACE_DATA_DIR")}
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
