"""The phases of a request: one list, in the order in which costs are kept and shown."""

from typing import Final

PHASES: Final = ("train", "retrain", "score", "unlearn", "recover", "relearn")
# What a request to forget is charged with, and compared with retraining by.
OF_THE_REQUEST: Final = ("score", "unlearn", "recover")
