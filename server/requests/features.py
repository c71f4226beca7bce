"""What a request's models know below their last layers, measured once and kept in its journal."""

from typing import TYPE_CHECKING, Any

from server.evidence.features.scores import FeatureMeasures, FeatureScores
from server.evidence.measures import Judge
from server.evidence.serial import plain, read
from server.nodes.federation import GridFederation
from server.requests.yardstick import Yardstick, name_of

if TYPE_CHECKING:
    from server.evidence.features.measures import Weights


def measured(
    judge: Judge,
    federation: GridFederation,
    original: "Weights",
    result: "Weights",
    yardstick: Yardstick | None,
) -> FeatureMeasures | None:
    """Return the measures; None without Retrained, test images, or classes to forget.

    Args:
        judge: As Retrained was judged: at full size.
        federation: The request's: its journal keeps them.
        original: Network and weights before the request.
        result: After it.
        yardstick: Retrained.
    """
    data = judge.data
    if yardstick is None or data is None or not len(data.test) or judge.forget.level != "class":
        return None
    # Only here: scikit-learn takes a second to load.
    from server.evidence.features.measures import feature_measures

    retrained = (judge.spec, yardstick.weights)
    found = federation.journal.value(
        "features", lambda: plain(feature_measures(judge, original, result, retrained))
    )
    return read(FeatureMeasures, found, "features")


def of_retrained(
    judge: Judge, federation: GridFederation, original: "Weights", yardstick: Yardstick
) -> FeatureScores | None:
    """Return what a retrained model of the stock knows below its last layer, where it applies.

    Args:
        judge: As it was judged.
        federation: The request's: its journal keeps the measures.
        original: Network and weights before the request.
        yardstick: The retrained model.
    """
    data = judge.data
    if data is None or not len(data.test) or judge.forget.level != "class":
        return None
    from server.evidence.features import measures  # as above

    def measure() -> Any:
        found = measures.of_retrained(judge, original, (judge.spec, yardstick.weights))
        return None if found is None else plain(found)

    found = federation.journal.value(name_of("features-retrained", yardstick.number), measure)
    return None if found is None else read(FeatureScores, found, "features")
