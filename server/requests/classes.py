"""Classes by name: what a person asked for, what a version's card keeps, whether data still fit."""

import csv
import unicodedata
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from client.data.datasets import Data
from client.errors import BadSetting
from client.learning.models import ModelSpec
from server.format import class_text
from server.nodes.class_names import ClassesDiffer
from server.settings import RunSettings

_MOST_SHOWN = 20


def card_names(card: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the class names that a version's card keeps; None of an older one."""
    names = (card.get("data") or {}).get("class_names")
    return tuple(names) if names else None


def card_data(
    settings: RunSettings, data: Data | None, names: Sequence[str], spec: ModelSpec
) -> dict[str, Any]:
    """Return what a version's card keeps of its data: enough to use its weights elsewhere.

    Args:
        settings: Of its training.
        data: The coordinator's data set. Without one every site normalises by its own mean and
            standard deviation, and the card has none.
        names: Of the classes.
        spec: The model.
    """
    return {
        "class_names": list(names),
        "num_classes": spec.num_classes,
        "image_shape": list(spec.task.input_shape or ()),
        "mean": None if data is None else list(data.mean),
        "std": None if data is None else list(data.std),
        **sizes(settings, data),
    }


def sizes(settings: RunSettings, data: Data | None) -> dict[str, int | None]:
    """Return how many examples the coordinator's data set trains and tests on; None without one."""
    if data is None:
        return {"num_train": None, "num_test": None}
    most = settings.max_samples or len(data.train)
    return {"num_train": min(most, len(data.train)), "num_test": len(data.test)}


def joined(texts: Sequence[str]) -> str:
    """Return names as one setting; a comma inside a name is quoted."""
    line = StringIO()
    csv.writer(line, lineterminator="").writerow(texts)
    return line.getvalue() if texts else ""


def numbered(setting: str, names: Sequence[str] | None, num_classes: int) -> str:
    """Return the setting `forget-classes` with a number for each name in it.

    Raises:
        BadSetting: As `class_number`.
    """
    try:
        texts = [text.strip() for text in next(csv.reader([setting], skipinitialspace=True), [])]
    except csv.Error as error:
        raise BadSetting(f"class must be a name or number, got {setting!r}: {error}") from error
    return ",".join(str(class_number(text, names, num_classes)) for text in texts if text)


def class_number(text: str, names: Sequence[str] | None, num_classes: int) -> int:
    """Return the class that a name or number means.

    A name is taken as it is written, else whatever its capitals if one class alone fits. `#2` is
    the number 2, whatever the names are.

    Args:
        text: What a person wrote.
        names: Of the classes; None where they are not known, and numbers alone mean a class.
        num_classes: Of the model.

    Raises:
        BadSetting: If it means no class, or may mean two.
    """
    text = unicodedata.normalize("NFC", text.strip())
    digits = text.removeprefix("#")
    number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None
    in_range = number is not None and number < num_classes
    if number is None and (names is None or not _known(names)):
        several = "; name each class by a --class of its own" if "," in text else ""
        raise BadSetting(f"class must be a number from 0 up, got {text!r}{several}")
    exact = [i for i, name in enumerate(names or ()) if name == text]
    if text.startswith("#") and number is not None:
        exact = []
    if number is not None:
        named = [i for i in exact if i != number]
        if named and in_range:
            raise BadSetting(
                f"class must mean one class, got {text!r}, which is the name of "
                f"{class_text(named[0], names)} and the number of {class_text(number, names)}; "
                f"write '#{named[0]}' or '#{number}'"
            )
        if not named:
            if not in_range:
                raise BadSetting(
                    f"class must lie in [0, {num_classes}), got {digits}" + _known(names)
                )
            return number
    folded = [i for i, name in enumerate(names or ()) if name.casefold() == text.casefold()]
    found = exact or folded
    if len(found) > 1:
        raise BadSetting(
            f"class must mean one class, got {text!r}, which fits "
            + " and ".join(class_text(i, names) for i in found)
            + f"; write '#{found[0]}' or the name as it is"
        )
    if not found:
        several = "; name each class by a --class of its own" if "," in text else ""
        raise BadSetting(
            f"class must be a class's name or number, got {text!r}{several}" + _known(names)
        )
    return found[0]


def _known(names: Sequence[str] | None) -> str:
    if not names or all(name == str(i) for i, name in enumerate(names)):
        return ""
    shown = ", ".join(f"{i} {name}" for i, name in enumerate(names[:_MOST_SHOWN]))
    return f"; known: {shown}" + (", ..." if len(names) > _MOST_SHOWN else "")


def check_as_trained(version: str, card: Mapping[str, Any], data: Data | None) -> None:
    """Refuse data whose classes or sizes are not those that a version was trained on.

    Raises:
        ClassesDiffer: Naming the first class that differs.
    """
    if data is None:
        return
    names, now = card_names(card), data.class_names
    spec = ModelSpec.of_card(card["model"])
    if names is None:
        # Before classes had names, folders were numbered as their names are spelt.
        names = tuple(sorted(now)) if data.name.startswith("folder:") else now
    if len(now) != spec.num_classes and len(names) == len(now):
        raise ClassesDiffer(
            f"classes differ from training: {version} knows {spec.num_classes}, and "
            f"{data.name} has {len(now)}; use the data as they were, or train again"
        )
    for number in range(max(len(names), len(now))):
        then = names[number] if number < len(names) else None
        is_now = now[number] if number < len(now) else None
        if then != is_now:
            raise ClassesDiffer(
                f"classes differ from training: class {number} of {version} is "
                f"{_or_none(then)}, and in {data.name} it is {_or_none(is_now)}; name the folders "
                "as they were, or train again"
            )
    shape = spec.task.input_shape
    if data.train.input_shape != shape:
        raise ClassesDiffer(
            f"examples differ from training: {version} was trained on {shape}, and in {data.name} "
            f"they are {data.train.input_shape}"
        )


def _or_none(name: str | None) -> str:
    return "none" if name is None else repr(name)
