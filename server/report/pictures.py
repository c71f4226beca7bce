"""The plots of the report, from a record."""

from math import isfinite, nan

from markupsafe import Markup

from server.evidence.phases import PHASES
from server.evidence.record import Record
from server.evidence.serial import plain
from server.report.plots import Curve, accuracy_over_phases, cost_bars, relearning_curves
from server.report.words import forgotten_classes, outcome_of


def phases_plot(record: Record) -> Markup | None:
    """Return the accuracies over the rounds of a request; None if there are fewer than two."""
    # Retraining is another model's history, not a phase of this one.
    timeline = [plain(e) for e in record.timeline if e.phase not in (None, "retrain")]
    if record.forget is None:
        # A federation may evaluate a forget set that no request has named yet.
        timeline = [{**entry, "forget_accuracy": None} for entry in timeline]
    if timeline and timeline[0]["phase"] != "train" and record.original is not None:
        timeline.insert(0, {**plain(record.original), "phase": "before", "round": None})
    if len(timeline) < 2:
        return None
    # The page's own template escapes everything; the SVG is ours and its texts are escaped in it.
    forgotten, names = forgotten_classes(record), record.class_names
    plot = accuracy_over_phases(timeline, forgotten, class_names=names, name="phases")
    return Markup(plot)


def relearning_plot(record: Record) -> Markup | None:
    """Return the relearning curves; None if none was measured."""
    curves = curves_of(record)
    return Markup(relearning_curves(curves, name="relearning")) if curves else None


def curves_of(record: Record) -> list[Curve]:
    """Return the relearning curves that were measured, Original and Retrained first."""
    name, result = outcome_of(record)
    models = (
        ("Original", "original", record.original),
        ("Retrained", "retrain", record.retrained),
        (name, "result", result),
    )
    curves = []
    for label, role, numbers in models:
        curve = None if numbers is None else numbers.relearning_curve
        if curve is not None and curve.steps and len(curve.steps) == len(curve.forget_accuracy):
            curves.append(
                Curve(
                    label,
                    role,
                    curve.steps,
                    [nan if a is None else a for a in curve.forget_accuracy],
                )
            )
    return curves


def cost_plot(record: Record) -> Markup | None:
    """Return the phases' times as bars; None if there are none."""
    colours = {"train": "original", "retrain": "retrain"}
    bars = [
        (phase, float(value), colours.get(phase, "forget"))
        for phase, value in sorted(
            record.seconds.items(),
            key=lambda item: (
                PHASES.index(item[0]) if item[0] in PHASES else len(PHASES),
                item[0],
            ),
        )
        if value is not None and isfinite(value)
    ]
    return Markup(cost_bars(bars, name="cost")) if len(bars) > 1 else None
