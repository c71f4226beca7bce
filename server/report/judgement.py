"""The verdict on a request: was it forgotten, and does it look like retraining?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.report.display import RETAIN_TOLERANCE, original_knows_no_better
from server.report.format import class_text
from server.report.words import (
    MINUS,
    as_gap,
    as_number,
    as_percent,
    capitalised,
    clients_of,
    curve_mean,
    outcome_of,
    subject_of,
    value_of,
    versions_of,
)

# How near to Retrained counts as "in line with" it, in percent points, where the record does not
# say what was asked for; the page states the figures beside each judgement.
ACCURACY_TOLERANCE = 5.0
RELEARNING_TOLERANCE = 15.0


@dataclass(frozen=True)
class Finding:
    """One line under the verdict.

    `tone` is "pass", "fail", "open" (no judgement possible) or "note" (none asked for).
    """

    title: str
    tone: str
    label: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The sentence a reader takes away, and what it rests on."""

    tone: str
    label: str
    sentence: str
    findings: Sequence[Finding]


def judge(record: Mapping[str, Any]) -> Verdict:
    """Say in plain words what was forgotten, and whether it looks like retraining.

    Accuracy and relearning are each compared with Retrained. Where Original already lies as near
    to Retrained, the comparison cannot tell, and does not count as a pass. Of a client, relearning
    is not defined: accuracy alone is judged.
    """
    versions = versions_of(record)
    if not record.get("forget"):
        sentence = (
            f"{capitalised(versions['new'])} was trained on {record.get('dataset') or 'its data'} "
            f"over {clients_of(record)}; this request forgot nothing."
        )
        return Verdict("note", "Trained", sentence, [])

    subject, plural = subject_of(record)
    was, its, comes = ("were", "their", "come") if plural else ("was", "its", "comes")
    if record.get("kind") == "relearn":
        sentence = (
            f"{capitalised(subject)} {was} learned again on request {versions['change']}: "
            + _relearned_text(record)
        )
        return Verdict("note", "Learned again", sentence, [])

    _, result = outcome_of(record)
    accuracy = _judge_accuracy(record, result)
    relearning = _judge_relearning(record, result)
    earlier = _judge_earlier(record, result)
    decisive = [accuracy, *([relearning] if relearning else [])]
    findings = [*decisive, _judge_retained(record, result), *([earlier] if earlier else [])]
    if record.get("relearned"):
        findings.append(
            Finding(
                "Learned again", "note", "for information", capitalised(_relearned_text(record))
            )
        )

    measured = f"{its} accuracy of {as_percent(value_of(result, 'forget_accuracy'))}"
    yardstick = as_percent(value_of(record.get("retrained"), "forget_accuracy"))
    without = "a model retrained without them" if plural else "a model retrained without it"
    if result is None:
        rest = "the outcome was not measured"
    elif record.get("retrained") is None:
        rest = (
            f"{measured} could not be compared with {without}, which was not measured "
            "(ask for it with --compare retrain)"
        )
    else:
        verb = "is above" if accuracy.label == "higher" else "is within reach of"
        verb = "stands against" if accuracy.label == "cannot tell" else verb
        rest = f"{measured} {verb} the {yardstick} of {without}"
        again = f"{'they' if plural else 'it'} {comes} back"
        ours, theirs = curve_mean(result), curve_mean(record["retrained"])
        means = f"({as_number(ours)} against {as_number(theirs)})"
        if relearning is None:
            no_better = original_knows_no_better(record["forget"])
            rest += f". {no_better}" if accuracy.label == "cannot tell" else ""
        elif relearning.label == "not measured":
            rest += ", and how fast it could be learned again was not measured"
        elif relearning.tone == "fail":
            link = "and" if accuracy.tone == "fail" else "but"
            rest += (
                f", {link} under relearning {again} faster than in that model {means}, so "
                f"{subject} may be hidden rather than forgotten"
            )
        else:
            link = "but" if accuracy.tone == "fail" else "and"
            pace = "more slowly than" if relearning.label == "slower" else "about as fast as"
            rest += f", {link} under relearning {again} {pace} in that model {means}"

    tones = {finding.tone for finding in decisive}
    if "fail" in tones or (earlier and earlier.tone == "fail"):
        opening = f"The attempt to forget {subject} {versions['change']} falls short: "
        return Verdict("fail", "Not in line with retraining", opening + rest + ".", findings)
    # Whether it is forgotten is what an open verdict does not know: say only what was done.
    opening = f"The request to forget {subject} was carried out, {versions['change']}: "
    if "not measured" in {finding.label for finding in decisive}:
        return Verdict("open", "Not fully measured", opening + rest + ".", findings)
    if "pass" not in tones:
        return Verdict("open", "Not conclusive", opening + rest + ".", findings)
    opening = f"{capitalised(subject)} {was} forgotten {versions['change']}: "
    return Verdict("pass", "In line with retraining", opening + rest + ".", findings)


