"""Head back: Original's row of the last layer on the new model's features.

Origin: this project. A method that only edits the last layer leaves features that Original's own
row still reads. A high number is therefore a find; a low one is none: features that were rotated,
or come from another training, as Retrained's do, do not fit that row whatever they know.

Shapes: N examples, F features, K classes.
"""

from collections.abc import Sequence

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor


def head_back(
    features_NF: Tensor,  # noqa: N803
    labels_N: Tensor,  # noqa: N803
    last: tuple[Tensor, Tensor | None],
    original: tuple[Tensor, Tensor | None],
    classes: Sequence[int],
) -> float | None:
    """Return the accuracy in percent with the rows of `classes` taken from Original's last layer.

    Args:
        features_NF: The new model's, float32.
        labels_N: int64.
        last: Weight `(K, F)` and bias `(K,)` of the new model's last layer. Not changed.
        original: Those of Original's; either bias may be None, which is 0.
        classes: Whose rows are put back.

    Returns:
        Percent; None without examples, or where Original's rows have another length.
    """
    weight, bias = last[0].clone(), _bias(last)
    if not len(labels_N) or weight.shape != original[0].shape:
        return None
    rows = list(classes)
    weight[rows], bias[rows] = original[0][rows], _bias(original)[rows]
    guessed = (features_NF @ weight.T + bias).argmax(dim=1)
    return 100.0 * int((guessed == labels_N).sum()) / len(labels_N)


def with_rows(
    model: ArrayRecord, original: ArrayRecord, head: str, classes: Sequence[int]
) -> ArrayRecord | None:
    """Return a model with Original's rows of the last layer, to be scored where the examples are.

    Its accuracy on the classes is `head_back` of the features there: whoever has them needs no word
    of what is measured, and answers with counts as for any model.

    Args:
        model: Weights by name. Not changed.
        original: Original's.
        head: Name of the last layer.
        classes: Whose rows are put back.

    Returns:
        None where Original's rows have another length.
    """
    changed = dict(model)
    for name in (f"{head}.weight", f"{head}.bias"):
        if name not in model and name not in original:
            continue
        own = model[name].numpy().copy()
        theirs = original[name].numpy()
        if own.shape != theirs.shape:
            return None
        own[list(classes)] = theirs[list(classes)]
        changed[name] = Array(own)
    return ArrayRecord(changed)


def _bias(layer: tuple[Tensor, Tensor | None]) -> Tensor:
    weight, bias = layer
    return torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias.clone()
