"""What a node sends back, checked before anything is made of it: a node may send anything.

`check` returns a reply's arrays and numbers, or says what is wrong with it. Nothing else of this
project reads what comes from a node, but `strategies.rounds.failures` what it says of an error.

It is long because all that a node can lie in is checked in one place.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.constant import SType

from client import attestation, wire
from client.arrays import as_said, numbers
from client.attestation import BadAttestation, Claim
from client.channels.layout import layout
from client.data import class_names
from client.errors import EffaceError
from client.learning.models import build
from client.messages import OF_NOISE, Common, Declaration, Metric
from client.steps.measuring import Membership
from client.wire import CodeMismatch, Form, forms
from strategies.rounds.failures import cleaned

MOST: Final = 2.0**53  # of any number: counts are exact up to it, and sums of them stay finite
ROUNDING: Final = 1e-9
LARGEST: Final = 1e18  # magnitude of a number in an array: what is made of them stays finite
# Numbers that may be below zero, and their least value. All others count something.
_LEAST: Final[Mapping[str, float]] = {"loss": -MOST, "partition": -1.0}
_NEVER_NEGATIVE: Final = ("running_var", "num_batches_tracked")  # or every node's model is NaN


class BadReply(EffaceError):
    """A node's reply is not what was asked for, or claims what cannot be."""

    code = "bad-reply"


@dataclass(frozen=True)
class Expected:
    """What a reply may hold.

    Attributes:
        declared: The message's own declaration.
        arrays: Names and forms of the arrays; None for the names of classes, or an attestation, of
            any length.
        num_classes: Of the model.
        most: Examples that the node can have used.
        bounds: Largest values of single numbers, by their names.
        same_code: Whether it must come from the client code that runs here, and hold all that is
            declared and nothing else.
        claim: What the node's attestation must say, where the message asks for one.
    """

    declared: Declaration
    arrays: Mapping[str, Form] | None
    num_classes: int
    most: float = MOST
    bounds: Mapping[str, float] = field(default_factory=dict)
    same_code: bool = True
    claim: Claim | None = None


def expected_arrays(told: Common, sent: ArrayRecord) -> dict[str, Form] | None:
    """Return the forms of the arrays that answer a message; None where their length is open.

    Args:
        told: The message's settings.
        sent: The model that went down with it.
    """
    kind = told.message.arrays
    if kind in ("class-names", "attestation"):
        return None
    if kind == "model":
        return forms(sent)
    if kind not in ("parameters", "class-sums", "effects"):
        return {}
    network = build(told.model_spec, torch.Generator())
    if kind == "parameters":
        return forms({n: p for n, p in network.named_parameters() if p.requires_grad})
    layers = layout(network)
    if kind == "class-sums":
        return {
            layer.name: Form((told.model_classes, layer.num_channels), "float64")
            for layer in layers
            if layer.convolution
        }
    return {
        f"{measure}/{layer.name}": Form((layer.num_channels,), "float64")
        for layer in layers[:-1]
        for measure in ("accuracy", "loss")
    }


def most_examples(told: Common, described: Mapping[str, Any] | None) -> float:
    """Return how many examples a node can have used, by what it was asked and has described.

    Args:
        told: The message's settings.
        described: Its answer to `client.steps.measuring.Describe`; None where it gave none.
    """
    asked = float(getattr(told, "max_examples", MOST))
    if described is None or told.message.name in ("query.describe", "query.condense"):
        return asked
    if told.message.name == "evaluate.heldout":
        return float(described["num-heldout"])
    number = float(described["num-examples"])
    if told.message.name == "evaluate.membership":
        return number + float(described["num-heldout"])
    if getattr(told, "data", "original") != "original":  # synthetic stand-ins, or as many others
        number += float(described["num-forget-synthetic"] + described["num-retain-synthetic"])
    return min(asked, number)


