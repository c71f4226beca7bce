"""One image file as pixels: whatever Pillow reads, and DICOM.

A file is looked at first (`peek`), so that a whole set's shape is known before its pixels are, and
read later (`read`).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from client.data.picture import Broken, Peek, Picture
from client.data.pixels import Array, scaled

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES: Final = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".dcm", ".dicom"),
)
_GREY: Final = frozenset({"1", "L", "LA", "La"})
_PALETTE: Final = frozenset({"P", "PA"})
_DICOM_MARK: Final = b"DICM"


def is_image(path: Path) -> bool:
    """Return whether a file looks like an image: by its name, or by DICOM's mark inside."""
    return path.suffix.lower() in SUFFIXES or _is_dicom(path)


def peek(path: Path) -> Peek:
    """Look at a file without keeping its pixels.

    Raises:
        Broken: If it is no image, or one of too many pixels.
        DataError: If it is DICOM, and nothing here reads DICOM.
    """
    if _is_dicom(path):
        from client.data import dicom

        return dicom.peek(path)
    with _opened(path) as image:
        columns, rows = image.size
        if image.getexif().get(_ORIENTATION, 1) in _LYING:
            columns, rows = rows, columns
        return Peek(_is_colour(image), rows, columns)


def read(path: Path, value_range: tuple[float, float] | None) -> Picture:
    """Return a file's image.

    Args:
        path: A file that `peek` has looked at.
        value_range: Value of black and of white, for images of more than 8 bits and floats; None
            for the range of the type (for DICOM, its window).

    Raises:
        Broken: If it is damaged, holds NaN or several pages, or its type says no range.
        DataError: If it is DICOM, and nothing here reads DICOM.
    """
    if _is_dicom(path):
        from client.data import dicom

        return dicom.read(path, value_range)
    with _opened(path) as image:
        from PIL import ImageOps

        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise Broken(f"{getattr(image, 'n_frames', 1)} pages; keep one of them")
        upright = ImageOps.exif_transpose(image)
        if _is_deep(image):
            return _deep(image, np.asarray(upright), value_range)
        colour = _is_colour(image)
        if upright.has_transparency_data:
            flat, is_clear = _on_white(upright)
            how = "flattened on white" if is_clear else ""
        else:
            flat, how = upright.convert("RGB" if colour or upright.mode in _PALETTE else "L"), ""
        pixels = np.array(flat)
        if pixels.ndim == 3 and not colour:
            pixels = pixels[..., 0].copy()
        return Picture(pixels, how=how)


_ORIENTATION: Final = 0x0112  # EXIF's tag
_LYING: Final = frozenset({5, 6, 7, 8})  # its values by which rows and columns change places
_BITS: Final = 258  # TIFF's tag BitsPerSample


@contextmanager
def _opened(path: Path) -> Iterator["Image"]:
    """Open a file with Pillow; whatever a damaged one leads to becomes `Broken`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Half of Pillow's limit is not yet dangerous; what it says of EXIF helps nobody.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                yield image
    except Broken:
        raise
    except Image.DecompressionBombError as error:
        raise Broken(f"too many pixels: {error}") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others
        why = str(error).replace(f" {str(path)!r}", "")  # whoever says it names the file
        raise Broken(why or type(error).__name__) from error


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    if path.suffix.lower() in SUFFIXES or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == _DICOM_MARK


def _is_deep(image: "Image") -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _is_colour(image: "Image") -> bool:
    """Return whether an image has colours; a palette of greys has none."""
    if image.mode in _GREY or _is_deep(image):
        return False
    if image.mode not in _PALETTE:
        return True
    palette = image.getpalette("RGB") or []
    colours = np.array(palette, np.uint8).reshape(-1, 3)
    indices = np.unique(np.asarray(image.getchannel("P") if image.mode == "PA" else image))
    colours = colours[indices[indices < len(colours)]]
    return bool((colours != colours[:, :1]).any())


def _on_white(image: "Image") -> tuple["Image", bool]:
    """Return an image without its transparency, in RGB, and whether it had any."""
    from PIL import Image

    clear = image.convert("RGBA")
    lowest, _ = clear.getchannel("A").getextrema()
    if lowest == 255:
        return clear.convert("RGB"), False
    white = Image.new("RGBA", clear.size, "white")
    return Image.alpha_composite(white, clear).convert("RGB"), True


def _deep(image: "Image", values: Array, value_range: tuple[float, float] | None) -> Picture:
    """Return a grey image of more than 8 bits, or of floats, in 8."""
    if values.dtype.kind == "f" and (num_wrong := int((~np.isfinite(values)).sum())):
        raise Broken(f"{num_wrong} pixels that are NaN or infinite")
    lowest, highest = float(values.min()), float(values.max())
    if value_range is not None:
        low, high = value_range
        return Picture(scaled(values, low, high), how=f"scaled from {low:g}..{high:g}")
    if image.mode == "F":
        if lowest < 0 or highest > 1:
            raise Broken(
                f"floats from {lowest:g} to {highest:g}, outside of [0, 1]; say which are black "
                "and white at every site: ?range=LOW..HIGH"
            )
        return Picture(scaled(values, 0, 1), how="scaled from 0..1")
    if image.mode == "I" and image.format == "TIFF":
        raise Broken(
            f"32-bit numbers from {lowest:g} to {highest:g}; say which are black and white at "
            "every site: ?range=LOW..HIGH"
        )
    bits = 16
    if image.format == "TIFF":
        bits = int(getattr(image, "tag_v2", {}).get(_BITS, (16,))[0])
    full = float(2**bits - 1)
    # A file that says 12 bits means them; one that says 16 may hold any number of them.
    return Picture(
        scaled(values, 0, full),
        how=f"scaled from 0..{full:.0f}",
        used=(highest, full) if bits == 16 else None,
    )
