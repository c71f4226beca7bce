"""The node's store: private, crash-safe, and with nothing left of what was destroyed."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_tensors

from client.errors import StoreError
from client.files import make_private
from client.site_report import write_site_report
from client.store import REPORT, Store, SyntheticSet, _checksum, without
from client.wire import ForgetSpec

MODEL = "a model"
CLASS_3 = ForgetSpec("class", (3,))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def images_of(*labels: int, value: float = 1.0) -> SyntheticSet:
    """Return a set whose images all hold `value + label`, easily found in a file's bytes."""
    found = torch.tensor(labels)
    images = (found + value)[:, None, None, None].expand(len(labels), 1, 4, 4).clone()
    return SyntheticSet(images, found)


def save(store: Store, generation: int, synthetic: SyntheticSet, lineage: str = "r0001") -> None:
    store.save(lineage, generation, synthetic, model=MODEL)


def load(store: Store, before: int | None = None) -> SyntheticSet:
    found = store.load("r0001", model=MODEL, before=before)
    assert found is not None
    return found


def files(store: Store) -> list[Path]:
    return sorted(path for path in store.folder.rglob("*") if path.is_file())


def sets(store: Store) -> list[Path]:
    return sorted(store.folder.glob("*/*.safetensors"))


def save_as_before(
    store: Store, generation: int, synthetic: SyntheticSet, *, model: str = MODEL, **known: str
) -> Path:
    """Write a set as an older Efface did, without encryption; return its file."""
    path = store.folder / "r0001" / f"{generation:06d}.safetensors"
    make_private(path.parent)
    tensors = {"images": synthetic.images, "labels": synthetic.labels}
    path.write_bytes(save_tensors(tensors, {"format": "1", "model": model, **known}))
    path.chmod(0o600)
    return path


def numbers(store: Store) -> list[int]:
    return [generation.number for generation in store.generations()]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- sets ---------------------------------------------------------------------------------------


def test_a_set_comes_back_bit_for_bit(store: Store) -> None:
    saved = SyntheticSet(torch.randn(5, 1, 4, 4), torch.tensor([0, 0, 1, 3, 3]))
    save(store, 1, saved)
    assert torch.equal(load(store).images, saved.images)
    assert torch.equal(load(store).labels, saved.labels)


def test_nothing_is_created_by_looking(store: Store) -> None:
    assert store.load("r0001", model=MODEL) is None
    assert store.generations() == []
    assert store.state().tombstones == {}
    assert store.destroy() == 0
    assert not store.folder.exists()
    assert "does not exist" in store.verify()[0]


def test_only_the_owner_can_read(store: Store, tmp_path: Path) -> None:
    former = os.umask(0o000)
    try:
        save(store, 1, images_of(0))
        store.settle("r0002", "forget", CLASS_3)
    finally:
        os.umask(former)
    assert [mode(path) for path in files(store)] == [0o600] * 4
    assert mode(store.folder) == mode(store.folder / "r0001") == 0o700
    assert store.verify() == []
    (store.folder / "state.json").chmod(0o644)
    assert "must be readable by its owner alone, got mode 644" in store.verify()[0]


def test_the_two_newest_generations_are_kept(store: Store) -> None:
    for generation in range(1, 6):
        save(store, generation, images_of(0, value=generation))
    assert numbers(store) == [4, 5]
    # Clients are drawn: a node's rounds may lie apart.
    save(store, 9, images_of(0))
    assert numbers(store) == [5, 9]


def test_a_message_that_arrives_twice_starts_twice_from_the_same_images(store: Store) -> None:
    save(store, 1, images_of(0, value=10.0))
    starts = []
    for _ in range(2):
        start = load(store, before=2)
        starts.append(start.images.clone())
        save(store, 2, SyntheticSet(start.images + 1, start.labels))
    assert torch.equal(*starts)
    assert float(load(store).images.mean()) == 11.0
    assert store.load("r0001", model=MODEL, before=1) is None


