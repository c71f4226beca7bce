"""Folders of images as they really come: turned, of all sizes and kinds, some of them broken.

Every file is written here; what is expected of it can be worked out by hand.
"""

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.datasets import load
from client.data.splits import Data
from client.errors import DataError, ImageSize

GREY = np.arange(100, dtype=np.uint8).reshape(10, 10)
RED, WHITE = (255, 0, 0), (255, 255, 255)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """Return the folder of class 0 of two classes; class 1 has one grey 10x10 image."""
    save(tmp_path / "train" / "dog" / "z.png", Image.fromarray(GREY))
    (tmp_path / "train" / "cat").mkdir()
    return tmp_path / "train" / "cat"


def read(cats: Path, query: str = "") -> Data:
    return load(f"folder:{cats.parent.parent}?{query}")


def first(cats: Path, query: str = "") -> np.ndarray:
    """Return the pixels of the first image: (H, W) if grey, else (H, W, 3)."""
    pixels = read(cats, query).train.inputs[0].permute(1, 2, 0).numpy()
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


# ---- D1: EXIF ------------------------------------------------------------------------------------


def test_an_image_is_turned_as_its_exif_says(cats: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of what is meant lies at the right: turn by 90 degrees clockwise
    save(cats / "a.png", Image.fromarray(GREY), exif=exif)
    assert first(cats).tolist() == np.rot90(GREY, -1).tolist()


def test_rows_and_columns_are_those_of_the_upright_image(cats: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(cats / "a.png", Image.fromarray(np.zeros((10, 20), np.uint8)), exif=exif)
    with pytest.raises(ImageSize, match=r"got 10x20 in .*a\.png and 10x10 in .*z\.png"):
        read(cats)


# ---- D2, D11: what cannot be read ----------------------------------------------------------------


def bomb(path: Path) -> Path:
    """Write the head of a PNG of 20000 x 20000 pixels, and none of them."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def truncated(path: Path) -> Path:
    save(path, Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 10), np.uint8)))
    path.write_bytes(path.read_bytes()[:-40])
    return path


def test_a_bomb_is_named(cats: Path) -> None:
    bomb(cats / "bomb.png")
    with pytest.raises(DataError, match=r"got .*bomb\.png \(too many pixels: .*400000000 pixels"):
        read(cats)


def test_all_broken_files_are_named_at_once(cats: Path) -> None:
    truncated(cats / "a.png")
    bomb(cats / "b.png")
    (cats / "c.png").write_text("hello")
    with pytest.raises(DataError) as caught:
        read(cats)
    assert "got 3 that are not: " in str(caught.value)
    assert "a.png (image file is truncated); " in str(caught.value)
    assert "c.png (cannot identify" in str(caught.value)
    assert str(caught.value).endswith("leave them out and say so: ?skip-broken=1")


def test_broken_files_are_left_out_on_request_and_listed(cats: Path) -> None:
    truncated(cats / "a.png")
    bomb(cats / "b.png")
    save(cats / "c.png", Image.fromarray(GREY))

    data = read(cats, "skip-broken=1")

    assert data.train.labels.tolist() == [0, 1]
    assert data.train.inputs[:, 0].tolist() == [GREY.tolist()] * 2
    note = next(note for note in data.notes if "left out" in note)
    assert note.startswith("2 broken files were left out: ")
    assert "b.png (too many pixels" in note
    assert "a.png (image file is truncated" in note


def test_a_float_image_with_nan_is_named(cats: Path) -> None:
    values = np.zeros((10, 10), np.float32)
    values[2, 3] = np.nan
    save(cats / "a.tif", Image.fromarray(values))
    with pytest.raises(DataError, match=r"a\.tif \(1 pixels that are NaN or infinite\)"):
        read(cats)


# ---- D3, D4: palettes, transparency, CMYK --------------------------------------------------------


def test_a_palette_of_greys_stays_grey(cats: Path) -> None:
    image = Image.fromarray(GREY).convert("P")
    image.putpalette([v for grey in range(256) for v in (grey, grey, grey)])
    assert image.mode == "P"
    save(cats / "a.png", image)
    assert first(cats).tolist() == GREY.tolist()


def test_colours_that_a_palette_has_and_the_image_has_not_do_not_count(cats: Path) -> None:
    image = Image.fromarray(np.zeros((10, 10), np.uint8)).convert("P")
    image.putpalette([7, 7, 7, *RED])
    save(cats / "a.png", image)
    assert first(cats).tolist() == [[7] * 10] * 10


def test_a_palette_of_colours_makes_the_set_rgb_and_this_is_said(cats: Path) -> None:
    image = Image.fromarray(np.zeros((10, 10), np.uint8)).convert("P")
    image.putpalette([*RED])
    save(cats / "a.gif", image)

    data = read(cats)

    assert data.train.inputs.shape == (2, 3, 10, 10)
    assert data.train.inputs[0, :, 0, 0].tolist() == [*RED]
    assert any(
        note.startswith("1 of 2 images have colours, and so all were") for note in data.notes
    )
    assert first(cats, "color=grey").tolist() == [[76] * 10] * 10  # 0.299 * 255
    assert not any("have colours" in note for note in read(cats, "color=rgb").notes)


@pytest.mark.parametrize(
    ("mode", "clear", "expected"),
    [
        # Half of 255 - 128 = 127 parts white: 128/255 * 0 + 127/255 * 255 = 127.
        ("LA", (0, 128), 127),
        ("RGBA", (*RED, 0), [*WHITE]),
        ("RGBA", (*RED, 255), [*RED]),
    ],
)
def test_transparency_becomes_white(cats: Path, mode: str, clear: tuple, expected: object) -> None:
    save(cats / "a.png", Image.new(mode, (10, 10), clear))
    assert first(cats)[0, 0].tolist() == expected
    flattened = any(note == "1 image was flattened on white" for note in read(cats).notes)
    assert flattened == (clear[-1] < 255)


def test_a_colour_that_stands_for_transparency_becomes_white(cats: Path) -> None:
    save(cats / "a.png", Image.fromarray(GREY), transparency=5)
    assert first(cats)[0, :7].tolist() == [0, 1, 2, 3, 4, 255, 6]


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_cmyk_becomes_rgb(cats: Path, suffix: str) -> None:
    save(cats / f"a.{suffix}", Image.new("CMYK", (10, 10), (0, 255, 255, 0)))  # no cyan: red
    found = first(cats)[5, 5].astype(int)
    assert (abs(found - RED) <= 3).all()  # JPEG rounds


# ---- D10: sizes, depths, formats -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["bmp", "tif", "tiff", "webp", "gif", "PNG"])
def test_every_format_gives_the_same_pixels(cats: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    save(cats / f"a.{suffix}", Image.fromarray(GREY), **options)
    found = first(cats)
    assert found.reshape(10, 10, -1)[..., 0].tolist() == GREY.tolist()


def test_an_image_that_is_not_square_is_padded_with_black_in_the_middle(cats: Path) -> None:
    save(cats / "a.png", Image.new("L", (20, 10), 200))  # 20 wide, 10 high
    found = first(cats, "size=10")
    # The longer side becomes 10, the other 5: two rows of black above, three below.
    assert found[:, 0].tolist() == [0, 0, 200, 200, 200, 200, 200, 0, 0, 0]
    assert (
        "1 image was resized to 10x10, 1 of them not square and padded with black"
        in read(cats, "size=10").notes
    )


def test_or_it_is_stretched(cats: Path) -> None:
    save(cats / "a.png", Image.new("L", (20, 10), 200))
    assert first(cats, "size=10&fit=stretch").tolist() == [[200] * 10] * 10
    assert any("not square and stretched" in n for n in read(cats, "size=10&fit=stretch").notes)


def test_an_image_of_the_size_is_not_touched(cats: Path) -> None:
    save(cats / "a.png", Image.fromarray(GREY))
    assert first(cats, "size=10").tolist() == GREY.tolist()


def test_without_a_size_images_must_be_square(cats: Path) -> None:
    (cats.parent / "dog" / "z.png").unlink()
    save(cats / "a.png", Image.new("L", (20, 10)))
    with pytest.raises(ImageSize, match=r"must be square, got 20x10 in .*a\.png; have them padded"):
        read(cats)


def test_16_bits_are_scaled_from_their_whole_range(cats: Path) -> None:
    values = np.full((10, 10), 65535, np.uint16)
    values[0, :3] = (0, 257, 32896)  # 257 = 65535 / 255, 32896 = 128 * 257
    save(cats / "a.png", Image.fromarray(values))
    assert first(cats)[0, :4].tolist() == [0, 1, 128, 255]
    assert "1 image was scaled from 0..65535" in read(cats).notes


def test_12_bits_in_a_16_bit_file_need_a_word(cats: Path) -> None:
    values = np.full((10, 10), 4095, np.uint16)
    values[0, 0] = 0
    save(cats / "a.png", Image.fromarray(values))
    with pytest.raises(DataError, match=r"got values up to 4095; write \?range=0\.\.4095 at every"):
        read(cats)
    assert first(cats, "range=0..4095")[0, :2].tolist() == [0, 255]
    assert first(cats, "range=0..65535")[0, :2].tolist() == [0, 16]  # 4095 / 257 = 15.9


def test_a_tiff_that_says_12_bits_means_them(cats: Path) -> None:
    rows = bytes.fromhex("000FFF" * 50)  # two pixels in three bytes: 0 and 4095, by turns
    tags = [
        (256, 10), (257, 10), (258, 12), (259, 1), (262, 1),
        (273, 8), (277, 1), (278, 10), (279, len(rows)),
    ]  # fmt: skip
    head = struct.pack("<2sHI", b"II", 42, 8 + len(rows))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    cats.joinpath("a.tif").write_bytes(
        head + rows + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    )
    assert first(cats)[0, :4].tolist() == [0, 255, 0, 255]
    assert "1 image was scaled from 0..4095" in read(cats).notes


def test_floats_are_scaled_from_0_to_1_or_from_what_is_said(cats: Path) -> None:
    values = np.full((10, 10), 0.2, np.float32)
    values[0, 0] = 1
    save(cats / "a.tif", Image.fromarray(values))
    assert first(cats)[0, :2].tolist() == [255, 51]  # 0.2 * 255
    (cats / "a.tif").unlink()
    save(cats / "b.tif", Image.fromarray(values * 100))
    with pytest.raises(
        DataError, match=r"b\.tif \(floats from 20 to 100, outside of \[0, 1\]; say"
    ):
        read(cats)
    assert first(cats, "range=0..100")[0, :2].tolist() == [255, 51]


def test_pages_of_a_tiff_are_not_chosen_silently(cats: Path) -> None:
    page = Image.fromarray(GREY)
    save(cats / "a.tif", page, save_all=True, append_images=[page, page])
    with pytest.raises(DataError, match=r"a\.tif \(3 pages; keep one of them\)"):
        read(cats)


def test_of_a_gif_the_first_frame_counts(cats: Path) -> None:
    frames = [Image.new("L", (10, 10), grey) for grey in (10, 200)]
    save(cats / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert first(cats).reshape(10, 10, -1)[0, 0, 0] == 10


# ---- D7, D9, D13 ---------------------------------------------------------------------------------


def test_images_of_one_value_are_counted_and_one_is_named(cats: Path) -> None:
    for name in ("a.png", "b.png"):
        save(cats / name, Image.new("L", (10, 10), 0))
    (note,) = read(cats).notes
    assert note.startswith("2 images are of one value all over: ")
    assert note.endswith("a.png, ...")


def test_folders_inside_a_class_are_read_as_patients(cats: Path) -> None:
    for place in ("p1/a.png", "p1/b.png", "p2/deep/c.png"):
        save(cats / place, Image.fromarray(GREY))
    assert read(cats).train.labels.tolist() == [0, 0, 0, 1]
    assert read(cats).train.ids is None  # z.png lies in no patient's folder
    (cats.parent / "dog" / "p9").mkdir()
    (cats.parent / "dog" / "z.png").rename(cats.parent / "dog" / "p9" / "z.png")
    ids = read(cats).train.ids.tolist()
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert min(ids) >= 0


def test_what_is_no_image_is_passed_over_inside_patients_folders_too(cats: Path) -> None:
    save(cats / "p1" / "a.png", Image.fromarray(GREY))
    (cats / "p1" / "Thumbs.db").write_bytes(b"x")
    (cats / "README").write_bytes(b"x")
    data = read(cats)
    assert len(data.train) == 2
    assert (
        "2 files and folders that hold no images were passed over: README, Thumbs.db" in data.notes
    )


# ---- D12: memory ---------------------------------------------------------------------------------


def test_a_folder_takes_its_finished_images_in_memory_and_one_more(cats: Path) -> None:
    rng = np.random.default_rng(0)
    master = save(cats / "0.png", Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8)))
    for number in range(1, 400):
        (cats / f"{number}.png").hardlink_to(master)
    name = f"folder:{cats.parent.parent}?size=64"
    tracemalloc.start()
    try:
        data = load(name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    finished = data.train.inputs.numel()  # bytes: 401 * 3 * 64 * 64 = 4.9 MB
    assert finished == 401 * 3 * 64 * 64
    # One image in several forms, and what Python keeps of 400 paths.
    assert peak < finished + 1.5e6


def test_the_same_folder_gives_the_same_tensors_as_ever(cats: Path) -> None:
    save(cats / "a.png", Image.fromarray(255 - GREY))
    expected = torch.from_numpy(np.stack([255 - GREY, GREY]))[:, None]
    data = read(cats)
    assert torch.equal(data.train.inputs, expected)
    assert data.train.inputs.is_contiguous()
    assert data.notes == ()
