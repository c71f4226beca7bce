"""Stored updates: what clients sent in training, kept where `keep-updates` asks for it.

    HOME/updates/r0001-20260102T030405678901/00001/client-0.update   a training, a round, a client

Methods that replay training need them (`strategies.methods.federaser`). They tell of the data they
come from, and so are destroyed with it: a client's files when the client is forgotten, all of a
training when a class is, for every update knows it, or when another version is in service that did
not come from them. A request that replays training keeps what it calibrated under its own name. The
ledger alone says what may be kept, so that a stop loses no erasure: what was left is destroyed when
the home is opened next.
"""

import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord

from client.errors import EffaceError
from client.files import overwrite, private, room_for, sync_folder
from server.storage.home import Home
from server.storage.ledger import Ledger, RequestRow
from server.storage.registry import RegistryError, pack, unpack
from strategies.federation import StoredRound

SUFFIX: Final = ".update"
BUILDING: Final = ".building-"
WORD: Final = 4  # bytes of a float32


class HistoryError(EffaceError):
    """A stored update cannot be read."""

    code = "history-error"


class History:
    """The stored updates of one training. Nothing is created before the first is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, done: StoredRound) -> None:
        """Put a round on the disk, whole or not at all, in place of what was kept of it before.

        A round that a stopped training runs again may have other clients in it.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        final = self.folder / f"{done.number:05d}"
        building = self.folder / f"{BUILDING}{final.name}"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700)
        for name, update in done.updates.items():
            arrays = {key: array.numpy() for key, array in update.items()}
            data = compress(pack(arrays, {"client": name, "weight": done.weights[name]}))
            path = building / f"{name}{SUFFIX}"
            with room_for(path), open(path, "xb", opener=private) as file:
                file.write(data)
        for path in building.iterdir():  # after all are written: the first takes the others along
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(building)
        if final.exists():
            shutil.rmtree(final)
        building.replace(final)
        sync_folder(self.folder)

    def rounds(self) -> Iterator[StoredRound]:
        """Yield the rounds kept, in order, one in memory at a time.

        Raises:
            HistoryError: If a file is damaged.
        """
        for folder in self._rounds():
            updates: dict[str, ArrayRecord] = {}
            weights: dict[str, float] = {}
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                try:
                    arrays, note = unpack(decompress(path.read_bytes()), path)
                except (RegistryError, ValueError, zlib.error) as error:
                    raise HistoryError(
                        f"stored update must be whole, got {path}: {error}; restore it from a "
                        "backup, or choose a method that needs none"
                    ) from error
                updates[note["client"]] = ArrayRecord(
                    {name: Array(array) for name, array in arrays.items()}
                )
                weights[note["client"]] = note["weight"]
            if updates:
                yield StoredRound(int(folder.name), updates, weights)

    @property
    def empty(self) -> bool:
        """Whether no update is kept."""
        return not any(self._files())

    def clients(self) -> dict[int, list[str]]:
        """Return the names of the clients with an update kept, by the rounds that have one."""
        found: dict[int, list[str]] = {}
        for path in self._files():
            found.setdefault(int(path.parent.name), []).append(path.name.removesuffix(SUFFIX))
        return found

    @property
    def num_bytes(self) -> int:
        """Return the bytes that the files take."""
        return sum(path.stat().st_size for path in self._files())

    def destroy(self, client: str | None = None) -> None:
        """Overwrite and remove the updates of a client, or all."""
        for path in list(self._files()):
            if client is None or path.name == f"{client}{SUFFIX}":
                overwrite(path)
        for left in self.folder.glob(f"{BUILDING}*"):  # a stop: nobody can say whose it is
            for path in left.iterdir():
                overwrite(path)
        if client is None:
            shutil.rmtree(self.folder)
            sync_folder(self.folder.parent)

    def _rounds(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.name.isdecimal())

    def _files(self) -> Iterator[Path]:
        for folder in self._rounds():
            yield from sorted(folder.glob(f"*{SUFFIX}"))


def sweep(home: Home, ledger: Ledger, named: Mapping[str, RequestRow]) -> None:
    """Destroy the stored updates that may not be kept any longer; done twice, it changes nothing.

    They may be kept as long as their request goes on or the card of a version that is not
    superseded names them, and while no later request of their federation, done and not a trial, has
    forgotten what they know. Those that such a request takes along are sealed as destroyed.

    Args:
        home: Where they are.
        ledger: Says what was asked and done.
        named: The requests by the names that they have as folders.
    """
    folders = [folder for folder in sorted(home.updates.iterdir()) if folder.name in named]
    if not folders:
        return
    versions = ledger.versions()
    wanted = {v.card.get("updates") for v in versions if v.state != "superseded"}
    trials = {version.request for version in versions if version.state == "trial"}
    done = [row for row in named.values() if (row.kind, row.state) == ("forget", "done")]
    for folder in folders:
        made, history = named[folder.name], History(folder)
        finished = made.state in ("done", "failed", "aborted")
        later = [
            row
            for row in done
            if row.federation == made.federation
            and row.created > made.created
            and row.id not in trials
        ]
        whole = next((row for row in later if row.level != "client"), None)
        if (finished and folder.name not in wanted) or whole is not None:
            if whole is not None and not history.empty:
                ledger.note_destroyed(whole.id, "updates", folder.name)
            history.destroy()
            continue
        for client, request in {name: row.id for row in later for name in row.clients}.items():
            if any(client in names for names in history.clients().values()):
                ledger.note_destroyed(request, "updates", f"{folder.name} of {client}")
            history.destroy(client)


def compress(data: bytes) -> bytes:
    """Return `data`, mostly float32, made smaller without loss.

    Bytes of like significance are put side by side: exponents repeat, the last bits of fractions
    do not.
    """
    padded = np.frombuffer(data + bytes(-len(data) % WORD), dtype=np.uint8)
    planes = np.ascontiguousarray(padded.reshape(-1, WORD).T)
    return len(data).to_bytes(8, "little") + zlib.compress(planes.tobytes(), 1)


def decompress(data: bytes) -> bytes:
    """Return what `compress` made into `data`.

    Raises:
        zlib.error, ValueError: If it is damaged.
    """
    planes = np.frombuffer(zlib.decompress(data[8:]), dtype=np.uint8)
    whole = np.ascontiguousarray(planes.reshape(WORD, -1).T).tobytes()
    return whole[: int.from_bytes(data[:8], "little")]
