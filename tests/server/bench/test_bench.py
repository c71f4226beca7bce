"""The harness: recipes, columns that a reader can derive, what is kept, and one small benchmark."""

import csv
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from client.data import datasets
from client.data.datasets import Data, Examples
from client.errors import BadSetting, EffaceError
from client.learning.spec import image_model
from client.wire import ForgetSpec
from server import provenance
from server.bench import cells, columns, harness, keys, membership, plots, table
from server.bench import recipe as recipe_module
from server.bench.cells import Bench, Task, tasks
from server.bench.harness import CellFailed, bench
from server.bench.recipe import check_data, load
from server.cli import app
from server.cli.command import console_for
from server.evidence.record import Record
from server.evidence.verdict import Finding
from server.requests.execution import VerificationFailed
from server.settings import RunSettings

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "benchmarks" / "recipes").glob("*.toml"))
TINY = """
methods = ["influential-de", "class-pruning"]
evaluate_every = 1
{more}

[data]
num_clients = 2
partition = "iid"

[model]
model_width = 8
model_depth = 1

[training]
rounds = 2
local_steps = 4
scale = 0

[[levels]]
classes = [9]
{levels}
"""


pytestmark = pytest.mark.usefixtures("surroundings")


def write(folder: Path, *, more: str = "", levels: str = "", name: str = "tiny") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(TINY.format(more=more, levels=levels))
    return path


# ---- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_read(path: Path) -> None:
    recipe = load(path)

    assert recipe.cells
    assert recipe.contenders
    assert recipe.title != recipe.name  # it says what it is


TABLES = [
    *(f"quickdrop-{name}" for name in ("table2", "table3", "table4", "table5", "table6")),
    *("quickdrop-figure4", "quickdrop-figure6"),
    *("pruning-table1", "pruning-table2", "pruning-table3"),
    *("influential-table4", "influential-figure12"),
]


@pytest.mark.parametrize("size", ["paper", "cpu"])
def test_every_paper_table_has_a_recipe_of_both_sizes(size: str) -> None:
    found = {path.stem for path in RECIPES}

    assert {f"{name}-{size}" for name in TABLES} <= found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = [0]", "recipe key must be one of .*, got 'seed'"),
        ("methods = []", r'methods must be "all" or a list, got \[\]'),
        ('methods = ["slow"]', "method must be one of quickdrop, .*, got 'slow'"),
        ('methods = ["sga", "sga"]', "method names must differ, got 'sga' twice"),
        ("[[methods]]\nname = 'sga'\noptions = {deep = 1}", "option must be one of .*, got 'deep'"),
        ("[[methods]]\nname = 'sga'\nlr = 1", r"key of \[\[methods\]\] must be one of .* got 'lr'"),
        ("[options]\nslow = {lr = 1}", r"key of \[options\] must be one of .*, got 'slow'"),
        ("seeds = []", "seeds must be at least one number, got none"),
        ("seeds = [1, 1]", r"seeds must differ, got \[1, 1\]"),
        ("seeds = [-1]", r"seeds must be a list of numbers from 0 up, got \[-1\]"),
        ("relearn = 1", "relearn must be true or false, got 1"),
        ("evaluate_every = -1", "evaluate_every must be a number from 0 up, got -1"),
        ('columns = ["speed"]', "column must be one of forget_accuracy, .*, got 'speed'"),
        ("[training]\nlearning_rate = 1", r"key of \[training\] must be .* got 'learning_rate'"),
        ("[training]\nlr = 0", "lr must .*, got 0"),
        ("[training]\nrounds = 'two'", "rounds must be int, got 'two'"),
        ("[model]\nmodel = 'bert'", "model must be one of .*, got 'bert'"),
        ("[data]\npartition = 'fair'", "partition must .*, got 'fair'"),
        ("[data]\npartition = 'iid'\npartitions = ['iid']", "must be given, got both"),
        ("[sweep]\nscale = 10", "sweep must list different values, got scale = 10"),
        ("[sweep]\nscale = [1]\nlr = [1]", "sweep must vary one setting, got scale, lr"),
        ("[sweep]\nseed = [1]", r"key of \[sweep\] must be one of .*, got 'seed'"),
        ("[[levels]]\nclass = 9", r"key of \[\[levels\]\] must be one of .*, got 'class'"),
        ("[[levels]]\nname = 'none'", "level must name .*, got nothing"),
        ("[[levels]]\nclasses = [1]\nclients = ['client-0']", "level must .*, got classes and"),
        ("[[levels]]\nclasses = ['client-0']", "classes must list them, got"),
        ("[[levels]]\nclasses = [-1]", "request must name classes from 0 up, .* got"),
        ("[[levels]]\nclients = ['client-10']", "client must be one of client-0 to client-9, got"),
        ("[[levels]]\nsequence = [1]", "sequence must list at least two requests, got"),
        ("[[levels]]\nsequence = [1, 2]\ncompare_at = [3]", "compare_at must list numbers of .*3"),
        ("extends = 'r.toml'", "extends must not lead back to itself, got r.toml"),
        ("extends = 'none.toml'", "recipe must be a readable file, got .*none.toml"),
        ("methods = ", "recipe must be TOML, got"),
    ],
)
def test_a_recipe_is_refused_with_key_rule_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    whole = ""
    if "methods" not in text:
        whole += 'methods = ["sga"]\n'
    whole += text
    if "[[levels]]" not in text:
        whole += "\n[[levels]]\nclasses = [9]\n"
    path = tmp_path / "r.toml"
    path.write_text(whole)

    with pytest.raises(BadSetting, match=message):
        load(path)


