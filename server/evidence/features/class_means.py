"""The nearest class mean: are a class's features together, and apart from the others'?

Mensink et al., "Distance-Based Image Classification: Generalizing to New Classes at Near-Zero
Cost", TPAMI 2013, https://doi.org/10.1109/TPAMI.2013.83; here with Euclidean distance. It has no
use for the last layer, and nothing is trained.

Shapes: N examples, M examples behind the means, F features.
"""

import torch
from torch import Tensor


def nearest_class_mean(
    features_NF: Tensor,  # noqa: N803
    labels_N: Tensor,  # noqa: N803
    shown_MF: Tensor,  # noqa: N803
    shown_labels_M: Tensor,  # noqa: N803
) -> float | None:
    """Return the share in percent whose nearest class mean is their own class's.

    Args:
        features_NF: float32; to be judged.
        labels_N: int64.
        shown_MF: Features that the means are made of: others than those judged.
        shown_labels_M: Their labels; classes without any have no mean.

    Returns:
        Percent; None where there is nothing to judge, or no mean.
    """
    if not len(labels_N) or not len(shown_labels_M):
        return None
    classes = shown_labels_M.unique()
    means = torch.stack([shown_MF[shown_labels_M == c].mean(dim=0) for c in classes])
    nearest = classes[torch.cdist(features_NF, means).argmin(dim=1)]
    return 100.0 * int((nearest == labels_N).sum()) / len(labels_N)
