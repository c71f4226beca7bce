"""Data sets load as documented, and a broken file gives an error that names it.

The published sets' real files are used where EFFACE_TEST_DATA names a folder that holds them packed
(MNIST/raw/*.gz, cifar-10-batches-py/*.xz); without it those tests are skipped.
"""

import gzip
import hashlib
import lzma
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from client.data.datasets import NAMES, load, normalise, unpack
from client.errors import BadSetting, DataError
from client.torchvision_shim import import_torchvision

REAL = Path(os.environ.get("EFFACE_TEST_DATA", "/nonexistent"))


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- normalise ---------------------------------------------------------------------------------


def test_normalise_matches_the_hand_computation():
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)  # (1, 2, 1, 2)

    result = normalise(images, mean=(0.5, 0.2), std=(0.5, 0.1))

    # (0 - .5) / .5, (1 - .5) / .5; 51 / 255 = .2, 102 / 255 = .4: (.4 - .2) / .1
    expected = torch.tensor([[[[-1.0, 1.0]], [[0.0, 2.0]]]])
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    assert result.dtype == torch.float32
    assert images.flatten().tolist() == [0, 255, 51, 102]


def test_normalise_refuses_other_types_and_channels():
    with pytest.raises(DataError, match=r"images must be uint8, got torch\.float32"):
        normalise(torch.zeros(1, 1, 2, 2), (0.5,), (0.5,))
    with pytest.raises(DataError, match=r"shape \(N, 1, H, W\) .* got \(1, 3, 2, 2\)"):
        normalise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), (0.5,), (0.5,))


# --- digits and names --------------------------------------------------------------------------


def test_digits_keeps_every_sample_in_a_stratified_fifth():
    data = load("digits")

    assert data.train.inputs.shape[1:] == data.test.inputs.shape[1:] == (1, 8, 8)
    assert data.train.inputs.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert len(data.train) + len(data.test) == 1797
    train, test = torch.bincount(data.train.labels), torch.bincount(data.test.labels)
    assert torch.equal(test, (train + test) // 5)
    assert int(data.train.inputs.max()) == 255
    assert (data.num_classes, data.validation, data.train.ids) == (10, None, None)


def test_digits_are_normalised_by_their_own_training_pixels():
    data = load("digits")
    values = normalise(data.train.inputs, data.mean, data.std).double()
    assert float(values.mean()) == pytest.approx(0, abs=1e-6)
    assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_a_process_reads_a_set_once():
    assert load("digits").train.inputs is load("digits").train.inputs


def test_an_unknown_name_lists_the_known_ones():
    message = r"data set must be one of digits, mnist, .*folder:PATH, table:PATH.*, got 'imagenet'"
    with pytest.raises(BadSetting, match=message):
        load("imagenet")
    with pytest.raises(BadSetting, match="must name a path after 'npz:', got 'npz:'"):
        load("npz:")


def test_a_published_set_needs_a_folder():
    with pytest.raises(
        BadSetting, match="data-dir must name a folder for data set 'mnist', got none"
    ):
        load("mnist")


# --- published sets ----------------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">i{values.ndim}i", 0x0800 + values.ndim, *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + values.tobytes())


def write_mnist(root: Path, folder: str = "MNIST") -> Path:
    raw = root / folder / "raw"
    for part, count in (("train", 12), ("t10k", 5)):
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels(count, 28, 28, seed=count))
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return raw


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_missing_files_are_named_with_their_place_and_remedy(tmp_path, name):
    first = {
        "mnist": "MNIST/raw/train-images-idx3-ubyte",
        "fashion-mnist": "FashionMNIST/raw/train-images-idx3-ubyte",
        "cifar10": "cifar-10-batches-py/data_batch_1",
        "cifar100": "cifar-100-python/train",
        "svhn": "train_32x32.mat",
    }[name]
    with pytest.raises(DataError) as caught:
        load(name, tmp_path)
    assert f"data set '{name}' must have all its files under {tmp_path}" in str(caught.value)
    assert f"got none at: {tmp_path / first}, " in str(caught.value)
    assert f"`efface data unpack SRC {tmp_path}`" in str(caught.value)