def test_a_class_that_the_data_do_not_have_is_refused(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, levels="[[levels]]\nclasses = [10]"))

    with pytest.raises(BadSetting, match=r"class must lie in \[0, 10\), got 10"):
        check_data(recipe, "", "cpu")


def test_options_are_laid_over_method_by_method(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        'methods = ["sga", "federaser", "quickdrop"]\n'
        "[options.sga]\nunlearn_lr = 0.5\nunlearn_rounds = 2\n[options.federaser]\nrounds = 3\n"
        "[[levels]]\nclasses = [3]\n"
    )
    path = tmp_path / "over.toml"
    path.write_text(
        'extends = "base.toml"\n[options.sga]\nunlearn_lr = 0.1\n'
        "[options.quickdrop]\nrecover_rounds = 5\n"
    )
    assert {one.name: one.options for one in load(path).contenders} == {
        "sga": "unlearn-lr=0.1,unlearn-rounds=2",
        "federaser": "rounds=3",
        "quickdrop": "recover-rounds=5",
    }


def test_a_recipe_lies_over_the_one_it_extends(tmp_path: Path) -> None:
    write(tmp_path, more="seeds = [3]", name="base")
    over = tmp_path / "over.toml"
    over.write_text(
        'extends = "base.toml"\nmethods = "all"\n[data]\npartitions = ["iid", "shards:2"]\n'
        "[training]\nrounds = 7\n[sweep]\nscale = [10, 20]\n"
    )

    recipe = load(over)

    assert [(c.partition, c.swept, c.seed) for c in recipe.cells] == [
        ("iid", "scale=10", 3),
        ("iid", "scale=20", 3),
        ("shards:2", "scale=10", 3),
        ("shards:2", "scale=20", 3),
    ]
    last = recipe.cells[-1].settings
    assert (last["rounds"], last["local_steps"], last["scale"]) == (7, 4, 20)
    assert last["partition_seed"] == 3  # the seed's, where the recipe fixes none
    assert [one.name for one in recipe.contenders] == list(cells.METHODS)


# ---- columns ------------------------------------------------------------------------------------


def test_distances_between_accuracy_distributions() -> None:
    # Raised by 0.1 they are 75, 25 and 50, 50: shares of 3/4, 1/4 and 1/2, 1/2.
    method, retrained = [74.9, 24.9], [49.9, 49.9]

    assert columns.distribution(method) == pytest.approx([0.75, 0.25])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert columns.kl_divergence(method, retrained) == pytest.approx(expected)
    assert columns.total_variation(method, retrained) == pytest.approx(0.25)


def test_distances_are_finite_where_one_model_lost_a_class() -> None:
    # Shares 0.1/100.1 and 100/100.1 against their exchange.
    assert columns.kl_divergence([0.0, 99.9], [99.9, 0.0]) == pytest.approx(
        (100 - 0.1) / 100.1 * math.log(1000)
    )
    assert columns.kl_divergence([0.0, 80.0], [0.0, 80.0]) == 0.0


def test_auc_of_a_known_ranking() -> None:
    # Of the four pairs three are in order and one is a tie, which counts half.
    members, unseen = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])
    assert membership.auc(members, unseen) == pytest.approx(3.5 / 4)


def test_speed_up_alone_and_amortised() -> None:
    # 100 s against 2 s; with 8 s more in training 10 requests take 28 s, 100 take 208 s.
    assert columns.speed_ups(100.0, 2.0, 8.0) == pytest.approx(
        {
            "speed_up": 50.0,
            "speed_up_1": 10.0,
            "speed_up_10": 1000 / 28,
            "speed_up_100": 10000 / 208,
        }
    )


def test_spread_is_pooled_within_groups() -> None:
    # Variances 2 and 8, each with one degree of freedom.
    assert columns.spread([[1.0, 3.0], [10.0, 14.0], [7.0]]) == pytest.approx(math.sqrt(5))
    assert columns.spread([[1.0], [2.0]]) is None
    assert columns.spread([[1.0, 3.0], [5.0]]) is None  # of two values alone


def scores(forget: float, retain: float, classes: list[float], curve: float) -> dict[str, Any]:
    return {
        "forget_accuracy": forget,
        "retain_accuracy": retain,
        "per_class_accuracy": classes,
        "relearning_curve": {"mean": curve},
    }


