"""Plans and choices: estimates by hand, who can serve a request, what `auto` and a dry run do."""

import csv
import hashlib
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from client.errors import BadSetting
from client.learning.models import ModelSpec
from server.evidence.record import to_json
from server.nodes.federation import Cost, Round
from server.requests import planning
from server.requests.intake import AlreadyDone, Service
from server.requests.planning import RULE, SHOWN, Pace, Situation
from server.runner import run
from server.settings import RunSettings
from server.storage.home import Home
from server.storage.ledger import Ledger, database_url
from server.storage.registry import Registry
from strategies.federation import Plan
from strategies.parts.estimates import FORWARD, Facts, Stretch, compact
from strategies.parts.guard import MAX_MORE_ROUNDS, MAX_ROLLBACKS
from strategies.table import METHODS, method
from tests.messages import SPEC

ROOT = Path(__file__).parents[3]

# ---- estimates by hand --------------------------------------------------------------------------

# Ten clients, of which half are drawn. Three hold what goes: 30, 30 and 20 examples; ten have 90
# left each. In training a client passes 100 images a round; s = 10.
FACTS = Facts(
    level="class",
    named=1,
    spec=SPEC,
    model_bytes=1000,
    clients=10,
    holders=3,
    keepers=10,
    goes=(30.0, 30.0, 20.0),
    stays=(90.0,) * 10,
    heldout=50.0,
    per_round=100.0,
    plan=Plan(num_rounds=7, fraction=0.5, min_share=0.5),
    scale=10,
    stored_rounds=4,
    server_examples=200,
)
OF_CLIENT = replace(FACTS, level="client", holders=1, keepers=9, goes=(80.0,), stays=(90.0,) * 9)


def estimate(name: str, facts: Facts = FACTS, **options: str) -> list[Stretch]:
    told = {key.replace("_", "-"): value for key, value in options.items()}
    return method(name, facts.level, told).estimate(facts)


def brief(stretches: list[Stretch]) -> list[tuple[Any, ...]]:
    return [(s.phase, s.rounds, s.clients, s.samples, s.down, s.up) for s in stretches]


WHOLE = (1000, 1000)  # the model, down and up
TUNED = ("recover", 10, 5, 5 * 100.0, *WHOLE)  # an ordinary round of five of the ten


def measured(times: int) -> tuple[Any, ...]:
    return ("guard", times, 10, 50.0, 1000, 0.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Of the ten clients five are drawn.
        ("retraining", [("unlearn", 7, 5, 500.0, *WHOLE)]),
        # Three epochs over 3 + 3 + 2 images; six over half of 2 * 90; measured before and after.
        (
            "quickdrop",
            [("unlearn", 1, 3, 24, *WHOLE), ("recover", 2, 5, 540, *WHOLE), measured(3)],
        ),
        # Up to 30 passes over 8 images; one over 2 * 90, and 8 held down in each of two batches:
        # of that half.
        (
            "quickdrop-calibrated",
            [("unlearn", 1, 3, 240, *WHOLE), ("recover", 3, 5, 98, *WHOLE), measured(4)],
        ),
        # Ten epochs over 80 examples, measured after each of two rounds, too.
        ("sga", [("unlearn", 2, 3, 800.0, *WHOLE), TUNED, measured(13)]),
        (
            "not",
            [
                ("unlearn", 1, 0, 0.0, 0.0, 0.0),
                ("recover", 20, 5, 500.0, *WHOLE),
                measured(21),
            ],
        ),
        ("puf", [("unlearn", 1, 3, 300.0, *WHOLE), TUNED, measured(11)]),
        # Half of the steps in each of four stored rounds.
        ("federaser", [("unlearn", 4, 5, 250.0, *WHOLE)]),
        # 64 examples of each of ten clients, ten classes; the noise is drawn here.
        ("fisher", [("score", 1, 10, 6400, *WHOLE), ("unlearn", 1, 0, 0.0, 0.0, 0.0)]),
        ("rapid-retraining", [("unlearn", 7, 5, 500.0, *WHOLE), measured(8)]),
    ],
)
def test_a_class_costs_what_the_protocol_says(name: str, expected: list[Any]) -> None:
    assert brief(estimate(name)) == expected


