"""The node's durable private store: synthetic sets, tombstones, and the requests already applied.

A ClientApp may be a new process at every message and a new run starts with empty state, so what
must last lives here, in a folder that the site's operator names. Only its owner may read it: the
synthetic images may resemble real ones closely, they are personal data.

    <folder>/state.json                          tombstones and applied requests
    <folder>/state.copy.json                     the same once more: a loss of either is noticed
    <folder>/<lineage>/<generation>.safetensors  synthetic images and labels of one training round
    <folder>/keys.json                           what these are encrypted with (client/vault.py)
    <folder>/budget.json, budget.copy.json       what answers have told (client/budget.py)
    <folder>/base-<request>.safetensors          the model that a running request started from
    <folder>/answers.bin, log/                   see client/answered.py, client/logbook.py
    <folder>/site-report.html                    the images as a page, if the operator asked for it

Every file is written under a temporary name, flushed and renamed. A set is encrypted, each class
with a key of its own, and authenticated whenever it is read; sets that an older Efface wrote are
not encrypted, have the SHA-256 of their images and labels instead, and are encrypted at the next
write. The two newest generations are kept, so that a training message that arrives twice starts
twice from the same images.

It is long because whatever a store keeps is written, checked and destroyed by the same rules.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from client import budget
from client.budget import Budget
from client.data.splits import MAX_CLASSES
from client.errors import BadSetting, NoBaseModel, StoreError
from client.files import check_private, fill_with_zeros, make_private, overwrite, write_atomic
from client.messages import ForgetSpec
from client.policy import Policy, PolicyRefused
from client.secure.aggregations import FOLDER as SUMS
from client.settings import lineage_name
from client.vault import FILE as KEYS
from client.vault import Vault, is_encrypted

FORMAT: Final = 1
KEPT_GENERATIONS: Final = 2
REPORT: Final = "site-report.html"  # see client/site_report.py
STATE: Final = "state.json"
CHECKSUM: Final = "sha256"
COPY: Final = "state.copy.json"
LOG: Final = "log"  # a folder: see client/logbook.py
FOLDERS: Final = (LOG, SUMS)
OWN: Final = (STATE, COPY, REPORT, KEYS, budget.FILE, budget.COPY, "answers.bin")


@dataclass(frozen=True)
class SyntheticSet:
    """A node's synthetic stand-in for its data.

    Attributes:
        images: `(n, ...)` float32, prepared like the data set's inputs.
        labels: `(n,)` int64 in `[0, K)`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, keep: Tensor) -> "SyntheticSet":
        """Return the images for which the boolean mask `keep` `(n,)` is true."""
        return SyntheticSet(self.images[keep], self.labels[keep])

    def joined(self, other: "SyntheticSet") -> "SyntheticSet":
        """Return this set's images followed by another's."""
        return SyntheticSet(
            torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels])
        )


