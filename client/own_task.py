"""A task of the users' own: found by the hash of its source files, imported from those alone.

A task travels in the bundle, in client/own/HASH/, so that what an operator allows covers it; where
nodes are simulated, in a home. It is one Python file, or a package's folder.
"""

import functools
import hashlib
import importlib.util
import inspect
import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from client.errors import BadSetting, CodeMismatch
from client.learning.images import IMAGES, ImageTask
from client.task import Task
from client.task_folders import folders, offered, placed

MOST_BYTES: Final = 2_000_000
_MAKING: Final = "EFFACE_TASK"  # how imported modules are called: they must hide no other
_importing = threading.RLock()
_offered: dict[tuple[str, str], type[Task]] = {}  # by name and code: this process's own app's
_FUNCTIONS: Final = ("network", "data", "transform", "augment", "loss", "score")


@dataclass(frozen=True)
class Source:
    """A task's source files.

    Attributes:
        name: "module:Class", or "module" where functions stand in the module itself.
        files: Contents by path, relative to the folder that the module is imported from.
    """

    name: str
    files: Mapping[str, bytes]

    @property
    def code(self) -> str:
        """SHA-256 of paths and contents, in hexadecimal."""
        digest = hashlib.sha256()
        for path in sorted(self.files):
            content = self.files[path]
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    def keep(self, tasks: Path) -> Path:
        """Write the files to `tasks`/HASH, unless they are there; return that folder."""
        folder = tasks / self.code
        if folder.exists():
            return folder
        making = tasks / f".{self.code}.{os.getpid()}"
        for path, content in self.files.items():
            target = making / path
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            target.write_bytes(content)
        try:
            making.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
        return folder


def source_of(text: str) -> Source:
    """Return the source of a task that a person names.

    Args:
        text: "chest.py:ChestXray", "folder/chest.py:ChestXray", "package:ChestXray" or
            "package.module:ChestXray" in the working directory; without a class, the functions of
            the module.

    Raises:
        BadSetting: If there is no such file, or its name is no module's.
    """
    place, _, name = text.partition(":")
    path = Path(place).expanduser()
    if path.suffix != ".py":
        inner = Path(*place.split(".")) if "/" not in place else path
        path = inner / "__init__.py" if inner.is_dir() else inner.with_suffix(".py")
    if not path.is_file():
        raise BadSetting(
            f"task must name a Python file or package, as in chest.py:ChestXray, got {text!r}: "
            f"there is no {path}"
        )
    top = path = path.absolute()
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    found = [path] if top == path else sorted(top.rglob("*.py"))
    within = {file.relative_to(top.parent): file for file in found}
    files = {str(place): file.read_bytes() for place, file in within.items() if _travels(place)}
    own = path.relative_to(top.parent)
    if str(own) not in files:
        raise BadSetting(
            "task's file must be named like a Python module, in plain letters, and not like a "
            f"test, which no bundle holds, got {own}"
        )
    parts = list(own.with_suffix("").parts)
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    if (size := sum(map(len, files.values()))) > MOST_BYTES:
        raise BadSetting(f"task must take at most {MOST_BYTES:,} bytes, got {size:,} in {top}")
    return Source(".".join(parts) + (f":{name}" if name else ""), files)


def source_of_class(kind: type[Task]) -> Source:
    """Return the source of a task that is imported here.

    Raises:
        BadSetting: If it does not stand at the top of a file.
    """
    try:
        file = inspect.getsourcefile(kind)
    except (TypeError, OSError):  # typed into a notebook or a terminal
        file = None
    if file is None or "." in kind.__qualname__:
        raise BadSetting(
            f"task {kind.__name__} must stand at the top of a file, got one that does not: its "
            "sources travel to the clients; write it to a file and import it"
        )
    return source_of(f"{file}:{kind.__name__}")


