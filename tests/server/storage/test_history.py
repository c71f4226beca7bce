"""Stored updates on the disk: exact, whole, private, and gone when they must go."""

import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from server.storage.history import History, HistoryError, compress, decompress, sweep
from server.storage.home import Home
from strategies.federation import StoredRound


def update(seed: int) -> ArrayRecord:
    draws = np.random.default_rng(seed)
    return ArrayRecord(
        {
            "layer.weight": Array(draws.normal(0, 1e-3, (4, 3)).astype(np.float32)),
            "layer.bias": Array(np.array([np.float32(1e-42), -0.0, 3e38], dtype=np.float32)),
            "norm.num_batches_tracked": Array(np.array(10 + seed)),
        }
    )


def round_of(number: int, *clients: str) -> StoredRound:
    updates = {name: update(number + 10 * i) for i, name in enumerate(clients)}
    return StoredRound(number, updates, {name: 3.0 + i for i, name in enumerate(clients)})


def content(history: History) -> list[tuple[int, dict[str, float]]]:
    return [(kept.number, kept.weights) for kept in history.rounds()]


# ---- kept and read ------------------------------------------------------------------------------


def test_rounds_come_back_in_order_and_bit_for_bit(tmp_path: Path) -> None:
    history = History(tmp_path / "updates")
    # By their numbers: as texts 10 would stand before 9.
    kept = [round_of(10, "b", "a"), round_of(9, "a")]
    for done in kept:
        history.keep(done)
    found = list(history.rounds())
    assert [done.number for done in found] == [9, 10]
    for done, wanted in zip(found, reversed(kept), strict=True):
        assert done.weights == wanted.weights
        for name, arrays in wanted.updates.items():
            assert list(done.updates[name]) == list(arrays)
            for key in arrays:
                one, other = done.updates[name][key].numpy(), arrays[key].numpy()
                assert (one.dtype, one.shape) == (other.dtype, other.shape)
                assert one.tobytes() == other.tobytes()


def test_who_is_in_a_round_is_known_without_reading_it(tmp_path: Path) -> None:
    history = History(tmp_path)
    assert history.clients() == {}
    history.keep(round_of(10, "b", "a"))
    history.keep(round_of(9, "a"))
    next(tmp_path.rglob("b.update")).write_bytes(b"damaged")
    assert history.clients() == {9: ["a"], 10: ["a", "b"]}
    history.destroy("a")
    assert history.clients() == {10: ["b"]}


def test_a_round_kept_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.keep(round_of(1, "a", "b"))
    history.keep(round_of(1, "b", "c"))
    assert content(history) == [(1, {"b": 3.0, "c": 4.0})]


def test_a_round_that_was_being_written_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(tmp_path)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("server.storage.history.sync_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            history.keep(round_of(1, "a", "b"))
    assert content(history) == []
    assert history.empty
    history.keep(round_of(1, "b"))
    assert content(history) == [(1, {"b": 3.0})]
    assert [path.name for path in tmp_path.iterdir()] == ["00001"]


def test_nothing_is_read_from_where_nothing_is(tmp_path: Path) -> None:
    history = History(tmp_path / "none")
    assert (list(history.rounds()), history.empty, history.num_bytes) == ([], True, 0)
    assert not history.folder.exists()


def test_files_are_for_the_operator_alone_and_counted(tmp_path: Path) -> None:
    history = History(tmp_path / "updates")
    history.keep(round_of(1, "a", "b"))
    files = sorted(history.folder.rglob("*.update"))
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] * 2
    assert {path.stat().st_mode & 0o777 for path in (history.folder, files[0].parent)} == {0o700}
    assert history.num_bytes == sum(len(path.read_bytes()) for path in files) > 0


