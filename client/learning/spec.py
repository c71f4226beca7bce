"""Which model to build: the task that it belongs to, and what was pruned of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from client.learning.images import IMAGES, ImageTask
from client.own_task import task_of
from client.task import Task, canonical

# What a card holds of a model of former releases, by the built-in task's options.
_FORMER: Final = {
    "net": "name",
    **{name: name for name in ("num_classes", "channels", "image_size", "width", "depth")},
}


@dataclass(frozen=True)
class ModelSpec:
    """Which model to build.

    Attributes:
        name: Of its task, as `client.own_task.task_of` knows it.
        options: The task's, as JSON.
        code: SHA-256 of the task's sources; empty for the built-in one.
        frozen: SHA-256 of the parameters that do not travel; empty where all do.
        pruned: Channels that are 0 for good, in the text form of `client.channels.layout`.
        compact: Whether those channels are left out: the same outputs from a smaller model.

    The last two are no part of its text, which names the model that they were pruned from.
    """

    name: str
    options: str
    code: str = ""
    frozen: str = ""
    pruned: tuple[str, ...] = field(default=())
    compact: bool = field(default=False)

    def __str__(self) -> str:
        code = f", code {self.code[:12]}" if self.code else ""
        return self.task.text() + code

    @classmethod
    def of(cls, task: Task, name: str = IMAGES, code: str = "") -> "ModelSpec":
        """Return the model of a task, at full size."""
        return cls(name, canonical(task.options), code)

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> "ModelSpec":
        """Return the model that a version's card describes, as JSON holds it."""
        pruned = tuple(card.get("pruned", ()))
        if "options" not in card:  # of a former release, which knew images alone
            known = {key: card[name] for key, name in _FORMER.items() if name in card}
            options = canonical(ImageTask(**known).options)
            return cls(IMAGES, options, pruned=pruned, compact=card.get("compact", False))
        return cls(**{**card, "pruned": pruned})

    @property
    def task(self) -> Task:
        """What is learned.

        Raises:
            BadSetting, CodeMismatch: If there is no such task here.
        """
        return task_of(self.name, self.options, self.code)

    @property
    def num_classes(self) -> int:
        """K: outputs of the network, and numbers in what is told by class."""
        return self.task.num_classes

    @property
    def base(self) -> "ModelSpec":
        """Return the model before anything was pruned."""
        return replace(self, pruned=(), compact=False)


def image_model(
    net: str,
    num_classes: int,
    channels: int = 3,
    image_size: int = 32,
    width: int = 128,
    depth: int = 3,
    *,
    pruned: tuple[str, ...] = (),
    compact: bool = False,
) -> ModelSpec:
    """Return a model of the built-in task (see `client.learning.images.ImageTask`)."""
    task = ImageTask(
        net=net,
        num_classes=num_classes,
        channels=channels,
        image_size=image_size,
        width=width,
        depth=depth,
    )
    return ModelSpec(IMAGES, canonical(task.options), pruned=pruned, compact=compact)
