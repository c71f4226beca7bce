"""Values of a recipe's tables, each checked for its kind.

Each function raises BadSetting on a value of another kind; the message names its key.
"""

from collections.abc import Collection, Mapping
from typing import Any

from client.errors import BadSetting


def check_known(what: str, told: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Refuse a table with a key that is not allowed."""
    for key in told:
        if key not in allowed:
            raise BadSetting(f"{what} must be one of {', '.join(allowed)}, got {key!r}")


def as_table(told: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the table under a key; an empty one if it is not there."""
    found = told.get(key, {})
    if not isinstance(found, dict):
        raise BadSetting(f"{key} must be a table, got {found!r}")
    return found


def check_list(key: str, value: Any, kind: type, words: str) -> None:
    """Refuse what is no list of values of a kind, or an empty one."""
    if not isinstance(value, list) or not value or not all(type(v) is kind for v in value):
        raise BadSetting(f"{key} must be a list of {words}, got {value!r}")


def as_numbers(told: Mapping[str, Any], key: str, default: list[int]) -> tuple[int, ...]:
    """Return different numbers from 0 up."""
    found = told.get(key, default)
    if not isinstance(found, list) or not all(type(v) is int and v >= 0 for v in found):
        raise BadSetting(f"{key} must be a list of numbers from 0 up, got {found!r}")
    if len(set(found)) < len(found):
        raise BadSetting(f"{key} must differ, got {found!r}")
    return tuple(found)


def as_number(told: Mapping[str, Any], key: str, default: int) -> int:
    """Return a number from 0 up."""
    found = told.get(key, default)
    if type(found) is not int or found < 0:
        raise BadSetting(f"{key} must be a number from 0 up, got {found!r}")
    return int(found)


def as_flag(told: Mapping[str, Any], key: str) -> bool:
    """Return true or false."""
    found = told.get(key, False)
    if type(found) is not bool:
        raise BadSetting(f"{key} must be true or false, got {found!r}")
    return bool(found)


def as_text(told: Mapping[str, Any], key: str, default: str) -> str:
    """Return a text."""
    found = told.get(key, default)
    if not isinstance(found, str):
        raise BadSetting(f"{key} must be a text, got {found!r}")
    return found
