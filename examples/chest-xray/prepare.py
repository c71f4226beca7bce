"""Write chest.npz: chest X-rays of three hospitals of unequal size, one with a scanner of its own.

    python prepare.py [pneumoniamnist.npz] [--sites] [--alike] [--images N]

It takes PneumoniaMNIST's file, or one of the same form. Where that is not there, a small stand-in
is generated: two dark ovals, with a bright patch for "pneumonia". It is no medical data.
"""

import argparse
from pathlib import Path

import numpy as np

Arrays = dict[str, "np.ndarray"]
SHARES = {"hospital-a": 0.5, "hospital-b": 0.3, "hospital-c": 0.2}
INVERTED = "hospital-c"  # its scanner writes MONOCHROME1: what is white elsewhere is black


def stand_in(num_train: int = 600, num_test: int = 160) -> Arrays:
    """Return generated images of PneumoniaMNIST's form."""
    draws = np.random.default_rng(0)
    arrays = {}
    rows, columns = np.mgrid[:28, :28]
    lungs = sum(np.exp(-((columns - c) ** 2) / 18 - (rows - 14) ** 2 / 90) for c in (8, 20))
    for part, count in (("train", num_train), ("test", num_test)):
        labels = draws.permutation(np.arange(count) % 2)
        images = 170 - 90 * lungs + draws.normal(0, 14, (count, 28, 28))
        for i in np.flatnonzero(labels):
            row, column = draws.integers(8, 20), draws.choice([8, 20])
            images[i] += 80 * np.exp(-((columns - column) ** 2 + (rows - row) ** 2) / 14)
        arrays[f"{part}_images"] = images.clip(0, 255).astype(np.uint8)
        arrays[f"{part}_labels"] = labels.astype(np.uint8)
    return arrays


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", nargs="?", type=Path, default=Path("pneumoniamnist.npz"))
    parser.add_argument("--sites", action="store_true", help="also one file for each hospital")
    parser.add_argument("--alike", action="store_true", help="all scanners write the same")
    parser.add_argument("--images", type=int, default=0, help="so many training images alone")
    asked = parser.parse_args()
    if asked.source.is_file():
        with np.load(asked.source) as archive:
            kept = [f"{part}_{kind}" for part in ("train", "test") for kind in ("images", "labels")]
            arrays = {key: archive[key] for key in kept}
        what = str(asked.source)
    else:
        arrays, what = stand_in(), f"a generated stand-in, for there is no {asked.source}"

    # Which hospital each training image is of: the file does not say, so it is drawn.
    images, labels = arrays["train_images"], arrays["train_labels"].reshape(-1)
    order = np.random.default_rng(0).permutation(len(images))[: asked.images or None]
    images, labels = images[order], labels[order]
    ends = (np.cumsum(list(SHARES.values())) * len(images)).round().astype(int)
    hospitals = np.searchsorted(ends, np.arange(len(images)), side="right")
    if not asked.alike:
        theirs = hospitals == list(SHARES).index(INVERTED)
        images[theirs] = 255 - images[theirs]
    names = np.array(["normal", "pneumonia"])
    test = {key: arrays[key] for key in ("test_images", "test_labels")}
    np.savez_compressed(
        "chest.npz",
        train_images=images, train_labels=labels, train_ids=hospitals, class_names=names, **test,
    )  # fmt: skip
    print(f"chest.npz: {len(images):,} + {len(test['test_images'])} images, {what}")
    for number, name in enumerate(SHARES):
        own = hospitals == number
        inverted = ", inverted" if name == INVERTED and not asked.alike else ""
        print(f"  {name} (client-{number}): {own.sum():,} images{inverted}")
        if asked.sites:
            np.savez_compressed(
                f"{name}.npz",
                train_images=images[own], train_labels=labels[own], class_names=names,
            )  # fmt: skip


if __name__ == "__main__":
    main()
