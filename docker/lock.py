#!/usr/bin/env python3
"""Write which packages an installation takes, each with its version and the hashes of its files.

    python docker/lock.py            resolve pyproject.toml anew (needs PyPI and `uv`)

    docker/constraints.txt   all but the next; the same on every machine
    docker/torch.txt         torch, torchvision and their CUDA libraries, as PyPI has them.
                             PyTorch's own indexes (cpu, cu126) have other files of these versions

`pip install --require-hashes -r docker/constraints.txt -r docker/torch.txt` takes these files or
none. tests/deploy/test_lock.py compares both with pyproject.toml, without a network.
"""

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PROJECT = FOLDER.parent / "pyproject.toml"
CONSTRAINTS, TORCH = FOLDER / "constraints.txt", FOLDER / "torch.txt"
OF_TORCH = re.compile(r"(torch|torchvision|triton|nvidia-.+|cuda-.+)")
HEAD = "# Written by docker/lock.py from pyproject.toml; do not edit. For Python 3.11 to 3.13.\n"


def resolve() -> str:
    """Return what uv makes of pyproject.toml: a requirement a block, with its hashes."""
    command = ["uv", "pip", "compile", str(PROJECT), "--universal", "--python-version", "3.11"]
    options = ["--generate-hashes", "--no-annotate", "--no-header"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"uv could not resolve {PROJECT}:\n{done.stderr}")
    return done.stdout


def blocks(text: str) -> dict[str, str]:
    """Return each requirement's lines; several of one name stand together."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines(keepends=True):
        if line.startswith("#") or not line.strip():
            continue
        if not line[0].isspace():
            name = re.split(r"[=\[ ;<>]", line, maxsplit=1)[0].lower()
        found[name] = found.get(name, "") + line
    return found


def main() -> None:
    """Resolve and write both files."""
    found = blocks(resolve())
    for path, of_torch in ((CONSTRAINTS, False), (TORCH, True)):
        chosen = [
            text for name, text in found.items() if bool(OF_TORCH.fullmatch(name)) == of_torch
        ]
        path.write_text(HEAD + "".join(chosen))
        print(f"wrote {path}: {len(chosen)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
