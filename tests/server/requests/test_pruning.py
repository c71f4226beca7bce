"""What can be pruned, what stays, and that an audit tells pruned weights from lost ones."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.files import overwrite
from server.requests.audit import audit
from server.requests.pruning import Pruning, plan, prune
from server.requests.workspace import Workspace
from server.storage.home import Home
from server.storage.ledger import Ledger, LedgerError
from server.storage.registry import PrunedError, Registry, pack

FEDERATION = "digits, 3 clients"


pytestmark = pytest.mark.usefixtures("shared_surroundings")


def enter(
    home: Home,
    parent: str | None = None,
    *,
    state: Any = "in-service",
    erased: tuple[int, ...] = (),
    updates: bool = False,
    federation: str = FEDERATION,
) -> str:
    """Enter a version as a request would: a training without a parent, else an erasure."""
    with Ledger.of(home) as ledger:
        registry = Registry(home, ledger)
        named: Any = {"level": "class", "classes": [erased[-1]]} if erased else {}
        row = ledger.new_request(
            kind="forget" if erased else "train",
            method="sga",
            federation=federation,
            base_version=parent,
            **named,
        )
        ledger.start(row.id)
        card: dict[str, Any] = {"erased": {"classes": list(erased), "clients": []}}
        if updates:
            card["updates"] = row.token
            folder = home.updates / row.token / "00001"
            folder.mkdir(parents=True)
            (folder / "client-0.update").write_bytes(b"u" * 100)
        weights = {"w": np.full(50, len(erased), dtype=np.float32)}
        made = registry.commit(
            row.id, weights, card, parent=parent, federation=federation, state=state
        )
    return made.id


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v0001 trained, v0002 to v0004 forgot a class each, v0005 a trial on v0002."""
    home = Home(tmp_path_factory.mktemp("shared") / "home")
    first = enter(home)
    second = enter(home, first, erased=(0,))
    third = enter(home, second, erased=(0, 1))
    enter(home, third, erased=(0, 1, 2))
    enter(home, second, state="trial", erased=(0, 3))
    return home.path


@pytest.fixture
def home(shared: Path, tmp_path: Path) -> Home:
    return Home(shutil.copytree(shared, tmp_path / "home"))


def planned(home: Home, **told: Any) -> Pruning:
    return plan(home, Ledger.look(home), **told)


def pruned(found: Pruning) -> list[str | None]:
    return [item.version for item in found.items if item.kind == "weights"]


def yardstick(home: Home, name: str, erased: list[int]) -> Path:
    """Keep a yardstick that no other code made."""
    from server.provenance import code
    from server.requests.yardstick import CODE

    inputs = {
        "forget": {"level": "class", "classes": [9], "clients": []},
        "erased": [erased, []],
        "federation": FEDERATION,
        "code": code(CODE),
    }
    path = home.cache / f"retrained-{name}.safetensors"
    path.write_bytes(pack({"w": np.zeros(1, np.float32)}, {"inputs": inputs}))
    return path


# ---- what stays ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "gone"),
    [
        ({}, ["v0002"]),
        ({"keep": 0}, ["v0002", "v0003"]),
        ({"keep": 2}, []),
        ({"keep": 9}, []),
        ({"keep": 0, "trials": True}, ["v0002", "v0003", "v0005"]),
    ],
)
def test_the_newest_and_the_first_of_their_line_stay(
    home: Home, told: dict[str, Any], gone: list[str]
) -> None:
    assert pruned(planned(home, **told)) == gone


def test_each_version_that_stays_has_a_reason(home: Home) -> None:
    kept = planned(home).kept

    assert kept["v0004"] == "in service"
    assert kept["v0003"] == "to go back to"
    assert kept["v0005"] == "a trial"
    assert kept["v0001"].startswith("the first of its line")


def test_a_version_that_a_request_waits_to_go_on_from_stays(home: Home) -> None:
    with Ledger.of(home) as ledger:
        row = ledger.new_request(
            kind="forget", method="sga", federation=FEDERATION, level="class", classes=[5],
            base_version="v0002",
        )  # fmt: skip
        ledger.start(row.id)
        ledger.interrupt(row.id, "stopped")

    assert pruned(planned(home)) == []


def test_a_line_that_was_trained_anew_goes_as_a_whole(home: Home) -> None:
    enter(home)
    enter(home, "v0006", erased=(0,))

    # v0006 is what served before, and the first of v0007's line; the trial's is still v0001.
    assert pruned(planned(home)) == ["v0002", "v0003", "v0004"]
    found = planned(home, trials=True)
    assert pruned(found) == ["v0001", "v0002", "v0003", "v0004", "v0005"]


