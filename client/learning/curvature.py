"""Curvature of the loss: each parameter's Fisher information, and training that divides by it.

`fisher_diagonal` is the noise's measure in Golatkar, Achille and Soatto, "Eternal Sunshine of the
Spotless Net: Selective Forgetting in Deep Networks", CVPR 2020, https://arxiv.org/abs/1911.04933.

`local_quasi_newton` is Yao et al., "ADAHESSIAN: An Adaptive Second Order Optimizer for Machine
Learning", AAAI 2021, https://arxiv.org/abs/2006.00719, Algorithm 1, with their curvature or with
the empirical Fisher information in its place. Departs from the paper: the moments start at zero in
every local phase, because nothing stays on a node between messages.

Networks may be of any kind. Of what is frozen nothing is measured.

Shapes: B batch, b examples at once, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, log_softmax
from torch.nn.modules.conv import _ConvNd

from client.learning.attention import ByFormula, differentiated_twice
from client.learning.trace import train_mode
from client.learning.training import Pick, Trained

NUMBERS_AT_ONCE = 2**24  # per-example gradients in memory: 64 MiB of float32

OfOne = Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]
"""From weights by name, an example `(...)` and its label `()` to a number."""


def example_gradients(
    of_one: OfOne,
) -> Callable[[dict[str, Tensor], Tensor, Tensor], dict[str, Tensor]]:
    """Return a function from weights and examples to each example's own gradients.

    Of all examples in one pass (`torch.func.vmap`). Where a network has operations that cannot be
    taken so, such as an LSTM or a branch on values, by one backward pass an example, from then on.

    Args:
        of_one: What is differentiated in its first argument.

    Returns:
        From weights, examples `(b, ...)`, b > 0, and labels `(b,)` to gradients by name, with a
        first dimension of b.
    """
    # What is random in training, such as dropout, is each example's own.
    in_one_pass = vmap(grad(of_one), in_dims=(None, 0, 0), randomness="different")
    apart = False

    def gradients(weights: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        nonlocal apart
        if not apart:
            try:
                with ByFormula():  # torch takes its own attention one by one, with a warning
                    return in_one_pass(weights, inputs, labels)  # type: ignore[no-any-return]
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError):  # another mistake shows again below
                apart = True
        each = [_of_example(of_one, weights, *one) for one in zip(inputs, labels, strict=True)]
        return {name: torch.stack([own[name] for own in each]) for name in weights}

    return gradients


def _of_example(
    of_one: OfOne, weights: dict[str, Tensor], example: Tensor, label: Tensor
) -> dict[str, Tensor]:
    """Return one example's gradients by a backward pass; zeros where a weight took no part."""
    with torch.enable_grad():
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        found = torch.autograd.grad(
            of_one(leaves, example, label), list(leaves.values()), allow_unused=True
        )
    return {
        name: torch.zeros_like(weight) if g is None else g.to_dense() if g.is_sparse else g
        for (name, weight), g in zip(weights.items(), found, strict=True)
    }


def parts_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a model's trainable parameters by name, detached, and its other tensors."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return trained, fixed | dict(model.named_buffers())


def fisher_diagonal(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information, one number a parameter.

        F = mean_x sum_y p(y | x) (d log p(y | x) / dw)^2

    The expectation over the model's own labels is exact: every class's gradient is taken on every
    image. The model is evaluated, not trained: norms use, and keep, their running statistics.

    Args:
        model: From inputs to logits `(B, K)`, left unchanged but for its mode.
        images: Prepared inputs `(n, ...)`, n > 0.

    Returns:
        By name of the trainable parameters, in their shape and dtype; at least 0.
    """
    model.eval()
    weights, fixed = parts_of(model)
    if not weights:
        return {}

    def log_likelihood(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (weights, fixed), (image[None],))
        return log_softmax(logits, dim=1)[0].gather(0, label[None])[0]

    gradients = example_gradients(log_likelihood)
    num_numbers = sum(w.numel() for w in weights.values())
    total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
    for some in images.split(max(1, NUMBERS_AT_ONCE // num_numbers)):
        with torch.no_grad():
            likely = model(some).softmax(dim=1)
        for label in range(likely.shape[1]):
            of_class = gradients(weights, some, torch.full((len(some),), label).to(some.device))
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
        Tensors in the weights' shapes; zeros where a gradient does not depend on any weight.

    Raises:
        BadSetting: If a part of the network cannot be differentiated twice.
    """
    signs = [(2.0 * torch.randint(0, 2, w.shape, generator=generator) - 1.0).to(w) for w in weights]
    moving = [(g, z) for g, z in zip(gradients, signs, strict=True) if g.requires_grad]
    if not moving:
        return [torch.zeros_like(w) for w in weights]
    with differentiated_twice():
        products = torch.autograd.grad(
            [g for g, _ in moving],
            list(weights),
            grad_outputs=[z for _, z in moving],
            materialize_grads=True,
        )
    return [(z * product).detach() for z, product in zip(signs, products, strict=True)]


def over_kernels(curvature: Tensor) -> Tensor:
    """Return a convolution's mean of |D| over each kernel's places, as Yao et al., section 3.2.

    Args:
        curvature: D, in the shape of a convolution's weight, of one place dimension or more; of
            two dimensions it is returned as it is.

    Returns:
        A tensor that broadcasts to the weight's shape.
    """
    places = tuple(range(2, curvature.dim()))
    return curvature.abs().mean(dim=places, keepdim=True) if places else curvature


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
        model: From inputs `(B, ...)` to logits `(B, K)`. What is frozen stays as it is.
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

    Raises:
        BadSetting: If "hessian" was asked for and a part of the network cannot be differentiated
            twice.
    """
    train_mode(model)
    hessian = curvature == "hessian"
    kernels = {m.weight for m in model.modules() if isinstance(m, _ConvNd)}
    weights = [p for p in model.parameters() if p.requires_grad]
    centre = [w.detach().clone() for w in weights]
    means = [torch.zeros_like(w) for w in weights]
    squares = [torch.zeros_like(w) for w in weights]
    losses: list[Tensor] = []
    samples = 0
    for step, batch in enumerate(batches, start=1):
        images, labels = pick(batch)
        with ByFormula() if hessian else nullcontext():
            loss = cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, weights, create_graph=hessian, materialize_grads=True)
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
                seen = over_kernels(d) if w in kernels else d
                v.lerp_(seen.square().expand_as(v), 1 - beta2)
                divisor = (v / (1 - beta2**step)).pow_(hessian_power / 2).add_(eps)
                w.mul_(1 - lr * weight_decay).addcdiv_(m, divisor, value=-lr / (1 - beta1**step))
        losses.append(loss.detach())
        samples += len(labels)
    mean = float(torch.stack(losses).double().mean()) if losses else 0.0
    return Trained(len(losses), samples, mean)