def test_only_the_missing_file_is_named(tmp_path):
    raw = write_mnist(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"got none at: [^,;]*t10k-labels-idx1-ubyte; put"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_idx_files_are_read(tmp_path, name, folder):
    write_mnist(tmp_path, folder)

    data = load(name, tmp_path)

    assert torch.equal(data.train.inputs, torch.from_numpy(pixels(12, 28, 28, seed=12))[:, None])
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.test.inputs.shape == (5, 1, 28, 28)
    assert len(data.mean) == len(data.std) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda b: b[:-1],
            r"train-images-idx3-ubyte must be 9424 bytes long for shape \(12, 28, 28\), got 9423",
        ),
        (lambda b: b[:10], "train-images-idx3-ubyte must start with a header, got 10 bytes"),
        (
            gzip.compress,
            "train-images-idx3-ubyte must start with the magic number 0x0803, .* still packed",
        ),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, damage, message):
    path = write_mnist(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        load("mnist", tmp_path)


def test_idx_files_of_another_size_or_with_other_labels_are_refused(tmp_path):
    raw = write_mnist(tmp_path)
    write_idx(raw / "t10k-images-idx3-ubyte", pixels(5, 32, 32))
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte must hold 28x28 images, got 32x32"):
        load("mnist", tmp_path)
    write_idx(raw / "t10k-images-idx3-ubyte", pixels(6, 28, 28))
    with pytest.raises(DataError, match=r"labels must have shape \(6,\) .* got \(5,\)"):
        load("mnist", tmp_path)
    write_idx(raw / "t10k-images-idx3-ubyte", pixels(5, 28, 28))
    write_idx(raw / "t10k-labels-idx1-ubyte", np.array([0, 1, 17, 2, 3], dtype=np.uint8))
    with pytest.raises(DataError, match=r"test: labels must be in \[0, 10\), got 17 at position 2"):
        load("mnist", tmp_path)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write tiny files in CIFAR-10's format, and let torchvision expect their checksums."""
    kind = import_torchvision("datasets").CIFAR10
    folder = root / kind.base_folder
    folder.mkdir()
    sums = {}
    for file in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        batch = {
            "data": pixels(2, 3072, seed=len(sums)),
            "labels": [3, 4],
            "label_names": list("abc"),
        }
        content = pickle.dumps(batch)
        (folder / file).write_bytes(content)
        sums[file] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(kind, "train_list", [[f, sums[f]] for f, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[f, sums[f]] for f, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})


def test_cifar_files_are_read_channels_first(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)

    data = load("cifar10", tmp_path)

    # A file's row is 1024 red, 1024 green, 1024 blue values: (3, 32, 32) already.
    first = torch.from_numpy(pixels(2, 3072, seed=0)).view(2, 3, 32, 32)
    assert torch.equal(data.train.inputs[:2], first)
    assert data.train.labels.tolist() == [3, 4] * 5
    assert data.test.inputs.shape == (2, 3, 32, 32)
    assert data.train.inputs.is_contiguous()


@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
def test_a_changed_cifar_file_is_named_and_never_unpickled(tmp_path, monkeypatch, file):
    write_cifar10(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=rf"{file} must have MD5 \w+, got a truncated or changed file"
    ):
        load("cifar10", tmp_path)


def test_svhn_is_read_with_ten_as_zero(tmp_path, monkeypatch):
    from scipy.io import savemat

    kind = import_torchvision("datasets").SVHN
    images = pixels(32, 32, 3, 4)  # SVHN's order: (H, W, C, N)
    sums = {}
    for file in ("train_32x32.mat", "test_32x32.mat"):
        savemat(tmp_path / file, {"X": images, "y": np.array([[10], [1], [2], [10]], np.uint8)})
        sums[file] = hashlib.md5((tmp_path / file).read_bytes()).hexdigest()
    monkeypatch.setattr(
        kind,
        "split_list",
        {part: [url, f, sums.get(f, md5)] for part, (url, f, md5) in kind.split_list.items()},
    )

    data = load("svhn", tmp_path)

    assert torch.equal(data.train.inputs, torch.from_numpy(images.transpose(3, 2, 0, 1).copy()))
    assert data.train.labels.tolist() == [0, 1, 2, 0]

    (tmp_path / "other").mkdir()
    for file in sums:
        (tmp_path / "other" / file).write_bytes((tmp_path / file).read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train_32x32\.mat must have MD5"):
        load("svhn", tmp_path / "other")


def test_a_failed_download_says_so_and_names_the_files(tmp_path, monkeypatch):
    def offline(self: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(import_torchvision("datasets").MNIST, "download", offline)
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte, .*the download failed: Error down"
    ):
        load("mnist", tmp_path / "new", download=True)


# --- unpack ------------------------------------------------------------------------------------


def pack(folder: Path) -> Path:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "one.gz").write_bytes(gzip.compress(b"first"))
    (folder / "deep" / "er" / "two.xz").write_bytes(lzma.compress(b"second"))
    (folder / "readme.md").write_text("not packed")
    return folder


def test_unpack_keeps_the_tree_and_can_be_repeated(tmp_path):
    source, destination = pack(tmp_path / "source"), tmp_path / "destination"
    expected = [destination / "deep" / "er" / "two", destination / "one"]

    assert unpack(source, destination) == expected
    (destination / "one").write_bytes(b"fi")  # a damaged copy is repaired
    assert unpack(source, destination) == expected

    assert (destination / "one").read_bytes() == b"first"
    assert (destination / "deep" / "er" / "two").read_bytes() == b"second"
    files = sorted(p for p in destination.rglob("*") if p.is_file())
    assert files == expected


def test_unpack_takes_one_file(tmp_path):
    source = pack(tmp_path / "source")
    assert unpack(source / "one.gz", tmp_path / "out") == [tmp_path / "out" / "one"]


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_truncated_archive_is_named_and_leaves_nothing(tmp_path, suffix):
    content = os.urandom(5000)
    packed = {".gz": gzip.compress, ".xz": lzma.compress}[suffix](content)
    (tmp_path / f"data{suffix}").write_bytes(packed[:-700])
    with pytest.raises(DataError, match=rf"data{suffix} must be a complete {suffix} file, got: "):
        unpack(tmp_path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_unpacked_is_refused_before_anything_is_written(tmp_path):
    source, out = pack(tmp_path / "source"), tmp_path / "out"
    with pytest.raises(DataError, match="it does not exist"):
        unpack(tmp_path / "nowhere", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"source must hold \.gz or \.xz files, got none under"):
        unpack(tmp_path / "empty", out)
    (source / "one.xz").write_bytes(lzma.compress(b"also first"))
    with pytest.raises(DataError, match=r"one\.gz and .*one\.xz must not both become"):
        unpack(source, out)
    (source / "one.xz").rename(source / "all.tar.gz")
    with pytest.raises(
        DataError, match=r"got a tar archive; unpack it with: tar -xf .*all\.tar\.gz"
    ):
        unpack(source, out)
    assert not out.exists()


# --- npz ---------------------------------------------------------------------------------------


NO_VAL_TEST = dict.fromkeys(("val_images", "val_labels", "test_images", "test_labels"))


def npz(folder: Path, **changes: object) -> str:
    """Write a valid file, changed as told (None removes a key); return its name for `load`."""
    arrays: dict[str, object] = {
        "train_images": pixels(6, 9, 9),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "val_images": pixels(2, 9, 9, seed=1),
        "val_labels": np.array([[1], [2]], dtype=np.uint8),
        "test_images": pixels(3, 9, 9, seed=2),
        "test_labels": np.array([2, 1, 0]),
        **changes,
    }
    path = folder / "site.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return f"npz:{path}"


def test_an_npz_file_is_read(tmp_path):
    name = npz(tmp_path, train_ids=np.array([7, 7, 8, 8, 9, 9], dtype=np.int32))

    data = load(name)

    assert data.name == name
    assert torch.equal(data.train.inputs, torch.from_numpy(pixels(6, 9, 9))[:, None])
    assert data.train.ids.tolist() == [7, 7, 8, 8, 9, 9]
    assert data.validation.labels.tolist() == [1, 2]  # from shape (N, 1)
    assert data.test.labels.tolist() == [2, 1, 0]
    assert data.num_classes == 3
    assert data.mean[0] == pytest.approx(pixels(6, 9, 9).mean() / 255)
    assert data.std[0] == pytest.approx(pixels(6, 9, 9).std() / 255)


def test_colour_images_are_channels_first_with_statistics_of_each_channel(tmp_path):
    train = pixels(6, 9, 9, 3)
    data = load(
        npz(
            tmp_path,
            train_images=train,
            **NO_VAL_TEST,
        )
    )

    assert torch.equal(data.train.inputs, torch.from_numpy(train.transpose(0, 3, 1, 2).copy()))
    assert data.mean == pytest.approx(tuple(train.mean(axis=(0, 1, 2)) / 255))
    assert data.std == pytest.approx(tuple(train.std(axis=(0, 1, 2)) / 255))
    assert data.validation is None
    assert data.test.inputs.shape == (0, 3, 9, 9)


def test_a_constant_channel_can_be_normalised(tmp_path):
    data = load(npz(tmp_path, train_images=np.full((6, 9, 9), 40, np.uint8)))
    assert bool(torch.isfinite(normalise(data.train.inputs, data.mean, data.std)).all())


def test_num_classes_in_the_file_counts_for_a_site_without_the_last_class(tmp_path):
    assert load(npz(tmp_path, num_classes=np.array(5))).num_classes == 5


def test_a_changed_file_is_read_again(tmp_path):
    assert len(load(npz(tmp_path)).train) == 6
    name = npz(tmp_path, train_images=pixels(4, 9, 9), train_labels=np.array([0, 1, 2, 0]))
    assert len(load(name).train) == 4


NAN = np.full((6, 9, 9), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None}, "must hold train_images and train_labels, got keys .*test_images"),
        ({"test_labels": None}, "must hold test_images and test_labels, got keys"),
        ({"train_images": NAN}, "train: images must be uint8 .* got float32 with 486 NaN values"),
        ({"train_images": pixels(6, 9, 9).astype(int)}, "train: images must be uint8 .* got int64"),
        ({"train_images": pixels(6, 81)}, r"train: images must have shape .* got \(6, 81\)"),
        ({"train_images": pixels(6, 9, 9, 2)}, r"must have shape .* got \(6, 9, 9, 2\)"),
        ({"train_images": pixels(6, 9, 8)}, "train: images must be square, got 9x8; crop, pad"),
        ({"train_images": pixels(5, 9, 9)}, r"labels must have shape \(5,\) .* got \(6,\)"),
        ({"test_images": pixels(3, 8, 8)}, r"test: images must have the training .* \(1, 9, 9\)"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, -2])}, "labels must be at least 0, got -2"),
        ({"train_labels": np.full(6, np.nan)}, "labels must be integers, got float64 with 6 NaN"),
        ({"train_labels": np.zeros(6, int), **NO_VAL_TEST}, "must hold at least 2 classes, got 1"),
        ({"train_labels": np.arange(6) * 10**6}, "train_labels must be below 10000, got 5000000"),
        ({"test_labels": np.array([0, 3, 1])}, r"test: labels must be in \[0, 3\), got 3 at .* 1"),
        ({"num_classes": np.array(2)}, r"train: labels must be in \[0, 2\), got 2 at position 2"),
        ({"num_classes": np.array([3, 3])}, "num_classes must be one integer of at least 2"),
        ({"train_ids": np.arange(5)}, r"train: ids must have shape \(6,\) .* got \(5,\)"),
        ({"train_ids": np.array(list("abcdef"))}, "train: ids must be integers, got <U1"),
        ({"train_labels": np.array([{}] * 6)}, "must be a complete .npz archive of plain arrays"),
        (
            {"train_images": pixels(0, 9, 9), "train_labels": np.zeros(0, int)},
            "train_images must hold at least one image, got none",
        ),
    ],
)
def test_a_bad_npz_file_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(npz(tmp_path, **changes))


