"""Federated averaging as a plain PyTorch loop without any framework: the limit for all others.

As many processes as cores each train a share of the clients, one after the other, and add their
weights up in memory that all of them see.
"""

import sys
from pathlib import Path

import torch
import torch.multiprocessing as processes
from load import Clock, Examples, Load, epoch, named


def work(
    load: Load,
    mine: range,
    weights: list[torch.Tensor],
    total: list[torch.Tensor],
    asked: "processes.SimpleQueue[bool]",
    done: "processes.SimpleQueue[bool]",
) -> None:
    """Train the clients `mine` whenever asked, from `weights`; leave their weighted sum."""
    torch.set_num_threads(1)
    examples = Examples.of(load)
    model = examples.network(load.width)
    parameters = list(model.parameters())
    while asked.get():
        with torch.no_grad():
            for of_all in total:
                of_all.zero_()
        for client in mine:
            part = examples.parts[client]
            with torch.no_grad():
                for own, start in zip(parameters, weights, strict=True):
                    own.copy_(start)
            epoch(model, examples.images, examples.labels, part, load)
            with torch.no_grad():
                for of_all, own in zip(total, parameters, strict=True):
                    of_all.add_(own, alpha=len(part) / load.images)
        done.put(True)


def main() -> None:
    """Measure."""
    load = Load.read(sys.argv[1])
    model = Examples.of(load).network(load.width)
    weights = [w.detach().share_memory_() for w in model.parameters()]
    context = processes.get_context("spawn")
    done = context.SimpleQueue()
    workers, totals, asked = [], [], []
    for number in range(load.cores):
        totals.append([torch.zeros_like(w).share_memory_() for w in weights])
        asked.append(context.SimpleQueue())
        mine = range(number, load.clients, load.cores)
        told = (load, mine, weights, totals[-1], asked[-1], done)
        workers.append(context.Process(target=work, args=told))
        workers[-1].start()
    clock = Clock()
    for _ in range(load.rounds):
        for queue in asked:
            queue.put(True)
        for _ in workers:
            done.get()
        for position, weight in enumerate(weights):
            weight.copy_(sum(total[position] for total in totals))
        clock.round()
    for queue in asked:
        queue.put(False)
    for worker in workers:
        worker.join()
    clock.finish(named(model), Path(sys.argv[2]))  # whose memory the weights are


if __name__ == "__main__":
    main()
