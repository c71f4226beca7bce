"""A federation that only writes down: what it answers, and what it does not do."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from flwr.app import ArrayRecord

from client.errors import BadSetting, EffaceError
from client.learning.models import ModelSpec
from client.learning.spec import image_model
from client.steps.measuring import Describe
from client.steps.recovery import Descend
from client.steps.secure import Step
from client.steps.store import Settle
from client.steps.training import Fit
from client.wire import Common
from strategies.federation import Federation, Plan
from strategies.method import Hyperparameters, Needs
from strategies.methods.class_pruning import ClassPruning
from strategies.methods.influential import CentralisedChannels
from strategies.methods.not_negation import WeightNegation
from strategies.methods.quickdrop import QuickDrop
from strategies.methods.sga import GradientAscent
from strategies.parts.effort import Holding, Network, effort
from strategies.rehearsal import Known, PlannedRounds, Rehearsal, planned
from strategies.rounds.base import FederatedAveraging
from strategies.table import METHODS
from tests.messages import SPEC, values


def known(spec: ModelSpec = SPEC, *, heldout: float = 2.0, **more: Any) -> Known:
    """Return two nodes with four examples of class 3, of which one has 16 of class 0 besides."""
    model = Common.of_model(spec)
    told = {"forget_level": "class", "forget_classes": [3], "scale": 2, **more}
    forget = (0.0, 0.0, 0.0, 4.0, *[0.0] * 6)
    return Known(
        common=values(**{**model, **told}),
        training={"steps": 4, "batch_size": 8, "lr": 0.1},
        plan=Plan(num_rounds=3, fraction=1.0, min_share=1.0),
        nodes={
            "client-0": Holding(forget, (16.0, *[0.0] * 9), heldout),
            "client-1": Holding(forget, (0.0,) * 10, heldout),
        },
        own_examples=40,
    )


def of(phase: str, rounds: list[PlannedRounds]) -> PlannedRounds:
    (found,) = [one for one in rounds if one.phase == phase]
    return found


@dataclass(frozen=True)
class Untouched(Hyperparameters):
    """Works on the coordinator's machine, which a plan must not do."""

    needs: ClassVar[Needs] = Needs(levels=frozenset({"class"}))

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        def work() -> ArrayRecord:
            raise AssertionError("work was done")

        return federation.locally("unlearn", work, samples=7, effort=0.5)

    def relearn(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        return model


def test_work_on_the_coordinators_machine_is_counted_and_not_done() -> None:
    assert planned(Untouched(), known()) == [PlannedRounds("unlearn", 1, samples=7, work=0.5)]


def test_the_coordinators_own_work_says_its_images_and_their_time() -> None:
    # 40 examples, four of each class; 40 steps of 64 at most: all 40 in each.
    score, unlearn = planned(CentralisedChannels(), known())
    assert (score.samples, score.work) == (4, pytest.approx(16 / 3))  # without each of 16 channels
    assert unlearn.samples == 40 * 40


def test_every_message_of_a_round_has_its_effort() -> None:
    # A sum's own messages are counted with the message whose answers are summed.
    no_work = (Describe, Settle, Step)
    assert "fedosd" in METHODS  # with a message of its own, which it declares
    kinds = [kind for kind in Common.__subclasses__() if kind not in no_work]
    assert Fit in kinds
    unknown = effort.dispatch(Common)
    assert [kind.__name__ for kind in kinds if effort.dispatch(kind) is unknown] == []
    with pytest.raises(EffaceError, match="must have its effort declared, got Describe"):
        effort(Rehearsal(known()).settings(Describe), Holding((), ()), Network(SPEC))


def test_what_is_held_down_is_passed_whatever_the_term() -> None:
    told = Rehearsal(known()).settings(Descend, data="subset", scale=1, lr=0.1)
    # Eight retained examples, two forgotten, all of them in one batch.
    holding, network = Holding((0.0, 2.0), (8.0, 0.0)), Network(SPEC)
    without = effort(told, holding, network).images
    terms = (
        replace(told, hold=1.0),
        replace(told, hold_features=1.0),
        replace(told, hold_beside=1.0),
    )
    held = {effort(one, holding, network).images for one in terms}
    assert held == {without + 2.0}
    # Under BatchNorm the retained ones pass once more to be compared with.
    normed = Network(WIDE)
    assert effort(terms[2], holding, normed).images == without + 2.0 + 8.0
    assert effort(terms[0], holding, normed).images == without + 2.0
    nothing = Holding((0.0, 0.0), (8.0, 0.0))  # to hold down
    assert effort(terms[2], nothing, normed).images == without


def test_a_plan_leaves_what_is_known_as_it_was() -> None:
    facts = known()
    before = dict(facts.common)
    planned(ClassPruning(), facts)
    assert facts.common == before


def test_small_nodes_cut_batches_short_and_empty_ones_train_nothing() -> None:
    federation = Rehearsal(known())
    for side in ("retain", "forget", "all"):
        rounds = FederatedAveraging(federation.ordinary(side=side))
        federation.run("unlearn", rounds, ArrayRecord(), num_rounds=2)
    # Four steps: of 16 and 0 examples twice two batches; of four each time all; of 20 and four
    # three batches (20) and one more of 8, and four times four.
    assert [one.samples for one in federation.asked] == [32, 32, 28 + 16]
    assert [(one.rounds, one.clients) for one in federation.asked] == [(2, 2)] * 3


def test_who_has_nothing_left_sends_no_recovered_model() -> None:
    recover = of("recover", planned(QuickDrop(), known()))
    assert (recover.down, recover.up) == (Network(SPEC).nbytes, Network(SPEC).nbytes / 2)


def test_where_nothing_is_held_out_nothing_is_measured_nor_done_again() -> None:
    unlearn, recover, guard = planned(QuickDrop(), known(heldout=0.0))
    assert [one.more for one in (unlearn, recover)] == [0, 0]
    tuned = planned(GradientAscent(), known(heldout=0.0))
    assert not of("recover", tuned).early  # nobody can say that the accuracy is back
    # Before, and what ascent made of it: recovery, which begins with that, asks nobody anew.
    assert guard.rounds == of("guard", tuned).rounds == 2


def test_one_round_of_ascent_cannot_end_early() -> None:
    assert of("unlearn", planned(GradientAscent(unlearn_rounds=2), known())).early
    assert not of("unlearn", planned(GradientAscent(unlearn_rounds=1), known())).early


def test_what_a_method_refuses_is_refused_in_its_plan() -> None:
    with pytest.raises(BadSetting, match="layers must be at most 2 of the model's 3, got 9"):
        planned(WeightNegation(layers=9), known())


WIDE = image_model("resnet20", num_classes=10, channels=3, image_size=32)


@pytest.mark.parametrize("spec", [SPEC, WIDE, replace(SPEC, pruned=("body.0:7", "body.4:0,7"))])
@pytest.mark.parametrize("classes", [[3], [3, 4]])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_scores_that_nobody_measured_prune_no_layer_away(
    spec: ModelSpec, classes: list[int], scope: str
) -> None:
    facts = known(spec, forget_classes=classes)
    phases = [one.phase for one in planned(ClassPruning(prune_share=0.5, scope=scope), facts)]
    assert phases == ["score", "unlearn", "recover", "guard"]


def test_a_share_that_leaves_no_channel_is_refused_in_the_plan() -> None:
    with pytest.raises(BadSetting, match="must keep at least one of its 8 channels"):
        planned(ClassPruning(prune_share=0.95), known())


def test_one_convolution_can_be_pruned_unless_it_has_a_single_channel() -> None:
    one = image_model("convnet", num_classes=10, channels=1, image_size=8, width=8, depth=1)
    phases = [step.phase for step in planned(ClassPruning(), known(one))]
    assert phases == ["score", "unlearn", "recover", "guard"]
    narrow = image_model("convnet", num_classes=10, channels=1, image_size=8, width=1, depth=1)
    with pytest.raises(BadSetting, match=r"must have a convolution of two channels or more.*, got"):
        planned(ClassPruning(), known(narrow))
