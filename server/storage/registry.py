"""The registry: every version of the global weights, whole or not at all.

    versions/v0002/model.safetensors   the weights, in the model's order
    versions/v0002/card.json           what they are, for a reader without the ledger

The files are on the disk before the ledger knows of them; the ledger's one transaction makes them a
version. A crash in between leaves a folder without a row, which `Registry.sweep` removes.
Weights are never pickled.

It is long because writing, reading and sweeping a version rest on the same rules of its files.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from client.errors import BadSetting, EffaceError
from client.files import overwrite, sync_folder, write_atomic
from server.storage.home import Home, HomeBusy, plain, write_json
from server.storage.ledger import (
    Ledger,
    Outcome,
    RequestRow,
    TransitionError,
    UnknownIdError,
    VersionRow,
    VersionState,
)

Arrays = dict[str, np.ndarray[Any, Any]]

WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "card.json"
BUILDING_PREFIX = ".building-"
NOTE_KEY = "efface"
DEMO_PREFIX = "demo "  # opens the name of a demonstration's federation, which nobody relies on


class RegistryError(EffaceError):
    """A version cannot be written, read or named."""

    code = "registry-error"


class PrunedError(RegistryError):
    """A version's weights were destroyed for room; its card and its request's record are there."""

    code = "pruned"


def pack(arrays: Mapping[str, np.ndarray[Any, Any]], note: Any = None) -> bytes:
    """Return `arrays` and `note` as one safetensors file; equal input gives equal bytes.

    safetensors sorts tensors by size and copies memory as it lies, so the order of the names and
    a checksum of everything go into its metadata, and arrays are first made contiguous.

    Args:
        arrays: Any shapes, 0-d included; bool, integers, float16/32/64 or complex64. Not changed.
        note: JSON content (see `note_text`).

    Raises:
        RegistryError: If an array has a dtype that safetensors lacks, or the note is no JSON.
    """
    solid = contiguous(arrays)
    head = note_text({"arrays": _layout(solid), "note": note})
    try:
        # One metadata key: safetensors writes several in random order.
        return safetensors.numpy.save(solid, {NOTE_KEY: f"{_checksum(head, solid):08x} {head}"})
    except SafetensorError as error:
        raise RegistryError(
            f"weights must have dtypes that safetensors knows, got {_dtypes(solid)}"
        ) from error


def unpack(data: bytes, source: Path) -> tuple[Arrays, Any]:
    """Return the arrays and the note that `pack` made into `data`; exact in order, dtype and bits.

    Args:
        data: Content of the file. The arrays are writable copies.
        source: The file it came from, for the error.

    Raises:
        RegistryError: If it is truncated, altered, or not made by `pack`.
    """
    try:
        found = safetensors.numpy.load(data)
        # The header is 8 bytes of length, then JSON; safetensors has just found it sound.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        checksum, head = header["__metadata__"][NOTE_KEY].split(" ", 1)
        content = json.loads(head)
        arrays: Arrays = {name: found.pop(name) for name, _, _ in content["arrays"]}
        if _layout(arrays) != content["arrays"]:
            raise ValueError("its layout differs")
        if found or int(checksum, 16) != _checksum(head, arrays):
            raise ValueError("its checksum differs")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"weights file must be whole, got {source} ({len(data)} bytes): truncated or altered "
            f"({error})"
        ) from error
    return arrays, content["note"]


def note_of(path: Path) -> Any:
    """Return the note that `pack` made into a file, without reading its arrays.

    Raises:
        OSError: If the file cannot be read.
        RegistryError: If it is not made by `pack`.
    """
    with path.open("rb") as file:
        try:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            return json.loads(header["__metadata__"][NOTE_KEY].split(" ", 1)[1])["note"]
        except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            raise RegistryError(
                f"weights file must be whole, got {path}: truncated or altered ({error})"
            ) from error


def note_text(note: Any) -> str:
    """Return `note` as JSON that keeps NaN; array scalars become numbers.

    Raises:
        RegistryError: If a part of it has no JSON form.
    """
    try:
        return json.dumps(note, default=lambda value: value.item())
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RegistryError(f"note must be JSON content, got {error}") from error


def contiguous(arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
    """Return `arrays` in C order and native byte order, copying only those that are not."""
    return {
        name: np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
        for name, array in arrays.items()
    }


def check_finite(arrays: Mapping[str, np.ndarray[Any, Any]], source: str) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        RegistryError: Naming `source`, the array, and how many of its values are not finite.
    """
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise RegistryError(
                f"weights must be finite, got {bad} of {array.size} values NaN or infinite in "
                f"{name!r} of {source}"
            )


