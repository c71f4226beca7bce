"""Synthetic sets encrypted at rest: a key for each class of each lineage, and their destruction.

    <folder>/keys.json   the keys, by an id that says nothing; or where they lie instead

A stored set is a safetensors file with one encrypted part a class (AES-256-GCM, `cryptography`).
What is outside the parts is the model's name and the keys' ids; lineage, generation and model are
authenticated with each part. Destroying a class destroys its key: copies of the file that lie
elsewhere, in a backup or in blocks that a file system kept, are then noise, and the other classes'
images in them are not. Keys that lie in a backup themselves undo that: leave keys.json out of it,
or name a place for it that no backup reads.
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from client.errors import StoreError
from client.files import fill_with_zeros, make_private, overwrite, write_atomic

FILE: Final = "keys.json"
ENCRYPTED: Final = "2"  # format of a set's file; those before it are not encrypted
_NONCE: Final = 12  # bytes, before the ciphertext
_ID: Final = re.compile(r"[0-9a-f]{32}")
_FORMAT: Final = 1


class NoKey(StoreError):
    """The key of a stored set is not there: nobody can read it."""

    code = "no-key"


@dataclass(frozen=True)
class _Key:
    """The key of one class of one lineage."""

    lineage: str
    label: int
    secret: bytes


@dataclass
class _Ring:
    """What the key file holds: keys by their ids, and the ids of those destroyed."""

    keys: dict[str, _Key] = field(default_factory=dict)
    destroyed: set[str] = field(default_factory=set)

    def id_of(self, lineage: str, label: int) -> str | None:
        """Return the id of a class's key."""
        for name, key in self.keys.items():
            if (key.lineage, key.label) == (lineage, label):
                return name
        return None


