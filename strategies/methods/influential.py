"""Influential channels: the few channels that matter for a class are trained to forget it.

Xu, Zhu, Zhang, Zhou, Yu: "Update Selective Parameters: Federated Machine Unlearning Based on Model
Explanation", 2024, https://arxiv.org/abs/2406.12516. Algorithm 1 selects, Algorithm 2 is the
decentralised scheme (DE), section 4.4.2 the centralised one (CE).

Departs from the paper:
1. Ties in the effect on the accuracy, frequent on few examples, are broken by the effect on the
   loss, then by the channel's number.
2. DE measures effects on the clients that hold the class, averaged by their counts; the paper's
   server has examples of the class itself. Rounds are averaged by |D_i| instead of 1 / n.
3. The last layer's channels are the classes: those to forget are chosen without measuring.
4. Channels go down as slices, too, from a node's second round on.
5. Every node takes part in every round of DE, whatever share training drew; those that hold the
   class must answer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord

from client.channels.ablation import ablation
from client.channels.layout import Layer, layout, to_text
from client.channels.masks import train_only
from client.channels.slices import take
from client.learning.models import build, loaded
from client.learning.perturbation import wrong_labels
from client.learning.training import images_in, local_sgd, minibatches
from client.seeds import generator
from client.steps.channels import Ablation, FitChannels
from client.wire import Rule, between, one_of, tensors
from strategies.federation import Federation
from strategies.method import COUNT, RATE, Hyperparameters, Needs, option
from strategies.parts.effort import ablating
from strategies.parts.relearning import OrdinaryRelearning
from strategies.rounds.channels import (
    AblationRounds,
    Floats,
    PartialChannelFedAvg,
    arrays_of,
    put,
)


@dataclass(frozen=True)
class InfluentialChannels(OrdinaryRelearning, Hyperparameters):
    """What both schemes share: which channels are chosen."""

    delta: float = option(
        0.05,
        Rule(lambda v: 0 < v <= 1, "lie in (0, 1]"),
        "selection factor, delta: share of each layer's channels that is trained",
    )
    select: str = option(
        "effect",
        one_of("effect", "random"),
        "effect for the channels that matter most, random for the paper's control",
    )
    max_samples: int = option(
        256,
        COUNT,
        "examples of the class that each client, or the server, measures effects on, at most",
    )

    def chosen(
        self, federation: Federation, found: ArrayRecord, layers: Sequence[Layer], seed: int
    ) -> dict[str, tuple[int, ...]]:
        """Return the channels to train, from the effects of the hidden layers' channels."""
        *hidden, classifier = layers
        accuracy = {layer.name: found[f"accuracy/{layer.name}"].numpy() for layer in hidden}
        loss = {layer.name: found[f"loss/{layer.name}"].numpy() for layer in hidden}
        channels = self.picked(accuracy, loss, generator(seed, "channels", 0))
        channels[classifier.name] = federation.forget.classes
        if self.select == "random":
            nothing = {classifier.name: np.zeros(classifier.num_channels)}
            draws = generator(seed, "channels of the classes", 0)
            channels |= self.picked(nothing, nothing, draws)
        federation.explain(channels=explained(accuracy, loss, channels))
        return channels

    def picked(
        self, accuracy: Mapping[str, Floats], loss: Mapping[str, Floats], draws: torch.Generator
    ) -> dict[str, tuple[int, ...]]:
        """Return each layer's top max(1, ceil(delta * C)) channels (Algorithm 1, lines 12 and 13).

        Args:
            accuracy: Effect on the accuracy by layer, `(C,)`; high for an influential channel.
            loss: Effect on the loss by layer, `(C,)`.
            draws: Chooses where `select` is "random".
        """
        found = {}
        for name, effects in accuracy.items():
            count = self.num_chosen(len(effects))
            if self.select == "random":
                order = torch.randperm(len(effects), generator=draws).numpy()
            else:
                order = np.lexsort((np.arange(len(effects)), -loss[name], -effects))
            found[name] = tuple(sorted(int(c) for c in order[:count]))
        return found

    def num_chosen(self, num_channels: int) -> int:
        """Return how many of a layer's channels are chosen."""
        return max(1, math.ceil(self.delta * num_channels))


