"""The verdict on the page: what the record's verdict says, as one sentence and a line a finding.

Nothing is decided here: `server.evidence.verdict` did, and the record keeps it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from server.evidence import wording
from server.evidence.record import Record, Target, remedy
from server.evidence.spread import DIFFERENCES
from server.evidence.verdict import RETAIN_TOLERANCE, Code, Finding, Missing, Verdict
from server.format import class_text
from server.report.words import (
    BELOW,
    MINUS,
    as_gap,
    as_number,
    as_percent,
    capitalised,
    clients_of,
    subject_of,
    versions_of,
)

TONES: Final = {"passed": "pass", "failed": "fail", "not-shown": "open"}
_TITLES: Final = {
    "forget-accuracy": "Forget accuracy",
    "nothing-to-show": "Forget accuracy",
    "relearning-curve": "Relearning",
    "retain-accuracy": "Retain accuracy",
    "erased-earlier": "Erased earlier",
    "crept-back": "During recovery",
    "sites-disagree": "Between the sites",
    "few-sites": "Measured by",
    "few-others": "Unseen examples of",
    **{name.replace(" ", "-"): text.capitalize() for name, text in BELOW.items()},
    "membership": "Surer of members",
    "client-relearning": "Client relearning",
    "nothing-below": "Below the last layer",
    "only-accuracy": "Beside accuracy",
    "by-method": "Beside the measures",
    "too-deep": "Too deep",
    "below-retrained": "Too deep",
    "class-damaged": "Another class",
    "left-below": "Below the last layer",
}
_LABELS: Final = {
    "held": ("pass", "within the limit"),
    "exceeded": ("fail", "beyond the limit"),
    "below": ("open", "too deep"),
    "cannot-tell": ("open", "cannot tell"),
    "remark": ("open", "lower"),
    "open": ("open", "not compared"),
}


@dataclass(frozen=True)
class Line:
    """One line under the verdict; `tone` is "pass", "fail", "open" or "note"."""

    title: str
    tone: str
    label: str
    text: str


@dataclass(frozen=True)
class Worded:
    """The sentence a reader takes away, and what it rests on."""

    tone: str
    label: str
    sentence: str
    findings: Sequence[Line]


def _data_of(record: Record) -> str:
    """Name the data; a task of one's own may have them without a name."""
    task = record.settings.get("task")
    return record.dataset or (f"the data of task {task}" if task else "its data")


def worded(record: Record) -> Worded:
    """Say in plain words what was forgotten and what the verdict on it is."""
    versions = versions_of(record)
    if record.forget is None:
        sentence = (
            f"{capitalised(versions['new'])} was trained on {_data_of(record)} "
            f"over {clients_of(record)}; this request forgot nothing."
        )
        return Worded("note", "Trained", sentence, [])
    subject, plural = subject_of(record)
    was = "were" if plural else "was"
    if record.kind == "yardstick":
        count = len(record.stock)
        sentence = (
            f"{count} model{'s were' if count != 1 else ' was'} retrained from scratch without "
            f"{subject}, for verdicts to be compared with; nothing that serves was changed."
        )
        return Worded("note", "Retrained", sentence, [])
    if record.kind == "relearn":
        sentence = (
            f"{capitalised(subject)} {was} learned again on request, {versions['change']}: "
            + _relearned_text(record)
        )
        return Worded("note", "Learned again", sentence, [])

    verdict = record.verdict
    if verdict is None:
        sentence = (
            f"The request to forget {subject} was carried out, {versions['change']}; "
            "the outcome was not measured."
        )
        return Worded("open", "Verdict: not shown", sentence, [])
    opening = {
        "passed": f"{capitalised(subject)} {was} forgotten, {versions['change']}: ",
        "failed": f"The attempt to forget {subject}, {versions['change']}, falls short: ",
        "not-shown": f"The request to forget {subject} was carried out, {versions['change']}, "
        f"but whether {'they are' if plural else 'it is'} forgotten is not shown: ",
    }[verdict.state]
    lines = [_line(finding, record) for finding in verdict.findings]
    lines += [_missing_line(missing, record) for missing in verdict.missing]
    if told := wording.how_known(verdict).removeprefix("remark: "):
        by_hand = verdict.false_alarms is None
        label = "by hand" if by_hand else "by their spread"
        lines.append(Line("Limits", "open" if by_hand else "note", label, f"{capitalised(told)}."))
    if next_step := remedy(record):
        lines.append(Line("What next", "note", "for whoever asked", f"{capitalised(next_step)}."))
    if record.relearned:
        text = capitalised(_relearned_text(record))
        lines.append(Line("Learned again", "note", "for information", text))
    label = f"Verdict: {wording.STATES[verdict.state]}"
    return Worded(TONES[verdict.state], label, f"{opening}{_rest(record, verdict)}.", lines)