def test_a_round_that_is_done_again_takes_its_place_and_drops_none(store: Store) -> None:
    for generation in (4, 5):
        save(store, generation, images_of(0))
    save(store, 4, images_of(1))
    assert numbers(store) == [4, 5]
    again = store.load("r0001", model=MODEL, before=5)  # what round 5 begins with when it is redone
    assert again is not None
    assert again.labels.tolist() == [1]


def test_a_set_of_another_model_is_refused_and_kept(store: Store) -> None:
    save(store, 1, images_of(0))
    with pytest.raises(
        StoreError, match=r"must belong to the model another, got a model.*efface store destroy"
    ):
        store.load("r0001", model="another")
    assert numbers(store) == [1]


@pytest.mark.parametrize("length", [0, 4, 60, -1])
def test_a_damaged_file_is_named(store: Store, length: int) -> None:
    save(store, 1, images_of(0, 1))
    (path,) = sets(store)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StoreError, match=f"{path.name} must be a whole safetensors file"):
        load(store)
    assert any(path.name in line for line in store.verify())


def test_a_file_of_the_wrong_shape_is_named(store: Store) -> None:
    save(store, 1, SyntheticSet(torch.zeros(2), torch.tensor([0, 1])))
    with pytest.raises(StoreError, match=r"must hold examples \(n, ...\).*got \(2,\)"):
        load(store)


def test_images_that_are_not_numbers_are_found(store: Store) -> None:
    broken = images_of(0, 1)
    broken.images[1, 0, 2, 2] = torch.nan
    save(store, 1, broken)
    (problem,) = store.verify()
    assert "must hold finite images, got NaN" in problem


@pytest.mark.parametrize("lineage", ["../out", "", "/etc", "a/b", ".hidden"])
def test_a_lineage_that_is_no_name_is_refused(store: Store, lineage: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="lineage must be letters, digits"):
        save(store, 1, images_of(0), lineage=lineage)
    assert list(tmp_path.iterdir()) == []


# ---- crashes ------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the process's end."""


def die(*_: Any, **__: Any) -> None:
    raise Killed


def test_a_kill_before_the_rename_leaves_the_former_set(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1, images_of(0, value=10.0))
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", die)
        with pytest.raises(Killed):
            save(store, 1, images_of(0, value=20.0))
        with pytest.raises(Killed):
            save(store, 2, images_of(0, value=20.0))
    assert numbers(store) == [1]
    assert float(load(store).images.mean()) == 10.0
    assert store.verify() == []


def test_a_kill_before_the_rename_leaves_the_former_state(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.settle("r0002", "forget", CLASS_3)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", die)
        with pytest.raises(Killed):
            store.settle("r0003", "relearn", CLASS_3)
    assert store.state().tombstones == {"r0002": CLASS_3}
    assert store.settle("r0003", "relearn", CLASS_3)


def test_what_a_kill_left_behind_is_told_and_destroyed(store: Store) -> None:
    # A power cut cannot clean up: the temporary file holds images.
    save(store, 1, images_of(0, 1))
    left = store.folder / "r0001" / ".000002.safetensors.abc"
    left.write_bytes(sets(store)[0].read_bytes())
    left.chmod(0o600)
    assert any("left over from an interrupted write" in line for line in store.verify())
    store.destroy()
    assert files(store) == []


@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_a_kill_while_destroying_loses_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save(store, 1, images_of(0, 3))
    with monkeypatch.context() as patched:
        patched.setattr(os, where, die)
        with pytest.raises(Killed):
            store.destroy(classes=(3,))
    assert 0 in load(store).labels.tolist()
    store.destroy(classes=(3,))
    assert load(store).labels.tolist() == [0]


# ---- tombstones ---------------------------------------------------------------------------------


def test_a_tombstone_is_set_once_and_lifted(store: Store) -> None:
    assert store.settle("r0002", "forget", CLASS_3)
    assert not store.settle("r0002", "forget", CLASS_3)
    assert store.state().tombstones == {"r0002": CLASS_3}
    assert store.settle("r0003", "relearn", CLASS_3)
    assert store.state().tombstones == {}
    # The first request arrives once more, late: it must not come back to life.
    assert not store.settle("r0002", "forget", CLASS_3)
    assert store.state().tombstones == {}
    assert store.state().applied == {"r0002": "forget", "r0003": "relearn"}


def test_a_part_of_a_tombstone_is_lifted(store: Store) -> None:
    store.settle("r0002", "forget", ForgetSpec("class", (3, 5)))
    store.settle("r0003", "forget", ForgetSpec("client", (), ("a",)))
    store.settle("r0004", "relearn", CLASS_3)
    assert store.state().tombstones == {
        "r0002": ForgetSpec("class", (5,)),
        "r0003": ForgetSpec("client", (), ("a",)),
    }


def test_what_is_left_of_a_tombstone() -> None:
    both = ForgetSpec("client", (), ("a", "b"))
    assert without(both, ForgetSpec("client", (), ("b", "c"))) == ForgetSpec("client", (), ("a",))
    assert without(both, both) is None
    assert without(both, CLASS_3) == both


def test_other_actions_are_only_remembered(store: Store) -> None:
    assert store.settle("condense r0002", "condense", CLASS_3)
    assert not store.settle("condense r0002", "condense", CLASS_3)
    assert store.state().tombstones == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({"applied": {}}),
        lambda text: text.replace('"level"', '"depth"'),
    ],
)
def test_a_damaged_state_is_an_error_never_an_empty_one(
    store: Store, damage: Callable[[str], str]
) -> None:
    store.settle("r0002", "forget", CLASS_3)
    path = store.folder / "state.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(StoreError, match="it records what was forgotten"):
        store.state()
    with pytest.raises(StoreError):
        store.settle("r0003", "forget", CLASS_3)
    assert any("state.json" in line for line in store.verify())


