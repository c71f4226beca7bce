"""The node's Flower app: one handler for every message type in `client.wire`.

Each handler does one step of a protocol with the settings, data and store that a node opened.
Nothing stays in memory between messages.
"""

import math
import time
from collections.abc import Callable
from typing import Final

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from torch import Tensor

from client import wire
from client.channels.ablation import ablation
from client.channels.activations import class_activations
from client.channels.layout import checked, from_text, layout
from client.channels.masks import train_only
from client.channels.slices import from_row, scatter, take, to_row
from client.data import class_names
from client.data.sampling import as_many, at_most, at_random
from client.data.site import erased_mask, forget_mask
from client.errors import BadSetting
from client.learning.ascent import ascend
from client.learning.curvature import fisher_diagonal, local_quasi_newton
from client.learning.distillation import condense
from client.learning.evaluation import evaluate
from client.learning.in_situ import InSitu
from client.learning.models import build, loaded
from client.learning.perturbation import wrong_labels
from client.learning.recovery import descend
from client.learning.synthetic import next_generation, random_subset, redrawn, synthetic_for
from client.learning.training import Trained, local_sgd, minibatches, steps_in
from client.node import Answer, Metrics, Node, ReplyArrays, answered
from client.seeds import generator

app = ClientApp()


def _worked(
    num_examples: int, done: Trained | None = None, *, num_distinct: int | None = None
) -> Metrics:
    """Return what goes up of a local phase on `num_examples` examples; None if it had none.

    At least `num_distinct` of them, all by default, are distinct.
    """
    done = done or Trained(0, 0, 0.0)
    # Each epoch goes through all examples, so that these are the distinct ones.
    distinct = min(done.samples, num_examples if num_distinct is None else num_distinct)
    loss = wire.shown_loss(torch.tensor(done.loss, dtype=torch.float64), distinct)
    return {
        "num-examples": num_examples,
        "num-steps": done.num_steps,
        "samples": done.samples,
        "loss": float(loss),
    }


@app.train("fit")
@answered(wire.Fit)
def fit(node: Node, settings: wire.Fit) -> Answer:
    """Train on the node's real data; distil in situ if `scale` is above 0."""
    if settings.scale and (settings.side == "forget" or settings.optimiser != "sgd"):
        raise BadSetting(
            f"scale must be 0 for side {settings.side} with {settings.optimiser}, got "
            f"{settings.scale}: synthetic sets are made by SGD on what is retained"
        )
    keep = _side(settings.side, *node.masks(node.site.train.labels))
    part = node.site.train.where(keep)
    model = node.model()
    # What one example alone changes in a model is its own gradient.
    if not len(part) or (settings.side == "forget" and len(part) < wire.MIN_EXAMPLES):
        return {**_worked(0), "seconds-distill": 0.0}, model
    num_steps = settings.steps or steps_in(settings.epochs, len(part), settings.batch_size)
    distiller = None
    if settings.scale:
        distiller = InSitu(node, settings, keep, num_steps)
    pick = node.site.pick(part, node.device)
    batches = minibatches(len(part), settings.batch_size, num_steps, node.draws())
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
            gradients=None if distiller is None else distiller.bind(model),
        )
    seconds = 0.0
    if distiller is not None:
        started = time.perf_counter()
        node.save(settings.server_round, distiller.matcher.synthetic)
        seconds = distiller.seconds + time.perf_counter() - started
    return {**_worked(len(part), trained), "seconds-distill": seconds}, model


def _side(side: str, forget: Tensor, retain: Tensor) -> Tensor:
    """Return the mask that a message's `side` asks for."""
    return {"retain": retain, "forget": forget, "all": forget | retain}[side]


