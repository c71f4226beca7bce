"""What stands in a report, cell by cell, for every kind of record."""

import copy
import re
import stat
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from client.errors import BadSetting
from server.plots import COLOURS, Curve, accuracy_over_phases, relearning_curves
from server.report import judge, render, write_report

STEPS = [5, 10, 15, 20, 25, 30]
VOID = {"meta", "br", "img", "link", "input", "hr"}


def numbers(
    forget: float, retain: float, loss: float, curve: list[float] | None = None
) -> dict[str, Any]:
    """Return one model's entry; the other nine classes lie around `retain`."""
    others = [retain + (label - 4) * 0.5 for label in range(9)]
    mean = None if curve is None else sum(curve) / len(curve)
    return {
        "forget_accuracy": forget,
        "retain_accuracy": retain,
        "loss": loss,
        "per_class_accuracy": [*others, forget],
        "heldout": {"forget_accuracy": forget + 0.25, "retain_accuracy": retain - 0.5},
        "relearning_curve": None
        if curve is None
        else {"steps": STEPS, "forget_accuracy": curve, "mean": mean},
    }


def timeline() -> list[dict[str, Any]]:
    """Return 15 evaluated rounds of training, one of unlearning, two of recovery, one again."""
    entries = []
    for number in range(2, 31, 2):
        level = 94 - 70 * 0.78**number
        entries.append({"phase": "train", "round": number, **numbers(level - 2, level, 0.4)})
    entries.append({"phase": "unlearn", "round": 1, **numbers(0.0, 62.9, 3.1)})
    entries.append({"phase": "recover", "round": 1, **numbers(0.0, 92.8, 0.5)})
    entries.append({"phase": "recover", "round": 2, **numbers(0.0, 94.5, 0.4)})
    entries.append({"phase": "relearn", "round": 1, **numbers(89.5, 94.1, 0.3)})
    return entries


