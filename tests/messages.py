"""What the tests send to nodes: settings of a tiny job on digits, its model, its messages."""

from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from client import wire
from client.app import handlers
from client.learning.models import build
from client.learning.networks import Classifier
from client.learning.spec import image_model
from client.messages import Common
from client.simulation.settings import Simulation

NUM_CLIENTS = 3
SPEC = image_model("convnet", num_classes=10, channels=1, image_size=8, width=8, depth=2)


def values(**more: Any) -> dict[str, Any]:
    """Return what every message of the job carries, as settings' field names.

    Args:
        more: Other values; those that `Simulation` has are put in its place.
    """
    shares = {"dataset": "digits", "num_clients": NUM_CLIENTS, "max_samples": 300}
    shares |= {key: more.pop(key) for key in vars(Simulation(**shares)) if key in more}
    return {
        "client": "client-0",
        "fingerprint": wire.fingerprint(),
        "request": "r0001",
        "lineage": "r0001",
        "phase": "test",
        "seed": 0,
        "simulation": Simulation(**shares),
        **Common.of_model(SPEC),
        "device": "cpu",
        **more,
    }


def told(kind: type[Common], **more: Any) -> Any:
    """Return checked settings of a kind."""
    return kind(**values(**more)).check()


def network(seed: int = 0) -> Classifier:
    return build(SPEC, torch.Generator().manual_seed(seed))


def weights(seed: int = 0) -> ArrayRecord:
    return ArrayRecord(network(seed).state_dict())


def message(
    message_type: str, config: ConfigRecord, arrays: ArrayRecord | None = None, *, node: int = 1
) -> Message:
    content = RecordDict({"arrays": ArrayRecord() if arrays is None else arrays, "config": config})
    return Message(content, dst_node_id=node, message_type=message_type)


def numbers(question: Message, examples: float, **more: Any) -> MetricRecord:
    """Return all the numbers that a node says beside its answer, 0 where they do not matter."""
    declared = handlers()[question.metadata.message_type].kind.message.up
    nothing = {
        n: [0.0] * SPEC.num_classes if k == "per-class" else 0.0 for n, k in declared.items()
    }
    own = {"num-examples": examples, "code": wire.code_number(wire.fingerprint()), "seconds": 0.5}
    return MetricRecord({**nothing, **own, **more})


def reply(question: Message, arrays: ArrayRecord, examples: float, **more: Any) -> Message:
    """Return a node's answer to a message."""
    content = RecordDict({"arrays": arrays, "metrics": numbers(question, examples, **more)})
    return Message(content, reply_to=question)
