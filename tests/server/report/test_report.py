"""What stands in a report, cell by cell, for every kind of record."""

import copy
import random
import re
import stat
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from client.errors import BadSetting
from server.evidence.record import Record, from_json
from server.evidence.verdict import Limits, decide
from server.report.heatmap import channel_heatmap
from server.report.plots import (
    COLOURS,
    Curve,
    accuracy_over_phases,
    relearning_curves,
)
from server.report.tables import settings_rows
from server.report.verdict import Worded, worded
from server.report.write import render, write_report

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


def channel_record(
    sizes: dict[str, int] | None = None, *, num_classes: int = 10, **changes: Any
) -> dict[str, Any]:
    """Return the record of a pruning: the first tenth of each layer's channels, at least one."""
    draws = random.Random(7)
    sizes = {"body.0": 16, "body.4": 32} if sizes is None else sizes
    channels = {
        "title": "TF-IDF of each channel for each class",
        "action": "pruned",
        "chosen": {name: list(range(max(1, size // 10))) for name, size in sizes.items()},
        "scores": {
            name: {
                "columns": [str(label) for label in range(num_classes)],
                "values": [[draws.random() for _ in range(num_classes)] for _ in range(size)],
            }
            for name, size in sizes.items()
        },
    }
    phases = ("train", "retrain", "score", "unlearn", "recover", "relearn")
    rounds = dict(zip(phases, (30, 30, 1, 4, 2, 1), strict=True))
    up = dict(zip(phases, (303_000_000, 302_000_000, 8_000, 1_240_000, 20_200_000, 0), strict=True))
    document = record(
        method="class-pruning",
        channels=channels,
        model_bytes=1_000_000,
        rounds=rounds,
        seconds=dict(zip(phases, (88.0, 73.0, 1.5, 0.31, 0.56, 1.2), strict=True)),
        bytes={phase: {"up": up[phase], "down": 1_000} for phase in phases},
    )
    return {**document, **changes}


def effects_record(**changes: Any) -> dict[str, Any]:
    """Return the record of a method that trains influential channels."""
    values = [[-1.0, 0.1], [8.0, 0.0], [4.0, 0.5], [0.0, 0.25]]
    channels = {
        "title": "Effect of zeroing each channel on the class's examples",
        "action": "trained",
        "chosen": {"body.0": [1]},
        "scores": {
            "body.0": {"columns": ["accuracy lost, points", "loss gained"], "values": values}
        },
    }
    return channel_record(method="influential-channels-de", channels={**channels, **changes})


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


def typed(document: dict[str, Any]) -> Record:
    """Return a document's record, with the verdict that a request makes of its numbers."""
    record = from_json(document)
    if record.kind not in ("forget", "demo") or record.forget is None or record.recovered is None:
        return record
    told = record.settings
    verdict = decide(
        str(record.forget.level),
        record.recovered,
        original=record.original,
        retrained=record.retrained,
        limits=Limits(told.get("max-forget-accuracy", 5.0), told.get("max-relearning-gap", 15.0)),
        erased_before=record.erased_before,
    )
    return replace(record, verdict=verdict)


def shown(document: dict[str, Any]) -> Worded:
    return worded(typed(document))


def page_of(document: dict[str, Any]) -> Page:
    return Page(render(typed(document)))


def test_the_accuracy_table_opens_with_original_and_retrained_and_shows_each_gap() -> None:
    rows = page_of(record()).rows("Model")

    assert list(rows)[-5:] == ["Original", "Retrained", "Unlearned", "Recovered", "Relearned"]
    # forget %, gap, retain %, gap, loss, relearning mean, gap; curve means by hand:
    # (90+92+90+89+87+89)/6 = 89.5, (0+53+69+73+71+84)/6 = 58.3, (0+36+79+83+76+82)/6 = 59.3
    assert rows["Original"] == ["92.1", "+92.1", "93.8", "−1.3", "0.211", "89.5", "+31.2"]
    assert rows["Retrained"] == ["0.0", "", "95.1", "", "0.187", "58.3", ""]
    assert rows["Unlearned"] == ["0.0", "0.0", "62.9", "−32.2", "3.100", "–", "–"]
    assert rows["Recovered"] == ["0.4", "+0.4", "94.5", "−0.6", "0.402", "59.3", "+1.0"]


def test_what_is_said_of_membership_is_whether_it_was_measured() -> None:
    neither = "This page tests neither membership inference"
    assert neither in page_of(record()).prose
    told = {"forget": {"level": "client", "classes": [], "clients": ["client-1"]}}
    for name in ("original", "recovered", "retrained"):
        told[name] = {**record()[name], "membership": 5.0}
    page = page_of(record(**told))
    assert neither not in page.prose
    assert "a difference of means, read beside retrained models" in page.prose
    assert "No attack on single examples was run" in page.prose
    assert "attacker" not in page.prose


def test_what_comes_back_at_the_client_is_shown_where_it_was_measured() -> None:
    told: dict[str, Any] = {"forget": {"level": "client", "classes": [], "clients": ["client-1"]}}
    for name, again in (("original", 9.0), ("recovered", 4.0), ("retrained", 3.5)):
        told[name] = {
            **record()[name],
            "membership": 5.0,
            "client_relearning": again,
            "relearning_curve": None,
        }
    page = page_of(record(**told))
    assert "Client relearning is the same of each half" in page.prose
    assert "there is no class to learn again" in page.prose
    assert "here it was not" not in page.prose
    rows = page.rows("Model")
    assert rows["Recovered"][-2:] == ["4.0", "+0.5"]
    for name in ("original", "recovered", "retrained"):
        told[name]["client_relearning"] = None
    page = page_of(record(**told))
    assert "Client relearning" not in page.prose
    assert "here it was not" in page.prose


def test_the_sentence_names_subject_versions_and_both_comparisons() -> None:
    found = shown(record())

    assert (found.tone, found.label) == ("pass", "Verdict: passed")
    assert found.sentence == (
        "Class 9 was forgotten, going from version v0001 to v0002: its accuracy of 0.4 % is within "
        "the limit of 5.0 % (a model retrained from scratch without it has 0.0 %); under "
        "relearning it comes back about as fast as in that model (59.3 against 58.3)."
    )
    assert [finding.tone for finding in found.findings] == ["pass", "pass", "pass", "note"]


def test_a_class_that_comes_back_at_once_is_called_hidden_although_accuracy_matches() -> None:
    found = shown(record(recovered=numbers(0.0, 94.9, 0.3, [80, 90, 89, 88, 87, 87])))

    assert (found.tone, found.label) == ("fail", "Verdict: failed")
    assert "falls short: its accuracy of 0.0 % is within the limit" in found.sentence
    assert "under relearning it comes back faster" in found.sentence
    assert "class 9 may be hidden rather than forgotten" in found.sentence


def test_a_class_erased_earlier_that_is_back_stands_in_the_sentence() -> None:
    scores = [95.0, 95.0, 30.0, 95.0, 95.0, 95.0, 95.0, 95.0, 95.0, 0.4]
    back = {**record()["recovered"], "per_class_accuracy": scores}
    found = shown(record(recovered=back, erased_before=[2]))
    assert found.tone == "fail"
    assert any(f.label == "back again" and "Class 2 30.0 %" in f.text for f in found.findings)
    assert "class 2, erased earlier, is back at 30.0 %" in found.sentence


def test_going_deeper_than_retraining_is_said() -> None:
    found = shown(record(recovered=numbers(0.0, 94.5, 0.4, [30.0] * 6)))

    assert "comes back more slowly than in that model (30.0 against 58.3)" in found.sentence
    assert "deeper than retraining would" in found.findings[1].text


def test_lost_accuracy_on_the_rest_is_a_finding_that_does_not_decide() -> None:
    found = shown(record(recovered=numbers(0.0, 91.0, 0.4, [58.0] * 6)))

    assert (found.tone, found.findings[2].label) == ("pass", "lower")
    assert "Result 91.0 %" in found.findings[2].text
    assert "expected at least 93.1 %; it does not decide" in found.findings[2].text  # 95.1 - 2


def test_where_original_knows_no_better_the_page_says_that_nothing_is_shown() -> None:
    alike = {"level": "client", "classes": [], "clients": ["clinic-a"]}
    model = numbers(70.0, 71.0, 0.9)
    found = shown(record(forget=alike, original=model, retrained=model, recovered=model))

    assert (found.tone, found.label) == ("open", "Verdict: not shown")
    assert found.findings[0].label == "cannot tell"
    assert found.sentence.startswith("The request to forget client clinic-a was carried out")
    assert "Original knows this client's data no better than Retrained" in found.sentence
    assert "Relearning" not in [finding.title for finding in found.findings]


def test_without_retrained_the_report_says_so_and_how_to_get_it() -> None:
    document = record(kind="forget", retrained=None, relearned=None, speed_up=None)
    page = page_of(document)

    assert shown(document).tone == "open"
    assert "whether it is forgotten is not shown" in shown(document).sentence
    assert "--compare retrain" in shown(document).sentence
    assert page.rows("Model")["Retrained"] == ["not measured; add --compare retrain to measure it"]
    assert page.rows("Model")["Recovered"] == ["0.4", "94.5", "0.402", "59.3"]  # no differences
    assert "Speed-up was not measured" in page.prose
    assert "Without Retrained there is no yardstick" in page.prose


def test_the_first_screen_says_who_asked_when_it_was_done_and_what_serves() -> None:
    told = record(
        kind="forget",
        asked_by="DPO",
        why="consent withdrawn",
        started="2025-11-21T10:16:00+00:00",
        finished="2025-11-21T10:18:30+00:00",
        in_service=True,
    )
    first = page_of(told).prose.split("Accuracy Test data")[0]
    for words in (
        "Asked by DPO",
        "Why consent withdrawn",
        "Finished 2025-11-21 10:18:30 UTC",
        "In service yes, as version v0002",
        "Verdict: passed",
    ):
        assert words in first
    refused = {**told, "in_service": False, "refused": True, "model_version": None}
    assert "In service no: version v0001 stays in service" in page_of(refused).prose
    trial = {**told, "in_service": False}
    assert "In service no: version v0002 is kept as a trial" in page_of(trial).prose


def test_the_page_speaks_the_words_of_the_field() -> None:
    prose = page_of(record()).prose
    for word in ("retrained from scratch", "forget set", "retain set"):
        assert word in prose
    assert not re.search(r"within reach|\bgaps?\b|\bnats\b", prose)


def test_plots_can_be_read_on_a_phone() -> None:
    html = render(typed(record()))
    narrow = html.split("@media (max-width: 46rem) {")[1].split("@media")[0]
    found = re.search(r"figure svg {[^}]*\bwidth: (\d+)rem", narrow)
    width = float(found[1]) * 16 if found else 375.0 - 32.0  # pixels: a phone's, less its margins
    assert "figure { overflow-x: auto; }" in narrow  # a wider plot is moved, not the page
    plots = re.findall(r'<figure[^>]*>.*?viewBox="0 0 ([\d.]+) .*?</figure>', html, re.DOTALL)
    texts = re.findall(r"<figure[^>]*>(.*?)</figure>", html, re.DOTALL)
    assert len(plots) == len(texts) > 0
    for units, text in zip(plots, texts, strict=True):
        smallest = min(map(float, re.findall(r"font-size: ([\d.]+)px", text)))
        assert smallest * width / float(units) >= 9.0


def test_several_classes_and_clients_are_named_in_the_plural() -> None:
    classes = {"level": "class", "classes": [3, 8, 9], "clients": []}
    clients = {"level": "client", "classes": [], "clients": ["a", "b"]}

    assert shown(record(forget=classes)).sentence.startswith(
        "Classes 3, 8 and 9 were forgotten, going from version v0001 to v0002: their accuracy"
    )
    assert shown(record(forget=clients)).sentence.startswith(
        "Clients a and b were forgotten, going"
    )


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


def test_where_training_paid_nothing_beforehand_nothing_is_said_of_it() -> None:
    speed = {"request": 0.5, "amortised": {"1": 0.5, "10": 0.5}, "overhead_seconds": 0.0}
    free = {"client_seconds_share": 0.0, "seconds": 0.0}
    page = page_of(record(speed_up=speed, distillation=free))

    rows = page.rows("Against retraining")
    assert list(rows) == ["Against retraining", "one request alone"]
    assert rows["one request alone"] == ["0.5×"]
    assert "Below 1× the request took longer than retraining." in page.prose
    assert "overhead" not in page.prose
    assert "istillation" not in page.prose
    assert "Below 1×" not in page_of(record()).prose


def test_an_own_task_shows_no_settings_of_the_built_in_networks() -> None:
    own = {"task": "chest:ChestXray", "scale": 0, "lr": 0.1, "model": "convnet"}
    own |= {"model-width": 32, "image-lr": 0.1, "distill-every": 5}
    document = train_record() | {"settings": own, "dataset": ""}
    page = page_of(document)

    assert "was trained on the data of task chest:ChestXray over 10 clients" in page.prose
    shown = settings_rows(typed(document))
    assert [name for name, _ in shown] == ["lr", "scale", "task"]
    built_in = settings_rows(typed(document | {"settings": own | {"task": "", "scale": 1}}))
    assert [name for name, _ in built_in] == sorted(own)


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


def test_a_method_that_was_chosen_is_shown_with_the_reason() -> None:
    why = {"method": "quickdrop", "why": "the shortest by estimate", "refused": {}, "seconds": {}}
    assert "Chosen by Efface the shortest by estimate" in page_of(record(chosen=why)).prose
    assert "Chosen by Efface" not in page_of(record(chosen=None)).prose


def test_provenance_holds_what_is_needed_to_run_it_again() -> None:
    page = page_of(record(asked_by="DPO", why="consent withdrawn"))

    for text in (
        "v0001 → v0002", "r0002", "inline", "mnist, 10 classes", "dirichlet:0.1, 10 clients",
        "abc1234", "2 cores, AMD EPYC; torch 2.13.0", "consent withdrawn",
        "efface demo --dataset mnist --forget-class 9 --seed 7", "unlearn-epochs",
    ):  # fmt: skip
        assert text in page.prose
    assert "Commit not recorded" in page_of(record(commit=None)).prose


def test_updates_that_a_request_found_are_called_so() -> None:
    stored = {"storage": {"updates": 2_200_000}}
    assert "Stored updates before the request 2.2 MB" in page_of(record(**stored)).prose
    assert "Stored updates 2.2 MB" in page_of({**train_record(), **stored}).prose
    assert "Stored updates" not in page_of(record(storage={"updates": 0})).prose


def test_a_training_has_no_section_about_forgetting() -> None:
    page = page_of(train_record())

    assert page.sections == {"verdict", "accuracy", "classes", "cost", "provenance"}
    assert "Version v0001 was trained on mnist over 10 clients" in page.prose
    assert "forgot nothing" in page.prose
    assert page.rows("Model")["Original"] == ["93.8", "0.211"]
    assert "Retrained" not in page.rows("Model")


def test_a_relearn_request_says_how_much_came_back() -> None:
    document = record(kind="relearn", base_version="v0002", model_version="v0003", retrained=None)

    assert shown(document).sentence == (
        "Class 9 was learned again on request, going from version v0002 to v0003: "
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
    document["retrained"]["loss"] = 190_450_752_307.0  # finite, and as little to be read
    rows = page_of(document).rows("Model")

    assert rows["Retrained"][4] == "1.9 × 10¹¹"

    assert rows["Unlearned"][4] == "∞"
    assert rows["Recovered"][4] == "undefined"


def test_the_page_holds_no_image_no_script_and_fetches_nothing() -> None:
    document = record(images=[[0.1] * 64], synthetic="data:image/png;base64,AAAA")
    html = render(typed(document))
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
    html = render(typed(document))
    page = Page(html)

    assert "<script" not in html
    assert "script" not in {tag for tag, _ in page.tags}
    assert f"Client {bad} was forgotten" in page.prose


def test_ids_are_unique_and_every_reference_finds_its_id() -> None:
    html = render(typed(record()))
    ids = re.findall(r'\bid="([^"]+)"', html)

    assert len(ids) == len(set(ids))
    referred = re.findall(r'(?:url\(|href=")#([^")]+)', html)
    referred += re.findall(r'aria-labelledby="([^"]+)"', html)
    assert referred
    assert set(referred) <= set(ids)


def test_the_same_record_gives_the_same_bytes() -> None:
    assert render(typed(record())) == render(typed(copy.deepcopy(record())))


def test_a_report_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs" / "r0002" / "report.html"
    assert write_report(typed(record()), path) == path
    assert path.read_text(encoding="utf-8") == render(typed(record()))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(typed(train_record()), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_the_record_is_linked_where_it_lies_beside_the_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert "record.json" not in write_report(typed(record()), path).read_text(encoding="utf-8")
    (tmp_path / "record.json").write_text("{}", encoding="utf-8")
    assert '<a href="record.json">' in write_report(typed(record()), path).read_text(
        encoding="utf-8"
    )


def test_plot_text_stays_text_and_colours_follow_the_page() -> None:
    svg = accuracy_over_phases(timeline(), [9], name="p")

    for word in ("train", "unlearn", "recover", "relearn", "class 9", "other classes"):
        assert f">{word}</text>" in svg
    bare = re.sub(r"var\(--plot-\w+, #[0-9a-f]{6}\)", "", svg)
    assert not re.search(r"#[0-9a-f]{6}", bare)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_a_retraining_in_the_timeline_is_not_drawn_as_a_phase() -> None:
    entries = [{"phase": "retrain", "round": 1, **numbers(0.0, 95.0, 0.2)}, *timeline()]

    assert render(typed(record(timeline=entries))) == render(typed(record()))


def test_a_request_without_training_starts_its_plot_at_the_model_before() -> None:
    entries = [entry for entry in timeline() if entry["phase"] != "train"]

    assert ">before</text>" in render(typed(record(timeline=entries)))


def test_labels_of_curves_that_end_together_do_not_overlap() -> None:
    roles = ("original", "retrain", "result")
    curves = [Curve(role, role, STEPS, [80.0 + i / 10] * 6) for i, role in enumerate(roles)]
    svg = relearning_curves(curves, name="r")
    heights = sorted(
        float(re.search(rf'y="([\d.]+)"[^>]*>{role}</text>', svg)[1])  # type: ignore[index]
        for role in roles
    )

    assert min(b - a for a, b in pairwise(heights)) > 9.5  # the font size


def heatmap(
    scores: list[list[float | None] | None], columns: list[str], chosen: list[int], **changes: Any
) -> str:
    words = {"layer": "body.0", "action": "pruned", "forgotten": {"1"}, "name": "c"}
    return channel_heatmap(scores, columns, chosen, **{**words, **changes})


def cells(svg: str) -> dict[str, str]:
    """Return the path of each tone by its opacity; of what was not measured by "none"."""
    found = re.findall(r'<path (?:stroke-opacity="([\d.]+)"|stroke-width=".12") d="([^"]*)"', svg)
    return {opacity or "none": path for opacity, path in found}


def test_other_methods_have_no_section_about_channels() -> None:
    for channels in (None, {}, {"title": "t", "action": "pruned", "chosen": {}, "scores": {}}):
        assert "channels" not in page_of(record(channels=channels)).sections
    assert "channels" not in page_of(record()).sections


def test_the_channels_chosen_are_counted_and_named_by_layer() -> None:
    document = channel_record()
    document["channels"]["chosen"] = {"body.0": [7, 3], "body.4": list(range(4, 14))}
    page = page_of(document)
    rows = page.rows("Layer")

    assert "channels" in page.sections
    assert rows["body.0"] == ["16", "2", "12.5 %", "3, 7"]  # 2 / 16
    assert rows["body.4"][:3] == ["32", "10", "31.2 %"]  # 10 / 32 = 31.25, to even
    shortened, everything = (
        "4, 5, 6, 7, 8, 9, 10, 11, … (all 10)",
        ", ".join(map(str, range(4, 14))),
    )
    assert rows["body.4"][3] == shortened + everything
    assert rows["all layers"] == ["48", "12", "25.0 %", ""]
    assert "12 of 48 channels (25.0 %) were pruned, in 2 of 2 layers." in page.prose
    assert "TF-IDF of each channel for each class" in page.prose


def test_a_layer_without_a_choice_and_one_without_scores_are_both_listed() -> None:
    document = channel_record()
    document["channels"]["chosen"] = {"body.8": [0]}
    page = page_of(document)
    rows = page.rows("Layer")

    assert rows["body.0"] == ["16", "0", "0.0 %", "none"]
    assert rows["body.8"] == ["–", "1", "–", "0"]
    assert rows["all layers"] == ["–", "1", "–", ""]  # of how many is not known
    assert "1 channel was pruned, in 1 of 3 layers." in page.prose


def test_each_cell_has_the_tone_of_its_score_on_one_scale_for_all_classes() -> None:
    # Class 0 down the channels: 0, 8, 2; class 1: 4, not measured, 8. Eighths of the highest, 8.
    svg = heatmap([[0.0, 4.0], [8.0, None], [2.0, 8.0]], ["0", "1"], [])

    assert cells(svg) == {
        "none": "M1 1.5h1",
        "0.25": "M2 0.5h1",
        "0.5": "M0 1.5h1",
        "1": "M1 0.5h1M2 1.5h1",
    }
    assert ">8</text>" in svg
    assert 'class="chosen"' not in svg


def test_neighbours_of_one_tone_are_one_stroke() -> None:
    svg = heatmap([[8.0], [8.0], [0.0], [7.5], [-3.0]], ["1"], [])

    assert cells(svg) == {"1": "M0 0.5h2m1 0h1"}  # 7.5 belongs to the step from 7 to 8


def test_effects_of_different_units_have_scales_of_their_own() -> None:
    page = page_of(effects_record())
    html = render(typed(effects_record()))

    assert {"accuracy lost, points", "loss gained", "0 to 8", "0 to 0.5"} <= page.labels
    # Accuracy -1, 8, 4, 0: blank, full, half, blank. Loss .1 of .5: the second eighth.
    assert cells(html) == {"0.25": "M0 1.5h1", "0.5": "M2 0.5h1M3 1.5h1", "1": "M1 0.5h1M2 1.5h1"}
    assert '<rect class="forgotten"' not in html
    assert "1 of 4 channels (25.0 %) was trained" in page.prose
    assert "in each row on a scale of its own" in page.prose


def test_the_forgotten_class_is_framed_and_the_chosen_channels_are_marked() -> None:
    html = render(typed(channel_record({"body.0": 20}))).split('<section id="channels">')[1]

    # Rows are 11 high and begin at 32, so class 9's begins at 32 + 9 * 11.
    frames = re.findall(r'<rect class="forgotten" x="[\d.]+" y="([\d.]+)"', html)
    assert frames == ["131"]
    labels = re.findall(r"<text [^>]*plot-forget[^>]*>(class \d|pruned)</text>", html)
    assert labels == ["pruned", "class 9"]
    assert re.findall(r'class="chosen" d="([^"]+)"', html) == ["M0.075 0h0.85M1.075 0h0.85"]


def test_of_512_channels_two_share_a_cell_and_a_mark_stays_wide_enough_to_be_seen() -> None:
    svg = heatmap([[8.0 * (channel == 3)] for channel in range(512)], ["1"], [3])

    assert "512 channels, 1 pruned; a cell shows the highest of 2 neighbours" in svg
    assert cells(svg) == {"1": "M1 0.5h1"}  # channels 2 and 3
    across = re.search(r"scale\(([\d.]+) 1\)", svg)
    mark = re.search(r'class="chosen" d="M[\d.]+ 0h([\d.]+)"', svg)
    assert across
    assert mark
    assert float(across[1]) * float(mark[1]) == pytest.approx(1.4, abs=0.01)


def test_sixteen_layers_of_512_channels_and_ten_classes_take_less_than_300_kb() -> None:
    sizes = {f"body.{number}": 512 for number in range(16)}
    before = len(render(typed(record())))

    assert (
        len(render(typed(channel_record(sizes)))) - before < 300_000
    )  # 81,920 scores, all different


def test_of_many_layers_the_ones_with_most_chosen_are_open() -> None:
    sizes = {f"layer{number}": 8 for number in range(55)}
    document = channel_record(sizes)
    document["channels"]["chosen"] = {f"layer{number}": [0] for number in range(49, 55)}
    html = render(typed(document))
    opened, folded = html.split("The other 49 layers</summary>")

    assert re.findall(r">(layer\d+)</tspan>", opened) == [f"layer{n}" for n in range(49, 55)]
    assert len(re.findall(r">layer\d+</tspan>", folded)) == 49
    assert len(Page(html).rows("Layer")) == 1 + 55 + 1


def test_of_a_hundred_classes_the_heat_map_shows_the_forgotten_and_the_ten_nearest() -> None:
    document = channel_record({"body.0": 4}, num_classes=100)
    # On channel 0, the one chosen, every tenth class scores high.
    document["channels"]["scores"]["body.0"]["values"] = [
        [float(channel == 0 and label % 10 == 5) for label in range(100)] for channel in range(4)
    ]
    page = page_of(document)

    shown = {text for text in page.labels if re.fullmatch(r"class \d\d?", text)}
    # The plot over the phases names class 9, too.
    assert shown == {"class 9", *(f"class {label}" for label in range(5, 100, 10))}
    assert "the ten others that score highest on the channels pruned" in page.prose


@pytest.mark.parametrize("key", ["title", "action", "chosen", "scores"])
def test_any_one_part_of_the_channels_may_be_null(key: str) -> None:
    document = channel_record()
    document["channels"][key] = None
    page_of(document)
    del document["channels"][key]
    page_of(document)


def test_scores_may_be_null_one_by_one_by_row_and_by_layer() -> None:
    document = channel_record()
    scores = document["channels"]["scores"]
    scores["body.0"]["values"] = [None, [None] * 10, [0.5], *[[0.1] * 10] * 13]
    scores["body.4"]["values"] = [[None] * 10] * 32
    scores |= {"body.8": None, "body.12": {"columns": ["0"], "values": None}}
    document["channels"]["chosen"]["body.0"] = None
    page = page_of(document)
    rows = page.rows("Layer")

    assert [rows[name][0] for name in scores] == ["16", "32", "–", "–"]
    assert "not measured" in page.labels  # body.4 as a whole


def took_part(**rounds: int) -> list[dict[str, Any]]:
    """Return what ten clients did; client-9's data are gone: from unlearning on it uses none."""
    return [
        {"client": f"client-{i}", "phase": phase, "rounds": number, "answered": number, "idle": 0}
        | {"examples": 40.0 * (not gone), "used": 0 if gone else number}
        for phase, number in rounds.items()
        for i in range(10)
        for gone in [i == 9 and phase in ("unlearn", "recover")]
    ]


ROUNDS = {"train": 30, "score": 1, "unlearn": 4, "recover": 2, "relearn": 1}


def test_a_client_whose_data_are_gone_answers_and_is_said_to_use_none() -> None:
    page = page_of(channel_record(participation=took_part(recover=2)))
    rows = page.rows("Client and phase")
    assert rows["client-9, recover"][:3] == ["2 of 2", "0", "0"]
    assert rows["client-0, recover"][:3] == ["2 of 2", "2", "40"]
    # Of sums alone nobody knows what one client used.
    settings = {**record()["settings"], "secure-aggregation": True}
    page = page_of(channel_record(participation=took_part(recover=2), settings=settings))
    assert page.rows("Client and phase")["client-0, recover"][:3] == ["2 of 2", "–", "–"]


def test_rounds_that_did_without_a_client_have_a_column_where_there_are_any() -> None:
    part = took_part(train=2)
    page = page_of(channel_record(participation=part))
    assert "asked, not needed" not in page.words
    part[9] |= {"rounds": 0, "answered": 0, "used": 0, "examples": 0.0, "not_needed": 2}
    page = page_of(channel_record(participation=part))
    assert "asked, not needed" in page.words
    assert page.rows("Client and phase")["client-9, train"][:3] == ["0 of 0", "0", "2"]


def test_a_client_send_in_a_round_is_told_in_percent_of_the_model() -> None:
    rows = page_of(channel_record(participation=took_part(**ROUNDS))).rows("Message")

    # A model of 1 MB, and ten clients' answers: 303 MB / 30 / 10 = 1.01 MB; 8 kB / 1 / 10 = 0.8 kB.
    # Nine have data to unlearn and to recover with: 1.24 MB / 4 / 9 = 34.4 kB.
    assert list(rows)[1] == "the whole model"
    assert rows["the whole model"] == ["", "1.0 MB", "100.0 %"]
    assert rows["train"] == ["30", "1.0 MB", "101.0 %"]
    assert rows["score"] == ["1", "800 B", "0.08 %"]
    assert rows["unlearn"] == ["4", "34.4 kB", "3.4 %"]
    assert rows["recover"] == ["2", "1.1 MB", "112.2 %"]
    assert rows["relearn"] == ["1", "0 B", "0.0 %"]


@pytest.mark.parametrize("key", ["model_bytes", "participation", "rounds", "bytes"])
def test_without_what_the_percent_is_made_of_there_is_none(key: str) -> None:
    page = page_of(channel_record(**{"participation": took_part(**ROUNDS), key: None}))

    assert not any(row and row[0] == "Message" for table in page.tables for row in table)


def test_a_phase_without_rounds_has_no_share_of_the_model() -> None:
    document = channel_record(participation=took_part(**ROUNDS, retrain=30))
    document["rounds"]["unlearn"] = 0  # the server alone pruned
    rows = page_of(document).rows("Message")

    assert list(rows)[1:5] == ["the whole model", "train", "retrain", "score"]
    assert "unlearn" not in rows


def test_scoring_is_a_phase_of_the_request() -> None:
    page = page_of(channel_record())
    rows = page.rows("Phase")

    names = ["train", "retrain", "score", "unlearn", "recover", "relearn"]
    assert [name for name in rows if name in names] == names
    assert "asking and measuring" not in rows
    # 1.5 + 0.31 + 0.56 s; 8 kB + 1.24 MB + 20.2 MB
    total = rows["request (score + unlearn + recover)"]
    assert (total[0], total[4]) == ("2.37 s", "21.4 MB")
    assert "score: channels are measured" in page.prose
    assert "score: channels are measured" not in page_of(record()).prose


def test_the_heat_maps_follow_the_page_and_keep_names_as_text() -> None:
    bad = '<script>alert("x")</script>'
    document = channel_record({bad: 4, "body.4": 300})
    document["channels"] |= {"title": bad, "action": bad}
    document["channels"]["scores"][bad]["columns"][0] = bad
    html = render(typed(document))
    page = Page(html)
    svgs = re.findall(r'<figure class="layer">(.*?)</figure>', html, flags=re.DOTALL)

    assert not {tag for tag, _ in page.tags} & {"script", "img", "image"}
    assert len(svgs) == 2
    for svg in svgs:
        assert not re.search(r"#[0-9a-f]{6}", re.sub(r"var\(--plot-\w+, #[0-9a-f]{6}\)", "", svg))
        assert ' role="img" aria-labelledby="channels-' in svg
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'aria-labelledby="([^"]+)"', html)) <= set(ids)
    assert render(typed(document)) == render(typed(copy.deepcopy(document)))


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
        "2 synthetic examples of class 0",
        "3 synthetic examples of class 2",
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
    assert "holds no synthetic examples" in html
    assert "are not shown" not in html


def test_synthetic_rows_of_a_table_are_counted_and_not_shown(tmp_path: Path) -> None:
    import torch

    html = site_report(tmp_path / "site.html", images=torch.zeros(5, 13))
    assert Page(html).rows("Class")["2"] == ["250", "3"]
    assert "<img" not in html
    assert "are no images of 1 or 3 channels, and are not shown" in " ".join(html.split())


def test_a_long_contact_sheet_says_how_many_it_leaves_out(tmp_path: Path) -> None:
    import torch

    many = {"images": torch.rand(30, 1, 8, 8), "labels": torch.zeros(30, dtype=torch.int64)}
    html = site_report(tmp_path / "site.html", **many, max_per_class=20)

    assert "The first 20 of 30" in " ".join(html.split())


def test_examples_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    import torch

    with pytest.raises(BadSetting, match="labels must be one an example"):
        site_report(tmp_path / "s.html", labels=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(BadSetting, match="examples must be finite"):
        site_report(tmp_path / "s.html", images=torch.full((5, 1, 8, 8), float("nan")))
    assert list(tmp_path.iterdir()) == []
