"""Settings with rules: dataclasses whose fields say what their values must fulfil.

On the wire a settings object is a ConfigRecord: its keys are the field names in kebab-case, those
of a part within it behind the part's prefix.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import lru_cache
from typing import Any, Final, Self, cast

from flwr.app import ConfigRecord

from client.errors import BadSetting

MIN_EXAMPLES: Final = 2  # behind a loss, or a sum of activations, that goes up
MIN_CLIP: Final = 1e-6  # of an example's gradient under noise: exact in float32


@dataclass(frozen=True)
class Rule:
    """What a setting must fulfil, as a test and in words."""

    holds: Callable[[Any], bool]
    words: str


def setting(rule: Rule, default: Any = MISSING) -> Any:
    """Declare a dataclass field that `Settings.parse` checks against `rule`."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"rule": rule})
    return field(default=default, metadata={"rule": rule})


def part(kind: "type[Settings]", prefix: str) -> Any:
    """Declare a field of settings of their own, or None: all of their keys have the prefix."""
    return field(default=None, metadata={"part": kind, "prefix": prefix})


def between(low: float, high: float) -> Rule:
    return Rule(lambda v: low <= v <= high, f"lie in [{low:g}, {high:g}]")


def positive() -> Rule:
    return Rule(lambda v: v > 0, "be positive")


def at_least(low: float) -> Rule:
    return Rule(lambda v: v >= low, f"be at least {low}")


def all_or_some() -> Rule:
    """Return the rule of a number of examples whose sum goes up."""
    return Rule(lambda v: v == 0 or v >= MIN_EXAMPLES, f"be 0 for all, or at least {MIN_EXAMPLES}")


def one_of(*values: str) -> Rule:
    return Rule(lambda v: v in values, f"be one of {', '.join(values)}")


def text() -> Rule:
    return Rule(lambda v: 0 < len(v) <= 200, "be a text of 1 to 200 characters")


def short_or_empty() -> Rule:
    return Rule(lambda v: len(v) <= 200, "be at most 200 characters")


def name() -> Rule:
    """Return the rule of what may name a folder in a node's store: nothing leads out of it."""
    return Rule(
        lambda v: re.fullmatch(r"[^\W_][\w .-]{0,63}", v) is not None,
        "be 1 to 64 letters, digits, spaces, '.', '_' or '-', the first a letter or digit",
    )


# What a store keeps beside its lineages' folders; some file systems know no upper case.
OWN_FILES: Final = re.compile(
    r"(state|budget)(\.copy)?\.json|keys\.json|site-report\.html|base-.*\.safetensors|log|answers\.bin"
    r"|.*\.tmp",
    re.I,
)


def lineage_name() -> Rule:
    """Return the rule of what may name a lineage: no file of the store's own is called so."""
    folder = name()
    return Rule(
        lambda v: folder.holds(v) and OWN_FILES.fullmatch(v) is None,
        f"{folder.words}, and no name of the store's own files",
    )


def any_seed() -> Rule:
    return Rule(lambda v: 0 <= v < 2**63, "lie in [0, 2^63)")


def list_of(kind: type, words: str, holds: Callable[[Any], bool] = bool) -> Rule:
    """Return the rule of a list of values of one type, each of which `holds`.

    Args:
        kind: Exactly this type, and none derived from it.
        words: What the list holds: "class numbers from 0 up".
        holds: Of a value of that type.
    """
    return Rule(lambda v: all(type(x) is kind and holds(x) for x in v), f"be a list of {words}")


ANY: Final = Rule(lambda v: True, "be given")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings; the keys are the field names in kebab-case."""

    @classmethod
    def parse(cls, config: Mapping[str, Any], *, prefix: str = "") -> Self:
        """Read settings from a ConfigRecord.

        Args:
            config: Values by key.
            prefix: What every key of these settings begins with.

        Raises:
            BadSetting: If a key is unknown or missing, or its value has the wrong type or breaks
                its rule. The message names key, rule and value.
        """
        rest = dict(config)
        values: dict[str, Any] = {}
        for key, spec in _keys(cast(Any, cls), prefix):
            if "part" in spec.metadata:
                values[spec.name] = _part(rest, spec, prefix)
            elif key in rest:
                values[spec.name] = _checked(
                    key, rest.pop(key), cast(type, spec.type), spec.metadata
                )
            elif spec.default is MISSING and spec.default_factory is MISSING:
                raise BadSetting(f"{key} must be given, got nothing")
        for key in rest:
            raise BadSetting(f"setting must be known to this node, got {key!r}; see client/steps")
        return cls(**values)

    def check(self) -> Self:
        """Return self if every field fulfils its rule; else raise BadSetting."""
        return type(self).parse(dict(self.config()))

    def config(self, *, prefix: str = "") -> ConfigRecord:
        """Return the settings as a ConfigRecord, keys in kebab-case; a part that is None has none.

        Args:
            prefix: What every key begins with.
        """
        config = ConfigRecord()
        for spec in fields(self):
            value = getattr(self, spec.name)
            if "part" not in spec.metadata:
                config[prefix + spec.name.replace("_", "-")] = value
            elif value is not None:
                config.update(value.config(prefix=prefix + spec.metadata["prefix"]))
        return config


@lru_cache(maxsize=256)
def _keys(cls: type[Settings], prefix: str) -> tuple[tuple[str, "Field[Any]"], ...]:
    """Return a group's fields, each with its key: the same for every message."""
    return tuple((prefix + spec.name.replace("_", "-"), spec) for spec in fields(cls))


def _part(config: dict[str, Any], spec: "Field[Any]", prefix: str) -> Any:
    """Take a part's keys out of `config` and return the part, or None if there are none."""
    prefix += spec.metadata["prefix"]
    own = {key: config.pop(key) for key in list(config) if key.startswith(prefix)}
    return spec.metadata["part"].parse(own, prefix=prefix) if own else None


def _checked(key: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    wanted = getattr(kind, "__origin__", kind)
    if type(value) is not wanted:
        raise BadSetting(f"{key} must be {wanted.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadSetting(f"{key} must be finite, got {value}")
    rule: Rule = metadata["rule"]
    if not rule.holds(value):
        raise BadSetting(f"{key} must {rule.words}, got {value!r}")
    return value
