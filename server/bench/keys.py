"""What a kept result depends on, as digests: its part of the recipe, and the code."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from server import provenance, runner, settings
from server.bench import membership
from server.evidence import costs, measures
from server.evidence.attacks import rmia, signals, success, threshold
from server.nodes import federation, grid
from server.nodes.engines import inline
from server.requests import context, data, execution, intake, resolved, workspace, yardstick
from server.requests import costs as spent
from server.storage import history, journal, registry

# What of the coordinator makes, times and judges a result, with the defaults of its settings.
_COORDINATOR: Final = (
    *(workspace, federation, grid, history, inline, journal, registry, runner, intake, settings),
    *(context, execution, data, resolved, measures, membership, costs, spent, yardstick),
    *(rmia, signals, success, threshold),
)


def digest(depends: Any) -> str:
    """Return the SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def of_recipe(depends: Any) -> Any:
    """Return what a result depends on, as JSON values, without code and device."""
    if isinstance(depends, dict):
        named = ((key, of_recipe(value)) for key, value in depends.items())
        return {key: value for key, value in named if key not in ("code", "device")}
    return depends


@lru_cache(maxsize=64)
def code(module: str) -> str:
    """Return a digest of the code that a method's results depend on.

    It is that of the clients, of the method's own module with all of `strategies` that it imports,
    of the coordinator and of the measuring: a method that is added or changed leaves the others'
    results standing.
    """
    # The coordinator keeps and replays updates, and trains what the method is compared with.
    own = provenance.code(module, "strategies.rounds.replay", "strategies.methods.retraining")
    found = hashlib.sha256(own.encode())
    for part in _COORDINATOR:
        path = Path(str(part.__file__))
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()
