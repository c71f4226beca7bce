"""What Python calls take, turned into the settings that the command line has as options."""

import operator
import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

from client.errors import BadSetting
from server.cli.options import DATA, LEARNING, OPTIONS, REQUEST, RUNNING, chosen

Setting: TypeAlias = str | int | float | bool | os.PathLike[str]
ClassName: TypeAlias = str | int

# Given by the way a federation is made, or by an argument with a name of its own.
_OF_THE_ENGINE: Final = ("task", "engine", "connection")
_OF_THE_VERSION: Final = ("seed", "threads", "precision", "clients")
_ARGUMENTS: Final = ("version", "method", "compare", "accept", "trial", "count")

# What each call takes by name, beside its own arguments.
TAKEN: Final[Mapping[str, frozenset[str]]] = {
    call: frozenset(option.key for option in options)
    for call, options in {
        "Federation": chosen([*LEARNING, RUNNING], leave_out=_OF_THE_ENGINE),
        "train": [
            *chosen([panel for panel in LEARNING if panel != DATA]),
            *chosen([RUNNING], leave_out=[*_OF_THE_ENGINE, "clients"]),
        ],
        "forget": chosen(
            [REQUEST, RUNNING], leave_out=[*_OF_THE_ENGINE, *_OF_THE_VERSION, *_ARGUMENTS]
        ),
        "yardstick": [
            option
            for option in chosen([REQUEST, RUNNING], leave_out=[*_OF_THE_ENGINE, *_OF_THE_VERSION])
            if option.panel == RUNNING or option.key == "data"
        ],
        "relearn": chosen(
            [REQUEST, RUNNING],
            leave_out=[
                *("destroy", "max-forget-accuracy", "max-relearning-gap"),
                *(*_OF_THE_ENGINE, *_OF_THE_VERSION, *_ARGUMENTS),
            ],
        ),
    }.items()
}


def settings(call: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings given by their Python names, by kebab-case key.

    Args:
        call: One of `TAKEN`.
        given: Values by name, such as `num_clients`. Arrays of one number and paths are accepted
            as numbers and texts; of several clients' names, a list as well.

    Raises:
        BadSetting: If a name is unknown or belongs to another call.
    """
    found = {}
    for name, value in given.items():
        key = name.replace("_", "-")
        if key not in TAKEN[call]:
            raise BadSetting(_unknown(call, name, key))
        if key == "clients" and not isinstance(value, str):
            value = ",".join(texts("clients", value))
        found[key] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # NumPy's and torch's numbers; `RunSettings` takes Python's own.
    return value.item() if hasattr(value, "item") else value


def _unknown(call: str, name: str, key: str) -> str:
    where = "Federation" if call == "Federation" else f"Federation.{call}"
    rule = f"setting must be one that {where} takes, got {name!r}"
    others = [other for other in ("Federation", *TAKEN) if key in TAKEN[other]]
    if others:
        other = others[0] if others[0] == "Federation" else f"Federation.{others[0]}"
        return f"{rule}; give it to {other}"
    if key in {option.key for option in OPTIONS} and key in _OF_THE_ENGINE:
        return f"{rule}; choose Federation.inline, .ray or .superlink, with the data first"
    names = [known.replace("-", "_") for known in sorted(TAKEN[call])]
    near = get_close_matches(name, names, n=1)
    return f"{rule}; " + (f"did you mean {near[0]}?" if near else f"it takes {', '.join(names)}")


def texts(name: str, given: str | Iterable[str] | None) -> list[str]:
    """Return one name or several as a list.

    Raises:
        BadSetting: If one is no text.
    """
    if given is None:
        return []
    found = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for one in found:
        if not isinstance(one, str):
            raise BadSetting(f"{name} must be texts, got {one!r}")
    return found


def class_texts(given: ClassName | Iterable[ClassName] | None) -> list[str]:
    """Return classes as the command line takes them: a whole number is the class's number.

    Raises:
        BadSetting: If one is neither a text nor a whole number.
    """
    if given is None:
        return []
    if isinstance(given, str) or not isinstance(given, Iterable):
        given = [given]
    return [_class_text(one) for one in given]


def _class_text(given: Any) -> str:
    if isinstance(given, str):
        return given
    try:
        if isinstance(given, bool):
            raise TypeError
        return f"#{operator.index(given)}"
    except TypeError:
        raise BadSetting(f"class must be a name or a whole number, got {given!r}") from None


def option_texts(given: Mapping[str, Any] | None) -> list[str]:
    """Return a method's hyper-parameters, each as `name=value`.

    Raises:
        BadSetting: If a value has no such form.
    """
    found = []
    for name, value in (given or {}).items():
        value = _plain(value)
        if isinstance(value, bool):
            value = int(value)
        if not isinstance(value, str | int | float) or "," in str(value):
            raise BadSetting(
                f"option {name} must be a number or a text without a comma, got {value!r}"
            )
        found.append(f"{name.replace('_', '-')}={value}")
    return found
