"""QuickDrop, calibrated: ascend to the loss of data never seen.

A variant of Dhasade et al. 2024 (see `strategies.methods.quickdrop`): the same synthetic data, the
same messages. What the original leaves to a tuned rate and number of steps is found with the
holders, for every class c from the share of its examples that goes:

    s_c = |D_f^c| / |D^c|      1 at class level; at client level what only this client knew

Departs from the paper:
1. Every class ascends until its loss on S_f is s_c * ln K, ln K being the loss of a class never
   seen; the last layer stays as it is. A fixed budget undershoots on one model and destroys the
   next.
2. Recovery takes few steps at a larger rate. At class level holders keep the forgotten images down
   by two bounded terms (`client.learning.recovery.known`), so that the class does not creep back,
   and the last layer stays as it is here, too: its row of the class is what the class would be
   found by, and a row that was moved would satisfy the terms and the guard at once. So would a
   change of all images' features alike: in all rounds but the last a third term compares forgotten
   images with retained ones that look alike (`client.learning.recovery.beside`). It costs accuracy,
   so that the last round goes without it, and so do the rounds more that follow while the retained
   classes are not back.
3. Only then the coordinator moves each class's row of the last layer by s_c towards the mean of the
   rows that stay: a model that never saw a class has no direction for it, and a few steps bring
   back what was only turned away. At client level, where a class goes in part, the rows move before
   recovery and nothing is held down.
4. The first layer stays as it is in ascent and recovery: its edges serve every class, and cost most
   of the time.
5. Relearning takes ordinary rounds on real data: the class or client is there again.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord

from client.learning.models import ModelSpec, traced
from client.steps.ascent import Ascend
from client.steps.recovery import Descend
from client.steps.training import Fit
from client.wire import between
from strategies.federation import Federation, S
from strategies.method import COUNT, PERCENT, RATE, Hyperparameters, Needs, option
from strategies.parts.guard import guarded_recovery, retained
from strategies.parts.participation import as_in_training
from strategies.rounds.base import AscentRounds, FederatedAveraging, RecoveryRounds

REMEDY = (
    "hold harder (hold, hold-features, hold-beside) or recover less (recover-lr, recover-rounds)"
)
WHOLE = 10**9  # a batch size that takes everything

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class CalibratedQuickDrop(Hyperparameters):
    """The variant's protocol; `client_` values hold at client level in place of the others."""

    unlearn_lr: float = option(0.01, RATE, "learning rate of the ascent at class level, eta_theta")
    client_unlearn_lr: float = option(
        0.02, RATE, "learning rate of the ascent at client level, eta_theta"
    )
    unlearn_steps: int = option(
        30, COUNT, "steps of the ascent, each on the whole forget set, S_f, at most"
    )
    recover_rounds: int = option(
        4, COUNT, "rounds of recovery at class level; some more while accuracy is missing"
    )
    client_recover_rounds: int = option(
        4, COUNT, "rounds of recovery at client level; some more while accuracy is missing"
    )
    recover_batches: int = option(
        4,
        COUNT,
        "batches that the retained set, S without S_f, makes in a round of recovery at class level",
    )
    client_recover_batches: int = option(
        8, COUNT, "batches that it makes in a round of recovery at client level"
    )
    recover_lr: float = option(
        0.05, RATE, "learning rate of recovery before its last round, at class level, eta_theta"
    )
    recover_last_lr: float = option(
        0.03, RATE, "learning rate of recovery from its last round on, at class level, eta_theta"
    )
    client_recover_lr: float = option(
        0.03, RATE, "learning rate of recovery at client level, eta_theta"
    )
    hold: float = option(
        5.0,
        between(0.0, 1e3),
        "weight of -log(1 - p) in recovery, p the probability of a forgotten example's class",
    )
    hold_features: float = option(
        1.0,
        between(0.0, 1e3),
        "weight of the mean square of forgotten examples' features in recovery",
    )
    hold_beside: float = option(
        1.0,
        between(0.0, 1e3),
        "weight of how far forgotten examples stand out from retained ones like them, until the "
        "last round",
    )
    relearn_holder_rounds: int = option(4, COUNT, "rounds of relearning by the holders alone")
    relearn_rounds: int = option(
        2, COUNT, "rounds of relearning by all nodes, after those of the holders"
    )
    full_steps: int = option(10, COUNT, "SGD steps of a node in a round of relearning, T")
    full_lr: float = option(0.05, RATE, "learning rate of relearning on real data, eta_theta")
    batch_size: int = option(64, COUNT, "examples in a batch of relearning")
    threshold: float = option(
        1.0,
        PERCENT,
        "percent of forget accuracy above which a round of recovery is rolled back; 100 for never",
    )
    tolerance: float = option(
        1.0, PERCENT, "points of retain accuracy that recovery may leave missing, at class level"
    )
    client_tolerance: float = option(
        3.0, PERCENT, "points of retain accuracy that recovery may leave missing, at client level"
    )

    needs: ClassVar[Needs] = Needs(
        float_inputs=True,
        head=True,
        levels=frozenset({"class", "client"}),
        synthetic_data=True,
        # A client's share of every class is a count by name.
        sums=frozenset({"class"}),
    )
    source: ClassVar[str] = "synthetic"  # what S and S_f are made of

    def message(self, federation: Federation, kind: type[S], **values: Any) -> S:
        """Return the settings of an ascent or descent."""
        return federation.settings(kind, **values)

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names."""
        classes = federation.forget.level == "class"
        share = share_forgotten(federation)
        tolerance = self.tolerance if classes else self.client_tolerance
        wanted = retained(federation, model, tolerance)

        # 1. Ascend: every class as far as the share of it that goes.
        ascending = self.message(
            federation,
            Ascend,
            data=self.source,
            epochs=self.unlearn_steps,
            batch_size=WHOLE,
            lr=self.unlearn_lr if classes else self.client_unlearn_lr,
            freeze_head=True,
            freeze_stem=True,
        )
        holders = federation.holders(synthetic=self.needs.synthetic_data)

        def ascent(rollbacks: int) -> AscentRounds:
            # What came back although it had been as far down as data never seen goes deeper.
            depth = (1 + rollbacks / 2) * share * math.log(len(share))
            return AscentRounds(
                replace(ascending, target_losses=depth.tolist()), participants=holders
            )

        model = federation.run("unlearn", ascent(0), model, num_rounds=1)

        # 2. Recover on S \ S_f and as many originals.
        rounds = self.message(
            federation,
            Descend,
            data=f"{self.source}+original",
            epochs=1,
            lr=self.client_recover_lr,
            freeze_stem=True,
        )
        drawn = as_in_training(federation, synthetic=self.needs.synthetic_data)
        watched = functools.partial(guarded_recovery, federation, remedy=REMEDY)
        moved = functools.partial(without_directions, share=share, head=head_of(federation.spec))
        if not classes:  # a client's data are like the others': there is nothing to hold down
            gentle = RecoveryRounds(replace(rounds, batches=self.client_recover_batches), **drawn)
            number = self.client_recover_rounds
            model = moved(model)
            return watched(model, ascent, gentle, num_rounds=number, threshold=100.0, wanted=wanted)
        rounds = replace(
            rounds,
            batches=self.recover_batches,
            hold=self.hold,
            hold_features=self.hold_features,
            hold_beside=self.hold_beside,
            freeze_head=True,
        )
        fast = RecoveryRounds(replace(rounds, lr=self.recover_lr), **drawn)
        settling = replace(rounds, lr=self.recover_last_lr, hold_beside=0.0)
        last = RecoveryRounds(settling, **drawn)
        number = self.recover_rounds - 1
        model = watched(model, ascent, fast, num_rounds=number, threshold=self.threshold)
        model = watched(model, ascent, last, num_rounds=1, threshold=self.threshold, wanted=wanted)

        # 3. Take the classes' own directions out of the last layer.
        return moved(model)

    def relearn(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` with what the request names put back."""
        # 1. The holders alone bring it back: among all nodes' updates theirs would be diluted.
        told = self._ordinary(federation)
        alone = FederatedAveraging(
            replace(told, holders_alone=told.sums_only),
            participants=federation.holders(synthetic=False),
        )
        model = federation.run("relearn", alone, model, num_rounds=self.relearn_holder_rounds)
        # 2. All nodes settle.
        together = FederatedAveraging(told, **as_in_training(federation, back=True))
        return federation.run("relearn", together, model, num_rounds=self.relearn_rounds)

    def _ordinary(self, federation: Federation) -> Fit:
        return federation.settings(
            Fit,
            side="all",
            steps=self.full_steps,
            lr=self.full_lr,
            batch_size=self.batch_size,
            scale=0,  # the synthetic sets are made in the first training only
        )


