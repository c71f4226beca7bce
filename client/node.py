"""A node at work on one message: its data, its store, and the form of what it answers.

`answers` turns a function of both into a Flower handler. Whatever fails, the coordinator is told
no path and no value of the node's own.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor, nn

from client import wire
from client.channels.layout import from_text
from client.channels.masks import freeze
from client.data.site import (
    NODE_CONFIG,
    SIMULATED_STORES,
    NodeConfig,
    Part,
    Site,
    erased_mask,
    forget_mask,
    open_site,
)
from client.errors import (
    AggregationRefused,
    BadSetting,
    EffaceError,
    NoBaseModel,
    NoSyntheticSet,
    StoreError,
    marked,
)
from client.learning.models import Classifier, loaded
from client.learning.training import Trained
from client.memory import keep_freed_memory
from client.messages import Common, Declaration, ForgetSpec
from client.secure import identity, work
from client.secure.aggregations import Aggregations
from client.secure.context import Context as SumContext
from client.secure.context import lasting
from client.secure.identity import Identity
from client.secure.vector import Shape
from client.seeds import generator
from client.simulation.settings import Simulation
from client.store import Store, SyntheticSet, without

log = logging.getLogger("efface.client")
C = TypeVar("C", bound=Common)


@dataclass(frozen=True)
class Node:
    """What a handler works with."""

    config: NodeConfig
    store: Store
    device: torch.device
    settings: Common
    arrays: ArrayRecord
    erased: list[ForgetSpec]  # tombstones in force: the server's and the node's own

    @cached_property
    def site(self) -> Site:
        """The node's data, opened when they are first asked for."""
        return open_site(self.settings, self.config)

    @property
    def identity(self) -> Identity:
        """The node's key, and its peers', for sums.

        Raises:
            AggregationRefused: If it has none.
        """
        simulation = self.settings.simulation or Simulation.of_node(self.config)
        if self.config.get("data") or simulation is None:
            raise AggregationRefused(
                "node must have a key and pinned peers to take part in sums, got no policy; its "
                "operator makes one: efface site init FOLDER --name NAME"
            )
        return identity.simulated(self.settings.client, simulation.population)

    @property
    def sum_context(self) -> SumContext | None:
        """What the sum is about that the answer goes into; None if it goes up alone."""
        s = self.settings
        if s.secure is None:
            return None
        return SumContext.of(s.request, s.phase, s.server_round, lasting(s.secure))

    @property
    def sums(self) -> Aggregations:
        """The node's parts in sums."""
        return Aggregations(self.store.folder)

    @property
    def model_name(self) -> str:
        """The model as synthetic sets name theirs: they outlive a pruning."""
        return str(self.settings.model_spec.base)

    def model(self) -> Classifier:
        """Return the network with the parameters that came down, on the device.

        Its pruned channels stay zero whatever it is trained on.
        """
        spec = self.settings.model_spec
        network = loaded(spec, wire.tensors(self.arrays))
        if spec.pruned and not spec.compact:
            freeze(network, from_text(spec.pruned))
        if self.device.type == "cuda":  # where convolutions are faster that way
            return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
        return network.to(self.device)

    def draws(self, purpose: str = "") -> torch.Generator:
        """Return the generator of this phase, round and node."""
        s = self.settings
        return generator(s.seed, s.phase + purpose, s.server_round, s.client)

    def masks(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return which examples the request names and which may be trained on, as masks."""
        forget = forget_mask(labels, self.settings.forget, self.settings.client)
        gone = erased_mask(labels, self.erased, self.settings.client)
        return forget & ~gone, ~forget & ~gone

    def side(self, side: str, labels: Tensor) -> Tensor:
        """Return the mask of the examples on a message's `side`: retain, forget, or all."""
        forget, retain = self.masks(labels)
        if self.settings.holders_alone and not bool(forget.any()):
            return forget
        return {"retain": retain, "forget": forget, "all": forget | retain}[side]

    def examples(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return all images and labels of a part, normalised."""
        return self.site.pick(part, self.device)(torch.arange(len(part)))

    def synthetic(self, *, before: int | None = None) -> SyntheticSet:
        """Return the node's synthetic set.

        Raises:
            NoSyntheticSet: If there is none for this model.
        """
        found = self.store.load(self.settings.lineage, model=self.model_name, before=before)
        if found is None:
            raise NoSyntheticSet(
                f"synthetic set of {self.settings.lineage} must exist on node "
                f"{self.settings.client}, got none; train with distillation (scale above 0), or "
                "choose a method that needs no synthetic data"
            )
        return SyntheticSet(found.images.to(self.device), found.labels.to(self.device))

    def save(self, generation: int, synthetic: SyntheticSet) -> None:
        """Keep a synthetic set in the node's store."""
        self.store.save(self.settings.lineage, generation, synthetic, model=self.model_name)


Metrics = dict[str, float | list[float]]


@dataclass(frozen=True)
class ReplyArrays:
    """Arrays that are not the model that came down: channel scores, slices of channels.

    Attributes:
        state: Arrays by name.
        like: Their agreed names, shapes and dtypes, from the model's layout and the settings alone.
    """

    state: dict[str, Tensor]
    like: dict[str, wire.Form]


Answer = tuple[Metrics, nn.Module | ReplyArrays | None]


def _state(answer: nn.Module | ReplyArrays | None) -> Mapping[str, Tensor] | None:
    if answer is None:
        return None
    return answer.state if isinstance(answer, ReplyArrays) else answer.state_dict()


class NodeError(EffaceError):
    """What the coordinator is told when a node fails: no path and no value of the node's own."""

    code = "node-error"


@dataclass(frozen=True)
class Handler(Generic[C]):
    """Answers one kind of message, as Flower calls it.

    Attributes:
        kind: The message's settings, and with them its declaration.
        work: What is done on the node.
    """

    kind: type[C]
    work: Callable[[Node, C], Answer]

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the answer.

        Raises:
            NodeError: Whatever went wrong; it tells nothing of the node's own.
        """
        try:
            started = time.perf_counter()
            arrays, settings = wire.receive(message, self.kind)
            node = _open(settings, arrays, context)
            declared = self.kind.message
            summed = self._check_sums(node, message)
            metrics, answer = self._worked(node, settings)
            metrics["seconds"] = time.perf_counter() - started
            metrics["partition"] = int(context.node_config.get("partition-id", -1))
            state = _state(answer)
            like = answer.like if isinstance(answer, ReplyArrays) else wire.forms(arrays)
            if summed is not None:
                metrics, state, like = _masked(node, summed, declared, metrics, state, like)
                declared = replace(declared, arrays="masked")
            elif settings.sums_only:
                metrics = _withheld(metrics, declared)
            return wire.reply(
                message,
                declared,
                metrics,
                num_classes=settings.model_classes,
                state=state,
                like=like,
            )
        except Exception as error:
            log.exception("%s failed", message.metadata.message_type)
            raise NodeError(_told(error)) from None

    def _check_sums(self, node: Node, message: Message) -> SumContext | None:
        """Return the sum that the answer goes into, before any work; None if it goes up alone.

        Raises:
            AggregationRefused: If it must not go up so.
        """
        declared, told = self.kind.message, node.settings.secure
        if declared.arrays == "sealed":  # a step of the protocol itself
            return None
        if told is None:
            if node.settings.sums_only and declared.alone is None:
                raise AggregationRefused(
                    f"{declared.name} must be answered in sums here, got a question to this node "
                    "alone; ask with secure aggregation"
                )
            return None
        if declared.sums is None:
            raise AggregationRefused(f"{declared.name} must be answered alone: it is no sum")
        context = node.sum_context
        if context is None or told.work != declared.name:
            raise AggregationRefused(f"sum must be of {declared.name}, got one of {told.work}")
        node.sums.part(context).at("shared")
        config = message.content.config_records["config"]
        work.check(context, told, config, node.arrays)
        return context

    def _worked(self, node: Node, settings: C) -> Answer:
        try:
            return self.work(node, settings)
        except NoSyntheticSet:
            # In a sum a node without any weighs nothing, as one that nobody asks.
            if settings.secure is None or self.kind.message.arrays != "model":
                raise
            return worked(0), None


def _masked(
    node: Node,
    context: SumContext,
    declared: Declaration,
    metrics: Metrics,
    state: Mapping[str, Tensor] | None,
    like: Mapping[str, wire.Form],
) -> tuple[Metrics, Mapping[str, Tensor], dict[str, wire.Form]]:
    """Return what goes up of an answer in a sum: nothing of it can be read without the others'."""
    told = node.settings.secure
    if told is None:
        raise AggregationRefused("sum must be named, got none")
    if state is not None and declared.arrays == "model":
        state = work.clipped(state, wire.tensors(node.arrays), told.clip)
    shapes = {name: Shape(form.shape, form.dtype) for name, form in like.items()}
    hidden = work.masked(
        node.store.folder,
        context,
        told,
        declared,
        metrics,
        state,
        {} if declared.arrays == "none" else shapes,
        num_classes=node.settings.model_classes,
    )
    shown: Metrics = {"num-examples": 0, "seconds": 0.0, "partition": metrics["partition"]}
    return shown, hidden, wire.forms(hidden)


def _withheld(metrics: Metrics, declared: Declaration) -> Metrics:
    """Return numbers of which those that tell of examples are 0."""
    kept = ("seconds", "partition", *(declared.alone or ()))
    return {
        name: value if name in kept else [0.0] * len(value) if isinstance(value, list) else 0
        for name, value in metrics.items()
    }


def answers(kind: type[C]) -> Callable[[Callable[[Node, C], Answer]], Handler[C]]:
    """Turn a function of a node and a message's settings into the message's handler."""
    return lambda work: Handler(kind, work)


def worked(
    num_examples: int, done: Trained | None = None, *, num_distinct: int | None = None
) -> Metrics:
    """Return what goes up of a local phase on `num_examples` examples; None if it had none.

    At least `num_distinct` of them, all by default, are distinct.
    """
    done = done or Trained(0, 0, 0.0)
    # Each epoch goes through all examples, so that these are the distinct ones.
    distinct = min(done.samples, num_examples if num_distinct is None else num_distinct)
    loss = wire.shown_loss(torch.tensor(done.loss, dtype=torch.float64), distinct)
    return {
        "num-examples": num_examples,
        "num-steps": done.num_steps,
        "samples": done.samples,
        "loss": float(loss),
    }


def _told(error: Exception) -> str:
    """Return what may go up about an error: what came from the coordinator, nothing of our own."""
    ours = isinstance(
        error,
        BadSetting | wire.CodeMismatch | NoSyntheticSet | NoBaseModel | AggregationRefused,
    )
    text = str(error) if ours else "the node's own log says why"
    return marked(error, f"{type(error).__name__}: {text}")


def _open(settings: Common, arrays: ArrayRecord, context: Context) -> Node:
    keep_freed_memory()
    if torch.get_num_threads() != settings.threads:
        torch.set_num_threads(settings.threads)
    wanted = str(context.node_config.get("device", settings.device))
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    store = Store(store_folder(settings, context.node_config))
    tombstones = [
        ForgetSpec("class", tuple(settings.erased_classes)),
        ForgetSpec("client", (), tuple(settings.erased_clients)),
        *store.state().tombstones.values(),
    ]
    # What the request names is its own business: relearning must reach below a tombstone.
    erased = [rest for t in tombstones if (rest := without(t, settings.forget)) is not None]
    return Node(context.node_config, store, torch.device(wanted), settings, arrays, erased)


def store_folder(settings: Common, node: NodeConfig) -> Path:
    """Return the node's store: the folder its operator named, or a simulated node's own.

    Raises:
        StoreError: If the operator named data and no store, or neither. What the coordinator tells
            must not choose where a real node looks for its tombstones.
    """
    if node.get("store"):
        return Path(str(node["store"]))
    simulation = settings.simulation or Simulation.of_node(node)
    if node.get("data") or simulation is None:
        raise StoreError(
            "node config must name store beside data, got none; name a folder that outlives "
            f"restarts: {NODE_CONFIG}"
        )
    root = os.environ.get(SIMULATED_STORES)
    base = Path(root) if root else Path.home() / ".efface" / "clients"
    return base / simulation.population / settings.client
