"""What a kept result depends on, as digests: its part of the recipe, and the code."""

import ast
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import strategies
from client import wire
from server import (
    books,
    data,
    evaluation,
    federation,
    grid,
    history,
    journal,
    registry,
    runner,
    service,
    settings,
    work,
)
from server.bench import membership
from server.engines import inline

# What of the coordinator makes, times and judges a result, with the defaults of its settings.
_COORDINATOR: Final = (
    *(books, federation, grid, history, inline, journal, registry, runner, service, settings),
    *(work, data, evaluation, membership),
)


def digest(depends: Any) -> str:
    """Return the SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=64)
def code(module: str) -> str:
    """Return a digest of the code that a method's results depend on.

    It is that of the clients, of the method's own module with all of `strategies` that it imports,
    of the coordinator and of the measuring: a method that is added or changed leaves the others'
    results standing.
    """
    found = hashlib.sha256(wire.fingerprint().encode())
    # The coordinator keeps and replays updates, and trains what the method is compared with.
    own = _imported(module) | _imported("strategies.replay") | _imported("strategies.retraining")
    coordinator = [Path(str(part.__file__)) for part in _COORDINATOR]
    for path in [*sorted(own), *coordinator]:
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def _imported(module: str) -> set[Path]:
    """Return the files of `strategies` that a module of it imports, itself included."""
    folder = Path(str(strategies.__file__)).parent
    found: set[Path] = set()
    left = [module]
    while left:
        path = folder / f"{left.pop().removeprefix('strategies.')}.py"
        if path in found or not path.exists():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("strategies"):
                left += [str(node.module), *(f"strategies.{name.name}" for name in node.names)]
            elif isinstance(node, ast.Import):
                left += [name.name for name in node.names if name.name.startswith("strategies")]
    return found
