"""Synthetic sets at rest: unreadable without their keys, and gone with them."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.errors import StoreError
from client.policy import Keys, Policy
from client.store import Store, SyntheticSet
from client.vault import NoKey

MODEL = "a model"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def random_set(*labels: int) -> SyntheticSet:
    return SyntheticSet(torch.randn(len(labels), 3, 8, 8), torch.tensor(labels))


def save(store: Store, synthetic: SyntheticSet, generation: int = 1, lineage: str = "r1") -> Path:
    store.save(lineage, generation, synthetic, model=MODEL)
    return store.folder / lineage / f"{generation:06d}.safetensors"


def load(store: Store, lineage: str = "r1") -> SyntheticSet:
    found = store.load(lineage, model=MODEL)
    assert found is not None
    return found


def keys_of(store: Store) -> dict[str, dict[str, object]]:
    keys: dict[str, dict[str, object]] = json.loads((store.folder / "keys.json").read_text())[
        "keys"
    ]
    return keys


def test_a_set_comes_back_bit_for_bit_and_in_order(store: Store) -> None:
    # Classes lie apart and mixed: each is encrypted by itself, with its images' places.
    saved = random_set(5, 0, 5, 1, 0, 9)
    save(store, saved)
    assert torch.equal(load(store).images, saved.images)
    assert load(store).labels.tolist() == [5, 0, 5, 1, 0, 9]


def test_no_image_and_no_label_lies_in_the_open(store: Store) -> None:
    saved = random_set(3, 3, 7)
    content = save(store, saved).read_bytes()
    for image in saved.images:
        assert image[0, 0].numpy().tobytes() not in content
    assert saved.labels.numpy().tobytes() not in content
    assert b"label" not in content


def test_each_class_of_each_lineage_has_a_key_that_every_generation_shares(store: Store) -> None:
    for generation in (1, 2, 3):
        save(store, random_set(3, 7), generation)
    save(store, random_set(3), lineage="r2")
    assert sorted((key["lineage"], key["label"]) for key in keys_of(store).values()) == [
        ("r1", 3),
        ("r1", 7),
        ("r2", 3),
    ]
    assert (store.folder / "keys.json").stat().st_mode & 0o777 == 0o600


def test_the_same_set_is_never_encrypted_to_the_same_bytes(store: Store) -> None:
    saved = random_set(3, 7)
    first = save(store, saved).read_bytes()
    assert save(store, saved).read_bytes() != first


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_any_altered_byte_is_found(store: Store, place: int) -> None:
    path = save(store, random_set(3))
    content = bytearray(path.read_bytes())
    content[len(content) * place // 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError):
        load(store)
    assert any(str(path) in line for line in store.verify())


def test_a_file_under_another_name_is_refused(store: Store) -> None:
    # An older generation put back as the newest, and one lineage's as another's.
    first = save(store, random_set(3)).read_bytes()
    save(store, random_set(3), 2).write_bytes(first)
    with pytest.raises(StoreError, match="must be what was encrypted here"):
        load(store)
    save(store, random_set(3), 2)
    save(store, random_set(3), 2, lineage="r2").write_bytes(
        (store.folder / "r1" / "000002.safetensors").read_bytes()
    )
    with pytest.raises(StoreError, match="another training's"):
        load(store, "r2")


def test_a_part_that_was_taken_out_is_missed(store: Store) -> None:
    from safetensors.torch import load_file, save_file

    path = save(store, random_set(3, 7, 7))
    parts = load_file(path)
    smallest = min(parts, key=lambda name: len(parts[name]))
    metadata = {"format": "2", "model": MODEL, "shape": "3x8x8"}
    save_file({n: t for n, t in parts.items() if n != smallest}, path, metadata)
    with pytest.raises(StoreError, match="must hold all of its 3 images, got 2"):
        load(store)


def test_a_set_of_which_all_parts_were_taken_out_is_not_an_empty_one(store: Store) -> None:
    from safetensors.torch import save_file

    path = save(store, random_set(3, 7))
    save_file({}, path, {"format": "2", "model": MODEL, "shape": "3x8x8"})
    with pytest.raises(StoreError, match="must hold its images, got none: they were taken out"):
        load(store)


@pytest.mark.parametrize("shape", ["3x", "-3x8x8", "8x8"])
def test_a_set_without_images_whose_shape_was_altered_is_found(store: Store, shape: str) -> None:
    from safetensors.torch import save_file

    path = save(store, random_set())
    assert len(load(store)) == 0  # one that was empty as it was saved
    save_file({}, path, {"format": "2", "model": MODEL, "shape": shape})
    with pytest.raises(StoreError, match="must say the shape of its images, got another text"):
        load(store)
    assert store.verify()


def test_without_the_key_nobody_reads_and_verify_says_so(store: Store) -> None:
    path = save(store, random_set(3))
    keys = store.folder / "keys.json"
    kept = keys.read_bytes()
    keys.unlink()
    with pytest.raises(NoKey, match="bring the key file back, or run `efface store destroy`"):
        load(store)
    assert any("must be in" in line and str(path) in line for line in store.verify())
    keys.write_bytes(kept)
    keys.chmod(0o600)
    assert load(store).labels.tolist() == [3]
    assert store.verify() == []
    # Another key under the same name opens nothing, and a broken one is named.
    (key,) = keys_of(store).values()
    secret = str(key["key"]).encode()
    keys.write_bytes(kept.replace(secret, secret[::-1].lstrip(b"=") + b"="))
    with pytest.raises(StoreError, match="must be what was encrypted here"):
        load(store)
    keys.write_bytes(kept.replace(secret, secret[:8]))
    assert any("must hold this store's keys" in line for line in store.verify())


def test_a_destroyed_key_takes_every_copy_with_it(store: Store, tmp_path: Path) -> None:
    path = save(store, random_set(3, 7, 7))
    backup = path.read_bytes()
    former = tmp_path / "keys"  # a second name of the key file's blocks
    former.hardlink_to(store.folder / "keys.json")

    assert store.destroy(classes=(7,)) == 2

    assert set(former.read_bytes()) == {0}
    path.write_bytes(backup)
    assert load(store).labels.tolist() == [3]
    assert store.destroy() == 1
    assert not (store.folder / "keys.json").exists()
    path.parent.mkdir()
    path.write_bytes(backup)
    with pytest.raises(NoKey):
        load(store)


def test_what_comes_back_after_destruction_has_a_new_key(store: Store) -> None:
    save(store, random_set(3, 7))
    before = set(keys_of(store))
    store.destroy(classes=(7,))
    save(store, random_set(3, 7), 2)
    assert len(set(keys_of(store)) & before) == 1
    assert load(store).labels.tolist() == [3, 7]


def test_keys_may_lie_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "other disk" / "keys.json"
    law = replace(Policy.new("site-a"), folder=tmp_path, keys=Keys(store="other disk/keys.json"))
    save(Store(tmp_path / "store", law), random_set(3))
    named = json.loads((tmp_path / "store" / "keys.json").read_text())
    assert named == {"format": 1, "elsewhere": str(elsewhere)}
    # Whoever opens the store alone finds them there, as `efface store` does.
    assert load(Store(tmp_path / "store")).labels.tolist() == [3]
    elsewhere.unlink()
    with pytest.raises(NoKey):
        load(Store(tmp_path / "store"))


def test_encryption_costs_little(store: Store) -> None:
    # 10 classes of 60 images of 3 x 32 x 32 floats: 7.4 MB.
    saved = SyntheticSet(torch.randn(600, 3, 32, 32), torch.arange(600) % 10)
    started = time.perf_counter()
    path = save(store, saved)
    load(store)
    assert time.perf_counter() - started < 2.0  # about 0.05 s on quiet cores
    assert path.stat().st_size < 1.01 * saved.images.numel() * 4
