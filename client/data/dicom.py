"""DICOM files as images: the stored values rescaled, seen through the window, black below white.

Nothing of the patient is kept but a hash of the patient's id, which tells whose records belong
together. Source: DICOM PS3.3, C.7.6.3 (pixels), C.11.1 (modality), C.11.2 (window).
"""

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from client.data.picture import Broken, Peek, Picture
from client.data.pixels import WHITE, Array, scaled
from client.errors import DataError

_COLOUR: Final = frozenset(
    {"RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
)
_GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})


def peek(path: Path) -> Peek:
    """Look at a file without its pixels; errors as `client.data.image_file.peek`."""
    found = _open(path, pixels=False)
    return Peek(found.PhotometricInterpretation in _COLOUR, int(found.Rows), int(found.Columns))


def read(path: Path, value_range: tuple[float, float] | None) -> Picture:
    """Return a file's image; arguments and errors as `client.data.image_file.read`.

    A range is of rescaled values (Hounsfield units of a CT), and stands in for the window: with it
    all files are seen alike. Else the file's first window counts, else its table of values, else
    all that its bits can hold. MONOCHROME1 is turned over, so that white is bright.
    """
    _, pydicom_pixels = _pydicom()
    found = _open(path, pixels=True)
    record = record_of(found.get("PatientID"))
    try:
        values = pydicom_pixels.pixel_array(found)  # YBR becomes RGB here
        if found.PhotometricInterpretation == "PALETTE COLOR":
            values = pydicom_pixels.apply_color_lut(values, found)
        if values.ndim == 3:
            deep = values.dtype.itemsize > 1
            bits = 16 if found.PhotometricInterpretation == "PALETTE COLOR" else found.BitsStored
            return Picture(scaled(values, 0, 2 ** int(bits) - 1) if deep else values, record)
        values = pydicom_pixels.apply_modality_lut(values, found).astype(np.float64)
        image, how = _seen(values, found, value_range)
    except Broken:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads to
        raise Broken(str(error) or type(error).__name__) from error
    if found.PhotometricInterpretation == "MONOCHROME1":
        image = WHITE - image
    return Picture(image, record, how)


def record_of(name: object) -> int | None:
    """Return a number in [0, 2^63) for whose record it is; None where nobody is named.

    The same name gives the same number at every site. It can be found again by whoever tries all
    names, so that it is personal data, too; like all ids it stays at the node.
    """
    text = str(name or "").strip()
    if not text:
        return None
    digest = hashlib.sha256(f"efface record: {text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _seen(values: Array, found: Any, stated: tuple[float, float] | None) -> tuple[Array, str]:
    """Return rescaled values as uint8, and in words how."""
    if stated is not None:
        return scaled(values, *stated), f"scaled from {stated[0]:g}..{stated[1]:g}"
    if found.get("WindowWidth") not in (None, "") and found.get("WindowCenter") not in (None, ""):
        centre, width = _first(found.WindowCenter), _first(found.WindowWidth)
        kind = str(found.get("VOILUTFunction", "LINEAR") or "LINEAR")
        if kind == "SIGMOID":
            shades = WHITE / (1 + np.exp(-4 * (values - centre) / width))
            return np.rint(shades).astype(np.uint8), "seen through their own window"
        if kind == "LINEAR":  # by its definition a window is half a step and one value smaller
            low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
        else:
            low, high = centre - width / 2, centre + width / 2
        high = max(high, low + 1e-6)  # a window of one value: black up to it, white above
        return scaled(values, low, high), "seen through their own window"
    if "VOILUTSequence" in found:
        _, pydicom_pixels = _pydicom()
        bits = int(found.VOILUTSequence[0].LUTDescriptor[2])
        shades = pydicom_pixels.apply_voi(values.astype(np.int64), found)
        return scaled(shades, 0, 2**bits - 1), "seen through their own table"
    if "ModalityLUTSequence" in found:
        low, high = 0.0, float(2 ** int(found.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    else:
        bits, signed = int(found.BitsStored), int(found.get("PixelRepresentation", 0))
        slope, intercept = found.get("RescaleSlope", 1), found.get("RescaleIntercept", 0)
        stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        low, high = sorted(float(slope) * value + float(intercept) for value in stored)
    return scaled(values, low, high), f"scaled from {low:g}..{high:g}"


def _first(value: Any) -> float:
    return float(value if np.isscalar(value) or not hasattr(value, "__getitem__") else value[0])


def _open(path: Path, *, pixels: bool) -> Any:
    pydicom, _ = _pydicom()
    try:
        found = pydicom.dcmread(path, stop_before_pixels=not pixels)
        frames = int(found.get("NumberOfFrames", 1) or 1)
        kind = str(found.PhotometricInterpretation)
        int(found.Rows), int(found.Columns), int(found.BitsStored)
    except Exception as error:  # pydicom raises whatever a damaged file leads to
        raise Broken(str(error) or type(error).__name__) from error
    if frames > 1:
        raise Broken(f"{frames} frames; keep one of them")
    if kind not in _COLOUR | _GREY:
        raise Broken(f"photometric interpretation {kind}, which is not read")
    return found


def _pydicom() -> tuple[Any, Any]:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise DataError(
            "DICOM files must be read by the package pydicom, got none; install it: "
            "pip install 'efface[dicom]'"
        ) from error
    return pydicom, pydicom.pixels
