"""What the readers of image files give back."""

from dataclasses import dataclass

from client.data.pixels import Array


class Broken(Exception):
    """A file cannot be read as an image; the text says why, and names no file."""


@dataclass(frozen=True)
class Peek:
    """What a file's image is like.

    Attributes:
        colour: Whether any of its colours is no grey.
        rows: Of the upright image.
        columns: Of the upright image.
    """

    colour: bool
    rows: int
    columns: int


@dataclass(frozen=True)
class Picture:
    """A file's image.

    Attributes:
        pixels: uint8, (H, W) for grey, (H, W, 3) for colour; upright, on white.
        record: Whose image it is, as a number that a hash made; None if the file does not say.
        how: In words, what was done to it; empty for an 8-bit image without transparency.
        used: Of an image of more than 8 bits whose range was taken from its type: its largest value
            and white's.
    """

    pixels: Array
    record: int | None = None
    how: str = ""
    used: tuple[float, float] | None = None
