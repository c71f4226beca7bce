"""Where the sources of users' own tasks lie: in the bundle, and in the homes that were opened."""

import os
from pathlib import Path
from typing import Final

OWN: Final = Path(__file__).parent / "own"  # in a bundle
TASKS: Final = "EFFACE_TASKS"
"""Environment variable that our engines set for the nodes they simulate: the folder of tasks."""

_folders: list[Path] = [OWN]


def look_in(tasks: Path) -> None:
    """Have this process, and those that it starts, look for tasks in a folder, too."""
    if tasks not in _folders:
        _folders.append(tasks)
    os.environ[TASKS] = str(tasks)


def folders() -> tuple[Path, ...]:
    """Return where a task may lie; each is kept there under the hash of its sources."""
    return (*_folders, *map(Path, filter(None, [os.environ.get(TASKS)])))
