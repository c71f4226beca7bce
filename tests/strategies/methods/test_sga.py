"""SGA-Or: the ascent on original data, how deep it goes, and the rounds after it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from client.app import app
from client.data.site import open_site
from client.learning.spec import ModelSpec
from client.own_task import offer
from client.steps.ascent import Ascend
from client.wire import Common, ForgetSpec
from server.nodes.engines.inline import InlineGrid
from strategies.methods.sga import GradientAscent
from strategies.rounds.base import AscentRounds
from tests.messages import network, told, weights
from tests.recording import MODEL, Recording
from tests.tasks.others import Sugar

CLIENT = ForgetSpec("client", (), ("client-0",))


class Own(Recording):
    """A federation whose task has a loss of its own."""

    @property
    def spec(self) -> ModelSpec:
        source = offer(Sugar)
        return ModelSpec.of(Sugar(), source.name, source.code)


def forget(federation: Any, **options: str) -> Any:
    GradientAscent().with_values(options).forget(federation, MODEL)
    return federation


def test_the_holders_ascend_on_their_original_data_and_then_all_descend() -> None:
    federation = forget(Recording(retain=99.0), threshold="0")
    # A class at 0 % is forgotten after one round; the rest is at 99 % as before.
    assert federation.phases == ["measure", "holders", "unlearn", "measure", "measure"]
    assert federation.first("holders").settings is False  # counted by their real data
    step = federation.first("unlearn")
    assert isinstance(step.settings, Ascend)
    assert (type(step.rounds), step.participants) == (AscentRounds, ["client-0", "client-2"])
    assert (step.settings.data, step.settings.lr, step.settings.epochs) == ("original", 0.02, 10)
    assert (step.settings.freeze_head, step.settings.freeze_stem) == (False, False)


def test_the_ascent_is_held_on_a_loss_of_the_tasks_own_alone() -> None:
    step = forget(Recording(CLIENT)).first("unlearn").settings
    assert (step.clip, step.radius, len(step.target_losses)) == (0.0, 0.0, 10)
    step = forget(Own(CLIENT), clip="2").first("unlearn").settings
    assert (step.clip, step.radius, step.target_losses) == (2.0, 0.33, [])


def test_a_class_that_is_still_known_is_ascended_again() -> None:
    federation = forget(Recording(accuracy=1.5), **{"unlearn-rounds": "3", "threshold": "1"})
    assert federation.phases.count("unlearn") == 3
    federation = forget(Recording(accuracy=1.5), **{"unlearn-rounds": "3", "threshold": "2"})
    assert federation.phases.count("unlearn") == 1


def test_a_client_is_ascended_in_all_rounds_whatever_its_accuracy() -> None:
    federation = forget(Recording(CLIENT, accuracy=0.0), **{"unlearn-rounds": "3"})
    assert federation.phases.count("unlearn") == 3


def test_recovery_ends_after_its_rounds() -> None:
    class Lost(Recording):
        def accuracies(self, model: Any) -> Any:
            self.retain = 99.0 if not self.steps else 40.0  # before the request, and after
            return super().accuracies(model)

    assert forget(Lost(), rounds="4").phases.count("recover") == 4


def test_depth_is_counted_in_guesses_and_may_have_no_end() -> None:
    aims = forget(Recording(), depth="2").first("unlearn").settings.target_losses
    assert aims == pytest.approx([2 * math.log(10)] * 10)
    assert forget(Recording(), depth="0").first("unlearn").settings.target_losses == []


def test_a_client_is_ascended_to_a_uniform_guess() -> None:
    def aims(**options: str) -> list[float]:
        told: list[float] = (
            forget(Recording(CLIENT), **options).first("unlearn").settings.target_losses
        )
        return told

    assert aims() == aims(depth="3") == pytest.approx([math.log(10)] * 10)
    assert aims(**{"client-depth": "2"}) == pytest.approx([2 * math.log(10)] * 10)


def test_a_round_on_one_node_is_one_step_up_the_loss_of_its_forget_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path))
    job = {"num_clients": 1, "max_samples": 100}
    asked = told(
        Ascend,
        data="original",
        lr=0.1,
        batch_size=1000,
        forget_level="class",
        forget_classes=[3],
        **job,
    )
    with InlineGrid(app, 1) as grid:
        result = AscentRounds(asked).start(grid, weights(), num_rounds=1)
    site = open_site(told(Common, **job), {"partition-id": 0})
    part = site.train.where(site.train.labels == 3)
    assert len(part) > 1
    own = network()
    cross_entropy(own(site.inputs(part)), part.labels).backward()
    for name, parameter in own.named_parameters():
        expected = (parameter + 0.1 * parameter.grad).detach()  # type: ignore[operator]
        found = torch.from_numpy(result.arrays[name].numpy())
        # The order of the images differs: sums in another order, in float32.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
