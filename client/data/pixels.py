"""Images as arrays: to 8 bits, to one size, to grey or RGB. One image at a time.

Letters: H rows, W columns, S pixels along the side of a square.
"""

from typing import Any, Final

import numpy as np

from client.data.source import ImageReading
from client.errors import DataError

Array = np.ndarray[Any, Any]
WHITE: Final = 255
# Of a type's range that images must use, if nobody says what range they have: 12 bits in a 16-bit
# file would leave 16 greys.
LEAST_USED: Final = 1 / 8


def scaled(values: Array, low: float, high: float) -> Array:
    """Return round(255 (values - low) / (high - low)) as uint8, clipped to [0, 255].

    Args:
        values: Numbers of any type and shape, none of them NaN. Not changed.
        low: Value of black.
        high: Value of white, above `low`.
    """
    found = (values.astype(np.float64) - low) * (WHITE / (high - low))
    return np.clip(np.rint(found), 0, WHITE).astype(np.uint8)


def type_range(values: Array) -> tuple[float, float] | None:
    """Return black's and white's value of an array's type; None where the type does not say.

    Floats have [0, 1], whole numbers without a sign all that their bits can hold, up to 16 of them.
    """
    if values.dtype.kind == "f" or values.dtype.kind == "b":
        return 0.0, 1.0
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return 0.0, float(np.iinfo(values.dtype).max)
    return None


def check_used(highest: float, full: float, *, where: str) -> None:
    """Refuse a set that uses so little of its type's range that hardly a grey would be left.

    Args:
        highest: Largest value in the set.
        full: White's value, taken from the type.
        where: Opens the message.

    Raises:
        DataError: Saying how to state the range. A range guessed from the values would be another
            at every site.
    """
    if highest < full * LEAST_USED:
        bits = max(8, int(highest).bit_length())
        raise DataError(
            f"{where}: range must be said where images use less than an eighth of their type's "
            f"(0 to {full:.0f}), got values up to {highest:.0f}; write ?range=0..{2**bits - 1} at "
            f"every site, or ?range=0..{full:.0f} if it is meant"
        )


def fitted(image: Array, size: int, fit: str) -> Array:
    """Return an image as a square.

    Args:
        image: uint8, (H, W) or (H, W, 3). Not changed.
        size: S.
        fit: "pad" keeps the proportions and puts black beside it, the image in the middle;
            "stretch" does not keep them.

    Returns:
        uint8, (S, S) or (S, S, 3): `image` itself where it is of that size. Pixels are averaged
        (Pillow's bilinear filter, whose arithmetic is of whole numbers and so equal everywhere).
    """
    from PIL import Image

    rows, columns = image.shape[:2]
    if (rows, columns) == (size, size):
        return image
    longer = max(rows, columns)
    wide, high = size, size
    if fit == "pad":
        wide, high = (max(1, (2 * n * size + longer) // (2 * longer)) for n in (columns, rows))
    found = np.asarray(
        Image.fromarray(image).resize((wide, high), resample=Image.Resampling.BILINEAR)
    )
    if (high, wide) == (size, size):
        return found
    square = np.zeros((size, size, *image.shape[2:]), np.uint8)
    top, left = (size - high) // 2, (size - wide) // 2
    square[top : top + high, left : left + wide] = found
    return square


def coloured(image: Array, colour: bool) -> Array:
    """Return an image, uint8 (H, W) or (H, W, 3), with three channels, or with one.

    Grey is 0.299 red + 0.587 green + 0.114 blue (ITU-R 601), as Pillow rounds it.
    """
    if colour:
        return np.stack([image] * 3, axis=-1) if image.ndim == 2 else image
    if image.ndim == 2:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).convert("L"))


def finished(image: Array, reading: ImageReading, colour: bool) -> Array:
    """Return an image of the wanted channels and size: uint8, (H, W) or (H, W, 3)."""
    image = coloured(image, colour)
    return image if reading.size is None else fitted(image, reading.size, reading.fit)


def how_fitted(num_resized: int, num_not_square: int, reading: ImageReading) -> list[str]:
    """Return in words what became of images of another size."""
    if reading.size is None or not num_resized:
        return []
    how = "padded with black" if reading.fit == "pad" else "stretched"
    square = f", {num_not_square} of them not square and {how}" if num_not_square else ""
    many = "image was" if num_resized == 1 else "images were"
    return [f"{num_resized} {many} resized to {reading.size}x{reading.size}{square}"]
