"""Where a result comes from: the command that asked for it, the machine, the code."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from server.settings import TRAINING, RunSettings


def command(settings: RunSettings, kind: str) -> str:
    """Return the command line that asks for the same again: every setting that is not a default."""
    said = ["efface", kind]
    given, usual = settings.plain(), RunSettings().plain()
    own = ("mode", "home", "request", "version", "asked-by", "why")
    for key, value in given.items():
        if value == usual[key] or key in own or (kind != "train" and key in TRAINING):
            continue
        name = {"forget-classes": "class", "forget-clients": "client", "method-options": "set"}
        for part in str(value).split(",") if key in name else [value]:
            said.append(f"--{name.get(key, key)}" + ("" if value is True else f" {part}"))
    return " ".join(said)


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


def commit() -> str | None:
    """Return the commit of the code that runs, with "-dirty" if it was changed since, if any."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
