"""Methods as sequences of rounds: phases, participants and settings as in the papers."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from client.errors import BadSetting
from client.steps.ascent import Ascend
from client.steps.recovery import Descend
from client.wire import ForgetSpec
from strategies.federation import Accuracies
from strategies.methods.quickdrop import QuickDrop
from strategies.methods.quickdrop_calibrated import (
    CalibratedQuickDrop,
    share_forgotten,
    without_directions,
)
from strategies.methods.retraining import Retraining, train
from strategies.parts.guard import CreptBack
from strategies.rounds.base import FederatedAveraging, NothingTouched
from strategies.table import METHODS, method
from tests.recording import INITIAL, MODEL, Recording

# ---- QuickDrop ----------------------------------------------------------------------------------


def test_quickdrop_ascends_once_with_the_holders_then_recovers_with_all() -> None:
    federation = Recording()
    QuickDrop().forget(federation, MODEL)  # type: ignore[arg-type]

    recovered = ["recover", "measure"] * 2
    assert federation.phases == ["measure", "holders", "unlearn", *recovered]
    assert federation.first("holders").settings is True  # counted by their synthetic data
    ascent = federation.first("unlearn")
    assert isinstance(ascent.settings, Ascend)
    assert (ascent.participants, ascent.num_rounds) == (["client-0", "client-2"], 1)
    assert (ascent.settings.data, ascent.settings.lr) == ("synthetic", 0.02)
    assert (ascent.settings.target_losses, ascent.settings.freeze_head) == ([], False)
    recovery = federation.first("recover")
    assert isinstance(recovery.settings, Descend)
    assert recovery.participants == ["client-0", "client-1", "client-2"]  # all with data left
    assert (recovery.settings.data, recovery.settings.side) == ("synthetic+original", "retain")
    assert (recovery.settings.hold, recovery.settings.hold_features) == (0.0, 0.0)


def test_the_synthetic_sets_are_fine_tuned_between_the_two_if_asked_for() -> None:
    federation = Recording()
    chosen = replace(QuickDrop(), finetune_steps=2, recover_rounds=1)
    chosen.forget(federation, MODEL)  # type: ignore[arg-type]
    assert federation.phases[1:] == ["holders", "unlearn", "condense", "recover", "measure"]
    assert federation.first("condense").settings.outer_steps == 2


@pytest.mark.parametrize("name", ["quickdrop", "quickdrop-calibrated"])
def test_a_client_that_is_still_known_is_no_reason_to_ascend_again(name: str) -> None:
    # Its data are like the others': they are not forgotten at zero accuracy.
    federation: Any = Recording(ForgetSpec("client", (), ("client-0",)), accuracy=90.0)
    method(name, "client").forget(federation, MODEL)
    assert federation.phases.count("unlearn") == 1


ASK_HOLDERS = [name for name in sorted(METHODS) if METHODS[name].needs.target_online]
RELEARN = [name for name in sorted(METHODS) if METHODS[name].needs.relearning]


def served(name: str) -> ForgetSpec:
    """Return a request that the method serves: of a class if it can."""
    if "class" in METHODS[name].needs.levels:
        return ForgetSpec("class", (3,))
    return ForgetSpec("client", (), ("client-0",))


@pytest.mark.parametrize("name", ASK_HOLDERS)
def test_what_nobody_holds_is_an_error_before_any_round(name: str) -> None:
    federation: Any = Recording(served(name), nobody=True)
    with pytest.raises(NothingTouched):
        method(name, federation.forget.level).forget(federation, MODEL)
    if name in RELEARN:
        with pytest.raises(NothingTouched):
            method(name, federation.forget.level).relearn(federation, MODEL)
    assert {"unlearn", "recover", "relearn"}.isdisjoint(federation.phases)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(RELEARN)))
def test_a_method_that_cannot_relearn_says_why(name: str) -> None:
    with pytest.raises(BadSetting, match=f"method {name} must be able to relearn, got one that"):
        method(name, served(name).level).relearn(Recording(), MODEL)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RELEARN)
def test_relearning_is_on_all_data_and_ends_with_all_nodes(name: str) -> None:
    federation: Any = Recording(served(name))
    method(name, federation.forget.level).relearn(federation, MODEL)
    assert federation.phases[0] == "holders"
    assert set(federation.phases[1:]) == {"relearn"}
    assert federation.first("holders").settings is False  # real data count: the rest is destroyed
    assert {step.settings.side for step in federation.steps[1:]} == {"all"}
    assert federation.steps[-1].participants == ["client-0", "client-1", "client-2"]


# ---- the calibrated variant ---------------------------------------------------------------------


def test_the_calibrated_ascent_aims_at_the_loss_of_a_class_never_seen() -> None:
    federation: Any = Recording()
    forgotten = CalibratedQuickDrop().forget(federation, MODEL)
    told_ = federation.first("unlearn").settings
    never_seen = math.log(10)  # a uniform guess over 10 classes
    assert told_.target_losses == pytest.approx([0, 0, 0, never_seen, 0, 0, 0, 0, 0, 0])
    assert (told_.freeze_head, told_.freeze_stem) == (True, True)
    recovery = federation.first("recover")
    assert recovery.settings.hold > 0
    assert recovery.settings.hold_features > 0
    assert recovery.settings.hold_beside > 0
    # The class's own row is there to the end: what is held down is what it would be found by.
    rounds = [step for step in federation.steps if step.phase == "recover"]
    assert sum(step.num_rounds for step in rounds) == CalibratedQuickDrop().recover_rounds
    assert all(step.settings.freeze_head for step in rounds)
    assert all(step.model["classifier.bias"].numpy()[3] == 3.0 for step in rounds)
    # Then it goes to the mean of the others.
    assert forgotten["classifier.bias"].numpy()[3] == pytest.approx(42 / 9)


def test_the_calibrated_recovery_compares_with_look_alikes_but_in_its_last_round() -> None:
    federation: Any = Recording()
    CalibratedQuickDrop(hold_beside=2.0, recover_rounds=3).forget(federation, MODEL)
    rounds = [step for step in federation.steps if step.phase == "recover"]
    weights = [step.settings.hold_beside for step in rounds for _ in range(step.num_rounds)]
    assert weights == [2.0, 2.0, 0.0]  # it costs accuracy, which is to come back


class TwoPointsShort(Recording):
    """A federation in which recovery ends at 97 % of the retained, from 99."""

    def accuracies(self, model: Any) -> Accuracies:
        known = super().accuracies(model)
        return replace(known, retain=97.0) if "recover" in self.phases else known


@pytest.mark.parametrize(
    ("level", "options", "more"),
    [
        ("class", {}, 2),  # a round more, and another: they bring nothing
        ("class", {"tolerance": 2.0}, 0),
        ("class", {"client_tolerance": 0.0, "tolerance": 2.0}, 0),
        ("client", {}, 0),
        ("client", {"tolerance": 0.0}, 0),
        ("client", {"client_tolerance": 1.0}, 2),
    ],
)
def test_how_much_accuracy_may_be_missing_is_said_for_each_level(
    level: str, options: dict[str, float], more: int
) -> None:
    client = ForgetSpec("client", (), ("client-0",))
    federation: Any = TwoPointsShort(client) if level == "client" else TwoPointsShort()
    CalibratedQuickDrop(**options).forget(federation, MODEL)
    rounds = [step.num_rounds for step in federation.steps if step.phase == "recover"]
    assert sum(rounds) == 4 + more


def test_a_clients_classes_go_as_far_as_it_alone_knew_them() -> None:
    federation = Recording(ForgetSpec("client", (), ("client-0",)))
    CalibratedQuickDrop().forget(federation, MODEL)  # type: ignore[arg-type]
    assert {"holders", "unlearn", "recover"} <= set(federation.phases)
    aims = federation.first("unlearn").settings.target_losses
    assert aims == pytest.approx([math.log(10) * s for s in (1.0, 0.75, 0.5, *[0.0] * 7)])
    recovery = federation.first("recover").settings
    assert (recovery.hold, recovery.freeze_head) == (0.0, False)
    # The rows stay with weights 0, 1/4, 1/2 and seven times 1: their mean bias is
    # (1 * 0.25 + 2 * 0.5 + 3 + ... + 9) / 7.75 = 43.25 / 7.75.
    mean = 43.25 / 7.75
    bias = federation.first("recover").model["classifier.bias"].numpy().tolist()
    assert bias[:3] == pytest.approx([mean, 0.25 * 1 + 0.75 * mean, 0.5 * 2 + 0.5 * mean])
    assert bias[3:] == list(range(3, 10))


def test_what_erased_clients_had_is_nobodys() -> None:
    federation = Recording(ForgetSpec("client", (), ("client-0",)), erased_clients=("client-1",))
    # Without client-1, client-0 has 6 of 6 of class 1, and 2 of 3 of class 2.
    assert share_forgotten(federation)[:3].tolist() == pytest.approx([1.0, 1.0, 2 / 3])  # type: ignore[arg-type]


def test_a_classs_row_becomes_the_mean_of_the_others() -> None:
    found = without_directions(MODEL, np.eye(10)[3])
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
    found = without_directions(MODEL, np.eye(10)[[8, 9]].sum(0))["classifier.bias"].numpy()
    assert found.tolist() == pytest.approx([*range(8), 3.5, 3.5])  # (0 + ... + 7) / 8


def test_no_class_leaves_the_last_layer() -> None:
    found = without_directions(MODEL, np.zeros(10))
    assert all(np.array_equal(found[name].numpy(), MODEL[name].numpy()) for name in MODEL)


# ---- retraining ---------------------------------------------------------------------------------


def test_retraining_is_plain_federated_averaging() -> None:
    federation: Any = Recording()
    train(federation, phase="retrain", steps=3)
    step = federation.first("retrain")
    assert (type(step.rounds), step.num_rounds, step.model) == (FederatedAveraging, 7, INITIAL)
    assert (step.settings.steps, step.rounds.fraction, step.rounds.min_share) == (3, 0.5, 0.25)


def test_retraining_as_a_method_starts_from_the_initial_weights() -> None:
    federation: Any = Recording()
    Retraining().forget(federation, MODEL)
    step = federation.first("unlearn")
    assert (step.model, step.num_rounds, step.settings.side) == (INITIAL, 7, "retain")


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
        match="level must be class for method quickdrop-calibrated, got client; "
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
        ({"recover-rounds": "2.5"}, "recover-rounds must be a whole number, got '2.5'"),
        ({"unlearn-lr": "fast"}, "unlearn-lr must be a number, got 'fast'"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        method("quickdrop", "class", options)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_hyperparameter_out_of_its_range_is_refused_before_any_work(name: str) -> None:
    for option in fields(METHODS[name]):
        if isinstance(option.default, str):
            continue
        key = option.name.replace("_", "-")
        for value in ("-1", "nan") if isinstance(option.default, float) else ("-1",):
            with pytest.raises(BadSetting, match=f"^{key} must .*, got {value}"):
                method(name, served(name).level, {key: value})


def test_a_class_that_came_back_is_ascended_deeper() -> None:
    federation = Recording(accuracy=50.0)
    with pytest.raises(CreptBack, match="hold harder"):
        CalibratedQuickDrop().forget(federation, MODEL)  # type: ignore[arg-type]
    depths = [s.settings.target_losses[3] for s in federation.steps if s.phase == "unlearn"]
    times = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    assert depths == pytest.approx([math.log(10) * one for one in times])
