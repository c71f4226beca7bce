"""The methods that benchmarks/RESULTS.md shows to forget as Retrained does, by level.

Written by `python benchmarks/shown.py`, which says by what rule; not by hand.
"""

from collections.abc import Mapping
from typing import Final

KNOWN_TO_FORGET: Final[Mapping[str, tuple[str, ...]]] = {
    "class": (
        "retraining",
        "sga",
        "puf",
        "quickdrop-calibrated-subset",
    ),
    "client": (
        "quickdrop-calibrated",
        "retraining",
        "puf",
        "quickdrop-calibrated-subset",
    ),
}
