"""Rapid retraining: fewer rounds of quasi-Newton steps, from the initial weights."""

from typing import Any

import pytest

from client.errors import BadSetting
from client.wire import ForgetSpec
from strategies.federation import Accuracies
from strategies.methods.rapid_retraining import RapidRetraining
from strategies.rounds.base import FederatedAveraging
from tests.recording import INITIAL, MODEL, Recording


class Learning(Recording):
    """The original has 90 %; each round brings 30, 60, 90 %, and so on."""

    def accuracies(self, model: Any) -> Accuracies:
        self.retain = 90.0 if "unlearn" not in self.phases else 30.0 * self.phases.count("unlearn")
        return super().accuracies(model)


def forget(federation: Any, **options: str) -> Any:
    RapidRetraining().with_values(options).forget(federation, MODEL)
    return federation


@pytest.mark.parametrize(
    "spec", [ForgetSpec("class", (3,)), ForgetSpec("client", (), ("client-0",))]
)
def test_it_starts_again_and_ends_when_the_accuracy_is_back(spec: ForgetSpec) -> None:
    federation = forget(Learning(spec))
    assert federation.phases == ["measure", *["unlearn", "measure"] * 3]
    step = federation.first("unlearn")
    assert (type(step.rounds), step.model, step.num_rounds) == (FederatedAveraging, INITIAL, 1)
    told = step.settings
    assert (told.optimiser, told.curvature, told.side) == ("quasi-newton", "fisher", "retain")
    # The share of nodes that training drew, of those that have data left.
    assert set(step.participants) == {"client-0", "client-1", "client-2"} - set(spec.clients)
    assert (step.rounds.fraction, step.rounds.min_share) == (0.5, 0.25)


def test_points_that_may_be_missing_end_it_earlier() -> None:
    assert forget(Learning(), tolerance="30").phases.count("unlearn") == 2
    assert forget(Learning(), tolerance="29").phases.count("unlearn") == 3


@pytest.mark.parametrize(("options", "expected"), [({}, 7), ({"rounds": "2"}, 2)])
def test_it_ends_with_the_rounds_where_nothing_is_held_out(
    options: dict[str, str], expected: int
) -> None:
    # Seven, as the original training had.
    assert forget(Recording(retain=None), **options).phases.count("unlearn") == expected


def test_options_reach_the_nodes() -> None:
    options = {"lr": "0.2", "beta1": "0.8", "beta2": "0.9", "hessian-power": "1", "eps": "0.5"}
    options["curvature"] = "hessian"
    told = forget(Learning(), **options).first("unlearn").settings
    found = (told.lr, told.beta1, told.beta2, told.hessian_power, told.eps, told.curvature)
    assert found == (0.2, 0.8, 0.9, 1.0, 0.5, "hessian")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hessian-power": "2"}, r"hessian-power must lie in \[0, 1\], got 2"),
        ({"curvature": "exact"}, "curvature must be one of fisher, hessian, got 'exact'"),
        ({"beta2": "1"}, r"beta2 must lie in \[0, 0.9999\], got 1"),
        ({"rounds": "-1"}, "rounds must be at least 0, got -1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        RapidRetraining().with_values(options)
