"""`efface site check`: what is right says so, and each fault is found with what mends it."""

import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client.data.columns import describe, to_toml
from client.operator import preflight as module
from client.operator.folder import bundles_of
from client.operator.preflight import MEND, NOTE, OK, preflight
from client.policy import FILE, KEY
from tests.attacks.site import hospital
from tests.superlink_harness import make_federation


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with data, a policy and a node key, and an authority's certificates."""
    folder = tmp_path_factory.mktemp("preflight")
    hospital(folder, updates="sums")
    make_federation(folder / "federation", "all", "site-a")
    return folder


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    folder = tmp_path / "copy" / "site"
    write(folder)
    return folder


def write(folder: Path, superlink: str = "127.0.0.1:1", **more: str) -> None:
    above = folder.parent
    told = {
        "superlink": superlink,
        "root-certificates": str(above / "federation" / "ca" / "ca.crt"),
        "key": str(above / "federation" / "keys" / "site-a"),
        "data": f"npz:{above / 'data.npz'}",
        "store": str(above / "store"),
        **more,
    }
    (folder / "node.toml").write_text("".join(f'{k} = "{v}"\n' for k, v in told.items()))


def found(folder: Path, *, connect: bool = False) -> dict[str, tuple[str, str]]:
    """Return the worst finding of each check."""
    order = (OK, NOTE, MEND)
    worst: dict[str, tuple[str, str]] = {}
    for one in preflight(folder, connect=connect):
        if one.check not in worst or order.index(one.state) > order.index(worst[one.check][0]):
            worst[one.check] = (one.state, one.text)
    return worst


def test_a_sound_site_has_nothing_to_mend(site: Path) -> None:
    checks = found(site)
    assert [name for name, (state, _) in checks.items() if state == MEND] == []
    assert checks["trial message"][1].startswith("answered in")
    assert "classes have no names" in checks["data"][1]
    assert not (site.parent / "store").exists()  # nothing was written there


def test_a_site_where_no_bundle_may_run_is_told_so(site: Path) -> None:
    state, text = found(site)["bundles"]
    assert state == NOTE
    assert "efface site allow" in text
    bundles_of(site).allow("0" * 64, "")
    assert found(site)["bundles"] == (OK, "1 bundle may run here")


def test_a_sites_table_is_counted_and_no_message_is_tried(site: Path) -> None:
    rows = "".join(f"{age},{'yes' if age % 2 else 'no'}\n" for age in range(20, 60))
    (site / "heart.csv").write_text("age,sick\n" + rows)
    named = f"table:{site / 'heart.csv'}?label=sick"
    cells = {"age": [str(age) for age in range(20, 60)]}
    columns = describe(cells, label="sick", classes=("no", "yes"), where="heart.csv")
    (site / "heart.toml").write_text(to_toml(columns))
    write(site, data=f"{named}&columns={site / 'heart.toml'}")
    checks = [(one.check, one.state, one.text) for one in preflight(site, connect=False)]
    assert ("data", OK, "40 rows of 1 numbers in 2 classes") in checks
    assert [state for name, state, _ in checks if name == "trial message"] == [NOTE]
    write(site, data=named)
    assert found(site)["data"][0] == MEND
    assert "efface data columns" in found(site)["data"][1]


def test_data_that_a_task_alone_can_read_are_left_to_it(site: Path) -> None:
    write(site, data="every 2nd from 0")
    checks = found(site)
    assert [name for name, (state, _) in checks.items() if state == MEND] == []
    assert checks["data"] == (
        NOTE,
        "every 2nd from 0 is for a task of the coordinator's, which alone can read it",
    )
    assert checks["trial message"][0] == NOTE


def no_folder(site: Path) -> None:
    (site / "node.toml").unlink()


def no_policy(site: Path) -> None:
    (site / FILE).unlink()


def open_policy(site: Path) -> None:
    (site / FILE).chmod(0o644)


def no_site_key(site: Path) -> None:
    (site / KEY).unlink()


def open_node_key(site: Path) -> None:
    (site.parent / "federation" / "keys" / "site-a").chmod(0o644)


def no_node_key(site: Path) -> None:
    write(site, key="none.key")


def damaged_node_key(site: Path) -> None:
    (site.parent / "federation" / "keys" / "site-a").write_text("no key")


def unknown_message(site: Path) -> None:
    policy = site / FILE
    policy.write_text(policy.read_text().replace("serve = []", 'serve = ["train.fitt"]'))


def damaged_list(site: Path) -> None:
    (site / "bundles").mkdir()
    (site / "bundles" / "allowed").write_text("all of them")


def no_data(site: Path) -> None:
    (site.parent / "data.npz").unlink()


def other_data(site: Path, **arrays: Any) -> None:
    np.savez(site.parent / "data.npz", **arrays)


def other_keys(site: Path) -> None:
    other_data(site, images=np.zeros((9, 8, 8), np.uint8), labels=np.arange(9))


def too_many_labels(site: Path) -> None:
    images = np.zeros((9, 8, 8), np.uint8)
    other_data(site, train_images=images, train_labels=np.arange(9), num_classes=5)


