"""Three real sites of which one is slow: a round's deadline, and rounds that ask more than needed.

The slow one's own task waits for a file before it trains, so that which answer is late is decided
here, and not by how busy the machine is.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_disk

from client.logbook import Logbook
from client.operator.bundles import Bundle
from client.operator.folder import bundles_of
from client.own_task import source_of
from server.evidence.record import Record
from server.nodes.engines.superlink import stage_app
from server.requests.intake import Service
from server.runner import defaults, run
from server.settings import RunSettings
from server.storage.home import Home
from tests.superlink_harness import (
    RunningFederation,
    make_federation,
    running_federation,
    wait_until,
)

NAMES = ["site-a", "site-b", "site-c"]
SLOW = "site-c"
TASK = Path(__file__).parents[2] / "tasks" / "slow.py"
DEADLINE = 45.0  # seconds, in which the other two answer on a busy machine, too
JOB: dict[str, Any] = {
    **{"mode": "train", "engine": "superlink", "dataset": "none", "task": f"{TASK}:Slow"},
    **{
        "num_clients": 3,
        "local_steps": 2,
        "batch_size": 16,
        "lr": 0.1,
        "scale": 0,
        "device": "cpu",
    },
    **{"evaluate_every": 0, "keep_updates": 1},
}


@dataclass
class Sites:
    """Three sites that allow the task's bundle, and the file that the slow one waits for."""

    running: RunningFederation
    store: Path  # the slow one's
    gate: Path

    def trained(self, home: Path, **told: Any) -> Record:
        settings = RunSettings(
            **{**JOB, "home": str(home), "connection": self.running.connection, **told}
        )
        return run(settings.check(), Opening(self.gate))

    def worked(self) -> list[tuple[str, int, str]]:
        """Return what the slow site's log says of its training: request, round and outcome."""
        return [
            (line["request"], line["server_round"], line["outcome"])
            for line in Logbook(self.store).entries()
            if line["message"] == "train.fit"
        ]


class Opening:
    """Lets the slow site go on once a round is over."""

    def __init__(self, gate: Path) -> None:
        self.gate = gate

    def round(self, done: Any, scores: Any) -> None:
        self.gate.touch()

    def note(self, text: str) -> None: ...


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    folder = tmp_path_factory.mktemp("slow")
    gate = folder / "gate"
    source = source_of(f"{TASK}:Slow")
    app = stage_app(folder / "app", defaults(), task=source.keep(folder / "tasks"))
    bundle = Bundle(build_fab_from_disk(app))
    with running_federation(folder / "federation", []) as running:
        for name in NAMES:
            make_federation(running.folder, "node-key", name)
        running.register(*NAMES)
        for i, name in enumerate(NAMES):
            data = f"{i}@{gate}" if name == SLOW else str(i)
            site = running.start_site(name, {"data": data}, policy={"updates": '"single"'})
            bundles_of(site).allow(bundle.hash, "with the slow task", bundle)
        wait_until(lambda: running.online() >= set(NAMES), running, time.monotonic() + 300)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FLWR_HOME", str(running.home))
            yield Sites(running, site / "store", gate)
    assert not running.left_over()


def rounds_of(record: Record) -> dict[str | None, tuple[int | None, int | None]]:
    """Return in how many rounds each client was counted on, and answered."""
    return {p.client: (p.rounds, p.answered) for p in record.participation if p.phase == "train"}


@pytest.mark.processes
def test_a_round_ends_at_its_deadline_and_what_comes_later_is_in_no_mean(
    sites: Sites, tmp_path: Path
) -> None:
    sites.gate.unlink(missing_ok=True)
    record = sites.trained(tmp_path, rounds=2, round_timeout=DEADLINE)

    # The first round did without it. It was let go after that, and answered both messages.
    assert rounds_of(record) == {"site-a": (2, 2), "site-b": (2, 2), SLOW: (2, 1)}
    (absent,) = record.absences
    assert (absent.client, absent.phase, absent.round) == (SLOW, "train", 1)
    assert (absent.code, absent.reason) == ("timeout", "no answer before the deadline")
    last = [(number, outcome) for _, number, outcome in sites.worked()[-2:]]
    assert last == [(1, "answered"), (2, "answered")]

    # Its answer to the first is in no round: each keeps the updates that its mean is made of.
    service = Service.open(Home(tmp_path))
    (training,) = service.home.updates.iterdir()
    kept = {r.name: sorted(f.stem for f in r.iterdir()) for r in sorted(training.iterdir())}
    assert kept == {"00001": ["site-a", "site-b"], "00002": NAMES}


@pytest.mark.processes
def test_a_round_that_asks_one_more_does_without_the_last_and_blames_nobody(
    sites: Sites, tmp_path: Path
) -> None:
    sites.gate.unlink(missing_ok=True)
    record = sites.trained(tmp_path, rounds=1, fraction=2 / 3, over_select=0.5)

    assert rounds_of(record) == {"site-a": (1, 1), "site-b": (1, 1), SLOW: (0, 0)}
    assert [p.not_needed for p in record.participation if p.client == SLOW] == [1]
    assert not record.absences
    # It had been asked, and was at work.
    settings = Service.open(Home(tmp_path)).registry.load("v0001")[1]["settings"]
    assert (settings["fraction"], settings["over-select"]) == (2 / 3, 0.5)
    wait_until(
        lambda: [(n, o) for _, n, o in sites.worked()[-1:]] == [(1, "answered")],
        sites.running,
        time.monotonic() + 120,
    )
