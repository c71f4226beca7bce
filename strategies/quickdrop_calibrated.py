"""QuickDrop, calibrated: climb as far as data never seen lie, and hold what is forgotten there.

A variant of Dhasade et al. 2024 (see `strategies.quickdrop`): the same synthetic data, the same
messages. What the original leaves to a tuned rate and number of steps is found with the holders,
for every class c from the share of its examples that goes:

    s_c = |D_f^c| / |D^c|      1 at class level; at client level what only this client knew

Departs from the paper:
1. Every class climbs until its loss on S_f is s_c * ln K, ln K being the loss of a class never
   seen; the last layer stays as it is. A fixed budget undershoots on one model and destroys the
   next.
2. The coordinator moves each class's row of the last layer by s_c towards the mean of the rows that
   stay: a model that never saw a class has no direction for it, and a few steps bring back what was
   only turned away. The relearning curve falls by this step alone, so that it says little about
   the features behind (see benchmarks/RESULTS.md).
3. Recovery takes few steps at a larger rate, and at class level holders keep the forgotten images
   down by two bounded terms (`client.recovery.known`), so that the class does not creep back.
4. The first layer stays as it is throughout: its edges serve every class, and are what costs most.
5. Relearning takes ordinary rounds on real data: the class or client is there again.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord

from client.wire import Ascend, Descend, Fit
from strategies.federation import Federation
from strategies.guard import guarded_recovery, retained
from strategies.method import Hyperparameters, Needs
from strategies.rounds import AscentRounds, FederatedAveraging, RecoveryRounds

HEAD = ("classifier.weight", "classifier.bias")
WHOLE = 10**9  # a batch size that takes everything

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class CalibratedQuickDrop(Hyperparameters):
    """The variant's protocol; `client_` values hold at client level in place of the others."""

    unlearn_lr: float = 0.01  # eta_theta while unlearning
    client_unlearn_lr: float = 0.02
    unlearn_steps: int = 30  # at most; full passes over S_f
    recover_rounds: int = 3
    client_recover_rounds: int = 4
    recover_batches: int = 2  # steps a round: S \ S_f and its originals in so many parts
    client_recover_batches: int = 8
    recover_lr: float = 0.05  # eta_theta while recovering
    recover_last_lr: float = 0.03  # eta_theta in the last of these rounds
    client_recover_lr: float = 0.03  # eta_theta in all of them
    hold: float = 1.0  # weight of -log(1 - p)
    hold_features: float = 2.0  # weight of the features' mean square
    relearn_holder_rounds: int = 4  # ordinary rounds of the holders alone
    relearn_rounds: int = 2  # ordinary rounds of all
    full_steps: int = 10  # T of an ordinary round
    full_lr: float = 0.05  # eta_theta of an ordinary round
    batch_size: int = 64
    threshold: float = 1.0  # percent; recovery is rolled back above it, 100 for never
    tolerance: float = 3.0  # points of retain accuracy that recovery may leave missing

    needs: ClassVar[Needs] = Needs(levels=frozenset({"class", "client"}), synthetic_data=True)

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names."""
        one_class = federation.forget.level == "class"
        share = shares(federation)
        wanted = retained(federation, model, self.tolerance)

        # 1. Climb: every class as far as the share of it that goes.
        climb = federation.settings(
            Ascend,
            epochs=self.unlearn_steps,
            batch_size=WHOLE,
            lr=self.unlearn_lr if one_class else self.client_unlearn_lr,
            target_losses=(share * math.log(len(share))).tolist(),
            freeze_head=True,
            freeze_stem=True,
        )
        ascent = AscentRounds(climb, participants=federation.holders(synthetic=True))
        model = federation.run("unlearn", ascent, model, num_rounds=1)

        # 2. Take the classes' own directions out of the last layer.
        model = without_directions(model, share)

        # 3. Recover on S \ S_f and as many originals.
        descent = federation.settings(
            Descend, epochs=1, lr=self.client_recover_lr, freeze_stem=True
        )
        if not one_class:  # a client's data are like the others': there is nothing to hold down
            return guarded_recovery(
                federation,
                model,
                ascent,
                RecoveryRounds(replace(descent, batches=self.client_recover_batches)),
                num_rounds=self.client_recover_rounds,
                threshold=100.0,
                wanted=wanted,
            )
        held = replace(
            descent,
            batches=self.recover_batches,
            lr=self.recover_lr,
            hold=self.hold,
            hold_features=self.hold_features,
        )
        model = guarded_recovery(
            federation,
            model,
            ascent,
            RecoveryRounds(held),
            num_rounds=self.recover_rounds - 1,
            threshold=self.threshold,
        )
        return guarded_recovery(
            federation,
            model,
            ascent,
            RecoveryRounds(replace(held, lr=self.recover_last_lr)),
            num_rounds=1,
            threshold=self.threshold,
            wanted=wanted,
        )

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


def shares(federation: Federation) -> Floats:
    """Return the share of every class's training examples that goes, `(K,)`, each in [0, 1]."""
    counts = federation.class_counts()
    counts = {name: n for name, n in counts.items() if name not in federation.erased_clients}
    total: Floats = np.sum(list(counts.values()), axis=0, dtype=np.float64)
    if federation.forget.level == "class":
        share = np.zeros_like(total)
        share[list(federation.forget.classes)] = 1.0
        return share
    gone = np.sum([counts[name] for name in federation.forget.clients], axis=0)
    return np.asarray(gone / np.maximum(total, 1.0))


def without_directions(model: ArrayRecord, share: Floats) -> ArrayRecord:
    """Return `model` with each row of the last layer moved towards the mean of those that stay.

        w_c <- w_c + s_c * (m - w_c),      m = sum_k (1 - s_k) * w_k / sum_k (1 - s_k)

    Args:
        model: Holds `classifier.weight` `(K, F)` and `classifier.bias` `(K,)`; not changed.
        share: s, `(K,)`; all 0, or all 1, gives an equal model.
    """
    staying = 1.0 - share
    if not share.any() or not staying.any():
        return model
    changed = ArrayRecord(dict(model.items()))
    for name in HEAD:
        rows = model[name].numpy()
        mean = np.average(rows, axis=0, weights=staying)
        moved = rows + (share * (mean - rows).T).T
        changed[name] = Array(moved.astype(rows.dtype))
    return changed