def share_forgotten(federation: Federation) -> Floats:
    """Return the share of every class's training examples that goes, `(K,)`, each in [0, 1]."""
    if federation.forget.level == "class":
        share = np.zeros(federation.spec.num_classes)
        share[list(federation.forget.classes)] = 1.0
        return share
    counts = federation.class_counts()
    counts = {name: n for name, n in counts.items() if name not in federation.erased_clients}
    total: Floats = np.sum(list(counts.values()), axis=0, dtype=np.float64)
    gone = np.sum([counts[name] for name in federation.forget.clients], axis=0)
    return np.asarray(gone / np.maximum(total, 1.0))


def head_of(spec: ModelSpec) -> str:
    """Return the name of a model's last linear layer, which `Needs` asks for."""
    return str(traced(spec).head)


def without_directions(
    model: ArrayRecord, share: Floats, *, head: str = "classifier"
) -> ArrayRecord:
    """Return `model` with each row of the last layer moved towards the mean of those that stay.

        w_c <- w_c + s_c * (m - w_c),      m = sum_k (1 - s_k) * w_k / sum_k (1 - s_k)

    Args:
        model: Holds the last layer's weight `(K, F)` and, if it has one, bias `(K,)`; not changed.
        share: s, `(K,)`; all 0, or all 1, gives an equal model.
        head: Name of that layer.
    """
    staying = 1.0 - share
    if not share.any() or not staying.any():
        return model
    changed = ArrayRecord(dict(model.items()))
    for name in [n for n in (f"{head}.weight", f"{head}.bias") if n in model]:
        rows = model[name].numpy()
        mean = np.average(rows, axis=0, weights=staying)
        moved = rows + (share * (mean - rows).T).T
        changed[name] = Array(moved.astype(rows.dtype))
    return changed