def open_store(site: Path) -> None:
    (site.parent / "store").mkdir(mode=0o755)


def damaged_store(site: Path) -> None:
    store = site.parent / "store"
    store.mkdir(mode=0o700)
    (store / "state.json").write_text("{")
    (store / "state.json").chmod(0o600)


def broken_log(site: Path) -> None:
    from client.logbook import Logbook

    store = site.parent / "store"
    store.mkdir(mode=0o700)
    for _ in range(3):
        Logbook(store).write({"message": "m"})
    (path,) = Logbook(store).files()
    path.write_bytes(path.read_bytes().replace(b'"m"', b'"n"', 1))


def clock_behind(site: Path) -> None:
    from client.logbook import Logbook

    store = site.parent / "store"
    store.mkdir(mode=0o700)
    Logbook(store).write({"message": "m", "time": "2999-01-01T00:00:00.000+00:00"})


FAULTS: list[tuple[Callable[[Path], None], str, str]] = [
    (no_folder, "folder", "holds no node.toml"),
    (no_policy, "policy", "efface site init"),
    (open_policy, "policy", "chmod 600"),
    (unknown_message, "policy", "got train.fitt"),
    (damaged_list, "bundles", "64 hexadecimal digits"),
    (no_site_key, "site key", "efface site init"),
    (open_node_key, "node key", "chmod 600"),
    (no_node_key, "node key", "make_federation.py node-key"),
    (damaged_node_key, "node key", "must be an OpenSSH private key"),
    (no_data, "data", "npz file must exist"),
    (no_data, "trial message", "the data cannot be read"),
    (other_keys, "data", "train_images"),
    (too_many_labels, "data", "labels must be in [0, 5)"),
    (open_store, "store", "chmod 700"),
    (damaged_store, "store", "must be valid JSON of this store"),
    (broken_log, "store", "must follow line 1"),
    (clock_behind, "clock", "timedatectl set-ntp true"),
]


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_fault_is_found_with_what_mends_it(site: Path, number: int) -> None:
    make, check, text = FAULTS[number]
    make(site)
    state, told = found(site)[check]
    assert state == MEND
    assert text in told


def test_a_full_disk_is_found(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(free=2**20)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: full)
    state, told = found(site)["disk"]
    assert state == MEND
    assert "must have 1536 MB free" in told


def test_rare_classes_are_told(tmp_path: Path) -> None:
    import numpy as np

    few = hospital(tmp_path, keep=lambda y: (y != 3) | (np.cumsum(y == 3) <= 2))
    make_federation(tmp_path / "federation", "all", "site-a")
    write(few.policy.parent)
    notes = [o.text for o in preflight(few.policy.parent, connect=False) if o.state == NOTE]
    assert "left out, for there are fewer than 5 examples of each: class 3" in notes


# ---- the connection ------------------------------------------------------------------------------


@pytest.fixture
def server(made: Path) -> Iterator[str]:
    """The address of something that speaks TLS with the coordinator's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    kept = made / "federation" / "server"
    context.load_cert_chain(kept / "server.pem", kept / "server.key")
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listening.accept()
                with context.wrap_socket(plain, server_side=True):
                    pass
            except ssl.SSLError:
                continue
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    listening.close()


def test_a_coordinator_that_answers_is_well(site: Path, server: str) -> None:
    write(site, server)
    state, told = found(site, connect=True)["connection"]
    assert (state, "answers over TLS" in told) == (OK, True)


def test_what_is_wrong_with_the_connection_is_told(site: Path, server: str, tmp_path: Path) -> None:
    make_federation(tmp_path / "other", "ca")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"superlink": "127.0.0.1:1"}, "must answer within"),
        ({"superlink": "nonsense"}, "superlink must be HOST:PORT"),
        ({"superlink": server, "root-certificates": "none.crt"}, "must be a file"),
        ({"superlink": server, "root-certificates": "node.toml"}, "certificates in PEM"),
        (
            {"superlink": server, "root-certificates": str(tmp_path / "other/ca/ca.crt")},
            "look at this machine's clock",
        ),
    ]
    for said, why in cases:
        write(site, **said)
        state, told = found(site, connect=True)["connection"]
        assert state == MEND
        assert why in told


def test_a_sites_table_needs_the_columns_file_of_all_and_is_not_tried(
    site: Path, tmp_path: Path
) -> None:
    rows = "".join(f"{i},{'ny'[i % 2]}\n" for i in range(20))
    (tmp_path / "heart.csv").write_text("age,sick\n" + rows)
    name = f"table:{tmp_path}/heart.csv?label=sick"
    write(site, data=name)
    state, text = found(site)["data"]
    assert state == MEND
    assert "must name the columns file that all sites share" in text

    (tmp_path / "heart.toml").write_text(
        'format = 1\nlabel = "sick"\nclasses = ["n", "y"]\nrows = 9\n'
        '[columns.age]\nkind = "number"\nmean = 9.5\nstd = 5.0\n'
    )
    write(site, data=f"{name}&columns={tmp_path}/heart.toml")
    assert found(site)["data"][0] != MEND
    assert found(site)["trial message"] == (
        NOTE,
        "not tried: the data are for a task of the coordinator's",
    )
