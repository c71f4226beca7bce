"""What Prometheus reads, scraped over loopback."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from client.errors import BadSetting
from server.nodes.metrics import Metrics, MetricsServer


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def served(metrics: Metrics) -> Iterator[MetricsServer]:
    server = metrics.serve(0)
    yield server
    server.stop()


def scrape(server: MetricsServer) -> dict[str, float]:
    """Return every sample line of the page as `{name and labels: value}`."""
    url = f"http://{server.host}:{server.port}/metrics"
    with urllib.request.urlopen(url, timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line and not line.startswith("#")
    }


def test_every_metric_is_scraped_with_its_labels(metrics: Metrics, served: MetricsServer) -> None:
    metrics.on_round("train")
    metrics.on_round("train")
    metrics.on_round("recover")
    metrics.phase_seconds("train", 2.5)
    metrics.phase_seconds("train", 40.0)
    metrics.traffic("train", up=100, down=300)
    metrics.traffic("train", up=1, down=0)
    metrics.client_failure("deadline")
    metrics.accuracy("v0002", "forget", 0.4)
    metrics.accuracy("v0002", "retain", 94.5)

    page = scrape(served)

    assert page['efface_rounds_total{phase="train"}'] == 2
    assert page['efface_rounds_total{phase="recover"}'] == 1
    assert page['efface_phase_seconds_count{phase="train"}'] == 2
    assert page['efface_phase_seconds_sum{phase="train"}'] == 42.5
    assert page['efface_phase_seconds_bucket{le="3.0",phase="train"}'] == 1
    assert page['efface_bytes_total{direction="up",phase="train"}'] == 101
    assert page['efface_bytes_total{direction="down",phase="train"}'] == 300
    assert page['efface_client_failures_total{reason="deadline"}'] == 1
    assert page['efface_accuracy_percent{set="forget",version="v0002"}'] == 0.4
    assert page['efface_accuracy_percent{set="retain",version="v0002"}'] == 94.5


def test_a_request_is_counted_in_its_last_state_only(
    metrics: Metrics, served: MetricsServer
) -> None:
    metrics.request_state("running", "r0001")
    metrics.request_state("running", "r0002")
    metrics.request_state("done", "r0001")
    metrics.request_state("done", "r0001")

    page = scrape(served)

    assert page['efface_requests{state="running"}'] == 1
    assert page['efface_requests{state="done"}'] == 1


def test_two_metrics_in_one_process_do_not_meet(metrics: Metrics, served: MetricsServer) -> None:
    Metrics().on_round("train")

    assert 'efface_rounds_total{phase="train"}' not in scrape(served)


def test_a_stopped_server_answers_no_more_and_frees_its_port(metrics: Metrics) -> None:
    first = metrics.serve(0)
    first.stop()

    with pytest.raises(urllib.error.URLError):
        scrape(first)
    second = metrics.serve(first.port)
    assert second.port == first.port
    second.stop()


def test_it_listens_on_loopback_unless_told_otherwise(served: MetricsServer) -> None:
    assert served.host == "127.0.0.1"


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_out_of_range_is_refused(metrics: Metrics, port: int) -> None:
    with pytest.raises(BadSetting, match=rf"metrics-port must be .* to 65535, got {port}"):
        metrics.serve(port)


def test_a_port_in_use_is_refused_with_the_way_out(metrics: Metrics) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BadSetting, match=rf"must be free .* got {port} .*--metrics-port"):
            metrics.serve(port)


def test_negative_traffic_is_refused(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        metrics.traffic("train", up=-1, down=0)
