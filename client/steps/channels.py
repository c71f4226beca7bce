"""Steps of which channels are the subject: two measure them, one trains some of them."""

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from client.channels.ablation import ablation as effects_of
from client.channels.activations import class_activations
from client.channels.layout import checked, from_text, layout
from client.channels.masks import train_only
from client.channels.slices import from_row, scatter, take, to_row
from client.data.sampling import at_most, at_random
from client.learning.models import build, loaded
from client.learning.perturbation import wrong_labels
from client.learning.private import private_sgd
from client.learning.training import local_sgd, steps_in
from client.messages import CLASS_3, WORK, Common, Declaration
from client.node import Answer, Node, ReplyArrays, answers, worked
from client.settings import (
    ANY,
    all_or_some,
    at_least,
    between,
    list_of,
    positive,
    setting,
)
from client.wire import Form, forms, shown_loss, tensors

SLICES: Final = "slices"  # the array of a FitChannels message that holds channels alone


@dataclass(frozen=True, kw_only=True)
class Representation(Common):
    """Class-wise sums of every convolution channel's pooled activation, on the training part."""

    message: ClassVar = Declaration(
        "train.representation",
        example={"samples_per_class": 5, **CLASS_3},
        arrays="class-sums",
        # The second: examples behind a class's sums.
        metrics={"samples": "scalar", "count-per-class": "per-class"},
        sums="sum",
    )

    samples_per_class: int = setting(all_or_some(), 0)
    batch_size: int = setting(at_least(1), 256)


@answers(Representation)
def representation(node: Node, settings: Representation) -> Answer:
    """Sum every convolution channel's activation by class, over the data that may be used."""
    # What is to be forgotten is looked at once more: its channels are what is searched.
    forget, keep = node.masks(node.site.train.labels)
    part = node.site.train.where(forget | keep)
    if settings.samples_per_class:
        # Other examples for every number: the difference of two answers is no example's.
        draws = node.draws(f" {settings.samples_per_class} a class")
        few = node.policy.answers.min_examples
        part = at_most(part, settings.samples_per_class, draws, least=few)
    sums, counts = class_activations(
        node.model(),
        node.pick(part),
        part.labels,
        settings.model_classes,
        batch_size=settings.batch_size,
    )
    # The sum over a class with one example would be that example's own activations.
    lone = counts < node.least
    counts = counts.masked_fill(lone, 0)
    sums = {name: of_layer.masked_fill(lone[:, None], 0.0) for name, of_layer in sums.items()}
    return {
        "num-examples": len(part),
        "samples": len(part),
        "count-per-class": [float(n) for n in counts],
    }, ReplyArrays(
        sums,
        {
            layer.name: Form((settings.model_classes, layer.num_channels), "float64")
            for layer in layout(node.model())
            if layer.convolution
        },
    )


@dataclass(frozen=True, kw_only=True)
class Ablation(Common):
    """Effect of zeroing each channel on the node's forget data."""

    message: ClassVar = Declaration(
        "train.ablation",
        example={"max_examples": 4, **CLASS_3},
        arrays="effects",
        metrics={"samples": "scalar"},
        sums="mean",
    )

    max_examples: int = setting(at_least(1), 256)  # examples looked at, at most


@answers(Ablation)
def ablation(node: Node, settings: Ablation) -> Answer:
    """Measure what zeroing each channel does to the accuracy on what is to be forgotten."""
    forget, _ = node.masks(node.site.train.labels)
    most, few = settings.max_examples, node.policy.answers.min_examples
    part = at_random(node.site.train.where(forget), most, node.draws(size=most), least=few)
    model = node.model()
    like = {
        f"{kind}/{layer.name}": Form((layer.num_channels,), "float64")
        for layer in layout(model)[:-1]  # the last one's channels are the classes
        for kind in ("accuracy", "loss")
    }
    if not len(part):
        nothing = {
            name: torch.zeros(form.shape, dtype=torch.float64) for name, form in like.items()
        }
        return {"num-examples": 0, "samples": 0}, ReplyArrays(nothing, like)
    effects = effects_of(model, *node.examples(part))
    state = {f"accuracy/{name}": effect for name, effect in effects.accuracy.items()}
    state |= {f"loss/{n}": shown_loss(e, len(part), node.least) for n, e in effects.loss.items()}
    return {"num-examples": len(part), "samples": len(part)}, ReplyArrays(state, like)


@dataclass(frozen=True, kw_only=True)
class FitChannels(Common):
    """Local SGD of some channels; the node keeps the rest of the model from the request's start."""

    message: ClassVar = Declaration(
        "train.channels",
        example={
            "channels": ["body.0:0,3", "classifier:3"],
            "steps": 2,
            "batch_size": 32,
            "lr": 0.1,
            **CLASS_3,
        },
        arrays="slices",
        metrics=WORK,
        sums="mean",
        noised=True,
    )

    channels: list[str] = setting(list_of(str, "texts"))
    whole: bool = setting(ANY, True)  # the arrays are the whole model, not the channels' slices
    steps: int = setting(at_least(0), 0)  # T; 0 to count in epochs
    epochs: int = setting(at_least(0), 0)
    batch_size: int = setting(at_least(1), 64)
    lr: float = setting(positive())  # eta
    momentum: float = setting(between(0.0, 0.999), 0.0)


@answers(FitChannels)
def fit_channels(node: Node, settings: FitChannels) -> Answer:
    """Train some channels: on what is retained, and on what is to be forgotten with wrong labels.

    The first message of a request brings the whole model, which the node keeps; the next ones bring
    the channels' slices only, in one row.
    """
    layers = layout(build(settings.model_spec, torch.Generator()))
    channels = checked(from_text(settings.channels), layers)
    sent = tensors(node.arrays)
    if settings.whole:
        whole = sent
        model = loaded(settings.model_spec, whole)  # refuses what does not fit
        node.store.keep_base(settings.request, whole)
    else:
        whole = node.store.base(settings.request)
        slices = from_row(sent[SLICES], take(whole, layers, channels))
        whole = scatter(whole, slices, layers, channels)
        model = loaded(settings.model_spec, whole)
    expected = forms({SLICES: to_row(take(whole, layers, channels))})
    model = model.to(node.device)
    train_only(model, layers, channels)
    forget, keep = node.masks(node.site.train.labels)
    part = node.site.train.where(forget | keep)
    trained = None
    if len(part):
        wrong = wrong_labels(
            part.labels, forget[forget | keep], settings.model_classes, node.draws(" labels")
        )
        pick = node.pick(part)
        relabelled = wrong.to(node.device)
        least = node.policy.answers.min_batch
        num_steps = settings.steps or steps_in(
            settings.epochs, len(part), settings.batch_size, least=least
        )

        def chosen(batch: Tensor) -> tuple[Tensor, Tensor]:
            return pick(batch)[0], relabelled[batch.to(node.device)]

        noise = node.noise(part, batch_size=settings.batch_size, num_steps=num_steps)
        if noise is not None:
            trained = private_sgd(
                model,
                chosen,
                noise,
                num_steps,
                lr=settings.lr,
                momentum=settings.momentum,
                head=node.head,
            )
        else:
            trained = local_sgd(
                model,
                chosen,
                node.batches(part, settings.batch_size, num_steps),
                lr=settings.lr,
                momentum=settings.momentum,
                precision=settings.precision,
            )
    row = to_row(take(model.state_dict(), layers, channels))
    return worked(len(part), trained), ReplyArrays({SLICES: row}, expected)
