"""Yardsticks that were kept: those that know what was erased since are destroyed."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.provenance import code
from server.requests.yardstick import CODE, of_other_code, sweep
from server.storage.ledger import Erased
from server.storage.registry import RegistryError, note_of, pack


def kept(cache: Path, name: str, **more: Any) -> Path:
    inputs = {
        "forget": {"level": "class", "classes": [3], "clients": []},
        "erased": [[1], []],
        "code": code(CODE),
        "federation": "ours",
        **more,
    }
    path = cache / f"retrained-{name}.safetensors"
    path.write_bytes(pack({"w": np.ones(4, np.float32)}, {"inputs": inputs, "cost": {}}))
    return path


def erased(federation: str) -> Erased:
    return Erased((1, 3), ("client-2",)) if federation == "ours" else Erased((7,))


def test_those_that_know_what_was_erased_since_go(tmp_path: Path) -> None:
    both = {"erased": [[1], ["client-2"]]}
    stay = [
        kept(tmp_path, "without", **both),
        kept(tmp_path, "wider", erased=[[1, 5], ["client-2"]]),
        kept(tmp_path, "of-other-code", code="0" * 64, **both),
    ]
    go = [
        kept(tmp_path, "knows-a-client"),
        kept(tmp_path, "knows-a-class", erased=[[], ["client-2"]]),
        kept(tmp_path, "elsewhere", federation="theirs", **both),
    ]
    broken = tmp_path / "retrained-broken.safetensors"
    broken.write_bytes(b"\xff" * 40)

    assert sweep(tmp_path, erased) == sorted([*go, broken])
    assert sorted(tmp_path.iterdir()) == sorted(stay)


def test_those_of_other_code_are_counted_whatever_their_seed(tmp_path: Path) -> None:
    def trained(seed: int, rounds: int = 30, **more: Any) -> dict[str, Any]:
        return {"training": {"seed": seed, "rounds": rounds, **more}}

    old = {"code": "0" * 64}
    kept(tmp_path, "this", **trained(0, **{"final-lr": 0.0}))  # which older releases did not have
    kept(tmp_path, "old-0", **trained(0), **old)
    kept(tmp_path, "old-1", **trained(17), **old)
    kept(tmp_path, "old-shorter", **trained(0, 20), **old)
    kept(tmp_path, "old-falling", **trained(0, **{"final-lr": 0.1}), **old)
    kept(tmp_path, "old-elsewhere", **trained(0), **old, federation="theirs")
    (tmp_path / "retrained-broken.safetensors").write_bytes(b"\xff" * 40)

    assert of_other_code(tmp_path, note_of(tmp_path / "retrained-this.safetensors")["inputs"]) == 2


def test_nothing_of_it_is_left_on_the_disk_but_for_another_home(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    path = kept(tmp_path / "own", "knows")
    descriptor = os.open(path, os.O_RDONLY)  # the blocks, after the name is gone
    sweep(tmp_path / "own", erased)
    assert set(os.read(descriptor, 1 << 16)) == {0}
    os.close(descriptor)

    shared = kept(tmp_path / "own", "shared")
    other = tmp_path / "other.safetensors"
    os.link(shared, other)
    sweep(tmp_path / "own", erased)
    assert not shared.exists()
    assert note_of(other)["inputs"]["federation"] == "ours"


def test_a_note_is_read_without_the_arrays(tmp_path: Path) -> None:
    path = kept(tmp_path, "one")
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert note_of(path)["inputs"]["federation"] == "ours"
    path.write_bytes(whole[:30])
    with pytest.raises(RegistryError, match="truncated or altered"):
        note_of(path)
