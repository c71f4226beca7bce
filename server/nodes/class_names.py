"""Whether all sites mean the same classes by the same numbers: asked before anything starts."""

from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord

from client.data import class_names
from client.errors import DataError
from client.steps.measuring import Describe
from server.nodes.federation import Cost, GridFederation
from server.nodes.questions import ask
from strategies.rounds.base import ClientLost
from strategies.rounds.failures import listed

Names = Sequence[str]


class ClassesDiffer(DataError):
    """A number means one class here and another one there; nothing has started."""

    code = "classes-differ"


def agreed_names(federation: GridFederation, expected: Names | None, owner: str) -> tuple[str, ...]:
    """Return the names of the model's classes, if all sites that answer agree on them.

    A site that lacks the last classes may have fewer names; a class that nobody names has its
    number.

    Args:
        federation: Its nodes are asked.
        expected: What the names must be; None where the sites alone know.
        owner: Whose those are, for the message: "the coordinator", "v0001".

    Raises:
        ClassesDiffer: Naming the sites and their first class that differs, or a site whose names
            cannot be read.
        ClientLost: If no site answers.
    """
    num_classes = federation.spec.num_classes
    found = site_names(federation, num_classes)
    if expected is None and not found:
        expected = ()
    elif expected is None:
        expected = _most_common(found)
        owner = next(site for site in sorted(found) if found[site] == expected)
    if differing := differences(expected, found):
        raise ClassesDiffer(
            f"class names must be the same at all sites, got others than {owner} has: "
            + "; ".join(differing)
            + "; name and number the classes alike everywhere: equal folder names, an empty folder "
            "for a class that a site lacks, or class_names in the .npz file"
        )
    return (*expected, *class_names.numbers(num_classes)[len(expected) :])


def site_names(federation: GridFederation, num_classes: int) -> dict[str, tuple[str, ...]]:
    """Return the class names of every site that answers, by the site's name.

    Raises:
        ClassesDiffer: If a site's names cannot be read, or are more than the model's classes.
        ClientLost: If no site answers, or one runs other code.
    """
    told = federation.settings(Describe, phase="describe")
    answers = ask(federation.grid, told, ArrayRecord())
    if not answers.metrics:  # one that is silent fails in its rounds, where it is known who must
        count = len(answers.failures)
        raise ClientLost(
            f"clients must answer describe, got no answer of {count} "
            f"({listed(answers.failures) or 'none is online'})",
            failures=answers.failures,
        )
    for failure in answers.failures:
        federation.tell(f"describe: {failure.client} is passed over: {failure.reason}")
    if not federation.sums_only:  # there a site says of itself only whether it has enough
        federation.described |= answers.metrics
        if not answers.failures:
            federation.note_counts(told, answers.metrics)
    seconds = sum(float(m["seconds"]) for m in answers.metrics.values())
    cost = Cost(answers.seconds, seconds, up=answers.up, down=answers.down)
    federation.costs["describe"] = federation.costs.get("describe", Cost()) + cost
    # A site that has too few examples to say anything has no names to compare either.
    named = {site: arrays for site, arrays in answers.arrays.items() if arrays}
    return {site: _read(arrays, site, num_classes) for site, arrays in named.items()}


def differences(expected: Names, found: Mapping[str, Names]) -> list[str]:
    """Return for each site whose names differ, in words, its first class that does."""
    differing = []
    for site, names in sorted(found.items()):
        for number, name in enumerate(names):
            known = expected[number] if number < len(expected) else None
            if name != known:
                but = "none" if known is None else repr(known)
                differing.append(f"{site}: class {number} is {name!r}, not {but}")
                break
    return differing


def _most_common(found: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names that most sites agree with; of equally many, the longest list."""

    def agreeing(names: tuple[str, ...]) -> tuple[int, int]:
        return sum(names[: len(other)] == other for other in found.values()), len(names)

    return max((found[site] for site in sorted(found)), key=agreeing)


def _read(arrays: ArrayRecord, site: str, num_classes: int) -> tuple[str, ...]:
    try:
        array = arrays[class_names.ARRAY]
        if set(arrays) != {class_names.ARRAY} or array.dtype != "uint8" or len(array.shape) != 1:
            raise DataError(f"{site}: class names must be one array of bytes, got {sorted(arrays)}")
        if array.shape[0] > class_names.MAX_BYTES:
            raise DataError(f"{site}: class names must take at most {class_names.MAX_BYTES} bytes")
        raw = array.numpy().tobytes()
        return class_names.from_bytes(raw, num_classes=num_classes, where=site)
    except KeyError as error:
        raise ClassesDiffer(f"{site}: reply to describe must hold class names, got none") from error
    except (DataError, ValueError, OSError) as error:
        raise ClassesDiffer(str(error)) from error
