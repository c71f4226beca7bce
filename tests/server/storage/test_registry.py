"""The registry: weights exact, checked, and in the ledger together with their request or not."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import server.storage.home
import server.storage.registry
from client.errors import BadSetting
from server.storage.home import Home, HomeBusy
from server.storage.ledger import (
    Ledger,
    Outcome,
    TransitionError,
    UnknownIdError,
    VersionRow,
    VersionState,
    database_url,
)
from server.storage.registry import Registry, RegistryError, pack, unpack

ROOT = Path(__file__).parents[1]
FEDERATION = "digits iid 10"
WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    "z.weight": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "a.half": np.array([0.5, -2.0], dtype=np.float16),
    "norm.num_batches_tracked": np.array(17, dtype=np.int64),  # 0-d, as BatchNorm has it
    "b.empty": np.zeros((0, 3), dtype=np.float32),
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def ledger(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.delenv("EFFACE_DATABASE_URL", raising=False)
    with Ledger.open(database_url(home)) as opened:
        yield opened


@pytest.fixture
def registry(home: Home, ledger: Ledger) -> Registry:
    return Registry(home, ledger)


def begin(ledger: Ledger, federation: str = FEDERATION) -> str:
    """Write down a request and start it."""
    request = ledger.new_request(kind="train", method="fedavg", federation=federation)
    return ledger.start(request.id).id


def make(
    registry: Registry,
    ledger: Ledger,
    *,
    parent: str | None = None,
    federation: str = FEDERATION,
    state: VersionState = "in-service",
    weights: dict[str, np.ndarray[Any, Any]] = WEIGHTS,
) -> VersionRow:
    return registry.commit(
        begin(ledger, federation),
        weights,
        {"model": "convnet"},
        parent=parent,
        federation=federation,
        state=state,
    )


def assert_same(
    found: dict[str, np.ndarray[Any, Any]], expected: dict[str, np.ndarray[Any, Any]]
) -> None:
    """Same names in the same order, same dtypes and shapes, same bits."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_weights_round_trip_in_order_dtype_and_bits(registry: Registry, ledger: Ledger) -> None:
    version = make(registry, ledger)

    weights, card = registry.load(version.id)

    assert_same(weights, WEIGHTS)
    assert card == {"model": "convnet"}
    assert all(array.flags.writeable for array in weights.values())


