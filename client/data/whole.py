"""A task's data set, read once in a process."""

import functools
from pathlib import Path

from client.data.splits import Data
from client.errors import DataError, EffaceError
from client.task import Task
from client.task_folders import placed


def whole(task: Task, source: str, data_dir: Path | None = None) -> Data:
    """Return the data set that a task reads from a source.

    Args:
        task: What is learned.
        source: As a site's operator, or the coordinator of a simulation, names it.
        data_dir: Folder of the published sets' files, for the built-in task.

    Raises:
        BadSetting: If the source is wrong.
        DataError: If the data cannot be read, or are not what the task says.
    """
    if not task.is_own:  # which looks whether files have changed, and keeps what it has read
        return task.load(source, data_dir)
    try:
        return _read(task, source)
    except EffaceError as error:
        error.args = (placed(error),)
        raise
    except Exception as error:
        raise DataError(
            f"data of task {task.title} must be readable, got {type(error).__name__}: "
            f"{placed(error)}"
        ) from error


@functools.lru_cache(maxsize=2)
def _read(task: Task, source: str) -> Data:
    return task.load(source)
