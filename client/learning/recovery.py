"""Descent on little data: recovery after an ascent, and relearning.

Dhasade et al. 2024 (QuickDrop), sections 3.3.1 and 3.4: the synthetic images mixed with as many
original ones (1:1), ordinary SGD.

Departs from the paper: `hold` and `hold_features` add two bounded terms that keep the forgotten
images down while the rest is recovered, so that they do not creep back. `hold_beside` adds one that
no change of all images alike can satisfy. The first layer, whose edges and blobs serve any class,
may be left as it is, and the last, so that they are held down in the features that it reads.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from torch.nn.modules.batchnorm import _BatchNorm

from client.learning.descent import Descent
from client.learning.networks import Classifier
from client.learning.trace import features_and_logits
from client.learning.training import Trained, minibatches, steps_in, still


def known(
    features: Tensor, logits: Tensor, labels: Tensor, *, outputs: float, on_features: float
) -> Tensor:
    """Return the penalty on what the model still knows of forgotten images.

        outputs * mean_i -log(1 - p_i(true class))  +  on_features * mean_i,f feature_if^2

    Both terms are at least 0 and vanish when nothing is known, unlike a negated loss, which has no
    bound.

    Args:
        features: Input of the last layer, `(n, F)`.
        logits: `(n, K)`.
        labels: The forgotten images' classes, `(n,)` int64.
        outputs: Weight of the first term.
        on_features: Weight of the second.
    """
    penalty = torch.zeros((), device=logits.device)
    if outputs:
        # log(1 - p_y) = logsumexp over the other classes - logsumexp over all.
        others = logits.scatter(1, labels[:, None], float("-inf"))
        penalty = penalty + outputs * (logits.logsumexp(1) - others.logsumexp(1)).mean()
    if on_features:
        penalty = penalty + on_features * features.square().mean()
    return penalty


def beside(logits: Tensor, labels: Tensor, kept_logits: Tensor, kept_labels: Tensor) -> Tensor:
    """Return the penalty on forgotten images that have more of their class than look-alikes have.

        mean_i softplus(z_i - sum_k q_ik * mean_(j of class k) z_j),    z the output of i's class

    q_i is what the model takes image i for among the retained classes at hand; look-alikes are
    these classes' images, of those in the step's batch alone. To lower z for all images alike
    changes nothing here, though it empties `known`: q is constant, and the gradient goes to both
    sides, so that a common shift gets none. It raises retained images' output for the class, too.

    Args:
        logits: Of forgotten images, `(n, K)`.
        labels: Their classes, `(n,)` int64.
        kept_logits: Of retained images, `(m, K)`, m > 0.
        kept_labels: Theirs, `(m,)` int64.
    """
    classes, place = kept_labels.unique(return_inverse=True)
    member = nn.functional.one_hot(place, len(classes)).to(kept_logits.dtype)
    means = (member / member.sum(dim=0)).T @ kept_logits  # (C, K)
    taken_for = logits.detach()[:, classes].softmax(dim=1)
    alike = (taken_for @ means).gather(1, labels[:, None])
    return softplus(logits.gather(1, labels[:, None]) - alike).mean()


def descend(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    momentum: float = 0.0,
    held: tuple[Tensor, Tensor] | None = None,
    hold: float = 0.0,
    hold_features: float = 0.0,
    hold_beside: float = 0.0,
    freeze: Iterable[nn.Module] = (),
    head: str = "classifier",
    least: int = 1,
) -> Trained:
    """Train on synthetic images and originals, in place.

    Args:
        model: From inputs to logits `(B, K)`.
        images: Prepared inputs `(n, ...)`.
        labels: `(n,)` int64.
        epochs: Passes over the images.
        batch_size: Images a step.
        lr: eta_theta while recovering.
        generator: Orders the images.
        momentum: Of SGD.
        held: Forgotten images and labels to hold down, or None; each step takes at most
            `batch_size` of them.
        hold: Weight of the bounded output term.
        hold_features: Weight of the feature term.
        hold_beside: Weight of the term beside retained images.
        freeze: Modules of the model that stay as they are, running statistics included.
        head: Name of the last linear layer; needed to hold features down.
        least: Images behind a step, at least; of those held down, too.

    Returns:
        Steps, images (held ones included) and mean loss on `images`.
    """
    model.train()
    still(freeze)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    weights = [p for p in model.parameters() if p.requires_grad]
    descent = Descent(weights, lr=lr, momentum=momentum)
    num_steps = steps_in(epochs, len(labels), batch_size, least=least)
    weighed = hold > 0 or hold_features > 0 or hold_beside > 0
    holding = held is not None and len(held[1]) > 0 and weighed
    chosen = (
        minibatches(len(held[1]), batch_size, num_steps, generator, least=least)
        if held is not None and holding
        else None
    )
    losses: list[Tensor] = []
    samples = 0
    for batch in minibatches(len(labels), batch_size, num_steps, generator, least=least):
        size = len(batch)
        if held is not None and chosen is not None:
            rows = next(chosen)
            features = _features(model, head, images[batch], held[0][rows], norms)
            logits = model.get_submodule(head)(features)
        else:
            logits = model(images[batch])
        loss = cross_entropy(logits[:size], labels[batch])
        losses.append(loss.detach())
        if held is not None and chosen is not None:
            loss = loss + known(
                features[size:],
                logits[size:],
                held[1][rows],
                outputs=hold,
                on_features=hold_features,
            )
            if hold_beside:
                kept = logits[:size]
                if norms:  # both sides under the same statistics, or a common shift would count
                    apart = _under_running(model, head, images[batch], norms)
                    kept = model.get_submodule(head)(apart)
                    samples += size
                penalty = beside(logits[size:], held[1][rows], kept, labels[batch])
                loss = loss + hold_beside * penalty
        samples += len(logits)
        descent.zero_grad()
        loss.backward()
        descent.step()
    mean = float(torch.stack(losses).double().mean()) if losses else 0.0
    return Trained(len(losses), samples, mean)


def _features(
    model: nn.Module, head: str, images: Tensor, held: Tensor, norms: Sequence[nn.Module]
) -> Tensor:
    """Return the features of `images`, then those of `held`, which leaves the former unchanged.

    Without BatchNorm an image's features are its own, and one pass does for both. BatchNorm in
    training mixes what shares a batch, so that there the held images pass by themselves and under
    the running statistics: as the model is judged, and without a trace in these.

    Args:
        model: In training mode.
        head: Name of its last linear layer.
        images: `(n, ...)`.
        held: `(m, ...)`.
        norms: The model's BatchNorms in training mode.
    """
    if not norms:
        return _into(model, head, torch.cat([images, held]))
    features = _into(model, head, images)
    return torch.cat([features, _under_running(model, head, held, norms)])


def _under_running(
    model: nn.Module, head: str, images: Tensor, norms: Sequence[nn.Module]
) -> Tensor:
    """Return features `(n, F)` under the running statistics of `norms`, which stay as they are."""
    for norm in norms:
        norm.eval()
    found = _into(model, head, images)
    for norm in norms:
        norm.train()
    return found


def _into(model: nn.Module, head: str, inputs: Tensor) -> Tensor:
    """Return what goes into the last linear layer, `(B, F)`."""
    if isinstance(model, Classifier):  # which does not run it for nothing
        return model.features(inputs)
    return features_and_logits(model, head, inputs)[0]