@app.train("ascend")
@answered(wire.Ascend)
def climb(node: Node, settings: wire.Ascend) -> Answer:
    """Raise the loss on what is to be forgotten."""
    if settings.data == "original":
        forget, _ = node.masks(node.site.train.labels)
        images, labels = node.examples(node.site.train.where(forget))
    else:
        held = node.synthetic() if settings.data == "synthetic" else random_subset(node)
        forget, _ = node.masks(held.labels.cpu())
        chosen = held.where(forget.to(node.device))
        images, labels = chosen.images, chosen.labels
    if settings.target_losses and len(settings.target_losses) != settings.model_classes:
        raise BadSetting(
            f"target-losses must hold {settings.model_classes} numbers or none, got "
            f"{len(settings.target_losses)}"
        )
    model = node.model()
    done = ascend(
        model,
        images,
        labels,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        generator=node.draws(),
        target_losses=settings.target_losses,
        freeze_head=settings.freeze_head,
        freeze_stem=settings.freeze_stem,
    )
    return _worked(len(labels), done), model


@app.train("descend")
@answered(wire.Descend)
def recover(node: Node, settings: wire.Descend) -> Answer:
    """Train on compact data: what is retained, what comes back, or both."""
    wanted = _side(settings.side, *node.masks(node.site.train.labels))
    if not bool(wanted.any()):
        return _worked(0), None
    images, labels = [], []
    held: tuple[Tensor, Tensor] | None = None
    chosen = None
    if settings.data != "original":
        real = settings.data.startswith("subset")
        compact = random_subset(node) if real else synthetic_for(node, settings, wanted)
        own = node.masks(compact.labels.cpu())
        chosen = compact.where(_side(settings.side, *own).to(node.device))
        images.append(chosen.images)
        labels.append(chosen.labels)
        if settings.side == "retain":
            down = compact.where((~own[1]).to(node.device))
            held = (down.images, down.labels)
    if settings.data.endswith("original"):
        part = node.site.train.where(wanted)
        if chosen is not None:
            # The same originals in every round: a node keeps 1 + 1 % of its data at hand.
            draw = generator(settings.seed, "augment", 0, settings.client)
            part = as_many(part, chosen.labels.cpu(), draw)
        real_images, real_labels = node.examples(part)
        images.append(real_images)
        labels.append(real_labels)
    all_images, all_labels = torch.cat(images), torch.cat(labels)
    model = node.model()
    if not len(all_labels):
        return _worked(0), model
    batch_size = settings.batch_size
    if settings.batches:
        batch_size = math.ceil(len(all_labels) / settings.batches)
    done = descend(
        model,
        all_images,
        all_labels,
        epochs=settings.epochs,
        batch_size=batch_size,
        lr=settings.lr,
        momentum=settings.momentum,
        generator=node.draws(),
        held=held,
        hold=settings.hold,
        hold_features=settings.hold_features,
        freeze_stem=settings.freeze_stem,
    )
    # An original may be in the subset, too, or behind a synthetic image.
    return _worked(len(all_labels), done, num_distinct=max(map(len, labels))), model


@app.train("representation")
@answered(wire.Representation)
def represent(node: Node, settings: wire.Representation) -> Answer:
    """Sum every convolution channel's activation by class, over the data that may be used."""
    # What is to be forgotten is looked at once more: its channels are what is searched.
    forget, keep = node.masks(node.site.train.labels)
    part = node.site.train.where(forget | keep)
    if settings.samples_per_class:
        # Other examples for every number: the difference of two answers is no example's.
        draws = node.draws(f" {settings.samples_per_class} a class")
        part = at_most(part, settings.samples_per_class, draws)
    sums, counts = class_activations(
        node.model(),
        node.site.pick(part, node.device),
        part.labels,
        settings.model_classes,
        batch_size=settings.batch_size,
    )
    # The sum over a class with one example would be that example's own activations.
    lone = counts < wire.MIN_EXAMPLES
    counts = counts.masked_fill(lone, 0)
    sums = {name: of_layer.masked_fill(lone[:, None], 0.0) for name, of_layer in sums.items()}
    return {
        "num-examples": len(part),
        "samples": len(part),
        "count-per-class": [float(n) for n in counts],
    }, ReplyArrays(
        sums,
        {
            layer.name: wire.Form((settings.model_classes, layer.num_channels), "float64")
            for layer in layout(node.model())
            if layer.convolution
        },
    )


