"""The verdict on a request to forget: made here, once, and only worded elsewhere.

A pure function from what was measured and the limits that were asked for to a frozen `Verdict`,
which the request's record keeps. `server.evidence.wording` puts it into words.

It is long because a verdict's types and the one function that decides it stand together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from server.evidence import spread, stock
from server.evidence.features.scores import FeatureMeasures
from server.evidence.scores import ModelScores
from server.evidence.stock import Retraining

State = Literal["passed", "failed", "not-shown"]
Code = Literal[
    "forget-accuracy",
    "relearning-curve",
    "retain-accuracy",
    "erased-earlier",
    "nothing-to-show",
    "crept-back",
    "sites-disagree",
    "few-sites",
    "few-others",
    "head-back",
    "blank-head",
    "class-means",
    "probe",
    "matched-head",
    "turned-head",
    "membership",
    "client-relearning",
    "nothing-below",
    "only-accuracy",
    "by-method",
    "too-deep",
    "below-retrained",
    "class-damaged",
    "left-below",
]
FindingState = Literal["held", "exceeded", "below", "cannot-tell", "remark", "open"]
Reason = Literal["no-yardstick", "no-test-images", "no-held-out-data", "not-answered"]

# Points below Retrained that accuracy on the retain set may have. Beyond it is a remark, no
# failure: the request was to forget, and an erasure must not be refused for what it cost.
RETAIN_TOLERANCE: Final = 2.0
# Points below Retrained that one class of the retain set may have: beyond it the forgetting harmed
# a neighbour, which the mean over all classes hides. Models trained alike differ by some.
CLASS_TOLERANCE: Final = 10.0
# Points above Retrained by which Original's last layer, put back, may read what was to be
# forgotten, where retrained models are too few for their spread to say so.
LEFT_BELOW: Final = 10.0
# Sites from which on one of them cannot turn a verdict that rests on what they say: below it a
# median is no more than the mean of two.
ENOUGH_SITES: Final = 3
YARDSTICK: Final = "retraining"  # the method whose result is what others are compared with
COMPARE: Final = "--compare retrain"


@dataclass(frozen=True)
class Limits:
    """What a request asked to be judged by.

    Attributes:
        forget_accuracy: Highest forget accuracy in percent that counts as forgotten, or what
            Retrained has if that is more. Of a client: points above Retrained.
        relearning_gap: Most points by which the relearning curve's mean may lie above Retrained's.
    """

    forget_accuracy: float = 5.0
    relearning_gap: float = 15.0


@dataclass(frozen=True)
class Finding:
    """One thing that was measured, beside its limit.

    Attributes:
        code: What it is about.
        state: "held", "exceeded" and "below" (more was forgotten than by never having seen it)
            decide; "cannot-tell" says that the model before the request lies within the limit as
            well; "remark" and "open" decide nothing.
        value: What the result has, in percent; of a relearning curve its mean.
        limit: What it may have at most (retain accuracy: at least).
        retrained: What Retrained has; the mean of several, where their spread sets the limit.
        original: What the model before the request has.
        label: The class, where it is about one.
        median: Median of the sites, where the value is theirs together.
        sites: How many of them measured it.
        low: What it may have at least, where a spread says so.
        spread: Standard deviation of the retrained models, where it sets the limit.
    """

    code: Code
    state: FindingState
    value: float | None = None
    limit: float | None = None
    retrained: float | None = None
    original: float | None = None
    label: int | None = None
    median: float | None = None
    sites: int | None = None
    low: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class Missing:
    """What a verdict would need and does not have, why, and what would measure it (or None)."""

    code: Code
    why: Reason
    remedy: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a request forgot what it should.

    Attributes:
        state: "passed"; "failed"; or "not-shown": neither is shown.
        findings: What was measured.
        missing: What a verdict would need and was not measured.
        yardstick: "retrained", "itself" (the method is retraining), or None.
        retrainings: How many retrained models it was compared with, where that is known.
        false_alarms: Share of honest retrainings that limits from their spread refuse at most; None
            where the limits were set by hand.
        refused_retrainings: How many of the retrained models the others would refuse.
    """

    state: State = "not-shown"
    findings: tuple[Finding, ...] = ()
    missing: tuple[Missing, ...] = ()
    yardstick: Literal["retrained", "itself"] | None = None
    retrainings: int | None = None
    false_alarms: float | None = None
    refused_retrainings: int | None = None

    @property
    def passed(self) -> bool | None:
        """True, False, or None where neither is shown."""
        return {"passed": True, "failed": False, "not-shown": None}[self.state]

    def finding(self, code: Code) -> Finding | None:
        """Return the first finding about something, or None."""
        return next((f for f in self.findings if f.code == code), None)


