"""What a method sees of the federation. `server.federation` implements it over Flower's Grid."""

from typing import Any, Protocol, TypeVar

from flwr.app import ArrayRecord

from client.wire import Common, Condense, ForgetSpec
from strategies.rounds import Rounds

S = TypeVar("S", bound=Common)


class Federation(Protocol):
    """The nodes, and what can be done with them on behalf of one request."""

    @property
    def forget(self) -> ForgetSpec:
        """What the request names."""

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

    def forget_accuracy(self, model: ArrayRecord) -> float | None:
        """Return the model's accuracy in percent on the holders' held-out forget data.

        What earlier requests erased counts too; of several classes the one known best. None if
        nothing of it was held out.
        """

    def condense(self, settings: Condense) -> None:
        """Have every node that holds synthetic data fine-tune it (dataset condensation)."""
