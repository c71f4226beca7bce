"""Unlearning for a Flower app that trains in its own way: no home, no ledger, no verdict.

The app keeps its ClientApp, its ServerApp and its training. Its ClientApp answers Efface's
messages, too (`answer`), and its ServerApp has a model forget with them (`forget`). All else that
Efface does, it does for a task that it trained itself: `Federation`.

Example:
    ```python
    # client_app.py
    flower.answer(app, Digits)

    # server_app.py, after strategy.start(grid, ...)
    done = flower.forget(grid, result.arrays, Digits, class_=9, method="sga")
    ```
"""

import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from client.app import answer
from client.errors import BadSetting
from client.learning.models import ModelSpec, identified
from client.own_task import offer
from client.steps.measuring import Describe
from client.task import Task, canonical
from server.nodes.federation import Cost, GridFederation
from server.nodes.grid import NamedGrid
from server.nodes.naming import name_by_partition
from server.requests import messages
from server.requests.context import initial_weights
from server.requests.tasks import check_level
from server.settings import RunSettings
from server.storage.journal import Journal
from strategies.federation import Accuracies, Plan
from strategies.method import Method
from strategies.suited import unsuited
from strategies.table import method as method_of

__all__ = ["Unlearned", "answer", "forget"]


@dataclass(frozen=True)
class Unlearned:
    """A model without what it was to forget, and what the nodes measured.

    Attributes:
        arrays: The model.
        before: Accuracies on the data that the nodes hold back, of the model as it came. Training
            by the app's own handlers may have used these data.
        after: Likewise, of the model as it is now.
        costs: By phase: seconds, rounds, bytes.
    """

    arrays: ArrayRecord
    before: Accuracies
    after: Accuracies
    costs: Mapping[str, Cost]


def forget(
    grid: Grid,
    arrays: ArrayRecord,
    task: type[Task],
    *,
    class_: int | None = None,
    client: str = "",
    method: str = "sga",
    options: Mapping[str, Any] | None = None,
    num_clients: int = 0,
    rounds: int = 20,
    local_epochs: int = 1,
    batch_size: int = 64,
    lr: float = 0.05,
    momentum: float = 0.0,
    seed: int = 0,
    timeout: float = 600.0,
) -> Unlearned:
    """Return a model without a class, or without a client's data, by a method's rounds.

    Nothing of it is remembered: the app itself must leave out the data in later training. Nothing
    is shown, either: `method="retraining"` gives the model to compare with.

    Args:
        grid: The ServerApp's.
        arrays: The model, as the app trained it; its names are the task's network's. Not changed.
        task: Network and data, from the app's own package: the same that its ClientApp answers for.
        class_: Number of a class. Either this or `client`.
        client: Name of a node: "client-3" of a simulation's partition 3, a node's own name, or
            "node-123" by its number.
        method: As `efface methods` lists them; one without synthetic data, history or samples.
        options: The method's own, by name.
        num_clients: Simulated nodes, whose shares are told by the `ids` of the task's examples, one
            id a client, in order; 0 where each node's config names its own data, store and policy.
        rounds: Of the app's training; `retraining` takes as many.
        local_epochs: Of a round of ordinary training, in recovery and retraining.
        batch_size: Likewise.
        lr: Likewise, of SGD.
        momentum: Likewise.
        seed: Of all draws.
        timeout: Seconds to wait for the nodes' answers in a round.

    Raises:
        BadSetting: If the method cannot serve such a request, or a value breaks its rule.
        EffaceError: If a node that has to take part does not.
    """
    if (class_ is None) == (not client):
        raise BadSetting(
            "request must name class_ or client, got " + ("both" if client else "none")
        )
    source = offer(task)
    settings = RunSettings(
        mode="forget",
        engine="ray" if num_clients else "superlink",
        task=source.name,
        task_code=source.code,
        partition="natural",
        num_clients=max(1, num_clients),
        method=method,
        method_options=",".join(f"{k.replace('_', '-')}={v}" for k, v in (options or {}).items()),
        forget_classes="" if class_ is None else str(class_),
        forget_clients=client,
        rounds=rounds,
        local_steps=0,
        local_epochs=local_epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        scale=0,
        seed=seed,
        round_timeout=timeout,
    ).check()
    spec = identified(
        ModelSpec(name=source.name, code=source.code, options=canonical(task().options))
    )
    if class_ is not None and not 0 <= class_ < spec.num_classes:
        raise BadSetting(f"class must lie in [0, {spec.num_classes}), got {class_}")
    chosen = _method(settings, spec)
    named = NamedGrid(grid, settings.round_timeout)
    common = messages.common(
        settings,
        spec,
        {"classes": (), "clients": ()},
        forget=settings.forget,
        request=secrets.token_hex(8),
        lineage="flower-app",
    )
    with tempfile.TemporaryDirectory() as folder:
        federation = GridFederation(
            named,
            common,
            Journal(Path(folder), {}),
            training=messages.ordinary(settings),
            plan=Plan(rounds, 1.0, 1.0),
            first_weights=partial(initial_weights, spec, seed),
        )
        name_by_partition(named, federation.settings(Describe, client="unnamed", phase="names"))
        known = sorted(node.name for node in named.get_nodes())
        if client and client not in known:
            raise BadSetting(f"client must be one of {', '.join(known)}, got {client}")
        before = federation.accuracies(arrays)
        found = chosen.forget(federation, arrays)
        return Unlearned(found, before, federation.accuracies(found), dict(federation.costs))


def _method(settings: RunSettings, spec: ModelSpec) -> Method:
    """Return the method that carries a request out.

    Raises:
        BadSetting: If it cannot.
    """
    chosen = method_of(settings.method, settings.forget.level, settings.options)
    check_level(spec, settings.forget)
    needs, name = chosen.needs, settings.method
    for missing, what in (
        (needs.synthetic_data, "synthetic data, which the app's training makes none of"),
        (needs.history, "updates of the training, of which the app keeps none"),
        (needs.server_data, "examples of the coordinator's own"),
    ):
        if missing:
            raise BadSetting(
                f"method must be one for an app's own model, such as sga, got {name}, which needs "
                f"{what}"
            )
    if (why := unsuited(needs, spec)) is not None:
        raise BadSetting(f"method {name} cannot serve this model: {why}")
    return chosen
