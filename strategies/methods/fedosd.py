"""FedOSD: unlearn at right angles to the others.

Pan, Wang, Li, Zheng, Wang, Tang, Zhao: "Federated Unlearning with Gradient Descent and Conflict
Mitigation", AAAI 2025, https://arxiv.org/abs/2412.20200. Symbols as there: u the target client,
g_u its gradient of the unlearning cross-entropy (UCE), g_i those of the remaining clients.

Departs from the paper:
1. Classes are forgotten, too: every holder gives a gradient g_u on its examples of the class, every
   node with data left one on the rest. Of several targets the mean counts, by their examples.
2. The targets are asked first, the others after them, not all at once: of a class one node may be
   both.
3. Post-training is by ordinary rounds, averaged by |D_i|, and stops when the accuracy on the
   clients' held-out data is back, or after the rounds.
4. A norm layer's running statistics are no directions: unlearning leaves them, recovery averages.
5. Relearning is by ordinary rounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord

from client.steps.fedosd import Gradient
from client.wire import MIN_EXAMPLES, Common, at_least
from strategies.federation import Federation
from strategies.method import COUNT, PERCENT, RATE, Hyperparameters, Needs, option
from strategies.parts.effort import Effort, Holding, Network, effort
from strategies.parts.participation import as_in_training
from strategies.parts.relearning import OrdinaryRelearning
from strategies.rounds.base import FederatedAveraging, NothingTouched, Rounds, Used
from strategies.rounds.scaling import STATISTICS

Floats = np.ndarray[Any, np.dtype[np.float64]]

NO_ROOM = 1e-6  # share of g_u below which nothing of it is left outside the others' gradients


@dataclass(frozen=True)
class OrthogonalSteepestDescent(OrdinaryRelearning, Hyperparameters):
    """The paper's protocol."""

    unlearn_rounds: int = option(10, COUNT, "rounds of unlearning")
    unlearn_lr: float = option(0.1, RATE, "learning rate of unlearning, eta")
    rounds: int = option(10, at_least(0), "rounds of post-training, at most")
    tolerance: float = option(
        0.0, PERCENT, "percent points of retain accuracy that post-training may leave missing"
    )

    needs: ClassVar[Needs] = Needs(
        levels=frozenset({"class", "client"}), individual_updates=True, plain_mean=True
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names.

        Raises:
            NothingTouched: If in some round no direction conflicts with no remaining client. The
                request fails then, and the version before it stays.
        """
        before = model
        wanted = federation.accuracies(model).retain
        targets = federation.holders(synthetic=False)
        remaining = federation.keepers()
        for _ in range(self.unlearn_rounds):
            # 1. The targets' gradient of UCE: down it, they are forgotten.
            asked = federation.settings(Gradient, side="forget")
            towards = federation.run(
                "score", TargetGradient(asked, participants=targets), model, num_rounds=1
            )
            # 2. What of it is orthogonal to every gradient of the remaining clients, as long as
            #    before, is the next step: the steepest that does not conflict with any of them.
            asked = federation.settings(Gradient, side="retain")
            step = OrthogonalStep(
                asked, towards=towards, lr=self.unlearn_lr, participants=remaining
            )
            model = federation.run("unlearn", step, model, num_rounds=1)

        # 3. Post-training: the remaining clients train; of each update the part that leads back to
        #    where the model came from, or further away, is left out.
        recovery = NoWayBack(federation.ordinary(), origin=before, **as_in_training(federation))
        for _ in range(self.rounds):
            if wanted is not None:
                known = federation.accuracies(model).retain
                if known is not None and known >= wanted - self.tolerance:
                    break
            model = federation.run("recover", recovery, model, num_rounds=1)
        return model


@effort.register
def _(told: Gradient, holding: Holding, network: Network) -> Effort:
    examples = sum(holding.side(told.side))
    return Effort(examples if examples >= MIN_EXAMPLES else 0.0, network.nbytes, network.nbytes)


class TargetGradient(Rounds):
    """The mean of the targets' gradients, by their examples. All of them must answer."""

    changes_model = False
    takes_all = True

    def _measure(self, name: str, answer: Used, start: ArrayRecord | None) -> None:
        """Note one whose gradient leads nowhere, too: it is 0 where nothing is known any more."""
        super()._measure(name, answer, start)
        if answer.examples and not any(a.numpy().any() for a in answer.arrays.values()):
            self.idle.append(name)


class OrthogonalStep(Rounds):
    """theta <- theta - eta * d: g_u without its part in the span of the g_i, as long as g_u."""

    def __init__(self, settings: Common, *, towards: ArrayRecord, lr: float, **more: Any) -> None:
        """Args as in `Rounds`, and:

        Args:
            settings: What every remaining client is told.
            towards: g_u, an array for every parameter.
            lr: eta.
            more: Arguments of `Rounds`.
        """
        super().__init__(settings, **more)
        self.towards = towards
        self.lr = lr

    def combine(self, used: Mapping[str, Used]) -> ArrayRecord:
        """Return the model after the step.

        Raises:
            NothingTouched: If no direction is left that conflicts with nobody.
        """
        names = list(self.towards)
        others = np.stack([row(answer.arrays, names) for answer in used.values()])
        step = orthogonal(row(self.towards, names), others)
        return moved(self.sent, names, -self.lr * step)


class NoWayBack(FederatedAveraging):
    """FedAvg whose updates have no part along theta - theta_0, the way that unlearning went."""

    def __init__(self, settings: Common, *, origin: ArrayRecord, **more: Any) -> None:
        """Args as in `Rounds`, and:

        Args:
            settings: What every node is told.
            origin: theta_0, the model before unlearning.
            more: Arguments of `Rounds`.
        """
        super().__init__(settings, **more)
        self.origin = origin

    def combine(self, used: Mapping[str, Used]) -> ArrayRecord:
        """Return the mean of the models, their updates projected."""
        names = [name for name in self.sent if name.rpartition(".")[2] not in STATISTICS]
        here = row(self.sent, names)
        way = here - row(self.origin, names)
        projected = {}
        for name, answer in used.items():
            update = row(answer.arrays, names) - here
            arrays = ArrayRecord({**answer.arrays, **{n: self.sent[n] for n in names}})
            arrays = moved(arrays, names, sideways(update, way))
            projected[name] = Used(arrays, answer.examples, answer.metrics)
        return super().combine(projected)


def orthogonal(direction: Floats, others: Floats) -> Floats:
    """Return d = g_u - A^T (A A^T)^+ A g_u, scaled to the length of g_u.

    Args:
        direction: g_u, `(P,)`.
        others: A, the g_i in its rows, `(n, P)`; they may depend on each other.

    Raises:
        NothingTouched: If nothing of g_u is left.
    """
    length = np.linalg.norm(direction)
    if not length:
        return direction
    rest: Floats = direction - others.T @ np.linalg.lstsq(others.T, direction, rcond=None)[0]
    left = np.linalg.norm(rest)
    if left < NO_ROOM * length:
        raise NothingTouched(
            "unlearning must find a direction that no remaining client's gradient lies in, got "
            "none; choose another method"
        )
    return np.asarray(rest * (length / left))


def sideways(update: Floats, way: Floats) -> Floats:
    """Return an update without its part along `way`, as long as before; both `(P,)`."""
    square = way @ way
    if not square:
        return update
    rest = update - (update @ way / square) * way
    left = np.linalg.norm(rest)
    return np.asarray(rest * (np.linalg.norm(update) / left)) if left else rest


def row(arrays: Mapping[str, Array], names: list[str]) -> Floats:
    """Return the named arrays behind each other, `(P,)` float64."""
    return np.concatenate([arrays[name].numpy().astype(np.float64).ravel() for name in names])


def moved(model: ArrayRecord, names: list[str], step: Floats) -> ArrayRecord:
    """Return `model` with `step` `(P,)` added to the named arrays, in their order."""
    result, at = ArrayRecord(dict(model.items())), 0
    for name in names:
        array = model[name].numpy()
        change = step[at : at + array.size].reshape(array.shape)
        result[name] = Array((array + change).astype(array.dtype))
        at += array.size
    return result
