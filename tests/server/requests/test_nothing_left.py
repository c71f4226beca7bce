"""A client's image, unmistakable, is found nowhere after the client is forgotten."""

import base64
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from client.errors import StoreError
from client.site_report import write_site_report
from client.store import REPORT, Store
from server.evidence import certificate
from server.requests import certificates, derived, exporting
from server.requests.data import server_data, shares
from server.requests.derived import Derived
from server.requests.intake import Service
from server.requests.pruning import prune
from server.runner import run
from server.settings import RunSettings
from server.storage import keys
from server.storage.history import decompress
from server.storage.home import Home
from server.storage.opened import opened
from server.storage.registry import unpack

SIDE, EACH, CLASSES = 12, 30, 3
MARKED = 18  # the marker's place; its client trains on it
JOB: dict[str, Any] = {
    "num_clients": 3,
    "partition": "iid",
    "model_width": 8,
    "model_depth": 2,
    "rounds": 2,
    "local_steps": 4,
    "batch_size": 16,
    "scale": 1,
    "distill_every": 1000,  # synthetic images stay what they start as: real ones
    "keep_updates": 1,
    "method": "sga",
    "engine": "inline",
    "device": "cpu",
    "accept": "not-shown",
    "max_forget_accuracy": 100.0,
}


class Silent:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


def ask(home: Path, mode: str, **more: Any) -> None:
    run(RunSettings(**{"mode": mode, "home": str(home), **JOB, **more}).check(), Silent())


def images(path: Path) -> np.ndarray[Any, Any]:
    """Write a data set of faint noise with one image of strong noise, and return that one."""
    draws = np.random.default_rng(7)
    labels = np.repeat(np.arange(CLASSES), EACH)
    pixels = draws.integers(0, 40, (len(labels), SIDE, SIDE)).astype(np.uint8)
    pixels += (labels * 60).astype(np.uint8)[:, None, None]
    marker = draws.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    pixels[MARKED] = marker
    test = {"test_images": pixels[1::3], "test_labels": labels[1::3]}  # others
    np.savez(path, train_images=pixels, train_labels=labels, **test)
    return marker


def holder(home: Path, dataset: str) -> str:
    """Return the client that has the marker."""
    settings = RunSettings(mode="train", home=str(home), **{**JOB, "dataset": dataset})
    parts = shares(settings, server_data(settings))
    assert parts is not None
    return f"client-{next(i for i, part in enumerate(parts) if MARKED in part.tolist())}"


# ---- looking for it -----------------------------------------------------------------------------