def test_a_missing_truncated_or_other_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"npz file must exist, got .*none\.npz"):
        load(f"npz:{tmp_path / 'none.npz'}")
    name = npz(tmp_path)
    path = tmp_path / "site.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        DataError, match=r"site\.npz must be a complete .npz archive, got a truncated"
    ):
        load(name)


def test_a_damaged_array_is_refused(tmp_path):
    name = npz(tmp_path)
    path = tmp_path / "site.npz"
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF  # inside the first array: its checksum no longer fits
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"site\.npz must be a complete .npz archive of plain arrays"
    ):
        load(name)


# --- folders -----------------------------------------------------------------------------------


def picture(path: Path, *shape: int, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(*shape, seed=seed)).save(path)
    return pixels(*shape, seed=seed)


def folders(root: Path) -> Path:
    picture(root / "train" / "cat" / "b.png", 10, 10, seed=1)
    picture(root / "train" / "cat" / "a.png", 10, 10, seed=2)
    picture(root / "train" / "dog" / "c.JPG", 10, 10, seed=3)
    picture(root / "test" / "dog" / "d.png", 10, 10, seed=4)
    return root


def as_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image)[None]


def test_class_folders_are_read_in_order(tmp_path):
    data = load(f"folder:{folders(tmp_path)}")

    assert data.train.labels.tolist() == [0, 0, 1]  # cat, cat, dog
    assert torch.equal(data.train.inputs[0], as_tensor(pixels(10, 10, seed=2)))  # a before b
    assert torch.equal(data.test.inputs[0], as_tensor(pixels(10, 10, seed=4)))
    assert data.test.labels.tolist() == [1]
    assert (data.num_classes, data.validation) == (2, None)