def test_a_commit_finishes_its_request_and_supersedes(
    registry: Registry, ledger: Ledger, home: Home
) -> None:
    make(registry, ledger)
    outcome = Outcome(seconds={"train": 2.0}, after={"retain_accuracy": 97.1})

    version = registry.commit(
        begin(ledger),
        WEIGHTS,
        {"width": np.int64(32)},
        parent="v0001",
        federation=FEDERATION,
        state="in-service",
        outcome=outcome,
    )

    done = ledger.request("r0002")
    assert (done.state, done.result_version, done.seconds) == ("done", "v0002", {"train": 2.0})
    assert ledger.version("v0002") == version
    assert ledger.version("v0001").state == "superseded"
    path = registry.weights_path("v0002")
    assert version.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    card = json.loads((path.parent / "card.json").read_text())
    assert (card["version"], card["parent"], card["request"]) == ("v0002", "v0001", "r0002")
    assert (card["sha256"], card["card"]) == (version.sha256, {"width": 32})
    modes = {p.stat().st_mode & 0o777 for p in path.parent.iterdir()}
    assert (modes, path.parent.stat().st_mode & 0o777) == ({0o600}, 0o700)
    assert names(home.versions) == ["v0001", "v0002"]


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(
            lambda name: name.isprintable() and name != "__metadata__"
        ),
        hnp.arrays(
            st.sampled_from(["float16", "float32", "float64", "int64", "uint8", "bool", ">f4"]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        max_size=4,
    )
)
def test_any_arrays_round_trip_even_transposed(arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    turned = {name: array.T for name, array in arrays.items()}

    found, note = unpack(pack(turned, {"a": [1]}), Path("x"))

    native = {name: a.astype(a.dtype.newbyteorder("=")) for name, a in turned.items()}
    assert list(found) == list(native)
    for name, array in native.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()  # C order on both sides
    assert note == {"a": [1]}


def test_equal_weights_give_equal_files() -> None:
    assert pack(WEIGHTS, {"b": 1, "a": 2}) == pack(dict(WEIGHTS), {"b": 1, "a": 2})


def test_a_truncated_or_altered_file_never_unpacks() -> None:
    data = pack(WEIGHTS, {"round": 3})
    for length in range(len(data)):
        with pytest.raises(RegistryError, match=r"whole, got w \(\d+ bytes\): truncated or altere"):
            unpack(data[:length], Path("w"))

    undetected = []
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 1
        try:
            found, note = unpack(bytes(altered), Path("w"))
        except RegistryError:
            continue
        # Only padding and the sort order inside the header may change unseen.
        if note != {"round": 3} or any(
            found[name].tobytes() != array.tobytes() for name, array in WEIGHTS.items()
        ):
            undetected.append(position)
    assert undetected == []


def test_a_dtype_that_safetensors_lacks_is_refused() -> None:
    with pytest.raises(RegistryError, match="dtypes that safetensors knows, got complex128"):
        pack({"a": np.zeros(3, dtype=np.complex128)})


def test_a_note_without_json_form_is_refused() -> None:
    with pytest.raises(RegistryError, match="note must be JSON content, got"):
        pack({}, {"a": np.zeros(3)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_committed(
    registry: Registry, ledger: Ledger, home: Home, bad: float
) -> None:
    weights = {"conv.weight": np.array([[1, bad], [bad, 2]], dtype=np.float32)}

    message = r"finite, got 2 of 4 values NaN or infinite in 'conv.weight' of the weights of r0001"
    with pytest.raises(RegistryError, match=message):
        make(registry, ledger, weights=weights)

    assert ledger.request("r0001").state == "running"
    assert names(home.versions) == []


def test_no_weights_are_not_committed(registry: Registry, ledger: Ledger) -> None:
    with pytest.raises(RegistryError, match="at least one array, got none for r0001"):
        make(registry, ledger, weights={})


def test_a_request_that_does_not_run_commits_nothing(
    registry: Registry, ledger: Ledger, home: Home
) -> None:
    request = begin(ledger)
    ledger.interrupt(request, "Ctrl-C")

    message = "request must be running to become done, got r0001 which is interrupted"
    with pytest.raises(TransitionError, match=message):
        registry.commit(
            request, WEIGHTS, {}, parent=None, federation=FEDERATION, state="in-service"
        )

    assert names(home.versions) == []


def test_a_card_without_json_form_commits_nothing(
    registry: Registry, ledger: Ledger, home: Home
) -> None:
    card = {"masks": np.zeros(3)}
    with pytest.raises(BadSetting, match=r"card\.masks must be a number, text, .* got a ndarray"):
        registry.commit(
            begin(ledger), WEIGHTS, card, parent=None, federation=FEDERATION, state="trial"
        )

    assert names(home.versions) == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            truncate,
            r"sha256 \w{12}\.\.\. of the ledger, got \w{12}\.\.\. in .*truncated or altered",
        ),
        (alter, "truncated or altered. Restore it from a backup"),
        (Path.unlink, r"weights file must be readable, got .* \(No such file or directory\)"),
    ],
)
def test_a_damaged_weights_file_is_refused_by_name(
    registry: Registry, ledger: Ledger, damage: Callable[[Path], None], message: str
) -> None:
    make(registry, ledger)
    path = registry.weights_path("v0001")
    damage(path)

    with pytest.raises(RegistryError, match=message) as caught:
        registry.load("v0001")

    assert str(path) in str(caught.value)


