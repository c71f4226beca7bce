"""efface.toml: the settings of a project, read by every command.

    home = ".efface"            # settings by their names, for every command that takes them
    dataset = "npz:scans.npz"   # paths are relative to the file

    [relearn]                   # for one command alone: train, forget, relearn or demo
    method = "retraining"

    [forget.method-options]     # what --set gives
    recover-rounds = 3

What the command line names wins, then the environment, then the file, then the default; a command's
own table wins over what stands above it.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from client.data import source
from client.errors import BadSetting
from server.cli import options

FILE: Final = "efface.toml"
VARIABLE: Final = "EFFACE_CONFIG"
ENVIRONMENT: Final[Mapping[str, str]] = {"home": "EFFACE_HOME", "data-dir": "EFFACE_DATA_DIR"}
METHOD_OPTIONS: Final = "method-options"
# Beside the settings that are options of the same name; --home, --by and --set give them.
MORE: Final[Mapping[str, str]] = {"home": "", "asked-by": "", METHOD_OPTIONS: ""}
# A file that outlives a request must not say these of the next one.
OF_ONE_REQUEST: Final[Mapping[str, str]] = {
    "version": "--version",
    "forget-classes": "--class",
    "forget-clients": "--client",
    "allow-forgotten": "--allow-forgotten",
    "why": "--why",
}
PATHS: Final = ("home", "data-dir", "data")
SOURCES: Final = ("dataset", "server-samples", "data")  # KIND:PATH


@dataclass(frozen=True)
class Project:
    """What an efface.toml says; nothing where there is none.

    Attributes:
        path: The file.
        common: Values for every command, by setting.
        tables: Values for one command, by its name.
    """

    path: Path | None = None
    common: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def value(self, key: str) -> Any:
        """Return what holds for every command, or None where it, or the environment wins."""
        return None if from_environment(key) else self.common.get(key)

    def values(self, command: str, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values that the file has of these settings for a command."""
        layers = [self.tables.get(command, {}), self.common]
        found = {
            key: layer[key]
            for layer in reversed(layers)
            for key in keys
            if key in layer and not from_environment(key)
        }
        # One method's options mean nothing to another, named nearer by.
        found.pop(METHOD_OPTIONS, None)
        for layer in layers if METHOD_OPTIONS in keys else ():
            if METHOD_OPTIONS in layer:
                found[METHOD_OPTIONS] = layer[METHOD_OPTIONS]
            if {"method", METHOD_OPTIONS} & layer.keys():
                break
        return found


def from_environment(key: str) -> str:
    """Return the environment's value of a setting; empty where it has none."""
    return os.environ.get(ENVIRONMENT.get(key, ""), "")


def keys_of(command: str) -> list[str]:
    """Return the settings that a command takes from the file."""
    keys = [option.key for option in options.OF_COMMAND[command]]
    more = [METHOD_OPTIONS] if "method" in keys else []
    return keys + more + ([] if command == "demo" else ["asked-by"])


def read(named: str = "") -> Project:
    """Return what efface.toml says: the file that is named, else EFFACE_CONFIG, else that here.

    Raises:
        BadSetting: If a named file is not there, or one cannot be read, or says something unknown.
    """
    told = named or os.environ.get(VARIABLE, "")
    path = Path(told or FILE).expanduser().absolute()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not told:
            return Project()
        raise BadSetting(
            f"config must name a file that is there, got {path}; `efface init` writes one"
        ) from None
    except OSError as error:
        raise BadSetting(f"config must be readable, got {path} ({error.strerror})") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are
        raise BadSetting(f"config must be TOML in UTF-8, got {path}: {error}") from error
    is_table = {key: isinstance(content[key], dict) and key != METHOD_OPTIONS for key in content}
    known = {**{o.key: o.default for o in options.OPTIONS}, **MORE}
    common = {
        key: _checked(path, key, value, known, options.OF_COMMAND)
        for key, value in content.items()
        if not is_table[key]
    }
    tables = {key: _table(path, key, content[key], known) for key in content if is_table[key]}
    return Project(path, common, tables)


def _table(
    path: Path, command: str, values: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one command's table, checked."""
    if command not in options.OF_COMMAND:
        raise BadSetting(
            f"table in {path} must be one of {', '.join(options.OF_COMMAND)}, got [{command}]"
            f"{_near(command, options.OF_COMMAND)}; what holds for all stands above the tables",
            see="efface train --help",
        )
    taken = keys_of(command)
    for key in values:
        if key in known and key not in taken and key not in OF_ONE_REQUEST:
            why = " (a request takes its version's own)" if command != "demo" else ""
            raise BadSetting(
                f"key in [{command}] of {path} must be a setting of `efface {command}`, got {key}"
                f"{why}; put it above the tables",
                see=f"efface {command} --help",
            )
    names = {key: known[key] for key in taken}
    return {key: _checked(path, key, value, names) for key, value in values.items()}


def _checked(
    path: Path, key: str, value: Any, known: Mapping[str, Any], tables: Iterable[str] = ()
) -> Any:
    """Return a value as the settings hold it, its paths whole."""
    if key in OF_ONE_REQUEST:
        raise BadSetting(
            f"{key} must be said with each request, got it in {path}; use {OF_ONE_REQUEST[key]}"
        )
    if key not in known:
        raise BadSetting(
            f"key in {path} must be a setting, got {key!r}{_near(key, [*known, *tables])}",
            see="efface train --help",
        )
    if key == METHOD_OPTIONS:
        return _joined(path, value)
    kind = type(known[key])
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        words = {str: "a text in quotes", int: "a whole number", float: "a number"}
        raise BadSetting(
            f"{key} must be {words.get(kind, 'true or false')}, got {value!r} in {path}"
        )
    return _rooted(key, value, path.parent) if kind is str else value


def _joined(path: Path, value: Any) -> str:
    """Return a method's options as one text, as the setting holds them."""
    if not isinstance(value, dict):
        raise BadSetting(
            f"{METHOD_OPTIONS} must be a table such as [{METHOD_OPTIONS}], got {value!r} in {path}"
        )
    for name, one in value.items():
        if not isinstance(one, int | float | str) or "," in str(one):
            raise BadSetting(f"{METHOD_OPTIONS}.{name} must be one value, got {one!r} in {path}")
    return ",".join(f"{name}={one}" for name, one in value.items())


def _rooted(key: str, value: str, folder: Path) -> str:
    """Return a value with its path, if it has one, seen from the file's folder."""
    kind, colon, rest = value.partition(":")
    if key in SOURCES and colon:
        # Of kinds without a path, such as test:1600, the rest is none.
        return source.rooted(value, folder) if source.is_own(value) else value
    if key == "task" and value:  # FILE.py:CLASS or MODULE:CLASS
        place = kind if "/" in kind or kind.endswith(".py") else kind.replace(".", "/")
        return f"{folder / Path(place).expanduser()}{colon}{rest}"
    if key in PATHS and value:
        return str(folder / Path(value).expanduser())
    return value


def _near(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word.replace("_", "-"), list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""