def result(seed: int = 0, method: str = "fast", **changed: Any) -> dict[str, Any]:
    """Return what a cell kept of one request."""
    record = {
        "original": scores(90.0, 80.0, [80.0, 90.0], 91.0),
        "retrained": {
            **scores(0.0, 82.0 + seed, [82.0, 0.0], 60.0),
            "timeline": [
                {"phase": "retrain", "round": n, "retain_accuracy": a, "forget_accuracy": 0.0}
                for n, a in ((1, 40.0), (2, 81.0), (3, 82.0))
            ],
        },
        "unlearned": scores(0.0, 50.0, [50.0, 0.0], 0.0),
        "recovered": scores(1.0, 81.0, [81.0, 1.0], 65.0),
        "forget": {"level": "class", "classes": [1], "clients": []},
        "erased_before": [],
        "rounds": {"score": 1, "unlearn": 1, "recover": 2, "retrain": 30},
        "samples": {"unlearn": 100.0, "recover": 200.0, "retrain": 9000.0},
        "seconds": {"score": 0.5, "unlearn": 0.5, "recover": 1.0, "retrain": 100.0},
        "seconds_measuring": {"guard": 0.5, "evaluate": 7.0},
        "client_seconds": {"unlearn": 1.0, "recover": 2.0, "retrain": 180.0},
        "bytes": {"recover": {"up": 2_000_000, "down": 3_000_000}, "guard": {"up": 9, "down": 9}},
        "num_clients": 10,
        "model_bytes": 400_000,
    }
    kept = {
        "partition": "iid",
        "partition_seed": 0,
        "sweep": "",
        "seed": seed,
        "level": "class 1",
        "step": 1,
        "method": method,
        "state": "done",
        "reason": "",
        "oracle": None,
        "record": record,
        "attack": {
            name: {"confidence": value, "entropy": 0.5}
            for name, value in (("original", 0.7), ("retrained", 0.4), ("recovered", 0.45))
        },
        "train_seconds": 120.0,
        "plain_seconds": 80.0,
        "overhead_seconds": 8.0,
        "storage_bytes": 500_000,
        "jobs": 1,
        "peak_bytes": 2**30,
        "commit": "abc1234",
        "hardware": "2 cores",
    }
    return kept | changed


def below(blank: float, back: float, alike: float | None) -> dict[str, Any]:
    """Return what a record holds of one model below its last layer."""
    layers = [{"name": "conv", "forget": 0.1, "retain": 0.2}]
    layers += [{"name": "features", "forget": alike, "retain": 0.9}]
    return {
        "head_back": back,
        "blank_head": {"mean": blank},
        "matched_head": back,
        "turned_head": None,
        "class_means": 92.0,
        "probe": 89.0,
        "layers": [] if alike is None else layers,
        "neighbours_forget": alike,
        "neighbours_retain": alike,
    }


def test_rows_hold_what_lies_below_the_last_layer_of_each_model() -> None:
    kept = result()
    kept["record"]["features"] = {
        "original": below(75.0, 90.0, 0.8),
        "retrained": below(65.0, 1.0, None),
        "result": below(66.0, 46.0, 0.7),
    }

    original, retrained, fast = columns.rows([kept])

    assert [row["head_back"] for row in (original, retrained, fast)] == [90.0, 1.0, 46.0]
    assert [row["blank_head"] for row in (original, retrained, fast)] == [75.0, 65.0, 66.0]
    assert (fast["class_means"], fast["probe"]) == (92.0, 89.0)
    assert (fast["cka_forget"], fast["cka_retain"], fast["neighbours_forget"]) == (0.7, 0.9, 0.7)
    assert (retrained["cka_forget"], retrained["neighbours_forget"]) == (None, None)


def test_rows_open_with_original_and_retrained_and_hold_the_gaps() -> None:
    rows = columns.rows([result(), result(method="slow")])

    assert [row["method"] for row in rows] == ["Original", "Retrained", "fast", "slow"]
    original, retrained, fast, _ = rows
    assert (original["forget_gap"], original["retain_gap"]) == (90.0, -2.0)
    assert retrained["forget_gap"] is None
    assert (retrained["seconds"], retrained["rounds"], retrained["speed_up"]) == (100.0, 30, 1.0)
    assert (fast["forget_gap"], fast["retain_gap"], fast["class_gap"]) == (1.0, -1.0, 1.0)
    assert (fast["relearning"], fast["relearning_gap"]) == (65.0, 5.0)
    assert fast["head_back"] is None  # not measured below the last layer
    assert (fast["auc_confidence"], retrained["auc_confidence"]) == (0.45, 0.4)
    assert (fast["rounds"], fast["samples"], fast["seconds"]) == (3, 300.0, 2.0)
    assert (fast["bytes_up"], fast["bytes_down"]) == (2_000_000, 3_000_000)  # measuring left out
    assert fast["up_percent"] == pytest.approx(100 / 6)  # 2 MB in 3 rounds of 10 times 400 kB
    scored = result()
    scored["record"]["bytes"]["score"] = {"up": 1_000_000, "down": 0}
    (*_, row) = columns.rows([scored])
    assert row["bytes_up"] == 3_000_000
    assert row["up_percent"] == fast["up_percent"]  # scores are no parameters
    assert fast["retrained_rounds"] == 2
    assert (fast["speed_up"], fast["speed_up_1"]) == (50.0, 10.0)
    # Its own checks took half a second more than the two seconds; measuring for us is not its own.
    assert (fast["guard_seconds"], fast["speed_up_checked"]) == (0.5, 40.0)
    assert (retrained["guard_seconds"], retrained["speed_up_checked"]) == (0.0, 1.0)
    assert fast["overhead_percent"] == 10.0  # 8 s on 80 s of training alone
    assert fast["worst_erased_accuracy"] == 1.0
    assert fast["retain_gap_in_spreads"] is None  # one Retrained has no spread


def test_a_gap_is_read_against_the_spread_of_retrained_models() -> None:
    oracles = [result(method="", oracle=seed) for seed in (7, 8)]
    for oracle, retain in zip(oracles, (84.0, 86.0), strict=True):
        oracle["record"] = {**oracle["record"], "recovered": scores(0.0, retain, [84.0, 0.0], 60.0)}

    rows = columns.rows([result(), *oracles])

    # Retrained has 82, 84 and 86: a standard deviation of 2, and the gap is -1.
    assert [row["method"] for row in rows][-1] == "Retrained, seed 8"
    assert rows[2]["retain_gap_in_spreads"] == pytest.approx(-1 / 2)
    # Two alone have no spread to speak of.
    assert columns.rows([result(), oracles[0]])[2]["retain_gap_in_spreads"] is None


