"""A verdict in words: for the terminal, the page, the ledger and the JSON of a record.

Only what `server.evidence.verdict` decided is said here; nothing is decided again.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from server.evidence.spread import DIFFERENCES, ENOUGH
from server.evidence.verdict import RETAIN_TOLERANCE, YARDSTICK, Finding, Missing, Verdict
from server.format import class_text

STATES: Final = {"passed": "passed", "failed": "failed", "not-shown": "not shown"}
ACCEPT: Final = "--accept not-shown"
# What each measure is called in a sentence; all are in percent of the forget set.
MEASURES: Final = {
    "forget-accuracy": "forget accuracy",
    "relearning-curve": "relearning curve",
    "head-back": "accuracy with Original's last layer put back",
    "blank-head": "relearning curve from an empty last layer",
    "class-means": "accuracy by the nearest class mean of the features",
    "probe": "accuracy of a probe of the features",
    "matched-head": "accuracy with Original's last layer on the features matched to Original's",
    "turned-head": "accuracy with Original's last layer on the features turned onto Original's",
    "membership": "how much surer it is of training examples than of unseen ones",
    "client-relearning": "how much surer it is of half of them, the other half learned again",
}
OF_CLIENTS: Final = {
    "forget-accuracy": "accuracy on the client's held-out data",
    "membership": "how much surer it is of the client's training examples than of unseen ones",
    "client-relearning": (
        "how much surer it is of half of the client's training examples than of unseen ones when "
        "the other half was learned again"
    ),
}


def reasons(
    verdict: Verdict, level: str, clients: Sequence[str] = (), names: Sequence[str] = ()
) -> list[str]:
    """Return what a verdict rests on, one sentence a finding that says something of it."""
    told = [reason(finding, level, clients, names) for finding in verdict.findings]
    if verdict.yardstick == "itself":
        told.append("the method is retraining from scratch: it is the yardstick itself")
    told.append(how_known(verdict))
    return [text for text in told if text]


def how_known(verdict: Verdict) -> str:
    """Return what the limits rest on; empty where no stock of retrained models was read."""
    count = verdict.retrainings
    if count is None:
        return ""
    if verdict.false_alarms is None:
        models = "one retrained model" if count == 1 else f"{count} retrained models"
        return (
            f"remark: the limits were set by hand: {models} can show no spread "
            f"(efface yardstick --count {ENOUGH} or more trains what can)"
        )
    text = (
        f"limits by the spread of {count} retrained models, made so that at most "
        f"{100 * verdict.false_alarms:g} % of honest retrainings lie beyond any of them"
    )
    if verdict.refused_retrainings:
        text += f"; of these {count} the others would refuse {verdict.refused_retrainings}"
    return text


def reason(
    finding: Finding, level: str, clients: Sequence[str] = (), names: Sequence[str] = ()
) -> str:
    """Return one finding in words; empty where it held and nothing hangs on it."""
    f = finding
    if f.spread is not None:
        return _by_spread(f, level)
    held = f.state != "exceeded"
    if f.code == "forget-accuracy" and f.value is not None and f.limit is not None:
        held = f.value <= f.limit
    if f.code == "forget-accuracy" and level == "class":
        return (
            f"forget accuracy {_of(f.value)} %, {'at most' if held else 'above'} {_of(f.limit)} %"
        )
    if f.code == "forget-accuracy":
        return (
            f"accuracy on the client's held-out data {_of(f.value)} %, "
            f"{'at most' if held else 'above'} Retrained's + {_points(f)} points"
        )
    if f.code == "nothing-to-show" and level == "class":
        return (
            f"forget accuracy {_of(f.value)} %, at most {_of(f.limit)} %; nothing to show: "
            f"Original has {_of(f.original)} %, within that limit before the request"
        )
    if f.code == "nothing-to-show":
        whose = "these clients'" if len(clients) > 1 else "this client's"
        return f"Original knows {whose} data no better than Retrained: accuracy cannot tell"
    if f.code == "relearning-curve":
        gap, most = _difference(f.value, f.retrained), _difference(f.limit, f.retrained)
        return (
            f"relearning curve {gap:+.1f} points against Retrained, "
            f"{'within' if held else 'beyond'} +{most:.4g}"
            + ("" if held else ": more of the class is left than in a model that never saw it")
            + ("; Original's lies there too: it cannot tell" if f.state == "cannot-tell" else "")
        )
    if f.code == "erased-earlier" and f.state == "cannot-tell":
        which = class_text(int(f.label or 0), names)
        return f"{which}, erased earlier: {_disagreement(f)}"
    if f.code == "sites-disagree":
        return _disagreement(f)
    if f.code == "nothing-below":
        return (
            "no measure below the last layer tells Original from the retrained models: a class "
            "that is only hidden there would not be seen"
        )
    if f.code == "only-accuracy":
        return (
            "nothing but accuracy tells Original from the retrained models: a model can be tuned "
            "to have it, so that it alone does not show that the client's data are forgotten"
        )
    if f.code == "by-method":
        return (
            "remark: what was measured does not show that the client's data are forgotten: it "
            "passes for its method, retraining from scratch without them"
        )
    if f.code == "few-sites":
        one = f.sites == 1
        return (
            f"remark: that accuracy is what {'one site says' if one else f'{f.sites} sites say'} "
            f"of {'its' if one else 'their'} held-out data: "
            f"{'it alone' if one else 'each of them'} could turn it"
        )
    if f.code == "few-others":
        one = f.sites == 1
        return (
            "remark: how sure the model is of unseen examples is what "
            f"{'one site says' if one else f'{f.sites} sites say'}: "
            f"{'it alone' if one else 'each of them'} could turn how much surer it is of others"
        )
    if f.code == "erased-earlier" and not held:
        which = class_text(int(f.label or 0), names)
        return f"{which}, erased earlier, is back at {_of(f.value)} %"
    if f.code == "retain-accuracy" and f.state == "remark":
        lost = _difference(f.retrained, f.value)
        return (
            f"remark: retain accuracy {_of(f.value)} % is {lost:.1f} points "
            f"below Retrained's, more than {RETAIN_TOLERANCE:g}"
        )
    if f.code == "left-below":
        return (
            f"remark: with Original's last layer put back it is recognised in {_of(f.value)} %, in "
            f"{_of(f.retrained)} % of Retrained: it may be hidden rather than forgotten, which "
            f"{ENOUGH} retrained models would tell"
        )
    if f.code in ("too-deep", "below-retrained", "class-damaged"):
        return f"remark: {_too_much(f, names)}"
    if f.code == "crept-back":
        return (
            f"recovery brought the forget set back to {_of(f.value)} % on the clients' held-out "
            f"data, above {f.limit:g} %, whatever was tried"
            + (f"; {_disagreement(f)}" if f.state == "cannot-tell" else "")
        )
    return ""


def expected(finding: Finding) -> str:
    """Return which values a spread allows, as far as a share can have them: "at most 13.1 %"."""
    if finding.code in DIFFERENCES:  # a difference, which may be below 0
        return f"{finding.low or 0.0:+.1f} to {finding.limit or 0.0:+.1f} points"
    low, high = max(finding.low or 0.0, 0.0), finding.limit or 0.0
    if high >= 100:
        return f"{low:.1f} % or more" if low > 0 else "anything from 0 to 100 %"
    return f"{low:.1f} to {high:.1f} %" if low > 0 else f"at most {high:.1f} %"


def _by_spread(finding: Finding, level: str) -> str:
    f = finding
    what = MEASURES[f.code]
    if level == "client":
        what = OF_CLIENTS.get(f.code, f"of classes that only the client held, {what}")
    unit = " points" if f.code in DIFFERENCES else " %"
    text = f"{what} {_of(f.value)}{unit}, expected of a retrained model {expected(f)}"
    if f.state == "exceeded":
        text += ": more than they know is left"
    elif f.state == "below":
        text += ": less than they know, so that it shows that the data were there"
    elif f.state == "cannot-tell":
        text += f"; Original's {_of(f.original)}{unit} lies there too: it cannot tell"
    return text


def _too_much(finding: Finding, names: Sequence[str]) -> str:
    f = finding
    below, most = _difference(f.retrained, f.value), _difference(f.retrained, f.limit)
    if f.code == "class-damaged":
        which = class_text(int(f.label or 0), names)
        return (
            f"{which}, which was to stay, has {_of(f.value)} %, {below:.1f} points below "
            f"Retrained's, more than {most:.4g}"
        )
    what = "relearning curve" if f.code == "too-deep" else "accuracy on the client's held-out data"
    return (
        f"{what} {below:.1f} points below Retrained's, more than {most:.4g}: a model that never "
        "saw the data knows more of them, so that it shows that they were there"
    )


def _disagreement(finding: Finding) -> str:
    f = finding
    return (
        f"the sites disagree: together they have {_of(f.value)} %, their median is "
        f"{_of(f.median)} %, on the other side of what decides; one of them may have turned it"
    )


def not_measured(missing: Missing, level: str) -> str:
    """Return what was not measured, why, and what would measure it."""
    what = {"forget-accuracy": "forget accuracy", "relearning-curve": "relearning curve"}.get(
        missing.code, missing.code
    )
    if missing.why == "not-answered":
        return (
            "client relearning: the client answers of its examples, and not of half of them (its "
            "policy has no room for it, or they are too few)"
        )
    if missing.why == "no-yardstick":
        return f"{what} against Retrained ({missing.remedy})"
    if missing.why == "no-held-out-data":
        return (
            f"{what}: no data that these clients hold out were there to measure on (they are "
            "offline, or trained with --holdout 0)"
        )
    return f"{what}: the coordinator has too few test examples of what was to be forgotten"


def refusal(
    verdict: Verdict, level: str, clients: Sequence[str] = (), names: Sequence[str] = ()
) -> str:
    """Return in one line why a result may not enter service: what the ledger keeps.

    What decided against it comes first, so that whoever shows the first part alone shows that.
    """
    failed = verdict.state == "failed"
    against = ("exceeded",) if failed else ("below", "cannot-tell")
    ordered = tuple(sorted(verdict.findings, key=lambda finding: finding.state not in against))
    told = reasons(replace(verdict, findings=ordered), level, clients, names)
    if failed:
        return f"verification failed: {'; '.join(told)}"
    missing = [f"not measured: {not_measured(one, level)}" for one in verdict.missing]
    return f"verification shows neither success nor failure: {'; '.join([*missing, *told])}"


def remedy(verdict: Verdict, method: str) -> str | None:
    """Return in one line what to do next; None where the verdict is "passed".

    Args:
        verdict: Of a request.
        method: The one that it was judged on.
    """
    if verdict.state == "passed":
        return None
    if verdict.state == "not-shown":
        measured = dict.fromkeys(m.remedy for m in verdict.missing if m.remedy)
        return f"try {' or '.join([*measured, ACCEPT])}"
    other = "another method" if method == YARDSTICK else f"--method {YARDSTICK} or another"
    crept = verdict.finding("crept-back") is not None
    more = "unlearn more and recover less" if crept else "unlearn more"
    return (
        f"try {other}, or have this one {more} (--set; efface methods lists its options); "
        "--trial keeps such a result to be looked at"
    )


def _of(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"


def _points(finding: Finding) -> str:
    return f"{_difference(finding.limit, finding.retrained):.4g}"


def _difference(value: float | None, other: float | None) -> float:
    return 0.0 if value is None or other is None else value - other
