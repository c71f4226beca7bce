"""Messages answered under noise: what is noised, what is paid, what is refused."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message

from client.app import app
from client.budget import Budget, Mechanism, epsilon
from client.data.site import SIMULATED_STORES
from client.errors import BadSetting
from client.learning.models import build
from client.learning.spec import image_model
from client.messages import CLASS_3, Common
from client.policy import Policy, PolicyError
from client.seeds import generator
from client.steps.ascent import Ascend
from client.steps.channels import FitChannels
from client.steps.measuring import Describe, Heldout
from client.steps.recovery import Descend
from client.steps.training import Fit
from server.nodes.engines.inline import InlineGrid
from tests.messages import NUM_CLIENTS, message, told, weights

NOISE = {"noise_multiplier": 1.0, "clip_norm": 1.0}
STEPS = {"steps": 4, "batch_size": 18, "lr": 0.1, "scale": 0}  # of 90 examples: a fifth a step
FOUR = Mechanism(1.0, 0.2, 4)


@pytest.fixture(autouse=True)
def _stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EFFACE_DATA_DIR", "EFFACE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(SIMULATED_STORES, str(tmp_path / "stores"))


@pytest.fixture
def grid() -> Iterator[InlineGrid]:
    with InlineGrid(app, NUM_CLIENTS, node_config={}, workers=1) as made:
        yield made


def ask(grid: InlineGrid, kind: type[Common], **said: Any) -> Message:
    config = told(kind, **said).config()
    (reply,) = grid.send_and_receive([message(kind.message.name, config, weights())])
    return reply


def answer(grid: InlineGrid, kind: type[Common], **said: Any) -> tuple[dict[str, Any], Any]:
    reply = ask(grid, kind, **said)
    assert not reply.has_error(), reply.error
    arrays = {name: a.numpy() for name, a in reply.content.array_records["arrays"].items()}
    return dict(reply.content.metric_records["metrics"]), arrays


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def budget(tmp_path: Path) -> Budget:
    (folder,) = (tmp_path / "stores").glob("*/client-0")
    return Budget(folder)


# ---- training -----------------------------------------------------------------------------------


def test_training_tells_what_it_cost_and_nothing_that_was_not_noised(
    grid: InlineGrid, tmp_path: Path
) -> None:
    metrics, arrays = answer(grid, Fit, **STEPS, **NOISE)
    assert (metrics["num-examples"], metrics["num-steps"]) == (90, 4)
    # Of images as many as were to be expected; the loss stays here.
    assert (metrics["samples"], metrics["loss"]) == (72, 0.0)
    assert metrics["epsilon"] == epsilon([FOUR], 1e-5)
    assert metrics["delta"] == 1e-5
    assert [s.mechanism for s in budget(tmp_path).spent()] == [FOUR]
    # Every parameter moved: noise reaches all of them.
    before = {name: a.numpy() for name, a in weights().items()}
    assert all((arrays[name] != before[name]).all() for name in arrays)


def test_a_second_message_costs_more_than_the_first(grid: InlineGrid) -> None:
    first, _ = answer(grid, Fit, **STEPS, **NOISE, server_round=1)
    second, _ = answer(grid, Fit, **STEPS, **NOISE, server_round=2)
    assert first["epsilon"] < second["epsilon"] == epsilon([FOUR, FOUR], 1e-5)
    # Another lineage tells its own; both are paid from one budget.
    other, _ = answer(grid, Fit, **STEPS, **NOISE, lineage="r0002")
    assert other["epsilon"] == first["epsilon"]


def test_without_noise_nothing_is_paid_or_told(grid: InlineGrid, tmp_path: Path) -> None:
    metrics, _ = answer(grid, Fit, **STEPS)
    assert not {"epsilon", "delta"} & set(metrics)
    assert not list(tmp_path.rglob("budget*.json"))


def test_simulated_noise_follows_from_the_seed(grid: InlineGrid) -> None:
    once, again, other = (
        answer(grid, Fit, **STEPS, **NOISE, seed=seed, server_round=1)[1] for seed in (3, 3, 4)
    )
    assert same(once, again)
    assert not same(once, other)


def test_a_real_nodes_noise_follows_from_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # As an operator lends simulated shares: no engine of ours, a store of its own.
    monkeypatch.delenv(SIMULATED_STORES)
    with InlineGrid(app, 3, node_config={"store": str(tmp_path / "own")}, workers=1) as lent:
        once, again = (answer(lent, Fit, **STEPS, **NOISE, seed=3)[1] for _ in range(2))
    assert not same(once, again)


# ---- the other steps ----------------------------------------------------------------------------


ALL = {"batch_size": 90, "lr": 0.1}  # each batch is all that the step is about


@pytest.mark.parametrize(("kind", "said", "steps"), [
    (Fit, {"epochs": 2, **ALL}, 2),
    (Ascend, {"data": "original", "epochs": 2, **ALL, **CLASS_3}, 2),
    (Ascend, {"data": "subset", "scale": 2, "freeze_head": True, **ALL, **CLASS_3}, 1),
    (Descend, {"data": "original", "epochs": 3, "momentum": 0.5, **ALL}, 3),
    (Descend, {"data": "subset", "scale": 2, "epochs": 2, "hold": 1.0, "hold_features": 0.5,
               "freeze_head": True, **ALL, **CLASS_3}, 2),
    (FitChannels, {"channels": ["body.0:0,3"], "epochs": 3, **ALL}, 3),
])  # fmt: skip
def test_each_step_on_real_data_is_noised_and_paid(
    grid: InlineGrid, tmp_path: Path, kind: type[Common], said: dict[str, Any], steps: int
) -> None:
    metrics, noised = answer(grid, kind, **said, **NOISE)
    (spent,) = budget(tmp_path).spent()
    assert (spent.message, spent.mechanism) == (kind.message.name, Mechanism(1.0, 1.0, steps))
    assert metrics["epsilon"] == epsilon([spent.mechanism], 1e-5)
    assert (metrics["num-steps"], metrics["loss"]) == (steps, 0.0)
    # Next to no noise and a wide clip: what the step does without, up to rounding.
    plain, arrays = answer(grid, kind, **said)
    near_metrics, near = answer(grid, kind, **said, noise_multiplier=1e-9, clip_norm=1e4)
    assert near_metrics["num-examples"] == plain["num-examples"] == metrics["num-examples"]
    for name in arrays:
        assert np.allclose(near[name], arrays[name], atol=1e-4)
    assert any(not np.allclose(noised[name], arrays[name], atol=1e-4) for name in arrays)
    if said.get("freeze_head"):  # with noise and without
        sent = weights()
        for found in (arrays, noised):
            still = {name for name in found if np.array_equal(found[name], sent[name].numpy())}
            assert still >= {"classifier.weight", "classifier.bias"}


def test_held_out_counts_are_noised_and_their_losses_stay(grid: InlineGrid, tmp_path: Path) -> None:
    plain, _ = answer(grid, Heldout, holdout=0.5)
    found = []
    for round_ in range(200):
        noised, _ = answer(grid, Heldout, holdout=0.5, **NOISE, server_round=round_)
        assert noised["retain-count-per-class"] == plain["retain-count-per-class"]
        assert set(noised["retain-loss-per-class"]) == {0.0}
        for right, count in zip(
            noised["retain-correct-per-class"], noised["retain-count-per-class"], strict=True
        ):
            assert 0 <= right <= count
            assert right == int(right)
        found.append(noised["retain-correct-per-class"])
    assert len({tuple(one) for one in found}) > 150
    (spent,) = budget(tmp_path).spent()
    assert spent.mechanism == Mechanism(10.0, 1.0, 200)


@pytest.mark.parametrize(("kind", "said", "why"), [
    (Fit, {"steps": 1, "lr": 0.1, "scale": 10}, "scale must be 0 under noise, got 10"),
    (Fit, {"steps": 1, "lr": 0.1, "optimiser": "quasi-newton"}, "optimiser must be sgd under"),
    (Fit, {"steps": 1, "lr": 0.1, "precision": "bfloat16"}, "precision must be float32 under"),
    (Ascend, {"lr": 0.1, **CLASS_3}, "data must not be synthetic under noise"),
    (Ascend, {"lr": 0.1, "data": "original", "target_losses": [1.0] * 10, **CLASS_3},
     "target-losses must be none under noise, got 10"),
    (Descend, {"lr": 0.1}, "data must be subset or original under noise, got synthetic"),
    (Descend, {"lr": 0.1, "data": "subset", "scale": 2, "hold_beside": 1.0},
     "hold-beside must be 0 under noise, got 1"),
    (Descend, {"lr": 0.1, "data": "subset+original", "scale": 2}, "one example may be in a"),
])  # fmt: skip
def test_what_cannot_be_noised_is_refused_before_it_is_paid(
    grid: InlineGrid, tmp_path: Path, kind: type[Common], said: dict[str, Any], why: str
) -> None:
    reason = ask(grid, kind, **said, **NOISE).error.reason
    assert "[noise-required]" in reason
    assert why in reason
    assert not list(tmp_path.rglob("budget*.json"))


def test_batchnorm_is_refused_under_noise_before_it_is_paid(
    grid: InlineGrid, tmp_path: Path
) -> None:
    spec = image_model("resnet8", num_classes=10, channels=1, image_size=8, width=8, depth=2)
    arrays = ArrayRecord(build(spec, generator(0)).state_dict())
    config = told(Fit, **STEPS, **NOISE, **Fit.of_model(spec)).config()
    (reply,) = grid.send_and_receive([message("train.fit", config, arrays)])
    assert "model must have no BatchNorm under noise" in reply.error.reason
    assert not list(tmp_path.rglob("budget*.json"))


# ---- a policy -----------------------------------------------------------------------------------


def policy(tmp_path: Path, **privacy: Any) -> dict[str, str]:
    lines = [f"{key.replace('_', '-')} = {value}" for key, value in privacy.items()]
    path = tmp_path / "policy.toml"
    path.write_text(
        f'name = "client-0"\n[data]\nsplit-seed = "{"1" * 64}"\n'
        '[answers]\nupdates = "single"\n[privacy]\nrequired = true\n' + "\n".join(lines) + "\n"
    )
    path.chmod(0o600)
    return {"policy": str(path)}


def test_a_policy_decides_on_noise_and_clip_and_messages_can_only_be_stricter(
    tmp_path: Path,
) -> None:
    law = policy(tmp_path, noise_multiplier=2.0, clip_norm=0.5, epsilon=10_000.0)
    with InlineGrid(app, NUM_CLIENTS, node_config=law, workers=1) as grid:
        for round_, (asked, done) in enumerate([(0.0, 2.0), (1.0, 2.0), (3.0, 3.0)]):
            answer(grid, Fit, **STEPS, noise_multiplier=asked, clip_norm=9.0, server_round=round_)
            assert budget(tmp_path).spent()[-1].mechanism.noise == done
        # Of one step of lr 1 on 18 expected: deviation z C / 18, where next to nothing is clipped
        # off. With a clip of 9 it is the policy's 0.5, and 0.1 stays 0.1.
        said = {**STEPS, "steps": 1, "lr": 1.0, "noise_multiplier": 100.0}
        begun = {name: a.numpy() for name, a in weights().items()}
        for clip_norm, least in ((9.0, 0.5), (0.5, 0.5), (0.1, 0.1)):
            _, arrays = answer(grid, Fit, **said, clip_norm=clip_norm)
            moved = np.concatenate([(arrays[n] - begun[n]).ravel() for n in begun])
            assert float(moved.std()) == pytest.approx(100.0 * least / 18, rel=0.1)


def test_a_sites_noise_follows_from_nothing_whatever_the_environment_says(tmp_path: Path) -> None:
    # As on a machine where simulations ran: the coordinator knows the seed.
    assert os.environ[SIMULATED_STORES]
    law = policy(tmp_path, epsilon=10_000.0)
    with InlineGrid(app, NUM_CLIENTS, node_config=law, workers=1) as grid:
        once, again = (answer(grid, Fit, **STEPS, seed=3)[1] for _ in range(2))
    assert not same(once, again)


def test_a_clip_too_short_for_float32_is_refused(tmp_path: Path) -> None:
    # What is clipped to less than the smallest numbers is rounded up, beyond the noise's promise.
    with pytest.raises(BadSetting, match="clip-norm must be at least 1e-06, got 1e-45"):
        Fit.parse(told(Fit, **STEPS, noise_multiplier=1.0, clip_norm=1e-45).config())
    policy(tmp_path, clip_norm=1e-45)
    with pytest.raises(PolicyError, match=r"privacy\.clip-norm must be at least 1e-06"):
        Policy.load(tmp_path / "policy.toml")


def test_over_budget_is_refused_before_any_work_with_what_is_left(tmp_path: Path) -> None:
    limit = epsilon([FOUR, FOUR], 1e-5) + 0.001
    law = policy(tmp_path, noise_multiplier=1.0, epsilon=limit)
    with InlineGrid(app, NUM_CLIENTS, node_config=law, workers=1) as grid:
        for round_ in (1, 2):
            answer(grid, Fit, **STEPS, server_round=round_)
        reason = ask(grid, Fit, **STEPS, server_round=3).error.reason
        assert "[budget-spent]" in reason
        assert "0.001 is left: ask for fewer steps or more noise" in reason
        assert str(tmp_path) not in reason
        # Nor is there anything left for a glance at the held-out part, or another training.
        assert "[budget-spent]" in ask(grid, Heldout).error.reason
        assert "[budget-spent]" in ask(grid, Fit, **STEPS, lineage="r0009").error.reason
        answer(grid, Describe)  # counts are not covered, and cost nothing
    assert budget(tmp_path).epsilon(1e-5) == epsilon([FOUR, FOUR], 1e-5)