def test_seeds_on_the_same_clients_give_the_spread_as_well() -> None:
    rows = columns.rows([result(seed=0), result(seed=2), result(seed=4)])

    # Retrained has 82, 84 and 86 again; the gaps are -1, -3 and -5.
    found = [row["retain_gap_in_spreads"] for row in rows if row["method"] == "fast"]
    assert found == pytest.approx([-1 / 2, -3 / 2, -5 / 2])


def test_a_method_that_did_not_end_has_a_row_that_says_so() -> None:
    lost: dict[str, Any] = {"record": None, "attack": None, "state": "refused"}
    rows = columns.rows([result(), result(method="picky", reason="level must be class", **lost)])

    assert rows[-1]["method"] == "picky"
    assert (rows[-1]["state"], rows[-1]["reason"]) == ("refused", "level must be class")
    assert rows[-1]["forget_accuracy"] is None


# ---- tables -------------------------------------------------------------------------------------


def test_a_table_reads_like_the_papers() -> None:
    lost: dict[str, Any] = {"record": None, "attack": None, "state": "refused"}
    reason = "level must be class, got client; choose another method"
    rows = columns.rows([result(0), result(2), result(0, "picky", reason=reason, **lost)])
    shown = ("forget_accuracy", "retain_accuracy", "relearned_forget_accuracy", "speed_up")

    assert table.level_table(rows, shown) == [
        "| model | F % | R % | speed-up |",  # what nobody measured has no column
        "|---|---|---|---|",
        "| Original | 90.0 ± 0.0 | 80.0 ± 0.0 | – |",
        "| Retrained | 0.0 ± 0.0 | 83.0 ± 1.4 | 1.0x ± 0.0 |",
        "| fast | 1.0 ± 0.0 | 81.0 ± 0.0 | 50.0x ± 0.0 |",
        "| picky | refused: level must be class, got client | – | – |",
    ]


def test_a_mean_says_of_how_many_it_is() -> None:
    assert table.number([2.0, None, 4.0], "rounds") == "3 ± 1 (2 of 3)"
    assert table.number([2.0, None], "rounds") == "2 (1 of 2)"
    assert table.number([None], "rounds") == table.NOTHING


def test_a_page_names_command_commit_hardware_and_seeds(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, more='title = "A test"\nseeds = [0, 2]'))
    rows = [row | {"level": "class 9"} for row in columns.rows([result(0), result(2)])]

    text = table.page(recipe, rows, command="efface bench tiny.toml", drawn=[Path("plots/a.png")])

    assert text.startswith("# A test\n\n```\nefface bench tiny.toml\n```\n")
    assert "2 cores; commit abc1234; seeds 0, 2; peak memory 1.00 GiB." in text
    assert "## class 9, iid" in text
    assert "![a](plots/a.png)" in text
    assert table.CLIENT_LEVEL not in text


def test_a_wide_table_parts_in_what_was_forgotten_and_what_it_cost(tmp_path: Path) -> None:
    rows = [row | {"level": "class 9"} for row in columns.rows([result()])]

    wide = table.page(load(write(tmp_path)), rows, command="")
    narrow = table.page(
        load(write(tmp_path, more='columns = ["forget_accuracy", "seconds"]')), rows, command=""
    )

    first, second = [line for line in wide.splitlines() if line.startswith("| model |")]
    assert first.startswith("| model | F % | R % |")
    assert first.endswith("| relearning |")
    assert second.startswith("| model | rounds |")
    assert second.endswith("| over 100 |")
    assert "\n| model | F % | time s |\n" in narrow


def test_a_page_says_how_to_read_r_where_a_client_is_forgotten(tmp_path: Path) -> None:
    levels = '[[levels]]\nclients = ["client-1"]\n[[levels]]\nsequence = ["client-0", 7]\n'

    text = table.page(load(write(tmp_path, levels=levels)), [], command="efface bench")

    for part in text.split("\n## ")[1:]:
        assert (table.CLIENT_LEVEL in part) == ("client" in part.splitlines()[0])


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, ""),
        ({"data_dir": "/data/my sets", "jobs": 4}, " --data-dir '/data/my sets' --jobs 4"),
        ({"out": Path("elsewhere")}, " --out elsewhere"),
        ({"out": Path("/elsewhere"), "device": "cuda"}, " --out /elsewhere --device cuda"),
    ],
)
def test_the_page_has_the_command_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    out = told.pop("out", Path("benchmarks") / "results" / "tiny").absolute()
    run_ = Bench(load(Path("tiny.toml")), out, **told)

    assert harness.command_line(run_) == "efface bench tiny.toml" + words


# ---- plots --------------------------------------------------------------------------------------


def test_costs_have_decades_and_tell_nothing_from_not_measured() -> None:
    rows = columns.rows([result(), result(method="slow")])
    rows[2] |= {"storage_bytes": None, "seconds": 0.02}

    figure = plots._costs(rows, "class 1, iid")

    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    figure.draw_without_rendering()
    texts = {name: [text.get_text().strip() for text in a.texts] for name, a in panels.items()}
    # Retrained, fast, slow
    assert texts["storage MB"] == ["0", "not measured", "0.5"]
    assert texts["time s"] == ["100", "0.02", "2"]
    ticks = {
        label.get_text()
        for label in panels["time s"].get_xticklabels()
        if panels["time s"].get_xlim()[0] <= label.get_position()[0]
    }
    assert {"0.1", "1", "10", "100"} <= ticks
    assert panels["time s"].get_xscale() == "log"
    lost = [row | {"storage_bytes": None} for row in rows]
    figure = plots._costs(lost, "class 1, iid")
    texts_ = [text.get_text().strip() for text in figure.axes[5].texts]
    assert texts_ == ["not measured"] * 3


