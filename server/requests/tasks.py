"""What a task can be trained and asked for, checked before any work."""

from dataclasses import replace

import torch
from torch import nn

from client.data.splits import Data
from client.errors import BadSetting
from client.learning.models import ModelSpec, traced
from client.task import judge
from client.task_folders import placed
from client.wire import ForgetSpec
from server.settings import RunSettings
from strategies.suited import undistillable


def with_scale(settings: RunSettings, spec: ModelSpec | None) -> tuple[RunSettings, list[str]]:
    """Return the settings of a training without synthetic sets where none can be made.

    A scale that somebody named stays as it is, to be refused.

    Args:
        settings: The training's.
        spec: Its model; None before it is known.

    Returns:
        The settings, and what is to be said of them.
    """
    if not settings.scale or not settings.is_default("scale"):
        return settings, []
    why = None
    if settings.noise_multiplier:
        why = "they are made from gradients without noise"
    elif spec is not None and spec.task.is_own:
        why = _not_distilled(spec)
    if why is None:
        return settings, []
    note = f"no synthetic examples are made, as by --scale 0: {why}"
    return replace(settings, scale=0), [note]


def _not_distilled(spec: ModelSpec) -> str | None:
    """Return why no synthetic examples can be made for a user's task; None if they can."""
    if spec.task.own_loss:
        return f"task {spec.task.title} has a loss of its own"
    return undistillable(spec)


def check_task(settings: RunSettings, spec: ModelSpec) -> None:
    """Refuse a training that a task does not serve.

    Raises:
        BadSetting: Saying why, and what to change.
    """
    task = spec.task
    if settings.batch_size == 1 and traced(spec).mixes_examples:
        raise BadSetting(
            f"batch-size must be at least 2 for {task.title}, got 1: BatchNorm cannot train on one "
            "example"
        )
    if not task.is_own:
        return
    if settings.scale:
        why = _not_distilled(spec)
        if why is not None:
            raise BadSetting(
                f"scale must be 0 for task {task.title}, got {settings.scale}: no synthetic "
                f"examples can be made ({why}); add --scale 0"
            )
    if settings.noise_multiplier and traced(spec).mixes_examples:
        raise BadSetting(
            f"network of task {task.title} must not have BatchNorm with noise-multiplier above 0: "
            "it mixes the examples of a batch; use GroupNorm or LayerNorm"
        )
    if settings.noise_multiplier and task.own_loss:
        raise BadSetting(
            f"task {task.title} must be judged by cross-entropy with noise-multiplier above 0, got "
            "a loss of its own"
        )


def check_judges(spec: ModelSpec, model: nn.Module, data: Data) -> None:
    """Refuse a task whose own loss or score does not judge two of its own examples.

    Raises:
        BadSetting: Saying which does not, and why.
    """
    task, pair = spec.task, torch.arange(min(2, len(data.train)))
    if not task.own_loss:
        return
    targets = data.train.wanted(pair)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = model.eval()(task.prepare(data.train.take(pair), data))
        for what in ("loss", "score"):
            judged = judge(task, what)
            try:
                judged(outputs, targets) if judged is not None else None
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise BadSetting(
                    f"{what} of task {task.title} must take the network's outputs "
                    f"{tuple(outputs.shape)} and targets {tuple(targets.shape)} of "
                    f"{targets.dtype}, got {type(error).__name__}: {placed(error)}"
                ) from error


def check_level(spec: ModelSpec, forget: ForgetSpec) -> None:
    """Refuse a class of a task that has none.

    Raises:
        BadSetting: Naming the levels that are left.
    """
    if forget.level == "class" and spec.task.own_loss:
        raise BadSetting(
            f"level must be client for task {spec.task.title}, got class: it has a loss of its "
            "own, and its examples have no classes"
        )
