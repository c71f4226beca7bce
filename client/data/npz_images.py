"""Arrays of images to 8 bits and squares, by rules that do not depend on what a site holds."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from client.data.pixels import Array, check_used, finished, how_fitted, scaled, type_range
from client.data.source import ImageReading
from client.errors import DataError


@dataclass(frozen=True)
class Finished:
    """Images of a part.

    Attributes:
        pixels: uint8, (N, H, W) or (N, H, W, C), or as they came if `make_split` will refuse them.
        kept: Which of the part's images these are, bool; None for all of them.
    """

    pixels: Array
    kept: Array | None = None


def eight_bits(
    parts: Mapping[str, Array], reading: ImageReading, *, where: str
) -> tuple[dict[str, Finished], list[str]]:
    """Return every part's images as uint8, of the wanted size and channels, and what was done.

    Floats must lie in [0, 1], and 16-bit numbers span 0 to 65535, unless the source says another
    range: the lowest and highest value that happen to be there differ by site. uint8 is taken as
    it is. A last axis of 3 is red, green and blue; of more than 8 bits it is as often the depth of
    a volume, and must be said to be colours.

    Args:
        parts: Images of each part, (N, H, W), (N, H, W, 1) or (N, H, W, 3). Not changed.
        reading: What the source says.
        where: Opens each message.

    Raises:
        DataError: If the range is not known, or values lie outside of it, or are NaN.
    """
    train = parts["train"]
    for part, images in parts.items():
        _check_shape(images, reading, f"{where}, {part}")
    notes: list[str] = []
    if train.ndim == 4 and train.shape[3] == 3 and reading.color is None:
        notes.append(
            "the images' last axis, 3, was read as red, green and blue (?color=rgb says so); if "
            "it is the depth of volumes, they are no images"
        )
    kept = {
        part: _without_nan(images, reading, f"{where}, {part}") for part, images in parts.items()
    }
    num_left_out = sum(int((~k).sum()) for k in kept.values() if k is not None)
    if num_left_out:
        places = "; ".join(
            f"{part} {', '.join(map(str, np.flatnonzero(~k).tolist()))}"
            for part, k in kept.items()
            if k is not None
        )
        notes.append(f"{num_left_out} images with NaN pixels were left out: {places}")
    shades = _range(parts, kept, reading, where)
    if shades is not None:
        notes.append(f"{train.dtype} images were scaled from {shades[0]:g}..{shades[1]:g}")
    num_resized = num_not_square = 0
    found = {}
    for part, images in parts.items():
        chosen = kept[part]
        found[part] = Finished(_finished(images, chosen, shades, reading), chosen)
        if images.shape[1:3] != (reading.size, reading.size):
            num_resized += len(found[part].pixels)
            num_not_square += len(found[part].pixels) * (images.shape[1] != images.shape[2])
    return found, notes + how_fitted(num_resized, num_not_square, reading)


def _check_shape(images: Array, reading: ImageReading, where: str) -> None:
    shape = images.shape
    if images.ndim not in (3, 4) or 0 in shape[1:] or (images.ndim == 4 and shape[3] not in (1, 3)):
        hint = ""
        if images.ndim == 4 and shape[1] in (1, 3):
            hint = "; put the channels last: images.transpose(0, 2, 3, 1)"
        elif images.ndim >= 4:
            hint = (
                "; for volumes take a slice of each, or write a task of your own (--task); "
                "flatten transparency first"
            )
        raise DataError(
            f"{where}: images must have shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), got "
            f"{shape}{hint}"
        )
    deep = images.dtype != np.uint8 and images.dtype.kind in "iu"
    if deep and images.ndim == 4 and shape[3] == 3 and reading.color is None:
        raise DataError(
            f"{where}: images with a last axis of 3 must be uint8 to be taken for RGB, got "
            f"{images.dtype} {shape}; add ?color=rgb if it is red, green and blue; for volumes of "
            "depth 3 take a slice of each, or write a task of your own (--task)"
        )
    if shape[1] != shape[2] and reading.size is None:
        raise DataError(
            f"{where}: images must be square, got {shape[1]}x{shape[2]}; crop, pad or resize "
            "them first, or have it done: ?size=64&fit=pad (--image-size 64 --fit pad)"
        )


def _without_nan(images: Array, reading: ImageReading, where: str) -> Array | None:
    """Return which images are free of NaN, None for all."""
    if images.dtype.kind != "f" or not len(images):
        return None
    good = np.array([bool(np.isfinite(image).all()) for image in images])
    if bool(good.all()):
        return None
    if reading.skip_broken:
        return good
    bad = np.flatnonzero(~good)
    num_nan = sum(int((~np.isfinite(images[i])).sum()) for i in bad)
    raise DataError(
        f"{where}: images must be uint8 (0 to 255) or other numbers without gaps, got "
        f"{images.dtype} with {num_nan} NaN values in {len(bad)} images, the first at position "
        f"{bad[0]}; mend them, or leave them out: ?skip-broken=1"
    )


def _range(
    parts: Mapping[str, Array],
    kept: Mapping[str, Array | None],
    reading: ImageReading,
    where: str,
) -> tuple[float, float] | None:
    """Return black's and white's value; None for uint8, which needs no scaling."""
    kinds = sorted({str(images.dtype) for images in parts.values()})
    if len(kinds) > 1:
        raise DataError(
            f"{where}, train: images must be uint8 in all parts, or all of one other type, got "
            f"{', '.join(kinds)}"
        )
    train = parts["train"]
    if train.dtype == np.uint8:
        if reading.value_range is not None:
            raise DataError(
                f"{where}: range must be left out for uint8 images, which are taken as they are, "
                "got one"
            )
        return None
    if train.dtype.kind not in "iufb":
        raise DataError(f"{where}: images must be numbers, got {train.dtype}")
    if reading.value_range is not None:
        return reading.value_range
    bounds = [_bounds(images, kept[part]) for part, images in parts.items() if len(images)]
    lowest = min((low for low, _ in bounds), default=0.0)
    highest = max((high for _, high in bounds), default=0.0)
    found = type_range(train)
    if found is None or lowest < found[0] or highest > found[1]:
        usual = "0..255" if lowest >= 0 and highest <= 255 else "LOW..HIGH"
        if lowest < 0 and lowest >= -1 and highest <= 1:
            usual = "-1..1"
        raise DataError(
            f"{where}: images must be uint8 (0 to 255), uint16, or floats in [0, 1], got "
            f"{train.dtype} from {lowest:g} to {highest:g}; say which values are black and white "
            f"at every site: ?range={usual}"
        )
    if train.dtype.kind == "u":
        check_used(highest, found[1], where=where)
    return found


def _bounds(images: Array, kept: Array | None) -> tuple[float, float]:
    chosen = range(len(images)) if kept is None else np.flatnonzero(kept).tolist()
    each = [(float(images[i].min()), float(images[i].max())) for i in chosen] or [(0.0, 0.0)]
    return min(low for low, _ in each), max(high for _, high in each)


def _finished(
    images: Array,
    kept: Array | None,
    shades: tuple[float, float] | None,
    reading: ImageReading,
) -> Array:
    """Return a part's images done, one after the other into one array."""
    if shades is None and reading.size is None and reading.color is None:
        return images
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    colour = reading.color == "rgb" or (reading.color is None and images.ndim == 4)
    size = images.shape[1:3] if reading.size is None else (reading.size, reading.size)
    chosen = range(len(images)) if kept is None else np.flatnonzero(kept).tolist()
    found = np.zeros((len(chosen), *size, *((3,) if colour else ())), np.uint8)
    for number, place in enumerate(chosen):
        image = images[place] if shades is None else scaled(images[place], *shades)
        found[number] = finished(np.ascontiguousarray(image), reading, colour)
    return found