# ---- membership ---------------------------------------------------------------------------------


def digits(**more: Any) -> tuple[RunSettings, Data]:
    told = {"mode": "train", "num_clients": 2, "partition": "iid", "engine": "inline", **more}
    return RunSettings(**told).check(), datasets.load("digits")


def test_members_were_trained_on_and_the_others_never() -> None:
    settings, data = digits()
    spec = settings.model_spec(data)

    found = membership.examples(settings, data, spec, ForgetSpec("class", (3, 9)))

    assert found is not None
    members, unseen = found
    labels = data.train.labels[members]
    assert sorted(set(labels.tolist())) == [3, 9]
    # Of each class as many of both: all that the test part has, which is the smaller.
    assert torch.equal(labels.bincount(), unseen.labels.bincount())
    for label in (3, 9):
        assert int((labels == label).sum()) == int((data.test.labels == label).sum())
    assert len(set(members.tolist())) == len(members)


def test_members_of_a_client_are_its_own() -> None:
    settings, data = digits(partition="one-class", num_clients=10, holdout=0.5)
    forget = ForgetSpec("client", (), ("client-4",))

    found = membership.examples(settings, data, settings.model_spec(data), forget)

    assert found is not None
    assert set(data.train.labels[found[0]].tolist()) == {4}
    # Half of the client's examples are held out: they are no members.
    assert len(found[0]) <= int((data.train.labels == 4).sum()) / 2 + 1


class PixelIsLogit(nn.Module):
    """Two classes; the first pixel's value is the first class's logit, the other's is 0."""

    def forward(self, images: Tensor) -> Tensor:
        first = images[:, 0, 0, 0]
        return torch.stack([first, torch.zeros_like(first)], dim=1)


def test_the_attacks_see_confidence() -> None:
    def split(pixels: list[int]) -> Examples:
        images = torch.zeros((len(pixels), 1, 8, 8), dtype=torch.uint8)
        images[:, 0, 0, 0] = torch.tensor(pixels, dtype=torch.uint8)
        return Examples(images, torch.zeros(len(pixels), dtype=torch.int64), None)

    # Mean 0.5: pixels below 127.5 are negative logits of the true class, sure and wrong.
    train, unseen = split([255, 200]), split([150, 0])
    data = Data(train, unseen, name="pixels", num_classes=2, mean=(0.5,), std=(0.1,))

    task = image_model("convnet", 2, channels=1, image_size=8).task
    found = membership.attack(
        PixelIsLogit(), task, data, torch.arange(2), unseen, device=torch.device("cpu")
    )

    assert found["member-accuracy"] == 100.0
    assert found["confidence"] == 1.0  # both members above both others
    # Logits 5, 2.84 and 0.88, -5: the wrong one is as sure as the surest member: 2.5 of 4 pairs.
    assert found["entropy"] == pytest.approx(2.5 / 4)
    # Sure and wrong is no sign of a member: both others lie below both members.
    assert found["modified-entropy"] == 1.0
    # The members' losses log(1 + e^-5) and log(1 + e^-2.84): one is at most their mean, of the
    # others' none is.
    assert found["advantage"] == 0.5
    assert found["tpr"] is None  # of two others none is 1 %
    assert found["rmia"] is None  # nothing to compare with

    class Unsure(torch.nn.Module):
        """Gives every class the same, whatever it sees."""

        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 2)

    model, here = PixelIsLogit(), torch.device("cpu")
    found = membership.attack(
        model, task, data, torch.arange(2), unseen, device=here, references=[Unsure()]
    )
    # Compared with the other at 150, of p = 0.71: the members' 0.99 and 0.94 are not twice that,
    # nor is 0.007 of the other at 0.
    assert found["rmia"] == 0.5
    sure = split([150, 0, 0, 0])
    found = membership.attack(
        model, task, data, torch.arange(2), sure, device=here, references=[Unsure()]
    )
    assert found["rmia"] == 1.0  # twice as likely as half of what they are compared with


# ---- what is kept -------------------------------------------------------------------------------


class Asked:
    """Stands in for `server.runner.run`: counts, and does what it is told instead."""

    def __init__(self, then: Callable[[RunSettings, Any], dict[str, Any]]) -> None:
        self.then = then
        self.modes: list[str] = []

    def __call__(self, settings: RunSettings, listener: Any) -> dict[str, Any]:
        self.modes.append(f"{settings.mode} {settings.method if settings.mode != 'train' else ''}")
        return self.then(settings, listener)


def tables(path: Path, out: Path) -> Any:
    run_ = Bench(load(path), out, any_code=True)
    return harness.bench(run_, harness.Console(stderr=True, quiet=True), work=False)


def run(path: Path, out: Path) -> Any:
    return bench(Bench(load(path), out, "", "cpu"), console_for(sys.stderr))


