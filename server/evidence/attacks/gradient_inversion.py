"""Gradient inversion: the example behind an upload, from the upload and the model that it changed.

Geiping, Bauermeister, Droege and Moeller, "Inverting Gradients - How easy is it to break privacy in
federated learning?", NeurIPS 2020, https://arxiv.org/abs/2003.14053: cosine distance to the
gradient that was seen, total variation, signed steps of Adam. Huang et al., "Evaluating Gradient
Inversion Attacks and Defenses in Federated Learning", NeurIPS 2021,
https://arxiv.org/abs/2112.00059 (GradAttack), have the same objective. Of an upload that holds some
rows of some tensors alone, those are compared and nothing else (Xu et al. 2024,
https://arxiv.org/abs/2406.12516, figure 11).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Rows = Mapping[str, Tensor]
"""By parameter: positions along dimension 0 that an upload holds, int64 `(k,)`."""


def gradient_of(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    rows: Rows | None = None,
    *,
    graph: bool = False,
) -> list[Tensor]:
    """Return what one SGD step on examples tells, divided by its learning rate and negated.

    Args:
        network: From `(n, ...)` to logits `(n, K)`.
        inputs: The examples.
        labels: Their classes, int64 `(n,)`.
        rows: What the upload holds; all of every parameter if None.
        graph: Whether it is to be differentiated again.

    Returns:
        A tensor a parameter that the upload holds anything of, in the network's order.
    """
    named = {
        name: parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (rows is None or name in rows)
    }
    loss = cross_entropy(network(inputs), labels)
    found = torch.autograd.grad(loss, list(named.values()), create_graph=graph)
    if rows is None:
        return list(found)
    return [g.index_select(0, rows[name]) for name, g in zip(named, found, strict=True)]


def inverted(
    network: nn.Module,
    seen: list[Tensor],
    labels: Tensor,
    low: Tensor,
    high: Tensor,
    draws: torch.Generator,
    *,
    rows: Rows | None = None,
    steps: int = 1000,
    lr: float = 0.1,
    smoothness: float = 1e-2,
) -> Tensor:
    """Return examples whose gradient is as the one that was seen, `(n, C, H, W)` within the bounds.

    Args:
        network: As it was before the step; its statistics of batches, if it has any, stay.
        seen: As `gradient_of` returns it for the same `rows`.
        labels: The examples' classes, `(n,)`: for one example they can be read off the last layer
            of a whole upload.
        low: Least value of each entry, `(1, C, H, W)`.
        high: Largest value.
        draws: Where the start comes from.
        rows: What the upload holds.
        steps: Of Adam; its rate falls tenfold after 3/8, 5/8 and 7/8 of them, as in the paper.
        lr: First rate, as a share of an entry's range.
        smoothness: Weight of total variation.

    Raises:
        ValueError: If the upload holds nothing.
    """
    if not seen:
        raise ValueError("seen must hold a gradient of one parameter at least, got none")
    network.eval()
    span = high - low
    shape = (len(labels), *low.shape[1:])
    share = torch.rand(shape, generator=draws).to(low).requires_grad_()
    optimizer = torch.optim.Adam([share], lr=lr)
    falls = [steps * eighths // 8 for eighths in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.1)
    wanted = _norm(seen)
    for _ in range(steps):
        own = gradient_of(network, low + share * span, labels, rows, graph=True)
        products = torch.stack([(a * b).sum() for a, b in zip(own, seen, strict=True)])
        cost = 1 - products.sum() / (_norm(own) * wanted).clamp_min(1e-12)
        cost = cost + smoothness * _variation(share)
        (gradient,) = torch.autograd.grad(cost, share)
        share.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            share.clamp_(0, 1)
    return (low + share * span).detach()


def _norm(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.square().sum() for part in parts]).sum().sqrt()


def _variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours, in both directions."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return across + down
