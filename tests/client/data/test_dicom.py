"""DICOM files: window, rescale, inverted grey, colour; of the patient nothing but a hash."""

import os
from pathlib import Path

import numpy as np
import pytest

from client.data.datasets import load
from client.data.splits import Data
from client.errors import DataError

pydicom = pytest.importorskip("pydicom")

STORED = np.arange(100, dtype=np.uint16).reshape(10, 10) * 40  # 0, 40, ..., 3960


def write(path: Path, values: np.ndarray = STORED, **tags: object) -> Path:
    """Write one frame of 12 bits in 16, or of colours in 8."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = CTImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = generate_uid()
    found.PatientName, found.PatientID = "Doe^Jane", "17"
    found.Rows, found.Columns = values.shape[:2]
    colour = values.ndim == 3
    found.SamplesPerPixel = 3 if colour else 1
    found.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        found.PlanarConfiguration = 0
    found.BitsAllocated = values.dtype.itemsize * 8
    found.BitsStored = 8 if colour else 12
    found.HighBit = found.BitsStored - 1
    found.PixelRepresentation = 0
    found.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(found, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return path


def read(root: Path, query: str = "") -> Data:
    return load(f"folder:{root}?{query}")


def first(root: Path, query: str = "", **tags: object) -> list[int]:
    """Return the first row of an image of class 0 with these tags."""
    write(root / "train" / "a" / "1.dcm", **tags)  # type: ignore[arg-type]
    write(root / "train" / "b" / "2.dcm")
    return read(root, query).train.inputs[0, 0, 0].tolist()


def test_without_a_window_the_stored_bits_are_the_range(tmp_path: Path) -> None:
    # 40 / 4095 * 255 = 2.49, 80 -> 4.98, 120 -> 7.47
    assert first(tmp_path)[:4] == [0, 2, 5, 7]
    assert "2 images were scaled from 0..4095" in read(tmp_path).notes


def test_the_window_counts(tmp_path: Path) -> None:
    # From 100.5 - 0.5 - 100 / 2 = 50 to 150: 80 is 30 % of 255 = 76.5, and 120 70 % = 178.5.
    found = first(tmp_path, WindowCenter=100.5, WindowWidth=101)
    assert found[:5] == [0, 0, 76, 178, 255]
    assert "1 image was seen through their own window" in read(tmp_path).notes


def test_of_several_windows_the_first_counts(tmp_path: Path) -> None:
    found = first(tmp_path, WindowCenter=[100.5, 7], WindowWidth=[101, 7])
    assert found[:5] == [0, 0, 76, 178, 255]


def test_values_are_rescaled_before_the_window(tmp_path: Path) -> None:
    # Stored 0, 40, 80 are -1000, -920, -840: the window from -1000 to -840 makes 0, 127.5, 255.
    found = first(
        tmp_path,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=-920,
        WindowWidth=160,
        VOILUTFunction="LINEAR_EXACT",
    )
    assert found[:3] == [0, 128, 255]


def test_a_range_stands_in_for_the_window_at_every_site(tmp_path: Path) -> None:
    found = first(tmp_path, "range=0..80", WindowCenter=2000, WindowWidth=4000)
    assert found[:4] == [0, 128, 255, 255]


def test_inverted_grey_is_turned_over(tmp_path: Path) -> None:
    found = first(tmp_path, "range=0..80", PhotometricInterpretation="MONOCHROME1")
    assert found[:4] == [255, 127, 0, 0]


def test_colours_are_colours(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "1.dcm", np.full((10, 10, 3), (9, 8, 7), np.uint8))
    write(tmp_path / "train" / "b" / "2.dcm")
    assert read(tmp_path).train.inputs[0, :, 0, 0].tolist() == [9, 8, 7]


def test_of_the_patient_a_hash_is_kept(tmp_path: Path) -> None:
    for name, patient in (("1", "17"), ("2", "17"), ("3", "18")):
        write(tmp_path / "train" / "a" / f"{name}.dcm", PatientID=patient)
    write(tmp_path / "train" / "b" / "4", PatientID="18")  # known by what is inside
    data = read(tmp_path)
    ids = data.train.ids.tolist()
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert {17, 18}.isdisjoint(ids)
    assert "Doe" not in repr(data.notes)


def test_without_a_patient_there_are_no_ids(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "1.dcm", PatientID="")
    write(tmp_path / "train" / "b" / "2.dcm")
    assert read(tmp_path).train.ids is None


def test_files_that_cannot_be_shown_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "1.dcm")
    path = write(tmp_path / "train" / "a" / "2.dcm")
    path.write_bytes(path.read_bytes()[:-50])
    (tmp_path / "train" / "a" / "3.dcm").write_bytes(os.urandom(200))
    write(tmp_path / "train" / "b" / "4.dcm")
    write(
        tmp_path / "train" / "b" / "5.dcm", np.stack([STORED] * 2), Rows=10, Columns=10,
        NumberOfFrames=2, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
    )  # fmt: skip
    with pytest.raises(
        DataError, match=r"3 that are not: .*2\.dcm .*; .*3\.dcm .*; .*5\.dcm \(2 frames; keep"
    ):
        read(tmp_path)
    data = read(tmp_path, "skip-broken=1")
    assert data.train.labels.tolist() == [0, 1]
    assert "3 broken files were left out" in " ".join(data.notes)
