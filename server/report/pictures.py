"""The plots of the report, from a record."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from markupsafe import Markup

from server.report.plots import Curve, accuracy_over_phases, cost_bars, relearning_curves
from server.report.words import forgotten_classes, outcome_of
from server.requests.records import PHASES


def phases_plot(record: Mapping[str, Any]) -> Markup | None:
    """Return the accuracies over the rounds of a request; None if there are fewer than two."""
    # Retraining is another model's history, not a phase of this one.
    timeline = [e for e in record.get("timeline") or [] if e.get("phase") not in (None, "retrain")]
    if not record.get("forget"):
        # A federation may evaluate a forget set that no request has named yet.
        timeline = [{**entry, "forget_accuracy": None} for entry in timeline]
    original = record.get("original")
    if timeline and timeline[0]["phase"] != "train" and original:
        timeline.insert(0, {**original, "phase": "before", "round": None})
    if len(timeline) < 2:
        return None
    # The page's own template escapes everything; the SVG is ours and its texts are escaped in it.
    forgotten, names = forgotten_classes(record), record.get("class_names")
    plot = accuracy_over_phases(timeline, forgotten, class_names=names, name="phases")
    return Markup(plot)


def relearning_plot(record: Mapping[str, Any]) -> Markup | None:
    """Return the relearning curves; None if none was measured."""
    curves = curves_of(record)
    return Markup(relearning_curves(curves, name="relearning")) if curves else None


def curves_of(record: Mapping[str, Any]) -> list[Curve]:
    """Return the relearning curves that were measured, Original and Retrained first."""
    name, result = outcome_of(record)
    models = (
        ("Original", "original", record.get("original")),
        ("Retrained", "retrain", record.get("retrained")),
        (name, "result", result),
    )
    curves = []
    for label, role, numbers in models:
        curve = (numbers or {}).get("relearning_curve") or {}
        steps, accuracy = curve.get("steps") or [], curve.get("forget_accuracy") or []
        if steps and len(steps) == len(accuracy):
            curves.append(Curve(label, role, steps, accuracy))
    return curves


def cost_plot(record: Mapping[str, Any]) -> Markup | None:
    """Return the phases' times as bars; None if there are none."""
    colours = {"train": "original", "retrain": "retrain"}
    bars = [
        (phase, float(value), colours.get(phase, "forget"))
        for phase, value in sorted(
            (record.get("seconds") or {}).items(),
            key=lambda item: (
                PHASES.index(item[0]) if item[0] in PHASES else len(PHASES),
                item[0],
            ),
        )
        if value is not None and isfinite(value)
    ]
    return Markup(cost_bars(bars, name="cost")) if len(bars) > 1 else None