# ---- destroying ---------------------------------------------------------------------------------


def test_a_destroyed_class_is_gone_from_every_generation_and_the_others_stay(store: Store) -> None:
    save(store, 1, images_of(0, 3, 3, value=100.0))
    save(store, 2, images_of(0, 3, 3, 5, value=100.0))
    needle = torch.full((4,), 103.0).numpy().tobytes()
    assert needle in save_as_before(store, 0, images_of(3, value=100.0)).read_bytes()
    assert store.destroy(classes=(9,)) == 0
    (store.folder / "r0001" / "000000.safetensors").unlink()
    copies = {path: path.read_bytes() for path in sets(store)}

    assert store.destroy(classes=(3,)) == 2  # of the newest generation

    assert numbers(store) == [1, 2]
    assert load(store, before=2).labels.tolist() == [0]
    assert load(store).labels.tolist() == [0, 5]
    assert not any(needle in path.read_bytes() for path in files(store))
    assert store.verify() == []
    assert store.destroy(classes=(3,)) == 0
    # Copies that somebody kept give the other classes back, and not this one.
    for path, content in copies.items():
        path.write_bytes(content)
    assert load(store).labels.tolist() == [0, 5]


def test_destroying_all_leaves_no_set_and_keeps_the_tombstones(store: Store) -> None:
    for lineage in ("r0001", "r0007"):
        for generation in (1, 2):
            save(store, generation, images_of(0, 3), lineage=lineage)
    store.settle("r0002", "forget", CLASS_3)
    assert store.destroy() == 4
    assert [path.name for path in files(store)] == ["state.copy.json", "state.json"]
    assert {path.name for path in store.folder.iterdir()} == {"state.copy.json", "state.json"}
    assert store.state().tombstones == {"r0002": CLASS_3}


def test_one_lineage_is_destroyed_and_the_other_stays(store: Store) -> None:
    save(store, 1, images_of(0), lineage="r0001")
    save(store, 1, images_of(0), lineage="r0007")
    assert store.destroy("r0001") == 1
    assert [generation.lineage for generation in store.generations()] == ["r0007"]


def test_a_damaged_file_is_destroyed_too(store: Store) -> None:
    save(store, 1, images_of(0, 3))
    (path,) = sets(store)
    path.write_bytes(path.read_bytes()[:-1])
    store.destroy()
    assert files(store) == []


