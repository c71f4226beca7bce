"""What a running request tells those who watch: the terminal, the metrics, a file."""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from client.files import private
from server.format import masked
from server.nodes.federation import Round
from server.nodes.metrics import Metrics


class Listener(Protocol):
    """Somebody who watches."""

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        """A round is over; `scores` if it was evaluated."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""


@runtime_checkable
class Waiting(Protocol):
    """Somebody who watches while clients work, too."""

    def answers(self, come: int, of: int) -> None:
        """So many of the clients that were asked have answered; others still work."""


class Listeners:
    """Passes on to several listeners."""

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self.listeners = list(listeners)

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        for listener in self.listeners:
            listener.round(done, scores)

    def note(self, text: str) -> None:
        for listener in self.listeners:
            listener.note(masked(text))

    def answers(self, come: int, of: int) -> None:
        for listener in self.listeners:
            if isinstance(listener, Waiting):
                listener.answers(come, of)


class EventFile:
    """Appends every event to a file, for a process that watches from outside."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        self._write(
            {
                "event": "round",
                "phase": done.phase,
                "number": done.number,
                "of": done.of,
                "seconds": done.cost.seconds,
                "loss": done.loss,
                "clients": done.num_clients,
                "failures": [asdict(failure) for failure in done.failures],
                "norms": done.norms,
                "scores": scores,
            }
        )

    def note(self, text: str) -> None:
        self._write({"event": "note", "text": masked(text)})

    def answers(self, come: int, of: int) -> None:
        self._write({"event": "answers", "come": come, "of": of})

    def _write(self, event: dict[str, Any]) -> None:
        with open(self.path, "a", opener=private) as file:
            file.write(json.dumps(event) + "\n")


class MetricsListener:
    """Feeds Prometheus."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        self.metrics.on_round(done.phase)
        self.metrics.phase_seconds(done.phase, done.cost.seconds)
        self.metrics.traffic(done.phase, up=done.cost.up, down=done.cost.down)
        for failure in done.failures:
            self.metrics.client_failure(failure.code)

    def note(self, text: str) -> None:
        """Notes are for people."""


class _OneLine(logging.Handler):
    """Shows what a node in this process logs, one line each, without a traceback."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(logging.WARNING)
        self.listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        reason = f": {error}" if error is not None else ""
        self.listener.note(f"node log: {record.getMessage()}{reason}")


@contextmanager
def node_log(listener: Listener) -> Iterator[None]:
    """Show the simulated nodes' own logs: whoever runs them here is their operator too."""
    log, handler = logging.getLogger("efface"), _OneLine(listener)
    passed_on = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = passed_on
