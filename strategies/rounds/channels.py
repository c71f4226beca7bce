"""Rounds of which channels are the subject: two measure them, one trains some of them.

`RepresentationRounds` and `AblationRounds` bring scores back, not a model; `PartialChannelFedAvg`
is federated averaging of chosen channels, whose slices alone cross the wire.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from client.channels.layout import Layer, from_text
from client.channels.slices import from_row, scatter, take, to_row
from client.settings import MIN_EXAMPLES
from client.steps.channels import SLICES, FitChannels
from client.wire import Form, forms, tensors
from strategies.rounds.base import NothingTouched, Rounds, Used

Floats = np.ndarray[Any, np.dtype[np.float64]]


class RepresentationRounds(Rounds):
    """The global class means of every channel's activation, from the nodes' sums and counts.

    Wang et al. 2022 (class-discriminative pruning), section 4.2. Departs from the paper: means are
    formed from sums and counts, not from the nodes' means, so that a node without a class does
    not pull that class towards zero, and a small node weighs as little as it holds.

    The result has one array a convolution, `(K, C)` float64; a class that nobody holds has a row
    of zeros.
    """

    changes_model = False

    def combine(self, used: Mapping[str, Used]) -> ArrayRecord:
        """Return the class means.

        Raises:
            NothingTouched: If a class to be forgotten has too few examples.
        """
        counts: Floats = np.sum(
            [answer.metrics["count-per-class"] for answer in used.values()],
            axis=0,
            dtype=np.float64,
        )
        for label in self.settings.forget_classes:
            if not counts[label]:
                raise NothingTouched(
                    f"class {label} must have at least {MIN_EXAMPLES} examples on one of the "
                    "clients, got none that has: a lone example's activations stay with it; choose "
                    "another method"
                )
        records = [answer.arrays for answer in used.values()]
        means = ArrayRecord()
        for name in records[0]:
            sums: Floats = np.sum([r[name].numpy() for r in records], axis=0, dtype=np.float64)
            means[name] = Array(sums / np.maximum(counts, 1.0)[:, None])
        return means


class AblationRounds(Rounds):
    """The effect of zeroing each channel on the forget data, averaged by the nodes' counts.

    The result has two arrays a layer, `(C,)` float64: `accuracy/<layer>`, points of accuracy lost,
    and `loss/<layer>`, the rise of the mean loss.
    """

    changes_model = False
    takes_all = True


class PartialChannelFedAvg(Rounds):
    """Federated averaging of chosen channels: only their slices go down and up.

    Xu et al. 2024, https://arxiv.org/abs/2406.12516, Algorithm 2. A node that has not answered yet
    gets the whole model, which it keeps until the request is settled. Departs from the paper:
    weights |D_i| instead of 1 / n.
    """

    from_mean = True

    def __init__(self, settings: FitChannels, layers: tuple[Layer, ...], **more: Any) -> None:
        """Args as in `Rounds`, and:

        Args:
            settings: What every node is told; `channels` says which are trained.
            layers: The model's layout.
            more: Arguments of `Rounds`.
        """
        super().__init__(settings, **more)
        self.layers = layers
        self.channels = from_text(settings.channels)
        self._informed: set[int] = set()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send slices to the nodes that have the rest of the model, the whole to the others."""
        slices = to_row(take(tensors(arrays), self.layers, self.channels))
        messages = []
        asked = list(super().configure_train(server_round, arrays, config, grid))
        informed = self._informed
        if getattr(grid, "sums", False):  # all must be asked the same
            nodes = {message.metadata.dst_node_id for message in asked}
            informed = informed if nodes <= informed else set()
        for message in asked:
            node = message.metadata.dst_node_id
            told = message.content.config_records["config"]
            told["whole"] = node not in informed
            if node in informed:
                row = arrays_of({SLICES: slices})
                message.content = RecordDict({"arrays": row, "config": told})
            messages.append(message)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what came back, and remember who has the whole model now."""
        answered: set[int] = set()

        def seen() -> Iterator[Message]:
            for message in replies:
                if not message.has_error():
                    answered.add(message.metadata.src_node_id)
                yield message

        result = super().aggregate_train(server_round, seen())
        failed = {failure.client for failure in self.failures}
        self._informed |= {node for node in answered if self._asked.get(node) not in failed}
        return result

    def expected_arrays(self) -> dict[str, Form]:
        """Return the form of the chosen channels' numbers, in one row."""
        return forms(self.sent_to_change())

    def sent_to_change(self) -> ArrayRecord:
        """Return the chosen channels' numbers as they were."""
        slices = to_row(take(tensors(self.sent), self.layers, self.channels))
        return arrays_of({SLICES: slices})

    def _unlearns(self, name: str) -> bool:
        """Return whether a node trains on wrong labels of what is to be forgotten."""
        return name in self.required

    def combine(self, used: Mapping[str, Used]) -> ArrayRecord:
        """Return the model with the averaged slices in their places, and nothing else changed."""
        before = take(tensors(self.sent), self.layers, self.channels)
        slices = from_row(tensors(super().combine(used))[SLICES], before)
        return put(self.sent, slices, self.layers, self.channels)


def put(
    model: ArrayRecord,
    slices: Mapping[str, torch.Tensor],
    layers: tuple[Layer, ...],
    channels: Mapping[str, tuple[int, ...]],
) -> ArrayRecord:
    """Return `model` with `slices` in the places of `channels`; every other array as it was."""
    changed = scatter(tensors(model), slices, layers, channels)
    result = ArrayRecord(dict(model.items()))
    for name in slices:
        result[name] = Array(changed[name].numpy())
    return result


def arrays_of(state: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Return tensors as a record's arrays."""
    return ArrayRecord({name: Array(tensor.detach().numpy()) for name, tensor in state.items()})
