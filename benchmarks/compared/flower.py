"""Flower's own simulation with a plain FedAvg app, as its quickstart writes it."""

import logging
import os
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from load import Clock, Examples, Load, epoch

TOLD = "EFFACE_COMPARED_LOAD"
app = ClientApp()


@lru_cache(maxsize=1)
def opened() -> tuple[Load, Examples]:
    """Return the load and its examples, once in each of Ray's processes."""
    load = Load.read(os.environ[TOLD])
    return load, Examples.of(load)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client for an epoch."""
    load, examples = opened()
    torch.set_num_threads(1)
    part = examples.parts[int(context.node_config["partition-id"])]
    model = examples.network(load.width)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    epoch(model, examples.images, examples.labels, part, load)
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(part)}),
        }
    )
    return Message(content=content, reply_to=message)


class Clocked(FedAvg):
    """FedAvg that says when a round is over."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        super().__init__(**options)
        self.clock = clock

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        done = super().aggregate_train(server_round, replies)
        self.clock.round()
        return done


def main() -> None:
    """Measure."""
    from flower import app as importable  # Ray's processes find it by its module's name
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    load = Load.read(sys.argv[1])
    os.environ[TOLD] = load.text()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    clock = Clock()
    server = ServerApp()

    @server.main()
    def work(grid: Grid, context: Context) -> None:
        model = Examples.of(load).network(load.width)
        strategy = Clocked(
            clock,
            fraction_evaluate=0.0,
            min_train_nodes=load.clients,
            min_available_nodes=load.clients,
        )
        found = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=load.rounds)
        weights: dict[str, Array] = dict(found.arrays)
        clock.finish({n: a.numpy() for n, a in weights.items()}, Path(sys.argv[2]))

    run_simulation(
        server,
        importable,
        load.clients,
        backend_config={
            "init_args": {"include_dashboard": False, "num_cpus": load.cores},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


if __name__ == "__main__":
    main()