class Vault:
    """The keys of one node's store, and what is done with them."""

    def __init__(self, folder: Path, elsewhere: Path | None = None) -> None:
        """Name the keys' place; nothing is read or made yet.

        Args:
            folder: The store's.
            elsewhere: File of the keys, if they lie on another disk; the store then only names it,
                so that whoever opens the store finds them.
        """
        self.pointer = folder / FILE
        self._elsewhere = elsewhere

    @property
    def path(self) -> Path:
        """The file that holds the keys."""
        if self._elsewhere is not None:
            return self._elsewhere
        named = _read_json(self.pointer).get("elsewhere") if self.pointer.exists() else None
        return self.pointer if named is None else Path(str(named))

    # -- sets ------------------------------------------------------------------------------------

    def sealed(
        self, lineage: str, generation: int, model: str, images: Tensor, labels: Tensor
    ) -> bytes:
        """Return a set's file, encrypted. Keys of classes without one are made, and kept first.

        Args:
            lineage: Whose set.
            generation: Of the file that it goes to.
            model: Description of the model that the set belongs to.
            images: `(n, C, H, W)` float32, on the CPU.
            labels: `(n,)` int64.
        """
        classes = [int(label) for label in labels.unique()]
        ring = self._with_keys(lineage, classes)
        parts = {}
        for label in classes:
            name = ring.id_of(lineage, label)
            if name is None:
                raise NoKey(f"key of class {label} must be in {self.path}, got none")
            rows = (labels == label).nonzero().flatten()
            plain = save(
                {"images": images[rows].contiguous(), "rows": rows},
                {"label": str(label), "of": str(len(labels))},
            )
            nonce = os.urandom(_NONCE)
            bound = _bound(lineage, generation, model, name)
            found = nonce + AESGCM(ring.keys[name].secret).encrypt(nonce, plain, bound)
            parts[name] = torch.frombuffer(bytearray(found), dtype=torch.uint8)
        shape = "x".join(map(str, images.shape[1:]))
        return save(parts, {"format": ENCRYPTED, "model": model, "shape": shape})

    def opened(self, lineage: str, generation: int, path: Path) -> tuple[Tensor, Tensor, str]:
        """Return images, labels and model of an encrypted file, in the order they were saved.

        What a destroyed key encrypted is left out: the file may be older than its destruction.

        Raises:
            NoKey: If a key is missing that nobody destroyed.
            StoreError: If anything in the file was altered, or it is another's.
        """
        metadata, parts = _container(path)
        model = str(metadata.get("model"))
        ring = self._ring()
        images, labels, rows = [], [], []
        total = None
        complete = True
        for name, sealed in parts.items():
            if name in ring.destroyed:
                complete = False
                continue
            if name not in ring.keys:
                raise NoKey(
                    f"key {name[:8]} of {path} must be in {self.path}, got none: nobody can read "
                    "these images; bring the key file back, or run `efface store destroy`"
                )
            plain = self._decrypted(path, ring.keys[name], sealed, lineage, generation, model, name)
            of_class, own, held = _part(plain)
            images.append(of_class)
            rows.append(own)
            labels.append(torch.full_like(own, ring.keys[name].label))
            total = held
        if not images:
            if complete and any(key.lineage == lineage for key in ring.keys.values()):
                raise StoreError(
                    f"{path} must hold its images, got none: they were taken out; restore it from "
                    "a backup, or run `efface store destroy`"
                )
            return torch.zeros(_shape(metadata, path)), torch.zeros(0, dtype=torch.int64), model
        order = torch.cat(rows)
        if complete and not torch.equal(order.sort().values, torch.arange(total or 0)):
            raise StoreError(
                f"{path} must hold all of its {total} images, got {len(order)}: a part was taken "
                "out; restore it from a backup, or run `efface store destroy`"
            )
        sorting = order.argsort()
        return torch.cat(images)[sorting], torch.cat(labels)[sorting], model

    def _decrypted(
        self,
        path: Path,
        key: _Key,
        sealed: bytes,
        lineage: str,
        generation: int,
        model: str,
        name: str,
    ) -> bytes:
        bound = _bound(lineage, generation, model, name)
        try:
            return AESGCM(key.secret).decrypt(sealed[:_NONCE], sealed[_NONCE:], bound)
        except (InvalidTag, ValueError) as error:
            raise StoreError(
                f"{path} must be what was encrypted here, got other bytes: it was altered, or is "
                "another training's; restore it from a backup, or run `efface store destroy`"
            ) from error

    # -- destruction -----------------------------------------------------------------------------

    def shred(self, lineage: str | None = None, classes: tuple[int, ...] | None = None) -> None:
        """Destroy keys, for good: what they encrypted is noise from here on, wherever it lies.

        Args:
            lineage: Of this one alone; None for all.
            classes: Of these alone; None for all.
        """
        ring = self._ring()
        gone = {
            name
            for name, key in ring.keys.items()
            if (lineage is None or key.lineage == lineage)
            and (classes is None or key.label in classes)
        }
        if not gone:
            return
        ring.keys = {name: key for name, key in ring.keys.items() if name not in gone}
        ring.destroyed |= gone
        # The new file takes the name before the former one's blocks are zeroed: a crash between
        # the two must not lose the keys that stay.
        if not ring.keys:
            for file in {self.path, self.pointer}:
                overwrite(file)
            return
        with self.path.open("r+b") as former:
            self._write(ring)
            fill_with_zeros(former)

    # -- the key file ----------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Return what is wrong with the key file, a line each."""
        try:
            self._ring()
        except StoreError as error:
            return [str(error)]
        if self.path.exists() and self.path.stat().st_mode & 0o077:
            mode = self.path.stat().st_mode & 0o777
            return [f"{self.path} must be readable by its owner alone, got mode {mode:o}"]
        return []

    def _with_keys(self, lineage: str, labels: list[int]) -> _Ring:
        ring = self._ring()
        missing = [label for label in labels if ring.id_of(lineage, label) is None]
        for label in missing:
            key = _Key(lineage, label, AESGCM.generate_key(256))
            ring.keys[os.urandom(16).hex()] = key
        if missing:
            make_private(self.path.parent)
            make_private(self.pointer.parent)
            if self.path != self.pointer:
                here = {"format": _FORMAT, "elsewhere": str(self.path.absolute())}
                write_atomic(self.pointer, json.dumps(here).encode())
            self._write(ring)
        return ring

    def _write(self, ring: _Ring) -> None:
        document = {
            "format": _FORMAT,
            "keys": {
                name: {
                    "lineage": key.lineage,
                    "label": key.label,
                    "key": base64.b64encode(key.secret).decode(),
                }
                for name, key in ring.keys.items()
            },
            "destroyed": sorted(ring.destroyed),
        }
        write_atomic(self.path, json.dumps(document, indent=1).encode())

    def _ring(self) -> _Ring:
        path = self.path
        if not path.exists():
            return _Ring()
        raw = _read_json(path)
        try:
            keys = {
                name: _Key(
                    str(one["lineage"]),
                    int(one["label"]),
                    base64.b64decode(one["key"], validate=True),
                )
                for name, one in raw["keys"].items()
            }
            if wrong := [n for n, k in keys.items() if not _ID.fullmatch(n) or len(k.secret) != 32]:
                raise ValueError(f"key {wrong[0][:40]!r}")
            return _Ring(keys, {str(name) for name in raw["destroyed"]})
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
            raise StoreError(
                f"{path} must hold this store's keys, got {error!r}; restore it, or run "
                "`efface store destroy`: without it the synthetic examples cannot be read"
            ) from error


def is_encrypted(metadata: Mapping[str, Any]) -> bool:
    """Return whether a set's file is, by what it says of itself in the open."""
    return metadata.get("format") == ENCRYPTED


def _bound(lineage: str, generation: int, model: str, name: str) -> bytes:
    """Return what is authenticated with a part: it serves no other file, and no other place."""
    return json.dumps([ENCRYPTED, lineage, generation, model, name]).encode()


def _container(path: Path) -> tuple[Mapping[str, Any], dict[str, bytes]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            parts = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StoreError(
            f"{path} must be a whole safetensors file, got {error}; run `efface store verify`"
        ) from error
    return metadata, parts


def _shape(metadata: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    """Return the shape of no images, as a set's file says it in the open."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", str(metadata.get("shape")))
    if found is None:
        raise StoreError(
            f"{path} must say the shape of its images, got another text: it was altered; run "
            "`efface store destroy`"
        )
    return (0, *map(int, found.groups()))


def _part(plain: bytes) -> tuple[Tensor, Tensor, int]:
    """Return a decrypted part: images, their places in the set, and how many the set has."""
    # What was encrypted here was written by `sealed`; its tag has been checked.
    tensors = load(plain)
    header = json.loads(plain[8 : 8 + int.from_bytes(plain[:8], "little")])
    return tensors["images"], tensors["rows"], int(header["__metadata__"]["of"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} must be the JSON file of this store's keys, got {error}; restore it, or run "
            "`efface store destroy`"
        ) from error
    return found if isinstance(found, dict) else {}
