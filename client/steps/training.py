"""Local training on a node's real data, with distillation in situ if asked for."""

import time
from dataclasses import dataclass
from typing import ClassVar

from client.errors import BadSetting
from client.learning.curvature import local_quasi_newton
from client.learning.distillation import START, STARTS
from client.learning.in_situ import InSitu
from client.learning.models import traced
from client.learning.private import private_sgd
from client.learning.training import local_sgd, steps_in
from client.messages import WORK, Common, Declaration
from client.node import Answer, Node, answers, worked
from client.settings import at_least, between, one_of, positive, setting


@dataclass(frozen=True, kw_only=True)
class Fit(Common):
    """Local training on the node's real data; `scale` > 0 also distils in situ."""

    message: ClassVar = Declaration(
        "train.fit",
        example={"steps": 2, "batch_size": 32, "lr": 0.1, "scale": 10, "server_round": 1},
        arrays="model",
        # Of the seconds, those spent on matching gradients.
        metrics={**WORK, "seconds-distill": "scalar"},
        sums="mean",
        noised=True,
    )

    side: str = setting(one_of("retain", "forget", "all"), "retain")  # all: with what is relearned
    steps: int = setting(at_least(0), 0)  # T; 0 to count in epochs
    epochs: int = setting(at_least(0), 0)
    batch_size: int = setting(at_least(1), 64)
    lr: float = setting(positive())  # eta_theta
    momentum: float = setting(between(0.0, 0.999), 0.0)
    weight_decay: float = setting(between(0.0, 1.0), 0.0)
    proximal: float = setting(between(0.0, 1e6), 0.0)  # mu of FedProx
    optimiser: str = setting(one_of("sgd", "quasi-newton"), "sgd")
    # Of quasi-Newton steps, which take no momentum:
    curvature: str = setting(one_of("fisher", "hessian"), "fisher")
    beta1: float = setting(between(0.0, 0.999), 0.9)  # decay of the mean gradient
    beta2: float = setting(between(0.0, 0.9999), 0.999)  # of the mean square of the curvature
    hessian_power: float = setting(between(0.0, 1.0), 1.0)  # k, of the curvature
    eps: float = setting(positive(), 1e-4)  # added to it
    image_start: str = setting(one_of(*STARTS), START)
    image_lr: float = setting(positive(), 0.1)  # eta_S
    image_steps: int = setting(at_least(1), 1)  # varsigma_S
    image_momentum: float = setting(between(0.0, 0.999), 0.5)
    image_batch: int = setting(at_least(0), 0)  # of a class, moved at a match in turn; 0 for all
    distill_every: int = setting(at_least(1), 1)
    distill_fraction: float = setting(between(0.0, 1.0), 1.0)

    def why_not_noised(self) -> str | None:
        """Return why this message cannot be answered under noise, None if it can."""
        if self.scale:
            return (
                f"scale must be 0 under noise, got {self.scale}: synthetic examples are made from "
                "gradients without noise"
            )
        if self.optimiser != "sgd":
            return f"optimiser must be sgd under noise, got {self.optimiser}"
        return super().why_not_noised()


@answers(Fit)
def fit(node: Node, settings: Fit) -> Answer:
    """Train on the node's real data; distil in situ if `scale` is above 0."""
    if settings.scale and (settings.side == "forget" or settings.optimiser != "sgd"):
        raise BadSetting(
            f"scale must be 0 for side {settings.side} with {settings.optimiser}, got "
            f"{settings.scale}: synthetic sets are made by SGD on what is retained"
        )
    keep = node.side(settings.side, node.site.train.labels)
    part = node.site.train.where(keep)
    model = node.model()
    # What one example alone changes in a model is its own gradient; BatchNorm cannot train on it.
    lone = len(part) == 1 and traced(settings.model_spec).mixes_examples
    if lone or not len(part) or (settings.side == "forget" and len(part) < node.least):
        return {**worked(0), "seconds-distill": 0.0}, model
    least = node.policy.answers.min_batch
    num_steps = settings.steps or steps_in(
        settings.epochs, len(part), settings.batch_size, least=least
    )
    distiller = None
    if settings.scale:
        node.store.make_room(settings.lineage)
        distiller = InSitu(
            node,
            keep,
            planned=num_steps * min(settings.batch_size, int(keep.sum())),
            num_training_steps=num_steps,
            lr=settings.image_lr,
            momentum=settings.image_momentum,
            num_steps=settings.image_steps,
            batch=settings.image_batch,
            every=settings.distill_every,
            fraction=settings.distill_fraction,
            start=settings.image_start,
        )
    pick = node.augmented(part)
    noise = node.noise(part, batch_size=settings.batch_size, num_steps=num_steps)
    if noise is not None:
        trained = private_sgd(
            model,
            pick,
            noise,
            num_steps,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            proximal=settings.proximal,
            head=node.head,
        )
        return {**worked(len(part), trained), "seconds-distill": 0.0}, model
    batches = node.batches(part, settings.batch_size, num_steps)
    if settings.optimiser == "quasi-newton":
        trained = local_quasi_newton(
            model,
            pick,
            batches,
            lr=settings.lr,
            curvature=settings.curvature,
            beta1=settings.beta1,
            beta2=settings.beta2,
            hessian_power=settings.hessian_power,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            proximal=settings.proximal,
            generator=node.draws(" curvature"),
        )
    else:
        trained = local_sgd(
            model,
            pick,
            batches,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            proximal=settings.proximal,
            precision=settings.precision,
            loss=node.loss,
            at_once=node.at_once,
            gradients=None if distiller is None else distiller.bind(model),
        )
    seconds = 0.0
    if distiller is not None:
        started = time.perf_counter()
        node.save(settings.server_round, distiller.matcher.synthetic)
        seconds = distiller.seconds + time.perf_counter() - started
    return {**worked(len(part), trained), "seconds-distill": seconds}, model