def _rest(record: Record, verdict: Verdict) -> str:
    """Return the clauses of the sentence: accuracy, relearning, and what else tells."""
    subject, plural = subject_of(record)
    its, it, comes = ("their", "they", "come") if plural else ("its", "it", "comes")
    scratch = f"a model retrained from scratch without {'them' if plural else 'it'}"
    forget = record.forget or Target()
    parts = []
    by_spread = [finding for finding in verdict.findings if finding.spread is not None]
    for finding in by_spread:
        if finding.state in ("exceeded", "below") or finding.code == "forget-accuracy":
            parts.append(wording.reason(finding, forget.level or ""))
    if by_spread and verdict.passed:
        those = "them" if plural else "it"
        parts.append(
            f"nothing that was measured of {those} lies beyond {verdict.retrainings} models "
            f"retrained from scratch without {those}"
        )
    accuracy = verdict.finding("forget-accuracy")
    if accuracy in by_spread:
        accuracy = None
    nothing = verdict.finding("nothing-to-show")
    if accuracy is not None:
        beyond = (accuracy.value or 0.0) > (accuracy.limit or 0.0)
        side = "above" if beyond else "within"
        clause = f"{its} accuracy of {as_percent(accuracy.value)} is {side} the limit of "
        clause += as_percent(accuracy.limit)
        if accuracy.retrained is not None:
            clause += f" ({scratch} has {as_percent(accuracy.retrained)})"
        parts.append(clause)
    if nothing is not None and forget.level == "class":
        parts.append(
            f"the model before the request had an accuracy of {as_percent(nothing.original)} "
            f"on {'them' if plural else 'it'} already, so there was nothing to show"
        )
    elif nothing is not None:
        parts.append(wording.reason(nothing, "client", forget.clients))
    curve = None if by_spread else verdict.finding("relearning-curve")
    if curve is not None and curve.value is not None and curve.retrained is not None:
        means = f"({as_number(curve.value)} against {as_number(curve.retrained)})"
        model = "in that model" if accuracy and accuracy.retrained is not None else f"in {scratch}"
        if curve.state == "exceeded":
            parts.append(
                f"under relearning {it} {comes} back faster than {model} {means}, so {subject} "
                "may be hidden rather than forgotten"
            )
        else:
            most = 0.0 if curve.limit is None else curve.limit - curve.retrained
            slower = curve.retrained - curve.value > most
            pace = "more slowly than" if slower else "about as fast as"
            parts.append(f"under relearning {it} {comes} back {pace} {model} {means}")
    crept = verdict.finding("crept-back")
    if crept is not None:
        parts.append(wording.reason(crept, forget.level or ""))
    for finding in verdict.findings:
        earlier = finding.code == "erased-earlier" and finding.state != "held"
        if earlier or finding.code == "sites-disagree":
            parts.append(wording.reason(finding, forget.level or ""))
    names = record.class_names
    parts += [
        "but " + wording.reason(finding, forget.level or "", (), names).removeprefix("remark: ")
        for finding in verdict.findings
        if finding.code in ("retain-accuracy", "class-damaged", "left-below")
        and finding.state == "remark"
    ]
    parts += [
        f"not measured: {wording.not_measured(missing, forget.level or '')}"
        for missing in verdict.missing
    ]
    if verdict.yardstick == "itself":
        parts.append("the method is retraining from scratch, which is the yardstick itself")
    return "; ".join(parts) or "the outcome was not measured"