def test_a_finished_cell_is_not_run_again_and_an_interrupted_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, real = write(tmp_path), tmp_path / "out", cells.run

    def stop_at_pruning(settings: RunSettings, listener: Any) -> dict[str, Any]:
        if settings.method == "class-pruning" and settings.mode == "forget":
            raise KeyboardInterrupt
        return real(settings, listener)

    asked = Asked(stop_at_pruning)
    monkeypatch.setattr(cells, "run", asked)
    with pytest.raises(KeyboardInterrupt):
        run(path, out)
    assert asked.modes == ["train ", "forget influential-de", "forget class-pruning"]

    # The same again: what was finished is kept, the training included.
    asked = Asked(real)
    monkeypatch.setattr(cells, "run", asked)
    done = run(path, out)
    assert asked.modes == ["forget class-pruning"]
    assert (done.made, done.kept) == (1, 2)

    # Once more: nothing is left to do, and the tables are the same.
    before = (out / "results.csv").read_bytes()
    asked = Asked(real)
    monkeypatch.setattr(cells, "run", asked)
    done = run(path, out)
    assert (asked.modes, done.made, done.kept) == ([], 0, 3)
    assert (out / "results.csv").read_bytes() == before

    # A method's options change: that method runs again, from the training that is there.
    path.write_text(path.read_text() + "\n[options.class-pruning]\nprune_share = 0.2\n")
    run(path, out)
    assert asked.modes == ["forget class-pruning"]


def test_requests_in_a_row_share_one_retrained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TINY.replace('"influential-de", "class-pruning"', '"class-pruning", "influential-de"')
    level = "[[levels]]\nsequence = [8, 7]\ncompare_at = [1, 2]"
    path = tmp_path / "row.toml"
    path.write_text(text.replace("[[levels]]\nclasses = [9]", "").format(more="", levels=level))
    found: list[bool] = []
    real = cells.run

    def watch(settings: RunSettings, listener: Any) -> Record:
        record = real(settings, listener)
        found.extend([record.retrain_cached] if settings.mode == "forget" else [])
        return record

    monkeypatch.setattr(cells, "run", watch)
    done = run(path, tmp_path / "out")

    assert found == [False, False, True, True]  # the second method finds both
    last = [row for row in done.rows if row["step"] == 2]
    assert [row["method"] for row in last] == ["Retrained", "class-pruning", "influential-de"]
    assert not list((tmp_path / "out" / "cells" / "iid-seed-0").glob("home-*-*"))


def test_a_failure_is_kept_and_a_defect_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, real = write(tmp_path), tmp_path / "out", cells.run

    def fail(settings: RunSettings, listener: Any) -> dict[str, Any]:
        if settings.method == "class-pruning":
            raise EffaceError("forget accuracy must fall, got 80 %")
        if settings.method == "influential-de":
            raise ZeroDivisionError("by zero")
        return real(settings, listener)

    monkeypatch.setattr(cells, "run", Asked(fail))
    done = run(path, out)
    assert done.states == {"broken": 1, "failed": 1}
    assert [row["reason"] for row in done.rows] == [
        "ZeroDivisionError: by zero",
        "forget accuracy must fall, got 80 %",
    ]

    asked = Asked(real)
    monkeypatch.setattr(cells, "run", asked)
    run(path, out)
    assert asked.modes == ["forget influential-de"]


def brought_back(settings: RunSettings, listener: Any, real: Any) -> Record:
    """Ask for a forgetting whose recovery seems to have brought the class back."""
    record = real(settings, listener)
    if settings.method != "influential-de":
        return record
    crept = Finding("crept-back", "exceeded", 12.5, 1.0)
    verdict = replace(record.verdict, state="failed", findings=(*record.verdict.findings, crept))
    kept = settings.trial
    record = replace(
        record,
        verdict=verdict,
        refused=not kept,
        model_version=record.model_version if kept else None,
    )
    if kept:
        return record
    raise VerificationFailed("r0002: verification failed", record=record)


@pytest.mark.parametrize("in_a_row", [False, True])
def test_what_was_measured_and_turned_away_has_its_numbers_and_a_word_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_a_row: bool
) -> None:
    path, out, real = write(tmp_path), tmp_path / "out", cells.run
    if in_a_row:
        path.write_text(path.read_text().replace("classes = [9]", "sequence = [8, 7]"))
    monkeypatch.setattr(cells, "run", lambda s, listener: brought_back(s, listener, real))
    done = run(path, out)

    rows = [row for row in done.rows if row["method"] == "influential-de"]
    assert rows[0]["state"] == "done"
    assert rows[0]["retain_accuracy"] is not None
    assert rows[0]["reason"].startswith("verification failed: recovery brought the forget set back")
    if in_a_row:  # from there no request can go on
        assert (rows[1]["state"], rows[1]["reason"]) == ("failed", "the request before it failed")
    page = (out / "results.md").read_text()
    assert "\ninfluential-de, on seed 0: verification failed: recovery brought the forget" in page


def test_a_result_depends_on_the_code_of_its_method_alone(tmp_path: Path) -> None:
    imported = {path.name for path in provenance.imported("strategies.methods.class_pruning")}

    assert {"class_pruning.py", "channels.py", "base.py", "method.py"} <= imported
    assert not {"quickdrop.py", "influential.py", "federaser.py", "table.py"} & imported
    assert keys.code("strategies.methods.class_pruning") != keys.code(
        "strategies.methods.influential"
    )


