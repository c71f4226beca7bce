"""What a running request tells those who watch: the terminal, the metrics, a file."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

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
