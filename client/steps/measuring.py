"""Questions: how good the model is, what the node holds, what each parameter tells of it."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from client.budget import Mechanism
from client.data import class_names
from client.data.sampling import at_random
from client.data.site import Part, erased_mask, forget_mask
from client.errors import BadSetting
from client.learning.curvature import fisher_diagonal
from client.learning.evaluation import BATCH, Scores, evaluate, losses_of
from client.learning.membership import NUM_STEPS, Relearned, confidence, relearned
from client.learning.private import noised_counts
from client.messages import CLASS_3, Common, Declaration
from client.node import Answer, Metrics, Node, ReplyArrays, answers
from client.settings import ANY, MIN_EXAMPLES, at_least, one_of, setting
from client.wire import forms, shown_loss


@dataclass(frozen=True, kw_only=True)
class Heldout(Common):
    """Evaluation on the held-out part: what the request names, and what is retained."""

    message: ClassVar = Declaration(
        "evaluate.heldout",
        example={"holdout": 0.2, **CLASS_3},
        metrics={
            "samples": "scalar",
            "retain-correct-per-class": "per-class",
            "retain-count-per-class": "per-class",
            "retain-loss-per-class": "per-class",  # summed over the class's examples
            "forget-correct-per-class": "per-class",
            "forget-count-per-class": "per-class",
            "forget-loss-per-class": "per-class",
        },
        sums="sum",
        noised=True,
    )


@answers(Heldout)
def heldout(node: Node, settings: Heldout) -> Answer:
    """Score the model on the held-out part: what the request names, and what is retained.

    One message for both: on a real node every message is a new process.
    """
    part = node.site.heldout
    forget = forget_mask(part.labels, settings.forget, settings.client)
    retain = ~forget & ~erased_mask(part.labels, node.erased, settings.client)
    model = node.model()
    draws = None
    if node.noise_multiplier:
        # An example is on one side and of one class: it changes one count of those right, by 1.
        # Its loss has no bound, and stays here.
        node.charge(Mechanism(node.policy.privacy.counts_noise, 1.0, 1))
        draws = node.noise_draws()
    metrics: Metrics = {"num-examples": len(part), "samples": int((forget | retain).sum())}
    for side, mask in (("forget", forget), ("retain", retain)):
        chosen = part.where(mask)
        pick = node.pick(chosen)
        scores = evaluate(
            model,
            pick,
            len(chosen),
            settings.model_classes,
            batch_size=min(BATCH, node.at_once or BATCH),
            loss=node.loss,
            score=node.score,
        )
        if draws is not None:
            noise = node.policy.privacy.counts_noise
            correct = noised_counts(scores.correct, scores.count, noise, draws)
            scores = Scores(correct, scores.count, torch.zeros_like(scores.loss))
        metrics[f"{side}-correct-per-class"] = [float(n) for n in scores.correct]
        metrics[f"{side}-count-per-class"] = [float(n) for n in scores.count]
        shown = shown_loss(scores.loss, scores.count, node.least)
        metrics[f"{side}-loss-per-class"] = [float(n) for n in shown]
    return metrics, None


@dataclass(frozen=True, kw_only=True)
class Membership(Common):
    """How much surer a model is of training examples that are to go than of what others hold out.

    Each example's loss stays at the node: sums go up. A client that is to go answers of its
    training examples, the others of what they hold out. Of its examples it tells one sum of the
    model as it is, and one of each half of them when a copy has learned the other half again
    (`client.learning.membership`); the copies do not leave the node.
    """

    message: ClassVar = Declaration(
        "evaluate.membership",
        example=CLASS_3,
        metrics={
            "samples": "scalar",
            "num-members": "scalar",  # training examples that the request names
            "num-others": "scalar",  # held-out ones, of clients that it does not name
            "members-confidence": "scalar",  # sum of the true class's probability
            "others-confidence": "scalar",
            "num-relearned": "scalar",  # members, where their halves are large enough; else 0
            "relearned-confidence": "scalar",  # the same sum, the other half learned again
        },
        sums="sum",
    )

    # Whether halves are learned again; how, no message says.
    relearn: bool = setting(ANY, True)


@answers(Membership)
def membership(node: Node, settings: Membership) -> Answer:
    """Sum up how sure the model is of what the request names, or of what this node holds out.

    What a tombstone covers is left out on both sides. At a real site its own bind whatever is
    named: what a request erased there is not looked at again without an order.
    """
    if node.loss is not None:
        raise BadSetting(
            f"task {node.task.title} must have the usual loss of a classifier, whose examples "
            "have a true class's probability, got a loss of its own"
        )
    train, held = node.site.train, node.site.heldout
    members, _ = node.masks(train.labels)
    others = ~erased_mask(held.labels, node.erased, settings.client)
    if settings.forget.level == "client":
        # Before the request is settled as after it: both are compared.
        others &= ~forget_mask(held.labels, settings.forget, settings.client)
    parts = {"members": train.where(members), "others": held.where(others)}
    model = node.model()
    metrics: Metrics = {}
    counts: dict[str, int] = {}
    for name, part in parts.items():
        enough = len(part) >= node.least
        chosen = part if enough else part.where(torch.zeros(len(part), dtype=torch.bool))
        losses = losses_of(
            model,
            node.pick(chosen),
            len(chosen),
            batch_size=min(BATCH, node.at_once or BATCH),
        )
        metrics |= {
            f"num-{name}": len(chosen),
            f"{name}-confidence": float(confidence(losses).sum()),
        }
        counts[name] = len(chosen)
    number, used = counts["members"], sum(counts.values())
    again = _relearned(node, parts["members"]) if settings.relearn and number else None
    metrics |= {
        "num-relearned": number if again else 0,
        "relearned-confidence": again.confidence if again else 0.0,
    }
    samples = used + (again.samples if again else 0)
    return {"num-examples": used, "samples": samples, **metrics}, None


def _relearned(node: Node, members: Part) -> Relearned | None:
    """Learn each half of the members again; None where the policy has no room for it."""
    answers = node.policy.answers
    least = max(node.least, answers.min_batch)
    if len(members) // 2 < least or node.policy.limits.steps < NUM_STEPS:
        return None
    return relearned(
        node.model_without_pruned,  # pruned channels would raise the others' rates
        node.pick(members),
        members.labels,
        node.lasting_seed,
        least=least,
        few=answers.min_examples,
        at_once=node.at_once,
    )


@dataclass(frozen=True, kw_only=True)
class Describe(Common):
    """The classes' names; counts of the node's data, and of what the request would touch."""

    message: ClassVar = Declaration(
        "query.describe",
        example=CLASS_3,
        arrays="class-names",
        metrics={
            "num-forget": "scalar",
            "num-forget-synthetic": "scalar",
            "num-retain": "scalar",
            "num-retain-synthetic": "scalar",
            "num-heldout": "scalar",
            "count-train-per-class": "per-class",
        },
        alone=(),
        noised=True,  # counts: not covered by the noise's promise (client/budget.py)
    )


@answers(Describe)
def describe(node: Node, settings: Describe) -> Answer:
    """Answer with the classes' names and counts: of the data, and of what the request touches."""
    return _counts(node), _class_names(node)


