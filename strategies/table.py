"""The table of methods: the one place that names them all."""

from typing import Any, Final

from client.errors import BadSetting
from strategies.method import Method
from strategies.methods.class_pruning import ClassPruning
from strategies.methods.federaser import FedEraser
from strategies.methods.fedosd import OrthogonalSteepestDescent
from strategies.methods.fisher import FisherForgetting
from strategies.methods.influential import CentralisedChannels, DecentralisedChannels
from strategies.methods.not_negation import WeightNegation
from strategies.methods.puf import NegatedPseudoGradients
from strategies.methods.quickdrop import QuickDrop
from strategies.methods.quickdrop_calibrated import CalibratedQuickDrop
from strategies.methods.quickdrop_subset import CalibratedRealSubset, RealSubset
from strategies.methods.rapid_retraining import RapidRetraining
from strategies.methods.retraining import Retraining
from strategies.methods.s2u import ScaleToUnlearn
from strategies.methods.sga import GradientAscent

METHODS: Final[dict[str, Any]] = {
    "quickdrop": QuickDrop,
    "quickdrop-calibrated": CalibratedQuickDrop,
    "class-pruning": ClassPruning,
    "influential-de": DecentralisedChannels,
    "influential-ce": CentralisedChannels,
    "retraining": Retraining,
    "federaser": FedEraser,
    "fedosd": OrthogonalSteepestDescent,
    "sga": GradientAscent,
    "not": WeightNegation,
    "puf": NegatedPseudoGradients,
    "s2u": ScaleToUnlearn,
    "quickdrop-subset": RealSubset,
    "quickdrop-calibrated-subset": CalibratedRealSubset,
    "fisher": FisherForgetting,
    "rapid-retraining": RapidRetraining,
}


def method(name: str, level: str, options: dict[str, str] | None = None) -> Method:
    """Return a method ready to serve a request of `level`.

    Raises:
        BadSetting: If the name is unknown, the method does not serve the level, or an option does
            not fit.
    """
    if name not in METHODS:
        raise BadSetting(
            f"method must be one of {', '.join(METHODS)}, got {name!r}", see="efface methods"
        )
    chosen = METHODS[name]
    if level not in chosen.needs.levels:
        able = [other for other, kind in METHODS.items() if level in kind.needs.levels]
        raise BadSetting(
            f"level must be {' or '.join(sorted(chosen.needs.levels))} for method {name}, got "
            f"{level}; level {level} is served by {', '.join(able) or 'none'}"
        )
    ready: Method = chosen().with_values(options or {})
    return ready
