"""The report's table of what models know below their last layers."""

from server.evidence.features.scores import FeatureScores
from server.evidence.record import Record
from server.report.tables import Table
from server.report.words import as_number, outcome_of

_WHY_NOT = {
    "no-last-layer": "They do not apply: the network does not end in one linear layer.",
    "too-few-images": "They do not apply: there are too few test images.",
}


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
        [("Accuracy on the forget set, %", 4), ("Like Retrained, 0 to 1", 4)],
        [
            *("head back", "blank head", "class means", "probe"),
            *("CKA, forget", "CKA, retain", "neighbours, forget", "neighbours, retain"),
        ],
        [(name, _cells(scores), mark) for name, scores, mark in models if scores is not None],
    )


def why_no_features(record: Record) -> str | None:
    """Return why the measures do not apply; None where they do, or were not made."""
    found = record.features
    return None if found is None or found.why_not is None else _WHY_NOT.get(found.why_not)


def _cells(scores: FeatureScores) -> list[str]:
    percents = (scores.head_back, scores.blank_mean, scores.class_means, scores.probe)
    at = scores.at_features
    shares = (at.forget, at.retain, scores.neighbours_forget, scores.neighbours_retain)
    likeness = [as_number(value, 2) for value in shares] if scores.layers else [""] * 4
    return [*(as_number(value) for value in percents), *likeness]
