"""A fingerprint belongs to the content of data, not to their name or place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from client.data import datasets
from client.data.identity import SKETCH, class_identities, class_sketches, identity, overlap
from client.data.splits import Data, Examples


def digits() -> Data:
    return datasets.load("digits")


def with_train(images: torch.Tensor, labels: torch.Tensor) -> Data:
    return replace(digits(), train=Examples(images, labels, None))


def test_the_same_content_under_another_name_is_the_same_data(tmp_path: Path) -> None:
    train = digits().train
    for name in ("one.npz", "other.npz"):
        np.savez(
            tmp_path / name,
            train_images=train.inputs.permute(0, 2, 3, 1).numpy(),
            train_labels=train.labels.numpy(),
        )
    one, other = (datasets.load(f"npz:{tmp_path / name}") for name in ("one.npz", "other.npz"))
    assert one.name != other.name
    assert identity(one) == identity(other) == identity(digits())
    assert len(identity(one)) == 64


def test_one_pixel_one_label_and_the_shape_tell() -> None:
    train = digits().train
    images, labels = train.inputs.clone(), train.labels.clone()
    images[0, 0, 0, 0] ^= 1
    labels[0] = (labels[0] + 1) % 10
    wide = train.inputs.reshape(-1, 1, 4, 16)
    found = {
        identity(digits()),
        identity(with_train(images, train.labels)),
        identity(with_train(train.inputs, labels)),
        identity(with_train(wide, train.labels)),
    }
    assert len(found) == 4


def test_test_images_do_not_enter() -> None:
    assert identity(replace(digits(), test=digits().train)) == identity(digits())


def test_a_class_is_known_in_any_order_number_and_company() -> None:
    train = digits().train
    whole = class_identities(digits())
    assert len(set(whole.values())) == 10
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    assert class_identities(with_train(train.inputs[order], train.labels[order])) == whole
    nine = train.labels == 9
    alone = with_train(train.inputs[nine], torch.full((int(nine.sum()),), 2))
    assert class_identities(alone) == {2: whole[9]}
    one_less = with_train(train.inputs[nine][1:], train.labels[nine][1:])
    assert class_identities(one_less)[9] != whole[9]


def test_a_sketch_tells_how_many_of_a_classs_images_are_there() -> None:
    data = digits()
    sketch = class_sketches(data)[9]
    assert len(sketch) == SKETCH
    assert overlap(data, sketch) == 1.0
    train = data.train
    rest = train.labels != 9
    assert overlap(with_train(train.inputs[rest], train.labels[rest]), sketch) == 0.0
    # Neither the images' order nor their numbers matter.
    turned = with_train(train.inputs.flip(0), 9 - train.labels.flip(0))
    assert overlap(turned, sketch) == 1.0
    assert class_sketches(turned)[0] == sketch
