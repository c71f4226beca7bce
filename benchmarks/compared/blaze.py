"""BlazeFL (pip: blazefl) with its own FedAvg, clients in as many threads as cores.

It asks for Python 3.12 or later; 2.0.3 was run with 3.11, too (pip: --ignore-requires-python).
Without the GIL, for which its threads are meant, it would do better.
"""

import sys
from pathlib import Path

import torch
from blazefl.contrib import FedAvgBaseServerHandler, FedAvgThreadPoolClientTrainer
from load import Clock, Examples, Load, named
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Parts:
    """The clients' examples as BlazeFL asks for them."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def get_dataset(self, type_: str, cid: int) -> TensorDataset:
        part = self.examples.parts[cid]
        return TensorDataset(self.examples.images[part], self.examples.labels[part])

    def get_dataloader(
        self, type_: str, cid: int, batch_size: int, generator: torch.Generator
    ) -> "DataLoader[tuple[torch.Tensor, ...]]":
        data = self.get_dataset(type_, cid)
        return DataLoader(data, batch_size=batch_size, shuffle=True, generator=generator)


class Networks:
    """The one network that there is."""

    def __init__(self, examples: Examples, width: int) -> None:
        self.examples, self.width = examples, width

    def select_model(self, model_name: str) -> nn.Module:
        return self.examples.network(self.width)


def main() -> None:
    """Measure."""
    torch.set_num_threads(1)
    load = Load.read(sys.argv[1])
    examples = Examples.of(load)
    networks, parts = Networks(examples, load.width), Parts(examples)
    server = FedAvgBaseServerHandler(
        model_selector=networks,
        model_name="convnet",
        dataset=parts,
        global_round=load.rounds,
        num_clients=load.clients,
        sample_ratio=1.0,
        device="cpu",
        batch_size=load.batch,
        seed=0,
    )
    trainer = FedAvgThreadPoolClientTrainer(
        model_selector=networks,
        model_name="convnet",
        dataset=parts,
        device="cpu",
        num_clients=load.clients,
        epochs=1,
        batch_size=load.batch,
        lr=load.lr,
        seed=0,
        num_parallels=load.cores,
    )
    clock = Clock()
    while not server.if_stop():
        asked = server.sample_clients()
        trainer.local_process(server.downlink_package(), asked)
        for answer in trainer.uplink_package():
            server.load(answer)
        clock.round()
    clock.finish(named(server.model), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