@app.train("ablation")
@answered(wire.Ablation)
def ablate(node: Node, settings: wire.Ablation) -> Answer:
    """Measure what zeroing each channel does to the accuracy on what is to be forgotten."""
    forget, _ = node.masks(node.site.train.labels)
    part = at_random(node.site.train.where(forget), settings.max_examples, node.draws())
    model = node.model()
    like = {
        f"{kind}/{layer.name}": wire.Form((layer.num_channels,), "float64")
        for layer in layout(model)[:-1]  # the last one's channels are the classes
        for kind in ("accuracy", "loss")
    }
    if not len(part):
        nothing = {
            name: torch.zeros(form.shape, dtype=torch.float64) for name, form in like.items()
        }
        return {"num-examples": 0, "samples": 0}, ReplyArrays(nothing, like)
    effects = ablation(model, *node.examples(part))
    state = {f"accuracy/{name}": effect for name, effect in effects.accuracy.items()}
    state |= {f"loss/{n}": wire.shown_loss(e, len(part)) for n, e in effects.loss.items()}
    return {"num-examples": len(part), "samples": len(part)}, ReplyArrays(state, like)


@app.train("fisher")
@answered(wire.Fisher)
def fisher(node: Node, settings: wire.Fisher) -> Answer:
    """Measure how much each parameter tells of the labels, on one side of the data."""
    wanted = _side(settings.side, *node.masks(node.site.train.labels))
    part = at_random(node.site.train.where(wanted), settings.max_examples, node.draws())
    model = node.model()
    parameters = dict(model.named_parameters())
    like = wire.forms(parameters)
    if len(part) < wire.MIN_EXAMPLES:  # of one example it would be that example's own gradient
        nothing = {name: torch.zeros_like(p) for name, p in parameters.items()}
        return {"num-examples": 0, "samples": 0}, ReplyArrays(nothing, like)
    images, _ = node.examples(part)
    passes = len(part) * settings.model_classes
    return {"num-examples": len(part), "samples": passes}, ReplyArrays(
        fisher_diagonal(model, images), like
    )


@app.train("channels")
@answered(wire.FitChannels)
def fit_channels(node: Node, settings: wire.FitChannels) -> Answer:
    """Train some channels: on what is retained, and on what is to be forgotten with wrong labels.

    The first message of a request brings the whole model, which the node keeps; the next ones bring
    the channels' slices only, in one row.
    """
    layers = layout(build(settings.model_spec, torch.Generator()))
    channels = checked(from_text(settings.channels), layers)
    sent = wire.tensors(node.arrays)
    if settings.whole:
        whole = sent
        model = loaded(settings.model_spec, whole)  # refuses what does not fit
        node.store.keep_base(settings.request, whole)
    else:
        whole = node.store.base(settings.request)
        slices = from_row(sent[wire.SLICES], take(whole, layers, channels))
        whole = scatter(whole, slices, layers, channels)
        model = loaded(settings.model_spec, whole)
    expected = wire.forms({wire.SLICES: to_row(take(whole, layers, channels))})
    model = model.to(node.device)
    train_only(model, layers, channels)
    forget, keep = node.masks(node.site.train.labels)
    part = node.site.train.where(forget | keep)
    trained = None
    if len(part):
        wrong = wrong_labels(
            part.labels, forget[forget | keep], settings.model_classes, node.draws(" labels")
        )
        pick = node.site.pick(part, node.device)
        relabelled = wrong.to(node.device)
        num_steps = settings.steps or steps_in(settings.epochs, len(part), settings.batch_size)
        trained = local_sgd(
            model,
            lambda batch: (pick(batch)[0], relabelled[batch.to(node.device)]),
            minibatches(len(part), settings.batch_size, num_steps, node.draws()),
            lr=settings.lr,
            momentum=settings.momentum,
            precision=settings.precision,
        )
    row = to_row(take(model.state_dict(), layers, channels))
    return _worked(len(part), trained), ReplyArrays({wire.SLICES: row}, expected)


