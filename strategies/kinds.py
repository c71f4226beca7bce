"""Which kinds of task each method serves, from what it needs, for people to look up."""

from typing import Final

from strategies.method import Needs
from strategies.table import METHODS

KINDS: Final = (
    "Images, convolutions",
    "Images, other networks",
    "Tables, series",
    "Token ids",
    "A loss of its own",
)


def serves(needs: Needs, kind: str) -> bool:
    """Return whether a method with these needs serves a usual network for a kind of task.

    That is one that ends in a linear layer; `strategies.suited` looks at the network itself.
    """
    if kind == "Images, convolutions":
        return True
    if needs.channels:
        return False
    if kind == "Token ids":
        return not needs.float_inputs
    return kind != "A loss of its own" or (needs.own_loss and "client" in needs.levels)


def table() -> list[str]:
    """Return the lines of a Markdown table: methods by kinds of task."""
    head = ["Method", *KINDS]
    rows = [
        [f"`{name}`", *("yes" if serves(method.needs, kind) else "no" for kind in KINDS)]
        for name, method in METHODS.items()
    ]
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