@dataclass(frozen=True)
class CreptBack:
    """A recovery that brought the forget set back, whatever was tried: what the guard saw."""

    accuracy: float
    threshold: float


def decide(
    level: str,
    result: ModelScores,
    *,
    original: ModelScores | None,
    retrained: ModelScores | None,
    limits: Limits,
    erased_before: Sequence[int] = (),
    method: str = "",
    crept_back: CreptBack | None = None,
    retrainings: Sequence[Retraining] = (),
    features: FeatureMeasures | None = None,
) -> Verdict:
    """Return whether a request to forget did what it should.

    With `spread.ENOUGH` retrained models or more their spread sets the limits, on both sides and at
    a stated rate of false alarms (`server.evidence.spread`), and those of the request for accuracy
    and curve are not read, with the one exception below. What lies above fails it. What lies below
    is not shown to have forgotten as it should: a model that knows less than one that never saw the
    data says that they were there. It passes if nothing lies beyond, nothing is missing, and some
    measure tells the result from the model before: of those below the last layer, where there are
    any, one too.
    Otherwise a last layer that hides the class would pass, and nothing is shown. Of a client, some
    measure other than accuracy must tell: whether its training data show as such, or, of classes
    that only it held, those of a class.

    Where no retrained model has more of a class than the request's own limit allows, that limit
    holds as well: three accuracies of 0 % would allow 16 and more.

    With fewer, the limits are those that the request names, chosen by hand, and what lies below the
    last layer is a remark at most.
    Any limit exceeded fails it. It passes if something that decides held and nothing that decides
    is missing. Of a class, accuracy must hold and the relearning curve must be measured against
    Retrained; where Original's curve lies within the limit as well, the curve cannot tell, which is
    said, and accuracy decides;
    of a client, whose relearning is not defined, accuracy against Retrained alone decides, and
    retraining passes even where no client could be asked. Where the model before the request lies
    within the limit of accuracy as well, there is nothing to show.

    Of a client retraining passes as what it is where no measure can tell, which is said
    ("by-method"). So whoever did not see it run must not name it.

    Args:
        level: "class" or "client".
        result: Scores of the result.
        original: Scores of the model before the request.
        retrained: Scores of the yardstick, or None if it was not measured.
        limits: What was asked for.
        erased_before: Classes that earlier requests erased: they must stay away.
        method: The method's name; retraining is its own yardstick. Empty for whoever judges by
            what is measured alone.
        crept_back: What the guard of recovery gave up at.
        retrainings: The stock that `retrained` is of.
        features: What lies below the last layers.
    """
    yardstick: Literal["retrained", "itself"] | None = None if retrained is None else "retrained"
    itself = method == YARDSTICK
    if retrained is None and itself:
        retrained, yardstick = result, "itself"
    enough = len(retrainings) >= spread.ENOUGH
    parts: list[Finding | Missing]
    if enough:
        parts = _by_spread(level, result, original, retrainings, features, limits)
    else:
        parts = [_accuracy(level, result, original, retrained, limits, itself=itself)]
        if level == "class":
            parts.append(_relearning(result, original, retrained, limits))

    def by_medians() -> Finding | Missing:
        middle, before = _of_medians(result), original and _of_medians(original)
        if enough:
            medians = [replace(one, scores=_of_medians(one.scores)) for one in retrainings]
            return _by_spread(level, middle, before, medians, features, limits)[0]
        goal = retrained and _of_medians(retrained)
        return _accuracy(level, middle, before, goal, limits, itself=itself)

    accuracy = parts[0]
    by_sites = _by_sites(accuracy, result, by_medians)
    if isinstance(accuracy, Finding) and any(f.code == "sites-disagree" for f in by_sites):
        parts[0] = replace(accuracy, state="cannot-tell")
    findings = [part for part in parts if isinstance(part, Finding)] + by_sites
    findings += _by_few_others(findings, result)
    missing = [part for part in parts if isinstance(part, Missing)]
    decisive = list(findings)
    if crept_back is not None:
        found = _site_median(result, "forget_median")
        lone = found is not None and found <= crept_back.threshold
        decisive.append(
            Finding(
                "crept-back",
                "cannot-tell" if lone else "exceeded",
                crept_back.accuracy,
                crept_back.threshold,
                median=found,
            )
        )
        findings.append(decisive[-1])
    earlier = _earlier(result, limits, erased_before)
    findings += [*earlier, *_retained(result, original, retrained)]
    too_much = _too_much(level, result, original, retrained, limits)
    # A spread says by itself what lies too deep; of the other classes it says nothing.
    findings += [f for f in too_much if not enough or f.code == "class-damaged"]
    findings += [] if enough else _left_below(features)
    states = {finding.state for finding in decisive}
    nothing = any(
        finding.code in ("nothing-to-show", "sites-disagree")
        or (finding.code in ("erased-earlier", "crept-back") and finding.state == "cannot-tell")
        for finding in findings
    )
    # Of a client retraining passes as what it is, where nothing can tell.
    blind = [] if level == "client" and itself else _blind(findings)
    if enough and level == "client" and not itself:
        blind += _by_accuracy_alone(findings)
    findings += blind
    shown = ("held" in states and not missing) or (level == "client" and itself)
    state: State = "not-shown"
    if "exceeded" in states or any(finding.state == "exceeded" for finding in earlier):
        state = "failed"
    elif shown and not nothing and not blind and "below" not in states:
        state = "passed"
    if state == "passed" and level == "client" and itself:
        alone = decide(
            level,
            result,
            original=original,
            retrained=retrained if yardstick == "retrained" else None,
            limits=limits,
            erased_before=erased_before,
            crept_back=crept_back,
            retrainings=retrainings,
            features=features,
        )
        if alone.state != "passed":
            findings.append(Finding("by-method", "remark"))
    found_values = stock.values(level, retrainings)
    return Verdict(
        state,
        tuple(findings),
        tuple(missing),
        yardstick,
        len(retrainings) or None,
        spread.FALSE_ALARMS if enough else None,
        spread.refused(found_values, stock.UPPER_ONLY) if enough else None,
    )


