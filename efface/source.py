"""What a federation learns: the first argument of every `Federation`, as settings."""

import inspect
from typing import Any, TypeAlias

from client.data import datasets
from client.errors import BadSetting
from client.own_task import source_of_class
from client.task import Task

Source: TypeAlias = str | type[Task] | Task


def settings_of(source: Source) -> dict[str, Any]:
    """Return the settings that say what is learned, by kebab-case key.

    Args:
        source: "digits" or another published data set, "npz:PATH", "folder:PATH", or "none" where
            only the clients have data. Or a task of one's own: its class, an instance with other
            options than the defaults, or "FILE.py:CLASS", or "FILE.py" with functions. Its class
            must stand in a file, at the top: its sources travel to the clients.

    Raises:
        BadSetting: If it is something else, or an option has a comma.
    """
    if isinstance(source, str):
        is_task = ":" in source or source.endswith(".py")
        if datasets.is_known(source) or source == "none" or not is_task:
            return {"dataset": source}
        return {"task": source}
    kind = source if isinstance(source, type) else type(source)
    if not issubclass(kind, Task):
        raise BadSetting(
            "data must be a text such as 'digits', 'npz:scans.npz' or 'chest.py:ChestXray', or a "
            f"task, got a {kind.__name__}"
        )
    source_of_class(kind)
    options = "" if isinstance(source, type) else _texts(source)
    return {"task": f"{inspect.getsourcefile(kind)}:{kind.__name__}", "task-options": options}


def _texts(task: Task) -> str:
    """Return the options that are not the defaults, as --task-options takes them."""
    known, found = task.known_options(), []
    for name, value in task.options.items():
        if "," in str(value) and value != known[name]:
            raise BadSetting(f"option {name} of a task must be without a comma, got {value!r}")
        if value != known[name]:
            found.append(f"{name}={value}")
    return ",".join(found)
