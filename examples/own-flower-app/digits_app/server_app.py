"""The server's side."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits_app.task import Net, by_digit, load_test
from digits_app.unlearning import CLIENTS, Digits
from efface import flower

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the model."""
    config = context.run_config
    torch.manual_seed(0)
    arrays = ArrayRecord(Net().state_dict())
    strategy = FedAvg(fraction_evaluate=0.5)
    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        train_config=ConfigRecord({"lr": config["lr"]}),
        num_rounds=config["num-rounds"],
    )
    report("trained", result.arrays)

    ours = {"num_clients": CLIENTS, "rounds": config["num-rounds"], "lr": config["lr"]}
    ours |= {"batch_size": 32, "momentum": 0.9, "local_epochs": config["local-epochs"]}
    for method in ("retraining", "sga"):
        done = flower.forget(grid, result.arrays, Digits, class_=9, method=method, **ours)
        report(method, done.arrays)


def report(name: str, arrays: ArrayRecord) -> None:
    """Keep a model, and print its accuracy on each digit."""
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    torch.save(net.state_dict(), f"{name}.pt")
    print(f"{name:10}  {by_digit(net, load_test())}")
