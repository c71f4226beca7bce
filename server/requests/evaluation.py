"""Measuring a version again, outside any request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client.errors import DataError
from client.wire import ForgetSpec
from server.evidence.measures import Judge
from server.nodes.federation import from_numpy
from server.requests.classes import card_names, check_as_trained, class_number
from server.requests.data import version_data
from server.requests.forgotten import check_data
from server.requests.intake import inherited
from server.settings import RunSettings
from server.storage.home import Home
from server.storage.ledger import Ledger
from server.storage.registry import Registry
from server.storage.seals import EditedError


@dataclass(frozen=True)
class Evaluated:
    """What a version has on its data set's test part.

    Attributes:
        version: Its id.
        dataset: The data set's name.
        data_text: What a person calls the data: a task of one's own, and its data set.
        counts: Test images of each class.
        class_names: Names of the classes; None where the version knows numbers alone.
        erased: Classes and clients that it has forgotten.
        asked: Classes whose relearning was asked for.
        scores: Accuracies in percent, by the names of `ModelScores`.
        curve: How fast the classes asked for come back; None where none was, or there are too few
            test images.
        notes: What was noticed when the data were read.
        cautions: What could not be checked of them.
    """

    version: str
    dataset: str
    data_text: str
    counts: tuple[int, ...]
    class_names: tuple[str, ...] | None
    erased: Mapping[str, Any]
    asked: tuple[int, ...]
    scores: Mapping[str, Any]
    curve: Mapping[str, Any] | None
    notes: tuple[str, ...]
    cautions: tuple[str, ...]


def evaluated(
    home: Home,
    ledger: Ledger,
    version: str = "",
    relearning: Sequence[str] = (),
    data_now: str = "",
) -> Evaluated:
    """Measure a version on its data set's test part, class by class.

    Args:
        home: Where it is; nothing is written.
        ledger: The home's.
        version: Its id; empty for the one in service.
        relearning: Classes, by name or number, of which to measure how fast they come back.
        data_now: Where the version's data lie now, if they have moved.

    Raises:
        BadSetting: If a class is unknown.
        DataError: If there are no test images.
        EditedError: If the version does not verify.
    """
    registry = Registry(home, ledger, sweep=False)
    row = registry.resolve(version or None)
    if edited := [p for p in ledger.checked(home).problems if p.version == row.id]:
        raise EditedError(f"{edited[0].sentence}; see `efface audit`")
    arrays, card = registry.load(row)
    settings = inherited(RunSettings(data=data_now), row)
    data = version_data(settings, row)
    cautions = check_data(settings, row, data)
    if data is None or not len(data.test):
        raise DataError(
            f"version {row.id} must have test examples here, got none: only the clients have data"
        )
    check_as_trained(row.id, card, data)
    spec = settings.model_spec(data)
    names = card_names(card)
    numbers = [class_number(text, names, spec.num_classes) for text in relearning]
    asked = tuple(dict.fromkeys(numbers))
    erased = tuple(card["erased"]["classes"])
    forget = ForgetSpec("class", asked or erased) if asked or erased else ForgetSpec()
    judge = Judge(spec, data, forget, tuple(c for c in erased if c not in asked))
    model = from_numpy(arrays)
    return Evaluated(
        version=row.id,
        dataset=settings.dataset,
        data_text=settings.data_text,
        counts=tuple(data.test.labels.bincount(minlength=spec.num_classes).tolist()),
        class_names=names,
        erased=card["erased"],
        asked=asked,
        scores=judge.quick(model),
        curve=judge.relearning(model) if asked else None,
        notes=tuple(data.notes),
        cautions=tuple(cautions),
    )
