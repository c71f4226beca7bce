"""Stochastic gradient ascent on what is to be forgotten."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.errors import BadSetting, EffaceError
from client.learning import ascent
from client.learning.private import private_sgd
from client.learning.synthetic import random_subset
from client.learning.training import steps_in, still
from client.messages import CLASS_3, WORK, Common, Declaration
from client.node import Answer, Node, answers, worked
from client.settings import ANY, at_least, list_of, one_of, positive, setting


@dataclass(frozen=True, kw_only=True)
class Ascend(Common):
    """Stochastic gradient ascent on the node's forget data."""

    message: ClassVar = Declaration(
        "train.ascend",
        example={"lr": 0.02, **CLASS_3},
        arrays="model",
        metrics=WORK,
        sums="mean",
        noised=True,
    )

    data: str = setting(one_of("synthetic", "subset", "original"), "synthetic")
    epochs: int = setting(at_least(1), 1)
    batch_size: int = setting(at_least(1), 64)
    lr: float = setting(positive())
    # A class's depth; none for all the epochs.
    target_losses: list[float] = setting(
        list_of(float, "losses from 0 up", lambda x: 0 <= x <= 1e6), []
    )
    clip: float = setting(at_least(0), 0.0)  # longest gradient of a step; 0 for any
    # Farthest from the weights that came, as a share of their length; 0 for any.
    radius: float = setting(at_least(0), 0.0)
    freeze_head: bool = setting(ANY, False)  # ascend in all layers but the last
    freeze_stem: bool = setting(ANY, False)  # and, or, in all but the first

    def why_not_noised(self) -> str | None:
        """Return why this message cannot be answered under noise, None if it can."""
        if self.data == "synthetic":
            return "data must not be synthetic under noise: such images are made without"
        if self.target_losses:
            return (
                f"target-losses must be none under noise, got {len(self.target_losses)}: when a "
                "loss is reached tells of it"
            )
        if self.clip or self.radius:
            return "clip and radius must be 0 under noise: gradients are clipped for it one by one"
        return super().why_not_noised()


@answers(Ascend)
def ascend(node: Node, settings: Ascend) -> Answer:
    """Raise the loss on what is to be forgotten."""
    if settings.data == "original":
        forget, _ = node.masks(node.site.train.labels)
        images, labels = node.examples(node.site.train.where(forget))
    else:
        held = node.synthetic() if settings.data == "synthetic" else random_subset(node)
        forget, _ = node.masks(held.labels.cpu())
        chosen = held.where(forget.to(node.device))
        chosen = node.used(chosen)
        images, labels = chosen.images, chosen.labels
    if settings.target_losses and len(settings.target_losses) != settings.model_classes:
        raise BadSetting(
            f"target-losses must hold {settings.model_classes} numbers or none, got "
            f"{len(settings.target_losses)}"
        )
    if settings.secure is not None and not len(labels):
        return worked(0), None  # of a sum nobody knows who holds what goes: all are asked
    least = node.policy.answers.min_batch
    num_steps = steps_in(settings.epochs, len(labels), settings.batch_size, least=least)
    node.allow(num_steps)
    model = node.model()
    if node.noise_multiplier:
        return _under_noise(node, settings, model, (images, labels), num_steps)
    done = ascent.ascend(
        model,
        images,
        labels,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        generator=node.draws(),
        target_losses=settings.target_losses,
        freeze=node.still(model, head=settings.freeze_head, stem=settings.freeze_stem),
        loss=node.loss,
        least=least,
        clip=settings.clip,
        radius=settings.radius,
    )
    return worked(len(labels), done), model


def _under_noise(
    node: Node, settings: Ascend, model: nn.Module, data: tuple[Tensor, Tensor], num_steps: int
) -> Answer:
    """Ascend by noised gradients, for all the epochs."""
    images, labels = data
    if not len(labels):
        raise EffaceError("forget data must hold at least one example, got none on this node")
    still(node.still(model, head=settings.freeze_head, stem=settings.freeze_stem))
    noise = node.noise(len(labels), batch_size=settings.batch_size, num_steps=num_steps)
    if noise is None:
        raise ValueError("ascent under noise must have noise, got none")
    done = private_sgd(
        model,
        lambda batch: (images[batch], labels[batch]),
        noise,
        num_steps,
        lr=settings.lr,
        head=node.head,
        loss=lambda features, logits, label: -cross_entropy(logits, label),
    )
    return worked(len(labels), done), model
