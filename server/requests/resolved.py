"""A request, resolved once: what execution works on, whoever hands it over.

Intake makes it when a request arrives; a process that carries it out on the spot is handed it, and
a ServerApp, which is another process, makes it once from the row of the ledger.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from client.data.datasets import Data
from client.learning.models import ModelSpec
from server.requests.data import own_samples, server_data
from server.settings import RunSettings, parse
from server.storage.ledger import RequestRow, VersionRow
from server.storage.registry import Registry
from strategies.federation import Samples
from strategies.method import Method
from strategies.table import method


@dataclass(frozen=True)
class Base:
    """The version that a request starts from, its weights read and their hash checked."""

    row: VersionRow
    arrays: dict[str, np.ndarray]
    card: dict[str, Any]


@dataclass(frozen=True)
class ResolvedRequest:
    """A request that was written down, with all that its settings name.

    Attributes:
        row: The ledger's.
        settings: Parsed from the row.
        spec: The model to build.
        data: The coordinator's data, without its own examples; None if it has none.
        samples: The coordinator's own examples, where the method works on some.
        method: Ready to serve it; None for a training.
        registry: Where the base version is read from, when it is asked for.
    """

    row: RequestRow
    settings: RunSettings
    spec: ModelSpec
    data: Data | None
    samples: Samples | None
    method: Method | None
    registry: Registry = field(repr=False)

    @property
    def id(self) -> str:
        """The request's id."""
        return self.row.id

    @cached_property
    def base(self) -> Base:
        """The version to start from, read once."""
        row = self.registry.resolve(str(self.row.base_version))
        arrays, card = self.registry.load(row)
        return Base(row, arrays, card)


def resolve(
    row: RequestRow,
    registry: Registry,
    settings: RunSettings | None = None,
    data: Data | None = None,
) -> ResolvedRequest:
    """Return a request with all that it names.

    Args:
        row: The ledger's.
        registry: The home's.
        settings: Those that were checked; read from the row if none, or if a request that was
            interrupted is taken up and had others.
        data: The data set that those name.
    """
    found = settings
    if found is None or found.plain() != dict(row.settings):
        found = parse(row.settings)
    if settings is None or (settings.dataset, settings.data_dir) != (found.dataset, found.data_dir):
        data = server_data(found)
    spec = found.model_spec(data)
    samples = None
    if found.server_samples:
        samples, data = own_samples(found, data)
    ready = None
    if row.kind != "train":
        ready = method(row.method, found.forget.level, found.options)
    return ResolvedRequest(row, found, spec, data, samples, ready, registry)
