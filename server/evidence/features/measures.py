"""All measures below the last layer, of the model before a request, its result, and Retrained.

Every model sees the same test images, drawn once. Of each class 50 are *shown*: the class means are
of them, and the probe learns from the first 10; accuracies are on others, and so is the likeness.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn
from torch.nn import functional

from client.learning.models import ModelSpec, traced
from client.seeds import generator
from server.evidence.attacks.which_class import which_classes
from server.evidence.features import found_head
from server.evidence.features.blank_head import blank_rows
from server.evidence.features.class_means import nearest_class_mean
from server.evidence.features.head_back import head_back
from server.evidence.features.layers import features, layer_outputs
from server.evidence.features.likeness import linear_cka, neighbour_agreement
from server.evidence.features.matched_head import matching
from server.evidence.features.probe import probed
from server.evidence.features.scores import FEATURES, FeatureMeasures, FeatureScores, Layer
from server.evidence.features.turned_head import turn
from server.evidence.measures import Judge
from server.evidence.scores import Curve
from server.evidence.serial import read

SHOWN: Final = 50  # images of a class behind its mean, at most half of them
LABELLED: Final = 10  # of these, what the probe learns from
MEASURED: Final = 1000  # images of the forgotten classes that accuracies are on, at most
COMPARED: Final = 200  # images of either side on which two models are compared
ALIGNED: Final = 1000  # images of the retained classes on which two bases are, at most

Weights = tuple[ModelSpec, ArrayRecord]


@dataclass(frozen=True)
class _Drawn:
    """Positions in the test part; `forgotten` are no part of `shown`, and `labelled` are."""

    forgotten: Tensor
    shown: Tensor
    labelled: Tensor
    retained: Tensor
    aligned: Tensor


@dataclass(frozen=True)
class _First:
    """Original's last layer, and its features of the images that bases are aligned on."""

    last: found_head.Layer
    features: Tensor


def feature_measures(
    judge: Judge, original: Weights, result: Weights, retrained: Weights | None
) -> FeatureMeasures:
    """Return what three models know of the forgotten classes below their last layers.

    Args:
        judge: Says what is forgotten and retained, and has the test images.
        original: Network and weights before the request.
        result: After it; channels may have gone.
        retrained: The yardstick's; without it there is no likeness.

    Returns:
        The measures; the same inputs give the same numbers.
    """
    given = [weights for weights in (original, result, retrained) if weights is not None]
    if judge.forget.level != "class" or any(traced(spec).head is None for spec, _ in given):
        return FeatureMeasures(why_not="no-last-layer")
    drawn = _drawn(judge)
    if drawn is None:
        return FeatureMeasures(why_not="too-few-images")
    torch.set_num_threads(1)
    yardstick = None if retrained is None else _outputs(judge, retrained, drawn)
    first = _first(judge, original, drawn)

    def scores(weights: Weights, *, compare: bool = True) -> FeatureScores:
        return _scores(judge, weights, first, drawn, yardstick if compare else None)

    return FeatureMeasures(
        original=replace(scores(original), named=()),
        retrained=None if retrained is None else scores(retrained, compare=False),
        result=scores(result),
        examples=len(drawn.forgotten),
    )


def of_retrained(judge: Judge, original: Weights, retrained: Weights) -> FeatureScores | None:
    """Return what one retrained model knows below its last layer: what `feature_measures` gives.

    None where the measures do not apply.
    """
    heads = [traced(spec).head for spec, _ in (original, retrained)]
    drawn = None
    if judge.forget.level == "class" and None not in heads:
        drawn = _drawn(judge)
    if drawn is None:
        return None
    torch.set_num_threads(1)
    return _scores(judge, retrained, _first(judge, original, drawn), drawn, None)


