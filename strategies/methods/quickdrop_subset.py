"""QuickDrop's controls: the same protocols on a random real subset of the same size.

Nobody reports them, and yet they say whether distillation earns its cost: Dhasade et al. 2024 (see
`strategies.methods.quickdrop`) compare their synthetic sets with all of the data, not with as many
real images. Here S is what their synthetic sets start from, ceil(|D^c| / s) random real images of
every class and node (Algorithm 2, lines 2 to 7), drawn anew for every message and kept nowhere.

Departs from the paper: S is not distilled, and cannot be fine-tuned. All else is QuickDrop's, or
the calibrated variant's.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from client.wire import Rule, at_least
from strategies.federation import Federation, S
from strategies.method import Needs, option
from strategies.methods.quickdrop import QuickDrop
from strategies.methods.quickdrop_calibrated import CalibratedQuickDrop

USUAL_SCALE = 10  # where training made no synthetic sets
_LEVELS = frozenset({"class", "client"})


class OnRealSubset:
    """Gives a method that works on synthetic sets the real subset in their place."""

    scale: int

    def message(self, federation: Federation, kind: type[S], **values: Any) -> S:
        """Return what the nodes are told, with the size of the subset."""
        usual = federation.settings(kind, **values)
        scale = self.scale or usual.scale or USUAL_SCALE
        return federation.settings(kind, **{**values, "scale": scale})


@dataclass(frozen=True)
class RealSubset(OnRealSubset, QuickDrop):
    """QuickDrop without distillation: quickdrop on a random real subset."""

    finetune_steps: int = option(
        0,
        Rule(lambda v: v == 0, "be 0: a subset is not distilled"),
        "networks on which synthetic sets would be improved, F",
    )
    scale: int = option(
        0,
        at_least(0),
        "examples of a class and node for each one drawn, s; 0 for training's, or 10 without one",
    )

    needs: ClassVar[Needs] = Needs(levels=_LEVELS, sums=_LEVELS)
    source: ClassVar[str] = "subset"


@dataclass(frozen=True)
class CalibratedRealSubset(OnRealSubset, CalibratedQuickDrop):
    """Calibrated, without distillation: quickdrop-calibrated on a real subset."""

    scale: int = option(
        0,
        at_least(0),
        "examples of a class and node for each one drawn, s; 0 for training's, or 10 without one",
    )

    # A client's share of every class is a count by name.
    needs: ClassVar[Needs] = Needs(levels=_LEVELS, sums=frozenset({"class"}), head=True)
    source: ClassVar[str] = "subset"