def test_federations_do_not_share_what_is_kept(home: Home) -> None:
    enter(home, federation="other")

    assert pruned(planned(home)) == ["v0002"]


def test_keep_must_not_be_negative(home: Home) -> None:
    with pytest.raises(ValueError, match="keep must be at least 0, got -1"):
        planned(home, keep=-1)


# ---- what is destroyed --------------------------------------------------------------------------


def test_pruned_weights_are_gone_their_bytes_told_and_the_audit_passes(home: Home) -> None:
    paths = [home.versions / name / "model.safetensors" for name in ("v0002", "v0003")]
    size = sum(path.stat().st_size for path in paths)

    found = prune(home, keep=0)

    assert found.num_bytes == size
    assert not any(path.exists() for path in paths)
    assert (home.versions / "v0002" / "card.json").exists()
    ledger = Ledger.look(home)
    done = audit(home, ledger)
    assert done.problems == []
    assert (done.counts["versions"], done.counts["pruned"]) == (5, 2)
    with pytest.raises(PrunedError, match="v0002, pruned 20"):
        Registry(home, ledger).load("v0002")
    Registry(home, ledger).load("v0001")


def test_pruning_twice_changes_nothing(home: Home) -> None:
    prune(home, keep=0)
    seals = Ledger.look(home).checked(home).hashes

    assert prune(home, keep=0).items == []
    assert Ledger.look(home).checked(home).hashes == seals


def test_a_stop_between_seal_and_file_is_made_good_by_the_next(home: Home) -> None:
    with Ledger.of(home) as ledger:
        ledger.note_pruned("v0002")

    assert audit(home, Ledger.look(home)).problems == []
    assert pruned(prune(home)) == ["v0002"]
    assert not (home.versions / "v0002" / "model.safetensors").exists()
    assert audit(home, Ledger.look(home)).counts["pruned"] == 1


def test_a_dry_run_destroys_nothing(home: Home) -> None:
    def kept() -> dict[Path, bytes]:
        found = [p for p in home.path.rglob("*") if p.is_file()]
        # SQLite's own files beside the database come and go.
        return {p: p.read_bytes() for p in found if not p.name.startswith("ledger.db-")}

    before = kept()

    planned(home, keep=0)

    assert kept() == before


def test_yardsticks_go_of_which_no_version_with_weights_has_use(home: Home) -> None:
    of_first, of_second, of_now = (
        yardstick(home, "a", []), yardstick(home, "b", [0]), yardstick(home, "c", [0, 1, 2])
    )  # fmt: skip
    # Those of versions before an erasure know what was erased: they go in any case.
    assert [i.path for i in planned(home).items if i.kind == "yardstick"] == [of_first, of_second]

    prune(home)

    assert [path.exists() for path in (of_first, of_second, of_now)] == [False, False, True]


def test_stored_updates_go_with_the_trial_that_names_them(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    enter(home, state="trial", updates=True)
    [folder] = home.updates.iterdir()
    assert planned(home).items == []

    found = prune(home, trials=True)

    assert [(i.kind, i.num_bytes) for i in found.items if i.kind == "updates"] == [("updates", 100)]
    assert not folder.exists()


# ---- what an audit says -------------------------------------------------------------------------


def test_weights_that_were_removed_without_a_seal_are_lost(home: Home) -> None:
    prune(home)
    overwrite(home.versions / "v0003" / "model.safetensors")

    [problem] = audit(home, Ledger.look(home)).problems
    assert "weights of v0003 must be readable" in problem.text


def test_a_seal_of_pruning_that_was_changed_is_noticed(home: Home) -> None:
    prune(home)
    with sqlite3.connect(home.path / "ledger.db") as database:
        content = json.dumps({"version": "v0003", "sha256": "0" * 64})
        database.execute("UPDATE seals SET content = ? WHERE kind = 'pruned'", [content])
    database.close()
    shutil.rmtree(home.versions / "v0003")

    assert audit(home, Ledger.look(home)).problems


def test_a_version_in_service_cannot_be_pruned(home: Home) -> None:
    with Ledger.of(home) as ledger:
        with pytest.raises(LedgerError, match="v0004"):
            Registry(home, ledger).prune(ledger.version("v0004"))
        assert ledger.pruned() == {}
    with Workspace.open(home).ledger as ledger:
        assert ledger.checked(home).problems == ()


def test_pruning_needs_the_homes_key(home: Home) -> None:
    with (
        Ledger.open(f"sqlite:///{home.path}/ledger.db") as ledger,
        pytest.raises(LedgerError, match="open the ledger by its home"),
    ):
        ledger.note_pruned("v0002")