def test_a_nan_filled_file_with_the_right_sha256_is_refused(
    registry: Registry, ledger: Ledger
) -> None:
    row = make(registry, ledger)
    path = registry.weights_path("v0001")
    path.write_bytes(pack({"w": np.full(5, np.nan, dtype=np.float32)}))

    with pytest.raises(RegistryError, match="got 5 of 5 values NaN or infinite in 'w'") as caught:
        registry.load(replace(row, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))

    assert str(path) in str(caught.value)


def test_a_foreign_safetensors_file_is_refused(registry: Registry, ledger: Ledger) -> None:
    row = make(registry, ledger)
    path = registry.weights_path("v0001")
    path.write_bytes(safetensors.numpy.save({"w": np.zeros(3, dtype=np.float32)}))

    with pytest.raises(RegistryError, match="truncated or altered"):
        registry.load(replace(row, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))


def test_lineage_goes_back_to_the_root(registry: Registry, ledger: Ledger) -> None:
    make(registry, ledger)
    make(registry, ledger, parent="v0001")
    make(registry, ledger, parent="v0001", state="trial")
    make(registry, ledger, parent="v0002")

    assert [row.id for row in registry.lineage("v0004")] == ["v0004", "v0002", "v0001"]
    assert [row.id for row in registry.lineage("v0001")] == ["v0001"]


def test_resolve_understands_ids_and_words(registry: Registry, ledger: Ledger) -> None:
    with pytest.raises(RegistryError, match=r"got none\. Train one first: efface train"):
        registry.resolve()
    make(registry, ledger)
    make(registry, ledger, parent="v0001", state="trial")

    assert registry.resolve().id == "v0001"
    assert registry.resolve("in-service").id == "v0001"
    assert registry.resolve("latest").id == "v0002"
    assert registry.resolve("v0002", FEDERATION).id == "v0002"
    with pytest.raises(
        UnknownIdError, match=r"one of v0001, v0002, got 'v002'\. Did you mean v0002"
    ):
        registry.resolve("v002")
    with pytest.raises(RegistryError, match="must belong to mnist, got v0001 of digits iid 10"):
        registry.resolve("v0001", "mnist")
    with pytest.raises(RegistryError, match="must be latest, got none of mnist"):
        registry.resolve("latest", "mnist")

    make(registry, ledger, federation="mnist")

    assert registry.resolve(None, "mnist").id == "v0003"
    with pytest.raises(BadSetting, match=r"got v0001 \(digits iid 10\), v0003 \(mnist\)"):
        registry.resolve()


def test_resolve_means_a_demonstration_only_where_nothing_else_serves(
    registry: Registry, ledger: Ledger
) -> None:
    make(registry, ledger, federation="demo 2026-11-21 10:00:00")
    make(registry, ledger, federation="demo 2026-11-21 11:00:00")
    assert registry.resolve().id == "v0002"

    make(registry, ledger)
    assert registry.resolve().id == "v0003"
    assert registry.resolve(None, "demo 2026-11-21 10:00:00").id == "v0001"


def die(*_: object, **__: object) -> None:
    os._exit(9)


def then_die(function: Callable[..., Any]) -> Callable[..., None]:
    def run(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)
        os._exit(9)

    return run


# Where a commit may die: (what to replace, by what). `os` functions are those of the modules.
CRASHES: dict[str, tuple[object, str, Callable[..., Any]]] = {
    "while the weights are written": (server.storage.home.os, "fsync", die),  # type: ignore[attr-defined]
    "after the weights": (server.storage.registry, "write_json", die),
    "before the rename": (server.storage.registry.os, "rename", die),  # type: ignore[attr-defined]
    "after the rename": (server.storage.registry, "sync_folder", die),
    "before the transaction": (Ledger, "finish", die),
    "inside the transaction": (Ledger, "_enter", then_die(Ledger._enter)),
}


