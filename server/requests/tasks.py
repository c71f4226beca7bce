"""What a task can be trained and asked for, checked before any work."""

from client.errors import BadSetting
from client.learning.models import ModelSpec, traced
from client.wire import ForgetSpec
from server.settings import RunSettings
from strategies.suited import undistillable


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
        why = "it has a loss of its own" if task.own_loss else undistillable(spec)
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
