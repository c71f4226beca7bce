"""Count what a command does, and show it to Prometheus.

The rest of the code knows Prometheus only through this module. Each `Metrics` has its own
registry: two of them in one process, or two tests, do not meet.
"""

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from client.errors import BadSetting

# From one synthetic ascent on a small model to a day of training over slow sites.
_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


@dataclass(frozen=True)
class MetricsServer:
    """An HTTP server that answers `/metrics`; `port` is the port it listens on."""

    host: str
    port: int
    _stop: Callable[[], None]

    def stop(self) -> None:
        """Stop answering and free the port; call it once."""
        self._stop()


class Metrics:
    """The counters of one command.

    Labels carry names of phases, states, versions and reasons only: never a person's, a site's or
    a file's name.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._states: dict[str, str] = {}
        self._rounds = Counter(
            "efface_rounds", "Federated rounds completed.", ["phase"], registry=self.registry
        )
        self._phase_seconds = Histogram(
            "efface_phase_seconds",
            "Wall seconds of each round, by phase, without evaluation.",
            ["phase"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._bytes = Counter(
            "efface_bytes",
            "Bytes of messages: up to the server, down to the clients.",
            ["phase", "direction"],
            registry=self.registry,
        )
        self._failures = Counter(
            "efface_client_failures",
            "Messages that a client did not answer with a result.",
            ["reason"],
            registry=self.registry,
        )
        self._accuracy = Gauge(
            "efface_accuracy_percent",
            "Top-1 accuracy of a model version on a test set, in percent.",
            ["version", "set"],
            registry=self.registry,
        )
        self._requests = Gauge(
            "efface_requests",
            "Requests of this command by state.",
            ["state"],
            registry=self.registry,
        )

    def on_round(self, phase: str) -> None:
        """Count one completed round of `phase`."""
        self._rounds.labels(phase).inc()

    def phase_seconds(self, phase: str, seconds: float) -> None:
        """Note that `phase` took `seconds` of wall time."""
        self._phase_seconds.labels(phase).observe(seconds)

    def traffic(self, phase: str, *, up: int, down: int) -> None:
        """Add bytes sent `up` to the server and `down` to the clients.

        Raises:
            ValueError: If one is negative.
        """
        self._bytes.labels(phase, "up").inc(up)
        self._bytes.labels(phase, "down").inc(down)

    def client_failure(self, reason: str) -> None:
        """Count one message that failed; `reason` is a short fixed word, such as "deadline"."""
        self._failures.labels(reason).inc()

    def accuracy(self, version: str, kind: str, percent: float) -> None:
        """Set the accuracy of `version` on the `kind` ("forget" or "retain") test set."""
        self._accuracy.labels(version, kind).set(percent)

    def request_state(self, state: str, request: str = "") -> None:
        """Move `request` into `state`; a state that a request has left shows 0.

        Args:
            state: As the ledger names it.
            request: Its id. May stay empty in a command that serves a single request.
        """
        before = self._states.get(request)
        if before is not None:
            self._requests.labels(before).dec()
        self._requests.labels(state).inc()
        self._states[request] = state

    def serve(self, port: int, host: str = "127.0.0.1") -> MetricsServer:
        """Answer `http://host:port/metrics` from a thread until stopped.

        Args:
            port: 1 to 65535, or 0 for any free port.
            host: Address to listen on. The default is seen by this machine alone.

        Raises:
            BadSetting: If `port` is out of range or cannot be had.
        """
        if not 0 <= port <= 65_535:
            raise BadSetting(f"metrics-port must be 0 (any free port) to 65535, got {port}")
        try:
            server, thread = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:  # in use, not permitted, or no such address
            reason = (error.strerror or str(error)).lower()
            raise BadSetting(
                f"metrics-port must be free on {host}, got {port} ({reason}); "
                "choose another with --metrics-port, or 0 for any free port"
            ) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return MetricsServer(host, server.server_port, stop)
