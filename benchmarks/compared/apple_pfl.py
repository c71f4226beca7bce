"""Apple's pfl (pip: pfl), its simulated backend with FederatedAveraging: one process, one thread.

More processes need Horovod or a launcher of torch's; the comparison is with what a plain
installation does.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from load import Clock, Examples, Load, named
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Measured(nn.Module):
    """The network as pfl wants one: with its loss and metrics."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)  # type: ignore[no-any-return]

    def loss(self, images: Tensor, labels: Tensor, eval: bool = False) -> Tensor:
        self.train(not eval)
        return cross_entropy(self(images), labels)

    def metrics(self, images: Tensor, labels: Tensor, eval: bool = False) -> dict[str, Any]:
        return {}


class Rounds(TrainingProcessCallback):  # type: ignore[misc]
    """Says when a round is over."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        self.clock.round()
        return False, Metrics()


def main() -> None:
    """Measure."""
    torch.set_num_threads(1)
    load = Load.read(sys.argv[1])
    examples = Examples.of(load)

    def of_client(number: int) -> PyTorchTensorDataset:
        part = examples.parts[number]
        part = part[torch.randperm(len(part))]
        tensors = [examples.images[part], examples.labels[part]]
        return PyTorchTensorDataset(tensors, user_id=str(number))

    place = iter(range(sys.maxsize))
    data = FederatedDataset(of_client, lambda: next(place) % load.clients)
    inner = examples.network(load.width)
    model = PyTorchModel(
        Measured(inner),
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(inner.parameters(), lr=1.0),
    )
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=load.rounds,
            evaluation_frequency=10**9,
            train_cohort_size=load.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=None),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=load.lr, local_batch_size=load.batch
        ),
        callbacks=[Rounds(clock)],
    )
    clock.finish(named(inner), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
