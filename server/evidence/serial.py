"""Frozen dataclasses to JSON values and back, for all that is kept of a request."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from client.errors import BadSetting

T = TypeVar("T")


def plain(value: Any) -> Any:
    """Return a typed part as JSON values."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def read(kind: type[T], document: Any, name: str = "record") -> T:
    """Return a dataclass from JSON values; what is missing or null takes its default.

    Raises:
        BadSetting: If a part has another form.
    """
    if not isinstance(document, Mapping):
        raise BadSetting(f"{name} must be a JSON object, got {type(document).__name__}")
    hints = _hints(kind)  # type: ignore[arg-type]
    values = {}
    for part in fields(kind):  # type: ignore[arg-type]
        value = document.get(part.name)
        if value is not None:
            values[part.name] = _value(hints[part.name], value, f"{name}.{part.name}")
        elif part.default is MISSING and part.default_factory is MISSING:
            values[part.name] = None
    return kind(**values)


@lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if value is None or hint is Any or origin is Literal:
        return value
    if origin in (Union, types.UnionType):
        return _value(next(a for a in arguments if a is not type(None)), value, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise BadSetting(f"{name} must be a list, got {type(value).__name__}")
        return tuple(_value(arguments[0], part, f"{name}[{i}]") for i, part in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise BadSetting(f"{name} must be a JSON object, got {type(value).__name__}")
        return {str(k): _value(arguments[1], part, f"{name}.{k}") for k, part in value.items()}
    if is_dataclass(hint):
        return read(hint, value, name)  # type: ignore[arg-type]
    return value
