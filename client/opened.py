"""A node opened for one message: its data, its store, its policy, and the examples it hands out.

It is long because a handler asks for all that it needs in this one place.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import torch
from flwr.app import ArrayRecord, Context
from torch import Tensor, nn

from client import wire
from client.budget import Budget, Mechanism
from client.channels.compact import shrink_
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
from client.errors import BadSetting, NoSyntheticSet, StoreError
from client.law import check_order, noise_multiplier
from client.learning.models import loaded, traced
from client.learning.private import DerivedDraws, Draws, Noise, SecretDraws
from client.learning.sizes import at_once
from client.learning.training import Loss, Pick, covering, minibatches
from client.memory import keep_freed_memory
from client.messages import Common, ForgetSpec
from client.policy import Policy, PolicyRefused
from client.secure.aggregations import Aggregations
from client.secure.context import Context as SumContext
from client.secure.context import lasting
from client.secure.identity import Identity
from client.seeds import derive, generator
from client.settings import MIN_EXAMPLES
from client.simulation.settings import Simulation
from client.store import Store, SyntheticSet, without
from client.task import Task, judge
from client.touched import Touched

SETTLE: Final = "query.settle"  # its order is its own: see client.steps.store


@dataclass(frozen=True)
class Node:
    """What a handler works with."""

    open_data: Callable[[], Site]
    store: Store
    device: torch.device
    settings: Common
    arrays: ArrayRecord
    erased: list[ForgetSpec]  # tombstones in force: the server's and the node's own
    policy: Policy
    touched: Touched = field(default_factory=Touched)
    notes: dict[str, Any] = field(default_factory=dict)  # what the site's log says of the work
    charged: list[Mechanism] = field(default_factory=list)  # what this message took of the budget

    @cached_property
    def site(self) -> Site:
        """The node's data, opened when they are first asked for: steps of a sum need none."""
        return self.open_data()

    @property
    def identity(self) -> Identity:
        """The node's key, and its peers', for sums."""
        return Identity(self.policy.name, self.policy.key(), self._pinned)

    def _pinned(self, peer: str) -> bytes | None:
        try:
            return self.policy.peer(peer).public_bytes_raw()
        except PolicyRefused:
            return None

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
    def least(self) -> int:
        """The fewest distinct examples that a loss, a sum or a gradient is shown of."""
        return max(MIN_EXAMPLES, self.policy.answers.min_examples)

    @property
    def seed(self) -> int:
        """The seed of every draw of examples: at a real site nobody else can foretell it."""
        told, own = self.settings.seed, self.policy.data.split_seed
        return derive(told, "site", own) if self.policy.is_real else told

    @property
    def lasting_seed(self) -> int:
        """The seed of draws that must be the same whatever is asked, and by whom."""
        return derive(0, "site", self.policy.data.split_seed) if self.policy.is_real else 0

    @property
    def scale(self) -> int:
        """Real images for one that stands in for them, at least as many as the policy says."""
        return max(self.settings.scale, self.policy.synthetic.min_scale)

    @property
    def model_name(self) -> str:
        """The model as synthetic sets name theirs: they outlive a pruning."""
        return str(self.settings.model_spec.base)

    def model(self) -> nn.Module:
        """Return the network with the parameters that came down, on the device.

        Its pruned channels stay zero whatever it is trained on.
        """
        spec = self.settings.model_spec
        network = loaded(spec, wire.tensors(self.arrays))
        if self.device.type != "cpu":
            network.to(self.device)
        if self.device.type == "cuda" and not any(
            isinstance(module, nn.GroupNorm) for module in network.modules()
        ):
            # Where convolutions are faster that way. GroupNorm is not: it copies every map to the
            # other layout and back, which takes a ConvNet's step from 4.5 to 5.1 ms on an H100.
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if spec.pruned and not spec.compact:  # there, where the gradients will be
            freeze(network, from_text(spec.pruned))
        return network

    def model_without_pruned(self) -> nn.Module:
        """Return the network without its pruned channels, which computes the same."""
        network, spec = self.model(), self.settings.model_spec
        if spec.pruned and not spec.compact:
            shrink_(network, from_text(spec.pruned))
        return network

    @property
    def head(self) -> str | None:
        """Name of the model's last linear layer, whose output is the model's; None without one."""
        return traced(self.settings.model_spec).head

    @property
    def needed_head(self) -> str:
        """The name of that layer.

        Raises:
            BadSetting: If there is none.
        """
        if self.head is None:
            raise BadSetting(
                f"network of task {self.task.title} must end in one linear layer for this method, "
                "got none"
            )
        return self.head

    def still(self, model: nn.Module, *, head: bool = False, stem: bool = False) -> list[nn.Module]:
        """Return the modules that a training leaves as they are: the last layer, the first, both.

        A model of one convolution has no stem: it would be all of the model.
        """
        names = traced(self.settings.model_spec).stem if stem else ()
        return [model.get_submodule(n) for n in (*names, *([self.needed_head] if head else []))]

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.settings.model_spec.task

    @property
    def at_once(self) -> int | None:
        """How many examples may pass through the model together; None for any number."""
        return at_once(self.settings.model_spec)

    @property
    def loss(self) -> Loss | None:
        """The loss of each example, where the task has one of its own."""
        return judge(self.task, "loss")

    @property
    def score(self) -> Loss | None:
        """How right each output is, where the task has a score of its own."""
        return judge(self.task, "score")

    def draws(self, purpose: str = "", *, size: int | None = None) -> torch.Generator:
        """Return the generator of this phase, round and node.

        Args:
            purpose: What is drawn, where a phase draws twice.
            size: How many examples: at a real site n and n + 1 are unrelated draws.
        """
        s = self.settings
        sized = f" of {size}" if self.policy.is_real and size is not None else ""
        return generator(self.seed, s.phase + purpose + sized, s.server_round, s.client)

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

    # -- examples: what an answer is computed from is noted where it is handed out ---------------

    def pick(self, part: Part) -> Pick:
        """Return a function from positions in `part` to prepared inputs and their labels."""
        picked, seen = self.site.pick(part, self.device), self._rows(part)

        def noted(batch: Tensor) -> tuple[Tensor, Tensor]:
            seen[part.index[batch.cpu()]] = True
            return picked(batch)

        return noted

    def augmented(self, part: Part) -> Pick:
        """Return what `pick` does, with inputs changed at random where the task says how."""
        picked, task = self.pick(part), self.task
        if type(task).augment is Task.augment:
            return picked
        draws = self.draws(" augment")

        def changed(batch: Tensor) -> tuple[Tensor, Tensor]:
            inputs, wanted = picked(batch)
            return task.augment(inputs, draws), wanted

        return changed

    def examples(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return all prepared inputs and labels of a part."""
        return self.pick(part)(torch.arange(len(part)))

    def count(self, part: Part) -> int:
        """Return how many examples a part has, of which nothing else is told."""
        self._rows(part)[part.index] = True
        return len(part)

    def used(self, stand_ins: SyntheticSet) -> SyntheticSet:
        """Return synthetic images, or real ones in their place, that the answer is made from."""
        self.touched.images(stand_ins.images)
        return stand_ins

    def _rows(self, part: Part) -> Tensor:
        name = "train" if part.split is self.site.data.train else "validation"
        return self.touched.rows(name, len(part.split))

    def batches(self, part: Part, batch_size: int, num_steps: int) -> Iterator[Tensor]:
        """Return the batches of local training on a part, by positions.

        Raises:
            PolicyRefused: If there are more than the policy has room for.
        """
        self.allow(num_steps)
        least, few = self.policy.answers.min_batch, self.policy.answers.min_examples
        drawn = minibatches(len(part), batch_size, num_steps, self.draws(), least=least)
        return covering(drawn, part.labels, few, self.draws(" classes"))

    # -- noise: paid for before it is drawn, and before any example is looked at -------------------

    @property
    def noise_multiplier(self) -> float:
        """z of what goes up: the message's or the policy's, whichever is more; 0 for no noise."""
        return noise_multiplier(self.policy, self.settings)

    def noise(self, data: Part | int, *, batch_size: int, num_steps: int) -> Noise | None:
        """Pay for a training's noise and return it, or None where none is asked for.

        Args:
            data: The real examples that the steps' batches are drawn from, each there once; or how
                many, where they are noted as touched already.
            batch_size: Of a step, as expected.
            num_steps: How many will be taken.

        Raises:
            BudgetSpent: If the policy's budget does not reach; nothing was done.
            PolicyRefused: If these are more steps than the policy has room for.
        """
        if not self.noise_multiplier:
            return None
        self.allow(num_steps)
        # All of them stand behind the answer, whichever were drawn.
        num_examples = data if isinstance(data, int) else self.count(data)
        rate = min(1.0, batch_size / num_examples)
        self.charge(Mechanism(self.noise_multiplier, rate, num_steps))
        privacy, clip_norm = self.policy.privacy, self.settings.clip_norm
        if privacy.required:
            clip_norm = min(clip_norm, privacy.clip_norm)
        return Noise(self.noise_multiplier, clip_norm, rate, num_examples, self.noise_draws())

    def charge(self, mechanism: Mechanism) -> None:
        """Take what a mechanism tells from the budget, before it is applied to the data.

        Raises:
            BudgetSpent: If the policy's budget does not reach.
        """
        privacy = self.policy.privacy
        Budget(self.store.folder).charge(
            self.settings.lineage,
            self.settings.message.name,
            mechanism,
            limit=privacy.epsilon if privacy.required else math.inf,
            delta=privacy.delta,
        )
        self.charged.append(mechanism)

    def noise_draws(self) -> Draws:
        """Return where noise comes from: secret, but where our own engines simulate the node."""
        if self.policy.is_real or not os.environ.get(SIMULATED_STORES):
            return SecretDraws()
        return DerivedDraws(self.draws(" noise"))

    def spent(self) -> dict[str, float | list[float]]:
        """Return what goes up of the budget after a message that was charged."""
        if not self.charged:
            return {}
        delta, lineage = self.policy.privacy.delta, self.settings.lineage
        so_far = Budget(self.store.folder).epsilon(delta, lineage=lineage)
        return {"epsilon": so_far, "delta": delta}

    def allow(self, num_steps: int) -> None:
        """Refuse more steps than the policy has room for.

        Raises:
            PolicyRefused: Naming the rule.
        """
        if num_steps > self.policy.limits.steps:
            raise PolicyRefused(
                f"epochs must take at most {self.policy.limits.steps} steps at {self.policy.name}, "
                f"got {num_steps}"
            )

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


def opened(policy: Policy, settings: Common, arrays: ArrayRecord, context: Context) -> Node:
    keep_freed_memory()
    if torch.get_num_threads() != settings.threads:
        torch.set_num_threads(settings.threads)
    wanted = str(context.node_config.get("device", settings.device))
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    store = Store(store_folder(settings, context.node_config), policy)
    tombstones = [
        ForgetSpec("class", tuple(settings.erased_classes)),
        ForgetSpec("client", (), tuple(settings.erased_clients)),
    ]
    # What the request names is its own business: relearning must reach below a tombstone.
    erased = [rest for t in tombstones if (rest := without(t, settings.forget)) is not None]
    state = store.state()
    lifted = _lifted(policy, settings, carried_out=settings.request in state.applied)
    own = state.tombstones.values()
    erased += [rest for t in own if (rest := without(t, lifted)) is not None]
    data = partial(open_site, settings, context.node_config, policy)
    return Node(data, store, torch.device(wanted), settings, arrays, erased, policy)


def _lifted(policy: Policy, settings: Common, *, carried_out: bool) -> ForgetSpec:
    """Return which of the node's own tombstones do not bind this message.

    An order that was carried out lifts nothing again: whoever saw it could send it at any time.

    Raises:
        PolicyRefused: If a message of a real site brings an order that is not signed.
    """
    if not policy.is_real:
        return settings.forget
    if not settings.order_signature or settings.message.name == SETTLE:
        return ForgetSpec()
    check_order(policy, settings, action="relearn", destroy=False, target=settings.forget)
    return ForgetSpec() if carried_out else settings.forget


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
