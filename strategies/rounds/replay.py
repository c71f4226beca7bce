"""Stored rounds of training, added to a model once more."""

from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord

from client.messages import Common
from strategies.federation import StoredRound
from strategies.parts.averaging import weighted_average
from strategies.rounds.base import Rounds, Used


class ReplayedRound(Rounds):
    """A stored round added to the model as it was kept; no node is asked.

    Attributes:
        kept: What is to be kept of it, in place of what was stored.
    """

    asks = False

    def __init__(
        self,
        settings: Common,
        stored: StoredRound,
        *,
        participants: Iterable[str] = (),
        min_share: float = 0.5,
    ) -> None:
        """Configure the round.

        Args:
            settings: Calibration training.
            stored: What the nodes sent in training; of those alone that stay.
            participants: Names of the nodes asked to calibrate.
            min_share: Share of them that must answer, in (0, 1].
        """
        super().__init__(settings, participants=tuple(participants), min_share=min_share)
        self.stored = stored
        self.kept: StoredRound | None = None

    def combine(self, used: Mapping[str, Used]) -> ArrayRecord:
        """Return the model after the stored round."""
        self.kept = self.stored
        return after(self.sent, self.stored)


def after(model: ArrayRecord, done: StoredRound) -> ArrayRecord:
    """Return M + sum_k w_k U_k / sum_k w_k, w_k the numbers of examples."""
    names = sorted(done.updates)
    mean = weighted_average([done.updates[n] for n in names], [done.weights[n] for n in names])
    return _combined(model, mean, 1)


def difference(end: Mapping[str, Array], start: Mapping[str, Array]) -> ArrayRecord:
    """Return `end - start`, tensor by tensor, with their dtypes."""
    return _combined(end, start, -1)


def _combined(one: Mapping[str, Array], other: Mapping[str, Array], sign: int) -> ArrayRecord:
    return ArrayRecord(
        {name: Array(np.asarray(one[name].numpy() + sign * other[name].numpy())) for name in one}
    )
