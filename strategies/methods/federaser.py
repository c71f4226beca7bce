"""FedEraser: replay stored updates in new directions.

Liu, Ma, Yang, Wang, Liu: "FedEraser: Enabling Efficient Client-Level Data Removal from Federated
Learning Models", IWQoS 2021, https://doi.org/10.1109/IWQOS52092.2021.9521274 (first as "Federated
Unlearning", https://arxiv.org/abs/2012.13891). Symbols as in the paper: U the updates kept of
training, U-hat those of calibration training, U-tilde the calibrated ones.

Departs from the paper:
1. Lengths are those of single tensors, as in its public code, not of the model as one vector.
2. Classes are forgotten, too: all nodes calibrate on the data they retain, from the first round
   on, for there every stored update knows the class.
3. A norm layer's running statistics are no directions: those after calibration training stand.
4. Calibrated updates are kept in place of the stored ones, so that a later request finds some.
5. Of training, rounds 1, 1 + Delta t, 1 + 2 Delta t, ... are kept. The public code keeps Delta t,
   2 Delta t, ...: its first step would then come from a model that knows the client.
6. Where the learning rate of training falls, a round is calibrated at the rate that it had.
7. With `rounds=3`, up to three ordinary rounds follow until the accuracy is back, as where Dhasade
   et al. 2024 (QuickDrop, table 2) measure it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord

from client.wire import Rule, at_least
from strategies.federation import Federation, StoredRound
from strategies.method import PERCENT, Hyperparameters, Needs, option
from strategies.parts.finetuning import fine_tune
from strategies.parts.relearning import OrdinaryRelearning
from strategies.rounds.base import NothingTouched, Used
from strategies.rounds.replay import ReplayedRound, after, difference
from strategies.rounds.scaling import STATISTICS


@dataclass(frozen=True)
class FedEraser(OrdinaryRelearning, Hyperparameters):
    """The paper's protocol; the retaining interval is `keep-updates`, a setting of training."""

    ratio: float = option(
        0.5,
        Rule(lambda v: 0 < v <= 1, "lie in (0, 1]"),
        "calibration ratio, r: share of training's local steps or epochs, rounded up",
    )
    rounds: int = option(0, at_least(0), "ordinary rounds after the replay, at most")
    tolerance: float = option(
        0.0, PERCENT, "percent points of retain accuracy that recovery may leave missing"
    )

    needs: ClassVar[Needs] = Needs(
        own_loss=True,
        levels=frozenset({"class", "client"}),
        target_online=False,
        individual_updates=True,
        plain_mean=True,
        history=True,
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return a model rebuilt from the initial weights; `model` says how good it was."""
        wanted = federation.accuracies(model).retain if self.rounds else None
        model, replayed = federation.initial(), 0
        ordinary = federation.ordinary()
        told = replace(
            ordinary,
            steps=math.ceil(self.ratio * ordinary.steps),
            epochs=math.ceil(self.ratio * ordinary.epochs),
        )
        left = set(federation.keepers())
        for kept in federation.history():
            names = [name for name in sorted(kept.updates) if name in left]
            if not names:
                continue
            stored = StoredRound(
                kept.number,
                {name: kept.updates[name] for name in names},
                {name: kept.weights[name] for name in names},
            )
            replay: ReplayedRound
            if kept.number == 1 and federation.forget.level == "client":
                # 1. Neither the initial model nor the others' updates of it know the client.
                replay = ReplayedRound(told, stored)
            else:
                # 2. The others train a little from the new model, for the directions, which take
                #    the lengths of what was kept; their weighted mean is the next step.
                min_share = federation.plan.min_share
                rates = federation.plan.rates
                calibrating = told if rates is None else replace(told, lr=rates(kept.number))
                replay = CalibratedRound(
                    calibrating, stored, participants=names, min_share=min_share
                )
            model = federation.run("unlearn", replay, model, num_rounds=1)
            replayed += 1
        if not replayed:
            raise NothingTouched("stored updates must hold clients with data left, got none")
        # 3. If asked for, ordinary rounds: what the rounds that were not kept would have brought.
        return fine_tune(
            federation, model, rounds=self.rounds, wanted=wanted, tolerance=self.tolerance
        )


class CalibratedRound(ReplayedRound):
    """A stored round with its directions found anew by training on what is retained."""

    asks = True

    def combine(self, used: Mapping[str, Used]) -> ArrayRecord:
        """Return the model after the calibrated round."""
        updates = {
            name: calibrated(self.stored.updates[name], difference(answer.arrays, self.sent))
            for name, answer in used.items()
        }
        weights = {name: answer.examples for name, answer in used.items()}
        self.kept = StoredRound(self.stored.number, updates, weights)
        return after(self.sent, self.kept)


def calibrated(stored: ArrayRecord, found: ArrayRecord) -> ArrayRecord:
    """Return U-tilde = ||U|| * U-hat / ||U-hat||, tensor by tensor.

    Args:
        stored: U, a node's update of training.
        found: U-hat, its update of calibration training; the same tensors. One of length zero
            stays zero, and running statistics stay as they are.
    """

    def one(name: str) -> Array:
        direction = found[name].numpy()
        if name.rpartition(".")[2] in STATISTICS:
            return found[name]
        wanted = np.linalg.norm(stored[name].numpy().astype(np.float64))
        length = np.linalg.norm(direction.astype(np.float64))
        scale = wanted / length if length > 0 else 0.0
        return Array(np.multiply(direction, scale, dtype=np.float64).astype(direction.dtype))

    return ArrayRecord({name: one(name) for name in found})