def test_ordinary_rounds_after_a_replay_are_counted_where_they_are_asked_for() -> None:
    more = [("recover", 3, 5, 500.0, *WHOLE), measured(4)]
    assert brief(estimate("federaser", rounds="3")) == [*brief(estimate("federaser")), *more]


def test_a_hessians_diagonal_costs_three_times_the_gradient() -> None:
    work = [estimate("rapid-retraining", curvature=c)[0].work for c in ("fisher", "hessian")]
    assert work == [1.0, 3.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("retraining", [("unlearn", 7, 4, 400.0, *WHOLE)]),  # half of the nine with data left
        ("s2u", [("unlearn", 5, 10, 1000.0, *WHOLE)]),  # the one that leaves trains, too
        # The first round is added as it was kept, without asking anybody.
        (
            "federaser",
            [("unlearn", 1, 0, 0.0, 0.0, 0.0), ("unlearn", 3, 5, 250.0, *WHOLE)],
        ),
        (
            "quickdrop",
            [("unlearn", 1, 1, 24, *WHOLE), ("recover", 2, 4, 432, *WHOLE), measured(3)],
        ),
    ],
)
def test_a_client_costs_what_the_protocol_says(name: str, expected: list[Any]) -> None:
    assert brief(estimate(name, OF_CLIENT)) == expected


def test_rounds_that_may_be_added_are_named() -> None:
    climb, recover, guard = estimate("quickdrop")
    assert climb.more == MAX_ROLLBACKS
    assert recover.more == guard.more == MAX_ROLLBACKS + MAX_MORE_ROUNDS
    # A client is not forgotten at zero accuracy: nothing is rolled back.
    climb, recover, _ = estimate("quickdrop", OF_CLIENT)
    assert (climb.more, recover.more) == (0, MAX_MORE_ROUNDS)


def test_rounds_until_the_accuracy_is_back_are_at_most() -> None:
    assert {s.phase: s.early for s in estimate("sga")} == {
        "unlearn": True,
        "recover": True,
        "guard": True,
    }
    assert [s.early for s in estimate("retraining")] == [False]


def test_pruning_asks_for_scores_by_class_and_channel() -> None:
    # Two convolutions of width 8, ten classes, float64; forward over 80 + 900 examples.
    score = estimate("class-pruning")[0]
    assert (score.up, score.samples, score.work) == (16 * 10 * 8, 980.0, FORWARD)
    few = estimate("class-pruning", samples_per_class="2")[0]
    assert few.samples == 2 * 10 * 10


def test_the_channels_slices_alone_are_exchanged_after_the_first_round() -> None:
    # Of each layer one channel: (1 * 9 + 3) + (8 * 9 + 3) numbers, bias and norm included; of the
    # last one row of 8 * 2 * 2 + 1. Four bytes each.
    score, first, rest = estimate("influential-de", rounds="4")
    slices = 4 * ((9 + 3) + (72 + 3) + 33)
    assert score.up == 2 * 16 * 8
    assert (first.rounds, first.down, first.up) == (1, 1000, slices)
    assert (rest.rounds, rest.down, rest.up) == (3, slices, slices)


def test_the_coordinators_own_work_asks_nobody() -> None:
    assert [(s.clients, s.down, s.up) for s in estimate("influential-ce")] == [(0, 0.0, 0.0)] * 2


def test_the_controls_take_the_scale_of_training_or_their_own() -> None:
    for name in ("quickdrop", "quickdrop-calibrated"):
        assert brief(estimate(f"{name}-subset")) == brief(estimate(name))
    # One image for 20: ceil(30 / 20) + ceil(30 / 20) + 20 / 20 = 5, three times.
    assert estimate("quickdrop-subset", scale="20")[0].samples == 15
    assert estimate("quickdrop-calibrated-subset", scale="20")[0].samples == 150  # thirty times


def test_a_class_of_a_node_has_an_image_however_small_it_is() -> None:
    assert compact([1.0, 10.0, 11.0], 10) == 1 + 1 + 2


@pytest.mark.parametrize("name", METHODS)
def test_work_on_the_coordinators_machine_crosses_no_wire(name: str) -> None:
    for level in METHODS[name].needs.levels:
        for stretch in estimate(name, FACTS if level == "class" else OF_CLIENT):
            assert stretch.phase in ("score", "unlearn", "recover", "guard")
            assert 0 <= stretch.clients <= 10
            if not stretch.clients:
                assert stretch.down == stretch.up == 0


