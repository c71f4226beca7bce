"""A version: one set of global weights, and where it comes from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from client.learning.models import ModelSpec, loaded
from client.wire import tensors
from efface import asking
from server.evidence.record import Forgotten
from server.evidence.scores import ModelScores
from server.evidence.serial import read
from server.nodes.federation import from_numpy
from server.requests import derived, exporting
from server.requests.classes import card_names
from server.storage.ledger import VersionRow
from server.storage.opened import opened
from server.storage.registry import Arrays

if TYPE_CHECKING:
    from efface.asking import ClassName
    from efface.federation import Federation
    from efface.result import Result


class Version:
    """One set of global weights in a home, made by a request.

    A `Federation` gives them; they are never made by hand. Two are equal if they are the same
    version of the same home.

    Example:
        ```python
        version = federation.version("v0002")
        version.has_forgotten.classes   # (9,)
        version.in_service              # True
        network = version.model()       # a torch module in evaluation mode
        ```
    """

    def __init__(self, federation: Federation, row: VersionRow) -> None:
        """Wrap a row of the ledger; `Federation.version` does so."""
        self._federation = federation
        self._row = row

    @property
    def id(self) -> str:
        """Its name in the home, such as "v0002"."""
        return self._row.id

    @property
    def created(self) -> datetime:
        """When it was made, UTC."""
        return self._row.created

    @property
    def parent(self) -> str | None:
        """The version that it was made from; None of a trained one."""
        return self._row.parent

    @property
    def request(self) -> str:
        """The request that made it, such as "r0002"."""
        return self._row.request

    @property
    def sha256(self) -> str:
        """SHA-256 of its weights file, in hexadecimal."""
        return self._row.sha256

    @property
    def state(self) -> str:
        """What it is now: "in-service", "superseded" or "trial"."""
        return self._federation._row(self.id).state

    @property
    def in_service(self) -> bool:
        """Whether it is the one that serves its federation now."""
        return self.state == "in-service"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names in the order of the model's outputs; empty where none are known."""
        return card_names(self._row.card) or ()

    @property
    def has_forgotten(self) -> Forgotten:
        """All that it has forgotten: numbers of classes, names of clients."""
        return read(Forgotten, self._row.card.get("erased") or {}, "erased")

    @property
    def scores(self) -> ModelScores:
        """What was measured of it when it was made, in percent."""
        return read(ModelScores, self._row.card.get("scores") or {}, "scores")

    @property
    def mean(self) -> tuple[float, ...] | None:
        """Mean of each channel, of pixels from 0 to 1, that its inputs are normalised by.

        None where only the clients have data, for each site has a mean and deviation of its own;
        empty of a task of your own.
        """
        return _numbers(self._row.card, "mean")

    @property
    def std(self) -> tuple[float, ...] | None:
        """Standard deviation of each channel, as `mean`."""
        return _numbers(self._row.card, "std")

    @property
    def result(self) -> Result:
        """What came of the request that made it."""
        return self._federation.result(self.request)

    def weights(self, *, allow_forgotten: str | Iterable[str] | None = None) -> Arrays:
        """Return its weights by name, in the model's order, checked against their SHA-256.

        Args:
            allow_forgotten: Requests of which it may know what they forgot. Without them a version
                that knows what was forgotten since gives no weights.

        Returns:
            Arrays of the caller's own.

        Raises:
            EffaceError: If the file is lost or altered, or the version knows what was forgotten.
        """
        return self._federation._weights(self._row, self._allowed(allow_forgotten))

    def model(self, *, allow_forgotten: str | Iterable[str] | None = None) -> nn.Module:
        """Return the network with its weights: a torch module in evaluation mode, on the CPU.

        Of the built-in networks it takes images as float32, `(N, channels, height, width)`, pixels
        from 0 to 1, less `mean`, divided by `std`; of a task of your own what its `transform`
        returns. It gives one score a class, `(N, classes)`, or what the task's network gives. It is
        the caller's own: what is done to it changes nothing in the home.

        Args:
            allow_forgotten: As of `weights`.

        Returns:
            A new module at each call.

        Raises:
            EffaceError: If the weights file is lost or altered, or the version knows what was
                forgotten.

        Example:
            ```python
            network = version.model()
            scores = network(torch.zeros(1, 1, 8, 8))
            ```
        """
        spec = ModelSpec.of_card(self._row.card["model"])
        weights = self.weights(allow_forgotten=allow_forgotten)
        return loaded(spec, tensors(from_numpy(weights))).eval()

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        allow_forgotten: str | Iterable[str] | None = None,
    ) -> Path:
        """Write the weights to a file for other programs, and return its path.

        The ledger notes the file, so that it can be asked back when what it knows is forgotten.

        Args:
            path: Ends in `.safetensors`, `.pt` (a plain state dict) or `.onnx` (the network).
            force: Whether to write over a file that is there.
            allow_forgotten: As of `weights`.

        Raises:
            BadSetting: If the name ends otherwise, or a file is there.
            EffaceError: If the weights are lost, altered or pruned, or the version knows what was
                forgotten.
        """
        home, ledger = opened(str(self._federation._home))
        allowed = self._allowed(allow_forgotten)
        derived.check_use(ledger, self._row, allowed, by=derived.by_argument)
        return exporting.export(home, ledger, self._row, Path(path), force=force).path

    def yardstick(
        self,
        *,
        class_: ClassName | None = None,
        classes: ClassName | Iterable[ClassName] | None = None,
        client: str | None = None,
        clients: str | Iterable[str] | None = None,
        count: int = 3,
        by: str = "",
        why: str = "",
    ) -> Result:
        """Retrain models for verdicts on its requests; see `Federation.yardstick`."""
        return self._federation.yardstick(
            class_=class_,
            classes=classes,
            client=client,
            clients=clients,
            count=count,
            version=self,
            by=by,
            why=why,
        )

    def evaluate(self, relearning: ClassName | Iterable[ClassName] | None = None) -> ModelScores:
        """Measure it on its data set's test part; see `Federation.evaluate`."""
        return self._federation.evaluate(self, relearning=relearning)

    @staticmethod
    def _allowed(named: str | Iterable[str] | None) -> Sequence[str]:
        return asking.texts("allow_forgotten", named)

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same version of the same home."""
        return isinstance(other, Version) and self._key() == other._key()

    def __hash__(self) -> int:
        """Return a hash of home and id."""
        return hash(self._key())

    def _key(self) -> tuple[object, str]:
        return self._federation.home, self.id

    def __repr__(self) -> str:
        """Return its id, state, and what it has forgotten."""
        gone = [*self.has_forgotten.classes, *self.has_forgotten.clients]
        forgot = f", has forgotten {', '.join(map(str, gone))}" if gone else ""
        return f"<Version {self.id}, {self.state}{forgot}>"


def _numbers(card: Any, name: str) -> tuple[float, ...] | None:
    found = (card.get("data") or {}).get(name)
    return None if found is None else tuple(found)
