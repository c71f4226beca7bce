"""What may cross the wire: message names, the settings each carries, and the only way to reply.

Down come parameters and settings. Up go parameters, counts and scalar measures: never an image, a
synthetic image, a label list, a per-sample loss, or a path. `reply` is the one place where an
answer is built, and it lets through nothing that is not declared here.
"""

import hashlib
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from client.errors import BadSetting, EffaceError
from client.learning.models import NAMES as MODEL_NAMES
from client.learning.models import ModelSpec

# ---- message types: "<flower category>.<action>" ------------------------------------------------
FIT: Final = "train.fit"  # local SGD, with distillation in situ if asked for
ASCEND: Final = "train.ascend"  # stochastic gradient ascent on the forget data
DESCEND: Final = "train.descend"  # recovery and relearning: SGD on the compact data
HELDOUT: Final = "evaluate.heldout"  # accuracy and loss on the client's held-out part
DESCRIBE: Final = "query.describe"  # counts only
CONDENSE: Final = "query.condense"  # fine-tune the synthetic set (dataset condensation)
SETTLE: Final = "query.settle"  # write or lift a tombstone, destroy what it covers
REPRESENTATION: Final = "train.representation"  # class-wise sums of channel activations
ABLATION: Final = "train.ablation"  # effect of every channel on the forget data
FIT_CHANNELS: Final = "train.channels"  # local SGD of chosen channels; only their slices go up
FISHER: Final = "train.fisher"  # diagonal of the Fisher information, one number a parameter

SLICES: Final = "slices"  # the array of a FIT_CHANNELS message that holds channels alone

LEVELS: Final = ("none", "class", "client")

# ---- what a reply may carry ---------------------------------------------------------------------
# name -> "scalar", or "per-class": one number for each class, whatever data the node holds.
METRICS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "num-examples": "scalar",  # |Z_i|: the weight of the reply
        "num-steps": "scalar",
        "samples": "scalar",  # images passed through the model, repeats counted
        "loss": "scalar",  # mean over the phase
        "seconds": "scalar",  # wall time of the handler's work
        "seconds-distill": "scalar",  # part of it spent on matching gradients
        "code": "scalar",  # first 48 bits of the client code's fingerprint
        "partition": "scalar",  # position of a simulated node, -1 for a real one
        "num-forget": "scalar",
        "num-forget-synthetic": "scalar",
        "num-retain": "scalar",
        "num-retain-synthetic": "scalar",
        "num-heldout": "scalar",
        "retain-correct-per-class": "per-class",
        "retain-count-per-class": "per-class",
        "retain-loss-per-class": "per-class",  # summed over the class's examples
        "forget-correct-per-class": "per-class",
        "forget-count-per-class": "per-class",
        "forget-loss-per-class": "per-class",
        "count-train-per-class": "per-class",
        "count-per-class": "per-class",  # examples behind a class's sums
        "applied": "scalar",  # 1 if the request had been applied already
        "destroyed": "scalar",  # synthetic images destroyed
    }
)

MIN_EXAMPLES: Final = 2  # behind a loss, or a sum of activations, that goes up