def bounds(told: Common, client: str, described: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the largest values of single numbers in a node's own answer, by their names.

    Args:
        told: The message's settings.
        client: The node's name.
        described: Its answer to `client.steps.measuring.Describe`; None where it gave none.
    """
    if not isinstance(told, Membership) or told.forget.level != "client":
        return {}
    named = client in told.forget.clients
    most = {"members": MOST, "others": MOST}
    if described is not None:
        most = {
            "members": float(described["num-examples"]),
            "others": float(described["num-heldout"]),
        }
    return {
        "num-members": most["members"] if named else 0.0,
        "num-others": 0.0 if named else most["others"],
        "num-relearned": most["members"] if named and told.relearn else 0.0,
    }


def check(content: RecordDict, expected: Expected) -> tuple[ArrayRecord, dict[str, Any]]:
    """Return a reply's arrays, in the agreed order, and all the numbers that are declared.

    A node that used no example may leave out what it has nothing to say of; its numbers are 0.

    Raises:
        CodeMismatch: If it comes from other client code than runs here.
        BadReply: If it is anything else than what was asked for, whatever that is.
    """
    try:
        return _checked(content, expected)
    except (BadReply, CodeMismatch):
        raise
    except Exception as error:  # whatever a node sends is that node's failure
        raise BadReply(f"reply must be readable, got {type(error).__name__}") from error


def _checked(content: RecordDict, expected: Expected) -> tuple[ArrayRecord, dict[str, Any]]:
    of_arrays, of_numbers = content.array_records, content.metric_records  # made anew each time
    if len(of_arrays) != 1 or len(of_numbers) != 1 or len(content) != 2:
        raise BadReply(
            "reply must hold one ArrayRecord and one MetricRecord, got "
            f"{len(of_arrays)} and {len(of_numbers)} in {len(content)} records"
        )
    told = dict(next(iter(of_numbers.values())))
    if expected.same_code:
        check_code(told.get("code"))
    metrics = _metrics(told, expected)
    arrays = next(iter(of_arrays.values()))
    if expected.declared.arrays == "attestation":
        return _attested(arrays, metrics, expected.claim), metrics
    if not arrays and not metrics["num-examples"]:
        return ArrayRecord(), metrics
    return _arrays(arrays, expected), metrics


def check_code(code: Any) -> None:
    """Refuse a reply of other client code than runs here.

    Raises:
        CodeMismatch: If it does not say that it comes from this code.
    """
    own = wire.fingerprint()
    if isinstance(code, list) or code != wire.code_number(own):
        raise CodeMismatch(
            f"client must run the coordinator's client code {own[:12]}, got {_shown(code)}; "
            "install the same release and restart it"
        )


# ---- numbers ------------------------------------------------------------------------------------


def _metrics(told: Mapping[str, Any], expected: Expected) -> dict[str, Any]:
    declared = expected.declared.up
    if "num-examples" not in told:
        raise BadReply(f"reply must say num-examples, got {sorted(told)}")
    if expected.same_code and (more := sorted(set(told) - set(declared))):
        raise BadReply(f"reply must hold declared numbers alone, got {more}")
    found: dict[str, Any] = {}
    for name, kind in declared.items():
        if name in told:
            found[name] = _value(name, kind, told[name], expected.num_classes)
        elif name in OF_NOISE:
            continue
        elif expected.same_code and told["num-examples"]:
            raise BadReply(f"reply must say {name}, got {sorted(told)}")
        else:
            found[name] = 0.0 if kind == "scalar" else [0.0] * expected.num_classes
    examples = found["num-examples"]
    if examples > expected.most:
        raise BadReply(
            f"num-examples must be at most {expected.most:.10g}, which the node was asked for and "
            f"has described, got {_shown(examples)}"
        )
    for name, most in expected.bounds.items():
        if found.get(name, 0.0) > most:
            raise BadReply(
                f"{name} must be at most {most:.10g}, which the node was asked for and has "
                f"described, got {_shown(found[name])}"
            )
    _check_counts(found, own=bool(expected.bounds))
    return found


def _value(name: str, kind: Metric, value: Any, num_classes: int) -> Any:
    if isinstance(value, list) != (kind == "per-class"):
        raise BadReply(f"{name} must be {kind}, got {_shown(value)}")
    if isinstance(value, list) and len(value) != num_classes:
        raise BadReply(f"{name} must hold {num_classes} numbers, got {len(value)}")
    least = _LEAST.get(name, 0.0)
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise BadReply(f"{name} must be a number, got {_shown(number)}")
        if not least <= number <= MOST:  # NaN and infinity are neither
            raise BadReply(
                f"{name} must be a finite number from {least:.3g} to {MOST:.3g}, got "
                f"{_shown(number)}"
            )
    return value


def _check_counts(found: Mapping[str, Any], *, own: bool) -> None:
    """Check that counts are parts of the whole, and right answers and confidence parts of all.

    `own` says that they are one node's, and no sum of several.
    """
    whole = found["num-examples"]
    counts = {name: n for name, n in found.items() if "count" in name and isinstance(n, list)}
    # Parts of a sum are no whole numbers, and rounded.
    if (total := sum(map(sum, counts.values()))) > whole * (1 + ROUNDING):
        raise BadReply(
            f"{' and '.join(counts)} must add up to at most num-examples, {_shown(whole)}, got "
            f"{_shown(total)}"
        )
    for name, count in counts.items():
        right = found.get(name.replace("count", "correct"), count)
        if any(r > c for r, c in zip(right, count, strict=True)):
            raise BadReply(f"{name.replace('count', 'correct')} must be at most {name} everywhere")
    sides = [name for name in ("members", "others") if f"num-{name}" in found]
    for name in [*sides, "relearned"] if sides else []:
        sure, number = found[f"{name}-confidence"], found[f"num-{name}"]
        if sure > number * (1 + ROUNDING):
            raise BadReply(
                f"{name}-confidence must be at most num-{name}, {_shown(number)}, got "
                f"{_shown(sure)}"
            )
    if sides and (both := sum(found[f"num-{n}"] for n in sides)) > whole * (1 + ROUNDING):
        raise BadReply(
            f"num-members and num-others must add up to at most num-examples, {_shown(whole)}, got "
            f"{_shown(both)}"
        )
    if sides and found["num-relearned"] > found["num-members"] * (1 + ROUNDING):
        raise BadReply(
            f"num-relearned must be at most num-members, {_shown(found['num-members'])}, got "
            f"{_shown(found['num-relearned'])}"
        )
    if sides and own and found["num-relearned"] not in (0, found["num-members"]):
        raise BadReply(
            f"num-relearned must be 0 or num-members, {_shown(found['num-members'])}, got "
            f"{_shown(found['num-relearned'])}"
        )
    for name in ("num-forget", "num-retain"):
        if found.get(name, 0) > whole:
            raise BadReply(
                f"{name} must be at most num-examples, {_shown(whole)}, got {_shown(found[name])}"
            )


def _shown(value: Any) -> str:
    """Return a node's value in a few characters, whatever it is."""
    if isinstance(value, int) and abs(value) > MOST:
        return "a whole number beyond 2^53"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return cleaned(f"{value:.10g}" if isinstance(value, float) else repr(value), longest=80)


# ---- arrays -------------------------------------------------------------------------------------


def _arrays(arrays: ArrayRecord, expected: Expected) -> ArrayRecord:
    like = expected.arrays
    if like is None:
        like = _of_bytes(arrays, class_names.ARRAY, class_names.MAX_BYTES)
    if odd := sorted(set(arrays) ^ set(like)):
        raise BadReply(f"reply must hold the arrays asked for alone, got or missed {odd[:5]}")
    for name, form in like.items():
        read(arrays[name], form, name)
    if list(arrays) == list(like):
        return arrays
    return ArrayRecord({name: arrays[name] for name in like})


def _of_bytes(arrays: ArrayRecord, name: str, most: int) -> dict[str, Form]:
    """Return the form of an array of bytes: as long as it says, within bounds."""
    array = arrays.get(name)
    shape = () if array is None else tuple(array.shape)
    size = shape[0] if len(shape) == 1 and type(shape[0]) is int else -1
    if not 0 <= size <= most:
        raise BadReply(
            f"reply must hold {name.replace('-', ' ')} in one array of at most {most} bytes, "
            f"got {sorted(arrays)[:5]} of shape {shape}"
        )
    return {name: Form((size,), "uint8")}


def _attested(arrays: ArrayRecord, metrics: Mapping[str, Any], claim: Claim | None) -> ArrayRecord:
    """Return the array of an attestation that says what the message asked for."""
    like = _of_bytes(arrays, attestation.ARRAY, attestation.MAX_BYTES)
    if odd := sorted(set(arrays) ^ set(like)):
        raise BadReply(f"reply must hold an attestation alone, got or missed {odd[:5]}")
    array = arrays[attestation.ARRAY]
    values = read(array, like[attestation.ARRAY], attestation.ARRAY)
    try:
        document = attestation.read(values.tobytes())
        attestation.check(document, claim)
    except BadAttestation as error:
        raise BadReply(cleaned(str(error), longest=500)) from error
    applied = document["statement"]["applied"]
    if applied != ("before" if metrics["applied"] else "now"):
        raise BadReply(f"attestation must say applied as its reply does, got {applied!a}")
    return ArrayRecord({attestation.ARRAY: array})


def read(array: Array, form: Form, name: str) -> "np.ndarray[Any, Any]":
    """Return an array's numbers, which must have the agreed form and be finite; read-only.

    Raises:
        BadReply: Naming the array.
    """
    values = plain(array, form, name)
    counts = name.rpartition(".")[2] in _NEVER_NEGATIVE
    if values.size and values.dtype.kind in "fi":
        low, high = float(values.min()), float(values.max())  # NaN wins in both
        least = 0.0 if counts else -LARGEST
        if not (least <= low and high <= LARGEST):
            raise BadReply(
                f"array {name} must hold finite numbers from {least:g} to {LARGEST:g}, got "
                f"{low:.6g} to {high:.6g}"
            )
    return values


def plain(array: Array, form: Form, name: str) -> "np.ndarray[Any, Any]":
    """Return an array's numbers, whatever they are, if it has the agreed form; read-only.

    The bytes must be those of an array of this form.

    Raises:
        BadReply: Naming the array.
    """
    if array.stype != SType.NUMPY:
        raise BadReply(f"array {name} must be kept as {SType.NUMPY}, got {array.stype!r}")
    if (tuple(array.shape), array.dtype) != (form.shape, form.dtype):
        raise BadReply(
            f"array {name} must be {form.dtype} of shape {form.shape}, got {array.dtype!r} of "
            f"shape {tuple(array.shape)}"
        )
    found = as_said(array)
    if found is None:
        size = math.prod(form.shape) * np.dtype(form.dtype).itemsize
        raise BadReply(
            f"array {name} must be kept as {form.dtype} of shape {form.shape} in {size} bytes and "
            f"a header, got {len(array.data)} bytes that begin with {array.data[:100]!r}"
        )
    return found


# ---- updates ------------------------------------------------------------------------------------


def same(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    """Return whether two models are equal, number by number."""
    return all(
        one[name].data == other[name].data
        or np.array_equal(numbers(one[name]), numbers(other[name]))
        for name in one
    )


def update_norm(end: Mapping[str, Array], start: Mapping[str, Array]) -> float:
    """Return the length of an update, `||end - start||_2`, over all arrays of floats.

    A norm layer's running statistics count as well: a node can lie in them, too.
    """
    total = 0.0
    for name in end:
        array = numbers(end[name])
        if array.dtype.kind == "f":
            part = np.subtract(array, numbers(start[name]), dtype=np.float64).ravel()
            total += float(part @ part)
    return math.sqrt(total)
