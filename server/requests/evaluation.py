"""Measuring a version again, outside any request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord

from client.data.datasets import Data
from client.errors import BadSetting, DataError
from client.learning.models import ModelSpec
from client.wire import ForgetSpec
from server.evidence.features.scores import FeatureMeasures
from server.evidence.measures import Judge, measuring_device
from server.nodes.federation import from_numpy
from server.requests import records
from server.requests.classes import card_names, check_as_trained, class_number
from server.requests.data import version_data
from server.requests.forgotten import check_data
from server.requests.intake import inherited
from server.requests.yardstick import kept
from server.settings import RunSettings
from server.storage.home import Home
from server.storage.ledger import Ledger, VersionRow
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
        features: What it, the version before it and Retrained know of classes below their last
            layers; None if it was not asked for.
        features_of: These classes.
        features_from: Id of the version before, "Original".
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
    features: FeatureMeasures | None
    features_of: tuple[int, ...]
    features_from: str | None
    notes: tuple[str, ...]
    cautions: tuple[str, ...]


def evaluated(
    home: Home,
    ledger: Ledger,
    version: str = "",
    relearning: Sequence[str] = (),
    data_now: str = "",
    features: Sequence[str] = (),
) -> Evaluated:
    """Measure a version on its data set's test part, class by class.

    Args:
        home: Where it is; nothing is written.
        ledger: The home's.
        version: Its id; empty for the one in service.
        relearning: Classes, by name or number, of which to measure how fast they come back.
        data_now: Where the version's data lie now, if they have moved.
        features: Classes of which to measure what is known below the last layer.

    Raises:
        BadSetting: If a class is unknown, or no version before had it.
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
    judge = Judge(
        spec,
        data,
        forget,
        tuple(c for c in erased if c not in asked),
        measuring_device(settings.device),
    )
    model = from_numpy(arrays)
    below: FeatureMeasures | None = None
    before: VersionRow | None = None
    named: tuple[int, ...] = ()
    if features:
        named = tuple(sorted({class_number(text, names, spec.num_classes) for text in features}))
        before = _before(registry, row, named)
        sealed = records.stock_hashes(home, ledger, row.federation)
        below = _below(home, registry, row, before, named, data, spec, model, data_now, sealed)
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
        features=below,
        features_of=named,
        features_from=None if before is None else before.id,
        notes=tuple(data.notes),
        cautions=tuple(cautions),
    )


def _before(registry: Registry, row: VersionRow, classes: Sequence[int]) -> VersionRow:
    """Return the newest version on the way here that had forgotten none of these classes.

    Raises:
        BadSetting: If there is none.
    """
    for one in registry.lineage(row.id):
        if not set(classes) & set(one.card["erased"]["classes"]):
            return one
    raise BadSetting(
        f"features must be of classes that a version before {row.id} had, got {list(classes)}"
    )


def _below(
    home: Home,
    registry: Registry,
    row: VersionRow,
    before: VersionRow,
    classes: tuple[int, ...],
    data: Data,
    spec: ModelSpec,
    model: ArrayRecord,
    data_now: str,
    sealed: Mapping[str, str],
) -> FeatureMeasures:
    """Return what a version, the one before and Retrained know below their last layers."""
    # Only here: scikit-learn takes a second to load.
    from server.evidence.features.measures import feature_measures

    settings = inherited(RunSettings(data=data_now), before)
    first = settings.model_spec(data)
    earlier = before.card["erased"]
    forget = ForgetSpec("class", classes)
    yardstick = kept(home.cache, row.federation, forget, earlier, settings.training(), sealed)
    device = measuring_device(settings.device)
    judge = Judge(first, data, forget, tuple(earlier["classes"]), device)
    return feature_measures(
        judge,
        (first, from_numpy(registry.load(before)[0])),
        (spec, model),
        None if yardstick is None else (first, yardstick),
    )
