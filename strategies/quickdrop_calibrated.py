"""QuickDrop, calibrated: climb to the depth of data never seen, and hold it there.

A variant of Dhasade et al. 2024 (see `strategies.quickdrop`): the same synthetic data, the same
messages. What the original leaves to a tuned rate and number of steps is found with the holders,
and what a relearning curve shows to be hidden only is removed.

Departs from the paper:
1. Every holder climbs until its own loss on S_f is that of a class never seen, ln K, and leaves
   the last layer as it is. A fixed budget undershoots on one model and destroys the next.
2. The coordinator gives the forgotten classes' rows of the last layer the mean of the other rows:
   a model that never saw a class has no direction for it, and a few steps bring back what was only
   turned away.
3. Recovery takes few, small steps at a larger rate, and holders keep the forgotten images down by
   two bounded terms (`client.recovery.known`), so that the class does not creep back.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord

from client.wire import Ascend, Descend
from strategies.federation import Federation
from strategies.guard import guarded_recovery
from strategies.method import Hyperparameters, Needs
from strategies.rounds import AscentRounds, RecoveryRounds

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
    hold_features: float = 1.0  # weight of the features' mean square
    relearn_rounds: int = 3
    relearn_epochs: int = 5
    relearn_lr: float = 0.05
    batch_size: int = 64
    threshold: float = 1.0  # percent; recovery is rolled back above it, 100 for never

    needs: ClassVar[Needs] = Needs(levels=frozenset({"class", "client"}), synthetic_data=True)

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names."""
        holders = federation.holders(synthetic=True)
        classes = federation.forget.classes

        # 1. Climb: each holder until its S_f looks like data never seen.
        told = federation.settings(
            Ascend,
            epochs=self.unlearn_steps,
            batch_size=WHOLE,
            lr=self.unlearn_lr,
            freeze_head=True,
        )
        unseen = replace(told, target_loss=math.log(told.model_classes))
        ascent = AscentRounds(unseen, participants=holders)
        model = federation.run("unlearn", ascent, model, num_rounds=1)

        # 2. Take the classes' own directions out of the last layer.
        model = without_directions(model, classes)

        # 3. Recover on S \ S_f and as many originals; holders hold the forgotten images down.
        recovery = RecoveryRounds(
            federation.settings(
                Descend,
                epochs=1,
                batches=self.recover_batches,
                lr=self.recover_lr,
                hold=self.hold,
                hold_features=self.hold_features,
            )
        )
        return guarded_recovery(
            federation,
            model,
            ascent,
            recovery,
            num_rounds=self.recover_rounds,
            threshold=self.threshold if classes else 100.0,
        )

    def relearn(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` with what the request names put back."""
        federation.holders(synthetic=False)
        relearning = RecoveryRounds(
            federation.settings(
                Descend,
                side="all",
                epochs=self.relearn_epochs,
                lr=self.relearn_lr,
                batch_size=self.batch_size,
            )
        )
        return federation.run("relearn", relearning, model, num_rounds=self.relearn_rounds)


def without_directions(model: ArrayRecord, classes: tuple[int, ...]) -> ArrayRecord:
    """Return `model` with the rows of `classes` in the last layer set to the other rows' mean.

    Args:
        model: Holds `classifier.weight` `(K, F)` and `classifier.bias` `(K,)`; not changed.
        classes: Rows to replace; none gives an equal model.
    """
    if not classes:
        return model
    changed = ArrayRecord(dict(model.items()))
    for name in HEAD:
        rows = model[name].numpy().copy()
        others = [k for k in range(len(rows)) if k not in classes]
        rows[list(classes)] = rows[others].mean(axis=0, dtype=np.float64).astype(rows.dtype)
        changed[name] = Array(rows)
    return changed