def die_committing(home: Home, where: tuple[object, str, Callable[..., Any]]) -> None:
    """Commit the running request r0002 in a child process that dies at `where`."""
    child = os.fork()
    if child == 0:
        try:
            ledger = Ledger.open(database_url(home))
            registry = Registry(home, ledger)
            setattr(where[0], where[1], where[2])
            registry.commit(
                "r0002", WEIGHTS, {}, parent="v0001", federation=FEDERATION, state="in-service"
            )
        finally:
            os._exit(1)  # not reached, or the commit failed on its own
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("crash", list(CRASHES))
def test_a_crash_before_the_commit_leaves_no_version_and_the_next_try_succeeds(
    home: Home, crash: str
) -> None:
    with Ledger.open(database_url(home)) as ledger:
        make(Registry(home, ledger), ledger)
        request = ledger.request(begin(ledger))
    die_committing(home, CRASHES[crash])
    assert len(names(home.versions)) == 2  # v0001 and what the crash left

    with Ledger.open(database_url(home)) as ledger:
        registry = Registry(home, ledger)

        assert names(home.versions) == ["v0001"]
        assert ledger.request("r0002") == request
        assert registry.resolve().id == "v0001"
        assert_same(registry.load("v0001")[0], WEIGHTS)
        version = registry.commit(
            "r0002", WEIGHTS, {}, parent="v0001", federation=FEDERATION, state="in-service"
        )
        assert version.id == registry.resolve().id == "v0002"


def test_a_crash_after_the_commit_keeps_the_version(home: Home) -> None:
    with Ledger.open(database_url(home)) as ledger:
        make(Registry(home, ledger), ledger)
        begin(ledger)
    die_committing(home, (Ledger, "finish", then_die(Ledger.finish)))

    with Ledger.open(database_url(home)) as ledger:
        registry = Registry(home, ledger)
        assert ledger.request("r0002").state == "done"
        assert registry.resolve().id == "v0002"
        assert_same(registry.load("v0002")[0], WEIGHTS)


def test_a_refused_transaction_is_swept_at_the_next_commit(
    registry: Registry, ledger: Ledger, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("connection lost")

    request = begin(ledger)
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "finish", fail)
        with pytest.raises(OSError, match="connection lost"):
            registry.commit(request, WEIGHTS, {}, parent=None, federation=FEDERATION, state="trial")
    assert names(home.versions) == ["v0001"]
    ledger.fail(request, "connection lost")
    other = {"w": np.ones(2, dtype=np.float32)}

    version = make(registry, ledger, weights=other)

    assert version.id == "v0001"
    assert_same(registry.load("v0001")[0], other)


def test_versions_beside_the_wrong_ledger_are_never_removed(
    registry: Registry, ledger: Ledger, home: Home, tmp_path: Path
) -> None:
    make(registry, ledger)
    (home.versions / "notes").mkdir()

    with Ledger.open(f"sqlite:///{tmp_path / 'other.db'}") as other:
        begin(other)  # even a request of the same id and state does not make it this ledger's
        message = "versions must all be in the ledger, got .*/v0001 .* EFFACE_DATABASE_URL"
        with pytest.raises(RegistryError, match=message):
            Registry(home, other)

    assert_same(registry.load("v0001")[0], WEIGHTS)
    assert names(home.versions) == ["notes", "v0001"]


def test_a_reader_does_not_sweep_what_another_process_is_writing(home: Home) -> None:
    script = """
import sys
from server.storage.home import Home
from server.storage.ledger import *
from server.storage.registry import *
import numpy as np
home = Home(sys.argv[1])
ledger = Ledger.open(database_url(home))
registry = Registry(home, ledger)
finish = ledger.finish
def wait(*args):
    print("renamed", flush=True)
    sys.stdin.readline()
    return finish(*args)
ledger.finish = wait
weights = {"w": np.ones(3)}
registry.commit("r0001", weights, {}, parent=None, federation=sys.argv[2], state="in-service")
"""
    with Ledger.open(database_url(home)) as ledger:
        begin(ledger)
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(home.path), FEDERATION],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "renamed\n"

        reader = Registry(home, ledger)
        with pytest.raises(HomeBusy, match=f"held by process {writer.pid}"):
            reader.sweep()
        writer.communicate("go on\n")

        assert writer.returncode == 0
        assert list(reader.load("v0001")[0]) == ["w"]
