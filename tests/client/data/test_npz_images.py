"""Arrays as they really come: other types and sizes, volumes, labels of every form."""

from pathlib import Path

import numpy as np
import pytest

from client.data.datasets import load
from client.data.splits import Data
from client.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 8, 8), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def read(folder: Path, query: str = "", **arrays: object) -> Data:
    path = folder / f"{len(list(folder.iterdir()))}.npz"
    np.savez(path, **{"train_images": IMAGES, "train_labels": LABELS, **arrays})  # type: ignore[arg-type]
    return load(f"npz:{path}?{query}")


def said(data: Data, words: str) -> bool:
    return any(words in note for note in data.notes)


# ---- D10: types and sizes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "query", "black_grey_white", "note"),
    [
        (
            np.array([0, 0.2, 1], np.float32),
            "",
            [0, 51, 255],
            "float32 images were scaled from 0..1",
        ),
        (np.array([0, 32896, 65535], np.uint16), "", [0, 128, 255], "scaled from 0..65535"),
        (np.array([False, True, True]), "", [0, 255, 255], "bool images were scaled from 0..1"),
        (
            np.array([0, 51, 255]),
            "range=0..255",
            [0, 51, 255],
            "int64 images were scaled from 0..2",
        ),
        (np.array([-1000, -300, 400], np.int16), "range=-1000..400", [0, 128, 255], "-1000..400"),
        (np.array([-9, 1, 9.0]), "range=0..1", [0, 255, 255], "scaled from 0..1"),  # clipped
    ],
)
def test_other_types_are_scaled_from_a_range_that_is_known(
    tmp_path: Path, images: np.ndarray, query: str, black_grey_white: list[int], note: str
) -> None:
    made = np.concatenate([images, images, images[:2]])[None, None].repeat(6, 0).repeat(8, 1)
    data = read(tmp_path, query, train_images=made)
    assert data.train.inputs[0, 0, 0, :3].tolist() == black_grey_white
    assert said(data, note)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(int), r"got int64 from 0 to 255; say which values .*: \?range=0\.\.255"),
        (IMAGES / 127.5 - 1, r"floats in \[0, 1\], got float64 from -1 to 1; .*\?range=-1\.\.1"),
        (IMAGES.astype(np.int16) - 1000, r"got int16 from -1000 to -745; .*\?range=LOW\.\.HIGH"),
        (IMAGES.astype(np.uint16) * 16, r"got values up to 4080; write \?range=0\.\.4095 at every"),
        (IMAGES[:, None].repeat(3, 1), r"channels last: images\.transpose\(0, 2, 3, 1\)"),
        (IMAGES[..., None].repeat(8, 3), r"for volumes take a slice of each, or write a task of"),
    ],
)
def test_what_is_not_known_is_asked_for(tmp_path: Path, images: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, train_images=images)


def test_all_parts_are_scaled_alike(tmp_path: Path) -> None:
    tests = {"test_images": np.full((1, 8, 8), 0.2), "test_labels": np.array([0])}
    data = read(tmp_path, train_images=IMAGES / 255, **tests)
    assert data.test.inputs.unique().tolist() == [51]
    with pytest.raises(
        DataError, match="uint8 in all parts, or all of one other type, got float64"
    ):
        read(tmp_path, **tests)


def test_arrays_are_resized_padded_and_made_grey(tmp_path: Path) -> None:
    wide = np.full((6, 8, 16, 3), (255, 0, 0), np.uint8)
    data = read(tmp_path, "size=8&color=grey", train_images=wide)
    # 16 becomes 8, 8 becomes 4: two rows of black above and below; red is 76 in grey.
    assert data.train.inputs[0, 0, :, 0].tolist() == [0, 0, 76, 76, 76, 76, 0, 0]
    assert said(data, "6 images were resized to 8x8, 6 of them not square and padded with black")


def test_grey_arrays_become_rgb_on_request(tmp_path: Path) -> None:
    data = read(tmp_path, "color=rgb")
    assert data.train.inputs.shape == (6, 3, 8, 8)
    assert data.train.inputs[0, 1].tolist() == IMAGES[0].tolist()


def test_uint8_without_a_word_is_taken_as_it_is(tmp_path: Path) -> None:
    data = read(tmp_path)
    assert data.train.inputs[:, 0].tolist() == IMAGES.tolist()
    assert data.notes == ()
    with pytest.raises(DataError, match="range must be left out for uint8 images"):
        read(tmp_path, "range=0..15")


# ---- D6, D7, D11 ---------------------------------------------------------------------------------


def test_a_last_axis_of_three_is_rgb_and_this_is_said(tmp_path: Path) -> None:
    three = IMAGES[..., None].repeat(3, 3)
    words = "last axis, 3, was read as red, green and blue"
    assert said(read(tmp_path, train_images=three), words)
    assert not said(read(tmp_path, "color=rgb", train_images=three), words)


