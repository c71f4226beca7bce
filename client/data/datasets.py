"""Load a data set by name as uint8 tensors in memory.

The names are `NAMES`, and those of a site's own data, "npz:PATH", "folder:PATH" and "table:PATH",
with options after a ? (client/data/source.py).
`digits` comes inside scikit-learn; the other named sets are files under a data folder, read by
torchvision.

It is long because every named set has its own files, and each says which one is missing.
"""

import functools
import gzip
import lzma
import os
import shutil
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from client.data import class_names
from client.data.image_folder import read_folder
from client.data.own_data import read_npz
from client.data.source import TABLE, Source, image_reading, is_own, parse, table_reading
from client.data.splits import Data, Examples, check_labels, make_split, normalise, pixel_statistics
from client.data.tables import read_table
from client.errors import BadSetting, DataError
from client.torchvision_shim import import_torchvision

__all__ = ["NAMES", "Data", "Examples", "load", "normalise", "unpack"]

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn")

_IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


@dataclass(frozen=True)
class _Standard:
    """A published data set. `files` are relative to `folder`, and that to the data folder."""

    torchvision_class: str
    folder: str
    files: tuple[str, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()


# Means and standard deviations of the training images, as they are commonly quoted.
_STANDARD = {
    "mnist": _Standard("MNIST", "MNIST/raw", _IDX_FILES, 10, (0.1307,), (0.3081,)),
    "fashion-mnist": _Standard(
        "FashionMNIST",
        "FashionMNIST/raw",
        _IDX_FILES,
        10,
        (0.2860,),
        (0.3530,),
        class_names.FASHION_MNIST,
    ),
    "cifar10": _Standard(
        "CIFAR10",
        "cifar-10-batches-py",
        _CIFAR10_FILES,
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        class_names.CIFAR10,
    ),
    "cifar100": _Standard(
        "CIFAR100",
        "cifar-100-python",
        ("train", "test", "meta"),
        100,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
    ),
    "svhn": _Standard(
        "SVHN",
        "",
        ("train_32x32.mat", "test_32x32.mat"),
        10,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
    ),
}


def load(name: str, data_dir: Path | None = None, *, download: bool = False) -> Data:
    """Return the data set called `name`.

    A process reads a set once and keeps the last two: long-lived Ray actors and the inline engine
    serve many clients in one process, and all of them may share the tensors. A site's own files are
    read again when they have changed (for folders: when a file was added or removed).

    Args:
        name: One of `NAMES`, or a set of one's own (`client.data.source`).
        data_dir: Folder that holds the published sets' files, as torchvision lays them out. Not
            used by "digits" and sets of one's own.
        download: Fetch missing files of a published set into `data_dir`.

    Raises:
        BadSetting: If the name is unknown, or lacks its PATH or `data_dir`.
        DataError: If files are missing, truncated or break a rule. It names them.
    """
    if is_own(name):
        own = parse(name).rooted()
        files = [own.path, own.value.get("columns", own.path)]
        return _load_own(own, tuple(stamp for file in files for stamp in _stamp(Path(file))))
    if name not in NAMES:
        raise BadSetting(
            f"data set must be one of {', '.join(NAMES)}, npz:PATH, folder:PATH, "
            f"table:PATH?label=COLUMN, got '{name}'",
            see="efface data list",
        )
    if name == "digits":
        return _load_digits()
    if data_dir is None:
        raise BadSetting(
            f"data-dir must name a folder for data set '{name}', got none; "
            "only digits needs no files",
            see="efface data list",
        )
    data_dir = data_dir.expanduser().absolute()
    if _missing(name, data_dir):
        if download:
            _download(name, data_dir)
        _require_files(name, data_dir)
    return _load_standard(name, data_dir)


def is_known(source: str) -> bool:
    """Return whether a text names a data set of the built-in task, not one for a user's."""
    return source in NAMES or is_own(source)


def unpack(source: Path, destination: Path) -> list[Path]:
    """Unpack every .gz and .xz file under `source` to the same place under `destination`.

    Each file is written under a temporary name and renamed when it is complete, so that a stop
    half-way leaves no truncated file. Files that are there already are replaced: a second call
    gives the same result, and repairs a damaged file.

    Args:
        source: Folder, searched recursively, or one packed file.
        destination: Folder; made if it does not exist.

    Returns:
        The unpacked files, sorted.

    Raises:
        DataError: If there is nothing to unpack, an archive is damaged, two archives would become
            one file, or a file is a tar archive (nothing is written for the latter two).
    """
    if not source.exists():
        raise DataError(f"source must be a folder or packed file, got {source}: it does not exist")
    root = source if source.is_dir() else source.parent
    found = source.rglob("*") if source.is_dir() else [source]
    packed = sorted(file for file in found if file.suffix in (".gz", ".xz") and file.is_file())
    if not packed:
        raise DataError(f"source must hold .gz or .xz files, got none under {source}")
    targets: dict[Path, Path] = {}
    for file in packed:
        target = destination / file.relative_to(root).with_suffix("")
        if target.suffix == ".tar":
            raise DataError(
                f"{file} must be a single packed file, got a tar archive; "
                f"unpack it with: tar -xf {file} -C {destination}"
            )
        if target in targets:
            raise DataError(f"{targets[target]} and {file} must not both become {target}")
        targets[target] = file
    for target, file in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        _unpack_file(file, target)
    return sorted(targets)


@functools.lru_cache(maxsize=2)
def _load_own(source: Source, stamp: tuple[tuple[int, int], ...]) -> Data:
    path = Path(source.path)
    if source.kind == TABLE:
        data = read_table(path, table_reading(source))
    elif source.kind == "npz":
        data = read_npz(path, image_reading(source))
    else:
        data = read_folder(path, image_reading(source))
    return replace(data, name=source.text)


def _stamp(path: Path) -> tuple[tuple[int, int], ...]:
    """Return what changes when a site's own data changes, without opening a file."""
    if not path.exists():
        return ()
    folders = (
        sorted(f for deep in ("*/", "*/*/", "*/*/*/") for f in path.glob(deep))
        if path.is_dir()
        else []
    )
    return tuple((entry.stat().st_mtime_ns, entry.stat().st_size) for entry in [path, *folders])


@functools.lru_cache(maxsize=1)
def _load_digits() -> Data:
    """Return scikit-learn's 8x8 digits; every fifth image of a class, in file order, is test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # float64 0..16, (1797, 64)
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[4::5]] = True
    train = make_split(images[~test], labels[~test], None, where="digits, train")
    mean, std = pixel_statistics(train.in_memory)
    return Data(
        name="digits",
        train=train,
        test=make_split(images[test], labels[test], None, where="digits, test"),
        validation=None,
        num_classes=10,
        mean=mean,
        std=std,
    )


@functools.lru_cache(maxsize=2)
def _load_standard(name: str, data_dir: Path) -> Data:
    standard = _STANDARD[name]
    if standard.files is _IDX_FILES:
        for file in standard.files:
            _check_idx(data_dir / standard.folder / file)
    vision = import_torchvision("datasets")
    kind = getattr(vision, standard.torchvision_class)
    parts = {}
    names = standard.class_names
    for part in ("train", "test"):
        try:
            # torchvision unpickles CIFAR only after comparing its files' MD5 with the authors'.
            source = kind(data_dir, **_part_argument(name, part))
        except Exception as error:  # its readers raise whatever a damaged file leads to
            raise DataError(_damage(name, data_dir, kind, error)) from error
        where = f"{data_dir / standard.folder}, {name}, {part}"
        parts[part] = make_split(*_as_arrays(name, source), None, where=where)
        check_labels(parts[part], standard.num_classes, where=where)
        if len(parts[part]) == 0:
            raise DataError(f"{where}: must hold at least one image, got none")
        if name == "cifar100" and len(source.classes) == standard.num_classes:
            names = class_names.checked_names(source.classes, where=where)
    return Data(
        name=name,
        train=parts["train"],
        test=parts["test"],
        validation=None,
        num_classes=standard.num_classes,
        mean=standard.mean,
        std=standard.std,
        class_names=names,
    )


def _part_argument(name: str, part: str) -> dict[str, Any]:
    return {"split": part} if name == "svhn" else {"train": part == "train"}


def _as_arrays(name: str, source: Any) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Return images (N, H, W) or (N, H, W, C) and labels (N,) of a torchvision data set."""
    if name == "svhn":  # the one that is (N, C, H, W) already
        return source.data.transpose(0, 2, 3, 1), source.labels
    return np.asarray(source.data), np.asarray(source.targets, dtype=np.int64)


def _missing(name: str, data_dir: Path) -> list[Path]:
    folder = data_dir / _STANDARD[name].folder
    return [folder / file for file in _STANDARD[name].files if not (folder / file).is_file()]


def _require_files(name: str, data_dir: Path, reason: str = "") -> None:
    missing = _missing(name, data_dir)
    if missing:
        raise DataError(
            f"data set '{name}' must have all its files under {data_dir}, got none at: "
            f"{', '.join(str(file) for file in missing)}{reason}; put them there, unpack .gz or "
            f".xz copies with `efface data unpack SRC {data_dir}`, or allow the download"
        )


def _download(name: str, data_dir: Path) -> None:
    vision = import_torchvision("datasets")
    kind = getattr(vision, _STANDARD[name].torchvision_class)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        for part in ("train", "test"):
            kind(data_dir, **_part_argument(name, part), download=True)
    except (OSError, RuntimeError, ValueError) as error:
        _require_files(name, data_dir, reason=f" (the download failed: {error})")
        raise DataError(_damage(name, data_dir, kind, error)) from error


def _damage(name: str, data_dir: Path, kind: Any, error: Exception) -> str:
    """Return a message that names the file whose checksum is wrong, where checksums are known."""
    from torchvision.datasets.utils import check_integrity

    checksums: dict[str, str] = {}
    if name in ("cifar10", "cifar100"):
        checksums = dict(kind.train_list + kind.test_list)
        checksums[kind.meta["filename"]] = kind.meta["md5"]
    elif name == "svhn":
        checksums = {file: md5 for _, file, md5 in kind.split_list.values()}
    folder = data_dir / _STANDARD[name].folder
    for file in _STANDARD[name].files:
        if file in checksums and not check_integrity(str(folder / file), checksums[file]):
            return (
                f"{folder / file} must have MD5 {checksums[file]}, got a truncated or changed "
                f"file of {(folder / file).stat().st_size} bytes; copy or unpack it again"
            )
    return f"files of data set '{name}' in {folder} must be complete, got: {error}"


def _check_idx(path: Path) -> None:
    """Refuse an MNIST-format file whose header or length is wrong; torchvision would not name it.

    Header: magic number 0x0801 (labels) or 0x0803 (images), then one big-endian int32 a dimension.
    """
    num_dims = 3 if "idx3" in path.name else 1
    size = path.stat().st_size
    with path.open("rb") as file:
        header = np.frombuffer(file.read(4 + 4 * num_dims), dtype=np.uint8)
    if len(header) < 4 + 4 * num_dims:
        raise DataError(f"{path} must start with a header, got {size} bytes; unpack it again")
    magic, *dims = (int(value) for value in header.view(">i4"))
    if magic != 0x0800 + num_dims:
        raise DataError(
            f"{path} must start with the magic number {0x0800 + num_dims:#06x}, got {magic:#x}; "
            "is it still packed?"
        )
    expected = len(header) + int(np.prod(dims, dtype=np.int64))
    if size != expected:
        raise DataError(
            f"{path} must be {expected} bytes long for shape {tuple(dims)}, got {size}; "
            "copy or unpack it again"
        )
    if num_dims == 3 and dims[1:] != [28, 28]:
        raise DataError(f"{path} must hold 28x28 images, got {dims[1]}x{dims[2]}")


def _unpack_file(packed: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with (
            gzip.open(packed) if packed.suffix == ".gz" else lzma.open(packed) as reader,
            temporary.open("wb") as writer,
        ):
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.replace(target)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(
            f"{packed} must be a complete {packed.suffix} file, got: {error}; copy it again"
        ) from error
    except OSError as error:
        raise DataError(f"{target} must be writable, got: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
