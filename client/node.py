"""A node at work on one message: its data, its store, and the form of what it answers.

`answers` turns a function of both into a Flower handler. Whatever fails, the coordinator is told
no path and no value of the node's own.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor, nn

from client import wire
from client.budget import Budget, BudgetSpent, Mechanism, NoiseRequired
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
    BadSetting,
    EffaceError,
    NoBaseModel,
    NoSyntheticSet,
    StoreError,
    marked,
)
from client.learning.models import Classifier, loaded
from client.learning.private import DerivedDraws, Draws, Noise, SecretDraws
from client.learning.training import Trained
from client.memory import keep_freed_memory
from client.messages import Common, ForgetSpec
from client.policy import Policy, Privacy
from client.seeds import generator
from client.simulation.settings import Simulation
from client.store import Store, SyntheticSet, without

log = logging.getLogger("efface.client")
C = TypeVar("C", bound=Common)
Metrics = dict[str, float | list[float]]


@dataclass(frozen=True)
class Node:
    """What a handler works with."""

    site: Site
    store: Store
    device: torch.device
    settings: Common
    arrays: ArrayRecord
    erased: list[ForgetSpec]  # tombstones in force: the server's and the node's own
    privacy: Privacy = field(default_factory=Privacy)  # of its policy
    is_real: bool = True  # or simulated on the coordinator's own machine
    charged: list[Mechanism] = field(default_factory=list)  # what this message took of the budget

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

    @property
    def noise_multiplier(self) -> float:
        """z of what goes up: the message's or the policy's, whichever is more; 0 for no noise."""
        own = self.privacy.noise_multiplier if self.privacy.required else 0.0
        return max(self.settings.noise_multiplier, own)

    def noise(self, num_examples: int, *, batch_size: int, num_steps: int) -> Noise | None:
        """Pay for a training's noise and return it, or None where none is asked for.

        Args:
            num_examples: The real examples, each of which the steps' batches are drawn from once.
            batch_size: Of a step, as expected.
            num_steps: How many will be taken, at most.

        Raises:
            BudgetSpent: If the policy's budget does not reach; nothing was done.
        """
        if not self.noise_multiplier:
            return None
        rate = min(1.0, batch_size / num_examples)
        self.charge(Mechanism(self.noise_multiplier, rate, num_steps))
        clip_norm = self.settings.clip_norm
        if self.privacy.required:
            clip_norm = min(clip_norm, self.privacy.clip_norm)
        return Noise(self.noise_multiplier, clip_norm, rate, num_examples, self.noise_draws())

    def charge(self, mechanism: Mechanism) -> None:
        """Take what a mechanism tells from the budget, before it is applied to the data.

        Raises:
            BudgetSpent: If the policy's budget does not reach.
        """
        Budget(self.store.folder).charge(
            self.settings.lineage,
            self.settings.message.name,
            mechanism,
            limit=self.privacy.epsilon if self.privacy.required else math.inf,
            delta=self.privacy.delta,
        )
        self.charged.append(mechanism)

    def noise_draws(self) -> Draws:
        """Return where noise comes from: secret on a real node (see `SecretDraws`)."""
        return SecretDraws() if self.is_real else DerivedDraws(self.draws(" noise"))

    def spent(self) -> Metrics:
        """Return what goes up of the budget after a message that was charged."""
        if not self.charged:
            return {}
        delta = self.privacy.delta
        lineage = self.settings.lineage
        return {
            "epsilon": Budget(self.store.folder).epsilon(delta, lineage=lineage),
            "delta": delta,
        }

    def masks(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return which examples the request names and which may be trained on, as masks."""
        forget = forget_mask(labels, self.settings.forget, self.settings.client)
        gone = erased_mask(labels, self.erased, self.settings.client)
        return forget & ~gone, ~forget & ~gone

    def side(self, side: str, labels: Tensor) -> Tensor:
        """Return the mask of the examples on a message's `side`: retain, forget, or all."""
        forget, retain = self.masks(labels)
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
            if node.noise_multiplier and (why := settings.why_not_noised()) is not None:
                raise NoiseRequired(f"{why}; this node's answers are noised")
            metrics, answer = self.work(node, settings)
            metrics |= node.spent()
            metrics["seconds"] = time.perf_counter() - started
            metrics["partition"] = int(context.node_config.get("partition-id", -1))
            return wire.reply(
                message,
                self.kind.message,
                metrics,
                num_classes=settings.model_classes,
                state=_state(answer),
                like=answer.like if isinstance(answer, ReplyArrays) else wire.forms(arrays),
            )
        except Exception as error:
            log.exception("%s failed", message.metadata.message_type)
            raise NodeError(_told(error)) from None


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
        BadSetting | wire.CodeMismatch | NoSyntheticSet | NoBaseModel | BudgetSpent | NoiseRequired,
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
    site = open_site(settings, context.node_config)
    return Node(
        site,
        store,
        torch.device(wanted),
        settings,
        arrays,
        erased,
        privacy=_privacy(context.node_config),
        # Our own engines name a place for the stores of the nodes that they simulate.
        is_real=bool(context.node_config.get("data")) or not os.environ.get(SIMULATED_STORES),
    )


def _privacy(node: NodeConfig) -> Privacy:
    """Return what the site's policy says of noise."""
    path = node.get("policy")
    return Policy.load(Path(str(path))).privacy if path else Privacy()


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