def test_grey_images_beside_colour_ones_become_colour(tmp_path):
    colour = picture(folders(tmp_path) / "train" / "dog" / "z.png", 10, 10, 3, seed=5)

    data = load(f"folder:{tmp_path}")

    assert data.train.inputs.shape == (4, 3, 10, 10)
    assert torch.equal(data.train.inputs[3], torch.from_numpy(colour.transpose(2, 0, 1).copy()))
    assert torch.equal(data.train.inputs[0][0], data.train.inputs[0][2])
    assert data.test.inputs.shape == (1, 3, 10, 10)


def test_an_empty_class_folder_keeps_its_number_and_an_absent_test_part_is_empty(tmp_path):
    picture(tmp_path / "train" / "zebra" / "a.png", 10, 10)
    (tmp_path / "train" / "ape").mkdir()
    data = load(f"folder:{tmp_path}")
    assert data.train.labels.tolist() == [1]
    assert data.num_classes == 2
    assert data.test.inputs.shape == (0, 1, 10, 10)


def test_an_added_image_is_seen(tmp_path):
    name = f"folder:{folders(tmp_path)}"
    assert len(load(name).train) == 3
    picture(tmp_path / "train" / "dog" / "new.png", 10, 10)
    assert len(load(name).train) == 4


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: picture(root / "train" / "dog" / "e.png", 12, 10),
            r"one size, got 10x10 in .*a\.png and 10x12 in .*e\.png; have them resized: \?size=64",
        ),
        (
            lambda root: truncate(root / "train" / "cat" / "b.png"),
            r"files must be complete images, got .*b\.png \(.*\); mend or remove them, or leave",
        ),
        (
            lambda root: (root / "train" / "cat" / "a.png").write_text("hello"),
            r"files must be complete images, got .*a\.png \(cannot identify",
        ),
        (
            lambda root: (root / "train" / "cat" / "note.doc").write_text("hello"),
            r"note\.doc \(no image by its name \(\.png, .*\); convert or move it\); mend or remove",
        ),
        (
            lambda root: picture(root / "test" / "cow" / "e.png", 10, 10),
            r"test must hold only the class folders of train \(cat, dog\), got cow",
        ),
        (
            lambda root: (root / "train").rename(root / "training"),
            r"must hold a folder train with one folder a class, got no .*train",
        ),
    ],
)
def test_a_bad_folder_is_refused(tmp_path, damage, message):
    damage(folders(tmp_path))
    with pytest.raises(DataError, match=message):
        load(f"folder:{tmp_path}")


