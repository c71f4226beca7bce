"""What a message is: its declaration, and the settings that every one of them carries.

A message is declared once, on the dataclass of its settings, beside its handler in `client.steps`:
`message` says its name, what may go up in answer, and an example. Its fields are the settings.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

from client.learning.models import ModelSpec, traced
from client.secure.context import PREFIX as SECURE
from client.secure.context import Secured
from client.settings import (
    ANY,
    MIN_CLIP,
    Rule,
    Settings,
    any_seed,
    at_least,
    between,
    lineage_name,
    list_of,
    name,
    one_of,
    part,
    setting,
    short_or_empty,
    text,
)
from client.simulation.settings import PREFIX, Simulation

LEVELS: Final = ("none", "class", "client")

# ---- what a reply may carry ---------------------------------------------------------------------
Metric = Literal["scalar", "per-class"]  # per-class: one number for each class of the model

ALWAYS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        "num-examples": "scalar",  # |Z_i|: the weight of the reply
        "seconds": "scalar",  # wall time of the handler's work
        "code": "scalar",  # first 48 bits of the client code's fingerprint
        "partition": "scalar",  # position of a simulated node, -1 for a real one
        # What the lineage's answers tell of any one example (client/budget.py).
        "epsilon": "scalar",
        "delta": "scalar",
    }
)
OF_NOISE: Final = frozenset({"epsilon", "delta"})  # there only if the answer was noised
WORK: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        "num-steps": "scalar",
        "samples": "scalar",  # images passed through the model, repeats counted
        "loss": "scalar",  # mean over the phase
    }
)

# Which arrays may go up: none; the model's, as they came down; one for each parameter of the
# model; for each convolution, one number a class and channel; for each layer but the last, one
# number a channel, of accuracy and of loss; the chosen channels' numbers, in one row; the names
# of the site's classes, as JSON in UTF-8; what the site signs of an order (client.attestation);
# keys, shares or a signature of a sum; or an answer that is masked for one (client.secure).
Arrays = Literal[
    "none",
    "model",
    "parameters",
    "class-sums",
    "effects",
    "slices",
    "class-names",
    "attestation",
    "sealed",
    "masked",
]
# How answers add up where only their sum is shown: arrays in the mean, weighted by num-examples, or
# as they are.
Sums = Literal["mean", "sum"]


@dataclass(frozen=True)
class Declaration:
    """What a message is called, and what a node may answer to it.

    Attributes:
        name: "<category>.<action>"; Flower's categories are train, evaluate and query.
        example: Values of its own settings that make the handler do its work, for tests.
        arrays: Which arrays may go up.
        metrics: Which numbers may go up beside `ALWAYS`, by name.
        sums: How answers add up; None if each must be seen alone.
        alone: Where only sums go up: which of the numbers a node tells alone all the same, for they
            tell nothing of its examples. None: no answer alone.
        noised: Whether its answer holds nothing of real examples but counts, or can do so under
            noise; others are refused where noise is asked for.
    """

    name: str
    example: Mapping[str, Any]
    arrays: Arrays = "none"
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    sums: Sums | None = None
    alone: tuple[str, ...] | None = None
    noised: bool = False

    @property
    def up(self) -> Mapping[str, Metric]:
        """All numbers that may go up, by name."""
        return {**ALWAYS, **self.metrics}


CLASS_3: Final = {"forget_level": "class", "forget_classes": [3]}  # for examples

# ---- what every message carries -----------------------------------------------------------------


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


_classes: Final = list_of(int, "class numbers from 0 up", lambda c: c >= 0)
_clients: Final = list_of(str, "client names")
_task: Final = Rule(
    lambda v: len(v) <= 200 and re.fullmatch(r"[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?", v) is not None,
    "name a task, as in module:Class",
)
_json: Final = Rule(lambda v: len(v) <= 10_000, "be at most 10000 characters of JSON")
_hash: Final = Rule(
    lambda v: re.fullmatch(r"([0-9a-f]{64})?", v) is not None, "be a SHA-256 in hexadecimal"
)


@dataclass(frozen=True, kw_only=True)
class Common(Settings):
    """What every message carries: who, which run, which model and data, what is to be forgotten."""

    message: ClassVar[Declaration]

    client: str = setting(name())  # the node addressed, as the federation knows it
    fingerprint: str = setting(Rule(lambda v: len(v) == 64, "be a SHA-256 in hexadecimal"))
    request: str = setting(text())
    lineage: str = setting(lineage_name())  # names the synthetic sets that belong to this model
    phase: str = setting(text())
    method: str = setting(short_or_empty(), "")  # that the request is carried out by, if by one
    server_round: int = setting(at_least(0), 0)
    seed: int = setting(any_seed())

    simulation: Simulation | None = part(Simulation, PREFIX)  # of simulated nodes alone
    holdout: float = setting(between(0.0, 0.5), 0.1)

    task: str = setting(_task)  # what is learned: "images", or a task in the bundle
    task_options: str = setting(_json)  # of the task, as a JSON object
    task_code: str = setting(_hash, "")  # SHA-256 of the task's sources, if it is a user's own
    task_frozen: str = setting(_hash, "")  # SHA-256 of the model's parameters that do not travel
    # Channels without effect (client.channels.layout); if compact, they are not there any more.
    model_pruned: list[str] = setting(list_of(str, "texts"), [])
    model_compact: bool = setting(ANY, False)

    device: str = setting(
        Rule(lambda v: v.split(":")[0] in ("auto", "cpu", "cuda"), "be auto, cpu or cuda"), "auto"
    )
    threads: int = setting(between(1, 1024), 1)
    precision: str = setting(one_of("float32", "bfloat16"), "float32")

    noise_multiplier: float = setting(between(0.0, 1e6), 0.0)  # z; 0 for no noise
    clip_norm: float = setting(at_least(MIN_CLIP), 1.0)  # C, of each example's gradient under noise

    scale: int = setting(at_least(0), 0)  # s: one synthetic image for so many; 0 for none

    secure: Secured | None = part(Secured, SECURE)  # of the sum that the answer goes into
    sums_only: bool = setting(ANY, False)  # no number of one node's examples goes up
    # Who holds nothing of what the request names has nothing to do, whatever else it holds.
    holders_alone: bool = setting(ANY, False)

    forget_level: str = setting(one_of(*LEVELS), "none")
    forget_classes: list[int] = setting(_classes, [])
    forget_clients: list[str] = setting(_clients, [])
    erased_classes: list[int] = setting(_classes, [])  # the server's tombstones
    erased_clients: list[str] = setting(_clients, [])

    # Of an order to bring data back, or of the last message of a request (client.orders).
    order_time: str = setting(short_or_empty(), "")
    order_signature: str = setting(short_or_empty(), "")

    def why_not_noised(self) -> str | None:
        """Return why this message cannot be answered under noise, None if it can.

        A message whose settings decide it overrides this.
        """
        if self.precision != "float32":
            return f"precision must be float32 under noise, got {self.precision}"
        trained = self.message.arrays in ("model", "slices")
        if trained and traced(self.model_spec).mixes_examples:
            return (
                f"model must have no BatchNorm under noise, got {self.model_spec.task.title}: it "
                "mixes the examples of a batch; GroupNorm and LayerNorm do not"
            )
        if self.message.noised:
            return None
        return f"message must be one that can be answered under noise, got {self.message.name}"

    @property
    def forget(self) -> ForgetSpec:
        return ForgetSpec(self.forget_level, tuple(self.forget_classes), tuple(self.forget_clients))

    @property
    def model_spec(self) -> ModelSpec:
        """The model.

        Its task is looked up when it is asked for, and may not be here.
        """
        return ModelSpec(
            name=self.task,
            options=self.task_options,
            code=self.task_code,
            frozen=self.task_frozen,
            pruned=tuple(self.model_pruned),
            compact=self.model_compact,
        )

    @staticmethod
    def of_model(spec: ModelSpec) -> dict[str, Any]:
        """Return what a message says of a model, as field names."""
        return {
            "task": spec.name,
            "task_options": spec.options,
            "task_code": spec.code,
            "task_frozen": spec.frozen,
            "model_pruned": list(spec.pruned),
            "model_compact": spec.compact,
        }

    @property
    def model_classes(self) -> int:
        """K: classes of the model."""
        return self.model_spec.num_classes