@app.evaluate("heldout")
@answered(wire.Heldout)
def heldout(node: Node, settings: wire.Heldout) -> Answer:
    """Score the model on the held-out part: what the request names, and what is retained.

    One message for both: on a real node every message is a new process.
    """
    part = node.site.heldout
    forget = forget_mask(part.labels, settings.forget, settings.client)
    retain = ~forget & ~erased_mask(part.labels, node.erased, settings.client)
    model = node.model()
    metrics: Metrics = {"num-examples": len(part), "samples": int((forget | retain).sum())}
    for side, mask in (("forget", forget), ("retain", retain)):
        chosen = part.where(mask)
        pick = node.site.pick(chosen, node.device)
        scores = evaluate(model, pick, len(chosen), settings.model_classes)
        metrics[f"{side}-correct-per-class"] = [float(n) for n in scores.correct]
        metrics[f"{side}-count-per-class"] = [float(n) for n in scores.count]
        shown = wire.shown_loss(scores.loss, scores.count)
        metrics[f"{side}-loss-per-class"] = [float(n) for n in shown]
    return metrics, None


@app.query("describe")
@answered(wire.Describe)
def describe(node: Node, settings: wire.Describe) -> Answer:
    """Answer with the classes' names and counts: of the data, and of what the request touches."""
    labels = node.site.train.labels
    forget, retain = node.masks(labels)
    found = node.store.load(settings.lineage, model=node.model_name)
    synthetic = torch.empty(0, dtype=torch.int64) if found is None else found.labels
    own_forget, own_retain = node.masks(synthetic)
    counts = torch.bincount(labels, minlength=settings.model_classes)
    return {
        "num-examples": len(labels),
        "num-forget": int(forget.sum()),
        "num-retain": int(retain.sum()),
        "num-forget-synthetic": int(own_forget.sum()),
        "num-retain-synthetic": int(own_retain.sum()),
        "num-heldout": len(node.site.heldout),
        "count-train-per-class": [float(n) for n in counts],
    }, _class_names(node)


def _class_names(node: Node) -> ReplyArrays:
    """Return the names of the site's classes as the one array that a reply to `describe` holds."""
    state = {class_names.ARRAY: class_names.to_array(node.site.data.class_names)}
    return ReplyArrays(state, wire.forms(state))


@app.query("condense")
@answered(wire.Condense)
def fine_tune(node: Node, settings: wire.Condense) -> Answer:
    """Improve the synthetic set over random initialisations."""
    state = node.store.state()
    done = f"condense {settings.request}"
    synthetic = node.synthetic()
    if done not in state.applied:
        _, keep = node.masks(node.site.train.labels)
        better = condense(
            node.site,
            keep,
            synthetic,
            lambda draws: build(settings.model_spec, draws).to(node.device),
            node.draws(),
            outer_steps=settings.outer_steps,
            inner_steps=settings.inner_steps,
            batch_size=settings.batch_size,
            image_lr=settings.image_lr,
            lr=settings.lr,
        )
        node.save(next_generation(node), better)
        node.store.settle(done, "condense", settings.forget)
    return {"num-examples": len(synthetic), "applied": float(done in state.applied)}, None


@app.query("settle")
@answered(wire.Settle)
def settle(node: Node, settings: wire.Settle) -> Answer:
    """Make a verified request last on this node."""
    spec = settings.forget
    new = node.store.settle(settings.request, settings.action, spec)
    node.store.drop_bases()
    destroyed = 0
    if settings.destroy and settings.action == "forget":
        if spec.level == "client" and settings.client in spec.clients:
            destroyed = node.store.destroy()
        elif spec.level == "class":
            destroyed = node.store.destroy(classes=spec.classes)
    if settings.action == "relearn" and settings.scale:
        # The next request to forget it must find its synthetic stand-ins again.
        forget, _ = node.masks(node.site.train.labels)
        if bool(forget.any()):
            redrawn(node, forget)
    return {
        "num-examples": len(node.site.train),
        "applied": float(not new),
        "destroyed": destroyed,
    }, None


HANDLERS: Final[dict[str, Callable[..., Message]]] = {
    wire.FIT: fit,
    wire.ASCEND: climb,
    wire.DESCEND: recover,
    wire.HELDOUT: heldout,
    wire.DESCRIBE: describe,
    wire.CONDENSE: fine_tune,
    wire.SETTLE: settle,
    wire.REPRESENTATION: represent,
    wire.ABLATION: ablate,
    wire.FIT_CHANNELS: fit_channels,
    wire.FISHER: fisher,
}