@pytest.mark.parametrize(
    "file",
    [
        *("nodes/federation.py", "requests/intake.py", "storage/history.py", "nodes/grid.py"),
        *("settings.py", "runner.py", "requests/execution.py", "requests/workspace.py"),
        *("requests/data.py", "evidence/measures.py", "nodes/engines/inline.py"),
        *("requests/context.py", "requests/costs.py", "requests/resolved.py"),
        *("requests/yardstick.py", "evidence/costs.py"),
        *("bench/membership.py", "evidence/attacks/signals.py", "evidence/attacks/success.py"),
        "evidence/attacks/rmia.py",
    ],
)
def test_a_result_depends_on_what_runs_and_measures_it(
    monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    before, real = keys.code.__wrapped__("strategies.methods.sga"), Path.read_bytes
    changed = ROOT / "server" / file
    assert changed.exists()

    def read(path: Path) -> bytes:
        return real(path) + (b"# changed" if path == changed else b"")

    monkeypatch.setattr(Path, "read_bytes", read)

    assert keys.code.__wrapped__("strategies.methods.sga") != before


def test_sweeps_share_retrained_models_of_the_same_code_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load(write(tmp_path, levels="[sweep]\nlr = [0.1, 0.2]\n"))
    run_, home = Bench(recipe, tmp_path / "out"), tmp_path / "home"
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "retrained-1.safetensors").touch()
    run_._share(recipe.cells[0], home, bring=False)
    (home / "cache" / "retrained-1.safetensors").unlink()

    monkeypatch.setattr(cells, "code", lambda module: "of another day")
    run_._share(recipe.cells[1], home, bring=True)
    assert not list((home / "cache").iterdir())
    monkeypatch.undo()
    run_._share(recipe.cells[1], home, bring=True)
    assert len(list((home / "cache").iterdir())) == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cell_that_cannot_train_leaves_the_others(tmp_path: Path, jobs: int) -> None:
    recipe = load(write(tmp_path, more="seeds = [0, 1, 2]"))
    run_ = Bench(recipe, tmp_path / "out", "", "cpu", jobs)
    (run_.out / "cells").mkdir(parents=True)
    (run_.out / "cells" / "iid-seed-0").touch()  # a file where its folder should be

    with pytest.raises(CellFailed, match="got iid-seed-0 that did not"):
        bench(run_, console_for(sys.stderr))

    with (run_.out / "results.csv").open(newline="") as file:
        assert {row["seed"] for row in csv.DictReader(file)} == {"1", "2"}
    assert (run_.out / "results.md").exists()
    log = (run_.out / "bench.log").read_text()
    assert "cell iid-seed-0" in log
    assert "FileExistsError" in log