def test_blocks_are_overwritten_before_a_file_goes(store: Store, tmp_path: Path) -> None:
    save(store, 1, images_of(3, value=100.0))
    twin = tmp_path / "twin"  # a second name of the same blocks outlives the first
    twin.hardlink_to(sets(store)[0])
    store.destroy(classes=(3,))
    assert set(twin.read_bytes()) == {0}


@pytest.mark.parametrize("classes", [None, (3,)])
def test_the_stores_own_report_goes_with_the_images_that_it_shows(
    store: Store, tmp_path: Path, classes: tuple[int, ...] | None
) -> None:
    save(store, 1, images_of(0, 3))
    page = write_site_report(
        store.folder / REPORT, torch.zeros(1, 1, 4, 4), torch.tensor([3]), node="a", real_counts={}
    )
    assert store.verify() == []
    left = store.folder / f".{REPORT}.0123.tmp"  # an interrupted write
    left.write_text("images")
    left.chmod(0o600)
    twin = tmp_path / "twin"  # a second name of the page's blocks outlives the first
    twin.hardlink_to(page)

    store.destroy(classes=classes)

    assert not page.exists()
    assert not left.exists()
    assert set(twin.read_bytes()) == {0}


def test_a_report_that_shows_destroyed_images_goes_even_if_there_is_nothing_else(
    store: Store,
) -> None:
    store.settle("r0002", "forget", CLASS_3)
    (store.folder / REPORT).write_text("images")
    assert store.destroy(classes=(3,)) == 0
    assert [path.name for path in files(store)] == ["state.copy.json", "state.json"]


def test_a_file_that_destroy_would_leave_is_told(store: Store) -> None:
    save(store, 1, images_of(0, 3))
    other = store.folder / "report of may.html"
    other.touch(mode=0o600)
    (problem,) = store.verify()
    assert problem.startswith(f"{other} must lie elsewhere")


def test_a_report_that_others_can_read_is_told(store: Store) -> None:
    save(store, 1, images_of(0, 3))
    page = store.folder / REPORT
    page.touch(mode=0o600)
    assert store.verify() == []
    page.chmod(0o644)
    assert "must be readable by its owner alone, got mode 644" in store.verify()[0]


def test_the_listing_counts_images_by_class(store: Store) -> None:
    save(store, 4, images_of(0, 3, 3))
    (listed,) = store.generations()
    assert (listed.lineage, listed.number, listed.model) == ("r0001", 4, MODEL)
    assert dict(listed.counts) == {0: 1, 3: 2}
    assert listed.num_bytes == listed.path.stat().st_size


# ---- what verify finds --------------------------------------------------------------------------


def test_a_flipped_byte_of_an_older_set_is_found_and_never_used(store: Store) -> None:
    held = images_of(0, 3)
    path = save_as_before(store, 1, held, sha256=_checksum(held.images, held.labels, MODEL))
    labels = torch.tensor([0, 3]).numpy().tobytes()
    image = torch.full((4,), 4.0).numpy().tobytes()
    whole = path.read_bytes()
    assert load(store).labels.tolist() == [0, 3]
    path.write_bytes(whole.replace(labels, torch.tensor([0, 4]).numpy().tobytes()))
    for _ in range(2):
        assert [line for line in store.verify() if "checksum" in line and str(path) in line]
        with pytest.raises(StoreError, match=f"{path.name} must have the checksum"):
            load(store)
        with pytest.raises(StoreError, match="checksum"):
            store.generations()
        path.write_bytes(whole.replace(image, torch.full((4,), 5.0).numpy().tobytes(), 1))
    path.write_bytes(whole)
    assert store.verify() == []


@pytest.mark.parametrize(("label", "model", "bound"), [
    (132456791408640, MODEL, 10_000),
    (-1, MODEL, 10_000),
    (10, "ModelSpec(name='convnet', num_classes=10, channels=1)", 10),
])  # fmt: skip
@pytest.mark.parametrize("encrypted", [True, False])
def test_a_strange_label_is_found_whoever_wrote_it(
    store: Store, label: int, model: str, bound: int, encrypted: bool
) -> None:
    if encrypted:
        store.save("r0001", 1, images_of(0, label), model=model)
    else:
        save_as_before(store, 1, images_of(0, label), model=model)
    (path,) = sets(store)
    said = f"{path} must hold labels in [0, {bound}), got {label}"
    assert any(line.startswith(said) for line in store.verify())
    with pytest.raises(StoreError, match="must hold labels in"):
        store.generations()


