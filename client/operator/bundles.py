"""App bundles at a site: which ones its operator allowed, which ones came, and how they differ.

A bundle is a Flower FAB: a zip of Python sources and a pyproject.toml. It is named by the SHA-256
of its bytes. Reading one here never runs anything of it.

    FOLDER/bundles/allowed   the list, one bundle a line: HASH TIME NOTE. The operator's alone
    FOLDER/bundles/HASH.fab  the bytes of those allowed, to compare the next one with
    STATE/came/HASH.fab      what came and was not known here, allowed or not; the newest few
"""

import difflib
import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final

from client.errors import BadSetting, ForeignBundle
from client.files import write_atomic

HASH: Final = re.compile(r"[0-9a-f]{64}")
CODE: Final = "client/"  # the folder of a bundle that touches a site's data
TASK: Final = re.compile(r"client/own/[0-9a-f]{64}/")  # a user's task, by its hash
APP: Final = "client/app.py"  # where a node finds the handlers
KEPT: Final = 8  # bundles that came
LARGEST: Final = 10 * 2**20  # bytes; flwr's own limit of a bundle
UNPACKED: Final = 64 * 2**20  # bytes of all files together
FILES: Final = 5000
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*")
_SUFFIX: Final = ".fab"


@dataclass(frozen=True)
class Bundle:
    """The bytes of one bundle."""

    content: bytes

    @cached_property
    def hash(self) -> str:
        """The SHA-256 of the bytes, computed here: what the coordinator calls it counts nothing."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Every file by its path in the bundle.

        Raises:
            BadSetting: If it is no zip, is too large, or a path could leave the folder.
        """
        short = self.hash[:12]
        if len(self.content) > LARGEST:
            raise BadSetting(f"bundle {short} must be at most {LARGEST} bytes long")
        found: dict[str, bytes] = {}
        try:
            with zipfile.ZipFile(io.BytesIO(self.content)) as packed:
                listed = [one for one in packed.infolist() if not one.is_dir()]
                if len(listed) > FILES or sum(one.file_size for one in listed) > UNPACKED:
                    raise BadSetting(
                        f"bundle {short} must hold at most {FILES} files of {UNPACKED} bytes in all"
                    )
                for one in listed:
                    name = one.filename
                    parts = PurePosixPath(name).parts
                    if not _PLAIN.fullmatch(name) or {".", ".."} & set(parts) or name in found:
                        raise BadSetting(f"bundle {short} must hold plain paths, got {name!r}")
                    found[name] = packed.read(one)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise BadSetting(f"bundle {short} must be a zip file: {error}") from None
        return found

    def unpack(self, folder: Path) -> None:
        """Write the files of client/ below `folder`, which is empty; a node runs no others."""
        for name, data in self.files.items():
            if not name.startswith(CODE):
                continue
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


@dataclass(frozen=True)
class Allowed:
    """One line of the operator's list."""

    hash: str
    time: str
    note: str


@dataclass(frozen=True)
class Difference:
    """What a bundle changes against another.

    Attributes:
        old: Hash of the one before, None where there is none to compare with.
        new: Hash of this one.
        code: Unified diff of the files under client/: all that a node runs of a bundle.
        elsewhere: Other files that were added, changed or removed, by path.
    """

    old: str | None
    new: str
    code: str
    elsewhere: dict[str, str]


