"""What a method sees of the federation. `server.federation` implements it over Flower's Grid."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from flwr.app import ArrayRecord

from client.wire import Common, Condense, ForgetSpec
from strategies.rounds import Rounds

S = TypeVar("S", bound=Common)


@dataclass(frozen=True)
class Accuracies:
    """Accuracies in percent on held-out data; None where nothing was held out.

    Attributes:
        forget: On what is to be forgotten, or was by an earlier request; of several classes the one
            known best.
        retain: On all the rest.
    """

    forget: float | None
    retain: float | None


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

    def condense(self, settings: Condense) -> None:
        """Have every node that holds synthetic data fine-tune it (dataset condensation)."""
