"""A node's parts in sums, on disk: a message may find a new process.

<store>/_sums/part.json       the sum under way; it holds private keys, and goes when it ends
<store>/_sums/begun           hashes of all sums that the node began, 32 bytes each
<store>/_sums/revealed.jsonl  for which weights it helped to reveal the sum of which nodes
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from client.errors import AggregationRefused, StoreError
from client.files import (
    TEMPORARY_SUFFIX,
    fill_with_zeros,
    make_private,
    overwrite,
    write_atomic,
)
from client.secure.context import MIN_NODES, Context
from client.secure.member import Part, differs_by_few

FOLDER: Final = "_sums"  # no lineage of synthetic sets begins so
_DIGEST: Final = 32


class Aggregations:
    """What a node keeps of sums. Nothing is created before the first one begins."""

    def __init__(self, store: Path) -> None:
        """Use a folder in a node's store."""
        self.folder = store / FOLDER

    @property
    def _part(self) -> Path:
        return self.folder / "part.json"

    def begin(self, part: Part) -> None:
        """Keep a part that has just begun; one that was under way is destroyed: it cannot end.

        Raises:
            AggregationRefused: If this very sum was begun before.
        """
        digest = part.context.digest
        with self._locked():
            known = self.folder / "begun"
            content = known.read_bytes() if known.exists() else b""
            content = content[: len(content) // _DIGEST * _DIGEST]  # a power cut may cut the last
            places = range(0, len(content), _DIGEST)
            if any(content[at : at + _DIGEST] == digest for at in places):
                raise AggregationRefused(
                    "sum must be a new one, got one that this node has begun before: keys serve "
                    "once; a new attempt draws new ones"
                )
            self.destroy()
            self._append(known, digest, len(content))
            self.keep(part)

    def part(self, context: Context) -> Part:
        """Return the part in a sum.

        Raises:
            AggregationRefused: If it is not the sum under way.
        """
        try:
            found = Part.from_json(self._part.read_text())
        except FileNotFoundError:
            found = None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self._part} must be a sum under way, got {error!r}") from error
        if found is None or found.context != context:
            raise AggregationRefused(
                "sum must be the one that this node has begun last and not ended, got another: "
                "settings, model, cohort and attempt stay the same from the first step to the last"
            )
        return found

    def advance(self, before: Part, after: Part) -> None:
        """Keep a part as it is after a step, if no other message has taken that step meanwhile.

        Of two messages that have read the same part, the second would share other secrets, or mask
        another vector, with the same keys.

        Raises:
            AggregationRefused: If one has.
        """
        with self._locked():
            self._check_same(before)
            self.keep(after)

    def _check_same(self, before: Part) -> None:
        if self.part(before.context) != before:
            raise AggregationRefused(
                f"step must follow the one before it ({before.stage}), got another message that "
                "took it meanwhile: each is taken once"
            )

    def keep(self, part: Part) -> None:
        """Keep a part as it is after a step, and overwrite the file before it: it has keys, too."""
        make_private(self.folder)
        with ExitStack() as stack:
            former = None
            if self._part.exists():
                former = stack.enter_context(self._part.open("r+b"))
            # A power cut must not bring back a step that was taken: it would be taken twice.
            write_atomic(self._part, part.to_json().encode())
            if former is not None:
                fill_with_zeros(former)

    def destroy(self) -> None:
        """Destroy the sum under way, if there is one, and what a stop left of any."""
        overwrite(self._part)
        for left in self.folder.glob(f".part.json.*{TEMPORARY_SUFFIX}"):
            overwrite(left)

    def check_cohort(self, context: Context, names: Sequence[str]) -> None:
        """Refuse nodes that differ by few from those of an earlier sum with the same weights.

        Raises:
            AggregationRefused: If they do: the difference of both sums would be theirs.
        """
        for weights, nodes in self._revealed():
            if weights == context.weights and differs_by_few(nodes, names, MIN_NODES):
                raise AggregationRefused(
                    f"nodes of a sum must be those of the one before it with the same weights, or "
                    f"{MIN_NODES} others at least, got "
                    f"{', '.join(sorted(set(nodes) ^ set(names)))} more or less: the difference "
                    "of both sums would be an answer alone"
                )

    def end(self, part: Part) -> None:
        """Note whose sum is revealed, and destroy the part.

        Raises:
            AggregationRefused: As `check_cohort`, or if it is not as it is on disk.
        """
        with self._locked():
            self._check_same(part)
            self.check_cohort(part.context, part.survivors)
            entry = [part.context.weights, list(part.survivors)]
            whole = self._whole_lines()
            if entry not in [json.loads(line) for line in whole.splitlines()]:
                line = json.dumps(entry).encode() + b"\n"
                self._append(self.folder / "revealed.jsonl", line, len(whole))
            self.destroy()

    def _revealed(self) -> Iterator[tuple[str, list[str]]]:
        for line in self._whole_lines().splitlines():
            weights, nodes = json.loads(line)
            yield weights, nodes

    def _whole_lines(self) -> bytes:
        """Return what is known of sums; a line that a power cut has cut was of none: its shares
        go up after it."""
        path = self.folder / "revealed.jsonl"
        content = path.read_bytes() if path.exists() else b""
        return content[: content.rfind(b"\n") + 1]

    def _append(self, path: Path, content: bytes, size: int) -> None:
        """Write behind the first `size` bytes of a file."""
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, size)
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time read and write what lasts."""
        make_private(self.folder)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
