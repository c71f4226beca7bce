"""How near distilled images are to real ones.

    python benchmarks/distilled.py HOME --data-dir DATA

HOME is the home of a training with clients simulated on this machine: `~/.efface`, or a cell's
`home-*` of a benchmark. Every synthetic image's distance to the nearest real image of its class and
client, as a share of that real image's distance to its own nearest neighbour: 0 is the real image
itself, 1 an image as far from it as the next real one.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from client import wire
from client.data.site import open_site
from client.learning.models import ModelSpec
from client.steps.measuring import Describe
from client.store import Store
from server.settings import parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--data-dir", default="")
    options = parser.parse_args()

    version = options.home / "versions" / "v0001" / "card.json"
    if not version.exists():
        raise SystemExit(f"home must hold a trained version, got {options.home} without v0001")
    card = json.loads(version.read_text())["card"]
    job = parse({**card["settings"], "engine": "inline"}).common(ModelSpec.of_card(card["model"]))
    stores = sorted(
        path for path in (options.home / "clients").glob("*/*") if Store(path).generations()
    )
    found = []
    for path in stores:
        newest = Store(path).generations()[-1]
        held = Store(path).load(newest.lineage, model=newest.model)
        told = Describe(
            client=path.name,
            fingerprint=wire.fingerprint(),
            request="r0001",
            lineage=newest.lineage,
            phase="describe",
            **job,
        ).check()
        place = {"partition-id": int(path.name.rpartition("-")[2]), "data-dir": options.data_dir}
        site = open_site(told, place)
        if held is None:
            raise SystemExit(f"{path} must hold a synthetic set that can be read, got none")
        for label in held.labels.unique():
            real = site.images(site.train.where(site.train.labels == label))
            if len(real) > 1:
                found.append(shares(held.images[held.labels == label], real))
    if not found:
        raise SystemExit("home must hold synthetic sets of simulated clients, got none")
    share = torch.cat(found)
    at = [f"{share.quantile(q):.2f}" for q in (0.5, 0.9, 1.0)]
    print(
        f"{len(share)} images of {len(stores)} clients: median {at[0]}, 90 % {at[1]}, most {at[2]}"
    )


def shares(synthetic: Tensor, real: Tensor) -> Tensor:
    """Return `(n,)` shares of `(n, C, H, W)` synthetic and `(m, C, H, W)` real images, m > 1."""
    flat = real.flatten(1).double()
    near, which = torch.cdist(synthetic.flatten(1).double(), flat).min(dim=1)
    others = torch.cdist(flat[which], flat).scatter(1, which[:, None], torch.inf)
    # Of two equal real images neither has a neighbour to measure by.
    neighbour = others.min(dim=1).values
    return (near / neighbour)[neighbour > 0]


if __name__ == "__main__":
    main()
