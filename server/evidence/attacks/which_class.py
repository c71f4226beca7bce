"""Which class was forgotten? What the models before and after tell whoever has no example of it.

Both answer examples of other classes. The classes whose probability fell most, in the geometric
mean over these examples, are named. Retrained gives its class away as well: that a class went is
seen by whoever has both models, whatever the method, so that versions from before a request are to
be kept by as few as those who may know of it.

Origin: this project. That two models tell more than one, as membership of single examples, is the
finding of Chen et al. 2021, "When Machine Unlearning Jeopardizes Privacy",
https://arxiv.org/abs/2005.02205

Shapes: N examples, K classes.
"""

import torch
from torch import Tensor


def which_classes(
    before_NK: Tensor,  # noqa: N803
    after_NK: Tensor,  # noqa: N803
    count: int,
) -> tuple[int, ...]:
    """Return the classes that an attacker names, in order of their numbers.

    Args:
        before_NK: Logits of the model before the request, float.
        after_NK: Logits of another model on the same examples.
        count: How many classes to name at most; those that did not fall are not named.
    """
    fell = before_NK.log_softmax(dim=1).mean(dim=0) - after_NK.log_softmax(dim=1).mean(dim=0)
    # A logit of minus infinity in both is a class that neither names.
    fell = torch.nan_to_num(fell, nan=0.0)
    order = fell.argsort(descending=True, stable=True)[:count]
    return tuple(sorted(order[fell[order] > 0].tolist()))
