"""Plans of every method on digits, against those of the time when each method described itself.

`plans.json` has those: a line for each phase. Where the method does something else than it said of
itself, the line that is right follows, and why.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.data import datasets
from client.learning.spec import image_model
from client.simulation.shares import shares
from server.nodes.federation import Cost
from server.requests.planning import Situation
from server.settings import RunSettings
from strategies.table import METHODS

SPEC = image_model("convnet", num_classes=10, channels=1, image_size=8, width=8, depth=2)
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
    given = (
        settings.learned, settings.dataset, None, settings.partition, settings.num_clients, 0, 0
    )  # fmt: skip
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
        server_examples=100,
        trained_on="inline",
        trained_by="a machine",
        machine="a machine",
    )


def line(phase: dict[str, Any]) -> str:
    fewer = " or fewer" if phase["ends_early"] else ""
    return (
        f"{phase['phase']} {phase['rounds']} to {phase['rounds_at_most']}{fewer}: "
        f"{phase['clients']} clients, {phase['samples']} images, {phase['bytes']['up']} up, "
        f"{phase['bytes']['down']} down"
    )


@pytest.mark.parametrize("job", JOBS)
def test_what_a_method_does_is_what_it_said_of_itself_where_that_was_right(
    job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr("server.requests.planning.check_samples", lambda settings, data: None)
    kept = json.loads(Path(__file__).with_name("plans.json").read_text())
    seen = 0
    for level in TARGETS:
        for name, kind in METHODS.items():
            key = f"{job}, {level}, {name}"
            if level in kind.needs.levels and key in kept:
                asked = situation(job, level, name)
                asked.check(name)
                expected = [lines[1] if len(lines) > 1 else lines[0] for lines in kept[key]]
                assert [line(phase) for phase in asked.document(name)["phases"]] == expected, key
                seen += 1
    assert seen == sum(key.startswith(f"{job}, ") for key in kept) > 0