def contents(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, and those of whatever is compressed in it."""
    raw = path.read_bytes()
    yield raw
    if path.suffix == ".update":
        yield decompress(raw)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as inside:
            yield from (inside.read(name) for name in inside.namelist())
    for coded in re.findall(rb"base64,([A-Za-z0-9+/=]+)", raw):
        found = base64.b64decode(coded)
        yield found
        if found.startswith(b"\x89PNG"):
            yield np.asarray(Image.open(io.BytesIO(found)).convert("L")).tobytes()
    for at in (m.start() for m in re.finditer(rb"\x78[\x01\x9c\xda]", raw)):
        try:
            yield zlib.decompressobj().decompress(raw[at:])
        except zlib.error:
            continue


def forms(marker: np.ndarray[Any, Any], mean: float, std: float) -> list[bytes]:
    """Return a row of the marker as it may be written: pixels and inputs, in every number format.

    Rows, for a picture beside others interrupts it after each. Of numbers that were computed the
    last bits may differ: the float32 form is also looked for by `like`.
    """
    row = marker[SIDE // 2]
    scaled = torch.tensor(row) / 255
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    told = [scaled, (scaled - mean) / std]
    found = [row.tobytes(), json.dumps(row.tolist()).encode()]
    for kind in kinds:
        found += [one.to(kind).view(torch.uint8).numpy().tobytes() for one in told]
    return found


def arrays_of(path: Path) -> list[np.ndarray[Any, Any]]:
    """Return the arrays in a file of any kind that the project writes, or that NumPy does."""
    if path.suffix == ".safetensors":
        return [array for array in load_file(path).values() if array.dtype.kind in "fui"]
    if path.suffix == ".update":
        return list(unpack(decompress(path.read_bytes()), path)[0].values())
    return list(np.load(path).values()) if path.suffix == ".npz" else []


def like(path: Path, marker: np.ndarray[Any, Any]) -> bool:
    """Return whether an array in a file has a part that is nearly the marker, however scaled."""
    flat = marker.astype(np.float64).ravel()
    flat = (flat - flat.mean()) / flat.std()
    for array in arrays_of(path):
        parts = array.astype(np.float64).ravel()
        parts = parts[: len(parts) // flat.size * flat.size].reshape(-1, flat.size)
        parts = parts - parts.mean(axis=1, keepdims=True)
        spread = np.maximum(parts.std(axis=1), 1e-12)
        if (np.abs(parts @ flat) / spread / flat.size > 0.9).any():
            return True
    return False


def found_in(folder: Path, marker: np.ndarray[Any, Any], mean: float, std: float) -> list[str]:
    """Return the files of a folder that hold the marker in any form."""
    wanted = forms(marker, mean, std)
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
        and (like(path, marker) or any(w in c for c in contents(path) for w in wanted))
    )


def in_store(store: Store, marker: np.ndarray[Any, Any]) -> int:
    """Return how many of a store's images, decrypted, are the marker."""
    flat = torch.tensor(marker.astype(np.float32)).ravel()
    count = 0
    for one in store.generations():
        held = store.load(one.lineage, model=one.model, before=one.number + 1)
        assert held is not None
        for image in held.images.flatten(1):
            count += float(torch.corrcoef(torch.stack([image, flat]))[0, 1]) > 0.9
    return count


# ---- the test -----------------------------------------------------------------------------------


pytestmark = pytest.mark.usefixtures("surroundings")


def test_a_forgotten_clients_image_is_found_nowhere(tmp_path: Path) -> None:
    home, raw = tmp_path / "home", tmp_path / "images.npz"
    marker, dataset = images(raw), f"npz:{raw}"
    name = holder(home, dataset)
    ask(home, "train", dataset=dataset)
    card = Service.open(Home(home)).ledger.version("v0001").card
    (mean,), (std,) = card["data"]["mean"], card["data"]["std"]
    place = next((home / "clients").rglob(name))
    store = Store(place)

    # Before: the store has it, encrypted, and the page that the site's operator made shows it.
    assert in_store(store, marker)
    one = store.generations()[-1]
    held = store.load(one.lineage, model=one.model)
    assert held is not None
    pixels = held.images * std + mean
    write_site_report(place / REPORT, pixels, held.labels, node=name, real_counts={})
    updates = list((home / "updates").rglob(f"{name}.update"))
    assert updates
    assert found_in(home, marker, mean, std) == [str((place / REPORT).relative_to(home))]
    assert found_in(tmp_path, marker, mean, std)[-1] == "images.npz"
    plain = tmp_path / "plain"
    plain.mkdir()
    np.savez_compressed(plain / "inputs.npz", held.images.numpy())
    save_file({"pixels": pixels.numpy()}, plain / "pixels.safetensors")
    np.save(plain / "rounded.npy", (pixels * 255).round().to(torch.uint8).numpy())
    assert found_in(plain, marker, mean, std) == [
        *("inputs.npz", "pixels.safetensors", "rounded.npy")
    ]
    sealed = {path: path.read_bytes() for path in place.rglob("*/*.safetensors")}
    exported = tmp_path / "model.safetensors"
    reading, ledger = opened(str(home))
    exporting.export(reading, ledger, ledger.version("v0001"), exported)

    ask(home, "forget", forget_clients=name)
    prune(Home(home), forgotten_days=0)

    assert found_in(home, marker, mean, std) == []
    assert not any(path.exists() for path in updates)
    assert in_store(store, marker) == 0
    assert not list((home / "versions" / "v0001").glob("*.safetensors"))
    # A backup of the encrypted images opens no more: its keys are gone.
    for path, content in sealed.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(StoreError):
        Store(place).load(one.lineage, model=one.model)

    reading, ledger = opened(str(home))
    row = ledger.request("r0002")
    left = derived.of_request(reading, ledger, row)
    version = ledger.version("v0001")
    token = ledger.request("r0001").token
    assert [(o.kind, o.name, o.state) for o in left] == [
        ("version", "v0001", "destroyed"),
        ("exported", "v0001", "there"),
        ("updates", f"{token} of {name}", "destroyed"),
    ]
    assert left[0] == Derived("version", "v0001", "destroyed", left[0].at, version.sha256)
    public = keys.public_keys(reading.keys)[0]
    signed = certificate.read(certificates.issue(reading, ledger, row), public)
    text = " ".join(certificate.sentences(signed))
    assert f"weights of v0001, clients' updates of {token} of {name}." in text
    assert f"there still: weights of v0001 (SHA-256 {left[1].sha256})." in text
    assert str(exported) not in json.dumps(signed)
