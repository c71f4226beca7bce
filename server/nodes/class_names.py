"""Whether all sites mean the same classes by the same numbers: asked before anything starts."""

import time
from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord, Message, RecordDict

from client.data import class_names
from client.errors import DataError
from client.steps.measuring import Describe
from server.nodes.federation import Cost, GridFederation
from strategies.rounds.base import ClientLost, checked

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
    if expected is None:
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
    grid, settings = federation.grid, federation.settings(Describe, phase="describe")
    grid.take_traffic()
    started = time.perf_counter()
    nodes = {node.node_id: node.name for node in grid.get_nodes()}
    messages = [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord(),
                    "config": Describe(**{**vars(settings), "client": name}).config(),
                }
            ),
            dst_node_id=number,
            message_type=Describe.message.name,
        )
        for number, name in sorted(nodes.items())
    ]
    found, seconds, errors = {}, 0.0, []
    for reply in grid.send_and_receive(messages):
        site = nodes.get(reply.metadata.src_node_id)
        if reply.has_error() or site is None:
            errors.append(f"{site or 'a node'}: {reply.error.reason if reply.has_error() else '?'}")
            continue
        seconds += float(checked(reply.content, site)["seconds"])
        found[site] = _read(next(iter(reply.content.array_records.values())), site, num_classes)
    if not found:  # one that does not answer fails in its rounds, where it is known who must
        raise ClientLost(
            f"clients must answer describe, got no answer of {len(nodes)} "
            f"({'; '.join(errors) or 'none before the deadline'})"
        )
    traffic = grid.take_traffic()
    cost = Cost(time.perf_counter() - started, seconds, up=traffic.up, down=traffic.down)
    federation.costs["describe"] = federation.costs.get("describe", Cost()) + cost
    return found


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
