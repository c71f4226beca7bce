"""The report's table of what lies below the last layer."""

from dataclasses import replace

from server.evidence.features.scores import FeatureMeasures, FeatureScores, Layer
from server.evidence.record import Record, Target, from_json, to_json
from server.evidence.scores import Curve, Heldout, ModelScores, SiteScores
from server.evidence.verdict import Code, Finding, Verdict
from server.report.features import feature_table, named_sentence
from server.report.tables import site_table
from server.report.verdict import worded
from server.report.write import render

ORIGINAL = FeatureScores(
    90.0, Curve((5,), (75.3,), 75.3), 93.2, 92.0, (Layer("features", 0.5, 0.8),), 0.25, 0.4
)
RETRAINED = FeatureScores(0.0, Curve((5,), (65.0,), 65.0), 91.0, 90.0)
RESULT = FeatureScores(
    46.2, Curve((5,), (67.8,), 67.8), 92.2, 91.0, (Layer("features", 0.6, 0.9),), 0.3, None
)

BELOW_LAST_LAYER: tuple[Code, ...] = (
    *("head-back", "blank-head", "class-means", "probe", "matched-head", "turned-head"),
)


def record(features: FeatureMeasures | None) -> Record:
    scores = ModelScores(0.0, 96.0, 0.1)
    return Record(kind="forget", forget=Target("class", (9,)), recovered=scores, features=features)


def test_original_and_retrained_come_first_and_what_is_not_compared_stays_empty() -> None:
    table = feature_table(record(FeatureMeasures(ORIGINAL, RETRAINED, RESULT)))
    assert table is not None
    assert [(name, list(cells)) for name, cells, _ in table.rows] == [
        ("Original", ["90.0", "75.3", "93.2", "92.0", "–", "–", "0.50", "0.80", "0.25", "0.40"]),
        ("Retrained", ["0.0", "65.0", "91.0", "90.0", "–", "–", "", "", "", ""]),
        ("Recovered", ["46.2", "67.8", "92.2", "91.0", "–", "–", "0.60", "0.90", "0.30", "–"]),
    ]


def test_a_measure_has_one_name_in_the_verdict_and_in_the_table() -> None:
    findings = tuple(
        Finding(code, "held", value=0.0, low=0.0, limit=5.0, original=90.0, retrained=0.0, spread=1)
        for code in BELOW_LAST_LAYER
    )
    told = record(FeatureMeasures(ORIGINAL, RETRAINED, RESULT))
    table = feature_table(told)
    lines = worded(replace(told, verdict=Verdict("passed", findings))).findings
    assert table is not None
    assert [line.title.lower() for line in lines[:6]] == list(table.headings[:6])
    assert "last layer put back" in table.headings


def test_the_page_shows_it_says_why_not_or_leaves_it_out() -> None:
    shown = render(record(FeatureMeasures(ORIGINAL, RETRAINED, RESULT)))
    assert "Below the last layer" in shown
    assert "46.2" in shown
    assert "one linear layer" in render(record(FeatureMeasures(why_not="no-last-layer")))
    assert 'id="features"' not in render(record(None))


def test_whether_both_models_tell_which_class_went() -> None:
    right, wrong = replace(RESULT, named=(9,)), replace(RETRAINED, named=(4,))
    shown = render(record(FeatureMeasures(ORIGINAL, wrong, right, examples=21)))
    assert "no example of it, can name it by how both answer the others; with a " in shown
    assert "in place of the result, cannot name it." in shown
    assert "On 21 test examples of what was forgotten" in shown
    two = replace(record(None), forget=Target("class", (4, 9)))
    found = FeatureMeasures(ORIGINAL, replace(RETRAINED, named=(4, 9)), right, examples=21)
    said = named_sentence(replace(two, features=found))
    assert said is not None
    assert "can name 1 of 2 by how" in said
    assert said.endswith("in place of the result, can name 2 of 2.")
    assert named_sentence(record(FeatureMeasures(ORIGINAL, RETRAINED, RESULT))) is None


def test_what_it_cost_the_others_is_in_the_verdict_s_sentence() -> None:
    findings = (
        Finding("forget-accuracy", "held", 0.0, 13.1, 0.0, 90.0, low=0.0, spread=1.0),
        Finding("retain-accuracy", "held", 70.0, 69.0, 71.0, 95.0),
        Finding("class-damaged", "remark", 21.2, 72.7, 82.7, 97.1, label=3),
    )
    told = record(FeatureMeasures(ORIGINAL, RETRAINED, RESULT))
    said = worded(replace(told, verdict=Verdict("passed", findings, retrainings=3)))
    assert "nothing that was measured of it lies beyond 3 models" in said.sentence
    assert "but class 3, which was to stay, has 21.2 %, 61.5 points below" in said.sentence
    labels = {line.title: line.label for line in said.findings}
    # As low as a retrained model's, and far below what it was.
    assert (labels["Retain accuracy"], labels["Another class"]) == ("as retrained", "damaged")


def test_it_goes_through_a_record_s_json() -> None:
    one = record(FeatureMeasures(ORIGINAL, RETRAINED, RESULT))
    assert from_json(to_json(one)) == one


def test_a_site_s_accuracies_stand_before_and_after_so_that_nobody_pays_alone() -> None:
    def scores(first: float, second: float) -> ModelScores:
        sites = (SiteScores("a", 1.0, first, 5, 50), SiteScores("b", 2.0, second, 6, 60))
        return ModelScores(1.0, 60.0, 0.1, heldout=Heldout(1.5, 70.0, 1.5, 70.0, None, sites))

    found = site_table(
        Record(
            kind="forget",
            forget=Target("class", (9,)),
            original=scores(80.0, 81.0),
            retrained=scores(82.0, 83.0),
            recovered=scores(79.0, 40.0),
        )
    )
    assert found is not None
    assert list(found.headings) == ["Original", "Retrained", "result", "examples"] * 2
    cells = {name: list(cells) for name, cells, _ in found.rows}
    assert cells["a"] == ["1.0", "1.0", "1.0", "5", "80.0", "82.0", "79.0", "50"]
    assert cells["b"] == ["2.0", "2.0", "2.0", "6", "81.0", "83.0", "40.0", "60"]
    assert cells["all together"][4:] == ["70.0", "70.0", "70.0", ""]


def test_what_was_learned_again_is_no_site_s_result_of_forgetting() -> None:
    def scores(forget: float) -> ModelScores:
        sites = (SiteScores("a", forget, 90.0, 5, 50),)
        heldout = Heldout(forget, 90.0, forget, 90.0, None, sites)
        return ModelScores(forget, 90.0, 0.1, heldout=heldout)

    forgotten = Record(
        kind="forget",
        forget=Target("class", (9,)),
        original=scores(80.0),
        recovered=scores(1.0),
        relearned=scores(77.0),
    )
    found = site_table(forgotten)
    assert found is not None
    assert list(found.headings) == ["Original", "result", "relearned", "examples"] * 2
    cells = {name: list(cells) for name, cells, _ in found.rows}
    assert cells["a"][:4] == ["80.0", "1.0", "77.0", "5"]
    # Of a request to relearn it is the result.
    found = site_table(replace(forgotten, kind="relearn", recovered=None))
    assert found is not None
    assert list(found.headings) == ["Original", "result", "examples"] * 2
    assert list(found.rows[0][1][:3]) == ["80.0", "77.0", "5"]
