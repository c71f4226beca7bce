"""Curvature of the loss: each parameter's Fisher information, and training that divides by it.

`fisher_diagonal` is the noise's measure in Golatkar, Achille and Soatto, "Eternal Sunshine of the
Spotless Net: Selective Forgetting in Deep Networks", CVPR 2020, https://arxiv.org/abs/1911.04933.

`local_quasi_newton` is Yao et al., "ADAHESSIAN: An Adaptive Second Order Optimizer for Machine
Learning", AAAI 2021, https://arxiv.org/abs/2006.00719, Algorithm 1, with their curvature or with
the empirical Fisher information in its place. Departs from the paper: the moments start at zero in
every local phase, because nothing stays on a node between messages.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, log_softmax

from client.learning.training import Pick, Trained

NUMBERS_AT_ONCE = 2**24  # per-example gradients in memory: 64 MiB of float32


def fisher_diagonal(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information, one number a parameter.

        F = mean_x sum_y p(y | x) (d log p(y | x) / dw)^2

    The expectation over the model's own labels is exact: every class's gradient is taken on every
    image. The model is evaluated, not trained: norms use, and keep, their running statistics.

    Args:
        model: Classifier from images to logits `(B, K)`, left unchanged but for its mode.
        images: Normalised images `(n, C, H, W)` float32, n > 0.

    Returns:
        By parameter name, in its shape and dtype; at least 0.
    """
    model.eval()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def log_likelihood(weights: dict[str, Tensor], image: Tensor, label: int) -> Tensor:
        logits = functional_call(model, (weights, buffers), (image[None],))
        return log_softmax(logits, dim=1)[0, label]

    gradients = vmap(grad(log_likelihood), in_dims=(None, 0, None))
    num_numbers = sum(w.numel() for w in weights.values())
    total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
    for some in images.split(max(1, NUMBERS_AT_ONCE // num_numbers)):
        with torch.no_grad():
            likely = model(some).softmax(dim=1)
        for label in range(likely.shape[1]):
            of_class = gradients(weights, some, label)
            for name, gradient in of_class.items():
                total[name] += torch.einsum("b...,b->...", gradient.square(), likely[:, label])
    return {name: (total[name] / len(images)).to(w.dtype) for name, w in weights.items()}


def hessian_diagonal(
    gradients: Sequence[Tensor], weights: Sequence[Tensor], generator: torch.Generator
) -> list[Tensor]:
    """Return Hutchinson's estimate of the Hessian's diagonal, from one random vector.

        D = z * (H z),  z of random signs: E[D] = diag(H)

    Args:
        gradients: Of the loss in `weights`, with their graph.
        weights: What they were taken in.
        generator: On the CPU; draws the signs.

    Returns:
        Tensors in the weights' shapes.
    """
    signs = [(2.0 * torch.randint(0, 2, w.shape, generator=generator) - 1.0).to(w) for w in weights]
    products = torch.autograd.grad(list(gradients), list(weights), grad_outputs=signs)
    return [(z * product).detach() for z, product in zip(signs, products, strict=True)]


def over_kernels(curvature: Tensor) -> Tensor:
    """Return a convolution's mean of |D| over each kernel's places, as Yao et al., section 3.2.

    Args:
        curvature: D, in a weight's shape; of other layers it is returned as it is.

    Returns:
        A tensor that broadcasts to the weight's shape.
    """
    return curvature.abs().mean(dim=(2, 3), keepdim=True) if curvature.dim() == 4 else curvature


def local_quasi_newton(
    model: nn.Module,
    pick: Pick,
    batches: Iterator[Tensor],
    *,
    lr: float,
    generator: torch.Generator,
    curvature: str = "fisher",
    beta1: float = 0.9,
    beta2: float = 0.999,
    hessian_power: float = 1.0,
    eps: float = 1e-4,
    weight_decay: float = 0.0,
    proximal: float = 0.0,
) -> Trained:
    """Train `model` in place by diagonal quasi-Newton steps.

        m <- beta1 m + (1 - beta1) g          v <- beta2 v + (1 - beta2) D^2
        w <- w - lr * m / (1 - beta1^t) / ((v / (1 - beta2^t))^(k / 2) + eps)

    The curvature D is the batch's squared gradient g^2 ("fisher"), which costs nothing more, or
    Hutchinson's estimate ("hessian"), with which a step costs about three of SGD's.

    Args:
        model: Classifier from images `(B, C, H, W)` to logits `(B, K)`.
        pick: The data.
        batches: Positions of each step's batch.
        lr: Learning rate, positive.
        generator: Draws the signs; used for "hessian" alone.
        curvature: "fisher" or "hessian".
        beta1: Decay of the mean gradient, in [0, 1).
        beta2: Decay of the mean square of the curvature D, in [0, 1).
        hessian_power: k in [0, 1]; 0 leaves the curvature out.
        eps: Added to the divisor, positive.
        weight_decay: Share of lr that every step takes off the weights (decoupled).
        proximal: mu of FedProx; the centre is the model as it comes in.

    Returns:
        Steps, images and mean loss.
    """
    model.train()
    hessian = curvature == "hessian"
    weights = [p for p in model.parameters() if p.requires_grad]
    centre = [w.detach().clone() for w in weights]
    means = [torch.zeros_like(w) for w in weights]
    squares = [torch.zeros_like(w) for w in weights]
    losses: list[Tensor] = []
    samples = 0
    for step, batch in enumerate(batches, start=1):
        images, labels = pick(batch)
        loss = cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, weights, create_graph=hessian)
        if hessian:
            diagonal = hessian_diagonal(gradients, weights, generator)
        else:
            diagonal = [g.square() for g in gradients]
        with torch.no_grad():
            slopes = [
                g + proximal * (w - c) for g, w, c in zip(gradients, weights, centre, strict=True)
            ]
            for w, m, v, g, d in zip(weights, means, squares, slopes, diagonal, strict=True):
                m.lerp_(g, 1 - beta1)
                v.lerp_(over_kernels(d).square().expand_as(v), 1 - beta2)
                divisor = (v / (1 - beta2**step)).pow_(hessian_power / 2).add_(eps)
                w.mul_(1 - lr * weight_decay).addcdiv_(m, divisor, value=-lr / (1 - beta1**step))
        losses.append(loss.detach())
        samples += len(labels)
    mean = float(torch.stack(losses).double().mean()) if losses else 0.0
    return Trained(len(losses), samples, mean)
