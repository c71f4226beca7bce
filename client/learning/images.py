"""The built-in task: square images of 1 or 3 channels, a data set by name, a known network."""

from pathlib import Path
from typing import Final, Self

import torch
from torch import Tensor, nn

from client.data import datasets
from client.data.splits import Data
from client.errors import BadSetting, DataError, ImageSize
from client.learning.networks import BUILDERS, NAMES
from client.task import Task

IMAGES: Final = "images"  # its name on the wire
MIN_SIZE: Final = 8
MAX_SIZE: Final = 2048
MAX_CLASSES: Final = 100_000
MAX_WIDTH: Final = 4096
MAX_DEPTH: Final = 8


class ImageTask(Task):
    """Images of a named set, an .npz file or folders, and one of the known networks.

    Attributes:
        net: One of `NAMES`.
        num_classes: At least 2; of the data.
        channels: 1 or 3; of the data.
        image_size: Rows, equal to columns; of the data.
        width: Filters of each convolution. ConvNet only; the other networks have their paper's.
        depth: Blocks. ConvNet only.
    """

    net: str = "convnet"
    num_classes: int = 0
    channels: int = 0
    image_size: int = 0
    width: int = 128
    depth: int = 3

    input_dtype = torch.uint8

    def network(self) -> nn.Module:
        """Return the network, with torch's own first weights."""
        self.check()
        return BUILDERS[self.net](self)

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(C, H, W)."""
        return (self.channels, self.image_size, self.image_size)

    @property
    def is_own(self) -> bool:
        """Whether it is a user's: no."""
        return False

    def check(self) -> None:
        """Check the sizes.

        Raises:
            BadSetting: Naming the first that is out of range.
        """
        if self.net not in BUILDERS:
            raise BadSetting(f"model must be one of {', '.join(NAMES)}, got '{self.net}'")
        if not 2 <= self.num_classes <= MAX_CLASSES:
            raise BadSetting(f"num_classes must lie in [2, {MAX_CLASSES}], got {self.num_classes}")
        if self.channels not in (1, 3):
            raise BadSetting(f"channels must be 1 or 3, got {self.channels}")
        if not MIN_SIZE <= self.image_size <= MAX_SIZE:
            raise BadSetting(
                f"image_size must lie in [{MIN_SIZE}, {MAX_SIZE}], got {self.image_size}; "
                "resize the images first"
            )
        if not 1 <= self.width <= MAX_WIDTH or not 1 <= self.depth <= MAX_DEPTH:
            raise BadSetting(
                f"width must lie in [1, {MAX_WIDTH}] and depth in [1, {MAX_DEPTH}], got width "
                f"{self.width}, depth {self.depth}"
            )

    def load(self, source: str, data_dir: Path | None = None) -> Data:
        """Return the data set called `source` (see `client.data.datasets.load`)."""
        return datasets.load(source, data_dir)

    def checked(self, data: Data) -> Data:
        """Return data that fit the network.

        Raises:
            ImageSize: If the images have another size or number of channels.
            DataError: If there are labels above its classes.
        """
        shape = data.train.input_shape
        if shape != self.input_shape:
            raise ImageSize(
                f"images of {data.name} must have shape {self.input_shape} for this model, got "
                f"{shape}"
            )
        highest = int(data.train.labels.max()) if len(data.train) else 0
        if highest >= self.num_classes:
            raise DataError(
                f"labels of {data.name} must lie in [0, {self.num_classes}) for this model, got "
                f"{highest}"
            )
        return data

    def fitted(self, data: Data | None) -> Self:
        """Return the task with the data's classes and sizes, where there are data.

        Raises:
            BadSetting: If there are none, and the sizes are not given.
        """
        if data is None:
            sizes = (self.num_classes, self.channels, self.image_size)
            if not all(sizes):
                raise BadSetting(
                    "model-classes, model-channels and model-image-size must be given when the "
                    f"coordinator has no data, got {sizes[0]}, {sizes[1]}, {sizes[2]}"
                )
            return self
        shape = data.train.input_shape
        own = {"num_classes": data.num_classes, "channels": shape[0], "image_size": shape[1]}
        return type(self)(**{**self.options, **own})

    def prepare(self, inputs: Tensor, data: Data) -> Tensor:
        """Return normalised images, float32."""
        return datasets.normalise(inputs, data.mean, data.std)

    def example(self, count: int) -> Tensor:
        """Return prepared images, all zero."""
        return torch.zeros((count, *self.input_shape))

    @property
    def title(self) -> str:
        """The network's name."""
        return self.net

    def text(self) -> str:
        """Return what names the model in stores and logs: as ever, so that old sets are found."""
        return (
            f"ModelSpec(name={self.net!r}, num_classes={self.num_classes}, "
            f"channels={self.channels}, image_size={self.image_size}, width={self.width}, "
            f"depth={self.depth})"
        )
