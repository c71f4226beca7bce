"""The journal: what makes a stopped request resumable.

A request is a sequence of steps (train, unlearn, recover, evaluate, ...). Each is computed once and
kept on the disk; a request run again gets the kept results, in the same order, and computes from
the first missing step on. A long step also keeps its newest round.

    runs/r0002/journal/journal.json                      the settings it belongs to
    runs/r0002/journal/0001.train.step.safetensors       a finished step
    runs/r0002/journal/0002.recover.rounds.safetensors   the newest round of an unfinished one
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from client.errors import EffaceError
from client.files import TEMPORARY_SUFFIX, sync_folder, write_atomic
from server.storage.home import plain, write_json
from server.storage.registry import Arrays, RegistryError, contiguous, note_text, pack, unpack

HEADER_NAME = "journal.json"
FILE_PATTERN = re.compile(r"(\d{4})\.([A-Za-z0-9_.-]+)\.(step|rounds)\.safetensors")
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


class JournalError(EffaceError):
    """A journal belongs to another request, or is asked for steps in another order."""

    code = "journal-error"


class Journal:
    """The steps of one request, kept in one folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open the journal of a request, or begin one.

        Args:
            folder: Its own folder, created if need be.
            settings: All that the results depend on: JSON content, kept in clear text.

        Raises:
            JournalError: If the folder holds the journal of a request with other settings. The
                message names them.
        """
        self._folder = folder
        self._step = 1  # number of the next step
        self._asked: dict[str, int] = {}  # key -> number, of the steps asked for so far
        self._inside: str | None = None
        settings = plain(settings, "settings")
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stale in folder.glob(f".*{TEMPORARY_SUFFIX}"):
            stale.unlink()
        header = self._header()
        if header is None:
            # Steps whose settings are unknown cannot be trusted.
            self._drop(lambda number, key, sort: True)
            content = {"format": 1, "fingerprint": fingerprint, "settings": settings}
            write_json(folder / HEADER_NAME, content)
        elif header["fingerprint"] != fingerprint:
            raise JournalError(
                f"request must be resumed with the settings it began with, got "
                f"{_differences(header['settings'], settings)} in {folder}. "
                "Resume with the former settings, or abort the request and ask anew"
            )

    def arrays(
        self, key: str, compute: Callable[[], tuple[Mapping[str, np.ndarray[Any, Any]], Any]]
    ) -> tuple[Arrays, Any]:
        """Return the result of step `key`, computing it only if it is not on the disk.

        Args:
            key: Name of the step, unique in its request.
            compute: Gives arrays and JSON metrics; called at most once. It must not ask this
                journal for another step; rounds are welcome.

        Returns:
            The arrays, in order and bit for bit those computed, and the metrics as JSON keeps
            them (tuples are lists), so that a resumed run sees what the first one saw.

        Raises:
            JournalError: If the first run asked for another step here.
        """
        number, path = self._locate(key)
        stored = self._read(path)
        if stored is None:
            # What came after was computed from the result that is missing.
            self._drop(lambda other, _, sort: other > number)
            with self._computing(key):
                arrays, metrics = compute()
            stored = contiguous(arrays), json.loads(note_text(metrics))
            write_atomic(path, pack(*stored))
            self._drop(lambda other, _, sort: other == number and sort == "rounds")
        self._asked[key] = number
        self._step = max(self._step, number + 1)
        return stored

    def value(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the JSON value of step `key`, computing it only if it is not on the disk.

        Raises:
            JournalError: If the first run asked for another step here.
        """
        return self.arrays(key, lambda: ({}, compute()))[1]

    def save_round(
        self, key: str, round_: int, arrays: Mapping[str, np.ndarray[Any, Any]], history: Any
    ) -> None:
        """Keep the state after a round of step `key`, in place of the round kept before.

        One write, one fsync, one rename: a power cut leaves this round or the one before.

        Args:
            key: The step being computed, or the next one.
            round_: Number of rounds done.
            arrays: All that the next round starts from.
            history: JSON metrics of all rounds so far.
        """
        note = {"round": round_, "history": history}
        write_atomic(self._rounds_path(key), pack(arrays, note), durable_name=False)

    def latest(self, key: str) -> tuple[int, Arrays, Any] | None:
        """Return the newest kept round of step `key`: its number, arrays and history; or None."""
        stored = self._read(self._rounds_path(key))
        return None if stored is None else (stored[1]["round"], stored[0], stored[1]["history"])

    def clear(self) -> None:
        """Remove the journal and its folder. It must not be used after."""
        if self._folder.exists():
            shutil.rmtree(self._folder)
            sync_folder(self._folder.parent)

    def _header(self) -> dict[str, Any] | None:
        try:
            header = json.loads((self._folder / HEADER_NAME).read_text())
            sound = isinstance(header["settings"], dict) and isinstance(header["fingerprint"], str)
            return header if sound else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _locate(self, key: str) -> tuple[int, Path]:
        if self._inside is not None:
            raise JournalError(
                f"step must be asked for outside other steps, got {key!r} inside {self._inside!r}"
            )
        number = self._asked.get(key, self._step)
        path = self._path(number, key, "step")
        for other_number, other_key, sort, _ in self._files():
            if (other_number, sort) == (number, "step") and other_key != key:
                raise JournalError(
                    f"step {number} of a resumed request must be {other_key!r} as in its first "
                    f"run, got {key!r} in {self._folder}. Another program version began it: "
                    "abort the request and ask anew"
                )
        return number, path

    def _rounds_path(self, key: str) -> Path:
        return self._path(self._asked.get(key, self._step), key, "rounds")

    def _path(self, number: int, key: str, sort: str) -> Path:
        if not KEY_PATTERN.fullmatch(key):
            raise JournalError(
                f"key must be at most 100 letters, digits, '.', '_' or '-', got {key!r}"
            )
        return self._folder / f"{number:04d}.{key}.{sort}.safetensors"

    def _files(self) -> Iterator[tuple[int, str, str, Path]]:
        for path in sorted(self._folder.iterdir()):
            match = FILE_PATTERN.fullmatch(path.name)
            if match:
                yield int(match[1]), match[2], match[3], path

    def _drop(self, chosen: Callable[[int, str, str], bool]) -> None:
        for number, key, sort, path in list(self._files()):
            if chosen(number, key, sort):
                path.unlink()

    def _read(self, path: Path) -> tuple[Arrays, Any] | None:
        try:
            return unpack(path.read_bytes(), path)
        except (FileNotFoundError, RegistryError):
            return None  # cut short by a crash: as if it were not there

    @contextmanager
    def _computing(self, key: str) -> Iterator[None]:
        self._inside = key
        try:
            yield
        finally:
            self._inside = None


def _differences(former: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    parts = [
        f"{name} = {_shown(now, name)} instead of {_shown(former, name)}"
        for name in sorted(former.keys() | now.keys())
        if _shown(former, name) != _shown(now, name)
    ]
    return ", ".join(parts)


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], sort_keys=True) if name in settings else "nothing"