def test_stopping_a_cell_stops_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(settings: RunSettings, listener: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    asked = Asked(stop)
    monkeypatch.setattr(cells, "run", asked)
    with pytest.raises(KeyboardInterrupt):
        run(write(tmp_path, more="seeds = [0, 1]"), tmp_path / "out")
    assert asked.modes == ["train "]


def test_tables_are_written_again_of_what_other_code_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    asked = Asked(cells.run)
    monkeypatch.setattr(cells, "run", asked)
    with pytest.raises(BadSetting, match=r"results must be there for tables, got none in .*out"):
        tables(path, out)
    assert not out.exists()
    made = run(path, out)
    before = (out / "results.csv").read_text()
    (out / "results.csv").unlink()
    asked.modes.clear()

    monkeypatch.setattr(cells, "code", lambda module: "of another day")
    again = tables(path, out)

    assert asked.modes == []
    assert (again.made, again.kept) == (0, made.made)
    assert (out / "results.csv").read_text() == before
    # But not of another recipe's.
    path.write_text(path.read_text().replace("rounds = 2", "rounds = 3"))
    with pytest.raises(BadSetting, match="results must be there for tables"):
        tables(path, out)


def test_a_label_is_no_reason_to_run_again(tmp_path: Path) -> None:
    recipe = load(write(tmp_path))
    run_ = Bench(recipe, tmp_path / "out")
    first, other = (Task(recipe.cells[0], recipe.levels[0], one) for one in recipe.contenders)

    assert run_.depends(first) != run_.depends(other)
    assert run_.depends(first)["contender"]["label"] == ""


# ---- from end to end ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the document of a small benchmark, two cells side by side."""
    folder = tmp_path_factory.mktemp("bench")
    path = write(
        folder,
        more='title = "Small"\nseeds = [1, 2]\noracle_seeds = [0, 5]\nrelearn = true',
        levels='[[levels]]\nclients = ["client-1"]\n'
        "[[levels]]\nsequence = [8, 7]\ncompare_at = [2]\n",
    )
    told = ["bench", str(path), "--out", str(folder / "out"), "--jobs", "2", "--device", "cpu"]
    done = CliRunner().invoke(app, [*told, "--json"])
    assert done.exit_code == 0, done.output
    return folder / "out", json.loads(done.stdout)


def test_a_benchmark_fills_every_row(small: tuple[Path, dict[str, Any]]) -> None:
    _, document = small
    states = {
        (row["level"], row["step"], row["method"]): row["state"]
        for row in document["rows"]
        if row["seed"] == 1
    }

    both = ("influential-de", "class-pruning")
    assert {states["class 9", 1, name] for name in both} == {"done"}
    assert {states["client client-1", 1, name] for name in both} == {"refused"}
    assert {states["in a row: class 8, class 7", n, name] for n in (1, 2) for name in both} == {
        "done"
    }
    assert states["class 9", 1, "Retrained, seed 0"] == "done"
    assert ("in a row: class 8, class 7", 1, "Retrained") not in states  # compared at the second
    assert states["in a row: class 8, class 7", 2, "Retrained"] == "done"
    by_method = {row["method"]: row for row in document["rows"] if row["level"] == "class 9"}
    pruned, trained = by_method["class-pruning"], by_method["influential-de"]
    assert pruned["relearned_forget_accuracy"] is None  # it cannot
    assert trained["relearned_forget_accuracy"] is not None
    assert 0 <= trained["auc_entropy"] <= 1
    assert trained["bytes_up"] < by_method["Retrained"]["bytes_up"]
    assert by_method["Retrained"]["relearning"] is not None


def test_a_benchmark_writes_tables_rows_and_plots(small: tuple[Path, dict[str, Any]]) -> None:
    out, document = small

    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(document["rows"])
    assert {"method", "level", "seed", "kl", "auc_confidence", "speed_up_100"} <= set(rows[0])
    with (out / "classes.csv").open(newline="") as file:
        classes = list(csv.DictReader(file))
    assert {row["class"] for row in classes} == {str(c) for c in range(10)}
    page = (out / "results.md").read_text()
    assert page.startswith("# Small")
    assert "| class-pruning | refused: " in page
    plots = [Path(path) for path in document["files"]["plots"]]
    assert {path.name.split("-")[0] for path in plots} == {"time", "classes", "costs", "row"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)
    assert not list(out.rglob("*.tmp"))


def test_the_document_holds_the_documented_keys(small: tuple[Path, dict[str, Any]]) -> None:
    text = (ROOT / "docs" / "json.md").read_text()
    section = text.split("\n## `efface bench`\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if "|" in line]

    documented = set().union(*(re.findall(r"`(\w+)`", line[0]) for line in lines[2:]))
    assert set(small[1]) == documented


def test_price_is_what_the_method_needs_of_training(tmp_path: Path) -> None:
    # 100 s of training, of which clients spent 20 % on distilling and the server 4 s on keeping.
    record = {
        "seconds": {"train": 100.0},
        "distillation": {"client_seconds_share": 0.2, "seconds": 7.0},
        "storage": {"updates_seconds": 4.0},
    }
    training = {"record": record, "storage": {"synthetic": 300, "updates": 5000}}
    path = write(tmp_path)
    told = path.read_text().replace('"class-pruning"', '"federaser", "quickdrop", "sga"')
    path.write_text(told)
    recipe = load(path)

    found = {
        one.name: harness._price(Task(recipe.cells[0], recipe.levels[0], one), training)
        for one in recipe.contenders
    }

    both = {"train_seconds": 100.0, "plain_seconds": 76.0, "train_epsilon": None}
    assert found["federaser"] == both | {"overhead_seconds": 4.0, "storage_bytes": 5000}
    assert found["quickdrop"] == both | {"overhead_seconds": 20.0, "storage_bytes": 300}
    assert found["sga"] == both | {"overhead_seconds": 0.0, "storage_bytes": 0}


def test_rows_and_records_agree_on_the_speed_up(tmp_path: Path) -> None:
    path = write(tmp_path, levels="[[levels]]\nsequence = [8, 7]\ncompare_at = [1, 2]\n")
    told = path.read_text().replace('"influential-de", "class-pruning"', '"federaser", "quickdrop"')
    path.write_text(told.replace("scale = 0", "scale = 10\ndistill_every = 1\nkeep_updates = 1"))

    done = run(path, tmp_path / "out")

    compared = 0
    for file in (tmp_path / "out" / "cells").glob("*/*/*.json"):
        for number, step in enumerate(json.loads(file.read_text())["steps"], start=1):
            (row,) = (
                row
                for row in done.rows
                if (row["method"], row["step"]) == (file.stem, number)
                and row["level"].startswith("in a row") == file.parent.name.startswith("in-a-row")
            )
            assert step["state"] == row["state"] == "done"
            speed_up = step["record"]["speed_up"]
            assert row["overhead_seconds"] == pytest.approx(speed_up["overhead_seconds"])
            assert row["overhead_seconds"] > 0
            assert row["speed_up"] == pytest.approx(speed_up["request"])
            for count, value in speed_up["amortised"].items():
                assert row[f"speed_up_{count}"] == pytest.approx(value)
            compared += 1
    assert compared == 6


def test_a_wrong_recipe_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = write(tmp_path, more="seeds = [-1]")

    done = CliRunner().invoke(app, ["bench", str(path), "--out", str(tmp_path / "out"), "--json"])

    assert done.exit_code == 2
    assert "seeds must be a list of numbers from 0 up" in json.loads(done.stdout)["message"]
    assert not (tmp_path / "out").exists()


def test_the_readme_explains_every_column_and_key() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    explained = set(re.findall(r"`\[*([a-z_0-9]+)\]*`", text))

    assert {*columns.KEYS, *columns.COLUMNS, *columns.NOTES} <= explained
    assert set(recipe_module._KEYS) <= explained


def test_tasks_of_a_cell_come_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    levels = "[[levels]]\nsequence = [1, 2]"
    recipe = load(write(tmp_path, more="oracle_seeds = [0, 4]", levels=levels))

    names = [task.name for task in tasks(recipe, recipe.cells[0])]

    # The cell's own seed is no oracle beside it, and a sequence has none.
    assert names == [
        "train",
        "class-9/influential-de",
        "class-9/class-pruning",
        "class-9/retrained-seed-4",
        "in-a-row-class-1-class-2/influential-de",
        "in-a-row-class-1-class-2/class-pruning",
    ]
