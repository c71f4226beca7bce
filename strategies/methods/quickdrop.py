"""QuickDrop: ascend on synthetic data, then recover.

Dhasade, Ding, Guo, Kermarrec, de Vos, Wu: "QuickDrop: Efficient Federated Unlearning via Synthetic
Data Generation", Middleware 2024, https://arxiv.org/abs/2311.15603, sections 3.1 to 3.4.

Departs from the paper:
1. A recovery round after which the forgotten class is back is rolled back, and recovery goes on for
   some rounds more while the rest is still coming back (`strategies.parts.guard`).
2. Recovery takes a rate of 0.03, where the paper has 0.01, in batches of 16 over six epochs: chosen
   on MNIST. `--set recover-lr=0.01` is the paper's.
3. Relearning passes over the holders' whole synthetic sets and their originals, because on S_f
   alone the other classes are lost, and ends with rounds of all nodes.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from flwr.app import ArrayRecord

from client.steps.ascent import Ascend
from client.steps.recovery import Descend
from client.steps.store import Condense
from client.wire import at_least
from strategies.federation import Federation, S
from strategies.method import COUNT, PERCENT, RATE, Hyperparameters, Needs, option
from strategies.parts.guard import guarded_recovery, retained
from strategies.parts.participation import as_in_training
from strategies.rounds.base import AscentRounds, RecoveryRounds


@dataclass(frozen=True)
class QuickDrop(Hyperparameters):
    """QuickDrop's protocol."""

    unlearn_rounds: int = option(1, COUNT, "rounds of the ascent")
    unlearn_epochs: int = option(
        3, COUNT, "passes over the forget set, S_f, in a round of the ascent, in place of T steps"
    )
    unlearn_lr: float = option(0.02, RATE, "learning rate of the ascent, eta_theta")
    recover_rounds: int = option(
        2, COUNT, "rounds of recovery; some more while accuracy is missing"
    )
    recover_epochs: int = option(
        6,
        COUNT,
        "passes over the retained set, S without S_f, in a round of recovery, in place of T steps",
    )
    recover_lr: float = option(
        0.03, RATE, "learning rate of recovery, eta_theta; 0.01 in the paper"
    )
    recover_batch: int = option(16, COUNT, "examples in a batch of recovery")
    finetune_steps: int = option(
        0, at_least(0), "networks on which the synthetic sets are improved before recovery, F"
    )
    relearn_holder_rounds: int = option(4, COUNT, "rounds of relearning by the holders alone")
    relearn_rounds: int = option(
        2, COUNT, "rounds of relearning by all nodes, after those of the holders"
    )
    relearn_epochs: int = option(10, COUNT, "passes over the set S in a round of relearning")
    relearn_lr: float = option(0.05, RATE, "learning rate of relearning, eta_theta")
    batch_size: int = option(64, COUNT, "examples in a batch of the ascent and of relearning")
    threshold: float = option(
        1.0,
        PERCENT,
        "percent of forget accuracy above which a round of recovery is rolled back; 100 for never",
    )
    tolerance: float = option(
        3.0, PERCENT, "percent points of retain accuracy that recovery may leave missing"
    )

    needs: ClassVar[Needs] = Needs(
        float_inputs=True,
        levels=frozenset({"class", "client"}),
        synthetic_data=True,
        sums=frozenset({"class", "client"}),
    )
    source: ClassVar[str] = "synthetic"  # what S and S_f are made of

    def message(self, federation: Federation, kind: type[S], **values: Any) -> S:
        """Return the settings of an ascent or descent."""
        return federation.settings(kind, **values)

    def watched(self, level: str) -> float:
        """Return the forget accuracy in percent above which a recovery round is rolled back."""
        # A client's data are like the others': they are not forgotten at zero accuracy.
        return self.threshold if level == "class" else 100.0

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names."""
        wanted = retained(federation, model, self.tolerance)

        # 1. Unlearn: every holder of S_f ascends its loss (Algorithm 1, phase "unlearn").
        ascent = AscentRounds(
            self.message(
                federation,
                Ascend,
                data=self.source,
                epochs=self.unlearn_epochs,
                lr=self.unlearn_lr,
                batch_size=self.batch_size,
            ),
            participants=federation.holders(synthetic=self.needs.synthetic_data),
        )
        model = federation.run("unlearn", ascent, model, num_rounds=self.unlearn_rounds)

        # 2. Optionally improve the synthetic sets (section 3.3.2).
        if self.finetune_steps:
            federation.condense(federation.settings(Condense, outer_steps=self.finetune_steps))

        # 3. Recover: those with data left, or the share of them that training drew, descend on
        #    S \ S_f, mixed 1:1 with originals.
        recovery = RecoveryRounds(
            self.message(
                federation,
                Descend,
                data=f"{self.source}+original",
                epochs=self.recover_epochs,
                lr=self.recover_lr,
                batch_size=self.recover_batch,
            ),
            **as_in_training(federation, synthetic=self.needs.synthetic_data),
        )
        return guarded_recovery(
            federation,
            model,
            lambda _: ascent,
            recovery,
            num_rounds=self.recover_rounds,
            threshold=self.watched(federation.forget.level),
            wanted=wanted,
        )

    def relearn(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` with what the request names put back (section 3.4, step 5)."""
        told = self.message(
            federation,
            Descend,
            data=f"{self.source}+original",
            side="all",
            epochs=self.relearn_epochs,
            lr=self.relearn_lr,
            batch_size=self.batch_size,
        )
        # 1. The holders alone bring it back: among all nodes' updates theirs would be diluted.
        alone = RecoveryRounds(
            replace(told, holders_alone=told.sums_only),
            participants=federation.holders(synthetic=False),
        )
        model = federation.run("relearn", alone, model, num_rounds=self.relearn_holder_rounds)
        # 2. All nodes settle.
        together = RecoveryRounds(told, **as_in_training(federation, back=True))
        return federation.run("relearn", together, model, num_rounds=self.relearn_rounds)
