"""How facts are shown wherever they are shown: classes by number and name."""

from collections.abc import Sequence


def class_text(number: int, names: Sequence[str] | None = None) -> str:
    """Return `class 9 (sneaker)`, or `class 9` where the name is the number alone."""
    return f"class {number_and_name(number, names)}"


def number_and_name(number: int, names: Sequence[str] | None = None) -> str:
    """Return `9 (sneaker)`, or `9` where the name is the number alone, or is not known."""
    name = names[number] if names and 0 <= number < len(names) else str(number)
    return str(number) if name == str(number) else f"{number} ({name})"
