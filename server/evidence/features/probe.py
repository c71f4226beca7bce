"""A linear probe: a new last layer, trained on few labelled features.

Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016,
https://arxiv.org/abs/1610.01644. Here logistic regression on the last layer's inputs, each feature
scaled to mean 0 and variance 1 over the labelled examples, so that the penalty means the same in
every model.

Shapes: N examples, M labelled examples, F features.
"""

import warnings

from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

_STEPS = 200  # of L-BFGS; a probe of few examples has long settled


def probed(
    features_NF: Tensor,  # noqa: N803
    labels_N: Tensor,  # noqa: N803
    shown_MF: Tensor,  # noqa: N803
    shown_labels_M: Tensor,  # noqa: N803
) -> float | None:
    """Return the accuracy in percent of a probe. Nothing is drawn: the same inputs give the same.

    Args:
        features_NF: float32; to be judged.
        labels_N: int64.
        shown_MF: Features that the probe is trained on: others than those judged.
        shown_labels_M: Their labels.

    Returns:
        Percent; None where there is nothing to judge, or fewer than two classes to tell apart.
    """
    if not len(labels_N) or len(shown_labels_M.unique()) < 2:
        return None
    mean, spread = shown_MF.mean(dim=0), shown_MF.std(dim=0, correction=0)
    spread = spread.where(spread > 0, 1.0)  # a feature that is always the same tells nothing
    probe = LogisticRegression(max_iter=_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(((shown_MF - mean) / spread).numpy(), shown_labels_M.numpy())
    guessed = probe.predict(((features_NF - mean) / spread).numpy())
    return 100.0 * int((guessed == labels_N.numpy()).sum()) / len(labels_N)
