"""What a method sees of the federation; `server.nodes.federation` implements it over the Grid."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from flwr.app import ArrayRecord
from torch import Tensor

from client.channels.layout import Channels, to_text
from client.learning.models import ModelSpec
from client.steps.measuring import Describe
from client.steps.store import Condense
from client.steps.training import Fit
from client.wire import Common, ForgetSpec
from strategies.parts.schedule import Cosine
from strategies.rounds.base import Rounds

S = TypeVar("S", bound=Common)


@dataclass(frozen=True)
class Accuracies:
    """Accuracies in percent on held-out data; None where nothing was held out.

    Attributes:
        forget: On what is to be forgotten, or was by an earlier request of the same level; of
            several classes the one known best.
        retain: On all the rest.
    """

    forget: float | None
    retain: float | None


@dataclass(frozen=True)
class Plan:
    """How the version was trained.

    Attributes:
        num_rounds: K.
        fraction: Share of the nodes drawn every round.
        min_share: Share of those that must answer.
        over_select: How many more are asked, as a share of them; those who answer last do not
            count.
        rates: Learning rate of each round; None where all have that of an ordinary round.
    """

    num_rounds: int
    fraction: float
    min_share: float
    over_select: float = 0.0
    rates: Cosine | None = None


@dataclass(frozen=True)
class StoredRound:
    """What clients sent in a round of the original training, as it was kept.

    Attributes:
        number: The round, from 1.
        updates: By client, its parameters after the round minus those before it.
        weights: By client, its number of examples.
    """

    number: int
    updates: dict[str, ArrayRecord]
    weights: dict[str, float]


@dataclass(frozen=True)
class Samples:
    """Examples that the coordinator owns.

    Attributes:
        images: Normalised, `(n, C, H, W)` float32.
        labels: `(n,)` int64.
    """

    images: Tensor
    labels: Tensor


class RequestValues:
    """What a request tells the nodes, completed by a method; part of every federation.

    Attributes:
        common: Values that every message carries (see `client.wire.Common`).
        training: Settings of an ordinary round (see `client.steps.training.Fit`).
    """

    common: dict[str, Any]
    training: dict[str, Any]

    @property
    def forget(self) -> ForgetSpec:
        """What the request names."""
        c = self.common
        return ForgetSpec(
            c.get("forget_level", "none"),
            tuple(c.get("forget_classes", ())),
            tuple(c.get("forget_clients", ())),
        )

    @property
    def erased_clients(self) -> tuple[str, ...]:
        """Clients that earlier requests removed."""
        return tuple(self.common.get("erased_clients", ()))

    def settings(self, kind: type[S], **values: Any) -> S:
        """Return a message's settings: the request's own, completed by `values`."""
        filled = {"client": "unaddressed", "phase": "?", **self.common, **values}
        return kind(**filled).check()

    def ordinary(self, **values: Any) -> Fit:
        """Return the settings of an ordinary round of training (see the protocol)."""
        return self.settings(Fit, **{**self.training, **values})

    @property
    def spec(self) -> ModelSpec:
        """The model, with the channels that are pruned already."""
        return self.settings(Describe).model_spec

    def prune(self, channels: Channels) -> None:
        """Have these channels, and no others, be without effect in all that follows."""
        self.common["model_pruned"] = to_text(channels)


class Federation(Protocol):
    """The nodes, and what can be done with them on behalf of one request."""

    @property
    def forget(self) -> ForgetSpec:
        """What the request names."""

    @property
    def erased_clients(self) -> tuple[str, ...]:
        """Clients that earlier requests removed; their data are in the model no more."""

    def settings(self, kind: type[S], **values: Any) -> S:
        """Return a message's settings: the request's own, completed by `values`."""

    def holders(self, *, synthetic: bool) -> list[str]:
        """Return the names of the nodes that hold data to forget.

        Args:
            synthetic: Count the synthetic stand-ins instead of the real examples.

        Raises:
            NothingTouched: If there is none.
        """

    def keepers(self, *, synthetic: bool = False, back: bool = False) -> list[str]:
        """Return the names of the nodes that hold data to train on when the request is done.

        Args:
            synthetic: Count the synthetic stand-ins instead of the real examples.
            back: Whether what the request names is there again, as in relearning.

        Raises:
            NothingTouched: If there is none.
        """

    def class_counts(self) -> dict[str, list[float]]:
        """Return every node's number of training examples by class, whatever is forgotten."""

    def run(
        self, phase: str, rounds: Rounds, model: ArrayRecord, *, num_rounds: int
    ) -> ArrayRecord:
        """Run rounds of one kind and return the model after the last.

        Args:
            phase: Whose time and bytes are counted: "unlearn", "recover", "relearn", "train".
            rounds: The kind of round.
            model: The model to start from; not changed.
            num_rounds: At least 1.
        """

    def accuracies(self, model: ArrayRecord) -> Accuracies:
        """Return the model's accuracies on the nodes' held-out data."""

    @property
    def spec(self) -> ModelSpec:
        """The model, with the channels that are pruned already."""

    def prune(self, channels: Channels) -> None:
        """Have these channels, and no others, be without effect in all that follows."""

    def compact(self, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without its pruned channels: smaller, with the same outputs."""

    def ordinary(self, **values: Any) -> Fit:
        """Return the settings of an ordinary round of training, completed by `values`."""

    @property
    def plan(self) -> Plan:
        """How the version was trained."""

    def initial(self) -> ArrayRecord:
        """Return the weights that training began with.

        From here on no channel is pruned: the request ends with a model of full size.
        """

    def history(self) -> Iterator[StoredRound]:
        """Yield the stored rounds of the original training, in order, one in memory at a time.

        Raises:
            BadSetting: If none is stored.
        """

    def samples(self) -> Samples:
        """Return the coordinator's own examples.

        Raises:
            BadSetting: If it has none.
        """

    def locally(
        self,
        phase: str,
        work: Callable[[], ArrayRecord],
        *,
        samples: int = 0,
        effort: float = 1.0,
        changes_model: bool = True,
    ) -> ArrayRecord:
        """Do work on the coordinator's machine and return its model, or scores.

        Args:
            phase: Whose time is counted.
            work: Returns the arrays. It is not called again when a stopped request goes on, nor
                when a request is only planned.
            samples: Images that it passes through the model.
            effort: About the time of one of these, in that of an image in training.
            changes_model: Whether the arrays are a model.
        """

    def explain(self, **findings: Any) -> None:
        """Put what the method found, as JSON values, into the request's record."""

    def say(self, text: str) -> None:
        """Tell those who follow the request what the method decided, in a line."""

    def condense(self, settings: Condense) -> None:
        """Have every node that holds synthetic data fine-tune it (dataset condensation)."""
