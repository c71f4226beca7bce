"""How well a model does: accuracy and loss, class by class, and how fast it relearns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.learning.training import Loss, local_sgd, minibatches

BATCH: Final = 100  # images a pass; larger ones only cost memory on a CPU


@dataclass(frozen=True)
class Scores:
    """Sums by class, so that any set of classes can be read from them and scores can be added.

    Attributes:
        correct: Examples whose highest logit is their label, int64 `(K,)`.
        count: Examples, int64 `(K,)`.
        loss: Summed cross-entropy in nats, float64 `(K,)`.
    """

    correct: Tensor
    count: Tensor
    loss: Tensor

    def accuracy(self, classes: Sequence[int] | None = None) -> float | None:
        """Return top-1 accuracy in percent over `classes` (None for all), None without examples."""
        chosen = slice(None) if classes is None else list(classes)
        count = int(self.count[chosen].sum())
        return 100.0 * int(self.correct[chosen].sum()) / count if count else None

    def mean_loss(self) -> float | None:
        """Return the mean cross-entropy in nats, None without examples."""
        count = int(self.count.sum())
        return float(self.loss.sum()) / count if count else None

    def __add__(self, other: "Scores") -> "Scores":
        return Scores(
            self.correct + other.correct, self.count + other.count, self.loss + other.loss
        )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    pick: Callable[[Tensor], tuple[Tensor, Tensor]],
    num_examples: int,
    num_classes: int,
    *,
    batch_size: int = BATCH,
    loss: Loss | None = None,
    score: Loss | None = None,
) -> Scores:
    """Return the model's scores on the examples `0 .. num_examples - 1` of `pick`.

    Args:
        model: From inputs `(B, ...)` to outputs `(B, K)`.
        pick: From positions to images and labels.
        num_examples: Zero gives zero counts.
        num_classes: K.
        batch_size: Images a pass.
        loss: Of each example, where the task has one of its own: then all are of one class.
        score: Of each example, in [0, 1], where the task has one of its own.
    """
    was_training = model.training
    model.eval()
    correct = torch.zeros(num_classes, dtype=torch.int64)
    count = torch.zeros(num_classes, dtype=torch.int64)
    total = torch.zeros(num_classes, dtype=torch.float64)
    for batch in torch.arange(num_examples).split(batch_size):
        images, labels = pick(batch)
        logits = model(images).float()
        if loss is None or score is None:
            right = (logits.argmax(dim=1) == labels).cpu()
            losses = cross_entropy(logits, labels, reduction="none").double().cpu()
            home = labels.cpu()
        else:
            right = (score(logits, labels) >= 0.5).cpu()  # `round` would take a half for 0
            losses = loss(logits, labels).double().cpu()
            home = torch.zeros(len(labels), dtype=torch.int64)
        correct += torch.bincount(home, right.double(), minlength=num_classes).long()
        count += torch.bincount(home, minlength=num_classes)
        total += torch.bincount(home, losses, minlength=num_classes)
    model.train(was_training)
    return Scores(correct, count, total)


@torch.no_grad()
def losses_of(
    model: nn.Module,
    pick: Callable[[Tensor], tuple[Tensor, Tensor]],
    num_examples: int,
    *,
    batch_size: int = BATCH,
    loss: Loss | None = None,
) -> Tensor:
    """Return the loss of each of the examples `0 .. num_examples - 1`, float64 `(n,)`.

    Args:
        model: From inputs `(B, ...)` to outputs `(B, K)`.
        pick: From positions to images and labels.
        num_examples: n.
        batch_size: Images a pass.
        loss: Of each example, where the task has one of its own; cross-entropy in nats otherwise.
    """
    was_training = model.training
    model.eval()
    found = [torch.empty(0, dtype=torch.float64)]
    for batch in torch.arange(num_examples).split(batch_size):
        inputs, wanted = pick(batch)
        logits = model(inputs).float()
        each = (
            cross_entropy(logits, wanted, reduction="none")
            if loss is None
            else loss(logits, wanted)
        )
        found.append(each.double().cpu())
    model.train(was_training)
    return torch.cat(found)


def relearning_curve(
    model: nn.Module,
    pick: Callable[[Tensor], tuple[Tensor, Tensor]],
    num_examples: int,
    forget_accuracy: Callable[[nn.Module], float],
    *,
    steps: Sequence[int],
    lr: float,
    batch_size: int,
    generator: torch.Generator,
) -> list[float]:
    """Return the forget accuracy after k SGD steps on a small fixed set, for every k in `steps`.

    A model that only hides a class gives it back after a few steps; one that never saw it needs
    as long as Retrained does.

    Args:
        model: Trained in place: pass a copy.
        pick: The relearning set: some images of the forgotten classes among others.
        num_examples: Its size.
        forget_accuracy: Accuracy in percent on forget data that are not in the set.
        steps: Increasing counts of steps, for instance 5, 10, ..., 30.
        lr: Learning rate.
        batch_size: Images a step.
        generator: Orders the images; the same for all models that are compared.
    """
    batches = minibatches(num_examples, batch_size, max(steps), generator)
    curve = []
    done = 0
    for target in steps:
        chunk = [next(batches) for _ in range(target - done)]
        local_sgd(model, pick, iter(chunk), lr=lr)
        done = target
        curve.append(forget_accuracy(model))
    return curve
