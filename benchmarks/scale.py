"""Seconds and memory that a round takes with many clients, on one coordinator.

A client here does nothing but answer, with what a node's answer holds: what is measured is the
coordinator and the way between. "empty" rounds are of a model of some 500 numbers, which
clients send back as it was; "resnet18" of one of 11 million, which they send back changed. Every
row is a process of its own:

    python benchmarks/scale.py
    python benchmarks/scale.py --engine ray --clients 10 100 1000
    python benchmarks/scale.py --model resnet18 --clients 10 100 1000
    python benchmarks/scale.py --stragglers

In the first round nodes are asked what they hold, too, and Ray's processes start; the others'
seconds are their median, by the clock and as processor time of the coordinator's process. Memory is
the most that this process had (peak RSS), on the engine "ray" without Ray's own processes.

With `--stragglers`, 100 clients on the engine "inline" take their time: 0.2 s in the middle, with a
long tail (lognormal, sigma 1), drawn anew for every client and round. Twenty of them are drawn a
round, and the rows differ in whom the round waits for.
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
from client.seeds import generator  # noqa: E402
from client.steps.measuring import Describe  # noqa: E402
from client.steps.training import Fit  # noqa: E402
from server.nodes.engines.inline import InlineGrid  # noqa: E402
from server.nodes.engines.ray import RayGrid  # noqa: E402
from server.nodes.federation import GridFederation, Round  # noqa: E402
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
SLOW: Final = 100  # clients that take their time
MIDDLE: Final = 0.2  # seconds
# What the round waits for: over-selection, and its deadline in seconds.
WAITS: Final = {
    "all 20": (0.0, 3600.0),
    "20 of 22": (0.1, 3600.0),
    "20 of 24": (0.2, 3600.0),
    "20 of 30": (0.5, 3600.0),
    "those of 20 within 0.6 s": (0.0, 0.6),
}
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


def delay(name: str, server_round: int) -> float:
    """Return the seconds that a client takes in a round."""
    draws = generator(0, "delay", server_round, name)
    return MIDDLE * math.exp(float(torch.randn((), generator=draws)))


def late(message: Message, context: Context) -> Message:
    """Answer as `fit` does, later."""
    if message.metadata.message_type == "train.fit":
        config = message.content.config_records["config"]
        time.sleep(delay(str(config["client"]), int(str(config["server-round"]))))
    return app(message, context)


def stragglers(num_rounds: int) -> None:
    """Print how long rounds take that wait for all, or do without the last."""
    every = [delay(f"client-{i}", r) for i in range(SLOW) for r in range(1, num_rounds + 1)]
    print(
        f"{num_rounds} rounds, 20 of {SLOW} clients; a client takes {statistics.mean(every):.2f} s"
    )
    print("| the round waits for | a round, s | answers a round | load |")
    print("|---|---|---|---|")
    for words, (over_select, deadline) in WAITS.items():
        asked = argparse.Namespace(row=SLOW, model="empty", rounds=num_rounds)
        asked.over_select, asked.deadline = over_select, deadline
        with InlineGrid(late, SLOW, workers=SLOW) as grid:
            spent, answers = measured(grid, asked, (SLOW, SLOW))
        seconds = statistics.mean(seconds for seconds, _ in spent)
        count = statistics.mean(answers[1:])
        print(f"| {words} | {seconds:.2f} | {count:.1f} | {os.getloadavg()[0]:.1f} |", flush=True)


def measured(
    grid: Grid, asked: argparse.Namespace, window: tuple[int, int]
) -> tuple[list[tuple[float, float]], list[int]]:
    """Return seconds and processor seconds of each round, and how many answered.

    Those of the first round are with its questions.
    """
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
    drawn = {"fraction": 0.2, "min_share": 0.1} if "deadline" in asked else {}
    named.under_way = window
    ends: list[tuple[float, float]] = []
    answers: list[int] = []

    def ended(done: Round | None = None, _: ArrayRecord | None = None) -> None:
        ends.append((time.perf_counter(), time.process_time()))
        if done is not None:
            answers.append(done.num_clients)

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
        more = {"over_select": asked.over_select, **drawn} if drawn else {}
        rounds = FederatedAveraging(federation.ordinary(), **more)
        if drawn:
            federation.run("train", rounds, model, num_rounds=1)  # with its questions
            named.round_timeout = asked.deadline
            ends.clear()
            ended()
        federation.run("train", rounds, model, num_rounds=asked.rounds)
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ends)], answers


def row(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure one number of clients in this process."""
    kind = InlineGrid if asked.engine == "inline" else RayGrid
    with kind(app, asked.row) as grid:
        spent, _ = measured(grid, asked, grid.under_way)
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
    parser.add_argument("--stragglers", action="store_true")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        print(json.dumps(row(asked)))
        return
    if asked.stragglers:
        stragglers(asked.rounds)
        return
    print(f"engine {asked.engine}, model {asked.model}, {os.cpu_count()} cores")
    print("| clients | first round, s | a round, s | of a core, s | peak RSS, MiB | load |")
    print("|---|---|---|---|---|---|")
    for count in asked.clients:
        command = [sys.executable, __file__, "--row", str(count), "--engine", asked.engine]
        command += ["--model", asked.model, "--rounds", str(asked.rounds)]
        os.environ.setdefault("RAY_worker_niceness", "0")  # or other work keeps them waiting
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {found['clients']:,} | {found['first']:.2f} | {found['seconds']:.2f} "
            f"| {found['processor']:.2f} | {found['peak_mib']:,.0f} | {found['load']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
