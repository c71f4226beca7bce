"""What a request's rounds cost and scored, as typed parts of its record."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.evidence.costs import SpeedUp, overhead, speed_up
from server.evidence.phases import OF_THE_REQUEST, PHASES
from server.evidence.record import Costs, Distillation, PrivacySpent, Traffic
from server.evidence.scores import ModelScores, RoundScores
from server.evidence.serial import read
from server.nodes.federation import Cost, Part
from strategies.method import Needs


def measured(costs: Mapping[str, Cost]) -> Costs:
    """Return costs by phase, those of measuring apart."""
    phases = {phase: costs[phase] for phase in PHASES if phase in costs}
    return Costs(
        seconds={phase: cost.seconds for phase, cost in phases.items()},
        seconds_measuring={p: cost.seconds for p, cost in costs.items() if p not in PHASES},
        rounds={phase: cost.rounds for phase, cost in phases.items()},
        samples={phase: cost.samples for phase, cost in phases.items()},
        client_seconds={phase: cost.client_seconds for phase, cost in phases.items()},
        bytes={phase: Traffic(cost.up, cost.down) for phase, cost in costs.items()},
    )


def timeline(notes: Sequence[Mapping[str, Any]]) -> tuple[RoundScores, ...]:
    """Return the scores of the rounds that were evaluated, in order."""
    return tuple(
        read(RoundScores, note, "timeline") for note in notes if "per_class_accuracy" in note
    )


def after_unlearning(rounds: Sequence[RoundScores]) -> ModelScores | None:
    """Return the scores between unlearning and recovery; None where nothing was ascended on.

    An ascent after the first recovery round is the guard's.
    """
    chosen = None
    for scores in rounds:
        if scores.phase == "recover" and chosen is not None:
            break
        if scores.phase == "unlearn":
            chosen = scores
    if chosen is None:
        return None
    return ModelScores(
        forget_accuracy=chosen.forget_accuracy,
        retain_accuracy=chosen.retain_accuracy,
        loss=chosen.loss,
        per_class_accuracy=chosen.per_class_accuracy,
    )


def distillation(training: Cost | None) -> Distillation | None:
    """Return what distillation took of training; None where that is not known."""
    if training is None or not training.client_seconds:
        return None
    share = training.distill_seconds / training.client_seconds
    return Distillation(client_seconds_share=share, seconds=training.distill_seconds)


def against_retraining(
    costs: Mapping[str, Cost], training: Cost | None, needs: Needs | None
) -> SpeedUp | None:
    """Return how much shorter a request was than retraining; None where one of them has no time."""
    request = sum(costs[phase].seconds for phase in OF_THE_REQUEST if phase in costs)
    if "retrain" not in costs or request <= 0:
        return None
    extra = 0.0
    if training is not None and training.client_seconds > 0:
        share = training.distill_seconds / training.client_seconds
        extra = overhead(needs, distilling=training.seconds * share, keeping=training.keep_seconds)
    return speed_up(costs["retrain"].seconds, request, extra)


def privacy(parts: Sequence[Part]) -> dict[str, PrivacySpent]:
    """Return what every client's answers have told by the end, of those that noised them."""
    found: dict[str, PrivacySpent] = {}
    for part in parts:
        for name, spent in part.privacy.items():
            if name not in found or spent["epsilon"] >= found[name].epsilon:
                found[name] = PrivacySpent(spent["epsilon"], spent["delta"])
    return dict(sorted(found.items()))