# ---- pace ---------------------------------------------------------------------------------------


def test_nodes_side_by_side_share_the_time_and_a_round_has_its_own() -> None:
    pace = Pace(image=0.01, beyond=0.5, at_once=2)
    # 100 images of 3 clients, two at a time, at 0.01 s * 3 each: 1.5 s, and 0.5 s a round.
    assert pace.seconds(Stretch("unlearn", 4, 3, 100.0, work=3.0), 4) == pytest.approx(8.0)
    # One client cannot share.
    assert pace.seconds(Stretch("unlearn", 1, 1, 100.0), 1) == pytest.approx(1.5)
    # Here there is no round to wait for.
    assert pace.seconds(Stretch("unlearn", 1, 0, 100.0), 1) == pytest.approx(1.0)


# Two rounds of two clients, 40 images each: 160. 12 s on the clients, of which 4 s distilling; one
# at a time they work 6 s a round, which takes 7 s (14 s without the 2 s of keeping).
COST = Cost(
    seconds=16.0,
    client_seconds=12.0,
    distill_seconds=4.0,
    keep_seconds=2.0,
    rounds=2,
    samples=160.0,
    up=4 * 5000,
    down=4 * 6000,
)


def situation(**more: Any) -> Situation:
    """Return a request to forget class 1 of two clients with ten and six examples."""
    told = {"mode": "forget", "num_clients": 2, "holdout": 0.0, "engine": "inline"}
    told |= {"forget_classes": "1", "method": "auto", "scale": 2, **more.pop("settings", {})}
    card: dict[str, Any] = {
        "training": {"train": vars(COST)},
        "erased": {"classes": [], "clients": []},
        "settings": {},
        **more.pop("card", {}),
    }
    labels = torch.tensor([0] * 6 + [1] * 4 + [0] * 6)
    known: dict[str, Any] = {
        "settings": RunSettings(**told).check(),
        "base": SimpleNamespace(id="v0001", card=card),
        "spec": ModelSpec("convnet", num_classes=2, channels=1, image_size=8, width=8, depth=2),
        "data": SimpleNamespace(train=SimpleNamespace(labels=labels)),
        "shares": (torch.arange(10), torch.arange(10, 16)),
        "kept": None,
        "check_samples": no_samples,
        "server_examples": 0,
        "trained_on": "inline",
        "trained_by": "a machine",
        "machine": "a machine",
    }
    return Situation(**{**known, **more})


def no_samples(settings: RunSettings, data: Any) -> None:
    raise BadSetting(f"server-samples must be given for {settings.method}, got none")


def test_pace_is_read_from_what_training_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    found = situation()
    pace = found.pace
    assert pace is not None
    assert pace.image == pytest.approx((12 - 4) / 160)
    assert pace.beyond == pytest.approx((14 - 12) / 2)
    # Of a message of 5000 bytes up and 6000 down, what is not the model's.
    assert pace.up == pytest.approx(5000 - found.facts.model_bytes)
    assert pace.down == pytest.approx(6000 - found.facts.model_bytes)


def test_on_a_superlink_every_node_has_a_machine_of_its_own() -> None:
    pace = situation(trained_on="superlink").pace
    assert pace is not None
    # Both clients work at once: 3 of the 7 s of a round.
    assert pace.beyond == pytest.approx(7 - 3)


def test_facts_count_what_simulated_clients_hold() -> None:
    facts = situation().facts
    assert (facts.clients, facts.holders, facts.keepers) == (2, 1, 2)
    assert (facts.goes, facts.stays) == ((4.0,), (6.0, 6.0))
    assert facts.per_round == 40.0


def test_facts_leave_out_what_is_erased() -> None:
    erased = {"classes": [0], "clients": []}
    facts = situation(card={"erased": erased}).facts
    assert (facts.goes, facts.stays) == ((4.0,), ())
    facts = situation(card={"erased": {"classes": [], "clients": ["client-0"]}}).facts
    assert (facts.goes, facts.stays, facts.holders) == ((), (6.0,), 0)