def _line(finding: Finding, record: Record) -> Line:
    tone, label = _LABELS[finding.state]
    f = finding
    text = f"Result {as_percent(f.value)}"
    if f.code in DIFFERENCES:
        now, goal, before = (as_gap(v, 0.0) for v in (f.value, f.retrained, f.original))
        text = (
            f"Result {now} points; retrained from scratch {goal} in the mean, expected "
            f"{wording.expected(f).replace('-', MINUS)}; Original {before}."
        )
        return Line(_TITLES[f.code], tone, label, text)
    if f.spread is not None:
        text += (
            f"; retrained from scratch {as_percent(f.retrained)} in the mean, expected "
            f"{wording.expected(f)}; Original {as_percent(f.original)}."
        )
        return Line(_TITLES[f.code], tone, label, text)
    if f.code == "erased-earlier":
        if f.state != "cannot-tell":
            label = "back again" if f.state == "exceeded" else "still away"
        which = capitalised(class_text(int(f.label or 0), record.class_names))
        text = f"{which} {as_percent(f.value)} (limit {as_percent(f.limit)})."
        if f.state == "cannot-tell":
            text = capitalised(wording.reason(f, "", (), record.class_names)) + "."
    elif f.code == "relearning-curve":
        text = (
            f"Mean {as_number(f.value)}, retrained from scratch {as_number(f.retrained)}: "
            f"{as_gap(f.value, f.retrained)} points (at most {as_gap(f.limit, f.retrained)})."
        )
        if f.state == "cannot-tell":
            text += f" Original has {as_number(f.original)}: the curve cannot tell them apart here."
        elif _deeper(f):
            label, text = "slower", text + " It went deeper than retraining would."
    elif f.code == "retain-accuracy":
        if f.state == "held":
            lost = (f.original or 0.0) - (f.value or 0.0) > RETAIN_TOLERANCE
            label = "as retrained" if lost else "kept"
        text += f", Original {as_percent(f.original)}"
        if f.retrained is None:
            text += "; not compared with retraining from scratch."
        else:
            text += f", retrained from scratch {as_percent(f.retrained)}"
            text += f" (expected at least {as_percent(f.limit)}; it does not decide the verdict)."
    elif f.code == "left-below":
        label = "not judged"
        text = capitalised(wording.reason(f, "").removeprefix("remark: ")) + "."
    elif f.code in ("few-sites", "few-others"):
        label = "few sites"
        text = capitalised(wording.reason(f, "").removeprefix("remark: ")) + "."
    elif f.code == "by-method":
        label = "by its method"
        text = capitalised(wording.reason(f, "").removeprefix("remark: ")) + "."
    elif f.code in ("too-deep", "below-retrained", "class-damaged"):
        label = "damaged" if f.code == "class-damaged" else label
        told = wording.reason(f, "", (), record.class_names).removeprefix("remark: ")
        text = capitalised(told) + "."
    elif f.code in ("crept-back", "sites-disagree", "nothing-below", "only-accuracy"):
        text = capitalised(wording.reason(f, "")) + "."
    else:
        if f.retrained is not None:
            text += f", retrained from scratch {as_percent(f.retrained)}"
        text += f" (limit {as_percent(f.limit)})."
        if f.code == "nothing-to-show":
            clients = () if record.forget is None else record.forget.clients
            told = wording.reason(f, "client", clients) if clients else "there was nothing to show"
            text += f" Original has {as_percent(f.original)}: {told}."
    return Line(_TITLES[f.code], tone, label, text)


def _deeper(finding: Finding) -> bool:
    f = finding
    if f.value is None or f.retrained is None or f.limit is None:
        return False
    return f.retrained - f.value > f.limit - f.retrained


def _missing_line(missing: Missing, record: Record) -> Line:
    level = "" if record.forget is None else record.forget.level or ""
    text = capitalised(wording.not_measured(missing, level)) + "."
    code: Code = missing.code
    return Line(_TITLES[code], "open", "not measured", text)


def _relearned_text(record: Record) -> str:
    after = None if record.relearned is None else record.relearned.forget_accuracy
    before = None if record.original is None else record.original.forget_accuracy
    if after is None:
        return "the outcome was not measured."
    text = f"the forget accuracy is {as_percent(after)} again"
    return text + (f", where Original had {as_percent(before)}." if before is not None else ".")
