"""The report's table of what lies below the last layer."""

from server.evidence.features.scores import FeatureMeasures, FeatureScores, Layer
from server.evidence.record import Record, Target, from_json, to_json
from server.evidence.scores import Curve, ModelScores
from server.report.features import feature_table
from server.report.write import render

ORIGINAL = FeatureScores(
    90.0, Curve((5,), (75.3,), 75.3), 93.2, 92.0, (Layer("features", 0.5, 0.8),), 0.25, 0.4
)
RETRAINED = FeatureScores(0.0, Curve((5,), (65.0,), 65.0), 91.0, 90.0)
RESULT = FeatureScores(
    46.2, Curve((5,), (67.8,), 67.8), 92.2, 91.0, (Layer("features", 0.6, 0.9),), 0.3, None
)


def record(features: FeatureMeasures | None) -> Record:
    scores = ModelScores(0.0, 96.0, 0.1)
    return Record(kind="forget", forget=Target("class", (9,)), recovered=scores, features=features)


def test_original_and_retrained_come_first_and_what_is_not_compared_stays_empty() -> None:
    table = feature_table(record(FeatureMeasures(ORIGINAL, RETRAINED, RESULT)))
    assert table is not None
    assert [(name, list(cells)) for name, cells, _ in table.rows] == [
        ("Original", ["90.0", "75.3", "93.2", "92.0", "0.50", "0.80", "0.25", "0.40"]),
        ("Retrained", ["0.0", "65.0", "91.0", "90.0", "", "", "", ""]),
        ("Recovered", ["46.2", "67.8", "92.2", "91.0", "0.60", "0.90", "0.30", "–"]),
    ]


def test_the_page_shows_it_says_why_not_or_leaves_it_out() -> None:
    shown = render(record(FeatureMeasures(ORIGINAL, RETRAINED, RESULT)))
    assert "Below the last layer" in shown
    assert "46.2" in shown
    assert "one linear layer" in render(record(FeatureMeasures(why_not="no-last-layer")))
    assert 'id="features"' not in render(record(None))


def test_it_goes_through_a_record_s_json() -> None:
    one = record(FeatureMeasures(ORIGINAL, RETRAINED, RESULT))
    assert from_json(to_json(one)) == one