def test_facts_of_a_client_are_all_it_holds() -> None:
    facts = situation(settings={"forget_classes": "", "forget_clients": "client-0"}).facts
    assert (facts.holders, facts.keepers) == (1, 1)
    assert (facts.goes, facts.stays) == ((6.0, 4.0), (6.0,))


def test_a_tenth_is_held_out() -> None:
    facts = situation(settings={"holdout": 0.1}).facts
    assert facts.goes == pytest.approx((3.6,))
    assert facts.heldout == pytest.approx(1.6)


def test_real_clients_are_assumed_alike_and_the_plan_says_so() -> None:
    found = situation(shares=None, settings={"engine": "superlink"})
    # 40 images a round of two classes: 20 of each on both.
    assert found.facts.goes == (20.0, 20.0)
    said = " ".join(found.document("retraining")["not_known"])
    assert "taken as 2 of 2 clients, all with equally many examples" in said
    assert "seconds are those of inline" in said


# ---- the choice ---------------------------------------------------------------------------------


def test_a_method_that_is_shown_to_forget_goes_before_a_shorter_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "SHOWN", {"class": ("not",)})
    chosen = situation().choose()
    assert chosen.method == "not"
    assert chosen.seconds["fisher"] < chosen.seconds["not"]  # type: ignore[operator]
    assert RULE in chosen.why


def test_of_those_that_are_shown_to_forget_the_shortest_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for shown in (("not", "puf"), ("puf", "not")):
        monkeypatch.setattr(planning, "SHOWN", {"class": shown})
        assert situation().choose().method == "puf"  # ten rounds at most against twenty


def test_where_none_of_them_can_serve_the_shortest_of_the_others_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "SHOWN", {"class": ("federaser",)})
    chosen = situation().choose()
    assert chosen.seconds[chosen.method] == min(chosen.seconds.values())  # type: ignore[type-var]


def test_what_cannot_serve_is_named_with_its_reason() -> None:
    refused = situation(settings={"scale": 0}).choose().refused
    assert set(refused) == {
        "quickdrop",
        "quickdrop-calibrated",
        "federaser",
        "influential-ce",
        "s2u",
    }
    assert "trained with --scale 0" in refused["quickdrop"]
    assert "trained without --keep-updates" in refused["federaser"]
    assert refused["influential-ce"] == "server-samples must be given for influential-ce, got none"
    assert refused["s2u"] == "level must be client for method s2u, got class"


def test_a_compact_version_cannot_be_pruned_and_the_alternatives_are_named() -> None:
    found = situation(spec=replace(SPEC, pruned=("body.0:1",), compact=True))
    with pytest.raises(BadSetting, match=r"choose another method: quickdrop, ") as refused:
        found.check("class-pruning")
    assert str(refused.value).count("choose another method") == 1


def test_a_request_that_no_method_serves_is_refused_with_all_reasons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "METHODS", {"s2u": METHODS["s2u"]})
    with pytest.raises(BadSetting, match="none can: s2u: level must be client"):
        situation().choose()


def test_without_the_cost_of_training_images_stand_for_time() -> None:
    found = situation(card={"training": {}})
    chosen = found.choose()
    assert set(chosen.seconds.values()) == {None}
    assert " images" in chosen.why
    plan = found.document(chosen.method)
    assert plan["seconds"] is None
    assert "does not say what training cost" in plan["not_known"][0]


TABLES = {
    "class": ("quickdrop-table2-cpu", "quickdrop-table2-cifar10-cpu"),
    "client": ("quickdrop-clients-cpu", "quickdrop-table4-cpu"),
}
Models = dict[str, dict[str, float]]  # means over trainings, by model and column


def measured_means(table: str) -> Iterator[Models]:
    """Yield the means over trainings of each partition and request of a table.

    Retrained's are over those of other seeds, too.
    """
    path = ROOT / "benchmarks" / "results" / table / "results.csv"
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "done"]
    groups: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        group = groups.setdefault((row["partition"], row["level"]), {})
        group.setdefault(row["method"].partition(",")[0], []).append(row)
    for models in groups.values():
        yield {
            model: {
                column: statistics.fmean(float(row[column]) for row in found if row[column])
                for column in ("forget_accuracy", "retain_accuracy", "relearning")
                if any(row[column] for row in found)
            }
            for model, found in models.items()
        }


