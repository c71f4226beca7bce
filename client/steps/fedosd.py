"""The gradient of a node's data, as FedOSD needs it: to forget one side, or to keep the other."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softmax

from client.messages import CLASS_3, Common, Declaration
from client.node import Answer, Node, ReplyArrays, answers
from client.settings import at_least, one_of, setting
from client.wire import forms


@dataclass(frozen=True, kw_only=True)
class Gradient(Common):
    """Gradient of the mean loss on one side of the data; zeros where it has one example.

    Of the unlearning cross-entropy on what is to be forgotten, of cross-entropy on the rest.
    """

    message: ClassVar = Declaration(
        "train.gradient",
        example={"side": "forget", **CLASS_3},
        arrays="parameters",
        metrics={"samples": "scalar", "loss": "scalar"},
    )

    side: str = setting(one_of("retain", "forget"))
    batch_size: int = setting(at_least(1), 256)  # images at once; the gradient is that of all


@answers(Gradient)
def gradient(node: Node, settings: Gradient) -> Answer:
    """Take the gradient on all examples of a side; norm layers keep their running statistics."""
    part = node.site.train.where(node.side(settings.side, node.site.train.labels))
    model = node.model().eval()
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    answer = ReplyArrays(sums, forms(parameters))
    if len(part) < node.least:  # of one example it would be that example's own gradient
        return {"num-examples": 0, "samples": 0, "loss": 0.0}, answer
    pick = node.pick(part)
    total = 0.0
    for batch in torch.arange(len(part)).split(settings.batch_size):
        images, labels = pick(batch)
        each = cross_entropy if settings.side == "retain" else unlearning_cross_entropy
        loss = each(model(images), labels, reduction="sum") / len(part)
        total += float(loss.detach())
        for known, new in zip(
            sums.values(), torch.autograd.grad(loss, list(parameters.values())), strict=True
        ):
            known += new
    return {"num-examples": len(part), "samples": len(part), "loss": total}, answer


def unlearning_cross_entropy(logits: Tensor, labels: Tensor, *, reduction: str) -> Tensor:
    """Return UCE = -log(1 - p_y / 2), which falls as the true class's probability falls.

    It lies in [0, log 2], and its gradient is bounded.

    Args:
        logits: `(B, K)`.
        labels: `(B,)` int64.
        reduction: "sum" or "none".

    Source: Pan et al., AAAI 2025, https://arxiv.org/abs/2412.20200
    """
    likely = softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    each = -torch.log1p(-likely / 2)
    return each.sum() if reduction == "sum" else each