class Bundles:
    """The bundles of one site.

    Args:
        folder: The site's folder; its operator's, and not to be written by the executor.
        state: The executor's folder.
    """

    def __init__(self, folder: Path, state: Path) -> None:
        self.kept = folder / "bundles"
        self.list = self.kept / "allowed"
        self.came = state / "came"

    def allowed(self) -> list[Allowed]:
        """Return the operator's list, the oldest first.

        Raises:
            BadSetting: If a line is not one of ours: better no bundle than a wrong one.
        """
        try:
            text = self.list.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, rest = line.partition(" ")
            if not HASH.fullmatch(name):
                raise BadSetting(
                    f"{self.list} must hold a SHA-256 in 64 hexadecimal digits on each line, got "
                    f"{name!r} on line {number}"
                )
            time, _, note = rest.partition(" ")
            found.append(Allowed(name, time, note))
        return found

    def check(self, bundle: Bundle) -> None:
        """Refuse a bundle that is not on the list.

        Raises:
            ForeignBundle: Naming its hash, for the coordinator to read.
        """
        if bundle.hash not in {one.hash for one in self.allowed()}:
            raise ForeignBundle(
                f"bundle must be one that this site's operator allowed, got {bundle.hash}; the "
                "operator looks at it with `efface site diff` and allows it with "
                "`efface site allow`"
            )

    def allow(self, name: str, note: str, bundle: Bundle | None = None) -> bool:
        """Put a bundle on the list, its bytes beside it where they are known.

        Args:
            name: Its hash.
            note: Where it comes from, for people.
            bundle: Its bytes, None to take those that came.

        Returns:
            Whether its bytes are known.

        Raises:
            BadSetting: If `name` is no hash, or not that of the bytes.
        """
        if not HASH.fullmatch(name):
            raise BadSetting(f"hash must be a SHA-256 in 64 hexadecimal digits, got {name!r}")
        bundle = bundle or self.find(name)
        if bundle is not None and bundle.hash != name:
            raise BadSetting(f"hash must be that of the bundle, {bundle.hash}, got {name}")
        self.kept.mkdir(exist_ok=True)
        self.kept.chmod(0o755)  # the executor, another user, reads the list
        if bundle is not None:
            _write(self.kept / f"{name}{_SUFFIX}", bundle.content)
        others = [one for one in self.allowed() if one.hash != name]
        time = datetime.now(UTC).isoformat(timespec="seconds")
        self._write([*others, Allowed(name, time, " ".join(note.split()))])
        return bundle is not None

    def forbid(self, name: str) -> None:
        """Take a bundle off the list; its bytes stay.

        Raises:
            BadSetting: If it is not on it.
        """
        rest = [one for one in self.allowed() if one.hash != name]
        if len(rest) == len(self.allowed()):
            raise BadSetting(f"hash must be of an allowed bundle, got {name!r}")
        self._write(rest)

    def note(self, bundle: Bundle) -> None:
        """Keep the bytes of a bundle that came, for its operator to look at.

        Those of an allowed one lie beside the list already. The newest few stay: a coordinator
        cannot fill the disk with them.
        """
        name = f"{bundle.hash}{_SUFFIX}"
        path, kept = self.came / name, self.kept / name
        if len(bundle.content) > LARGEST or path.exists():
            return
        if kept.exists() and bundle.hash in {one.hash for one in self.allowed()}:
            return
        self.came.mkdir(parents=True, exist_ok=True)
        write_atomic(path, bundle.content)
        path.chmod(0o644)
        files = sorted(self.came.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
        for old in files[:-KEPT]:
            old.unlink(missing_ok=True)

    def find(self, name: str) -> Bundle | None:
        """Return the bundle of this hash if its bytes are here, and are still those."""
        for folder in (self.kept, self.came):
            path = folder / f"{name}{_SUFFIX}"
            if HASH.fullmatch(name) and path.is_file() and path.stat().st_size <= LARGEST:
                bundle = Bundle(path.read_bytes())
                if bundle.hash == name:  # `came` is the executor's to write
                    return bundle
        return None

    def waiting(self) -> list[str]:
        """Return the hashes of bundles that came and are not on the list, the newest first."""
        known = {one.hash for one in self.allowed()}
        files = self.came.glob(f"*{_SUFFIX}") if self.came.is_dir() else ()
        found = sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [path.stem for path in found if path.stem not in known and self.find(path.stem)]

    def difference(self, name: str) -> Difference:
        """Return what a bundle changes against the last one allowed before it.

        Raises:
            BadSetting: If its bytes are not here.
        """
        new = self.find(name)
        if new is None:
            waiting = ", ".join(self.waiting()) or "none"
            raise BadSetting(
                f"hash must be of a bundle whose bytes are here, got {name!r}; those that came and "
                f"are not allowed: {waiting}"
            )
        hashes = [one.hash for one in self.allowed()]
        before = hashes[: hashes.index(name)] if name in hashes else hashes
        old = next((b for b in map(self.find, reversed(before)) if b is not None), None)
        return difference(old, new)

    def _write(self, lines: list[Allowed]) -> None:
        text = "# Bundles that may run here: SHA-256, when it was allowed, note\n" + "".join(
            f"{one.hash} {one.time} {one.note}".rstrip() + "\n" for one in lines
        )
        _write(self.list, text.encode())


def difference(old: Bundle | None, new: Bundle) -> Difference:
    """Return what `new` changes against `old`; against nothing, everything is new."""
    before, after = ({} if b is None else b.files for b in (old, new))
    gone, came = _task(before), _task(after)
    paired = bool(gone and came)
    shown: list[str] = []
    elsewhere: dict[str, str] = {}
    for name in sorted({*before, *after}):
        was, now = name, name
        if paired and name.startswith(came):  # what it was, under the task's former hash
            was = gone + name.removeprefix(came)
        elif paired and name.startswith(gone):
            now = came + name.removeprefix(gone)
            if now in after:
                continue
        if before.get(was) == after.get(now) or name.startswith(".info/"):
            continue  # .info/ is flwr's own list of the other files' hashes
        if name.startswith(CODE):
            shown += difflib.unified_diff(
                _lines(before.get(was)),
                _lines(after.get(now)),
                f"a/{was}" if was in before else "/dev/null",
                f"b/{now}" if now in after else "/dev/null",
                lineterm="",
            )
        else:
            there = (name in before, name in after)
            elsewhere[name] = {(False, True): "new", (True, False): "gone"}.get(there, "changed")
    code = visible("\n".join(shown))
    return Difference(None if old is None else old.hash, new.hash, code, elsewhere)


def _task(files: Mapping[str, bytes]) -> str:
    """Return the folder of a bundle's one task of a user's own; "" if it has none, or several.

    It is called by the hash of what it holds, and so changes with every line.
    """
    found = {match[0] for name in files if (match := TASK.match(name))}
    return found.pop() if len(found) == 1 else ""


def visible(text: str) -> str:
    """Return `text` with control and direction characters as escapes.

    A diff that could move the cursor, or show a line from right to left, would show its reader
    something else than what runs.
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def _lines(data: bytes | None) -> list[str]:
    # Examples at line feeds alone: other separators would hide a line in another one.
    text = "" if data is None else data.decode(errors="backslashreplace")
    return text.split("\n") if text else []


def _write(path: Path, data: bytes) -> None:
    write_atomic(path, data)
    path.chmod(0o644)