def gap(models: Models, name: str, column: str) -> float:
    return models[name][column] - models["Retrained"][column]


def forgets_classes(name: str, tables: list[Models]) -> bool:
    return all(
        abs(gap(models, name, "forget_accuracy")) <= 2.0
        and gap(models, name, "retain_accuracy") >= -1.5
        and gap(models, name, "relearning") <= gap(models, "Original", "relearning") / 5
        for models in tables
    )


def forgets_clients(name: str, tables: list[Models]) -> bool:
    # One client's held-out examples are 40 to 60: what counts is the mean over clients.
    far = statistics.fmean(abs(gap(models, name, "forget_accuracy")) for models in tables)
    return far <= 3.0 and all(gap(models, name, "retain_accuracy") >= -1.5 for models in tables)


@pytest.mark.parametrize("level", TABLES)
def test_what_is_preferred_is_what_the_results_show(level: str) -> None:
    tables = [models for table in TABLES[level] for models in measured_means(table)]
    measured = set.intersection(*map(set, tables)) & set(METHODS)
    forgets = {"class": forgets_classes, "client": forgets_clients}[level]
    shown = {name for name in measured if forgets(name, tables)}
    assert set(SHOWN[level]) == shown | {"retraining"}


# ---- requests -----------------------------------------------------------------------------------

JOB: dict[str, Any] = {
    "num_clients": 3,
    "partition": "iid",
    "model_width": 8,
    "model_depth": 2,
    "rounds": 2,
    "local_steps": 8,
    "batch_size": 32,
    "lr": 0.1,
    "scale": 10,
    "keep_updates": 1,
    "engine": "inline",
    "device": "cpu",
    "evaluate_every": 0,
    "max_forget_accuracy": 100.0,
    "max_relearning_gap": 100.0,
    "accept": "not-shown",
    "server_samples": "test:100",
}


class Silent:
    def __init__(self, stop: bool = False) -> None:
        self.stop, self.notes = stop, list[str]()

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        if self.stop:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


def told(home: Path, mode: str = "forget", **more: Any) -> RunSettings:
    return RunSettings(**{**JOB, "mode": mode, "home": str(home), **more}).check()


def service(home: Path) -> Service:
    ledger = Ledger.open(database_url(Home(home)))
    return Service(Home(home), ledger, Registry(Home(home), ledger))


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set and then removed, so that what a run puts there is undone as well.
    for name in ("EFFACE_HOME", "EFFACE_STORE", "EFFACE_DATA_DIR", "EFFACE_DATABASE_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("planned") / "home"
    run(told(home, "train"), Silent())
    return home


@pytest.fixture
def home(trained_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_home, tmp_path / "home"))


def prefer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(planning, "SHOWN", {"class": (name,), "client": (name,)})


@pytest.mark.parametrize("name", METHODS)
def test_a_request_costs_no_more_than_planned(
    trained_home: Path, tmp_path: Path, name: str
) -> None:
    home = Path(shutil.copytree(trained_home, tmp_path / "home"))
    level = "class" if "class" in METHODS[name].needs.levels else "client"
    target = {"forget_classes": "3"} if level == "class" else {"forget_clients": "client-1"}
    asked = told(home, method=name, trial=True, **target)
    plan = service(home).plan(asked)
    record = to_json(run(asked, Silent()))

    limits: dict[str, dict[str, float]] = {}
    for phase in plan["phases"]:
        found = limits.setdefault(
            phase["phase"], dict.fromkeys(("rounds", "up", "down", "seen"), 0)
        )
        times = phase["rounds_at_most"] / phase["rounds"]
        found["rounds"] += phase["rounds_at_most"]
        found["seen"] += times * phase["samples"]
        for way in ("up", "down"):
            found[way] += times * phase["bytes"][way]
    for phase in record["rounds"]:
        assert record["rounds"][phase] <= limits[phase]["rounds"]
        # Counts of examples are shares, rounded on every node: 5 % and some.
        assert record["samples"][phase] <= 1.05 * limits[phase]["seen"] + 30
        for way in ("up", "down"):
            assert record["bytes"][phase][way] <= 1.02 * limits[phase][way]


