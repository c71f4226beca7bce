"""Where a result comes from: the command that asked for it, the machine, the code."""

import ast
import hashlib
import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch

import strategies
from client import wire
from server.format import masked
from server.settings import TRAINING, RunSettings
from server.verify_options import OF_VERIFY

PRODUCT: Final = ("client", "strategies", "server", "pyproject.toml")


def command(settings: RunSettings, kind: str) -> str:
    """Return the command line that asks for the same again: every setting that is not a default."""
    said = ["efface", kind]
    if kind == "verify":
        said.append(settings.verifies)
    given, usual = settings.plain(), RunSettings().plain()
    own = ("mode", "home", "request", "version", "asked-by", "why", "task-code", "verifies")
    for key, value in given.items():
        if (
            value == usual[key]
            or value == ""
            or key in own
            or (kind == "yardstick" and key == "method")  # which it does not take
            or (kind != "train" and key in TRAINING)
            or (kind == "verify" and key not in OF_VERIFY)  # likewise
        ):
            continue
        name = {"forget-classes": "class", "forget-clients": "client", "method-options": "set"}
        several = key in name or key == "allow-forgotten"
        for part in str(value).split(",") if several else [value]:
            said.append(f"--{name.get(key, key)}" + ("" if value is True else f" {part}"))
    return masked(" ".join(said))


def hardware() -> str:
    """Return the machine in a line: cores, processor, accelerator, torch."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores, {processor}{accelerator}; torch {torch.__version__}"


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Return the commit of the code that runs, None outside a checkout.

    It ends in "-dirty" if a file of the product was changed since. It is read once: the files may
    change while the process runs, and what it runs does not.
    """
    root = Path(__file__).parent.parent

    def git(*asked: str) -> str:
        told = ["git", "--no-optional-locks", *asked]
        done = subprocess.run(told, cwd=root, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *PRODUCT)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head


@lru_cache(maxsize=64)
def code(*modules: str) -> str:
    """Return a digest of the code of clients and of these `strategies` with their imports."""
    found = hashlib.sha256(wire.fingerprint().encode())
    folder = _folder()
    for path in sorted(set().union(*map(imported, modules))):
        name = path.relative_to(folder).as_posix()
        found.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def imported(module: str) -> set[Path]:
    """Return the files of `strategies` that a module of it imports, itself included.

    Raises:
        ValueError: If there is no such module: its results would depend on nothing.
    """
    found: set[Path] = set()
    left = [module]
    while left:
        path = _file(left.pop())
        if path is None or path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("strategies"):
                left += [str(node.module), *(f"{node.module}.{name.name}" for name in node.names)]
            elif isinstance(node, ast.Import):
                left += [name.name for name in node.names if name.name.startswith("strategies")]
    if not found:
        raise ValueError(f"module must be one of strategies, got {module!r}")
    return found


def _file(module: str) -> Path | None:
    """Return the file of a module of `strategies`, or None for a name that is no module."""
    stem = _folder().parent.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.exists():
            return path
    return None


def _folder() -> Path:
    return Path(str(strategies.__file__)).parent
