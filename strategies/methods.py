"""The table of methods: the one place that names them all."""

from typing import Final

from client.errors import BadSetting
from strategies.method import Hyperparameters, Method
from strategies.quickdrop import QuickDrop
from strategies.quickdrop_calibrated import CalibratedQuickDrop

METHODS: Final[dict[str, type[QuickDrop] | type[CalibratedQuickDrop]]] = {
    "quickdrop": QuickDrop,
    "quickdrop-calibrated": CalibratedQuickDrop,
}


def method(name: str, level: str, options: dict[str, str] | None = None) -> Method:
    """Return a method ready to serve a request of `level`.

    Raises:
        BadSetting: If the name is unknown, the method does not serve the level, or an option does
            not fit.
    """
    if name not in METHODS:
        raise BadSetting(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    chosen = METHODS[name]
    if level not in chosen.needs.levels:
        able = [other for other, kind in METHODS.items() if level in kind.needs.levels]
        raise BadSetting(
            f"method {name} must serve level {level!r}, got one that serves "
            f"{', '.join(sorted(chosen.needs.levels))}; level {level} is served by "
            f"{', '.join(able) or 'none'}"
        )
    ready: Hyperparameters = chosen()
    return chosen.with_values(ready, options or {})  # type: ignore[return-value]