def test_retraining_is_planned_to_the_byte_and_the_image(home: Path) -> None:
    asked = told(home, method="retraining", forget_clients="client-1", trial=True)
    (plan,) = service(home).plan(asked)["phases"]
    record = to_json(run(asked, Silent()))
    assert record["rounds"]["unlearn"] == plan["rounds"]
    assert record["samples"]["unlearn"] == plan["samples"]
    # Settings are a few letters longer or shorter than in training.
    assert record["bytes"]["unlearn"]["down"] == pytest.approx(plan["bytes"]["down"], rel=0.02)


def contents(home: Path) -> dict[str, Any]:
    """Return the ledger's rows and the digests of all other files."""
    ledger = service(home).ledger
    files: dict[str, Any] = {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in home.rglob("*")
        if path.is_file() and not path.name.startswith("ledger.db")
    }
    return files | {"requests": ledger.requests(), "versions": ledger.versions()}


def test_a_plan_writes_nothing_down(home: Path) -> None:
    before = contents(home)
    plan = service(home).plan(told(home, method="auto", forget_classes="3"))
    assert plan["changed"] is False
    assert contents(home) == before


def test_a_plan_is_refused_as_the_request_is(home: Path) -> None:
    with pytest.raises(BadSetting, match="class must lie in"):
        service(home).plan(told(home, forget_classes="10"))
    with pytest.raises(BadSetting, match="client must be one of client-0 to client-2"):
        service(home).plan(told(home, forget_clients="client-7", method="auto"))
    run(told(home, method="fisher", forget_classes="3"), Silent())
    with pytest.raises(AlreadyDone):
        service(home).plan(told(home, method="auto", forget_classes="3"))


def test_comparing_is_planned_too(home: Path) -> None:
    plan = service(home).plan(told(home, method="fisher", forget_classes="3", compare="retrain"))
    assert [phase["phase"] for phase in plan["phases"]] == ["score", "unlearn", "retrain"]
    assert plan["seconds"] == pytest.approx(sum(p["seconds"] for p in plan["phases"][:2]))
    assert plan["retraining_seconds"] == plan["phases"][2]["seconds"]


def test_the_chosen_methods_name_is_in_the_ledger_and_the_record(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, "fisher")
    listener = Silent()
    record = to_json(run(told(home, method="auto", forget_classes="3"), listener))
    assert service(home).ledger.request("r0002").method == record["method"] == "fisher"
    assert record["chosen"]["method"] == "fisher"
    assert "s2u" in record["chosen"]["refused"]
    assert "--method fisher" in record["command"]
    assert any(note.startswith("method fisher was chosen: it takes") for note in listener.notes)
    # What was forgotten comes back the same way.
    prefer(monkeypatch, "retraining")
    back = to_json(run(told(home, "relearn", method="auto", forget_classes="3"), Silent()))
    assert (back["method"], back["chosen"]["why"]) == (
        "fisher",
        "class 3 was forgotten by it in r0002",
    )


def test_a_method_that_was_named_leaves_nothing_to_choose(home: Path) -> None:
    assert run(told(home, method="fisher", forget_classes="3"), Silent()).chosen is None


def test_a_stopped_request_goes_on_with_the_method_that_was_chosen_for_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = told(home, method="auto", forget_classes="3")
    prefer(monkeypatch, "federaser")
    with pytest.raises(KeyboardInterrupt):
        run(asked, Silent(stop=True))
    prefer(monkeypatch, "fisher")
    plan = service(home).plan(asked)
    assert (plan["takes_up"], plan["method"]) == ("r0002", "federaser")
    assert plan["chosen"]["method"] == "federaser"
    record = to_json(run(asked, Silent()))
    assert (record["request"], record["method"]) == ("r0002", "federaser")
    assert record["chosen"]["method"] == "federaser"


def test_options_are_for_a_method_that_is_named(home: Path) -> None:
    with pytest.raises(BadSetting, match="option must be for a method that is named, got method"):
        service(home).plan(told(home, method="auto", forget_classes="3", method_options="lr=0.1"))


def test_relearning_what_nobody_forgot_has_no_method(home: Path) -> None:
    with pytest.raises(BadSetting, match="relearning must name what has been forgotten"):
        run(told(home, "relearn", method="auto", forget_classes="3"), Silent())
