"""QuickDrop, calibrated: climb to the depth of data never seen, and hold it there.

A variant of Dhasade et al. 2024 (see `strategies.quickdrop`): the same synthetic data, the same
messages. What the original leaves to a tuned rate and number of steps is found with the holders.

Departs from the paper:
1. Every holder climbs until its own loss on S_f is that of a class never seen, ln K, and leaves
   the last layer as it is. A fixed budget undershoots on one model and destroys the next.
2. The coordinator gives the forgotten classes' rows of the last layer the mean of the other rows:
   a model that never saw a class has no direction for it, and a few steps bring back what was only
   turned away. The curve falls by this step alone, so that it says little about the features
   behind (see benchmarks/RESULTS.md).
3. Recovery takes few steps at a larger rate, and holders keep the forgotten images
   down by two bounded terms (`client.recovery.known`), so that the class does not creep back.
4. The first layer stays as it is throughout: its edges serve every class, and are what costs most.
5. Relearning takes ordinary rounds on real data: the class or client is there again.

At client level it is QuickDrop with a deeper ascent: a client's data are not unknown to Retrained,
which has seen the others' examples of the same classes, so 1 to 3 would go too far.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord

from client.wire import Ascend, Descend, Fit
from strategies.federation import Federation
from strategies.guard import guarded_recovery
from strategies.method import Hyperparameters, Needs
from strategies.quickdrop import QuickDrop
from strategies.rounds import AscentRounds, FederatedAveraging, RecoveryRounds

HEAD = ("classifier.weight", "classifier.bias")
WHOLE = 10**9  # a batch size that takes everything


@dataclass(frozen=True)
class CalibratedQuickDrop(Hyperparameters):
    """The variant's protocol."""

    unlearn_lr: float = 0.01  # eta_theta while unlearning
    unlearn_steps: int = 10  # at most; full passes over S_f
    recover_rounds: int = 3
    recover_batches: int = 2  # steps a round: S \ S_f and its originals in so many parts
    recover_lr: float = 0.05  # eta_theta while recovering
    recover_last_lr: float = 0.03  # eta_theta in the last of these rounds
    hold: float = 1.0  # weight of -log(1 - p)
    hold_features: float = 2.0  # weight of the features' mean square
    client_epochs: int = 5  # unlearn_epochs of QuickDrop at client level
    relearn_holder_rounds: int = 4  # ordinary rounds of the holders alone
    relearn_rounds: int = 2  # ordinary rounds of all
    full_steps: int = 10  # T of an ordinary round
    full_lr: float = 0.05  # eta_theta of an ordinary round
    batch_size: int = 64
    threshold: float = 1.0  # percent; recovery is rolled back above it, 100 for never

    needs: ClassVar[Needs] = Needs(levels=frozenset({"class", "client"}), synthetic_data=True)

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names."""
        if federation.forget.level == "client":
            return QuickDrop(unlearn_epochs=self.client_epochs).forget(federation, model)

        # 1. Climb: each holder until its S_f looks like data never seen.
        told = federation.settings(
            Ascend,
            epochs=self.unlearn_steps,
            batch_size=WHOLE,
            lr=self.unlearn_lr,
            freeze_head=True,
            freeze_stem=True,
        )
        unseen = replace(told, target_loss=math.log(told.model_classes))
        ascent = AscentRounds(unseen, participants=federation.holders(synthetic=True))
        model = federation.run("unlearn", ascent, model, num_rounds=1)

        # 2. Take the classes' own directions out of the last layer.
        model = without_directions(model, federation.forget.classes)

        # 3. Recover on S \ S_f and as many originals; holders hold the forgotten images down.
        kept = federation.settings(
            Descend,
            epochs=1,
            batches=self.recover_batches,
            lr=self.recover_lr,
            hold=self.hold,
            hold_features=self.hold_features,
            freeze_stem=True,
        )
        last = replace(kept, lr=self.recover_last_lr)
        recoveries = [RecoveryRounds(kept)] * (self.recover_rounds - 1) + [RecoveryRounds(last)]
        for recovery in recoveries:
            model = guarded_recovery(
                federation, model, ascent, recovery, num_rounds=1, threshold=self.threshold
            )
        return model

    def relearn(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` with what the request names put back."""
        # 1. The holders alone bring it back: among all nodes' updates theirs would be diluted.
        holders = federation.holders(synthetic=False)
        rounds = self._ordinary(federation, holders, side="all")
        model = federation.run("relearn", rounds, model, num_rounds=self.relearn_holder_rounds)
        # 2. All nodes settle.
        rounds = self._ordinary(federation, side="all")
        return federation.run("relearn", rounds, model, num_rounds=self.relearn_rounds)

    def _ordinary(
        self, federation: Federation, participants: list[str] | None = None, **more: Any
    ) -> FederatedAveraging:
        told = federation.settings(
            Fit,
            steps=self.full_steps,
            lr=self.full_lr,
            batch_size=self.batch_size,
            scale=0,  # the synthetic sets are made in the first training only
            **more,
        )
        return FederatedAveraging(told, participants=participants)


def without_directions(model: ArrayRecord, classes: tuple[int, ...]) -> ArrayRecord:
    """Return `model` with the rows of `classes` in the last layer set to the other rows' mean.

    Args:
        model: Holds `classifier.weight` `(K, F)` and `classifier.bias` `(K,)`; not changed.
        classes: Rows to replace; none, or all, gives an equal model.
    """
    others = [k for k in range(len(model[HEAD[0]].numpy())) if k not in classes]
    if not classes or not others:
        return model
    changed = ArrayRecord(dict(model.items()))
    for name in HEAD:
        rows = model[name].numpy().copy()
        rows[list(classes)] = rows[others].mean(axis=0, dtype=np.float64).astype(rows.dtype)
        changed[name] = Array(rows)
    return changed
