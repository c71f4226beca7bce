"""The steps of a sum at real sites: their own policies, keys and pinned peers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from client.keys import public_text
from client.policy import FILE, Policy, make_site
from client.steps.measuring import Describe, Heldout, Totals
from client.steps.training import Fit
from client.store import Store
from strategies.rounds.base import ClientLost, FederatedAveraging, Rounds
from strategies.rounds.secure import SecureGrid
from tests.messages import told, weights
from tests.sum_grids import Between, one_round, open_grid

NAMES = [f"client-{i}" for i in range(3)]


def write_data(path: Path, seed: int) -> None:
    draws = np.random.default_rng(seed)
    labels = np.arange(400) % 2  # 20 of each are held out: enough to be measured
    images = draws.integers(0, 256, (400, 8, 8), dtype=np.uint8)
    np.savez(path, train_images=images, train_labels=labels, num_classes=10)


def pin(folders: dict[str, Path], **other: str) -> None:
    """Write each site's peers into its policy."""
    keys = {name: public_text(Policy.load(f / FILE).key()) for name, f in folders.items()}
    for name, folder in folders.items():
        peers = {peer: key for peer, key in {**keys, **other}.items() if peer != name}
        text = (folder / FILE).read_text()
        (folder / FILE).write_text(
            text + "".join(f'"{peer}" = "{key}"\n' for peer, key in peers.items())
        )


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name in NAMES:
        make_site(tmp_path / name, name)
        made[name] = tmp_path / name
        write_data(made[name] / "data.npz", NAMES.index(name))
    return made


@pytest.fixture
def grid(folders: dict[str, Path]) -> Iterator[Between]:
    with open_grid(3) as made:
        for node, name in enumerate(NAMES, start=1):
            made.inner.contexts[node].node_config = {  # type: ignore[attr-defined]
                "data": f"npz:{folders[name] / 'data.npz'}",
                "store": str(folders[name] / "store"),
                "policy": str(folders[name] / FILE),
            }
        yield made


def fit(**more: Any) -> FederatedAveraging:
    values = {"steps": 3, "batch_size": 16, "lr": 0.1, "sums_only": True, "simulation": None}
    return FederatedAveraging(told(Fit, **{**values, **more}))


def test_three_sites_that_answer_in_sums_alone_train_together(
    grid: Between, folders: dict[str, Path]
) -> None:
    pin(folders)
    model, metrics, rounds = one_round(SecureGrid(grid), fit())
    assert rounds.failures == []
    assert metrics["num-examples"] == 3 * 360  # of 400 a tenth is held out
    start = weights()
    assert any(not np.array_equal(model[n].numpy(), start[n].numpy()) for n in model)
    for kind in (Heldout, Totals):
        asked = Rounds(told(kind, simulation=None, sums_only=True, holdout=0.1))
        replies = SecureGrid(grid).send_and_receive(
            list(asked.configure_train(0, model, ConfigRecord(), grid))
        )
        found = [r.content.metric_records["metrics"]["num-examples"] for r in replies]
        known = 3 * (40 if kind is Heldout else 360)
        assert sum(found) == pytest.approx(known)  # type: ignore[arg-type]
    for folder in folders.values():
        assert Store(folder / "store").verify() == []


def test_a_site_that_answers_in_sums_refuses_all_else(
    grid: Between, folders: dict[str, Path]
) -> None:
    pin(folders)
    with pytest.raises(ClientLost, match="this site answers in sums only"):
        one_round(grid, fit(sums_only=False))
    rounds = Rounds(told(Describe, simulation=None))
    described = list(rounds.configure_train(0, weights(), ConfigRecord(), grid))
    for reply in SecureGrid(grid).send_and_receive(described):
        numbers = reply.content.metric_records["metrics"]
        assert all(numbers[name] in (0, 1, [0.0] * 10) for name in Describe.message.metrics)


def test_a_peer_that_is_not_pinned_takes_no_part(grid: Between, folders: dict[str, Path]) -> None:
    with pytest.raises(ClientLost, match=r"peer client-1 must be pinned at this node"):
        one_round(SecureGrid(grid), fit())


def test_a_peer_with_another_key_than_is_pinned_takes_no_part(
    grid: Between, folders: dict[str, Path], tmp_path: Path
) -> None:
    stranger = make_site(tmp_path / "stranger", "stranger")
    pin(folders, **{"client-2": public_text(stranger.key())})
    with pytest.raises(ClientLost, match="keys of client-2 must be signed by the key"):
        one_round(SecureGrid(grid), fit())


def test_the_sites_own_log_says_whose_sum_it_was(grid: Between, folders: dict[str, Path]) -> None:
    pin(folders)
    one_round(SecureGrid(grid), fit())
    text = "".join(p.read_text() for p in (folders["client-0"] / "store" / "log").glob("*.jsonl"))
    assert text.count('"in_sum_of": "client-0, client-1, client-2"') == 5
    assert "query.unmask" in text


def test_a_sum_that_was_left_half_way_is_destroyed_by_the_next(
    grid: Between, folders: dict[str, Path]
) -> None:
    pin(folders)

    def stop(message: Message) -> Message | None:
        return None if message.metadata.message_type == "query.confirm" else message

    grid.down = stop
    with pytest.raises(ClientLost):
        one_round(SecureGrid(grid), fit())
    part = folders["client-0"] / "store" / "_sums" / "part.json"
    left = part.read_text()
    assert part.stat().st_mode & 0o777 == 0o600
    grid.down = Between.down
    one_round(SecureGrid(grid), fit())
    assert not part.exists()
    assert '"masking"' in left
