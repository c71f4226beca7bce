"""The server's side."""

import torch
from efface import flower
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits_app.task import Net
from digits_app.unlearning import Digits, print_accuracies

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
    torch.save(result.arrays.to_torch_state_dict(), "model.pt")

    how = {"num_clients": len(list(grid.get_node_ids())), "rounds": config["num-rounds"]}
    how |= {"local_epochs": config["local-epochs"], "batch_size": 32, "lr": config["lr"]}
    print_accuracies("Original", result.arrays)
    for method in ("retraining", "sga"):
        done = flower.forget(grid, result.arrays, Digits, class_=9, method=method, momentum=0.9, **how)
        print_accuracies(method, done.arrays)
    torch.save(done.arrays.to_torch_state_dict(), "model.pt")
