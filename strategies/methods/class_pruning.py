"""Class-discriminative pruning: remove channels that tell a class apart.

Wang, Guo, Xie, Qi, "Federated Unlearning via Class-Discriminative Pruning", WWW 2022,
https://arxiv.org/abs/2110.11794. Symbols as in the paper: U the classes, A the representation, R
the share of channels pruned.

Departs from the paper:
1. The global representation is formed from sums and counts (`strategies.rounds.channels`).
2. A residual network's channels are pruned behind their norm and before the addition, each layer
   for itself: the stream keeps what the other layers add to it.
3. A layer keeps at least one channel: a share R that would empty one is refused.
4. Fine-tuning stops when the accuracy on the clients' held-out data is what it was before the
   request; the paper names a target accuracy by hand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord

from client.channels.layout import Layer, from_text, layout
from client.channels.masks import zero_
from client.errors import BadSetting
from client.learning.models import ModelSpec, build, loaded, state_of
from client.steps.channels import Representation
from client.wire import Rule, all_or_some, at_least, one_of, tensors
from strategies.federation import Federation
from strategies.method import PERCENT, Hyperparameters, Needs, option
from strategies.parts.finetuning import fine_tune
from strategies.rounds.channels import Floats, RepresentationRounds, arrays_of


@dataclass(frozen=True)
class ClassPruning(Hyperparameters):
    """The paper's protocol."""

    prune_share: float = option(
        0.1,
        Rule(lambda v: 0 < v < 1, "lie in (0, 1)"),
        "share of the channels left that is pruned for each class, R",
    )
    scope: str = option(
        "global",
        one_of("global", "layer"),
        "global for one threshold over all layers (Algorithm 2), layer for one each",
    )
    # Not 1: a client sends no sum over one image alone.
    samples_per_class: int = option(
        0, all_or_some(), "examples of a class that a client looks at; 0 for all it has"
    )
    rounds: int = option(10, at_least(0), "rounds of fine-tuning, at most")
    target: float = option(
        0.0,
        PERCENT,
        "percent of retain accuracy that ends fine-tuning; 0 for that before the request",
    )
    tolerance: float = option(
        0.0, PERCENT, "percent points of retain accuracy that fine-tuning may leave missing"
    )
    compact: int = option(
        0,
        Rule(lambda v: v in (0, 1), "be 0 or 1"),
        "1 to remove the channels before fine-tuning, 0 to keep them at zero",
    )

    needs: ClassVar[Needs] = Needs(
        channels=True, levels=frozenset({"class"}), relearning=False, sums=frozenset({"class"})
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without the channels of the classes that the request names."""
        layers = prunable_layers(federation.spec)
        federation.holders(synthetic=False)
        wanted = self.target or federation.accuracies(model).retain

        # 1. Clients score channels by class (Algorithm 1); the server forms the global means.
        asked = federation.settings(Representation, samples_per_class=self.samples_per_class)
        rounds = RepresentationRounds(asked, min_share=federation.plan.min_share)
        means = federation.run("score", rounds, model, num_rounds=1)
        representation = {name: means[name].numpy() for name in means}

        # 2. Prune the most discriminative channels, one class after another (Algorithm 2).
        pruned: dict[str, tuple[int, ...]] = from_text(federation.spec.pruned)
        for label in federation.forget.classes:
            scores = {name: tf_idf(a, label) for name, a in representation.items()}
            pruned = chosen(scores, pruned, layers, share=self.prune_share, scope=self.scope)
        federation.explain(channels=explained(representation, pruned))
        federation.prune(pruned)
        network = loaded(federation.spec, tensors(model))
        zero_(network, pruned)
        model = federation.locally("unlearn", lambda: arrays_of(state_of(federation.spec, network)))
        if self.compact:
            model = federation.compact(model)

        # 3. Fine-tune on what is retained until the accuracy is back.
        return fine_tune(
            federation, model, rounds=self.rounds, wanted=wanted, tolerance=self.tolerance
        )

    def relearn(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Refuse: what pruning removed cannot be trained back.

        Raises:
            BadSetting: Always.
        """
        raise BadSetting(
            "method class-pruning must be able to relearn, got one that cannot: the channels that "
            "knew the class are gone; choose another method",
            see="efface methods",
        )


def prunable_layers(spec: ModelSpec) -> tuple[Layer, ...]:
    """Return the model's layers.

    Raises:
        BadSetting: If none can be pruned.
    """
    layers = layout(build(spec, torch.Generator()))
    if not any(layer.convolution for layer in layers):
        raise BadSetting(
            f"model must have convolutions to be pruned, got {spec.task.title}; choose another "
            "method"
        )
    if all(layer.num_channels == 1 for layer in layers if layer.convolution):
        raise BadSetting(
            f"model must have a convolution of two channels or more to be pruned, got "
            f"{spec.task.title}; choose another method"
        )
    if spec.compact:
        raise BadSetting(
            "version must have all its channels to be pruned, got a compact one; start from the "
            "version before it (--version), or choose another method",
            see="efface models",
        )
    return layers


def explained(
    representation: Mapping[str, Floats], pruned: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Return what the report shows: every channel's score for every class, and the choice."""
    return {
        "title": "TF-IDF of each channel for each class",
        "chosen": {name: list(of_layer) for name, of_layer in pruned.items()},
        "action": "pruned",
        "scores": {
            name: {
                "columns": [str(label) for label in range(len(means))],
                "values": np.stack([tf_idf(means, u) for u in range(len(means))], axis=1).tolist(),
            }
            for name, means in representation.items()
        },
    }


def tf_idf(representation: Floats, label: int) -> Floats:
    """Return one layer's scores for a class, `(C,)`: equations 6 to 8.

        TF_j  = A_uj / sum_j' A_uj'
        IDF_j = log((1 + |U|) / (1 + #{i : A_ij >= mean over the channels of A_i}))

    U are the classes that some node holds. Of the others, all of whose row is 0, every channel
    would count as common.

    Args:
        representation: A, `(K, C)`, at least 0: class means of the channels' activations.
        label: u, the class to forget.
    """
    target = representation[label]
    representation = representation[representation.any(axis=1)]
    total = float(target.sum())
    frequency = target / total if total > 0 else np.zeros_like(target)
    common = representation >= representation.mean(axis=1, keepdims=True)
    rarity = np.log((1 + len(representation)) / (1 + common.sum(axis=0)))
    return np.asarray(frequency * rarity)


def chosen(
    scores: Mapping[str, Floats],
    before: Mapping[str, Sequence[int]],
    layers: Sequence[Layer],
    *,
    share: float,
    scope: str,
) -> dict[str, tuple[int, ...]]:
    """Return the channels pruned before and those with the highest scores, by layer.

    Args:
        scores: TF-IDF of each convolution's channels, `(C,)`.
        before: Channels pruned already; they are not counted again.
        layers: The model's layout.
        share: R, of the channels that are left: of all of them, or of each layer.
        scope: "global" or "layer".

    Raises:
        BadSetting: If a layer would lose its last channel.
    """
    ranked = [
        (float(score), -place, name, channel)
        for place, (name, of_layer) in enumerate(scores.items())
        for channel, score in enumerate(of_layer)
        if channel not in before.get(name, ())
    ]
    by_scope: dict[str, list[Any]] = {}
    for entry in sorted(ranked, key=lambda e: (-e[0], -e[1], e[3])):
        by_scope.setdefault(entry[2] if scope == "layer" else "all", []).append(entry)
    result = {name: set(channels) for name, channels in before.items()}
    for entries in by_scope.values():
        for _, _, name, channel in entries[: math.ceil(share * len(entries))]:
            result.setdefault(name, set()).add(channel)
    for layer in layers:
        if len(result.get(layer.name, ())) >= layer.num_channels:
            left = layer.num_channels - len(before.get(layer.name, ()))
            raise BadSetting(
                f"layer {layer.name} must keep at least one of its {layer.num_channels} channels, "
                f"got none at prune-share {share:g}; "
                + _remedy(left, alone=len(by_scope) == len(scores), scope=scope)
            )
    order = [layer.name for layer in layers]
    return {name: tuple(sorted(result[name])) for name in order if result.get(name)}


def _remedy(left: int, *, alone: bool, scope: str) -> str:
    """Return what leaves a layer a channel: of `left`, by each class at least one goes.

    `alone` if no other layer's channels are pruned before this one's.
    """
    if left > 1:
        return "lower it" if alone or scope == "layer" else "lower it, or use scope=layer"
    return "choose another method" if alone else "lower it, or choose another method"
