"""Methods as sequences of rounds: phases, participants and settings as in the papers."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from client import wire
from client.errors import BadSetting
from client.wire import Ascend, Condense, Descend, ForgetSpec
from strategies.methods import METHODS, method
from strategies.quickdrop import QuickDrop
from strategies.quickdrop_calibrated import CalibratedQuickDrop, without_directions
from strategies.retraining import train
from strategies.rounds import FederatedAveraging, NothingTouched
from tests.messages import told, values

MODEL = ArrayRecord(
    {
        "body.weight": Array(np.array([1.0, 2.0], dtype=np.float32)),
        "classifier.weight": Array(np.arange(20, dtype=np.float32).reshape(10, 2)),
        "classifier.bias": Array(np.arange(10, dtype=np.float32)),
    }
)


@dataclass
class Step:
    phase: str
    settings: Any = None
    participants: Any = None
    num_rounds: int = 0
    model: Any = None


@dataclass
class Recording:
    """A federation that writes down what is asked of it and returns the model as it was."""

    forget: ForgetSpec = field(default_factory=lambda: ForgetSpec("class", (3,)))
    accuracy: float | None = 0.0
    nobody: bool = False
    steps: list[Step] = field(default_factory=list)

    def settings(self, kind: Any, **more: Any) -> Any:
        return kind(
            **values(
                forget_level=self.forget.level,
                forget_classes=list(self.forget.classes),
                forget_clients=list(self.forget.clients),
                **more,
            )
        ).check()

    def holders(self, *, synthetic: bool) -> list[str]:
        if self.nobody:
            raise NothingTouched("nobody holds it")
        self.steps.append(Step("holders", synthetic))
        return ["client-0", "client-2"]

    def run(self, phase: str, rounds: Any, model: ArrayRecord, *, num_rounds: int) -> ArrayRecord:
        self.steps.append(Step(phase, rounds.settings, rounds.participants, num_rounds, model))
        return model

    def forget_accuracy(self, model: ArrayRecord) -> float | None:
        self.steps.append(Step("measure", model=model))
        return self.accuracy

    def condense(self, settings: Condense) -> None:
        self.steps.append(Step("condense", settings))

    @property
    def phases(self) -> list[str]:
        return [step.phase for step in self.steps]

    def first(self, phase: str) -> Step:
        return next(step for step in self.steps if step.phase == phase)


# ---- QuickDrop ----------------------------------------------------------------------------------


def test_quickdrop_climbs_once_with_the_holders_then_recovers_with_all() -> None:
    federation = Recording()
    QuickDrop().forget(federation, MODEL)  # type: ignore[arg-type]

    assert federation.phases == ["holders", "unlearn", "recover", "measure", "recover", "measure"]
    assert federation.first("holders").settings is True  # counted by their synthetic data
    ascent = federation.first("unlearn")
    assert isinstance(ascent.settings, Ascend)
    assert (ascent.participants, ascent.num_rounds) == (["client-0", "client-2"], 1)
    assert (ascent.settings.data, ascent.settings.lr) == ("synthetic", 0.02)
    assert (ascent.settings.target_loss, ascent.settings.freeze_head) == (0.0, False)
    recovery = federation.first("recover")
    assert isinstance(recovery.settings, Descend)
    assert recovery.participants is None  # everybody with data left
    assert (recovery.settings.data, recovery.settings.side) == ("synthetic+original", "retain")
    assert (recovery.settings.hold, recovery.settings.hold_features) == (0.0, 0.0)


def test_the_synthetic_sets_are_fine_tuned_between_the_two_if_asked_for() -> None:
    federation = Recording()
    chosen = replace(QuickDrop(), finetune_steps=2, recover_rounds=1)
    chosen.forget(federation, MODEL)  # type: ignore[arg-type]
    assert federation.phases == ["holders", "unlearn", "condense", "recover", "measure"]
    assert federation.first("condense").settings.outer_steps == 2


def test_a_client_is_forgotten_without_the_guard() -> None:
    # Its data are like the others': they are not forgotten at zero accuracy.
    federation = Recording(ForgetSpec("client", (), ("client-0",)), accuracy=90.0)
    QuickDrop().forget(federation, MODEL)  # type: ignore[arg-type]
    assert federation.phases == ["holders", "unlearn", "recover", "recover"]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_nobody_holds_is_an_error_before_any_round(name: str) -> None:
    federation: Any = Recording(nobody=True)
    for act in (method(name, "class").forget, method(name, "class").relearn):
        with pytest.raises(NothingTouched):
            act(federation, MODEL)
    assert federation.steps == []


@pytest.mark.parametrize("name", sorted(METHODS))
def test_relearning_is_on_all_data_and_ends_with_all_nodes(name: str) -> None:
    federation: Any = Recording()
    method(name, "class").relearn(federation, MODEL)
    assert federation.phases[0] == "holders"
    assert set(federation.phases[1:]) == {"relearn"}
    assert federation.first("holders").settings is False  # real data count: the rest is destroyed
    assert {step.settings.side for step in federation.steps[1:]} == {"all"}
    assert federation.steps[-1].participants is None


# ---- the calibrated variant ---------------------------------------------------------------------


def test_the_calibrated_ascent_aims_at_the_loss_of_a_class_never_seen() -> None:
    federation = Recording()
    CalibratedQuickDrop().forget(federation, MODEL)  # type: ignore[arg-type]
    told_ = federation.first("unlearn").settings
    assert told_.target_loss == pytest.approx(math.log(10))  # a uniform guess over 10 classes
    assert told_.freeze_head
    recovery = federation.first("recover")
    assert recovery.settings.hold > 0
    assert recovery.settings.hold_features > 0
    # Recovery starts from the model without the class's direction.
    assert recovery.model["classifier.bias"].numpy()[3] != 3.0


def test_a_classs_row_becomes_the_mean_of_the_others() -> None:
    found = without_directions(MODEL, (3,))
    # Bias 0..9 without 3: (45 - 3) / 9. Weights 2k and 2k + 1: twice that, and one more.
    mean = 42 / 9
    bias, weight = found["classifier.bias"].numpy(), found["classifier.weight"].numpy()
    assert bias.tolist() == pytest.approx([0, 1, 2, mean, 4, 5, 6, 7, 8, 9])
    assert weight[3].tolist() == pytest.approx([2 * mean, 2 * mean + 1])
    assert np.array_equal(np.delete(weight, 3, 0), np.delete(np.arange(20).reshape(10, 2), 3, 0))
    assert (bias.dtype, weight.dtype) == (np.float32, np.float32)
    assert np.array_equal(found["body.weight"].numpy(), MODEL["body.weight"].numpy())
    assert list(found) == list(MODEL)
    # The argument is left as it was.
    assert MODEL["classifier.bias"].numpy().tolist() == list(range(10))


def test_several_classes_get_the_mean_of_those_that_stay() -> None:
    found = without_directions(MODEL, (8, 9))["classifier.bias"].numpy()
    assert found.tolist() == pytest.approx([*range(8), 3.5, 3.5])  # (0 + ... + 7) / 8


def test_no_class_leaves_the_last_layer() -> None:
    found = without_directions(MODEL, ())
    assert all(np.array_equal(found[name].numpy(), MODEL[name].numpy()) for name in MODEL)


# ---- retraining ---------------------------------------------------------------------------------


def test_retraining_is_plain_federated_averaging() -> None:
    federation: Any = Recording()
    settings = told(wire.Fit, steps=1, lr=0.1)
    rounds: list[Any] = []
    federation.run = lambda phase, kind, model, *, num_rounds: (
        rounds.append((phase, kind, num_rounds)) or model
    )
    train(federation, MODEL, settings, phase="retrain", num_rounds=7, fraction=0.5, min_share=0.25)
    ((phase, kind, number),) = rounds
    assert (phase, type(kind), number) == ("retrain", FederatedAveraging, 7)
    assert (kind.settings, kind.fraction, kind.min_share) == (settings, 0.5, 0.25)


# ---- the table ----------------------------------------------------------------------------------


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadSetting, match=r"method must be one of quickdrop, .*got 'sga2'"):
        method("sga2", "class")


def test_a_level_that_a_method_does_not_serve_names_those_that_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(BadSetting, match="level sample is served by none"):
        method("quickdrop", "sample")
    needs = replace(CalibratedQuickDrop.needs, levels=frozenset({"class"}))
    monkeypatch.setattr(CalibratedQuickDrop, "needs", needs)
    with pytest.raises(
        BadSetting,
        match="quickdrop-calibrated must serve level 'client', got one that serves class; "
        r"level client is served by quickdrop($|, )",
    ):
        method("quickdrop-calibrated", "client")


def test_options_change_hyperparameters_by_their_names() -> None:
    chosen: Any = method("quickdrop", "class", {"unlearn-lr": "0.5", "recover-rounds": "7"})
    assert (chosen.unlearn_lr, chosen.recover_rounds) == (0.5, 7)
    assert chosen.recover_lr == QuickDrop().recover_lr
    assert method("quickdrop", "class") == QuickDrop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": "1"}, "option must be one of unlearn-rounds, .*got 'speed'"),
        ({"unlearn_lr": "1"}, "option must be one of .*got 'unlearn_lr'"),
        ({"recover-rounds": "2.5"}, "recover-rounds must be a int, got '2.5'"),
        ({"unlearn-lr": "fast"}, "unlearn-lr must be a float, got 'fast'"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        method("quickdrop", "class", options)
