"""Disk space: weights, yardsticks and stored updates of old versions that nothing needs.

What evidence rests on is never pruned: rows, seals, records, cards, reports. Kept are the weights
of versions in service, of the newest that served before them (`keep` of each federation), of trials
unless they are named, of the first version of every line that is kept (what relearning aims at),
and of those from which a request waits to go on. Of all of these but what serves nothing is kept
that knows what was forgotten so many days ago (`forgotten_days`), if that is asked for. A seal says
of pruned weights that they were destroyed on purpose, so that an audit does not take them for lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

from client.errors import BadSetting
from server.requests import yardstick
from server.requests.derived import known
from server.requests.workspace import Workspace
from server.storage.history import History
from server.storage.home import Home
from server.storage.ledger import Ledger, VersionRow
from server.storage.registry import WEIGHTS_NAME, Registry

KEEP: Final = 1
WAITING: Final = ("received", "running", "interrupted")


@dataclass(frozen=True)
class Item:
    """Something that takes room and that nothing needs.

    Attributes:
        kind: What it is.
        path: A file, or of updates their folder.
        num_bytes: What it takes.
        version: Whose weights they are, if they are some.
    """

    kind: Literal["weights", "yardstick", "updates"]
    path: Path
    num_bytes: int
    version: str | None = None


@dataclass(frozen=True)
class Pruning:
    """What can go, and why each version that stays does.

    Attributes:
        items: What can go.
        kept: Reasons by version.
    """

    items: Sequence[Item] = ()
    kept: dict[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """What all of it takes."""
        return sum(item.num_bytes for item in self.items)


def plan(
    home: Home,
    ledger: Ledger,
    *,
    keep: int = KEEP,
    trials: bool = False,
    forgotten_days: int | None = None,
) -> Pruning:
    """Return what can go from a home; nothing is changed.

    Args:
        home: To be read.
        ledger: Its ledger.
        keep: How many versions that served before the one in service stay, of each federation.
        trials: Whether trials can go, too.
        forgotten_days: Versions that know what was forgotten so many days ago or earlier can go,
            whatever else would keep them; None for no such rule.

    Raises:
        BadSetting: If a number is negative.
    """
    for name, number in (("keep", keep), ("forgotten-days", forgotten_days)):
        if number is not None and number < 0:
            raise BadSetting(f"{name} must be at least 0, got {number}")
    versions = ledger.versions()
    kept = _kept(ledger, Registry(home, ledger, sweep=False), keep, trials=trials)
    if forgotten_days is not None:
        kept = {v: why for v, why in kept.items() if v not in _knowing(ledger, forgotten_days)}
    gone = [v for v in versions if v.id not in kept]
    items = [
        Item("weights", path, path.stat().st_size, version.id)
        for version in gone
        if (path := home.versions / version.id / WEIGHTS_NAME).exists()
    ]
    pruned = ledger.pruned()
    staying = [v for v in versions if v.id in kept and v.id not in pruned]
    items += [
        Item("yardstick", path, path.stat().st_size)
        for path in yardstick.unused(home.cache, ledger.erased, _bases(staying))
    ]
    return Pruning([*items, *_updates(home, ledger, staying)], kept)


def prune(
    home: Home, *, keep: int = KEEP, trials: bool = False, forgotten_days: int | None = None
) -> Pruning:
    """Destroy what can go, and return it; see `plan`.

    Raises:
        BadSetting: If a number is negative.
        HomeBusy: If another process holds the home.
    """
    with home.lock():
        found = plan(
            home, Ledger.look(home), keep=keep, trials=trials, forgotten_days=forgotten_days
        )
        workspace = Workspace.open(home)  # which destroys what may not be kept in any case
        for item in found.items:
            if item.version is not None:
                workspace.registry.prune(workspace.ledger.version(item.version))
            elif item.kind == "yardstick":
                yardstick.destroy(item.path)
            elif item.path.exists():
                History(item.path).destroy()
    return found


def _kept(ledger: Ledger, registry: Registry, keep: int, *, trials: bool) -> dict[str, str]:
    """Return the versions whose weights stay, each with the reason."""
    versions = ledger.versions()
    found = {v.id: "in service" for v in versions if v.state == "in-service"}
    for federation in {v.federation for v in versions}:
        served = [v for v in versions if (v.federation, v.state) == (federation, "superseded")]
        for version in served[len(served) - min(keep, len(served)) :]:
            found[version.id] = "to go back to"
    if not trials:
        found |= {v.id: "a trial" for v in versions if v.state == "trial"}
    for request in ledger.requests():
        if request.state in WAITING and request.base_version is not None:
            found.setdefault(request.base_version, f"{request.id} goes on from it")
    for name in list(found):
        root = registry.lineage(name)[-1].id
        found.setdefault(root, "the first of its line, at which relearning aims")
    pruned = ledger.pruned()
    return {v.id: found[v.id] for v in versions if v.id in found and v.id not in pruned}


def _knowing(ledger: Ledger, days: int) -> set[str]:
    """Return the versions that know what was forgotten so many days ago; none that serves does."""
    since, found = ledger.now() - timedelta(days=days), set[str]()
    for version in ledger.versions():
        _, requests = known(version, ledger.erased(version.federation))
        ended = [ledger.request(name).finished for name in requests]
        if version.state != "in-service" and any(at and at <= since for at in ended):
            found.add(version.id)
    return found


def _bases(versions: Sequence[VersionRow]) -> dict[str, list[list[list[object]]]]:
    """Return what the versions of each federation have forgotten: classes and clients."""
    found: dict[str, list[list[list[object]]]] = {}
    for version in versions:
        erased = version.card.get("erased") or {}
        known = [sorted(erased.get("classes", ())), sorted(erased.get("clients", ()))]
        found.setdefault(version.federation, []).append(known)
    return found


def _updates(home: Home, ledger: Ledger, staying: Sequence[VersionRow]) -> list[Item]:
    """Return the stored updates of requests that have ended, which no version that stays names."""
    wanted = {v.card.get("updates") for v in staying if v.state != "superseded"}
    named = {row.token: row for row in ledger.requests()}
    return [
        Item("updates", folder, History(folder).num_bytes)
        for folder in sorted(home.updates.glob("*/"))
        if folder.name in named
        and named[folder.name].state not in WAITING
        and folder.name not in wanted
    ]