def test_a_set_of_an_older_store_is_read_and_noted(store: Store) -> None:
    path = save_as_before(store, 1, images_of(0, 3))
    assert load(store).labels.tolist() == [0, 3]
    assert store.verify() == []
    (note,) = store.unchecked()
    assert note.startswith(f"{path} is not encrypted and has no checksum: not checked; an older")


def test_an_older_set_is_encrypted_at_the_next_write(store: Store, tmp_path: Path) -> None:
    dropped, kept = (save_as_before(store, n, images_of(3, value=100.0)) for n in (1, 2))
    twins = [tmp_path / "dropped", tmp_path / "kept"]  # second names of the same blocks
    for twin, path in zip(twins, (dropped, kept), strict=True):
        twin.hardlink_to(path)
    save(store, 3, images_of(3))

    assert numbers(store) == [2, 3]
    assert float(load(store, before=3).images.mean()) == 103.0
    needle = torch.full((4,), 103.0).numpy().tobytes()
    assert not any(needle in path.read_bytes() for path in [*files(store), *twins])
    assert store.unchecked() == []


def test_a_deleted_state_is_an_error_never_an_empty_one(store: Store) -> None:
    store.settle("r0002", "forget", CLASS_3)
    state = store.folder / "state.json"
    kept = state.read_bytes()
    state.unlink()
    (line,) = store.verify()
    assert line.startswith(f"{state} must exist beside its copy")
    with pytest.raises(StoreError, match="it records what was forgotten"):
        store.state()
    with pytest.raises(StoreError, match="restore it: cp"):
        store.settle("r0003", "relearn", CLASS_3)
    state.write_bytes(kept)
    state.chmod(0o600)
    assert store.verify() == []


def test_a_lost_tombstone_is_found_by_the_requests_that_were_applied(store: Store) -> None:
    store.settle("r0002", "forget", ForgetSpec("class", (3, 5)))
    store.settle("r0003", "forget", ForgetSpec("client", (), ("a",)))
    store.settle("r0004", "relearn", CLASS_3)
    store.settle("condense r0005", "condense", CLASS_3)
    assert store.verify() == []
    state = store.folder / "state.json"
    raw = json.loads(state.read_text())
    del raw["tombstones"]["r0002"]
    for path in files(store):
        path.write_text(json.dumps(raw))
    (line,) = store.verify()
    assert line.startswith(f"{state} must hold the tombstone of r0002, got none")
    assert "classes 3, 5" in line


def test_a_lost_tombstone_of_an_older_store_is_found_where_nothing_was_relearned(
    store: Store,
) -> None:
    store.settle("r0002", "forget", CLASS_3)
    state = store.folder / "state.json"
    (store.folder / "state.copy.json").unlink()
    older = {"format": 1, "applied": {"r0002": "forget"}, "tombstones": {}}
    state.write_text(json.dumps(older))
    (line,) = store.verify()
    assert "tombstone of r0002" in line
    state.write_text(json.dumps(older | {"applied": {"r0002": "forget", "r0003": "relearn"}}))
    assert store.verify() == []
    assert any("has no copy" in note for note in store.unchecked())


def test_state_and_copy_that_differ_are_told(store: Store) -> None:
    store.settle("r0002", "forget", CLASS_3)
    copy = store.folder / "state.copy.json"
    former = copy.read_bytes()
    store.settle("r0003", "forget", ForgetSpec("class", (5,)))
    copy.write_bytes(former)
    (line,) = store.verify()
    assert "must be the same as" in line
    # The message arrives once more, as after a stop between the two files: that mends it.
    assert not store.settle("r0003", "forget", ForgetSpec("class", (5,)))
    assert store.verify() == []
    copy.unlink()
    (line,) = store.verify()
    assert line.startswith(f"{copy} must exist")
