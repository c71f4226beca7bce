"""Secure aggregation among three real sites on a SuperLink, each with data and keys of its own."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from client.keys import public_text
from client.operator.folder import bundles_of
from client.policy import FILE, Policy
from server.cli.site_run import installed_bundle
from server.requests.intake import Service
from server.storage.home import Home
from tests.small_job import train, weights
from tests.superlink_harness import (
    RunningFederation,
    make_federation,
    running_federation,
    wait_until,
)

NAMES = ["site-a", "site-b", "site-c"]
JOB: dict[str, Any] = {
    **{"dataset": "none", "model_classes": 10, "model_channels": 1, "model_image_size": 8},
    **{"num_clients": 3, "rounds": 1, "scale": 0, "keep_updates": 0, "evaluate_every": 0},
}


@pytest.mark.processes
def test_sums_of_real_sites_are_what_their_own_updates_come_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_federation(tmp_path / "federation", []) as running:
        monkeypatch.setenv("FLWR_HOME", str(running.home))
        folders = sites(running, tmp_path)
        told = {**JOB, "connection": running.connection}
        train(tmp_path / "single", "superlink", **told)
        train(tmp_path / "sums", "superlink", **told, secure_aggregation=True)
        assert not any("Traceback" in running.log(name) for name in NAMES)
    here, there = weights(tmp_path / "single", "v0001"), weights(tmp_path / "sums", "v0001")
    for name in here:
        np.testing.assert_allclose(there[name], here[name], rtol=1e-3, atol=1e-4)
    card = Service.open(Home(tmp_path / "sums")).registry.load("v0001")[1]
    assert card["settings"]["secure-aggregation"]
    for folder in folders:  # of the sum's keys nothing is left
        left = sorted(path.name for path in (folder / "store" / "_sums").iterdir())
        assert left == ["begun", "revealed.jsonl"]


def sites(running: RunningFederation, folder: Path) -> list[Path]:
    """Start three sites that know each other's keys; return their folders."""
    for name in NAMES:
        make_federation(running.folder, "node-key", name)
    running.register(*NAMES)
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)
    folders = []
    for i, name in enumerate(NAMES):
        held = slice(200 * i, 200 * (i + 1))
        data = folder / f"{name}.npz"
        np.savez(data, train_images=images[held], train_labels=digits.target[held])
        policy = {"updates": '"single"'}  # so that the coordinator may ask for both
        folders.append(running.start_site(name, {"data": f"npz:{data}"}, policy=policy))
    keys = {site.name: public_text(Policy.load(site / FILE).key()) for site in folders}
    mine = installed_bundle()
    for site in folders:
        peers = [f'{peer} = "{key}"\n' for peer, key in keys.items() if peer != site.name]
        with (site / FILE).open("a") as policy_file:  # [peers] is its last section
            policy_file.writelines(peers)
        bundles_of(site).allow(mine.hash, "the installed one", mine)
    wait_until(lambda: running.online() >= set(NAMES), running, time.monotonic() + 300)
    return folders
