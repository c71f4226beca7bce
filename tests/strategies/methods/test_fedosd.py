"""FedOSD: the phases, and the arithmetic of its two projections by hand."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from client.steps.fedosd import Gradient
from client.steps.training import Fit
from client.wire import ForgetSpec
from strategies.methods.fedosd import (
    NoWayBack,
    OrthogonalSteepestDescent,
    OrthogonalStep,
    TargetGradient,
    orthogonal,
    sideways,
)
from strategies.rounds.base import NothingTouched, Used
from strategies.table import METHODS
from tests.messages import told
from tests.recording import MODEL, Recording


def vector(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.float64)


def record(*values: float, **more: Array) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.array(values, dtype=np.float32)), **more})


def used(examples: float, arrays: ArrayRecord) -> Used:
    return Used(arrays, examples, {})


# ---- the protocol -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what", [ForgetSpec("class", (3,)), ForgetSpec("client", (), ("client-0",))]
)
def test_targets_give_a_gradient_then_the_others_and_the_server_steps(what: ForgetSpec) -> None:
    federation: Any = Recording(what)
    method = OrthogonalSteepestDescent().with_values({"unlearn-rounds": "2", "unlearn-lr": "3"})
    method.forget(federation, MODEL)
    assert federation.phases == [
        *("measure", "holders", "score", "unlearn", "score", "unlearn", "measure")
    ]
    assert federation.first("holders").settings is False  # counted by their real data
    score, unlearn = federation.first("score"), federation.first("unlearn")
    assert (type(score.rounds), score.participants) == (TargetGradient, ["client-0", "client-2"])
    assert score.rounds.takes_all
    assert not score.rounds.changes_model
    assert score.settings == federation.settings(Gradient, side="forget")
    left = ["client-1", "client-2"] if what.level == "client" else None
    assert type(unlearn.rounds) is OrthogonalStep
    assert unlearn.participants == (left or ["client-0", "client-1", "client-2"])
    assert unlearn.rounds.lr == 3.0
    assert unlearn.settings == federation.settings(Gradient, side="retain")


def test_post_training_goes_on_until_the_accuracy_is_back_and_knows_where_it_began() -> None:
    class Lost(Recording):
        def accuracies(self, model: Any) -> Any:
            self.retain = 99.0 if not self.steps else 10.0  # before the request, and after
            return super().accuracies(model)

    federation: Any = Lost()
    OrthogonalSteepestDescent().with_values({"rounds": "3"}).forget(federation, MODEL)
    assert federation.phases.count("recover") == 3
    recovery = federation.first("recover")
    assert (type(recovery.rounds), recovery.rounds.origin) == (NoWayBack, MODEL)
    assert recovery.settings == federation.ordinary()


def test_it_says_that_it_reads_single_updates() -> None:
    assert METHODS["fedosd"].needs.individual_updates


# ---- unlearning ---------------------------------------------------------------------------------


def test_a_step_conflicts_with_nobody_and_is_as_long_as_the_targets_gradient() -> None:
    # The others span the first two axes; of (3, 0, 4) the third is left, made 5 long.
    others = np.array([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [2.0, 2.0, 0.0]])
    np.testing.assert_allclose(orthogonal(vector(3, 0, 4), others), [0, 0, 5], atol=1e-12)


def test_a_gradient_of_zero_is_no_step() -> None:
    assert orthogonal(vector(0, 0), np.array([[1.0, 0.0]])).tolist() == [0.0, 0.0]


def test_a_gradient_that_the_others_span_is_an_error_and_no_noise() -> None:
    with pytest.raises(NothingTouched, match="must find a direction that no remaining client's"):
        orthogonal(vector(1, 2), np.array([[1.0, 0.0], [1.0, 1.0]]))


def test_the_server_steps_down_what_is_left_and_leaves_buffers_alone() -> None:
    towards = record(3.0, 4.0)
    step = OrthogonalStep(told(Gradient, side="retain"), towards=towards, lr=0.1)
    buffer = Array(np.array(7))
    step.sent = record(1.0, 1.0, **{"n.num_batches_tracked": buffer})
    # Without the second axis (0, 4) goes; (3, 0), made 5 long: (1, 1) - 0.1 * (5, 0).
    found = step.combine({"a": used(10, record(0.0, 2.0)), "b": used(1, record(0.0, -1.0))})
    np.testing.assert_allclose(found["w"].numpy(), [0.5, 1.0], rtol=1e-6)
    assert found["w"].numpy().dtype == np.float32
    assert int(found["n.num_batches_tracked"].numpy()) == 7


# ---- post-training ------------------------------------------------------------------------------


def test_an_update_keeps_its_length_and_loses_the_way_back() -> None:
    # The way is (2, 0): of (-3, 4) the second is left, made 5 long.
    np.testing.assert_allclose(sideways(vector(-3, 4), vector(2, 0)), [0, 5])
    assert sideways(vector(-3, 4), vector(0, 0)).tolist() == [-3, 4]
    assert sideways(vector(-3, 0), vector(2, 0)).tolist() == [0, 0]


def test_recovery_averages_projected_updates_by_examples() -> None:
    rounds = NoWayBack(told(Fit, lr=0.1, steps=1), origin=record(0.0, 0.0))
    rounds.sent = record(2.0, 0.0, **{"n.running_var": Array(np.array([1.0]))})

    def after(first: float, second: float, variance: float) -> ArrayRecord:
        more = {"n.running_var": Array(np.array([variance]))}
        return record(2.0 + first, second, **more)

    found = rounds.combine(
        {"a": used(30, after(-3.0, 4.0, 2.0)), "b": used(10, after(0.0, -1.0, 6.0))}
    )
    # (2, 0) + (30 * (0, 5) + 10 * (0, -1)) / 40; the variance (30 * 2 + 10 * 6) / 40.
    np.testing.assert_allclose(found["w"].numpy(), [2.0, 3.5], rtol=1e-6)
    np.testing.assert_allclose(found["n.running_var"].numpy(), [3.0])
