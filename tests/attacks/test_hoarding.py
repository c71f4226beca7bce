"""T13: real images copied into many lineages, newer generations deleted, a store open to all."""

from pathlib import Path

import pytest
import torch

from client.errors import StoreError
from client.policy import Policy
from client.steps.recovery import Descend
from client.steps.store import Settle
from client.steps.training import Fit
from client.store import Store, SyntheticSet
from tests.attacks.site import Hospital, hospital

COPY = {"data": "synthetic", "side": "all", "lr": 0.1, "forget_level": "class"}
COPY |= {"forget_classes": [5]}
FIT = {"steps": 2, "batch_size": 64, "lr": 0.1, "scale": 10}


def images(site: Hospital) -> int:
    newest = {g.lineage: sum(g.counts.values()) for g in Store(site.store).generations()}
    return sum(newest.values())


def test_a_scale_of_one_copies_nothing(tmp_path: Path) -> None:
    site = hospital(tmp_path)
    refused = site.refusal(Descend, **COPY, scale=1, lineage="X0")
    assert "scale must be 0 or at least 10 at site-a, got 1" in refused
    site.ask(Descend, **COPY, scale=0, lineage="X0")  # that is the policy's floor
    assert images(site) < len(site.labels) / 9


def test_lineages_and_bytes_have_an_end(tmp_path: Path) -> None:
    site = hospital(tmp_path, lineages="3")
    for number in range(3):
        site.ask(Fit, **FIT, lineage=f"X{number}", server_round=1)
    for kind, said in ((Fit, FIT), (Descend, {**COPY, "scale": 10})):
        refused = site.refusal(kind, **said, lineage="X3")
        assert "trainings with synthetic examples must be at most 3 at site-a" in refused
    site.ask(Fit, **FIT, lineage="X2", server_round=2)  # one that is known goes on

    small = hospital(tmp_path / "small", quota_mb="1")
    (small.store / "old").mkdir(parents=True, mode=0o700)
    small.store.chmod(0o700)
    (small.store / "old" / "000001.safetensors").write_bytes(bytes(2**20))
    assert "must take at most 1 MB at site-a" in small.refusal(Fit, **FIT)


def test_a_lower_round_deletes_no_newer_generation(tmp_path: Path) -> None:
    site = hospital(tmp_path)
    for server_round in (49, 50, 1, 2, 0):
        site.ask(Fit, **FIT, server_round=server_round, phase=f"train {server_round}")
    assert [g.number for g in Store(site.store).generations()] == [49, 50]


def test_an_earlier_generation_is_not_even_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", Policy.simulated("a"))
    one = SyntheticSet(torch.rand(5, 1, 8, 8), torch.zeros(5, dtype=torch.int64))
    for number in (5, 6, 4, 6, 5):
        store.save("r", number, one, model="m")
    assert [g.number for g in store.generations()] == [5, 6]
    store.save("r", 7, one, model="m")
    assert [g.number for g in store.generations()] == [6, 7]


def test_a_store_or_a_policy_open_to_others_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = hospital(tmp_path)
    site.ask(Fit, **FIT)
    for path, mode, mend in ((site.store, 0o777, "700"), (site.policy, 0o604, "600")):
        right = path.stat().st_mode & 0o777
        path.chmod(mode)
        caplog.clear()
        assert "NotPrivate: the node's own log says why" in site.refusal(Fit, **FIT)
        assert f"chmod {mend} {path}" in caplog.text
        path.chmod(right)
    site.ask(Fit, **FIT)


def test_a_damaged_store_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    site = hospital(tmp_path)
    site.ask(Settle, action="forget", destroy=False, forget_level="class", forget_classes=[9])
    (site.store / "state.json").unlink()
    with pytest.raises(StoreError, match="must exist beside its copy"):
        Store(site.store).state()
    assert "StoreError: the node's own log says why" in site.refusal(Fit, **FIT)