def _scores(
    judge: Judge,
    weights: Weights,
    original: _First,
    drawn: _Drawn,
    yardstick: dict[str, Tensor] | None,
) -> FeatureScores:
    spec, head = weights[0], str(traced(weights[0]).head)
    classes = judge.forget.classes
    model = judge.model(weights[1], spec)
    last = _on_cpu(cast(nn.Linear, model.get_submodule(head)))
    positions = torch.cat([drawn.forgotten, drawn.shown])
    found, labels = _features(judge, weights, positions, model)
    count = len(drawn.forgotten)
    measured, wanted = found[:count], labels[:count]
    shown, shown_labels = found[count:], labels[count:]
    few = torch.isin(drawn.shown, drawn.labelled)
    layers, forget, retain = _likeness(judge, weights, drawn, yardstick)
    with torch.no_grad():
        back = head_back(
            measured,
            wanted,
            last,
            original.last,
            classes,
        )
        others = _features(judge, weights, drawn.aligned, model)[0]
        named = which_classes(
            functional.linear(original.features, *original.last),
            functional.linear(others, *last),
            len(classes),
        )
        shared = found_head.Shown(
            others,
            original.features,
            last,
            original.last,
            classes,
            judge.retained,
        )
        matched = None
        if shared.suited and shared.in_order:
            matched = found_head.accuracy(measured, wanted, shared, matching)
        turned = found_head.accuracy(measured, wanted, shared, turn)
    means = nearest_class_mean(measured, wanted, shown, shown_labels)
    probe = probed(measured, wanted, shown[few], shown_labels[few])
    blank_rows(model, head, classes, judge.retained)
    curve = judge.relearned(model)
    return FeatureScores(
        head_back=back,
        blank_head=None if curve is None else read(Curve, curve, "relearning curve"),
        class_means=means,
        probe=probe,
        layers=layers,
        neighbours_forget=forget,
        neighbours_retain=retain,
        matched_head=matched,
        turned_head=turned,
        named=named,
    )


def _likeness(
    judge: Judge, weights: Weights, drawn: _Drawn, yardstick: dict[str, Tensor] | None
) -> tuple[tuple[Layer, ...], float | None, float | None]:
    """Return the likeness to Retrained by layer, and the neighbours' agreement on either side."""
    if yardstick is None:
        return (), None, None
    own = _outputs(judge, weights, drawn)
    count = len(drawn.forgotten[:COMPARED])
    layers = tuple(
        Layer(
            name,
            linear_cka(own[name][:count], yardstick[name][:count]),
            linear_cka(own[name][count:], yardstick[name][count:]),
        )
        for name in own
        if name in yardstick
    )
    mine, theirs = own[FEATURES], yardstick[FEATURES]
    return (
        layers,
        neighbour_agreement(mine[:count], theirs[:count]),
        neighbour_agreement(mine[count:], theirs[count:]),
    )


def _outputs(judge: Judge, weights: Weights, drawn: _Drawn) -> dict[str, Tensor]:
    """Return the layers' outputs on the forget images that are compared, then the retain images."""
    spec, arrays = weights
    positions = torch.cat([drawn.forgotten[:COMPARED], drawn.retained])
    return layer_outputs(
        judge.model(arrays, spec),
        str(traced(spec).head),
        judge.picker(positions),
        len(positions),
        batch_size=judge.batch_size(spec),
    )


def _first(judge: Judge, original: Weights, drawn: _Drawn) -> _First:
    spec, arrays = original
    model = judge.model(arrays, spec)
    last = _on_cpu(cast(nn.Linear, model.get_submodule(str(traced(spec).head))))
    return _First(last, _features(judge, original, drawn.aligned, model)[0])


def _features(
    judge: Judge, weights: Weights, positions: Tensor, model: nn.Module
) -> tuple[Tensor, Tensor]:
    """Return features and labels of some test images; `model` has the weights."""
    spec, head = weights[0], str(traced(weights[0]).head)
    pick = judge.picker(positions)
    return features(model, head, pick, len(positions), batch_size=judge.batch_size(spec))


def _drawn(judge: Judge) -> _Drawn | None:
    """Return which test images are used, the same for all models; None if they are too few."""
    if judge.data is None:
        return None
    labels = judge.data.test.labels
    classes: Sequence[int] = judge.forget.classes
    draws = generator(0, "feature set", *map(str, sorted(classes)))
    forgotten: list[Tensor] = []
    retained: list[Tensor] = []
    shown, labelled = [], []
    for label in sorted({*classes, *judge.retained}):
        positions = (labels == label).nonzero().flatten()
        positions = positions[torch.randperm(len(positions), generator=draws)]
        count = min(SHOWN, len(positions) // 2)
        shown.append(positions[:count])
        labelled.append(positions[: min(LABELLED, count)])
        (forgotten if label in classes else retained).append(positions[count:])
    if sum(map(len, forgotten)) < 2 or sum(map(len, retained)) < 2:
        return None
    left, right = torch.cat(forgotten), torch.cat(retained)
    left = left[torch.randperm(len(left), generator=draws)][:MEASURED]
    right = right[torch.randperm(len(right), generator=draws)]
    return _Drawn(left, torch.cat(shown), torch.cat(labelled), right[:COMPARED], right[:ALIGNED])


def _on_cpu(layer: nn.Linear) -> found_head.Layer:
    """Return weight and bias as they are now, on the CPU, where features are."""
    bias = layer.bias
    return layer.weight.detach().cpu(), None if bias is None else bias.detach().cpu()
