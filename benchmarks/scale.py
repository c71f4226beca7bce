"""Seconds and memory that a round takes with many clients, on one coordinator.

A client here does nothing but answer, with what a node's answer holds: what is measured is the
coordinator and the way between. "empty" rounds are of a model of some 500 numbers, which
clients send back as it was; "resnet18" of one of 11 million, which they send back changed. Every
row is a process of its own:

    python benchmarks/scale.py
    python benchmarks/scale.py --engine ray --clients 10 100 1000
    python benchmarks/scale.py --model resnet18 --clients 10 100 1000

In the first round nodes are asked what they hold, too; the others' seconds are their median, by the
clock and as processor time of the coordinator's process. Memory is the most that this process had
(peak RSS), on the engine "ray" without Ray's own processes.
"""

import argparse
import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from flwr.app import (  # noqa: E402
    Array,
    ArrayRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid  # noqa: E402

from client import wire  # noqa: E402
from client.data import class_names  # noqa: E402
from client.learning.models import build  # noqa: E402
from client.learning.spec import image_model  # noqa: E402
from client.messages import OF_NOISE  # noqa: E402
from client.steps.measuring import Describe  # noqa: E402
from client.steps.training import Fit  # noqa: E402
from server.nodes.engines.inline import InlineGrid  # noqa: E402
from server.nodes.engines.ray import run_on_ray, under_way  # noqa: E402
from server.nodes.federation import GridFederation  # noqa: E402
from server.nodes.grid import LOCAL_POLL_SECONDS, NamedGrid  # noqa: E402
from server.nodes.naming import name_by_partition  # noqa: E402
from server.requests import messages  # noqa: E402
from server.settings import RunSettings  # noqa: E402
from server.storage.journal import Journal  # noqa: E402
from strategies.rounds.base import FederatedAveraging  # noqa: E402

MODELS: Final = {
    "empty": image_model("convnet", num_classes=10, channels=1, image_size=8, width=4, depth=1),
    "resnet18": image_model("resnet18", num_classes=10, channels=3, image_size=32),
}
LARGE: Final = 10**6  # numbers
EXAMPLES: Final = 100.0
DONE: Final = {
    **{name: 0.0 for name in Fit.message.up if name not in OF_NOISE},
    "num-examples": EXAMPLES,
    "code": wire.code_number(wire.fingerprint()),
}

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Answer as a simulated node with 100 examples."""
    _, told = wire.receive(message, Describe)
    state = {class_names.ARRAY: torch.zeros(0, dtype=torch.uint8)}
    numbers: dict[str, Any] = {
        name: 0.0 if form == "scalar" else [0.0] * told.model_classes
        for name, form in told.message.up.items()
        if name not in ("code", *OF_NOISE)
    }
    numbers["num-examples"] = EXAMPLES
    numbers["partition"] = float(context.node_config["partition-id"])
    return wire.reply(
        message,
        told.message,
        numbers,
        num_classes=told.model_classes,
        state=state,
        like=wire.forms(state),
    )


@app.train("fit")
def fit(message: Message, context: Context) -> Message:
    """Answer as a node that has trained: with the model as it came, a large one changed."""
    arrays = message.content.array_records["arrays"]
    if sum(math.prod(array.shape) for array in arrays.values()) > LARGE:
        share = np.float32(1 + 1e-3 * (1 + int(context.node_config["partition-id"]) % 7))
        arrays = ArrayRecord({name: _scaled(array, share) for name, array in arrays.items()})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(DONE))})
    return Message(content, reply_to=message)


def _scaled(array: Array, share: np.float32) -> Array:
    numbers = array.numpy()
    return Array(numbers * share) if numbers.dtype.kind == "f" else array


def measure(
    grid: Grid, asked: argparse.Namespace, window: tuple[int, int]
) -> list[tuple[float, float]]:
    """Return seconds and processor seconds of each round; the first one's with the questions."""
    settings = RunSettings(num_clients=asked.row, local_steps=1, dataset="digits")
    spec = MODELS[asked.model]
    common = messages.common(
        settings,
        spec,
        {"classes": (), "clients": ()},
        forget=settings.forget,
        request="scale",
        lineage="scale",
    )
    named = NamedGrid(grid, 3600.0, LOCAL_POLL_SECONDS)
    named.under_way = window
    ends: list[tuple[float, float]] = []

    def ended(*_: Any) -> None:
        ends.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        federation = GridFederation(
            named,
            common,
            Journal(Path(folder), {}),
            ended,
            training=messages.ordinary(settings),
        )
        named.wait_for(asked.row, 600.0)
        name_by_partition(named, federation.settings(Describe, client="unnamed", phase="names"))
        model = ArrayRecord(build(spec, torch.Generator().manual_seed(0)).state_dict())
        ended()
        rounds = FederatedAveraging(federation.ordinary())
        federation.run("train", rounds, model, num_rounds=asked.rounds)
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ends)]


def row(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure one number of clients in this process."""
    found: list[list[tuple[float, float]]] = []
    if asked.engine == "inline":
        with InlineGrid(app, asked.row) as grid:
            found.append(measure(grid, asked, grid.under_way))
    else:
        run_on_ray(
            app,
            lambda grid: found.append(measure(grid, asked, under_way())),
            num_clients=asked.row,
            environment={},
            cpus=1,
            stop=threading.Event(),
        )
    (spent,) = found
    return {
        "clients": asked.row,
        "first": spent[0][0],
        "seconds": statistics.median(seconds for seconds, _ in spent[1:] or spent),
        "processor": statistics.median(seconds for _, seconds in spent[1:] or spent),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Measure each row in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", choices=("inline", "ray"), default="inline")
    parser.add_argument("--model", choices=tuple(MODELS), default="empty")
    parser.add_argument("--clients", type=int, nargs="*", default=[10, 100, 1000, 10000])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        print(json.dumps(row(asked)))
        return
    print(f"engine {asked.engine}, model {asked.model}, {os.cpu_count()} cores")
    print("| clients | first round, s | a round, s | of a core, s | peak RSS, MiB | load |")
    print("|---|---|---|---|---|---|")
    for count in asked.clients:
        command = [sys.executable, __file__, "--row", str(count), "--engine", asked.engine]
        command += ["--model", asked.model, "--rounds", str(asked.rounds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {found['clients']:,} | {found['first']:.2f} | {found['seconds']:.2f} "
            f"| {found['processor']:.2f} | {found['peak_mib']:,.0f} | {found['load']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
