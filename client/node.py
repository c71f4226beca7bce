"""The handlers' form: a message is received, checked, worked on, gated, logged and answered.

`answers` turns a function of a node and a message's settings into a Flower handler. Whatever fails,
the coordinator is told no path and no value of the node's own.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from flwr.app import Context, Message
from torch import Tensor, nn

from client import answered, wire
from client.budget import BudgetSpent, NoiseRequired
from client.errors import (
    AggregationRefused,
    BadSetting,
    Diverged,
    EffaceError,
    NoBaseModel,
    NoSyntheticSet,
    marked,
)
from client.gate import Answer, Metrics, ReplyArrays, gated
from client.law import check, check_noise, policy_of
from client.learning.models import ModelSpec, drawing, state_of
from client.learning.repeatable import repeatable
from client.learning.training import Trained
from client.logbook import Visit, visit_of
from client.messages import Common
from client.opened import Node, opened
from client.packing import as_asked
from client.policy import PolicyRefused
from client.summed import check_sums, hidden, withheld
from client.task_folders import place

__all__ = [
    "Answer",
    "Handler",
    "Metrics",
    "Node",
    "NodeError",
    "ReplyArrays",
    "answers",
    "told_of",
    "worked",
]

log = logging.getLogger("efface.client")
C = TypeVar("C", bound=Common)


def _state(answer: nn.Module | ReplyArrays | None, spec: ModelSpec) -> Mapping[str, Tensor] | None:
    if answer is None:
        return None
    return answer.state if isinstance(answer, ReplyArrays) else state_of(spec, answer)


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
        visit = Visit()
        try:
            visit = visit_of(message, context.node_config)
            answer = self._answer(message, context, visit)
            visit.answered(answer)
            return as_asked(answer, message)
        except Exception as error:
            log.exception("%s failed", message.metadata.message_type)
            try:
                visit.turned_away(error)
            except Exception:
                # A full disk, say: the coordinator is told of the first fault all the same.
                log.exception("the site's log could not be written")
            raise NodeError(told_of(error)) from None

    def _answer(self, message: Message, context: Context, visit: Visit) -> Message:
        started = time.perf_counter()
        arrays, settings = wire.receive(message, self.kind)
        visit.asked(settings)
        policy = policy_of(settings, context.node_config)
        check(policy, self.kind, settings)
        check_noise(policy, settings)
        node = opened(policy, settings, arrays, context)
        visit.notes = node.notes
        summed = check_sums(node, self.kind.message, message)  # before any work
        metrics, made = self._worked(node, settings)
        like = made.like if isinstance(made, ReplyArrays) else wire.forms(arrays)
        metrics, made = gated(policy, self.kind, settings, metrics, made, node.touched.count)
        if policy.is_real and arrays and metrics["num-examples"]:
            sketch = node.touched.sketch(policy.data.split_seed)
            least = policy.answers.min_examples
            answered.keep(node.store.folder, answered.digest_of(arrays), sketch, least=least)
        metrics |= node.spent()
        metrics["seconds"] = time.perf_counter() - started
        metrics["partition"] = int(context.node_config.get("partition-id", -1))
        declared, state = self.kind.message, _state(made, settings.model_spec)
        if summed is not None:
            metrics, state, like = hidden(node, summed, declared, metrics, state, like)
            declared = replace(declared, arrays="masked")
        elif settings.sums_only:
            metrics = withheld(metrics, declared)
        return wire.reply(
            message,
            declared,
            metrics,
            num_classes=settings.model_classes,
            state=state,
            like=like,
        )

    def _worked(self, node: Node, settings: C) -> Answer:
        try:
            seed = node.draws(" network").initial_seed()
            with repeatable(node.device), drawing(settings.model_spec, seed):
                return self.work(node, settings)
        except NoSyntheticSet:
            # In a sum a node without any weighs nothing, as one that nobody asks.
            if settings.secure is None or self.kind.message.arrays != "model":
                raise
            return worked(0), None


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


def told_of(error: Exception) -> str:
    """Return what may go up about an error: what came from the coordinator, nothing of our own.

    Of one in a task's own code that is the line, for the code came from there, and the error's
    type. Not its words: they quote what was read, as "could not convert string to float: 'Smith'".
    """
    ours = isinstance(
        error,
        BadSetting
        | PolicyRefused
        | AggregationRefused
        | BudgetSpent
        | NoiseRequired
        | wire.CodeMismatch
        | NoSyntheticSet
        | NoBaseModel,
    )
    # A file that is missing is missed by its path here.
    ours = ours and not isinstance(error.__cause__, OSError)
    text = str(error) if ours else "the node's own log says why"
    if isinstance(error, Diverged):
        text = f"loss or weights stopped being finite; {text}"  # and no number of them
    where = "" if ours else place(error)
    return marked(error, f"{type(error).__name__}{where and f' in {where}'}: {text}")
