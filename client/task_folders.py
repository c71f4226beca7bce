"""Where the sources of users' own tasks lie: in the bundle, and in the homes that were opened.

And which of their lines an error comes from.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from traceback import walk_tb
from typing import Final

OWN: Final = Path(__file__).parent / "own"  # in a bundle
TASKS: Final = "EFFACE_TASKS"
"""Environment variable that our engines set for the nodes they simulate: the folder of tasks."""

_folders: list[Path] = [OWN]
_offered: dict[str, str] = {}  # files of an app's own tasks, as they are called there


def look_in(tasks: Path) -> None:
    """Have this process, and those that it starts, look for tasks in a folder, too."""
    if tasks not in _folders:
        _folders.append(tasks)
    os.environ[TASKS] = str(tasks)


def folders() -> tuple[Path, ...]:
    """Return where a task may lie; each is kept there under the hash of its sources."""
    return (*_folders, *map(Path, filter(None, [os.environ.get(TASKS)])))


def offered(files: Mapping[str, str]) -> None:
    """Note the source files of a task that is found in the app itself: what each is called."""
    _offered.update(files)


def place(error: BaseException) -> str:
    """Return which line of a task's own files an error comes from, "chest.py, line 12".

    Empty if from none. The files are the bundle's: their names and lines tell nothing of a node's.
    """
    cause: BaseException | None = error
    while cause is not None:
        lines = [(_called(f.f_code.co_filename), n) for f, n in walk_tb(cause.__traceback__)]
        if found := [f"{name}, line {number}" for name, number in lines if name]:
            return found[-1]
        cause = cause.__cause__
    return ""


def placed(error: BaseException) -> str:
    """Return an error's text, with its place behind it if it has one."""
    where = place(error)
    return f"{error} ({where})" if where else str(error)


def _called(file: str) -> str:
    """Return what a task calls a file of its own; empty if it is none."""
    if file in _offered:
        return _offered[file]
    for root in folders():
        if Path(file).is_relative_to(root):  # the first part is the hash of its sources
            return "/".join(Path(file).relative_to(root).parts[1:])
    return ""