def _counts(node: Node) -> Metrics:
    settings = node.settings
    labels = node.site.train.labels
    forget, retain = node.masks(labels)
    found = node.store.load(settings.lineage, model=node.model_name)
    synthetic = torch.empty(0, dtype=torch.int64) if found is None else found.labels
    own_forget, own_retain = node.masks(synthetic)
    counts = torch.bincount(labels, minlength=settings.model_classes)
    return {
        "num-examples": node.count(node.site.train),
        "num-forget": int(forget.sum()),
        "num-retain": int(retain.sum()),
        "num-forget-synthetic": int(own_forget.sum()),
        "num-retain-synthetic": int(own_retain.sum()),
        "num-heldout": len(node.site.heldout),
        "count-train-per-class": [float(n) for n in counts],
    }


@dataclass(frozen=True, kw_only=True)
class Totals(Common):
    """What all nodes together hold, for where only sums go up: `describe` without names."""

    message: ClassVar = Declaration(
        "query.totals",
        example=CLASS_3,
        metrics=dict(Describe.message.metrics),
        sums="sum",
        noised=True,  # as of `describe`
    )


@answers(Totals)
def totals(node: Node, settings: Totals) -> Answer:
    """Answer with the counts of `describe`."""
    return _counts(node), None


def _class_names(node: Node) -> ReplyArrays:
    """Return the names of the site's classes as the one array that a reply to `describe` holds."""
    state = {class_names.ARRAY: class_names.to_array(node.site.data.class_names)}
    return ReplyArrays(state, forms(state))


@dataclass(frozen=True, kw_only=True)
class Fisher(Common):
    """Diagonal of the Fisher information of the node's data; zeros where it has one example."""

    message: ClassVar = Declaration(
        "train.fisher",
        example={"max_examples": 4, **CLASS_3},
        arrays="parameters",
        metrics={"samples": "scalar"},
        sums="mean",
    )

    side: str = setting(one_of("retain", "forget"), "retain")
    max_examples: int = setting(at_least(MIN_EXAMPLES), 256)  # examples looked at, at most


@answers(Fisher)
def fisher(node: Node, settings: Fisher) -> Answer:
    """Measure how much each parameter tells of the labels, on one side of the data."""
    wanted = node.side(settings.side, node.site.train.labels)
    most, few = settings.max_examples, node.policy.answers.min_examples
    part = at_random(node.site.train.where(wanted), most, node.draws(size=most), least=few)
    model = node.model()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    like = forms(parameters)
    if len(part) < node.least:  # of one example it would be that example's own gradient
        nothing = {name: torch.zeros_like(p) for name, p in parameters.items()}
        return {"num-examples": 0, "samples": 0}, ReplyArrays(nothing, like)
    images, _ = node.examples(part)
    passes = len(part) * settings.model_classes
    return {"num-examples": len(part), "samples": passes}, ReplyArrays(
        fisher_diagonal(model, images), like
    )
