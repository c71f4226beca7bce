"""Requests to plan: every method on digits, under some settings, without a training."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from client.data import datasets
from client.errors import BadSetting
from client.learning.models import ModelSpec
from client.simulation.shares import shares
from server.nodes.federation import Cost
from server.requests.planning import Situation
from server.settings import RunSettings
from strategies.table import METHODS

SPEC = ModelSpec("convnet", num_classes=10, channels=1, image_size=8, width=8, depth=2)
TOLD: dict[str, Any] = {"mode": "forget", "method": "auto", "holdout": 0.1, "scale": 10}
TOLD |= {"batch_size": 32, "rounds": 2, "engine": "inline", "threads": 1, "dataset": "digits"}
NOTHING: dict[str, list[Any]] = {"classes": [], "clients": []}

# By name: settings, data left out by earlier requests, options by method.
JOBS: dict[str, tuple[dict[str, Any], dict[str, list[Any]], dict[str, str]]] = {
    "three alike": ({"num_clients": 3, "partition": "iid", "local_steps": 8}, NOTHING, {}),
    "half of ten": (
        {"num_clients": 10, "partition": "iid", "local_steps": 2, "fraction": 0.5},
        NOTHING,
        {},
    ),
    "other options": (
        {"num_clients": 3, "partition": "iid", "local_steps": 8},
        NOTHING,
        {
            "quickdrop": "finetune-steps=2,recover-epochs=4",
            "quickdrop-calibrated": "recover-batches=3,client-recover-rounds=2",
            "quickdrop-subset": "scale=20",
            "class-pruning": "samples-per-class=2,target=90,rounds=4",
            "influential-de": "rounds=1,delta=0.3",
            "federaser": "rounds=3",
            "rapid-retraining": "curvature=hessian,rounds=3",
            "sga": "unlearn-rounds=1,unlearn-epochs=3",
        },
    ),
    "some gone": (
        {"num_clients": 5, "partition": "iid", "local_steps": 4},
        {"classes": [5], "clients": ["client-2"]},
        {},
    ),
    "unequal, in epochs": (
        {"num_clients": 4, "partition": "dirichlet:0.5", "local_epochs": 1, "local_steps": 0},
        NOTHING,
        {},
    ),
    "never asked": (
        {"num_clients": 4, "local_steps": 4, "engine": "superlink", "dataset": "none"},
        NOTHING,
        {},
    ),
}
TARGETS = {"class": {"forget_classes": "3"}, "client": {"forget_clients": "client-1"}}


def situation(job: str, level: str, name: str) -> Situation:
    """Return the request to forget by a method, on a version whose training took some time."""
    more, erased, options = JOBS[job]
    settings = RunSettings(
        **{
            **TOLD,
            **TARGETS[level],
            **more,
            "method": name,
            "method_options": options.get(name, ""),
        }
    ).check()
    simulated = settings.engine != "superlink"
    drawn = max(1, round(settings.fraction * settings.num_clients))
    given = (settings.dataset, None, settings.partition, settings.num_clients, 0, 0)
    nodes = shares(*given) if simulated else None
    images = float(drawn * settings.local_steps * settings.batch_size)
    if not images:  # an epoch of each
        images = 0.9 * sum(map(len, nodes or ()))
    cost = Cost(
        seconds=20.0,
        client_seconds=30.0,
        distill_seconds=6.0,
        rounds=2,
        samples=2 * images,
        up=2 * drawn * 12000,
        down=2 * drawn * 13000,
    )
    card = {"training": {"train": vars(cost)}, "erased": erased, "settings": {}}
    names = [f"client-{i}" for i in range(settings.num_clients)]
    others = [name for name in names if name not in erased["clients"]]
    if not simulated:  # names as they are assumed
        others = [*settings.forget.clients, *(f"another {i}" for i in range(settings.num_clients))]
    stored = dict.fromkeys((1, 2), others[-drawn:])
    return Situation(
        settings=settings,
        base=SimpleNamespace(id="v0001", card=card),  # type: ignore[arg-type]
        spec=SPEC,
        data=datasets.load("digits") if simulated else None,
        shares=nodes,
        kept=SimpleNamespace(clients=lambda: stored),  # type: ignore[arg-type]
        check_samples=lambda settings, data: None,
        server_examples=100,
        trained_on="inline",
        trained_by="a machine",
        machine="a machine",
    )


def plans() -> dict[str, Any]:
    """Return what a dry run says of every job, level and method."""
    found: dict[str, Any] = {}
    with patch("os.cpu_count", lambda: 1):
        for job in JOBS:
            for level in TARGETS:
                for name in METHODS:
                    try:
                        asked = situation(job, level, name)
                        asked.check(name)
                        found[f"{job}, {level}, {name}"] = asked.document(name)
                    except BadSetting as error:
                        found[f"{job}, {level}, {name}"] = str(error)
    return found