def offer(kind: type[Task]) -> Source:
    """Have a task that is imported here be found by its name and code; return its source.

    For an app that holds both: nothing travels, and the code is compared all the same.

    Raises:
        BadSetting: If it does not stand at the top of a file.
    """
    source = source_of_class(kind)
    _offered[source.name, source.code] = kind
    file = str(Path(inspect.getfile(kind)).absolute())
    module = source.name.partition(":")[0].replace(".", "/")
    own = f"{module}/__init__.py" if Path(file).name == "__init__.py" else f"{module}.py"
    root = file.removesuffix(own)
    offered({root + name: name for name in source.files})
    return source


def _travels(path: Path) -> bool:
    """Return whether a file can be imported, and Flower puts it into a bundle."""
    plain = all(part.isascii() and part.isidentifier() for part in path.with_suffix("").parts)
    return plain and not path.stem.startswith("test_") and not path.stem.endswith("_test")


def read(folder: Path, name: str) -> Source:
    """Return a source that was kept in a folder."""
    files = {
        str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.py"))
    }
    return Source(name, files)


def task_of(name: str, options: str = "{}", code: str = "") -> Task:
    """Return the task of a name.

    Args:
        name: "images", or that of a task of somebody's own.
        options: JSON, by name.
        code: SHA-256 of the sources of one of somebody's own.

    Raises:
        BadSetting: If the options are wrong, or the sources hold no such task.
        CodeMismatch: If these sources are not here.
    """
    with _importing:
        return _task_of(name, options, code)


@functools.lru_cache(maxsize=64)
def _task_of(name: str, options: str, code: str) -> Task:
    kind = ImageTask if name == IMAGES and not code else _class_of(name, code)
    try:
        values = json.loads(options)
    except ValueError as error:
        raise BadSetting(f"task-options must be JSON, got {options[:100]!r}") from error
    if not isinstance(values, dict):
        raise BadSetting(f"task-options must be a JSON object, got {options[:100]!r}")
    task = kind(**values)
    task.check()
    return task


@functools.lru_cache(maxsize=64)
def _class_of(name: str, code: str) -> type[Task]:
    if (name, code) in _offered:
        return _offered[name, code]
    for root in folders():
        folder = root / code
        if code and folder.is_dir() and read(folder, name).code == code:
            return _loaded(folder, name, code)
    raise CodeMismatch(
        f"task {name} must be here with the code {code[:12] or '(none)'}, got none; it travels in "
        "the bundle that the coordinator sends, and is found there alone"
    )


def _loaded(folder: Path, name: str, code: str) -> type[Task]:
    """Import the task's module under a name that hides no other."""
    place, _, wanted = name.partition(":")
    top, *rest = place.split(".")
    package = folder / top / "__init__.py"
    file = package if package.is_file() else folder / f"{top}.py"
    full = f"{_MAKING}_{code[:16]}_{top}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            full,
            file,
            submodule_search_locations=[str(file.parent)] if file == package else None,
        )
        if spec is None or spec.loader is None or not file.is_file():
            raise BadSetting(f"task must be a Python module, got {name}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[full]
            raise BadSetting(f"task {name} must be importable, got {_said(error)}") from error
    try:
        module = importlib.import_module(".".join([full, *rest]))
    except Exception as error:
        raise BadSetting(f"task {name} must be importable, got {_said(error)}") from error
    return _found_in(module, wanted, name)


def _found_in(module: ModuleType, wanted: str, name: str) -> type[Task]:
    if not wanted:
        own = {key: getattr(module, key) for key in _FUNCTIONS if hasattr(module, key)}
        if "network" not in own:
            raise BadSetting(f"task must name a class, or have a function `network`, got {name}")
        methods: dict[str, Any] = {key: staticmethod(value) for key, value in own.items()}
        values = ("input_shape", "input_dtype", "class_names")
        methods |= {key: getattr(module, key) for key in values if hasattr(module, key)}
        return type(name, (Task,), methods)
    found = getattr(module, wanted, None)
    if not isinstance(found, type) or not issubclass(found, Task):
        raise BadSetting(
            f"task {name} must be a class derived from client.task.Task, got "
            f"{type(found).__name__ if found is not None else 'none'}"
        )
    return found


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {placed(error)}"