@dataclass
class State:
    """What `state.json` holds.

    Attributes:
        applied: Action by request id, for requests that this node has applied.
        tombstones: What is forgotten, by the request that asked for it.
        specs: What each of the applied requests named; older stores did not keep it.
    """

    applied: dict[str, str] = field(default_factory=dict)
    tombstones: dict[str, ForgetSpec] = field(default_factory=dict)
    specs: dict[str, ForgetSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class Generation:
    """One stored synthetic set, as `efface store ls` shows it."""

    lineage: str
    number: int
    path: Path
    num_bytes: int
    counts: Mapping[int, int]  # images by class
    model: str


@dataclass(frozen=True)
class Destroyed:
    """What is gone for good: images of the newest generations, and sets that held something."""

    examples: int
    sets: int


class Store:
    """One node's store. Nothing is created before the first write."""

    def __init__(self, folder: Path, policy: Policy | None = None) -> None:
        """Take a folder, which need not be there yet.

        Args:
            folder: Where the store lies.
            policy: Of the node; None for a store that is only looked at.

        Raises:
            NotPrivate: If others than its owner can open a real site's store.
        """
        self.folder = folder
        self.policy = policy
        self.vault = Vault(folder, None if policy is None else policy.store_keys)
        if policy is not None and policy.is_real and folder.exists():
            check_private(folder)

    # -- synthetic sets --------------------------------------------------------------------------

    def load(self, lineage: str, *, model: str, before: int | None = None) -> SyntheticSet | None:
        """Return the newest synthetic set of `lineage`, or None if there is none.

        Args:
            lineage: Whose sets: the training request's id.
            model: Description of the model the set must belong to.
            before: Only generations below this training round.

        Raises:
            StoreError: If the file is damaged or belongs to another model.
        """
        numbers = [n for n in self._generations(lineage) if before is None or n < before]
        if not numbers:
            return None
        path = self._path(lineage, max(numbers))
        images, labels, found = self._read(path)
        if found != model:
            raise StoreError(
                f"store {self.folder} must belong to the model {model}, got {found} "
                f"in {path.name}; "
                "name another store folder for this node, or run `efface store destroy`"
            )
        return SyntheticSet(images, labels)

    def save(self, lineage: str, generation: int, synthetic: SyntheticSet, *, model: str) -> None:
        """Write a generation and drop those that no message can ask for again.

        The newest ones stay, whichever is written: an earlier one than those is not kept at all.

        Raises:
            PolicyRefused: If the site's policy has no room for it.
        """
        newest = sorted({*self._generations(lineage), generation})[-KEPT_GENERATIONS:]
        if generation not in newest:
            return
        path = self._path(lineage, generation)
        self.make_room(lineage, replaced=path, images=synthetic.images)
        self._write(path, synthetic, model)
        for number in self._generations(lineage):
            path = self._path(lineage, number)
            if not _plain(path):
                if number not in newest:
                    path.unlink(missing_ok=True)
            elif number not in newest:
                overwrite(path)
            else:  # an older Efface wrote it
                images, labels, found = self._read(path)
                self._rewrite(path, SyntheticSet(images, labels), found)

    def make_room(
        self, lineage: str, *, replaced: Path | None = None, images: Tensor | None = None
    ) -> None:
        """Refuse a training whose images the site's policy has no room for.

        Args:
            lineage: Whose images.
            replaced: The file that they are written over.
            images: `(n, C, H, W)`; None to ask before they are made.

        Raises:
            PolicyRefused: Naming the rule and the remedy.
        """
        if self.policy is None or not self.policy.is_real:
            return
        most, known = self.policy.synthetic, self._lineages()
        if lineage not in known and len(known) >= most.lineages:
            raise PolicyRefused(
                f"trainings with synthetic examples must be at most {most.lineages} at "
                f"{self.policy.name}, got one more; its operator destroys those of one that is no "
                "longer used: efface store destroy STORE --lineage NAME"
            )
        held = sum(
            path.stat().st_size for path in self.folder.glob("*/*.safetensors") if path != replaced
        )
        new = 0 if images is None else 4 * images.numel()
        if held + new > most.quota_mb * 2**20:
            raise PolicyRefused(
                f"synthetic examples must take at most {most.quota_mb} MB at {self.policy.name}, "
                f"got {(held + new) / 2**20:.0f}; take a larger scale, or its operator destroys "
                "some: efface store destroy STORE"
            )

    def destroy(self, lineage: str | None = None, classes: tuple[int, ...] | None = None) -> int:
        """Destroy synthetic images and return how many of the newest generations' are gone.

        See `destroyed`, which says more.
        """
        return self.destroyed(lineage, classes).examples

    def destroyed(
        self, lineage: str | None = None, classes: tuple[int, ...] | None = None
    ) -> Destroyed:
        """Destroy synthetic images and return what is gone.

        The store's report page goes, too: it may show them.

        Args:
            lineage: Only this lineage; None for all of them.
            classes: Only images of these classes; None for all of them.

        Raises:
            StoreError: If `classes` are named and a file is damaged: nobody can say what it holds.
        """
        for page in [*self.folder.glob(REPORT), *self.folder.glob(f".{REPORT}.*")]:
            overwrite(page)
        lineages = [lineage] if lineage is not None else self._lineages()
        destroyed = sets = 0
        for name in lineages:
            numbers = sorted(self._generations(name))
            found = {n: self._split(self._path(name, n), classes) for n in numbers}
            # The keys first: whatever comes between, these images can be read no more.
            self.vault.shred(name, classes)
            for number, (left, gone, model) in found.items():
                path = self._path(name, number)
                if left is None:
                    overwrite(path)
                elif gone:
                    self._rewrite(path, left, model)
                sets += left is None or gone > 0
                if number == numbers[-1]:
                    destroyed += gone
            for torn in (self.folder / name).glob(".*.safetensors.*"):
                overwrite(torn)  # an interrupted write: nobody can say whose images it holds
            folder = self.folder / name
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self.vault.shred(lineage, classes)  # of lineages without a folder, too
        return Destroyed(destroyed, sets)

    def generations(self) -> list[Generation]:
        """Return every stored set, oldest first within its lineage."""
        found = []
        for lineage in self._lineages():
            for number in sorted(self._generations(lineage)):
                path = self._path(lineage, number)
                _, labels, model = self._read(path)
                classes, counts = labels.unique(return_counts=True)
                by_class = dict(zip(classes.tolist(), counts.tolist(), strict=True))
                found.append(
                    Generation(lineage, number, path, path.stat().st_size, by_class, model)
                )
        return found

    # -- the model at a request's start ----------------------------------------------------------

    def keep_base(self, request: str, state: Mapping[str, Tensor]) -> None:
        """Keep the model that `request` started from, in place of any other request's.

        Parameters came from the coordinator: they are no personal data.
        """
        path = self._base(request)
        self.drop_bases(but=path)
        make_private(path.parent)
        content = save({name: tensor.contiguous() for name, tensor in state.items()})
        write_atomic(path, content, durable_name=False)

    def base(self, request: str) -> dict[str, Tensor]:
        """Return the model that `request` started from.

        Raises:
            StoreError: If it is not here, or damaged.
        """
        path = self._base(request)
        if not path.exists():
            raise NoBaseModel(
                f"base model of {request} must exist on node, got none; the whole model must come "
                "first"
            )
        return _read_base(path)

    def drop_bases(self, but: Path | None = None) -> None:
        """Remove every kept base model, except `but`."""
        for path in self.folder.glob("base-*.safetensors"):
            if path != but:
                path.unlink(missing_ok=True)

    def _base(self, request: str) -> Path:
        digest = hashlib.sha256(request.encode()).hexdigest()[:16]
        return self.folder / f"base-{digest}.safetensors"

    # -- tombstones ------------------------------------------------------------------------------

    def state(self) -> State:
        """Return tombstones and applied requests.

        Raises:
            StoreError: If `state.json` is damaged, or only its copy is there.
        """
        path, copy = self.folder / STATE, self.folder / COPY
        if not path.exists():
            if copy.exists():
                raise StoreError(
                    f"{path} must exist beside its copy, got only {copy.name}: it records what was "
                    f"forgotten; restore it: cp {copy} {path}"
                )
            return State()
        try:
            raw = json.loads(path.read_text())
            specs = {
                part: {
                    request: ForgetSpec(t["level"], tuple(t["classes"]), tuple(t["clients"]))
                    for request, t in raw.get(part, {}).items()
                }
                for part in ("tombstones", "specs")
            }
            if "tombstones" not in raw:
                raise KeyError("tombstones")
            return State(dict(raw["applied"]), specs["tombstones"], specs["specs"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path} must be valid JSON of this store, got {error!r}; restore it from a "
                "backup: it records what was forgotten"
            ) from error

    def settle(self, request: str, action: str, spec: ForgetSpec) -> bool:
        """Record that `request` was applied; return False if it had been already.

        `forget` sets a tombstone, `relearn` lifts the tombstones of the same thing, and any other
        action is only remembered.

        Raises:
            BadSetting: If a request of this name said something else before.
        """
        state = self.state()
        if request in state.applied:
            before = (state.applied[request], state.specs.get(request, spec))
            if before != (action, spec):
                raise BadSetting(
                    f"request {request} must say what it said before ({before[0]} {before[1]}), "
                    f"got {action} {spec}; ask anew, as a request of its own"
                )
            self._copy_state()  # where a stop came between the two files
            return False
        if action == "forget":
            state.tombstones[request] = spec
        elif action == "relearn":
            state.tombstones = {
                name: rest
                for name, tombstone in state.tombstones.items()
                if (rest := without(tombstone, spec)) is not None
            }
        state.applied[request] = action
        state.specs[request] = spec
        raw: dict[str, Any] = {"format": FORMAT, "applied": state.applied}
        for part, specs in (("tombstones", state.tombstones), ("specs", state.specs)):
            raw[part] = {
                name: {"level": s.level, "classes": list(s.classes), "clients": list(s.clients)}
                for name, s in specs.items()
            }
        make_private(self.folder)
        write_atomic(self.folder / STATE, json.dumps(raw, indent=1).encode())
        self._copy_state()
        return True

    def _copy_state(self) -> None:
        content = (self.folder / STATE).read_bytes()
        copy = self.folder / COPY
        if not copy.exists() or copy.read_bytes() != content:
            write_atomic(copy, content)

    # -- for the site's operator -----------------------------------------------------------------

    def verify(self) -> list[str]:
        """Return what is wrong with the store, a line each; empty if all is well."""
        problems = []
        if not self.folder.is_dir():
            return [f"store must be a folder, got {self.folder}, which does not exist"]
        try:
            problems += self._wrong_with(self.state())
        except StoreError as error:
            problems.append(str(error))
        problems += [*self.vault.problems(), *Budget(self.folder).problems()]
        for path in [self.folder, *sorted(self.folder.rglob("*"))]:
            mode = path.stat().st_mode & 0o777
            if mode & 0o077:
                problems.append(f"{path} must be readable by its owner alone, got mode {mode:o}")
            if path.suffix == ".safetensors" and path.parent == self.folder:
                try:
                    _read_base(path)
                except StoreError as error:
                    problems.append(str(error))
            elif path.suffix == ".safetensors":
                try:
                    images, _, _ = self._read(path)
                    if not torch.isfinite(images).all():
                        problems.append(f"{path} must hold finite images, got NaN or infinity")
                except StoreError as error:
                    problems.append(str(error))
            elif path.name.startswith(".") and path.is_file() and path.name != ".lock":
                problems.append(f"{path} is left over from an interrupted write; delete it")
            elif path.is_file() and path.name not in OWN and path.parent.name not in FOLDERS:
                problems.append(
                    f"{path} must lie elsewhere: no file of the store, `efface store destroy` "
                    "leaves it as it is"
                )
        return problems

    def unchecked(self) -> list[str]:
        """Return what of the store nothing can check, a line each: it was written before checks."""
        notes = []
        for lineage in self._lineages():
            for number in sorted(self._generations(lineage)):
                path = self._path(lineage, number)
                try:
                    metadata = _metadata(path)
                except StoreError:
                    continue  # told as a problem
                if is_encrypted(metadata):
                    continue
                checked = "" if CHECKSUM in metadata else " and has no checksum: not checked"
                notes.append(
                    f"{path} is not encrypted{checked}; an older Efface wrote it, and the next "
                    "training or request encrypts it"
                )
        if (self.folder / STATE).exists() and not (self.folder / COPY).exists():
            notes.append(
                f"{self.folder / STATE} has no copy, an older Efface wrote it: the next request "
                "makes one"
            )
        return notes

    def _wrong_with(self, state: State) -> list[str]:
        """Return what is wrong with a state that can be read."""
        path, copy = self.folder / STATE, self.folder / COPY
        problems = [
            f"{path} must hold the tombstone of {request}, got none: it forgot "
            f"{state.specs.get(request, 'something')}; restore it from {COPY} or a backup"
            for request in lost_tombstones(state)
        ]
        # Without any copy an older Efface wrote it, unless it already kept what requests name.
        if path.exists() and copy.exists() and copy.read_bytes() != path.read_bytes():
            problems.append(
                f"{path} must be the same as {copy}, got another: one of them was altered or is "
                "older; keep the one with all requests in both places"
            )
        elif state.specs and not copy.exists():
            problems.append(f"{copy} must exist, got none; restore it: cp {path} {copy}")
        return problems

    # -- one set's file --------------------------------------------------------------------------

    def _read(self, path: Path) -> tuple[Tensor, Tensor, str]:
        if is_encrypted(_metadata(path)):
            images, labels, model = self.vault.opened(path.parent.name, int(path.stem), path)
        else:
            images, labels, model = _read_plain(path)
        if images.ndim < 2 or labels.shape != images.shape[:1]:
            raise StoreError(
                f"{path} must hold examples (n, ...) and labels (n,), got "
                f"{tuple(images.shape)} and {tuple(labels.shape)}"
            )
        named = re.search(r"num_classes=(\d+)", model)
        num_classes = int(named[1]) if named else MAX_CLASSES
        strange = labels[(labels < 0) | (labels >= num_classes)]
        if len(strange):
            raise StoreError(
                f"{path} must hold labels in [0, {num_classes}), got {int(strange[0])}; restore it "
                "from a backup, or run `efface store destroy`"
            )
        return images, labels, model

    def _write(self, path: Path, synthetic: SyntheticSet, model: str) -> None:
        make_private(path.parent)
        content = self.vault.sealed(
            path.parent.name,
            int(path.stem),
            model,
            synthetic.images.detach().float().cpu().contiguous(),
            synthetic.labels.cpu().contiguous(),
        )
        write_atomic(path, content, durable_name=False)

    def _rewrite(self, path: Path, synthetic: SyntheticSet, model: str) -> None:
        """Put other content into a file, and zeros over what it was."""
        # The new file takes the name before the old blocks are zeroed: a crash between the two must
        # not lose the other classes.
        with path.open("r+b") as former:
            self._write(path, synthetic, model)
            fill_with_zeros(former)

    def _split(
        self, path: Path, classes: tuple[int, ...] | None
    ) -> tuple[SyntheticSet | None, int, str]:
        """Return what stays of a file without `classes` (None for all), how many go, the model."""
        if classes is None:
            try:
                return None, len(self._read(path)[1]), ""
            except StoreError:
                return None, 0, ""  # a damaged file holds images too: it goes all the same
        images, labels, model = self._read(path)
        gone = torch.isin(labels, torch.tensor(classes, dtype=labels.dtype))
        if len(labels) and bool(gone.all()):
            return None, len(labels), model
        return SyntheticSet(images, labels).where(~gone), int(gone.sum()), model

    # -- paths -----------------------------------------------------------------------------------

    def _lineages(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(e.name for e in self.folder.iterdir() if e.is_dir() and e.name not in FOLDERS)

    def _generations(self, lineage: str) -> list[int]:
        folder = self.folder / lineage
        if not folder.is_dir():
            return []
        return [int(path.stem) for path in folder.glob("*.safetensors") if path.stem.isdigit()]

    def _path(self, lineage: str, generation: int) -> Path:
        rule = lineage_name()
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", lineage) or not rule.holds(lineage):
            raise StoreError(
                f"lineage must be letters, digits, '.', '_' or '-', and no file of the store's "
                f"own, got {lineage!r}"
            )
        return self.folder / lineage / f"{generation:06d}.safetensors"


def without(tombstone: ForgetSpec, lifted: ForgetSpec) -> ForgetSpec | None:
    """Return what is left of a tombstone, or None if all of it is lifted."""
    if tombstone.level != lifted.level:
        return tombstone
    classes = tuple(c for c in tombstone.classes if c not in lifted.classes)
    clients = tuple(c for c in tombstone.clients if c not in lifted.clients)
    return ForgetSpec(tombstone.level, classes, clients) if classes or clients else None


def lost_tombstones(state: State) -> list[str]:
    """Return the requests that forgot something whose tombstone is not there, or not all of it."""
    lost, applied = [], list(state.applied.items())
    for position, (request, action) in enumerate(applied):
        if action != "forget":
            continue
        later = [name for name, does in applied[position + 1 :] if does == "relearn"]
        expected = state.specs.get(request)
        if expected is None or any(name not in state.specs for name in later):
            # An older store does not say what a relearning lifted.
            if request not in state.tombstones and not later:
                lost.append(request)
            continue
        left: ForgetSpec | None = expected
        for name in later:
            left = None if left is None else without(left, state.specs[name])
        if left is not None and state.tombstones.get(request) != left:
            lost.append(request)
    return lost


def _read_plain(path: Path) -> tuple[Tensor, Tensor, str]:
    """Return what is in a file that an older Efface wrote, without encryption."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    model = str(metadata.get("model"))
    if images.ndim > 1 and labels.shape == images.shape[:1]:
        expected = _checksum(images, labels, model)
        if metadata.get(CHECKSUM, expected) != expected:
            raise StoreError(
                f"{path} must have the checksum that was written with it, got another: it was "
                "altered; restore it from a backup, or run `efface store destroy`"
            )
    return images, labels, model


def _metadata(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _plain(path: Path) -> bool:
    """Return whether a set's file can be read by anybody; one that is damaged may be."""
    try:
        return path.exists() and not is_encrypted(_metadata(path))
    except StoreError:
        return True


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path} must be a whole safetensors file, got {error}; run `efface store verify`"
    )


def _checksum(images: Tensor, labels: Tensor, model: str) -> str:
    found = hashlib.sha256(model.encode())
    for tensor in (images, labels):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _read_base(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise StoreError(
            f"{path} must be a whole safetensors file, got {error}; delete it: the coordinator "
            "sends the model again"
        ) from error
