"""NoT: negate the first layer, then fine-tune.

Khalil, Brunswic, Lamghari, Li, Beitollahi, Chen: "NoT: Federated Unlearning via Weight Negation",
CVPR 2025, https://arxiv.org/abs/2503.05657. Negation breaks the co-adaptation of the layers and
stays close to a point from which fine-tuning is short.

Departs from the paper:
1. Of a layer the weight alone is negated: its bias and the norm behind it stay as they were.
2. Fine-tuning stops when the accuracy on the clients' held-out data is back, or after the rounds.
3. Relearning is by ordinary rounds.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from client.errors import BadSetting
from client.learning.models import build
from client.wire import at_least
from strategies.federation import Federation
from strategies.method import COUNT, PERCENT, Hyperparameters, Needs, option
from strategies.parts.finetuning import fine_tune
from strategies.parts.relearning import OrdinaryRelearning


@dataclass(frozen=True)
class WeightNegation(OrdinaryRelearning, Hyperparameters):
    """The paper's protocol."""

    layers: int = option(1, COUNT, "how many layers, from the first on, are negated, L_neg")
    rounds: int = option(20, at_least(0), "rounds of fine-tuning, at most")
    tolerance: float = option(
        0.0, PERCENT, "percent points of retain accuracy that fine-tuning may leave missing"
    )

    # Clients with nothing left to train on take no part.
    needs: ClassVar[Needs] = Needs(
        own_loss=True,
        levels=frozenset({"class", "client"}),
        target_online=False,
        sums=frozenset({"class", "client"}),
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names."""
        wanted = federation.accuracies(model).retain

        # 1. theta'_l = -theta_l for the layers l in L_neg, on the server.
        layers = weights_by_layer(build(federation.spec, torch.Generator()))
        if self.layers >= len(layers):
            raise BadSetting(
                f"layers must be at most {len(layers) - 1} of the model's {len(layers)}, got "
                f"{self.layers}"
            )
        names = [name for layer in layers[: self.layers] for name in layer]
        before = model
        model = federation.locally("unlearn", lambda: negated(before, names))

        # 2. Those with data left fine-tune on it.
        return fine_tune(
            federation, model, rounds=self.rounds, wanted=wanted, tolerance=self.tolerance
        )


def weights_by_layer(network: nn.Module) -> list[list[str]]:
    """Return the names of each layer's trained weights; the last layer is the classifier.

    They are the arrays of two dimensions or more: those of biases and norms have one.
    """
    found = [
        [
            f"{module}.{name}"
            for name, array in layer.named_parameters(recurse=False)
            if array.dim() > 1 and array.requires_grad
        ]
        for module, layer in network.named_modules()
        if module  # what the network itself holds, such as positions, is no layer
    ]
    return [names for names in found if names]


def negated(model: ArrayRecord, names: Collection[str]) -> ArrayRecord:
    """Return `model` with the arrays of these names times -1, the others as they were."""
    return ArrayRecord(
        {name: Array(-array.numpy()) if name in names else array for name, array in model.items()}
    )