def shown_loss(loss: Tensor, num_examples: Tensor | int) -> Tensor:
    """Return what of a loss may go up: 0 where it is not over at least 2 distinct examples.

    Args:
        loss: Any shape.
        num_examples: Distinct examples behind each loss, or behind all of them.
    """
    return torch.where(torch.as_tensor(num_examples) >= MIN_EXAMPLES, loss, 0.0)


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
        path = source.relative_to(folder).as_posix()
        digest.update(path.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def code_number(code: str) -> int:
    """Return the first 48 bits of a fingerprint: a MetricRecord holds no text."""
    return int(code[:12], 16)


# ---- settings -----------------------------------------------------------------------------------
T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """What a setting must fulfil, as a test and in words."""

    holds: Callable[[Any], bool]
    words: str


def setting(rule: Rule, default: Any = MISSING) -> Any:
    """Declare a dataclass field that `Settings.parse` checks against `rule`."""
    if isinstance(default, list):
        return field(default_factory=list, metadata={"rule": rule})
    return field(default=default, metadata={"rule": rule})


def between(low: float, high: float) -> Rule:
    return Rule(lambda v: low <= v <= high, f"lie in [{low:g}, {high:g}]")


def positive() -> Rule:
    return Rule(lambda v: v > 0, "be positive")


def at_least(low: int) -> Rule:
    return Rule(lambda v: v >= low, f"be at least {low}")


def all_or_some() -> Rule:
    """Return the rule of a number of examples whose sum goes up."""
    return Rule(lambda v: v == 0 or v >= MIN_EXAMPLES, f"be 0 for all, or at least {MIN_EXAMPLES}")


def one_of(*values: str) -> Rule:
    return Rule(lambda v: v in values, f"be one of {', '.join(values)}")


def text() -> Rule:
    return Rule(lambda v: 0 < len(v) <= 200, "be a text of 1 to 200 characters")


def name() -> Rule:
    """Return the rule of what may name a folder in a node's store: nothing leads out of it."""
    return Rule(
        lambda v: re.fullmatch(r"[^\W_][\w .-]{0,63}", v) is not None,
        "be 1 to 64 letters, digits, spaces, '.', '_' or '-', the first a letter or digit",
    )


ANY: Final = Rule(lambda v: True, "be given")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A message's settings; the keys are the field names in kebab-case."""

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Self:
        """Read settings from a ConfigRecord.

        Raises:
            BadSetting: If a key is unknown or missing, or its value has the wrong type or breaks
                its rule. The message names key, rule and value.
        """
        known = {f.name.replace("_", "-"): f for f in fields(cls)}
        for key in config:
            if key not in known:
                raise BadSetting(
                    f"setting must be known to this node, got {key!r}; see client/wire.py"
                )
        values: dict[str, Any] = {}
        for key, spec in known.items():
            if key in config:
                values[spec.name] = _checked(key, config[key], cast(type, spec.type), spec.metadata)
            elif spec.default is MISSING and spec.default_factory is MISSING:
                raise BadSetting(f"{key} must be given, got nothing")
        return cls(**values)

    def check(self) -> Self:
        """Return self if every field fulfils its rule; else raise BadSetting."""
        return type(self).parse(dict(self.config()))

    def config(self) -> ConfigRecord:
        """Return the settings as a ConfigRecord, keys in kebab-case."""
        return ConfigRecord({f.name.replace("_", "-"): getattr(self, f.name) for f in fields(self)})


def _checked(key: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    wanted = getattr(kind, "__origin__", kind)
    if type(value) is not wanted:
        raise BadSetting(f"{key} must be {wanted.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadSetting(f"{key} must be finite, got {value}")
    rule: Rule = metadata["rule"]
    if not rule.holds(value):
        raise BadSetting(f"{key} must {rule.words}, got {value!r}")
    return value


@dataclass(frozen=True)
class ForgetSpec:
    """What a request names: classes, or clients, or nothing."""

    level: str = "none"
    classes: tuple[int, ...] = ()
    clients: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.level == "class":
            return ("class " if len(self.classes) == 1 else "classes ") + ", ".join(
                map(str, self.classes)
            )
        if self.level == "client":
            return ("client " if len(self.clients) == 1 else "clients ") + ", ".join(self.clients)
        return "nothing"


_classes: Final = Rule(
    lambda v: all(type(c) is int and c >= 0 for c in v), "be a list of class numbers from 0 up"
)
_clients: Final = Rule(lambda v: all(type(c) is str and c for c in v), "be a list of client names")


_losses: Final = Rule(
    lambda v: all(type(x) is float and 0 <= x <= 1e6 for x in v), "be a list of losses from 0 up"
)


_texts: Final = Rule(lambda v: all(type(t) is str and t for t in v), "be a list of texts")


@dataclass(frozen=True, kw_only=True)
class Common(Settings):
    """What every message carries: who, which run, which model and data, what is to be forgotten."""

    client: str = setting(name())  # the node addressed, as the federation knows it
    fingerprint: str = setting(Rule(lambda v: len(v) == 64, "be a SHA-256 in hexadecimal"))
    request: str = setting(text())
    lineage: str = setting(name())  # names the synthetic sets that belong to this model
    phase: str = setting(text())
    server_round: int = setting(at_least(0), 0)
    seed: int = setting(Rule(lambda v: 0 <= v < 2**63, "lie in [0, 2^63)"))

    federation: str = setting(Rule(lambda v: len(v) <= 200, "be at most 200 characters"), "")
    dataset: str = setting(text())  # ignored by a node that names its own data
    partition: str = setting(text(), "iid")
    num_clients: int = setting(at_least(1))
    max_samples: int = setting(at_least(0), 0)  # training images over all clients, 0 for all
    partition_seed: int = setting(Rule(lambda v: 0 <= v < 2**63, "lie in [0, 2^63)"), 0)
    holdout: float = setting(between(0.0, 0.5), 0.1)

    model: str = setting(one_of(*MODEL_NAMES))
    model_classes: int = setting(at_least(2))
    model_channels: int = setting(Rule(lambda v: v in (1, 3), "be 1 or 3"))
    model_image_size: int = setting(at_least(8))
    model_width: int = setting(at_least(1), 128)
    model_depth: int = setting(between(1, 8), 3)
    model_pruned: list[str] = setting(
        _texts, []
    )  # channels without effect (client.channels.layout)
    model_compact: bool = setting(ANY, False)  # they are not there any more

    device: str = setting(
        Rule(lambda v: v.split(":")[0] in ("auto", "cpu", "cuda"), "be auto, cpu or cuda"), "auto"
    )
    threads: int = setting(at_least(1), 1)
    precision: str = setting(one_of("float32", "bfloat16"), "float32")

    scale: int = setting(at_least(0), 0)  # s: one synthetic image for so many; 0 for none

    forget_level: str = setting(one_of(*LEVELS), "none")
    forget_classes: list[int] = setting(_classes, [])
    forget_clients: list[str] = setting(_clients, [])
    erased_classes: list[int] = setting(_classes, [])  # the server's tombstones
    erased_clients: list[str] = setting(_clients, [])

    @property
    def forget(self) -> ForgetSpec:
        return ForgetSpec(self.forget_level, tuple(self.forget_classes), tuple(self.forget_clients))

    @property
    def population(self) -> str:
        """A short name for the simulated clients: their data, and how these are shared out."""
        parts = (
            self.dataset,
            self.partition,
            self.num_clients,
            self.max_samples,
            self.partition_seed,
            self.federation,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    @property
    def model_spec(self) -> ModelSpec:
        return ModelSpec(
            name=self.model,
            num_classes=self.model_classes,
            channels=self.model_channels,
            image_size=self.model_image_size,
            width=self.model_width,
            depth=self.model_depth,
            pruned=tuple(self.model_pruned),
            compact=self.model_compact,
        )


@dataclass(frozen=True, kw_only=True)
class Fit(Common):
    """Local training on the node's real data; `scale` > 0 also distils in situ."""

    side: str = setting(one_of("retain", "forget", "all"), "retain")  # all: with what is relearned
    steps: int = setting(at_least(0), 0)  # T; 0 to count in epochs
    epochs: int = setting(at_least(0), 0)
    batch_size: int = setting(at_least(1), 64)
    lr: float = setting(positive())  # eta_theta
    momentum: float = setting(between(0.0, 0.999), 0.0)
    weight_decay: float = setting(between(0.0, 1.0), 0.0)
    proximal: float = setting(between(0.0, 1e6), 0.0)  # mu of FedProx
    optimiser: str = setting(one_of("sgd", "quasi-newton"), "sgd")
    # Of quasi-Newton steps, which take no momentum:
    curvature: str = setting(one_of("fisher", "hessian"), "fisher")
    beta1: float = setting(between(0.0, 0.999), 0.9)  # decay of the mean gradient
    beta2: float = setting(between(0.0, 0.9999), 0.999)  # of the mean square of the curvature
    hessian_power: float = setting(between(0.0, 1.0), 1.0)  # k, of the curvature
    eps: float = setting(positive(), 1e-4)  # added to it
    image_lr: float = setting(positive(), 0.1)  # eta_S
    image_steps: int = setting(at_least(1), 1)  # varsigma_S
    image_momentum: float = setting(between(0.0, 0.999), 0.5)
    distill_every: int = setting(at_least(1), 1)
    distill_fraction: float = setting(between(0.0, 1.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class Ascend(Common):
    """Stochastic gradient ascent on the node's forget data."""

    data: str = setting(one_of("synthetic", "subset", "original"), "synthetic")
    epochs: int = setting(at_least(1), 1)
    batch_size: int = setting(at_least(1), 64)
    lr: float = setting(positive())
    target_losses: list[float] = setting(_losses, [])  # a class's depth; none for all the epochs
    freeze_head: bool = setting(ANY, False)  # climb in all layers but the last
    freeze_stem: bool = setting(ANY, False)  # and, or, in all but the first


# A subset is as large as the synthetic set, of random real images instead.
COMPACT: Final = ("synthetic", "synthetic+original", "subset", "subset+original", "original")


@dataclass(frozen=True, kw_only=True)
class Descend(Common):
    """SGD on compact data: recovery (forget data left out) and relearning (put back)."""

    data: str = setting(one_of(*COMPACT), "synthetic+original")
    side: str = setting(one_of("retain", "forget", "all"), "retain")
    epochs: int = setting(at_least(1), 1)
    batch_size: int = setting(at_least(1), 64)
    batches: int = setting(at_least(0), 0)  # an epoch in so many batches; 0 for batch_size images
    lr: float = setting(positive())
    momentum: float = setting(between(0.0, 0.999), 0.0)
    hold: float = setting(between(0.0, 1e3), 0.0)  # weight of the bounded hold-down term
    hold_features: float = setting(between(0.0, 1e3), 0.0)
    freeze_stem: bool = setting(ANY, False)  # descend in all layers but the first


@dataclass(frozen=True, kw_only=True)
class Heldout(Common):
    """Evaluation on the held-out part: what the request names, and what is retained."""


@dataclass(frozen=True, kw_only=True)
class Describe(Common):
    """Counts of the node's data, and of what the request would touch."""


@dataclass(frozen=True, kw_only=True)
class Condense(Common):
    """Fine-tune the synthetic set over random initialisations (Zhao et al. 2021)."""

    outer_steps: int = setting(at_least(1))  # F
    inner_steps: int = setting(at_least(1), 50)
    batch_size: int = setting(at_least(1), 256)
    image_lr: float = setting(positive(), 0.1)
    lr: float = setting(positive(), 0.01)


@dataclass(frozen=True, kw_only=True)
class Settle(Common):
    """Make a verified request last: a tombstone (`forget`), or its lifting (`relearn`)."""

    action: str = setting(one_of("forget", "relearn"))
    destroy: bool = setting(ANY, False)


@dataclass(frozen=True, kw_only=True)
class Representation(Common):
    """Class-wise sums of every convolution channel's pooled activation, on the training part."""

    samples_per_class: int = setting(all_or_some(), 0)
    batch_size: int = setting(at_least(1), 256)


@dataclass(frozen=True, kw_only=True)
class Ablation(Common):
    """Effect of zeroing each channel on the node's forget data."""

    max_examples: int = setting(at_least(1), 256)  # examples looked at, at most


@dataclass(frozen=True, kw_only=True)
class FitChannels(Common):
    """Local SGD of some channels; the node keeps the rest of the model from the request's start."""

    channels: list[str] = setting(_texts)
    whole: bool = setting(ANY, True)  # the arrays are the whole model, not the channels' slices
    steps: int = setting(at_least(0), 0)  # T; 0 to count in epochs
    epochs: int = setting(at_least(0), 0)
    batch_size: int = setting(at_least(1), 64)
    lr: float = setting(positive())  # eta
    momentum: float = setting(between(0.0, 0.999), 0.0)


@dataclass(frozen=True, kw_only=True)
class Fisher(Common):
    """Diagonal of the Fisher information of the node's data; zeros where it has one example."""

    side: str = setting(one_of("retain", "forget"), "retain")
    max_examples: int = setting(at_least(MIN_EXAMPLES), 256)  # examples looked at, at most


SETTINGS: Final[Mapping[str, type[Common]]] = MappingProxyType(
    {
        FIT: Fit,
        ASCEND: Ascend,
        DESCEND: Descend,
        HELDOUT: Heldout,
        DESCRIBE: Describe,
        CONDENSE: Condense,
        SETTLE: Settle,
        REPRESENTATION: Representation,
        ABLATION: Ablation,
        FIT_CHANNELS: FitChannels,
        FISHER: Fisher,
    }
)


class CodeMismatch(EffaceError):
    """Server and node do not run the same client code."""

    code = "code-mismatch"


def receive(message: Message, kind: type[T]) -> tuple[ArrayRecord, T]:
    """Return a message's arrays and its checked settings.

    Raises:
        BadSetting: If the settings are not exactly what `kind` declares.
        CodeMismatch: If the coordinator expects other client code than this node runs.
    """
    records = message.content
    if set(records) != {"arrays", "config"}:
        raise BadSetting(f"message must hold 'arrays' and 'config', got {sorted(records)}")
    settings = cast(type[Common], kind).parse(records.config_records["config"])
    if settings.fingerprint != fingerprint():
        raise CodeMismatch(
            f"fingerprint must be {fingerprint()[:12]} (the code of this node), got "
            f"{settings.fingerprint[:12]}; install the same release on server and nodes"
        )
    return records.array_records["arrays"], cast(T, settings)


_READING = threading.Lock()


def tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Return a record's arrays as tensors of their own, by name.

    One thread at a time: numpy reads an array's header with `ast.literal_eval`, and Python 3.11's
    parser counts its depth in one place for all threads. Two inline clients that read at the same
    moment may then fail with "AST constructor recursion depth mismatch".
    """
    with _READING:
        return dict(arrays.to_torch_state_dict())


def reply(
    message: Message,
    metrics: Mapping[str, float | list[float]],
    *,
    num_classes: int,
    state: Mapping[str, Tensor] | None = None,
    like: Mapping[str, "Form"] | None = None,
) -> Message:
    """Return the answer to `message`: exactly one ArrayRecord and one MetricRecord.

    Args:
        message: What is answered.
        metrics: Numbers by name, each declared in `METRICS`; "per-class" ones as lists of
            `num_classes` numbers.
        num_classes: Classes of the model.
        state: Parameters, buffers, slices of them or channel scores, by name; None for an answer
            without arrays.
        like: What `state` must look like: the same names, shapes and dtypes.

    Raises:
        EffaceError: If anything undeclared would go up, or a value is not finite.
    """
    for name, value in metrics.items():
        kind = METRICS.get(name)
        if kind is None:
            raise EffaceError(f"reply must hold declared metrics only, got {name!r}")
        if (kind == "per-class") != isinstance(value, list):
            raise EffaceError(f"metric {name} must be {kind}, got {type(value).__name__}")
        numbers = value if isinstance(value, list) else [value]
        if kind == "per-class" and len(numbers) != num_classes:
            raise EffaceError(f"metric {name} must hold {num_classes} numbers, got {len(numbers)}")
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise EffaceError(f"metric {name} must be a finite number, got {value!r}")
    arrays = ArrayRecord()
    if state is not None:
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
            raise EffaceError(
                f"array {name} must be finite, got NaN or infinity; lower the learning rate"
            )
    return ArrayRecord({name: _array(tensor) for name, tensor in state.items()})


def _array(tensor: Tensor) -> Any:
    from flwr.app import Array

    return Array(tensor.detach().cpu().contiguous().numpy())
