"""How facts are shown wherever they are shown: classes by number and name, what a request names."""

from collections.abc import Mapping, Sequence
from typing import Any


def class_text(number: int, names: Sequence[str] | None = None) -> str:
    """Return `class 9 (sneaker)`, or `class 9` where the name is the number alone."""
    return f"class {number_and_name(number, names)}"


def number_and_name(number: int, names: Sequence[str] | None = None) -> str:
    """Return `9 (sneaker)`, or `9` where the name is the number alone, or is not known."""
    name = names[number] if names and 0 <= number < len(names) else str(number)
    return str(number) if name == str(number) else f"{number} ({name})"


def target_text(forget: Mapping[str, Any] | None, names: Sequence[str] | None = None) -> str:
    """Return `class 9 (sneaker)`, or `classes 3, 5 and client client-0`; nothing is an empty text.

    Args:
        forget: `classes` and `clients`, either of which may be missing.
        names: Name of class k at index k.
    """
    found = []
    for name, plural in (("class", "classes"), ("client", "clients")):
        members = (forget or {}).get(plural) or ()
        if members:
            texts = [number_and_name(m, names) if name == "class" else str(m) for m in members]
            found.append(f"{name if len(members) == 1 else plural} {', '.join(texts)}")
    return " and ".join(found)
