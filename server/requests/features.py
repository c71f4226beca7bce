"""What a request's models know below their last layers, measured once and kept in its journal.

Without a federation it is measured on the coordinator's test images alone, and kept nowhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from client.learning.models import traced
from server.evidence.features.head_back import with_rows
from server.evidence.features.scores import FeatureMeasures, FeatureScores
from server.evidence.measures import Judge
from server.evidence.serial import plain, read
from server.evidence.stock import Retraining
from server.nodes.federation import GridFederation
from server.requests.yardstick import Yardstick, name_of

if TYPE_CHECKING:
    from server.evidence.features.measures import Weights


def measured(
    judge: Judge,
    federation: GridFederation | None,
    original: "Weights",
    result: "Weights",
    yardstick: Yardstick | None,
) -> FeatureMeasures | None:
    """Return the measures; None without Retrained, or where no class is to go.

    Where the coordinator has no test images, its clients measure what needs nothing but counts: the
    accuracy with Original's last layer put back.

    Args:
        judge: As Retrained was judged: at full size.
        federation: The request's: its journal keeps them. None outside any request.
        original: Network and weights before the request.
        result: After it.
        yardstick: Retrained.
    """
    by = judge.of_classes
    if yardstick is None or by is None:
        return None
    found = _measured(by, federation, original, result, yardstick)
    if found is None or judge.forget.level == "class":
        return found
    return replace(found, classes=judge.alone)


def _measured(
    judge: Judge,
    federation: GridFederation | None,
    original: "Weights",
    result: "Weights",
    yardstick: Yardstick,
) -> FeatureMeasures | None:
    if _without_images(judge):
        if federation is None:
            return None
        classes = judge.forget.classes
        before = at_clients(federation, original, original, classes)
        if before is None:
            return None
        return FeatureMeasures(
            original=before,
            retrained=at_clients(federation, original, (judge.spec, yardstick.weights), classes),
            result=at_clients(federation, original, result, classes),
        )
    # Only here: scikit-learn takes a second to load.
    from server.evidence.features.measures import feature_measures

    retrained = (judge.spec, yardstick.weights)
    found = _kept(
        federation,
        "features",
        lambda: plain(feature_measures(judge, original, result, retrained)),
    )
    return read(FeatureMeasures, found, "features")


def of_retrained(
    judge: Judge, federation: GridFederation | None, original: "Weights", yardstick: Yardstick
) -> FeatureScores | None:
    """Return what a retrained model of the stock knows below its last layer, where it applies.

    Args:
        judge: As it was judged.
        federation: The request's: its journal keeps the measures. None outside any request.
        original: Network and weights before the request.
        yardstick: The retrained model.
    """
    by = judge.of_classes
    if by is None:
        return None
    judge = by
    if _without_images(judge):
        if federation is None:
            return None
        known = (judge.spec, yardstick.weights)
        return at_clients(federation, original, known, judge.forget.classes)
    from server.evidence.features import measures  # as above

    def measure() -> Any:
        found = measures.of_retrained(judge, original, (judge.spec, yardstick.weights))
        return None if found is None else plain(found)

    found = _kept(federation, name_of("features-retrained", yardstick.number), measure)
    return None if found is None else read(FeatureScores, found, "features")


def with_features(
    judge: Judge,
    federation: GridFederation | None,
    original: "Weights",
    yardstick: Yardstick,
    found: FeatureMeasures | None = None,
) -> Retraining:
    """Return what was measured of a retrained model, below its last layer as well.

    `found` are the request's measures, in which number 0 is Retrained already.
    """
    if found is not None and yardstick.number == 0:
        return replace(yardstick.measured, features=found.retrained)
    below = of_retrained(judge, federation, original, yardstick)
    return replace(yardstick.measured, features=below)


def _kept(federation: GridFederation | None, name: str, measure: Callable[[], Any]) -> Any:
    """Return what was measured, from the journal where there is one that has it."""
    return measure() if federation is None else federation.journal.value(name, measure)


def _without_images(judge: Judge) -> bool:
    return judge.data is None or not len(judge.data.test)


def at_clients(
    federation: GridFederation, original: "Weights", model: "Weights", classes: Sequence[int]
) -> FeatureScores | None:
    """Return what clients measure of a model below its last layer, on what they hold out.

    They score a model of which the coordinator has changed the last layer, and answer with counts
    by class, under each policy's least number as always; in sums as well. Under noise every answer
    costs of what may be told: they are not asked.

    Args:
        federation: The request's: its journal keeps the answers.
        original: Network and weights before the request.
        model: The one that is measured.
        classes: Whose rows are put back; of clients, of which only they hold examples.

    Returns:
        None under noise, or where a network does not end in one linear layer.
    """
    heads = {traced(spec).head for spec, _ in (original, model)}
    if len(heads) > 1 or None in heads or federation.common.get("noise_multiplier"):
        return None
    changed = with_rows(model[1], original[1], str(heads.pop()), classes)
    if changed is None:
        return FeatureScores()
    return FeatureScores(head_back=federation.heldout(changed, model[0]).forget.accuracy(classes))
