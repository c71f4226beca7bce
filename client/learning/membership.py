"""How much more a model likes what it was trained on than what it was not.

Yeom et al., "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", CSF 2018,
https://arxiv.org/abs/1709.01604: the loss alone tells members from others, as far as a model is
overfitted. Over all thresholds that is the area under the ROC curve: the share of pairs in which
the member has the lower loss.
"""

import torch
from torch import Tensor


def beaten(members: Tensor, others: Tensor) -> Tensor:
    """Return which share of the others each member's signal is above, `(m,)`; ties count half.

    Args:
        members: The signal of each, higher for members, `(m,)`.
        others: `(n,)`, at least one.
    """
    ordered, asked = others.double().sort().values, members.double()
    below = torch.searchsorted(ordered, asked, right=False)
    not_above = torch.searchsorted(ordered, asked, right=True)
    return (below + not_above).double() / (2 * len(others))
