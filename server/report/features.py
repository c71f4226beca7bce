"""The report's table of what models know below their last layers."""

from collections.abc import Sequence
from typing import Final

from server.evidence.features.scores import FeatureMeasures, FeatureScores
from server.evidence.record import Record
from server.format import class_text
from server.report.tables import Table
from server.report.words import BELOW, as_number, as_percent, outcome_of, subject_of

WHY_NOT: Final = {
    "no-last-layer": "They do not apply: the network does not end in one linear layer.",
    "too-few-images": "They do not apply: there are too few test examples.",
}

SHORT: Final = (
    *("Head back", "Blank head", "Class means", "Probe", "Matched head", "Turned head"),
    *("CKA forget", "CKA retain", "Neighbours forget", "Neighbours retain"),
)


def feature_table(record: Record) -> Table | None:
    """Return the measures, Original and Retrained first; None where none was made."""
    found = record.features
    if found is None or found.original is None:
        return None
    models = [
        ("Original", found.original, "yardstick"),
        ("Retrained", found.retrained, "yardstick"),
        (outcome_of(record)[0], found.result, ""),
    ]
    return Table(
        [("Accuracy on the forget set, %", 6), ("Like Retrained, 0 to 1", 4)],
        [
            *BELOW.values(),
            *("CKA, forget", "CKA, retain", "neighbours, forget", "neighbours, retain"),
        ],
        [(name, _cells(scores), mark) for name, scores, mark in models if scores is not None],
    )


def why_no_features(record: Record) -> str | None:
    """Return why the measures do not apply; None where they do, or were not made."""
    found = record.features
    return None if found is None or found.why_not is None else WHY_NOT.get(found.why_not)


def at_clients(record: Record) -> bool:
    """Return whether clients measured what they could, for want of the coordinator's examples."""
    scores = record.recovered
    return scores is not None and scores.heldout is not None and scores.heldout.decides


def named_sentence(record: Record) -> str | None:
    """Return whether both models together tell which class went; None where that was not asked."""
    found = record.features
    if found is None or found.result is None or not found.examples or record.forget is None:
        return None
    wanted = {*(found.classes or record.forget.classes)}

    def told(scores: FeatureScores) -> str:
        right = len(wanted.intersection(scores.named))
        if len(wanted) > 1:
            return f"can name {right} of {len(wanted)}"
        return "can name it" if right else "cannot name it"

    text = (
        "Which class went? Whoever holds the models before and after, and no example of it, "
        f"{told(found.result)} by how both answer the others"
    )
    if found.retrained is not None:
        text += f"; with a retrained model in place of the result, {told(found.retrained)}"
    return text + "."


def feature_sentence(record: Record) -> str | None:
    """Return what the measures come to for whoever reads one sentence, None where there is none."""
    found = record.features
    if found is None or found.result is None or found.original is None:
        return None
    now, before = found.result.head_back, found.original.head_back
    if now is None or before is None:
        return None
    subject, plural = subject_of(record)
    if found.classes:
        subject = " and ".join(class_text(c, record.class_names) for c in found.classes)
        subject, plural = f"{subject} (held by no other client)", len(found.classes) > 1
    measured_on = "examples that clients held out" if at_clients(record) else "test examples"
    text = (
        f"With its old last layer put back, the result recognises {as_percent(now)} of the "
        f"{measured_on} of {subject}; "
        f"before the request it was {as_percent(before)}"
    )
    if found.retrained is not None and found.retrained.head_back is not None:
        text += (
            ", and a model retrained without "
            f"{'them' if plural else 'it'} has {as_percent(found.retrained.head_back)}"
        )
    return text + "."


def feature_rows(
    found: FeatureMeasures, result: str, original: str = "Original"
) -> list[Sequence[str]]:
    """Return a row a model for the terminal, Original and Retrained first, under `SHORT`."""
    models = ((original, found.original), ("Retrained", found.retrained), (result, found.result))
    return [[name, *_cells(scores)] for name, scores in models if scores is not None]


def _cells(scores: FeatureScores) -> list[str]:
    percents = (
        *(scores.head_back, scores.blank_mean, scores.class_means, scores.probe),
        *(scores.matched_head, scores.turned_head),
    )
    at = scores.at_features
    shares = (at.forget, at.retain, scores.neighbours_forget, scores.neighbours_retain)
    likeness = [as_number(value, 2) for value in shares] if scores.layers else [""] * 4
    return [*(as_number(value) for value in percents), *likeness]
