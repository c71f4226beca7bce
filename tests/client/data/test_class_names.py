"""Classes by name: how folders are numbered and what is passed over, and names on the wire."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data import class_names
from client.data.datasets import load
from client.errors import DataError


def folders(root: Path, *names: str, part: str = "train") -> str:
    """Write one image a class, all its pixels but the last the class's position in `names`."""
    for grey, name in enumerate(names):
        (root / part / name).mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8), grey, np.uint8)
        pixels[-1, -1] = 255
        Image.fromarray(pixels).save(root / part / name / "a.png")
    return f"folder:{root}"


# ---- folders -------------------------------------------------------------------------------------


def test_numbered_class_folders_keep_their_numbers(tmp_path: Path) -> None:
    data = load(folders(tmp_path, *map(str, range(12))))
    # The image in folder k is grey k all over, and its label is k.
    assert data.train.inputs[:, 0, 0, 0].tolist() == data.train.labels.tolist() == [*range(12)]
    assert data.class_names == tuple(map(str, range(12)))


def test_numbers_inside_names_count_as_numbers_and_texts_are_ordered_as_they_are_spelt(
    tmp_path: Path,
) -> None:
    data = load(folders(tmp_path, "grade10", "grade2", "b", "B", "a"))
    assert data.class_names == ("B", "a", "b", "grade2", "grade10")


def test_all_parts_number_the_classes_as_the_training_part_does(tmp_path: Path) -> None:
    names = tuple(map(str, range(12)))
    folders(tmp_path, *names)
    data = load(folders(tmp_path, *names, part="test"))
    assert data.test.inputs[:, 0, 0, 0].tolist() == data.test.labels.tolist() == [*range(12)]


def test_what_systems_leave_behind_is_no_class_and_no_image_and_is_counted(
    tmp_path: Path,
) -> None:
    name = folders(tmp_path, "cat", "dog")
    for folder in ("__MACOSX", ".ipynb_checkpoints", "@eaDir"):
        (tmp_path / "train" / folder).mkdir()
        (tmp_path / "train" / folder / "a.png").write_bytes(b"no image")
    for file in ("Thumbs.db", ".DS_Store", "desktop.ini", "README", "readme.md", "notes.txt"):
        (tmp_path / "train" / "cat" / file).write_bytes(b"no image")

    data = load(name)

    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1]
    (note,) = data.notes  # 3 folders and 6 files
    assert note.startswith("9 files and folders that hold no images were passed over: .DS_Store, ")


def test_nothing_is_said_where_nothing_is_passed_over(tmp_path: Path) -> None:
    assert load(folders(tmp_path, "cat", "dog")).notes == ()


def test_a_file_that_may_be_an_image_or_labels_is_still_refused(tmp_path: Path) -> None:
    name = folders(tmp_path, "cat", "dog")
    (tmp_path / "train" / "cat" / "b.mat").write_bytes(b"MATLAB")
    with pytest.raises(DataError, match=r"b\.mat \(no image by its name \(\.png, "):
        load(name)


# ---- other sources -------------------------------------------------------------------------------


def npz(path: Path, **more: object) -> str:
    images, labels = np.zeros((3, 8, 8), np.uint8), np.arange(3)
    np.savez(path / "own.npz", train_images=images, train_labels=labels, **more)  # type: ignore[arg-type]
    return f"npz:{path / 'own.npz'}"


def test_an_npz_file_may_name_its_classes(tmp_path: Path) -> None:
    assert load(npz(tmp_path)).class_names == ("0", "1", "2")
    named = load(npz(tmp_path, class_names=np.array(["no finding", "oedema", "Bruch"])))
    assert named.class_names == ("no finding", "oedema", "Bruch")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "class_names must hold one name for each of 3 classes, got 2"),
        (["a", "b", "a"], "class names must differ, got 'a' for classes 0 and 2"),
        (["a", " ", "b"], "class names must have 1 to 200 characters, got 1 for class 1"),
        (["a", "b", "c\x1b[2J"], r"must hold no control characters, got 'c\\x1b\[2J' for class 2"),
        ([1, 2, 3], "class names must be texts, got 1 for class 0"),
    ],
)
def test_names_that_cannot_be_shown_or_compared_are_refused(
    tmp_path: Path, names: list[object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(npz(tmp_path, class_names=np.array(names)))


def test_the_digits_are_called_by_their_numbers() -> None:
    assert load("digits").class_names == tuple("0123456789")


def test_published_names_are_one_a_class() -> None:
    assert class_names.FASHION_MNIST[7] == "Sneaker"
    assert class_names.CIFAR10[3] == "cat"
    assert len(set(class_names.FASHION_MNIST)) == len(set(class_names.CIFAR10)) == 10


# ---- the wire ------------------------------------------------------------------------------------


def sent(names: object) -> bytes:
    return json.dumps(names).encode()


def test_names_arrive_as_they_were_sent() -> None:
    names = ("T-shirt/top", "Größe", "日本")
    array = class_names.to_array(names)
    assert (str(array.dtype), array.dim()) == ("torch.uint8", 1)
    data = array.numpy().tobytes()
    assert class_names.from_bytes(data, num_classes=3, where="site-a") == names


def test_names_written_composed_and_decomposed_are_equal() -> None:
    composed, decomposed = sent(["Gr\u00f6\u00dfe"]), sent(["Gro\u0308\u00dfe"])
    found = [class_names.from_bytes(d, num_classes=1, where="s") for d in (composed, decomposed)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe", "class names must be JSON"),
        (b"[" * 100_000, "class names must be JSON"),
        (sent({"0": "a"}), "must be a list of 1 to 3, one for each class of the model, got dict"),
        (sent([]), "must be a list of 1 to 3, one for each class of the model, got 0 of them"),
        (sent(list("abcd")), "got 4 of them"),
        (sent(["a", 1]), "must be texts, got 1 for class 1"),
        (sent(["a", "b\n"]), "no control characters"),
        (sent(["a", "\u202eb"]), "no control characters"),
        (sent(["x" * 201]), "1 to 200 characters, got 201"),
        (b" " * (class_names.MAX_BYTES + 1), "must take at most 4000000 bytes"),
    ],
)
def test_what_a_site_sends_is_checked_before_it_is_used(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"site-a: .*{message}"):
        class_names.from_bytes(data, num_classes=3, where="site-a")
