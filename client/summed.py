"""An answer that goes up in a sum, or from a node that answers in sums alone.

What is done between work and wire; `client.secure` has the protocol.
"""

from collections.abc import Mapping

from flwr.app import Message
from torch import Tensor

from client import wire
from client.errors import AggregationRefused
from client.gate import Metrics
from client.messages import Declaration
from client.opened import Node
from client.secure import work
from client.secure.context import Context
from client.secure.vector import Shape


def check_sums(node: Node, declared: Declaration, message: Message) -> Context | None:
    """Return the sum that the answer goes into, before any work; None if it goes up alone.

    Raises:
        AggregationRefused: If it must not go up so.
    """
    told = node.settings.secure
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
    work.check(context, told, message.content.config_records["config"], node.arrays)
    return context


def hidden(
    node: Node,
    context: Context,
    declared: Declaration,
    metrics: Metrics,
    state: Mapping[str, Tensor] | None,
    like: Mapping[str, wire.Form],
) -> tuple[Metrics, Mapping[str, Tensor], dict[str, wire.Form]]:
    """Return what goes up of an answer in a sum: nothing of it can be read without the others'.

    Args:
        node: Whose answer it is.
        context: Of the sum.
        declared: What the message declares.
        metrics: The answer's numbers.
        state: Its arrays; None for zeros.
        like: Their agreed names, shapes and dtypes.

    Raises:
        AggregationRefused: If a number is out of range, or the sum has gone on meanwhile.
    """
    told = node.settings.secure
    if told is None:
        raise AggregationRefused("sum must be named, got none")
    if state is not None and declared.arrays == "model":
        state = work.clipped(state, wire.tensors(node.arrays), told.clip)
    shapes = {name: Shape(form.shape, form.dtype) for name, form in like.items()}
    masked = work.masked(
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
    return shown, masked, wire.forms(masked)


def withheld(metrics: Metrics, declared: Declaration) -> Metrics:
    """Return numbers of which those that tell of examples are 0."""
    kept = ("seconds", "partition", *(declared.alone or ()))
    return {
        name: value if name in kept else [0.0] * len(value) if isinstance(value, list) else 0
        for name, value in metrics.items()
    }
