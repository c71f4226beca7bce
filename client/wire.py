"""What may cross the wire: how a node receives a message, and the only way to reply.

Down come parameters and settings. Up go parameters, counts, scalar measures and the classes' names:
never an image, a synthetic image, a label list, a per-sample loss, or a path. `reply` is the one
place where an answer is built, and it lets through nothing that the message does not declare
(`client.messages.Declaration`).
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from client.arrays import numbers, written
from client.errors import BadSetting, CodeMismatch, Diverged, EffaceError
from client.messages import Common, Declaration, ForgetSpec
from client.packing import unpacked
from client.settings import (
    MIN_EXAMPLES,
    Rule,
    Settings,
    all_or_some,
    at_least,
    between,
    one_of,
    positive,
    setting,
)

# What coordinator and methods use of settings and messages is theirs from here, too.
__all__ = [
    "MIN_EXAMPLES",
    "CodeMismatch",
    "Common",
    "ForgetSpec",
    "Form",
    "Rule",
    "Settings",
    "all_or_some",
    "at_least",
    "between",
    "code_number",
    "digest_of",
    "fingerprint",
    "forms",
    "one_of",
    "positive",
    "receive",
    "reply",
    "setting",
    "shown_loss",
    "tensors",
]

C = TypeVar("C", bound=Common)


def shown_loss(loss: Tensor, num_examples: Tensor | int, least: int = MIN_EXAMPLES) -> Tensor:
    """Return what of a loss may go up: 0 where it is not over enough distinct examples.

    Args:
        loss: Any shape.
        num_examples: Distinct examples behind each loss, or behind all of them.
        least: How many are enough.
    """
    return torch.where(torch.as_tensor(num_examples) >= least, loss, 0.0)


@lru_cache(maxsize=1)  # the sources do not change while a process lives
def fingerprint() -> str:
    """Return the SHA-256 of this folder's Python sources, paths included, in hexadecimal.

    Server and nodes compare it in every message: replies of other code than the coordinator
    believes to run must never be averaged.
    """
    return digest_of(Path(__file__).parent)


def digest_of(folder: Path) -> str:
    """Return the SHA-256 of a folder's Python sources and of its subfolders', in hexadecimal.

    Paths are part of it: a file that moves changes what runs.
    """
    digest = hashlib.sha256()
    for source in sorted(folder.rglob("*.py")):
        if folder / "own" in source.parents:  # a user's task, which has a hash of its own
            continue
        path = source.relative_to(folder).as_posix()
        digest.update(path.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def code_number(code: str) -> int:
    """Return the first 48 bits of a fingerprint: a MetricRecord holds no text."""
    return int(code[:12], 16)


def receive(message: Message, kind: type[C]) -> tuple[ArrayRecord, C]:
    """Return a message's arrays and its checked settings.

    Raises:
        BadSetting: If the settings are not exactly what `kind` declares.
        CodeMismatch: If the coordinator expects other client code than this node runs.
        BadPacking: If the arrays came as one that is not what it must be.
    """
    records = message.content
    if set(records) != {"arrays", "config"}:
        raise BadSetting(f"message must hold 'arrays' and 'config', got {sorted(records)}")
    settings = kind.parse(records.config_records["config"])
    if settings.fingerprint != fingerprint():
        raise CodeMismatch(
            f"fingerprint must be {fingerprint()[:12]} (the code of this node), got "
            f"{settings.fingerprint[:12]}; install the same release on server and nodes"
        )
    settings.model_spec.task.check()  # before any work
    return unpacked(records.array_records["arrays"]), settings


def tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Return a record's arrays as tensors of their own, by name."""
    return {name: torch.from_numpy(numbers(array).copy()) for name, array in arrays.items()}


def reply(
    message: Message,
    declared: Declaration,
    metrics: Mapping[str, float | list[float]],
    *,
    num_classes: int,
    state: Mapping[str, Tensor] | None = None,
    like: Mapping[str, "Form"] | None = None,
) -> Message:
    """Return the answer to `message`: exactly one ArrayRecord and one MetricRecord.

    Args:
        message: What is answered.
        declared: What may go up.
        metrics: Numbers by name; "per-class" ones as lists of `num_classes` numbers.
        num_classes: Classes of the model.
        state: Parameters, buffers, slices of them or channel scores, by name; None for an answer
            without arrays.
        like: What `state` must look like: the same names, shapes and dtypes.

    Raises:
        EffaceError: If anything undeclared would go up, or a value is not finite.
    """
    for name, value in metrics.items():
        kind = declared.up.get(name)
        if kind is None:
            raise EffaceError(
                f"reply to {declared.name} must hold declared metrics only, got {name!r}"
            )
        if (kind == "per-class") != isinstance(value, list):
            raise EffaceError(f"metric {name} must be {kind}, got {type(value).__name__}")
        numbers = value if isinstance(value, list) else [value]
        if kind == "per-class" and len(numbers) != num_classes:
            raise EffaceError(f"metric {name} must hold {num_classes} numbers, got {len(numbers)}")
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise Diverged(f"metric {name} must be a finite number, got {value!r}")
    arrays = ArrayRecord()
    if state is not None:
        if declared.arrays == "none":
            raise EffaceError(f"reply to {declared.name} must hold no array, got {sorted(state)}")
        arrays = _parameters(state, like or {})
    counted = {**metrics, "code": code_number(fingerprint())}
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(cast(Any, counted))})
    return Message(content=content, reply_to=message)


@dataclass(frozen=True)
class Form:
    """What an array looks like: shape, and dtype as numpy names it."""

    shape: tuple[int, ...]
    dtype: str


def forms(arrays: Mapping[str, Any]) -> dict[str, Form]:
    """Return the forms of a record's arrays, or of tensors."""
    return {
        name: Form(tuple(array.shape), str(array.dtype).removeprefix("torch."))
        for name, array in arrays.items()
    }


def _parameters(state: Mapping[str, Tensor], like: Mapping[str, Form]) -> ArrayRecord:
    if set(state) != set(like):
        odd = sorted(set(state) ^ set(like))
        raise EffaceError(f"reply must hold the arrays that were asked for alone, got {odd}")
    for name, tensor in state.items():
        if tuple(tensor.shape) != like[name].shape:
            raise EffaceError(
                f"array {name} must have shape {like[name].shape}, got {tuple(tensor.shape)}"
            )
        if tensor.dtype != getattr(torch, like[name].dtype, None):
            raise EffaceError(f"array {name} must be {like[name].dtype}, got {tensor.dtype}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Diverged(
                f"array {name} must be finite, got NaN or infinity; lower the learning rate"
            )
    return ArrayRecord({name: _array(tensor) for name, tensor in state.items()})


def _array(tensor: Tensor) -> Array:
    return written(tensor.detach().cpu().contiguous().numpy())