def _judge_accuracy(record: Mapping[str, Any], result: Mapping[str, Any] | None) -> Finding:
    title = "Forget accuracy"
    value, goal = (
        value_of(result, "forget_accuracy"),
        value_of(record.get("retrained"), "forget_accuracy"),
    )
    if value is None or goal is None:
        text = f"Result {as_percent(value)}. Retrained was not measured; add --compare retrain."
        if value is None:
            text = "The result was not measured."
        return Finding(title, "open", "not measured", text)
    gap = as_gap(value, goal)
    text = f"Result {as_percent(value)}, Retrained {as_percent(goal)}: gap {gap} points"
    limit, _ = limits_of(record)
    # A class is forgotten at zero accuracy, a client's data only as far as others' tell of them.
    by_class = record["forget"]["level"] == "class"
    most = max(limit, goal) if by_class else goal + limit
    before = value_of(record.get("original"), "forget_accuracy")
    alike = before is not None and before <= most
    if alike and not by_class:
        text += f", Original {as_percent(before)}. {original_knows_no_better(record['forget'])}."
        return Finding(title, "open", "cannot tell", text)
    if value > most:
        return Finding(title, "fail", "higher", text + f" (limit {as_percent(most)}).")
    if alike:
        text += f". Original has {as_percent(before)} too: accuracy cannot tell them apart here."
        return Finding(title, "open", "cannot tell", text)
    return Finding(title, "pass", "within reach", text + f" (limit {as_percent(most)}).")


def limits_of(record: Mapping[str, Any]) -> tuple[float, float]:
    """Return the limits that the request's own verdict has: on accuracy, and on relearning."""
    settings = record.get("settings") or {}
    return (
        float(settings.get("max-forget-accuracy", ACCURACY_TOLERANCE)),
        float(settings.get("max-relearning-gap", RELEARNING_TOLERANCE)),
    )


def _judge_earlier(record: Mapping[str, Any], result: Mapping[str, Any] | None) -> Finding | None:
    """Return whether what earlier requests erased stays away; None if they erased no class."""
    erased = record.get("erased_before") or []
    each = (result or {}).get("per_class_accuracy") or []
    known = {c: each[c] for c in erased if c < len(each) and each[c] is not None}
    if not known:
        return None
    limit, _ = limits_of(record)
    names = record.get("class_names")
    shown = ", ".join(f"{class_text(c, names)} {as_percent(v)}" for c, v in known.items())
    back = any(value > limit for value in known.values())
    tone, label = ("fail", "back again") if back else ("pass", "still away")
    return Finding("Erased earlier", tone, label, f"{capitalised(shown)} (limit {limit:g}).")


def _judge_relearning(
    record: Mapping[str, Any], result: Mapping[str, Any] | None
) -> Finding | None:
    """Return how fast the forgotten comes back; None of a client, of whom it is not defined."""
    title = "Relearning"
    value, goal = curve_mean(result), curve_mean(record.get("retrained"))
    if value is None or goal is None:
        if record["forget"]["level"] == "client":
            return None
        missing = "The result’s curve" if value is None else "Retrained’s curve"
        how = "" if record.get("retrained") else " For Retrained, add --compare retrain."
        return Finding(title, "open", "not measured", f"{missing} was not measured.{how}")
    text = f"Mean {as_number(value)}, Retrained {as_number(goal)}: gap {as_gap(value, goal)} points"
    _, most = limits_of(record)
    limit = f" (limit +{most:g})"
    if value - goal > most:
        return Finding(title, "fail", "comes back faster", f"{text}{limit}.")
    before = curve_mean(record.get("original"))
    if before is not None and before - goal <= most:
        text += f". Original has {as_number(before)}: the curve cannot tell them apart here."
        return Finding(title, "open", "cannot tell", text)
    if goal - value > most:
        text += f"{limit}. It went deeper than retraining would."
        return Finding(title, "pass", "slower", text)
    return Finding(title, "pass", "within reach", f"{text}{limit}.")


def _judge_retained(record: Mapping[str, Any], result: Mapping[str, Any] | None) -> Finding:
    title = "Retain accuracy"
    value, goal = (
        value_of(result, "retain_accuracy"),
        value_of(record.get("retrained"), "retain_accuracy"),
    )
    if value is None:
        return Finding(title, "open", "not measured", "The result was not measured.")
    if goal is None:
        before = value_of(record.get("original"), "retain_accuracy")
        text = f"Result {as_percent(value)}, Original {as_percent(before)}"
        text += "; Retrained was not measured."
        return Finding(title, "open", "not measured", text)
    text = (
        f"Result {as_percent(value)}, Retrained {as_percent(goal)}: "
        f"gap {as_gap(value, goal)} points "
        f"(limit {MINUS}{RETAIN_TOLERANCE:g})."
    )
    if goal - value > RETAIN_TOLERANCE:
        return Finding(title, "fail", "lower", text)
    return Finding(title, "pass", "kept", text)


def _relearned_text(record: Mapping[str, Any]) -> str:
    after = value_of(record.get("relearned"), "forget_accuracy")
    before = value_of(record.get("original"), "forget_accuracy")
    if after is None:
        return "the outcome was not measured."
    text = f"the forget accuracy is {as_percent(after)} again"
    return text + (f", where Original had {as_percent(before)}." if before is not None else ".")