def _by_spread(
    level: str,
    result: ModelScores,
    original: ModelScores | None,
    retrainings: Sequence[Retraining],
    features: FeatureMeasures | None,
    asked: Limits,
) -> list[Finding | Missing]:
    """Return what each measure says beside the spread of the retrained models, accuracy first."""
    below = features or FeatureMeasures()
    values = stock.values(level, retrainings)
    limits = spread.ranges(values, stock.UPPER_ONLY)
    most = asked.forget_accuracy if level == "class" else math.inf
    if max(values.get("forget-accuracy", [math.inf])) > most:
        most = math.inf
    own = stock.measured(level, result, below.result)
    before = stock.measured(level, original, below.original)
    parts: list[Finding | Missing] = []
    for code in dict.fromkeys((*stock.REQUIRED[level], *limits)):
        limit = limits.get(code)
        if limit is None or code not in own:
            if code in stock.REQUIRED[level]:
                why: Reason = "no-test-images" if level == "class" else "no-held-out-data"
                parts.append(Missing(code, why))
            elif code == "client-relearning" and "membership" in own:
                # The client answered of its examples, and not of their halves.
                parts.append(Missing(code, "not-answered"))
            continue
        side = spread.side(own[code], limit)
        if code == "forget-accuracy" and side == 0 and own[code] > most:
            sides = (own[code], most, limit.mean, before.get(code))
            parts.append(Finding(code, "exceeded", *sides))
            continue
        state: FindingState = "held" if side == 0 else "exceeded" if side > 0 else "below"
        if side == 0 and code in before and spread.side(before[code], limit) == 0:
            state = "cannot-tell"
        parts.append(
            Finding(
                code,
                state,
                own[code],
                limit.high,
                limit.mean,
                before.get(code),
                low=limit.low,
                spread=limit.spread,
            )
        )
    return parts


def _blind(findings: Sequence[Finding]) -> list[Finding]:
    """Return what is to be said where no measure below the last layer tells Original apart."""
    under = [f for f in findings if f.code in stock.BELOW and f.spread is not None]
    if not under or any(f.state != "cannot-tell" and f.original is not None for f in under):
        return []
    return [Finding("nothing-below", "cannot-tell")]