class Registry:
    """The versions of one home, with their rows in the ledger."""

    def __init__(self, home: Home, ledger: Ledger, *, sweep: bool = True) -> None:
        """Open the registry and remove what a crash left behind.

        While another process holds the home nothing is removed: what looks left behind may be
        that process's work.

        Args:
            home: Where the weights are.
            ledger: The ledger of that home.
            sweep: Whether to remove what was left; who only reads does not.
        """
        self._home = home
        self._ledger = ledger
        if not sweep:
            return
        try:
            self.sweep()
        except HomeBusy:
            return

    def commit(
        self,
        request_id: str,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        card: Mapping[str, Any],
        *,
        parent: str | None,
        federation: str,
        state: VersionState,
        outcome: Outcome | None = None,
    ) -> VersionRow:
        """Make `arrays` the next version and its request done: both or neither, crash or not.

        Args:
            request_id: The running request that made the weights.
            arrays: The weights, finite, in the model's order.
            card: What to know about them: JSON content.
            parent: The version they came from, or None for a first one.
            federation: The request's federation.
            state: `in-service` also supersedes the version that was.
            outcome: Timings, bytes and accuracies of the request.

        Returns:
            The new version.

        Raises:
            RegistryError: If the weights are empty, not finite, or of an unknown dtype.
            TransitionError: If the request is not running.
            HomeBusy: If another process holds the home.
        """
        if not arrays:
            raise RegistryError(f"weights must hold at least one array, got none for {request_id}")
        check_finite(arrays, f"the weights of {request_id}")
        request = self._ledger.request(request_id)
        if request.state != "running":
            # Before the files are written; the ledger checks again in its transaction.
            raise TransitionError(
                f"request must be running to become done, got {request_id} which is {request.state}"
            )
        data = pack(arrays)
        with self._home.lock():
            self.sweep()
            version = VersionRow(
                id=self._ledger.next_version_id(),
                parent=parent,
                request=request_id,
                federation=federation,
                created=self._ledger.now(),
                state=state,
                sha256=hashlib.sha256(data).hexdigest(),
                card=plain(card, "card"),
            )
            self._write_folder(version, data, request)
            self._ledger.finish(request_id, outcome or Outcome(), version)
        return version

    def load(self, version: str | VersionRow) -> tuple[Arrays, dict[str, Any]]:
        """Return a version's weights, checked against the ledger, and its card.

        Raises:
            UnknownIdError: If there is no such version.
            PrunedError: If they were pruned.
            RegistryError: If the file is missing, truncated, altered or not finite. The message
                names it.
        """
        row = self._ledger.version(version) if isinstance(version, str) else version
        self.check_kept(row)
        path = self.weights_path(row.id)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RegistryError(
                f"weights file must be readable, got {path} ({error.strerror}). "
                "Restore it from a backup"
            ) from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != row.sha256:
            raise RegistryError(
                f"weights file must have the sha256 {row.sha256[:12]}... of the ledger, got "
                f"{digest[:12]}... in {path} ({len(data)} bytes): truncated or altered. "
                "Restore it from a backup"
            )
        arrays, _ = unpack(data, path)
        check_finite(arrays, str(path))
        return arrays, dict(row.card)

    def check_kept(self, row: VersionRow) -> None:
        """Refuse a version whose weights were pruned.

        Raises:
            PrunedError: Saying when.
        """
        if (at := self._ledger.pruned().get(row.id)) is not None:
            raise PrunedError(
                f"version must have its weights still, got {row.id}, pruned "
                f"{at[:16].replace('T', ' ')} UTC; name another",
                see="efface models",
            )

    def prune(self, row: VersionRow) -> None:
        """Destroy a version's weights; row, card and seals stay. Done twice, it changes nothing.

        The seal comes first: a stop in between leaves a file too many, never weights that are lost.

        Raises:
            LedgerError: If it is in service.
            HomeBusy: If another process holds the home.
        """
        with self._home.lock():
            if row.id not in self._ledger.pruned():
                self._ledger.note_pruned(row.id)
            overwrite(self.weights_path(row.id))
            sync_folder(self.folder(row.id))

    def lineage(self, version: str) -> list[VersionRow]:
        """Return `version`, its parent, and so on to the root."""
        rows = [self._ledger.version(version)]
        while rows[-1].parent is not None:
            rows.append(self._ledger.version(rows[-1].parent))
        return rows

    def resolve(self, name: str | None = None, federation: str | None = None) -> VersionRow:
        """Return the version that a user's word means.

        Args:
            name: An id, `latest` (the newest, trials included), or `in-service`, which None means.
                A demonstration's is meant only where nothing else serves.
            federation: Only versions of this federation, if given.

        Raises:
            UnknownIdError: If there is no such version.
            RegistryError: If there is none yet.
            BadSetting: If several federations have one in service: one must be named.
        """
        if name not in (None, "in-service", "latest"):
            row = self._ledger.version(str(name))
            if federation not in (None, row.federation):
                raise RegistryError(
                    f"version must belong to {federation}, got {row.id} of {row.federation}"
                )
            return row
        rows = self._ledger.versions(federation)
        serving = [row for row in rows if row.state == "in-service"]
        real = [row for row in serving if not row.federation.startswith(DEMO_PREFIX)]
        rows = rows[-1:] if name == "latest" else real or serving[-1:]
        whose = f" of {federation}" if federation else ""
        if not rows:
            raise RegistryError(
                f"version must be {name or 'in-service'}, got none{whose}. "
                "Train one first: efface train"
            )
        if len(rows) > 1:
            listed = ", ".join(f"{row.id} ({row.federation})" for row in rows)
            raise BadSetting(
                f"version must be named when several serve, got {listed}", see="efface models"
            )
        return rows[0]

    def folder(self, version_id: str) -> Path:
        """Return the folder of a version's files."""
        return self._home.versions / version_id

    def weights_path(self, version_id: str) -> Path:
        """Return the path of a version's weights."""
        return self.folder(version_id) / WEIGHTS_NAME

    def sweep(self) -> list[Path]:
        """Remove what a crash left: half-built folders, and whole ones without a version.

        Returns:
            The folders removed.

        Raises:
            HomeBusy: If another process holds the home.
            RegistryError: If a folder without a version comes from no unfinished request of this
                ledger. It may be good weights beside the wrong ledger, so nothing is removed.
        """
        # Most often nothing is left: then a mere reader need not take the lock from a writer.
        if not self._left():
            return []
        with self._home.lock():
            left = self._left()
            for path in left:
                if not path.name.startswith(BUILDING_PREFIX):
                    self._check_unfinished(path)
            for path in left:
                shutil.rmtree(path)
            sync_folder(self._home.versions)
            return left

    def _left(self) -> list[Path]:
        """Return the folders that no version owns, or not yet."""
        found = sorted(self._home.versions.iterdir())
        known = {row.id for row in self._ledger.versions()}
        return [
            path
            for path in found
            if path.name.startswith(BUILDING_PREFIX)
            or (re.fullmatch(r"v\d{4,}", path.name) and path.name not in known)
        ]

    def _check_unfinished(self, path: Path) -> None:
        try:
            card = json.loads((path / CARD_NAME).read_text())
            request = self._ledger.request(card["request"])
            created = datetime.fromisoformat(card["request_created"])
            if request.created == created and request.state != "done":
                return
        except (OSError, ValueError, KeyError, TypeError, UnknownIdError):
            pass  # whatever is wrong with it, it is not ours to remove
        raise RegistryError(
            f"versions must all be in the ledger, got {path} which comes from no unfinished "
            "request of it. Is EFFACE_DATABASE_URL the ledger of this home? If so, move the "
            "folder away; nothing was removed"
        )

    def _write_folder(self, version: VersionRow, data: bytes, request: RequestRow) -> None:
        target = self.folder(version.id)
        building = Path(tempfile.mkdtemp(dir=self._home.versions, prefix=BUILDING_PREFIX))
        try:
            write_atomic(building / WEIGHTS_NAME, data, durable_name=False)
            write_json(
                building / CARD_NAME,
                {
                    "format": 1,
                    "version": version.id,
                    "parent": version.parent,
                    "request": version.request,
                    "request_created": request.created.isoformat(),
                    "federation": version.federation,
                    "created": version.created.isoformat(),
                    "sha256": version.sha256,
                    "card": version.card,
                },
            )
            os.rename(building, target)
            sync_folder(self._home.versions)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise


def _layout(arrays: Mapping[str, np.ndarray[Any, Any]]) -> list[list[Any]]:
    return [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]


def _checksum(head: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> int:
    total = zlib.crc32(head.encode())
    for array in arrays.values():
        total = zlib.crc32(array.reshape(-1).view(np.uint8).data, total)
    return total


def _dtypes(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    return ", ".join(sorted({array.dtype.name for array in arrays.values()}))