def test_folders_without_classes_or_images_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train must hold one folder a class, got none"):
        load(f"folder:{tmp_path}")
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match="train must hold at least one image, got none"):
        load(f"folder:{tmp_path}")


# --- torchvision's import ----------------------------------------------------------------------

HALF_IMPORTED = """
import sys
try:
    import torchvision
    print("works by itself")
except RuntimeError as error:
    assert "torchvision::nms does not exist" in str(error), error
    assert "torchvision.extension" in sys.modules and "torchvision" not in sys.modules
"""
ONE_DECLARED = """
import torch
if "works by itself" not in seen:
    other = torch.library.Library("torchvision", "DEF")
    other.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
THREADS = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: import_torchvision(), range(8)))
"""


@pytest.mark.parametrize("before", ["", HALF_IMPORTED, HALF_IMPORTED + ONE_DECLARED, THREADS])
def test_torchvision_imports_in_a_fresh_process(before):
    """Alone; after a failed import; with an operator declared by somebody else; in threads."""
    script = f"""
from client.torchvision_shim import import_torchvision
seen = []
print = seen.append
{before}
vision = import_torchvision()
assert import_torchvision() is vision
assert import_torchvision("datasets").MNIST and import_torchvision("transforms")
assert import_torchvision("models").resnet18(weights=None).fc.out_features == 1000
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


# --- real files --------------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / "MNIST").is_dir(), reason="EFFACE_TEST_DATA holds no MNIST")
def test_real_mnist_unpacks_and_has_the_stated_statistics(tmp_path):
    unpack(REAL / "MNIST", tmp_path / "MNIST")
    data = load("mnist", tmp_path)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    values = data.train.inputs.double() / 255
    assert float(values.mean()) == pytest.approx(data.mean[0], abs=5e-5)
    assert float(values.std()) == pytest.approx(data.std[0], abs=5e-5)


@pytest.mark.skipif(
    not (REAL / "cifar-10-batches-py").is_dir(), reason="EFFACE_TEST_DATA holds no CIFAR-10"
)
def test_real_cifar10_unpacks_and_has_the_stated_statistics(tmp_path):
    unpack(REAL / "cifar-10-batches-py", tmp_path / "cifar-10-batches-py")
    data = load("cifar10", tmp_path)
    assert torch.equal(torch.bincount(data.train.labels), torch.full((10,), 5000))
    assert torch.equal(torch.bincount(data.test.labels), torch.full((10,), 1000))
    values = data.train.inputs.float().transpose(0, 1).flatten(1).double() / 255
    assert values.mean(dim=1).tolist() == pytest.approx(data.mean, abs=1e-4)
    assert values.std(dim=1).tolist() == pytest.approx(data.std, abs=1e-4)


@pytest.mark.skipif(
    not (REAL / "pneumoniamnist-balanced").is_dir(), reason="EFFACE_TEST_DATA holds no X-rays"
)
def test_a_real_medical_npz_file_is_read():
    data = load(f"npz:{REAL / 'pneumoniamnist-balanced' / 'pneumoniamnist.npz'}")
    assert (len(data.train), len(data.validation), len(data.test)) == (2428, 270, 468)
    assert (data.num_classes, tuple(data.train.inputs.shape[1:])) == (2, (1, 28, 28))