def test_deep_numbers_with_a_last_axis_of_three_are_no_colours_unless_said(tmp_path: Path) -> None:
    three = np.full((6, 8, 8, 3), 40000, np.uint16)
    with pytest.raises(
        DataError, match=r"must be uint8 to be taken for RGB, got uint16 \(6, 8, 8, 3"
    ):
        read(tmp_path, train_images=three)
    assert read(tmp_path, "color=rgb", train_images=three).train.inputs.shape == (6, 3, 8, 8)


def test_images_of_one_value_are_counted(tmp_path: Path) -> None:
    images = IMAGES.copy()
    images[[2, 4]] = 0
    assert read(tmp_path, train_images=images).notes == (
        "2 images are of one value all over: that at position 2 of train_images, ...",
    )


def test_images_with_nan_are_left_out_with_their_labels_on_request(tmp_path: Path) -> None:
    images = IMAGES / 255
    images[3, 0, 0] = np.nan
    with pytest.raises(DataError, match="1 NaN values in 1 images, the first at position 3; mend"):
        read(tmp_path, train_images=images)
    data = read(tmp_path, "skip-broken=1", train_images=images, train_ids=np.arange(6))
    assert data.train.labels.tolist() == [0, 1, 2, 1, 2]
    assert data.train.ids.tolist() == [0, 1, 2, 4, 5]
    assert data.train.inputs[3, 0].tolist() == IMAGES[4].tolist()
    assert said(data, "1 images with NaN pixels were left out: train 3")


# ---- D5, D13: labels -----------------------------------------------------------------------------


def test_labels_from_one_up_are_no_class_more(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"must be 0 to 3 with none left out, got none of 0; if this"
    ):
        read(tmp_path, train_labels=LABELS + 1)
    data = read(tmp_path, "labels=named", train_labels=LABELS + 1)
    assert (data.num_classes, data.class_names) == (3, ("1", "2", "3"))
    assert data.train.labels.tolist() == LABELS.tolist()


def test_labels_with_gaps_need_a_word(tmp_path: Path) -> None:
    gaps = np.array([0, 1, 5, 0, 1, 5])
    with pytest.raises(DataError, match=r"got none of 2, 3, 4; .* store num_classes=6 "):
        read(tmp_path, train_labels=gaps)
    assert read(tmp_path, train_labels=gaps, num_classes=6).num_classes == 6
    assert read(tmp_path, train_labels=gaps, class_names=np.array(list("abcdef"))).num_classes == 6
    assert read(tmp_path, "labels=named", train_labels=gaps).class_names == ("0", "1", "5")


@pytest.mark.parametrize("kind", ["U", "S"])
def test_labels_that_are_names_are_numbered_in_natural_order(tmp_path: Path, kind: str) -> None:
    names = np.array(["grade10", "grade2", "none"] * 2).astype(kind)
    data = read(tmp_path, train_labels=names)
    assert data.class_names == ("grade2", "grade10", "none")
    assert data.train.labels.tolist() == [1, 0, 2, 1, 0, 2]
    assert said(data, "numbered in their natural order: 0 grade2, 1 grade10, 2 none")


def test_names_are_numbered_as_class_names_says(tmp_path: Path) -> None:
    names = np.array(["b", "a", "b"] * 2)
    data = read(tmp_path, train_labels=names, class_names=np.array(["b", "c", "a"]))
    assert data.train.labels.tolist() == [0, 2, 0] * 2
    assert data.num_classes == 3
    with pytest.raises(
        DataError, match=r"labels must be those of training \(b, c\), got 'a'; store"
    ):
        read(tmp_path, train_labels=names, class_names=np.array(["b", "c"]))


@pytest.mark.parametrize("kind", [int, bool, np.float32])
def test_one_hot_labels_are_as_many_classes_as_they_have_columns(
    tmp_path: Path, kind: type
) -> None:
    data = read(tmp_path, train_labels=np.eye(4)[LABELS].astype(kind))
    assert data.num_classes == 4  # though none is of the last
    assert data.train.labels.tolist() == LABELS.tolist()
    assert said(data, "labels are one-hot, and were read as the numbers 0 to 3")


def test_several_labels_an_image_are_pointed_to_a_task_of_ones_own(tmp_path: Path) -> None:
    several = np.eye(3, dtype=int)[LABELS]
    several[0] = 1
    with pytest.raises(
        DataError, match=r"for 1 of 6 images; .* write a task of your own \(--task\)"
    ):
        read(tmp_path, train_labels=several)


def test_true_and_false_are_two_classes(tmp_path: Path) -> None:
    data = read(tmp_path, train_labels=LABELS == 1)
    assert data.num_classes == 2
    assert data.train.labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert said(data, "false is class 0, true class 1")


def test_whole_floats_are_numbers(tmp_path: Path) -> None:
    data = read(tmp_path, train_labels=LABELS[:, None].astype(float))
    assert data.train.labels.tolist() == LABELS.tolist()
    with pytest.raises(DataError, match="labels must be integers, got float64"):
        read(tmp_path, train_labels=LABELS + 0.5)