def _left_below(features: FeatureMeasures | None) -> list[Finding]:
    """Return a remark where Original's last layer still reads what was to be forgotten.

    On the features as they are and on the matched ones: a training from other first weights need
    not have Original's features in Original's order, and has another one's then.
    """
    if features is None or features.result is None or features.retrained is None:
        return []
    own, goal = features.result, features.retrained
    pairs = [(own.head_back, goal.head_back), (own.matched_head, goal.matched_head)]
    known = [(value, least) for value, least in pairs if value is not None and least is not None]
    if not known or any(value - least <= LEFT_BELOW for value, least in known):
        return []
    value, least = min(known)
    before = None if features.original is None else features.original.head_back
    return [Finding("left-below", "remark", value, least + LEFT_BELOW, least, before)]


def _by_accuracy_alone(findings: Sequence[Finding]) -> list[Finding]:
    """Return what is to be said where accuracy alone tells a client's data from data never seen.

    It is the one measure that any method can be tuned to, without the data.
    """
    telling = [f.code for f in findings if f.spread is not None and f.state != "cannot-tell"]
    if telling != ["forget-accuracy"]:
        return []
    return [Finding("only-accuracy", "cannot-tell")]


def _accuracy(
    level: str,
    result: ModelScores,
    original: ModelScores | None,
    retrained: ModelScores | None,
    limits: Limits,
    *,
    itself: bool,
) -> Finding | Missing:
    value = result.forget_accuracy
    goal = None if retrained is None else retrained.forget_accuracy
    before = None if original is None else original.forget_accuracy
    if level == "class":
        if value is None:
            return Missing("forget-accuracy", "no-test-images")
        limit = limits.forget_accuracy if goal is None else max(limits.forget_accuracy, goal)
        known_before = before is not None and before <= limit
        if value > limit:
            return Finding("forget-accuracy", "exceeded", value, limit, goal, before)
        code: Code = "nothing-to-show" if known_before else "forget-accuracy"
        state: FindingState = "cannot-tell" if known_before else "held"
        return Finding(code, state, value, limit, goal, before)
    if retrained is None:
        return Missing("forget-accuracy", "no-yardstick", COMPARE)
    if goal is None or value is None:
        return Missing("forget-accuracy", "no-held-out-data")
    # A client's data are forgotten at the accuracy of data never seen.
    limit = goal + limits.forget_accuracy
    if before is not None and before <= limit and not itself:
        return Finding("nothing-to-show", "cannot-tell", value, limit, goal, before)
    return Finding(
        "forget-accuracy", "held" if value <= limit else "exceeded", value, limit, goal, before
    )


def _relearning(
    result: ModelScores,
    original: ModelScores | None,
    retrained: ModelScores | None,
    limits: Limits,
) -> Finding | Missing:
    value = result.curve_mean
    goal = None if retrained is None else retrained.curve_mean
    before = None if original is None else original.curve_mean
    if value is None:
        return Missing("relearning-curve", "no-test-images")
    if retrained is None:
        return Missing("relearning-curve", "no-yardstick", COMPARE)
    if goal is None:
        return Missing("relearning-curve", "no-test-images")
    limit = goal + limits.relearning_gap
    # In differences, as they are shown: a sum would round otherwise.
    if value - goal > limits.relearning_gap:
        state: FindingState = "exceeded"
    elif before is not None and before - goal <= limits.relearning_gap:
        state = "cannot-tell"
    else:
        state = "held"
    return Finding("relearning-curve", state, value, limit, goal, before)


def _earlier(result: ModelScores, limits: Limits, erased: Sequence[int]) -> list[Finding]:
    each = result.per_class_accuracy or ()
    medians = _site_median(result, "per_class_median") or ()
    known = [(c, each[c]) for c in erased if c < len(each)]
    found = []
    for label, value in known:
        if value is None:
            continue
        median = medians[label] if label < len(medians) else None
        sides = {
            number > limits.forget_accuracy for number in (value, median) if number is not None
        }
        state: FindingState = "exceeded" if True in sides else "held"
        if len(sides) > 1:
            state = "cannot-tell"
        limit = limits.forget_accuracy
        found.append(Finding("erased-earlier", state, value, limit, label=label, median=median))
    return found