def record(**changes: Any) -> dict[str, Any]:
    """Return the record of a demo: class 9 of MNIST forgotten, compared, and learned again."""
    phases = ("train", "retrain", "unlearn", "recover", "relearn")
    document: dict[str, Any] = {
        "format": 1,
        "request": "r0002",
        "kind": "demo",
        "method": "quickdrop-calibrated",
        "engine": "inline",
        "seed": 7,
        "created": "2025-11-21T10:15:00+00:00",
        "forget": {"level": "class", "classes": [9], "clients": []},
        "model_version": "v0002",
        "base_version": "v0001",
        "report": "/srv/efface/runs/r0002/report.html",
        "dataset": "mnist",
        "partition": "dirichlet:0.1",
        "model": "convnet",
        "num_clients": 10,
        "num_classes": 10,
        "settings": {
            "rounds": 30, "local-steps": 10, "batch-size": 64, "lr": 0.05, "momentum": 0.0,
            "scale": 100, "distill-every": 5, "image-lr": 0.1, "unlearn-lr": 0.02,
            "unlearn-epochs": 4, "recover-lr": 0.05, "recover-rounds": 2, "hold-down": True,
        },
        "original": numbers(92.1, 93.8, 0.211, [90, 92, 90, 89, 87, 89]),
        "retrained": numbers(0.0, 95.1, 0.187, [0, 53, 69, 73, 71, 84]),
        "unlearned": numbers(0.0, 62.9, 3.1),
        "recovered": numbers(0.4, 94.5, 0.402, [0, 36, 79, 83, 76, 82]),
        "relearned": numbers(89.5, 94.1, 0.223),
        "seconds": dict(zip(phases, (88.0, 73.0, 0.31, 0.56, 1.2), strict=True)),
        "client_seconds": dict(zip(phases, (82.0, 70.0, 0.25, 0.5, 1.1), strict=True)),
        "rounds": dict(zip(phases, (30, 30, 1, 2, 1), strict=True)),
        "samples": dict(zip(phases, (192_000, 173_000, 400, 1_840, 1_016), strict=True)),
        "bytes": {phase: {"up": 12_400_000 // (1 + n), "down": 13_000_000 // (1 + n)}
                  for n, phase in enumerate(phases)},
        "distillation": {"client_seconds_share": 0.183, "seconds": 15.0},
        "speed_up": {
            "request": 83.9,
            "amortised": {"1": 73 / 15.87, "10": 730 / 23.7, "100": 7300 / 102},
            "overhead_seconds": 15.0,
        },
        "timeline": timeline(),
        "hardware": "2 cores, AMD EPYC; torch 2.13.0",
        "commit": "abc1234",
        "command": "efface demo --dataset mnist --forget-class 9 --seed 7",
    }  # fmt: skip
    return {**document, **changes}


def train_record() -> dict[str, Any]:
    """Return the record of a training, with everything a request would add left null."""
    document = record(
        kind="train", forget=None, base_version=None, model_version="v0001", speed_up=None,
        retrained=None, unlearned=None, recovered=None, relearned=None,
    )  # fmt: skip
    for key in ("seconds", "client_seconds", "rounds", "samples", "bytes"):
        document[key] = {"train": document[key]["train"]}
    document["timeline"] = [e for e in timeline() if e["phase"] == "train"]
    document["original"].update(forget_accuracy=None, relearning_curve=None, heldout=None)
    return document


class Page(HTMLParser):
    """Read a page: its tables by caption, its tags, its words; refuse tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words = ""
        self.sections: set[str] = set()
        self.labels: set[str] = set()  # texts in the plots
        self._cell: list[str] | None = None
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._cell = []
        if tag == "section":
            self.sections.add(dict(attrs).get("id") or "verdict")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data
        if self.open and self.open[-1] == "text":
            self.labels.add(data)
        if self._cell is not None:
            self._cell.append(data)

    def rows(self, corner: str) -> dict[str, list[str]]:
        """Return the table whose first column is headed `corner`: its rows by name."""
        for table in self.tables:
            if any(row and row[0] == corner for row in table):
                return {row[0]: row[1:] for row in table if row}
        raise AssertionError(f"no table {corner!r}")

    @property
    def prose(self) -> str:
        """The words of the page, every run of white space one space."""
        return " ".join(self.words.split())


def page_of(document: dict[str, Any]) -> Page:
    return Page(render(document))


def test_the_accuracy_table_opens_with_original_and_retrained_and_shows_each_gap() -> None:
    rows = page_of(record()).rows("Model")

    assert list(rows)[-5:] == ["Original", "Retrained", "Unlearned", "Recovered", "Relearned"]
    # forget %, gap, retain %, gap, loss, relearning mean, gap; curve means by hand:
    # (90+92+90+89+87+89)/6 = 89.5, (0+53+69+73+71+84)/6 = 58.3, (0+36+79+83+76+82)/6 = 59.3
    assert rows["Original"] == ["92.1", "+92.1", "93.8", "−1.3", "0.211", "89.5", "+31.2"]
    assert rows["Retrained"] == ["0.0", "", "95.1", "", "0.187", "58.3", ""]
    assert rows["Unlearned"] == ["0.0", "0.0", "62.9", "−32.2", "3.100", "–", "–"]
    assert rows["Recovered"] == ["0.4", "+0.4", "94.5", "−0.6", "0.402", "59.3", "+1.0"]


def test_the_verdict_names_subject_versions_and_both_comparisons() -> None:
    verdict = judge(record())

    assert verdict.tone == "pass"
    assert verdict.sentence == (
        "Class 9 was forgotten going from version v0001 to v0002: its accuracy of 0.4 % matches "
        "the 0.0 % of a model retrained without it, and under relearning it comes back about as "
        "fast as in that model (59.3 against 58.3)."
    )
    assert [finding.tone for finding in verdict.findings] == ["pass", "pass", "pass", "note"]


def test_a_class_that_comes_back_at_once_is_called_hidden_although_accuracy_matches() -> None:
    hidden = numbers(0.0, 94.9, 0.3, [80, 90, 89, 88, 87, 87])
    verdict = judge(record(recovered=hidden))

    assert verdict.tone == "fail"
    assert "falls short: its accuracy of 0.0 % matches the 0.0 %" in verdict.sentence
    assert "but under relearning it comes back faster" in verdict.sentence
    assert "class 9 may be hidden rather than forgotten" in verdict.sentence


@pytest.mark.parametrize(
    ("forget", "curve", "tone"),
    [
        (2.0, [61.3] * 6, "pass"),  # 2.0 and 61.3 - 58.33 = 2.97: both just inside
        (2.1, [61.3] * 6, "fail"),
        (2.0, [61.4] * 6, "fail"),  # 61.4 - 58.33 = 3.07
        (0.0, [30.0] * 6, "pass"),  # deeper than Retrained: said, not failed
    ],
)
def test_the_limits_are_two_points_of_accuracy_and_three_of_relearning(
    forget: float, curve: list[float], tone: str
) -> None:
    assert judge(record(recovered=numbers(forget, 94.5, 0.4, curve))).tone == tone


def test_going_deeper_than_retraining_is_said() -> None:
    verdict = judge(record(recovered=numbers(0.0, 94.5, 0.4, [30.0] * 6)))

    assert "comes back more slowly than in that model (30.0 against 58.3)" in verdict.sentence
    assert "deeper than retraining would" in verdict.findings[1].text


def test_lost_accuracy_on_the_rest_is_a_finding_of_its_own() -> None:
    verdict = judge(record(recovered=numbers(0.0, 91.0, 0.4, [58.0] * 6)))

    assert (verdict.findings[2].tone, verdict.findings[2].label) == ("fail", "lower")
    assert "gap −4.1 points" in verdict.findings[2].text


def test_where_original_and_retrained_are_alike_the_verdict_is_not_conclusive() -> None:
    alike = {"level": "client", "classes": [], "clients": ["clinic-a"]}
    model = numbers(70.0, 71.0, 0.9, [70.0] * 6)
    verdict = judge(record(forget=alike, original=model, retrained=model, recovered=model))

    assert (verdict.tone, verdict.label) == ("open", "Not conclusive")
    assert [finding.label for finding in verdict.findings[:2]] == ["cannot tell", "cannot tell"]
    assert verdict.sentence.startswith("The request to forget client clinic-a was carried out")


def test_without_retrained_the_report_says_so_and_how_to_get_it() -> None:
    document = record(kind="forget", retrained=None, relearned=None, speed_up=None)
    page = page_of(document)

    assert judge(document).tone == "open"
    assert "could not be compared with a model retrained without it" in judge(document).sentence
    assert "--compare retrain" in judge(document).sentence
    assert page.rows("Model")["Retrained"] == ["not measured; add --compare retrain to measure it"]
    assert page.rows("Model")["Recovered"] == ["0.4", "94.5", "0.402", "59.3"]  # no gap columns
    assert "Speed-up was not measured" in page.prose
    assert "Without Retrained there is no yardstick" in page.prose


def test_several_classes_and_clients_are_named_in_the_plural() -> None:
    classes = {"level": "class", "classes": [3, 8, 9], "clients": []}
    clients = {"level": "client", "classes": [], "clients": ["a", "b"]}

    assert judge(record(forget=classes)).sentence.startswith(
        "Classes 3, 8 and 9 were forgotten going from version v0001 to v0002: their accuracy"
    )
    assert judge(record(forget=clients)).sentence.startswith("Clients a and b were forgotten")


def test_costs_stand_in_their_cells_with_the_request_added_up() -> None:
    rows = page_of(record()).rows("Phase")

    assert rows["train"] == ["88.0 s", "82.0 s", "30", "192,000", "12.4 MB", "13.0 MB"]
    assert rows["unlearn"] == ["0.31 s", "0.25 s", "1", "400", "4.1 MB", "4.3 MB"]
    # 0.31 + 0.56 s, 0.25 + 0.5 s, 1 + 2 rounds, 400 + 1,840 samples, 12.4/3 + 12.4/4 MB
    total = rows["request (unlearn + recover)"]
    assert total == ["0.87 s", "0.75 s", "3", "2,240", "7.2 MB", "7.6 MB"]


def test_measuring_is_one_row_with_its_own_wall_time() -> None:
    document = record()
    document["seconds_measuring"] = {"describe": 0.5, "evaluate": 1.5}
    document["bytes"] |= {"describe": {"up": 100, "down": 200}, "evaluate": {"up": 300, "down": 0}}
    rows = page_of(document).rows("Phase")

    assert rows["asking and measuring"] == ["2.00 s", "–", "–", "–", "400 B", "200 B"]
    assert rows["request (unlearn + recover)"][0] == "0.87 s"


def test_the_speed_up_comes_with_its_denominator() -> None:
    page = page_of(record())
    rows = page.rows("Against retraining")

    assert rows["one request alone"] == ["83.9×"]
    assert rows["amortised over 1 request"] == ["4.6×"]
    assert rows["amortised over 100 requests"] == ["71.6×"]
    assert "divides retraining’s 73.0 s by the request’s 0.87 s" in page.prose
    assert "the overhead in training (15.0 s)" in page.prose
    assert "18.3 % of the clients’ training time (15.0 s)" in page.prose


def test_the_class_table_marks_the_forgotten_class() -> None:
    page = page_of(record())

    assert page.rows("Class")["class 9"] == ["92.1", "0.0", "0.0", "0.4", "89.5"]
    assert page.rows("Class")["class 4"] == ["93.8", "95.1", "62.9", "94.5", "94.1"]
    assert ("tr", {"class": "forgotten"}) in page.tags


def test_of_a_hundred_classes_only_the_forgotten_and_those_that_moved_are_listed() -> None:
    document = record(num_classes=100, forget={"level": "class", "classes": [63], "clients": []})
    for key in ("original", "retrained", "unlearned", "recovered", "relearned"):
        document[key]["per_class_accuracy"] = [50.0] * 100
    document["relearned"]["per_class_accuracy"] = [50.0 - (i % 10 == 5) for i in range(100)]
    rows = page_of(document).rows("Class")

    moved = [f"class {label}" for label in range(5, 100, 10)]
    assert set(rows) == {"Class", "class 63", *moved}


def test_heldout_accuracy_stands_in_a_table_of_its_own() -> None:
    page = page_of(record())
    heldout = next(t for t in page.tables if any("Forget accuracy, %" in row for row in t))

    assert ["Recovered", "0.7", "94.0"] in heldout  # 0.4 + 0.25 to even, 94.5 - 0.5


def test_provenance_holds_what_is_needed_to_run_it_again() -> None:
    page = page_of(record(asked_by="DPO", why="consent withdrawn"))

    for text in (
        "v0001 → v0002", "r0002", "inline", "mnist, 10 classes", "dirichlet:0.1, 10 clients",
        "abc1234", "2 cores, AMD EPYC; torch 2.13.0", "consent withdrawn",
        "efface demo --dataset mnist --forget-class 9 --seed 7", "unlearn-epochs",
    ):  # fmt: skip
        assert text in page.prose
    assert "Commit not recorded" in page_of(record(commit=None)).prose


def test_a_training_has_no_section_about_forgetting() -> None:
    page = page_of(train_record())

    assert page.sections == {"verdict", "accuracy", "classes", "cost", "provenance"}
    assert "Version v0001 was trained on mnist over 10 clients" in page.prose
    assert "forgot nothing" in page.prose
    assert page.rows("Model")["Original"] == ["93.8", "0.211"]
    assert "Retrained" not in page.rows("Model")


def test_a_relearn_request_says_how_much_came_back() -> None:
    document = record(kind="relearn", base_version="v0002", model_version="v0003", retrained=None)

    assert judge(document).sentence == (
        "Class 9 was learned again on request going from version v0002 to v0003: "
        "the forget accuracy is 89.5 % again, where Original had 92.1 %."
    )
    assert "Learn again class 9" in page_of(document).prose


def test_a_client_level_request_emphasises_the_forget_set_not_a_class() -> None:
    clients = {"level": "client", "classes": [], "clients": ["clinic-a"]}
    page = page_of(record(forget=clients))

    assert ("tr", {"class": "forgotten"}) not in page.tags
    assert {"forget set", "retained data", "each class"} <= page.labels
    assert not page.labels & {"class 9", "other classes"}


def test_a_training_is_plotted_without_a_forget_set() -> None:
    labels = page_of(train_record()).labels

    assert {"each class", "all classes"} <= labels
    assert "forget set" not in labels


@pytest.mark.parametrize("key", sorted(record().keys() - {"format"}))
def test_any_one_value_may_be_null(key: str) -> None:
    page_of(record(**{key: None}))


@pytest.mark.parametrize("model", ["original", "retrained", "recovered"])
@pytest.mark.parametrize("key", sorted(numbers(0, 0, 0)))
def test_any_one_number_of_a_model_may_be_null(model: str, key: str) -> None:
    document = record()
    document[model][key] = None
    page_of(document)


def test_an_empty_record_says_not_measured_and_shows_no_empty_section() -> None:
    page = page_of({"format": 1, "forget": {"level": "class", "classes": [9]}, "kind": "forget"})

    assert page.sections == {"verdict", "relearning", "evidence", "provenance"}
    assert "the outcome was not measured" in page.prose
    assert "Not measured for this request." in page.prose


def test_numbers_that_are_not_finite_are_shown_as_such() -> None:
    document = record(unlearned=numbers(0.0, 60.0, float("inf")))
    document["recovered"]["loss"] = float("nan")
    rows = page_of(document).rows("Model")

    assert rows["Unlearned"][4] == "∞"
    assert rows["Recovered"][4] == "undefined"


def test_the_page_holds_no_image_no_script_and_fetches_nothing() -> None:
    document = record(images=[[0.1] * 64], synthetic="data:image/png;base64,AAAA")
    html = render(document)
    page = Page(html)

    assert not {tag for tag, _ in page.tags} & {
        "img",
        "image",
        "script",
        "link",
        "iframe",
        "object",
    }
    assert "data:" not in html
    # The only addresses are the two name spaces of SVG, which nothing fetches.
    assert set(re.findall(r"https?://[^\"'\s)]+", html)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"@import|url\((?!#)", html)
    policy = [a for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_a_malicious_name_stays_text_wherever_it_stands() -> None:
    bad = '<script>alert("x")</script>$\\frac'
    document = record(
        forget={"level": "client", "classes": [], "clients": [bad]},
        settings={bad: bad}, command=bad, method=bad, dataset=bad, hardware=bad, reason=bad,
        model_version=bad, request=bad,
    )  # fmt: skip
    document["timeline"][0]["phase"] = bad
    html = render(document)
    page = Page(html)

    assert "<script" not in html
    assert "script" not in {tag for tag, _ in page.tags}
    assert f"Client {bad} was forgotten" in page.prose


def test_ids_are_unique_and_every_reference_finds_its_id() -> None:
    html = render(record())
    ids = re.findall(r'\bid="([^"]+)"', html)

    assert len(ids) == len(set(ids))
    referred = re.findall(r'(?:url\(|href=")#([^")]+)', html)
    referred += re.findall(r'aria-labelledby="([^"]+)"', html)
    assert referred
    assert set(referred) <= set(ids)


def test_the_same_record_gives_the_same_bytes() -> None:
    assert render(record()) == render(copy.deepcopy(record()))


def test_a_report_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs" / "r0002" / "report.html"
    assert write_report(record(), path) == path
    assert path.read_text(encoding="utf-8") == render(record())
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("server.report.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(train_record(), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_the_record_is_linked_where_it_lies_beside_the_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert "record.json" not in write_report(record(), path).read_text(encoding="utf-8")
    (tmp_path / "record.json").write_text("{}", encoding="utf-8")
    assert '<a href="record.json">' in write_report(record(), path).read_text(encoding="utf-8")


def test_a_record_of_another_format_is_refused() -> None:
    with pytest.raises(BadSetting, match="record format must be 1, got 2"):
        render(record(format=2))


def test_plot_text_stays_text_and_colours_follow_the_page() -> None:
    svg = accuracy_over_phases(timeline(), [9], name="p")

    for word in ("train", "unlearn", "recover", "relearn", "class 9", "other classes"):
        assert f">{word}</text>" in svg
    bare = re.sub(r"var\(--plot-\w+, #[0-9a-f]{6}\)", "", svg)
    assert not re.search(r"#[0-9a-f]{6}", bare)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_a_retraining_in_the_timeline_is_not_drawn_as_a_phase() -> None:
    entries = [{"phase": "retrain", "round": 1, **numbers(0.0, 95.0, 0.2)}, *timeline()]

    assert render(record(timeline=entries)) == render(record())


def test_a_request_without_training_starts_its_plot_at_the_model_before() -> None:
    entries = [entry for entry in timeline() if entry["phase"] != "train"]

    assert ">before</text>" in render(record(timeline=entries))


def test_labels_of_curves_that_end_together_do_not_overlap() -> None:
    roles = ("original", "retrain", "result")
    curves = [Curve(role, role, STEPS, [80.0 + i / 10] * 6) for i, role in enumerate(roles)]
    svg = relearning_curves(curves, name="r")
    heights = sorted(
        float(re.search(rf'y="([\d.]+)"[^>]*>{role}</text>', svg)[1])  # type: ignore[index]
        for role in roles
    )

    assert min(b - a for a, b in pairwise(heights)) > 9.5  # the font size


def site_report(path: Path, **changes: Any) -> str:
    import torch

    from client.site_report import write_site_report

    arguments: dict[str, Any] = {
        "images": torch.linspace(-0.1, 1.1, 5 * 64).reshape(5, 1, 8, 8),
        "labels": torch.tensor([2, 0, 2, 2, 0]),
        "node": "clinic-a",
        "real_counts": {0: 120, 1: 3, 2: 250},
        "tombstones": [{"level": "class", "class": 7, "request": "r0002"}],
        "requests": [{"request": "r0002", "phase": "unlearn", "applied": "2025-11-21"}],
    }
    return write_site_report(path, **{**arguments, **changes}).read_text(encoding="utf-8")


def test_the_site_report_counts_each_class_and_shows_its_images(tmp_path: Path) -> None:
    page = Page(site_report(tmp_path / "site.html"))

    rows = page.rows("Class")
    assert rows["0"] == ["120", "2"]
    assert rows["1"] == ["3", "0"]
    assert rows["2"] == ["250", "3"]
    assert rows["total"] == ["373", "5"]
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert [picture["alt"] for picture in pictures] == [
        "2 synthetic images of class 0",
        "3 synthetic images of class 2",
    ]
    assert all(str(p["src"]).startswith("data:image/png;base64,") for p in pictures)
    assert page.rows("level")["class"] == ["7", "r0002"]
    assert page.rows("request")["r0002"] == ["unlearn", "2025-11-21"]


def test_the_pixels_in_the_site_report_are_those_of_the_images(tmp_path: Path) -> None:
    import base64
    import io

    import torch
    from PIL import Image

    images = torch.zeros(2, 3, 8, 8)
    images[0, 0] = 1.0  # red
    images[1, 2] = 2.0  # blue, beyond the range: clipped
    html = site_report(tmp_path / "site.html", images=images, labels=torch.tensor([4, 4]))
    data = re.search(r"base64,([^\"]+)", html)
    assert data is not None
    picture = Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("RGB")

    # Two images of 8 by 8 side by side, one pixel of margin around each.
    assert picture.size == (1 + 8 + 1 + 8 + 1, 10)
    assert picture.getpixel((4, 4)) == (255, 0, 0)
    assert picture.getpixel((13, 4)) == (0, 0, 255)


def test_the_site_report_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "site.html"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o644)
    site_report(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["site.html"]


def test_the_site_report_escapes_names_and_loads_nothing(tmp_path: Path) -> None:
    html = site_report(
        tmp_path / "site.html", node="<script>x</script>", class_names=["<b>", "b", "c"]
    )

    assert "<script" not in html
    assert "&lt;b&gt;" in html
    assert not re.search(r"https?:", html)


def test_an_empty_store_gives_a_site_report_that_says_so(tmp_path: Path) -> None:
    import torch

    empty = {"images": torch.zeros(0, 1, 8, 8), "labels": torch.zeros(0, dtype=torch.int64)}
    html = site_report(tmp_path / "site.html", **empty, tombstones=[], requests=[], real_counts={})

    assert "<img" not in html
    assert html.count("None.") == 2
    assert "holds no synthetic images" in html


def test_a_long_contact_sheet_says_how_many_it_leaves_out(tmp_path: Path) -> None:
    import torch

    many = {"images": torch.rand(30, 1, 8, 8), "labels": torch.zeros(30, dtype=torch.int64)}
    html = site_report(tmp_path / "site.html", **many, max_per_class=20)

    assert "The first 20 of 30" in " ".join(html.split())


def test_images_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    import torch

    with pytest.raises(BadSetting, match=r"images must be \(N, 1 or 3, H, W\), got \(2, 4, 8, 8\)"):
        site_report(tmp_path / "s.html", images=torch.zeros(2, 4, 8, 8), labels=torch.zeros(2))
    with pytest.raises(BadSetting, match="labels must be one an image"):
        site_report(tmp_path / "s.html", labels=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(BadSetting, match="images must be finite"):
        site_report(tmp_path / "s.html", images=torch.full((5, 1, 8, 8), float("nan")))
    assert list(tmp_path.iterdir()) == []