@dataclass(frozen=True)
class DecentralisedChannels(InfluentialChannels):
    """DE: clients train a few chosen channels.

    Their slices alone are exchanged.
    """

    rounds: int = option(4, COUNT, "rounds of training the chosen channels")
    steps: int = option(10, COUNT, "SGD steps of a client in a round, T")
    lr: float = option(0.1, RATE, "learning rate of the chosen channels")
    momentum: float = option(0.0, between(0.0, 0.999), "momentum of SGD")
    batch_size: int = option(64, COUNT, "examples in a batch")

    needs: ClassVar[Needs] = Needs(
        channels=True, levels=frozenset({"class"}), sums=frozenset({"class"})
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` with the classes' influential channels trained to forget them."""
        # 1. The holders measure what zeroing each channel costs; the server selects.
        asked = federation.settings(Ablation, max_examples=self.max_samples)
        holders = federation.holders(synthetic=False)
        ablations = AblationRounds(asked, participants=holders)
        found = federation.run("score", ablations, model, num_rounds=1)
        layers = layout(build(federation.spec, torch.Generator()))
        channels = self.chosen(federation, found, layers, asked.seed)

        # 2. All train these channels alone, the holders also on wrong labels (Algorithm 2).
        told = federation.settings(
            FitChannels,
            channels=to_text(channels),
            steps=self.steps,
            lr=self.lr,
            momentum=self.momentum,
            batch_size=self.batch_size,
        )
        min_share = federation.plan.min_share
        rounds = PartialChannelFedAvg(told, layers, min_share=min_share, required=holders)
        return federation.run("unlearn", rounds, model, num_rounds=self.rounds)


@dataclass(frozen=True)
class CentralisedChannels(InfluentialChannels):
    """CE: the server trains a few chosen channels.

    It does so on a few examples of its own, without clients.
    """

    steps: int = option(40, COUNT, "SGD steps of the server")
    lr: float = option(0.1, RATE, "learning rate of the chosen channels")
    momentum: float = option(0.0, between(0.0, 0.999), "momentum of SGD")
    batch_size: int = option(64, COUNT, "examples in a batch")

    needs: ClassVar[Needs] = Needs(
        channels=True,
        levels=frozenset({"class"}),
        target_online=False,
        server_data=True,
        sums=frozenset({"class"}),
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` with the classes' influential channels trained to forget them."""
        samples = federation.samples()
        forget = torch.isin(samples.labels, torch.tensor(federation.forget.classes))
        seed = federation.ordinary().seed
        layers = layout(build(federation.spec, torch.Generator()))

        # 1. The server measures and selects (Algorithm 1).
        some = forget.nonzero().flatten()[: self.max_samples]

        def measure() -> ArrayRecord:
            network = loaded(federation.spec, tensors(model))
            effects = ablation(network, samples.images[some], samples.labels[some])
            found = {f"accuracy/{name}": effect for name, effect in effects.accuracy.items()}
            found |= {f"loss/{name}": effect for name, effect in effects.loss.items()}
            return arrays_of(found)

        found = federation.locally(
            "score", measure, samples=len(some), effort=ablating(layers), changes_model=False
        )
        channels = self.chosen(federation, found, layers, seed)

        # 2. It trains these channels alone on retained examples and wrong labels (section 4.4.2).
        def work() -> ArrayRecord:
            network = loaded(federation.spec, tensors(model))
            train_only(network, layers, channels)
            labels = wrong_labels(
                samples.labels,
                forget,
                federation.spec.num_classes,
                generator(seed, "unlearn labels", 0),
            )
            draws = generator(seed, "unlearn", 0)
            local_sgd(
                network,
                lambda batch: (samples.images[batch], labels[batch]),
                minibatches(len(labels), self.batch_size, self.steps, draws),
                lr=self.lr,
                momentum=self.momentum,
            )
            slices = take(network.state_dict(), layers, channels)
            return put(model, slices, layers, channels)

        images = images_in(self.steps, len(samples.labels), self.batch_size)
        return federation.locally("unlearn", work, samples=images)


def explained(
    accuracy: Mapping[str, Floats],
    loss: Mapping[str, Floats],
    channels: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """Return what the report shows of a selection: effects by layer and channel, and the choice."""
    return {
        "title": "Effect of zeroing each channel on the class's examples",
        "chosen": {name: list(of_layer) for name, of_layer in channels.items()},
        "action": "trained",
        "scores": {
            name: {
                "columns": ["accuracy lost, points", "loss gained"],
                "values": np.stack([accuracy[name], loss[name]], axis=1).tolist(),
            }
            for name in accuracy
        },
    }