def _site_median(result: ModelScores, name: str) -> Any:
    """Return a median of the sites; None where accuracies are not theirs, or they are too few."""
    heldout = result.heldout
    if heldout is None or not heldout.decides or len(heldout.sites) < ENOUGH_SITES:
        return None
    return getattr(heldout, name)


def _by_few_others(findings: Sequence[Finding], result: ModelScores) -> list[Finding]:
    """Return a remark where few sites say what unseen examples look like, if that was compared."""
    found = next((f for f in findings if f.code == "membership"), None)
    if found is None or result.heldout is None:
        return []
    sites = sum(bool(site.retain_count) for site in result.heldout.sites)
    few = 0 < sites < ENOUGH_SITES
    return [Finding("few-others", "remark", found.value, sites=sites)] if few else []


def _by_sites(
    found: Finding | Missing, result: ModelScores, by_medians: Callable[[], Finding | Missing]
) -> list[Finding]:
    """Return what is to be said of an accuracy that the sites measured.

    `by_medians` gives what the sites' medians would say in place of their numbers together.
    """
    heldout = result.heldout
    if isinstance(found, Missing) or heldout is None or not heldout.decides or not heldout.sites:
        return []
    sites = sum(site.forget_accuracy is not None for site in heldout.sites)
    if sites < ENOUGH_SITES:
        return [Finding("few-sites", "remark", found.value, sites=sites)] if sites else []
    again = by_medians()
    if isinstance(again, Finding) and again.state == found.state:
        return []
    return [
        Finding(
            "sites-disagree",
            "cannot-tell",
            found.value,
            found.limit,
            median=heldout.forget_median,
            sites=sites,
        )
    ]


def _of_medians(scores: ModelScores) -> ModelScores:
    """Return scores with the sites' median in place of their numbers together."""
    heldout = scores.heldout
    if heldout is None or not heldout.decides or heldout.forget_median is None:
        return scores
    return replace(scores, forget_accuracy=heldout.forget_median)


def _retained(
    result: ModelScores, original: ModelScores | None, retrained: ModelScores | None
) -> list[Finding]:
    value = result.retain_accuracy
    goal = None if retrained is None else retrained.retain_accuracy
    before = None if original is None else original.retain_accuracy
    if value is None:
        return []
    if goal is None:
        return [Finding("retain-accuracy", "open", value, original=before)]
    lost = goal - value > RETAIN_TOLERANCE
    return [
        Finding(
            "retain-accuracy",
            "remark" if lost else "held",
            value,
            goal - RETAIN_TOLERANCE,
            goal,
            before,
        )
    ]


def _too_much(
    level: str,
    result: ModelScores,
    original: ModelScores | None,
    retrained: ModelScores | None,
    limits: Limits,
) -> list[Finding]:
    """Return what shows that more was forgotten than by never having seen the data.

    It decides nothing, but is as wrong as too little: a model that is worse on the forgotten than
    one that never saw them says that they were there. The limits are those of the other side.
    """
    if retrained is None:
        return []
    before = original or ModelScores()
    found = []
    if level == "class":
        sides = (result.curve_mean, retrained.curve_mean, before.curve_mean)
        found.append(_below("too-deep", sides, limits.relearning_gap))
    else:
        sides = (result.forget_accuracy, retrained.forget_accuracy, before.forget_accuracy)
        found.append(_below("below-retrained", sides, limits.forget_accuracy))
    classes = [
        _below("class-damaged", (value, goal, own), CLASS_TOLERANCE, label)
        for label, (value, goal, own) in enumerate(
            zip(
                result.per_class_accuracy or (),
                retrained.per_class_accuracy or (),
                before.per_class_accuracy or (None,) * len(result.per_class_accuracy or ()),
                strict=False,
            )
        )
    ]
    return [finding for finding in (*found, *classes) if finding is not None]


def _below(
    code: Code,
    sides: tuple[float | None, float | None, float | None],
    most: float,
    label: int | None = None,
) -> Finding | None:
    """Return a remark where the first lies further below the second, Retrained's, than it may."""
    value, goal, before = sides
    if value is None or goal is None or goal - value <= most:
        return None
    return Finding(code, "remark", value, goal - most, goal, before, label=label)