@pytest.mark.parametrize("damage", ["cut", "empty", "altered"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    history = History(tmp_path)
    history.keep(round_of(1, "a"))
    (path,) = tmp_path.rglob("*.update")
    data = path.read_bytes()
    plain = bytearray(decompress(data))
    plain[-1] ^= 1
    path.write_bytes({"cut": data[:-9], "empty": b"", "altered": compress(bytes(plain))}[damage])
    with pytest.raises(HistoryError, match=rf"stored update must be whole, got {path}: "):
        list(history.rounds())


@pytest.mark.parametrize("length", [0, 1, 3, 4, 4001])
def test_compression_loses_nothing(length: int) -> None:
    data = np.random.default_rng(0).normal(0, 1e-3, 2000).astype(np.float32).tobytes()[:length]
    assert decompress(compress(data)) == data


def test_updates_take_less_room_than_their_bytes_and_than_without_regrouping() -> None:
    data = np.random.default_rng(0).normal(0, 1e-3, 100_000).astype(np.float32).tobytes()
    assert len(compress(data)) < 0.9 * len(data)
    assert len(compress(data)) < len(zlib.compress(data, 9))


# ---- destroyed ----------------------------------------------------------------------------------


def test_a_clients_updates_go_and_the_others_stay(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.keep(round_of(1, "a", "aa"))
    history.keep(round_of(3, "a"))
    history.destroy("a")
    assert content(history) == [(1, {"aa": 4.0})]
    history.destroy("a")
    assert content(history) == [(1, {"aa": 4.0})]


def test_files_are_overwritten_before_they_are_removed(tmp_path: Path) -> None:
    history = History(tmp_path / "updates")
    history.keep(round_of(1, "a"))
    (path,) = history.folder.rglob("*.update")
    other_name = tmp_path / "link"
    other_name.hardlink_to(path)
    history.destroy()
    assert not history.folder.exists()
    assert set(other_name.read_bytes()) == {0}


def test_what_a_stop_left_half_written_goes_with_any_client(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.keep(round_of(1, "a"))
    (tmp_path / ".building-00002").mkdir()
    (tmp_path / ".building-00002" / "b.update").write_bytes(b"half")
    history.destroy("b")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.update")] == [
        "00001/a.update"
    ]


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def request(number: int, kind: str, state: str = "done", **more: Any) -> Any:
    told = {"federation": "f", "level": None, "clients": (), "id": f"r{number}", **more}
    return SimpleNamespace(kind=kind, state=state, created=NOW + timedelta(hours=number), **told)


def version(request_: str, state: str, updates: str | None) -> Any:
    return SimpleNamespace(request=request_, state=state, card={"updates": updates})


TRAINED, IN_SERVICE = request(1, "train"), version("r1", "in-service", "r1")
SUPERSEDED = version("r1", "superseded", "r1")
FORGOT = request(2, "forget", level="client", clients=("a",))


@pytest.mark.parametrize(
    ("requests", "versions", "left"),
    [
        ([TRAINED], [IN_SERVICE], ["a", "b"]),
        # Its request goes on, or came to nothing.
        ([request(1, "train", "running")], [], ["a", "b"]),
        ([request(1, "train", "interrupted")], [], ["a", "b"]),
        ([request(1, "train", "failed")], [], []),
        ([request(1, "train", "aborted")], [], []),
        # Another version is in service, with them or without.
        ([TRAINED], [SUPERSEDED], []),
        ([TRAINED], [SUPERSEDED, version("r2", "in-service", "r1")], ["a", "b"]),
        # What they know was forgotten: a client, a class, in a trial, elsewhere, or not yet.
        ([TRAINED, FORGOT], [IN_SERVICE], ["b"]),
        ([TRAINED, request(2, "forget", level="class")], [IN_SERVICE], []),
        ([TRAINED, FORGOT], [IN_SERVICE, version("r2", "trial", None)], ["a", "b"]),
        (
            [TRAINED, request(2, "forget", level="class", federation="g")],
            [IN_SERVICE],
            ["a", "b"],
        ),
        ([TRAINED, request(2, "forget", "running", level="class")], [IN_SERVICE], ["a", "b"]),
        ([TRAINED, request(2, "forget", "failed", level="class")], [IN_SERVICE], ["a", "b"]),
        # They were made after it was forgotten.
        ([TRAINED, request(0, "forget", level="class")], [IN_SERVICE], ["a", "b"]),
    ],
)
def test_the_ledger_says_what_may_be_kept(
    tmp_path: Path, requests: list[Any], versions: list[Any], left: list[str]
) -> None:
    home = Home(tmp_path)
    history = History(home.updates / "r1")
    history.keep(round_of(1, "a", "b"))
    noted: list[tuple[str, ...]] = []
    ledger: Any = SimpleNamespace(
        versions=lambda: versions, note_destroyed=lambda *told: noted.append(told)
    )
    for _ in range(2):  # done twice, it changes nothing
        sweep(home, ledger, {row.id: row for row in requests})
        assert [path.stem for path in sorted(home.updates.rglob("*.update"))] == left
    assert history.folder.exists() is bool(left)
    took = [row for row in requests if row.kind == "forget" and len(left) < 2]
    assert noted == [
        (row.id, "updates", "r1" if row.level == "class" else "r1 of a") for row in took
    ]


def test_a_folder_that_no_request_names_is_left_alone(tmp_path: Path) -> None:
    home = Home(tmp_path)
    History(home.updates / "r9").keep(round_of(1, "a"))
    sweep(home, SimpleNamespace(versions=list), {"r1": TRAINED})  # type: ignore[arg-type]
    assert not History(home.updates / "r9").empty
