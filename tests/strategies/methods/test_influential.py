"""Influential channels: which are chosen."""

from typing import Any

import numpy as np
import pytest
import torch

from client.errors import BadSetting
from strategies.methods.influential import CentralisedChannels, DecentralisedChannels, explained


def picked(accuracy: list[float], loss: list[float], **options: str) -> tuple[int, ...]:
    chosen: Any = DecentralisedChannels().with_values(options)
    found = chosen.picked(
        {"body.0": np.array(accuracy)}, {"body.0": np.array(loss)}, torch.Generator().manual_seed(0)
    )
    result: tuple[int, ...] = found["body.0"]
    return result


def test_the_channels_whose_loss_hurts_most_are_chosen() -> None:
    # ceil(0.5 * 4) = 2: those that cost 30 and 20 points.
    assert picked([0.0, 30.0, -5.0, 20.0], [0.0] * 4, delta="0.5") == (1, 3)


def test_equal_effects_are_ordered_by_the_loss_then_by_number() -> None:
    assert picked([5.0, 5.0, 5.0], [0.1, 0.3, 0.2], delta="0.5") == (1, 2)
    assert picked([5.0, 5.0, 5.0], [0.1, 0.1, 0.1], delta="0.5") == (0, 1)


def test_every_layer_gives_at_least_one_channel() -> None:
    assert picked([1.0, 2.0], [0.0, 0.0], delta="0.01") == (1,)


def test_a_share_is_rounded_up() -> None:
    # ceil(0.34 * 3) = 2, and all of them for delta 1.
    assert picked([1.0, 2.0, 3.0], [0.0] * 3, delta="0.34") == (1, 2)
    assert picked([1.0, 2.0, 3.0], [0.0] * 3, delta="1") == (0, 1, 2)


def test_the_control_draws_channels_whatever_their_effect() -> None:
    effects = [100.0, *[0.0] * 49]
    drawn = picked(effects, effects, delta="0.1", select="random")
    assert len(drawn) == 5
    assert drawn == picked([0.0] * 50, [0.0] * 50, delta="0.1", select="random")
    assert drawn != picked(effects, effects, delta="0.1")


@pytest.mark.parametrize("method", [DecentralisedChannels, CentralisedChannels])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": "0"}, r"delta must lie in \(0, 1\], got 0"),
        ({"delta": "1.2"}, r"delta must lie in \(0, 1\], got 1.2"),
        ({"select": "best"}, "select must be one of effect, random, got 'best'"),
    ],
)
def test_bad_options_are_refused(method: Any, options: dict[str, str], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        method().with_values(options)


def test_the_report_gets_effects_by_channel_and_the_choice() -> None:
    accuracy, loss = {"body.0": np.array([1.0, 2.0])}, {"body.0": np.array([0.5, 0.25])}
    found = explained(accuracy, loss, {"body.0": (1,)})
    assert found["chosen"] == {"body.0": [1]}
    assert found["scores"]["body.0"]["values"] == [[1.0, 0.5], [2.0, 0.25]]
