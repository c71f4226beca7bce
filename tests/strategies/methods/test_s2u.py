"""S2U: who is scaled by how much, and that scale 1 is federated averaging."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.app import app
from client.errors import BadSetting
from client.steps.training import Fit
from client.wire import ForgetSpec
from server.nodes.engines.inline import InlineGrid
from strategies.methods.s2u import ScaleToUnlearn
from strategies.rounds.base import FederatedAveraging, NothingTouched
from strategies.rounds.scaling import ScaledAveraging
from tests.messages import told, weights
from tests.recording import MODEL, Recording

LEAVERS = ForgetSpec("client", (), ("client-0", "client-2"))
FIT = {"steps": 2, "lr": 0.1, "batch_size": 16, "max_samples": 90}


def test_the_leavers_count_less_and_the_others_more() -> None:
    federation: Any = Recording(LEAVERS)
    options = {"down": "0.25", "up": "1.5", "rounds": "4"}
    ScaleToUnlearn().with_values(options).forget(federation, MODEL)
    assert federation.phases == ["holders", "unlearn"]
    assert federation.first("holders").settings is False  # counted by their real data
    step = federation.first("unlearn")
    assert (step.num_rounds, step.model) == (4, MODEL)
    # The leavers train once more, on what they have: all nodes are asked, and nothing is left out.
    assert (step.participants, step.settings) == (None, federation.ordinary(side="all"))
    assert (step.rounds.scales, step.rounds.others) == ({"client-0": 0.25, "client-2": 0.25}, 1.5)


def test_a_client_that_nobody_is_cannot_leave() -> None:
    federation: Any = Recording(LEAVERS, nobody=True)
    with pytest.raises(NothingTouched):
        ScaleToUnlearn().forget(federation, MODEL)
    assert federation.phases == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down": "1.1"}, r"down must lie in \[0, 1\], got 1.1"),
        ({"up": "0.9"}, "up must be at least 1, got 0.9"),
    ],
)
def test_scales_the_wrong_way_round_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        ScaleToUnlearn().with_values(options)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path))

    def run(rounds: Any) -> dict[str, np.ndarray[Any, Any]]:
        with InlineGrid(app, 3) as grid:
            result = rounds.start(grid, weights(), num_rounds=2)
        return {name: array.numpy() for name, array in result.arrays.items()}

    return run


def test_scale_one_is_federated_averaging(trained: Any) -> None:
    leaver = {"forget_level": "client", "forget_clients": ["client-0"]}
    asked = told(Fit, side="all", **FIT, **leaver)
    plain = trained(FederatedAveraging(asked))
    scaled = trained(ScaledAveraging(asked, scales={"client-0": 1.0}, others=1.0))
    for name in plain:
        # theta + sum of a_i (theta_i - theta) instead of sum of a_i theta_i: the last bit of
        # float32 may differ, and is amplified by the second round.
        np.testing.assert_allclose(scaled[name], plain[name], rtol=1e-4, atol=1e-6)


def test_scale_zero_is_a_smaller_step_of_averaging_without_the_leaver(trained: Any) -> None:
    leaver = {"forget_level": "client", "forget_clients": ["client-0"]}
    # Three clients of equal size: two of three remain, so that 3 / 2 makes up for the third.
    left = trained(ScaledAveraging(told(Fit, side="all", **FIT, **leaver),
                                   scales={"client-0": 0.0}, others=1.5))  # fmt: skip
    without = trained(FederatedAveraging(told(Fit, side="retain", **FIT, **leaver)))
    for name in without:
        np.testing.assert_allclose(left[name], without[name], rtol=1e-4, atol=1e-6)
