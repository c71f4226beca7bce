"""What Original's row of the last layer makes of turned features, image by image.

    python benchmarks/turned.py HOME --data-dir DATA --class 9 --model sga=v0002 --model again=FILE

The measure *turned head* is an accuracy: it counts the images of the forgotten class that
Original's row wins over the model's own rows, on features turned onto Original's. Whether it wins
depends on how loud the row is, and so on how far two models' features agree in all. So beside it
stand the shares of other classes that the row wins, and, which no loudness changes, how well it
orders images: the area under the ROC curve between the forgotten class and all others, and between
it and the other class that Original takes for it most often. All test images are looked at, and
bases are found on other images than the measure's, so that its own number differs by some points.

Before these stand the measure *head back*, Original's row on features as they are, and what it
would be if the mean of the features of retained classes were moved back to Original's: a change of
all images alike hides a class from the row, and forgets nothing. Then comes the measure *matched
head*.

HOME is the home of a training: `~/.efface`, or a cell's `home-*` of a benchmark. Models are its
versions, or files of a cache of retrained models (`HOME/cache/retrained-*.safetensors`).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from flwr.app import ArrayRecord
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from client.learning.models import ModelSpec, traced
from client.seeds import generator
from client.wire import ForgetSpec
from server.evidence.features import found_head
from server.evidence.features.layers import features
from server.evidence.features.matched_head import matching
from server.evidence.features.measures import ALIGNED
from server.evidence.features.turned_head import turn
from server.evidence.measures import Judge
from server.nodes.federation import from_numpy
from server.requests.data import server_data
from server.requests.workspace import Workspace
from server.settings import parse
from server.storage.home import Home
from server.storage.registry import unpack

Seen = tuple[Tensor, Tensor, found_head.Layer]  # features (N, F), labels (N,), last layer


def main() -> None:
    """Print a table with a row a model, Original first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--class", dest="label", type=int, required=True)
    parser.add_argument("--original", default="v0001", help="the version before the request")
    parser.add_argument("--model", action="append", default=[], help="NAME=VERSION or NAME=FILE")
    told = parser.parse_args()

    registry = Workspace.open(Home(told.home)).registry
    arrays, card = registry.load(told.original)
    spec = ModelSpec.of_card(card["model"])
    settings = parse({**card["settings"], "data-dir": told.data_dir, "engine": "inline"})
    judge = Judge(spec, server_data(settings), ForgetSpec("class", (told.label,)))
    models = {"Original": from_numpy(arrays)}
    for name, _, place in (one.partition("=") for one in told.model):
        if place.endswith(".safetensors"):
            models[name] = from_numpy(unpack(Path(place).read_bytes(), Path(place))[0])
        else:
            models[name] = from_numpy(registry.load(place)[0])
    seen = {name: looked_at(judge, arrays) for name, arrays in models.items()}
    for line in table(seen, told.label, judge.retained):
        print(line)


def table(seen: Mapping[str, Seen], forgotten: int, retained: Sequence[int]) -> list[str]:
    """Return a Markdown table.

    Args:
        seen: What every model makes of the same images, by name; Original's first.
        forgotten: The class.
        retained: The others.
    """
    first, labels, last = seen["Original"]
    kept = (labels != forgotten).nonzero().flatten()
    draws = generator(0, "turned", forgotten)
    aligned = kept[torch.randperm(len(kept), generator=draws)[:ALIGNED]]
    wins = _outputs(first, last).argmax(dim=1) == forgotten
    shares = {c: float(wins[labels == c].double().mean()) for c in retained}
    near = max(shares, key=lambda c: shares[c])
    lines = [
        f"| model | head back % | head back, mean moved back % | matched head % | turned head % | "
        f"of class {near} % | of all others % | AUC, all others | AUC, class {near} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    gone = labels == forgotten
    for name, (found, _, own) in seen.items():
        shown = found_head.Shown(found[aligned], first[aligned], own, last, [forgotten], retained)
        weight, bias = found_head.rows(shown, turn)
        outputs = found.double() @ weight.T + bias
        won = 100.0 * (outputs.argmax(dim=1) == forgotten).double()
        backs = [
            100.0
            * float((put_back(seen_as, own, last, forgotten)[gone] == forgotten).double().mean())
            for seen_as in (found, moved_back(found, first, aligned))
        ]
        matched = found_head.accuracy(found[gone], labels[gone], shown, matching)
        numbers = (won[gone], won[labels == near], won[~gone])
        ordered = outputs[:, forgotten]
        areas = (
            _area(ordered, labels, forgotten, kept),
            _area(ordered, labels, forgotten, (labels == near).nonzero().flatten()),
        )
        cells = [f"{n:.1f}" for n in backs]
        cells.append("–" if matched is None else f"{matched:.1f}")
        cells += [f"{float(n.mean()):.1f}" for n in numbers]
        cells += [f"{area:.3f}" for area in areas]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def moved_back(found: Tensor, first: Tensor, kept: Tensor) -> Tensor:
    """Return features `(N, F)` whose mean over the images at `kept` is Original's, `first`'s."""
    return found - found[kept].mean(dim=0) + first[kept].mean(dim=0)


def put_back(
    features: Tensor, own: found_head.Layer, original: found_head.Layer, label: int
) -> Tensor:
    """Return what each image is taken for with Original's row of one class, `(N,)`."""
    outputs = _outputs(features, own)
    outputs[:, label] = _outputs(features, original)[:, label]
    return outputs.argmax(dim=1)


def _outputs(features: Tensor, layer: found_head.Layer) -> Tensor:
    return features @ layer[0].T + (0.0 if layer[1] is None else layer[1])


def _area(ordered: Tensor, labels: Tensor, forgotten: int, others: Tensor) -> float:
    index = torch.cat([(labels == forgotten).nonzero().flatten(), others])
    return float(roc_auc_score((labels[index] == forgotten).numpy(), ordered[index].numpy()))


def looked_at(judge: Judge, arrays: ArrayRecord) -> Seen:
    """Return a model's features of all test images, their labels, and its last layer."""
    model, head = judge.model(arrays), str(traced(judge.spec).head)
    if judge.data is None:
        raise SystemExit("data must have a test part, got none")
    count = len(judge.data.test.labels)
    found, labels = features(
        model, head, judge.picker(torch.arange(count)), count, batch_size=judge.batch_size()
    )
    layer = cast(nn.Linear, model.get_submodule(head))
    bias = None if layer.bias is None else layer.bias.detach()
    return found, labels, (layer.weight.detach(), bias)


if __name__ == "__main__":
    main()
