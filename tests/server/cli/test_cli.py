"""The command line on real components: a tiny federation on digits, in this process."""

import errno
import gzip
import hashlib
import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import safetensors.numpy
import torch
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

import server.runner
from client.data import datasets
from client.files import room_for
from client.store import Store, SyntheticSet
from server.cli import app
from server.cli.command import FAILED, NOT_VERIFIED, STOPPED, USAGE
from server.cli.options import OF_COMMAND
from server.evidence.costs import SpeedUp
from server.evidence.record import Record, Storage
from server.nodes.federation import Cost, Round
from server.report import display
from server.requests import planning
from server.storage.home import Home
from server.storage.ledger import Ledger, database_url
from server.storage.registry import pack, unpack
from strategies.method import Needs
from strategies.methods.quickdrop import QuickDrop
from strategies.table import METHODS
from tests.seals import as_if_unsealed

ROOT = Path(__file__).parents[3]
TINY = [
    *("--num-clients", "3", "--partition", "iid", "--rounds", "2", "--local-steps", "8"),
    *("--batch-size", "32", "--scale", "10", "--distill-every", "4", "--lr", "0.1"),
    *("--model-width", "8", "--model-depth", "2"),
]
ACCEPT = ("--accept", "not-shown")  # no comparison with retraining where none is tested
WEIGHTS = Path("versions") / "v0001" / "model.safetensors"


class Efface:
    """The command on one home."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *words: str) -> Any:
        return CliRunner().invoke(app, [*words, "--home", str(self.home)])

    def json(self, *words: str) -> Any:
        """Return the document that a command prints; it must succeed."""
        done = self(*words, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def version_states(self) -> list[str]:
        return [version["state"] for version in self.json("models")["versions"]]

    def request_states(self) -> list[str]:
        return [request["state"] for request in self.json("requests")["requests"]]

    def kept(self) -> dict[str, Any]:
        """Return all that must not get lost: versions, requests, weights and stores."""
        files = [*(self.home / "versions").rglob("*"), *(self.home / "clients").rglob("*")]
        return {
            "versions": self.json("models"),
            "requests": self.json("requests"),
            "files": {
                str(path): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in files
                if path.is_file()
            },
        }

    def node_store(self) -> Path:
        """Return the folder of one simulated node's store."""
        return next((self.home / "clients").rglob("client-0"))


def run(*words: str, answer: str = "") -> Any:
    """Run a command that needs no home."""
    return CliRunner().invoke(app, [*words], input=answer)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set and then removed, so that what a run puts there is undone as well.
    for name in (
        "FLWR_HOME",
        "EFFACE_HOME",
        "EFFACE_STORE",
        "EFFACE_DATA_DIR",
        "EFFACE_DATABASE_URL",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained") / "home"
    Efface(home).json("train", *TINY)
    return home


@pytest.fixture(scope="session")
def forgotten_home(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("forgotten") / "home"
    shutil.copytree(trained_home, home)
    asked = ("--by", "A. Person", "--why", "asked on paper")
    Efface(home).json("forget", "--class", "9", *ACCEPT, *asked)
    return home


@pytest.fixture
def trained(trained_home: Path, tmp_path: Path) -> Efface:
    """A home of its own with version v0001."""
    shutil.copytree(trained_home, tmp_path / "home")
    return Efface(tmp_path / "home")


@pytest.fixture
def forgotten(forgotten_home: Path, tmp_path: Path) -> Efface:
    """A home of its own in which v0002 has forgotten class 9."""
    shutil.copytree(forgotten_home, tmp_path / "home")
    return Efface(tmp_path / "home")


@pytest.fixture
def empty(tmp_path: Path) -> Efface:
    return Efface(tmp_path / "home")


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Press Ctrl-C when a phase's round is reported."""

    def arm(phase: str, number: int) -> None:
        def stop(self: display.PlainLines, done: Round, scores: Any) -> None:
            if (done.phase, done.number) == (phase, number):
                raise KeyboardInterrupt

        monkeypatch.setattr(display.PlainLines, "round", stop)

    return arm


# ---- what works ---------------------------------------------------------------------------------


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    heavy = {"torch", "flwr", "ray", "sqlalchemy", "matplotlib", "numpy", "prometheus_client"}
    code = f"import sys, server.cli; print(sorted({heavy} & set(sys.modules)))"

    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert found.stdout.strip() == "[]"


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").stdout == f"efface {metadata.version('efface')}\n"


def test_the_shells_completion_knows_commands_and_options() -> None:
    def completed(line: str) -> list[str]:
        words = {"_EFFACE_COMPLETE": "complete_bash", "COMP_WORDS": line}
        told = os.environ | words | {"COMP_CWORD": str(len(line.split()) - 1)}
        command = [sys.executable, "-c", "from server.cli import main; main()"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=told)
        return done.stdout.split()

    assert "--install-completion" in run("--help").stdout
    assert completed("efface fo") == ["forget", "forgotten"]
    assert "--dry-run" in completed("efface forget --dr")


def test_a_run_prints_one_document_with_the_promised_keys(trained: Efface) -> None:
    done = trained("forget", "--class", "9", "--compare", "retrain", "--json")

    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    models = {"original", "retrained", "unlearned", "recovered", "relearned"}
    others = {"seconds", "bytes", "report", "engine", "seed", "model_version"}
    assert set(record) >= models | others
    assert record["changed"] is True
    assert set(record["seconds"]) == {"unlearn", "recover", "retrain"}
    assert set(record["bytes"]["recover"]) == {"up", "down"}
    assert record["original"]["retain_accuracy"] > 30  # it had learnt something: chance is 10
    assert record["recovered"]["forget_accuracy"] <= 5
    assert Path(record["report"]).is_file()
    assert "unlearn 1/1" in done.stderr  # words go to standard error


def test_a_person_sees_tables_and_the_path_of_the_report(trained: Efface) -> None:
    done = trained("forget", "--class", "9", "--compare", "retrain")

    assert done.exit_code == 0, done.output
    first_words = [line.split()[0] for line in done.stdout.splitlines() if line]
    start = first_words.index("Original")
    assert first_words[start : start + 4] == ["Original", "Retrained", "Unlearned", "Recovered"]
    assert "retraining" in done.stdout
    assert f"Report: {trained.home}/reports/r0002.html" in done.stdout


def test_the_demonstration_returns_all_five_models(empty: Efface) -> None:
    record = empty.json("demo", *TINY, "--class", "3")

    for key in ("original", "retrained", "unlearned", "recovered", "relearned"):
        assert {"forget_accuracy", "retain_accuracy"} <= set(record[key])
    phases = {"train", "retrain", "unlearn", "recover", "relearn"}
    assert set(record["seconds"]) == phases
    assert set(record["bytes"]) >= phases
    assert record["forget"]["classes"] == [3]
    assert Path(record["report"]).is_file()


def test_a_demonstration_goes_on_with_a_stopped_one_of_its_own_settings_and_class_only(
    empty: Efface, stop_at: Callable[[str, int], None]
) -> None:
    def demo(phase: str, *words: str) -> list[tuple[str, str]]:
        stop_at(phase, 1)
        assert empty("demo", *TINY, *words).exit_code == STOPPED
        return [(r["kind"], r["state"]) for r in empty.json("requests")["requests"]]

    one = demo("unlearn", "--class", "3")
    assert one == [("train", "done"), ("forget", "interrupted")]
    assert demo("recover", "--class", "3") == one  # r0002 again
    two = demo("train", "--class", "3", "--seed", "1")
    assert two == [*one, ("train", "interrupted")]
    assert demo("train", "--class", "4") == [*two, ("train", "interrupted")]


def test_a_request_after_a_demonstration_means_the_federation_that_is_not_one(
    trained: Efface,
) -> None:
    trained.json("demo", *TINY, "--class", "3")

    assert trained.json("forget", "--class", "9", "--trial")["base_version"] == "v0001"


def test_a_request_takes_no_option_that_its_version_has_settled(trained: Efface) -> None:
    from server.settings import TRAINING

    assert TRAINING & {o.key for o in [*OF_COMMAND["forget"], *OF_COMMAND["relearn"]]} == {
        "clients",
        "secure-aggregation",  # may be asked for on top of how the version was trained
    }
    done = trained("forget", "--class", "9", "--seed", "1")

    assert done.exit_code == USAGE
    assert "No such option" in done.stderr


def test_own_data_is_found_from_another_folder(
    empty: Efface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = datasets.load("digits")
    parts = {}
    for name, split in (("train", digits.train), ("test", digits.test)):
        parts[f"{name}_images"] = split.inputs.permute(0, 2, 3, 1).numpy()
        parts[f"{name}_labels"] = split.labels.numpy()
    np.savez(tmp_path / "own.npz", **parts)
    monkeypatch.chdir(tmp_path)
    empty.json("train", *TINY, "--dataset", "npz:own.npz", "--rounds", "1")
    monkeypatch.chdir("/")

    assert empty.json("evaluate")["dataset"] == f"npz:{tmp_path / 'own.npz'}"


def test_relearning_brings_a_forgotten_class_back_into_service(forgotten: Efface) -> None:
    record = forgotten.json("relearn", "--class", "9")

    assert record["relearned"]["forget_accuracy"] is not None
    assert forgotten.version_states() == ["superseded", "superseded", "in-service"]
    assert forgotten.json("models")["versions"][-1]["card"]["erased"]["classes"] == []


def test_a_client_is_forgotten_by_name(trained: Efface) -> None:
    record = trained.json("forget", "--client", "client-1", *ACCEPT)

    assert record["forget"] == {"level": "client", "classes": [], "clients": ["client-1"]}
    assert trained.json("models")["versions"][-1]["card"]["erased"]["clients"] == ["client-1"]


def test_a_trial_leaves_the_version_in_service(trained: Efface) -> None:
    trained.json("forget", "--class", "9", "--trial", "--set", "recover-rounds=1")

    assert trained.version_states() == ["in-service", "trial"]


def test_requests_and_show_say_who_asked_and_why(forgotten: Efface) -> None:
    listed, shown = forgotten("requests").stdout, forgotten("show", "r0002").stdout

    assert "class 9" in listed
    assert "A. Person" in listed
    assert "asked on paper" in shown
    assert "Recovered" in shown
    document = forgotten.json("show", "r0002")
    assert document["request"]["asked_by"] == "A. Person"
    assert document["record"]["request"] == "r0002"


def test_show_gives_a_versions_lineage_from_itself_to_the_root(forgotten: Efface) -> None:
    document = forgotten.json("show", "v0002")

    steps = [(step["version"], step["kind"]) for step in document["lineage"]]
    assert steps == [("v0002", "forget"), ("v0001", "train")]
    assert "class 9" in forgotten("show", "v0002").stdout


def test_lists_before_there_is_a_home_are_empty_say_how_to_start_and_make_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert run("requests").stdout == "No request yet. Start with: efface train\n"
    assert run("models").stdout == "No version yet. Start with: efface train\n"
    assert json.loads(run("requests", "--json").stdout)["requests"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_no_request_is_in_is_said_as_such(trained: Efface) -> None:
    assert trained("requests", "--state", "aborted").stdout == "No aborted request.\n"


def test_a_demonstration_of_a_class_that_is_not_there_is_refused_before_training(
    empty: Efface,
) -> None:
    done = empty("demo", *TINY, "--class", "77")

    assert done.exit_code == USAGE
    assert "class must lie in [0, 10), got 77" in done.stderr
    assert empty.json("requests")["requests"] == []


def test_a_disk_that_fills_up_interrupts_a_request_that_then_goes_on(
    trained: Efface, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, *, durable_name: bool = True) -> None:
        with room_for(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("server.storage.journal.write_atomic", full)
        done = trained("forget", "--class", "9", "--accept", "not-shown", "--json")

    assert done.exit_code == FAILED
    assert json.loads(done.stdout)["code"] == "disk-full"
    assert "got none left (No space left on device)" in done.stderr
    [_, request] = trained.json("requests")["requests"]
    assert (request["state"], request["reason_code"]) == ("interrupted", "disk-full")
    assert (
        trained.json("forget", "--class", "9", "--accept", "not-shown")["request"] == request["id"]
    )


def test_a_report_is_written_again_from_the_record(forgotten: Efface, tmp_path: Path) -> None:
    document = forgotten.json("report", "v0002", "--output", str(tmp_path / "again.html"))

    assert document["request"] == "r0002"
    assert Path(document["report"]).read_text().lstrip().lower().startswith("<!doctype html>")


def test_a_report_that_a_stop_left_unwritten_is_written_from_the_pending_record(
    forgotten: Efface,
) -> None:
    folder, page = forgotten.home / "runs" / "r0002", forgotten.home / "reports" / "r0002.html"
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.pending.json").write_text(json.dumps(record | {"model_version": None}))
    (folder / "record.json").unlink()
    page.unlink()

    assert forgotten.json("show", "r0002")["record"]["model_version"] == "v0002"
    forgotten.json("report", "r0002")

    assert page.is_file()
    assert json.loads((folder / "record.json").read_text()) == record
    assert not (folder / "record.pending.json").exists()


def test_methods_are_listed_with_their_options() -> None:
    found = {one["name"]: one for one in json.loads(run("methods", "--json").stdout)["methods"]}

    assert set(found) == set(METHODS)
    assert found["quickdrop"]["options"]["unlearn-lr"] == 0.02
    assert found["quickdrop"]["levels"] == ["class", "client"]


def test_methods_are_shown_a_line_each_and_one_with_its_options() -> None:
    shown = run("methods").stdout.splitlines()
    assert [line.split()[0] for line in shown[1 : 1 + len(METHODS)]] == list(METHODS)
    said = [line.rstrip().rpartition("  ")[2] for line in shown[1 : 1 + len(METHODS)]]
    assert all(text.endswith(".") for text in said)  # how it forgets
    assert not any("unlearn-lr" in line for line in shown)
    assert any("unlearn-lr" in line for line in run("methods", "quickdrop").stdout.splitlines())


def show_in_columns(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "server.cli.command.console_for", lambda stream: Console(file=stream, width=width)
    )


def test_every_method_is_a_line_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    show_in_columns(80, monkeypatch)

    shown = run("methods").stdout.splitlines()[1 : 1 + len(METHODS)]

    assert [line.split()[0] for line in shown] == list(METHODS)
    assert all(line.rstrip().endswith(".") for line in shown)


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("name", METHODS)
def test_names_of_options_stay_whole(
    monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    show_in_columns(width, monkeypatch)

    shown = run("methods", name).stdout.splitlines()

    assert all(len(line) <= width for line in shown)
    known = [[f.name.replace("_", "-"), str(f.default)] for f in fields(METHODS[name])]
    first = [line.split()[:2] for line in shown if re.match("  [a-z]", line)]
    assert first == known


def test_methods_say_what_they_need_and_what_an_option_must_be() -> None:
    found = {one["name"]: one for one in json.loads(run("methods", "--json").stdout)["methods"]}

    assert [name for name, one in found.items() if one["history"]] == ["federaser"]
    assert [name for name, one in found.items() if one["server_data"]] == ["influential-ce"]
    refused = {name for name, one in found.items() if not one["secure_aggregation"]}
    assert refused == {"federaser", "fedosd", "s2u"}
    assert found["s2u"]["rules"] == {
        "down": "lie in [0, 1]",
        "up": "be at least 1",
        "rounds": "be at least 1",
    }
    assert found["quickdrop-calibrated-subset"]["shown_to_forget"] == ["class", "client"]
    # On all of CIFAR-10 it leaves more of a class below the last layer than the rule allows.
    assert found["quickdrop-calibrated"]["shown_to_forget"] == ["client"]
    assert found["s2u"]["meanings"]["up"] == "factor on the others' updates"
    for key in ("rules", "meanings"):
        assert all(set(one[key]) == set(one["options"]) for one in found.values())


def test_one_method_is_listed_alone() -> None:
    shown = run("methods", "s2u").stdout.splitlines()

    assert shown[1].split() == ["s2u", "client", "–", "yes", "no", "yes"]
    (said,) = [line for line in shown if line.split()[:1] == ["up"]]
    assert said.partition("1.5")[2].strip() == "factor on the others' updates; must be at least 1"
    assert not any("quickdrop" in line for line in shown)


def test_a_dry_run_shows_the_plan_and_changes_nothing(trained: Efface) -> None:
    before = trained.kept()

    done = trained("forget", "--class", "9", "--method", "quickdrop", "--dry-run")

    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert "v0001 would forget class 9 by quickdrop; nothing was written down" in done.stdout
    # One round of ascent, six more after rollbacks; two of recovery, twelve more; of 3 clients.
    assert [line[:5] for line in lines if line[:1] in (["Unlearn"], ["Recover"])] == [
        ["Unlearn", "1", "to", "7", "3"],
        ["Recover", "2", "to", "14", "3"],
    ]
    assert "not known: how many rounds are rolled back" in done.stdout
    assert trained.kept() == before


def test_a_dry_run_of_what_is_forgotten_already_says_so(forgotten: Efface) -> None:
    document = forgotten.json("forget", "--class", "9", "--dry-run")

    assert document["changed"] is False
    assert "has forgotten class 9 already" in document["message"]


def test_the_method_is_chosen_and_the_reason_shown(
    trained: Efface, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "KNOWN_TO_FORGET", {"class": ("fisher",)})

    done = trained("forget", "-c", "9", "--method", "auto", "--max-forget-accuracy", "100",
                   "--max-relearning-gap", "100", *ACCEPT)  # fmt: skip

    assert done.exit_code == 0, done.output
    assert "method fisher was chosen: it takes about" in done.stderr
    assert "Method: fisher, for it takes about" in done.stdout
    assert trained.json("requests")["requests"][1]["method"] == "fisher"


def test_evaluate_measures_each_class_and_relearning(forgotten: Efface) -> None:
    document = forgotten.json("evaluate", "v0002", "--relearning", "9")

    assert document["per_class_accuracy"][9] <= 5
    assert document["relearning_curve"]["steps"] == [5, 10, 15, 20, 25, 30]
    assert "forgotten" in forgotten("evaluate").stdout


def test_metrics_are_served_while_a_command_runs(
    trained: Efface, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.nodes.metrics import Metrics, MetricsServer

    serve, servers, pages = Metrics.serve, [], []

    def remember(self: Metrics, port: int) -> MetricsServer:
        servers.append(serve(self, port))
        return servers[-1]

    def look(self: display.PlainLines, done: Round, scores: Any) -> None:
        with urlopen(f"http://127.0.0.1:{servers[0].port}/metrics", timeout=5) as page:
            pages.append(page.read().decode())

    monkeypatch.setattr(Metrics, "serve", remember)
    monkeypatch.setattr(display.PlainLines, "round", look)

    done = trained("forget", "--class", "9", "--metrics-port", "0", "--json", *ACCEPT)

    assert done.exit_code == 0, done.output
    assert 'efface_requests{state="running"} 1.0' in pages[0]
    assert 'efface_rounds_total{phase="unlearn"} 1.0' in pages[-1]
    with pytest.raises(OSError, match="refused"):  # and gone afterwards
        urlopen(f"http://127.0.0.1:{servers[0].port}/metrics", timeout=5)


def test_the_progress_bars_show_round_and_accuracy() -> None:
    out = StringIO()

    with display.watching(Console(file=out, force_terminal=True, width=120)) as bars:
        scores = {"forget_accuracy": 1.25, "retain_accuracy": 95.0}
        bars.round(Round("recover", 1, 2, Cost(seconds=1.0), 0.5, 3), scores)
        bars.note("a word")

    for text in ("recover", "1/2", "retain 95.0 %", "a word"):
        assert text in out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_shows_how_long_the_updates_are_and_whose_sticks_out(terminal: bool) -> None:
    out = StringIO()
    norms = {"client-0": 0.5, "client-1": 0.4, "client-2": 6.0}

    with display.watching(Console(file=out, force_terminal=terminal, width=120)) as shown:
        shown.round(Round("train", 1, 2, Cost(seconds=1.0), 0.5, 3, norms=norms), None)

    said = Text.from_ansi(out.getvalue()).plain
    assert "client-2's update in train 1 is 13.3 times as long as the others'" in said
    assert terminal or "updates 0.4 to 6 long" in said


@pytest.mark.parametrize(
    ("factor", "words"),
    [(40.0, "40.0 times shorter than retraining"), (0.5, "took 2.0 times as long as retraining")],
)
def test_the_speed_up_is_said_in_words_either_way(factor: float, words: str) -> None:
    assert words in display.speed_up_line(Record(speed_up=SpeedUp(request=factor)))


@pytest.mark.parametrize(
    ("method", "overhead", "words"),
    [
        ("quickdrop", 3.0, "distillation"),
        ("federaser", 3.0, "keeping updates"),
        ("quickdrop", 0.0, None),  # nothing was paid beforehand: the figures say the same thrice
        ("retraining", 0.0, None),
    ],
)
def test_the_overhead_is_named_by_what_the_method_needs(
    method: str, overhead: float, words: str | None
) -> None:
    speed = SpeedUp(9.0, {"1": 0.9, "10": 4.8}, overhead)
    line = display.speed_up_line(Record(method=method, speed_up=speed))
    extra = f" Speed-up with {words} counted: 0.9 over 1, 4.8 over 10 requests."
    assert line == f"The request was 9.0 times shorter than retraining.{extra if words else ''}"


@pytest.mark.parametrize(
    ("kind", "method", "shown"),
    [
        ("train", "fedavg", ["Stored updates: 2.2 MB"]),
        ("forget", "federaser", ["Stored updates before the request: 2.2 MB"]),
        ("forget", "quickdrop", []),  # it does not use them, and they are destroyed with it
        ("demo", "quickdrop-calibrated", []),
    ],
)
def test_stored_updates_are_shown_of_trainings_and_of_requests_that_use_them(
    kind: str, method: str, shown: list[str]
) -> None:
    record = Record(kind=kind, method=method, storage=Storage(updates=2_200_000))
    lines = [text for text in display.result(record) if str(text).startswith("Stored updates")]
    assert lines == shown


# ---- a site's store and data --------------------------------------------------------------------


def test_a_store_is_listed_and_verified(forgotten: Efface) -> None:
    folder = str(forgotten.node_store())

    listed = json.loads(run("store", "ls", folder, "--json").stdout)
    verified = run("store", "verify", folder)

    assert next(iter(listed["tombstones"].values()))["classes"] == [9]
    assert listed["generations"]
    assert (verified.exit_code, verified.stdout.strip()) == (0, f"{folder}: all is well")


@pytest.mark.parametrize("data", [[], ["--data", "digits"]])
def test_the_contact_sheet_is_readable_by_its_owner_alone(
    forgotten: Efface, data: list[str]
) -> None:
    folder = str(forgotten.node_store())

    done = run("store", "report", folder, *data, "--json")

    assert done.exit_code == 0, done.output
    path = Path(json.loads(done.stdout)["report"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert "data:image/png" in path.read_text()
    assert run("store", "verify", folder).exit_code == 0


def test_the_page_of_a_store_of_table_rows_counts_them(tmp_path: Path) -> None:
    held = SyntheticSet(torch.zeros(3, 13), torch.tensor([0, 0, 1]))
    Store(tmp_path / "store").save("r0001", 1, held, model="any")

    done = run("store", "report", str(tmp_path / "store"), "--json")

    assert done.exit_code == 0, done.output
    html = Path(json.loads(done.stdout)["report"]).read_text()
    assert "They are no images of 1 or 3 channels, and are not shown." in html
    refused = run("store", "report", str(tmp_path / "store"), "--data", "digits")
    assert "dataset must be named for a store of images" in refused.stderr


def test_a_damaged_store_is_reported_with_exit_code_3(forgotten: Efface) -> None:
    damaged = next(forgotten.node_store().rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-10])

    done = run("store", "verify", str(forgotten.node_store()), "--json")

    assert done.exit_code == NOT_VERIFIED
    assert any(damaged.name in line for line in json.loads(done.stdout)["problems"])


def test_destroying_asks_first_and_destroys_only_what_was_named(forgotten: Efface) -> None:
    folder = str(forgotten.node_store())

    def counts() -> list[dict[str, int]]:
        listed = json.loads(run("store", "ls", folder, "--json").stdout)
        return [generation["images_by_class"] for generation in listed["generations"]]

    before = counts()
    refused = run("store", "destroy", folder, answer="n\n")
    tried = run("store", "destroy", folder, "--dry-run")
    silent = run("store", "destroy", folder, "--json")
    assert (refused.exit_code, tried.exit_code, silent.exit_code) == (FAILED, 0, USAGE)
    assert counts() == before

    done = run("store", "destroy", folder, "--class", "1", "--yes")
    assert done.exit_code == 0, done.output
    assert counts() == [{c: n for c, n in one.items() if c != "1"} for one in before]
    assert "r0002" in run("store", "ls", folder).stdout  # tombstones stay


def test_a_damaged_store_can_be_destroyed_as_a_whole(forgotten: Efface) -> None:
    folder = forgotten.node_store()
    damaged = next(folder.rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-10])

    one_class = run("store", "destroy", str(folder), "--class", "1", "--yes")
    tried = run("store", "destroy", str(folder), "--dry-run", "--json")
    assert (one_class.exit_code, tried.exit_code) == (FAILED, 0)
    assert json.loads(tried.stdout)["would_destroy"] is None
    assert damaged.exists()

    done = run("store", "destroy", str(folder), "--yes")

    assert done.exit_code == 0, done.output
    assert not list(folder.rglob("*.safetensors"))


def test_a_folder_of_several_stores_is_refused(forgotten: Efface) -> None:
    before = forgotten.kept()

    done = run("store", "destroy", str(forgotten.home / "clients"), "--yes")

    assert done.exit_code == USAGE
    assert "store must be one node's folder" in done.stderr
    assert "client-0" in done.stderr
    assert forgotten.kept() == before


def test_a_store_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    done = run("store", "ls", str(tmp_path / "none"))

    assert done.exit_code == FAILED
    assert "which does not exist" in done.stderr


def test_data_files_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.gz").write_bytes(gzip.compress(b"content"))

    done = run("data", "unpack", str(tmp_path / "packed"), str(tmp_path / "out"), "--json")

    assert json.loads(done.stdout)["files"] == [str(tmp_path / "out" / "a")]
    assert (tmp_path / "out" / "a").read_bytes() == b"content"


def test_data_sets_are_listed_with_what_can_be_read_here() -> None:
    found = {
        one["name"]: one for one in json.loads(run("data", "list", "--json").stdout)["datasets"]
    }

    assert found["digits"]["ready"] is True
    assert found["mnist"]["ready"] is False


# ---- bad input: a clear error before work starts, nothing lost ----------------------------------

REFUSED = {
    "unknown method": (
        ["forget", "-c", "1", "--method", "magic"],
        ", got 'magic'\nTry: efface methods",
    ),
    "unknown method option": (
        ["forget", "-c", "1", "--set", "magic=1"],
        "option must be one of unlearn-lr,",
    ),
    "options without a method": (
        ["forget", "-c", "1", "--method", "auto", "--set", "rounds=1"],
        "option must be for a method that is named, got method auto with 'rounds=1'",
    ),
    "dry run of an unknown class": (
        ["forget", "-c", "10", "--method", "auto", "--dry-run"],
        "class must lie in [0, 10), got 10",
    ),
    "dry run of a method that cannot serve": (
        ["forget", "-c", "1", "--method", "federaser", "--dry-run"],
        "it was trained without --keep-updates; train again with --keep-updates 2, or choose",
    ),
    "unknown method to list": (["methods", "magic"], "method must be one of quickdrop,"),
    "method option of the wrong kind": (
        ["forget", "-c", "1", "--set", "recover-rounds=many"],
        "recover-rounds must be a whole number, got 'many'",
    ),
    "method option without a value": (
        ["forget", "-c", "1", "--set", "recover-rounds"],
        "method-options must be name=value,name=value, got 'recover-rounds'",
    ),
    "class out of range": (
        ["forget", "--class", "10"],
        "class must lie in [0, 10), got 10\nTry: efface forget --help",
    ),
    "negative class": (["forget", "--class", "-1"], "class must be a number from 0 up, got '-1'"),
    "nothing named": (
        ["forget"],
        "request must name classes or clients, got nothing; try --class 9 or --client client-0",
    ),
    "class and client at once": (
        ["forget", "-c", "1", "--client", "client-0"],
        "request must name classes or clients, got both",
    ),
    "unknown client": (
        ["forget", "--client", "hospital-x"],
        "client must be one of client-0 to client-2, got 'hospital-x'",
    ),
    "unknown version": (
        ["forget", "-c", "1", "--version", "v0009"],
        "version must be one of v0001, got 'v0009'. Did you mean v0001?\nTry: efface models",
    ),
    "relearning what was never forgotten": (
        ["relearn", "-c", "1"],
        "relearning must name what version v0001 has forgotten, got class 1",
    ),
    "unknown comparison": (
        ["forget", "-c", "1", "--compare", "magic"],
        "compare must be one of none, retrain, got 'magic'",
    ),
    "unknown engine": (
        ["forget", "-c", "1", "--engine", "magic"],
        "engine must be one of inline, ray, superlink, got 'magic'",
    ),
    "percent out of range": (
        ["forget", "-c", "1", "--max-forget-accuracy", "101"],
        "max-forget-accuracy must lie in [0, 100], got 101.0",
    ),
    "metrics port out of range": (
        ["forget", "-c", "1", "--metrics-port", "70000"],
        "metrics-port must be 0 (any free port) to 65535, got 70000",
    ),
    "unknown data set": (
        ["train", "--dataset", "imagenet"],
        "dataset must be one of digits, mnist, fashion-mnist, cifar10, cifar100, svhn, npz:PATH, "
        "folder:PATH or none, got 'imagenet'\nTry: efface data list",
    ),
    "unknown model": (["train", "--model", "magic"], "model must be one of convnet, lenet,"),
    "unknown partition": (["train", "--partition", "magic"], "partition must be one of"),
    "alpha out of range": (
        ["train", "--partition", "dirichlet:0"],
        "alpha of dirichlet must be a positive number, got '0'",
    ),
    "fraction out of range": (
        ["train", "--fraction", "1.5"],
        "fraction must lie in (0, 1], got 1.5\nTry: efface train --help",
    ),
    "fraction of zero": (["train", "--fraction", "0"], "fraction must lie in (0, 1], got 0.0"),
    "held-out share out of range": (
        ["train", "--holdout", "0.9"],
        "holdout must lie in [0, 0.5], got 0.9",
    ),
    "distillation's share out of range": (
        ["train", "--distill-fraction", "-0.1"],
        "distill-fraction must lie in [0, 1], got -0.1",
    ),
    "learning rate not finite": (["train", "--lr", "nan"], "lr must be finite, got nan"),
    "no clients": (["train", "--num-clients", "0"], "num-clients must be at least 1, got 0"),
    "no data to share": (
        ["train", "--dataset", "none", "--model-classes", "10"],
        "dataset must be one that simulated clients can share on engine inline, got none",
    ),
    "fewer images than clients": (
        ["train", "--max-samples", "9"],
        "num-clients must leave at least 2 samples a client, got 10 clients for 9 samples",
    ),
    "more images than there are": (
        ["train", "--max-samples", "100000"],
        "max-samples must be at most 1442, got 100000",
    ),
    "more classes than clients": (
        ["train", "--partition", "one-class", "--num-clients", "3"],
        "num-clients must be at least the number of classes for partition 'one-class', got 3",
    ),
    "partition without ids": (
        ["train", "--partition", "natural"],
        "partition 'natural' must have a column of ids",
    ),
    "unknown device": (
        ["train", "--device", "gpu"],
        "device must be auto, cpu or cuda, got 'gpu'",
    ),
    "unknown connection": (
        ["train", "--engine", "superlink", "--connection", "nope"],
        "connection must be",
    ),
    "no data folder": (
        ["train", "--dataset", "mnist"],
        "data-dir must name a folder for data set 'mnist', got none",
    ),
    "unknown request": (["show", "r0009"], "request must be one of r0001, got 'r0009'"),
    "neither request nor version": (["show", "x1"], "id must be of a request (r0002)"),
    "unknown state": (["requests", "--state", "lost"], "state must be one of received, running,"),
    "class to relearn out of range": (
        ["evaluate", "--relearning", "10"],
        "class must lie in [0, 10), got 10",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_and_nothing_is_lost(trained_home: Path, name: str) -> None:
    words, message = REFUSED[name]
    efface = Efface(trained_home)
    before = efface.kept()

    done = efface(*words)

    assert done.exit_code == USAGE
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert done.stdout == ""
    assert efface.kept() == before


@pytest.mark.parametrize("words", [["train"], ["forget", "--class", "9"]])
def test_a_device_that_this_machine_lacks_is_refused_before_work_starts(
    trained: Efface, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    done = trained(*words, "--device", "cuda")

    assert done.exit_code == USAGE
    assert "device must be one that torch finds here, got 'cuda'" in done.stderr
    assert trained.request_states() == ["done"]


def test_a_word_that_is_no_number_is_wrong_usage(trained_home: Path) -> None:
    done = Efface(trained_home)("forget", "--class", "nine")

    assert done.exit_code == USAGE
    assert "class must be a number from 0 up, got 'nine'" in done.stderr


def test_an_error_is_a_document_too(trained_home: Path) -> None:
    done = Efface(trained_home)("forget", "--class", "10", "--json")

    assert json.loads(done.stdout) == {
        "format": 1,
        "error": "BadSetting",
        "code": "bad-setting",
        "message": "class must lie in [0, 10), got 10",
        "remedy": None,
        "exit_code": USAGE,
    }


def test_debug_shows_the_traceback(trained_home: Path) -> None:
    done = Efface(trained_home)("forget", "--class", "10", "--debug")

    assert done.exit_code == USAGE
    assert "Traceback" in done.stderr


def test_forgetting_before_training_names_the_command_to_start_with(empty: Efface) -> None:
    done = empty("forget", "--class", "9")

    assert done.exit_code == USAGE
    assert "Train one first: efface train" in done.stderr


def test_what_is_forgotten_already_is_said_and_changes_nothing(forgotten: Efface) -> None:
    before = forgotten.kept()

    said = forgotten("forget", "--class", "9")
    document = forgotten.json("forget", "--class", "9")

    assert said.exit_code == 0
    assert "version v0002 has forgotten class 9 already (r0002)" in said.stdout
    assert document["changed"] is False
    assert forgotten.kept() == before


def test_a_version_no_longer_in_service_is_refused_without_trial(forgotten: Efface) -> None:
    before = forgotten.kept()

    done = forgotten("forget", "--class", "1", "--version", "v0001")

    assert done.exit_code == USAGE
    assert "version must be the one in service (v0002), got v0001" in done.stderr
    assert forgotten.kept() == before


def test_a_method_that_does_not_serve_the_level_names_those_that_do(
    trained: Efface, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ClassOnly(QuickDrop):
        needs = Needs(levels=frozenset({"class"}))

    monkeypatch.setitem(METHODS, "class-only", ClassOnly)
    before = trained.kept()

    done = trained("forget", "--client", "client-0", "--method", "class-only")

    assert done.exit_code == USAGE
    assert "level client is served by quickdrop, quickdrop-calibrated" in done.stderr
    assert trained.kept() == before


def test_a_truncated_weights_file_is_named_and_the_version_stays(trained: Efface) -> None:
    path = trained.home / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])

    done = trained("forget", "--class", "9")

    assert done.exit_code == FAILED
    assert f"in {path}" in done.stderr
    assert "truncated or altered. Restore it from a backup" in done.stderr
    assert trained.version_states() == ["in-service"]


@pytest.mark.parametrize("words", [["forget", "--class", "9"], ["evaluate", "v0001"]])
def test_weights_full_of_nan_are_refused(trained: Efface, words: list[str]) -> None:
    path = trained.home / WEIGHTS
    arrays, note = unpack(path.read_bytes(), path)
    name = next(iter(arrays))
    arrays[name] = np.full_like(arrays[name], math.nan)
    path.write_bytes(pack(arrays, note))
    # The ledger's checksum and its seal would refuse it first: somebody made all agree.
    as_if_unsealed(trained.home)
    with sqlite3.connect(trained.home / "ledger.db") as database:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        database.execute("UPDATE versions SET sha256 = ?", (digest,))

    done = trained(*words)

    assert done.exit_code == FAILED
    assert "weights must be finite, got" in done.stderr
    assert str(path) in done.stderr
    assert trained.version_states() == ["in-service"]


def test_a_missing_data_file_is_named_with_the_place_it_belongs_to(
    empty: Efface, tmp_path: Path
) -> None:
    done = empty("train", "--dataset", "mnist", "--data-dir", str(tmp_path))

    assert done.exit_code == FAILED
    assert str(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte") in done.stderr
    assert "efface data unpack SRC" in done.stderr
    assert empty.request_states() == []


def test_a_file_of_own_data_that_is_missing_is_named(empty: Efface, tmp_path: Path) -> None:
    done = empty("train", "--dataset", f"npz:{tmp_path / 'none.npz'}")

    assert done.exit_code == FAILED
    assert str(tmp_path / "none.npz") in done.stderr
    assert empty.request_states() == []


def test_own_data_of_the_wrong_shape_is_refused(empty: Efface, tmp_path: Path) -> None:
    parts = {
        f"{part}_{kind}": array
        for part in ("train", "test")
        for kind, array in (
            ("images", np.zeros((4, 8, 9), dtype=np.uint8)),  # not square
            ("labels", np.zeros(4, dtype=np.int64)),
        )
    }
    np.savez(tmp_path / "odd.npz", **parts)

    done = empty("train", "--dataset", f"npz:{tmp_path / 'odd.npz'}")

    assert done.exit_code == FAILED
    assert str(tmp_path / "odd.npz") in done.stderr
    assert "must" in done.stderr
    assert "8x9" in done.stderr or "(4, 8, 9)" in done.stderr
    assert empty.request_states() == []


def test_a_store_of_another_model_fails_the_request_and_the_old_version_stays(
    trained: Efface,
) -> None:
    for folder in (trained.home / "clients").glob("*/*"):
        store = Store(folder)
        for kept in {g.lineage: g for g in store.generations()}.values():
            found = store.load(kept.lineage, model=kept.model)
            assert found is not None
            store.save(kept.lineage, kept.number, found, model="another model")

    done = trained("forget", "--class", "9")

    assert done.exit_code == FAILED
    assert "must belong to the model" in done.stderr
    assert "got another model" in done.stderr
    assert "Traceback" not in done.stderr
    assert trained.version_states() == ["in-service"]
    assert trained.request_states() == ["done", "failed"]


def test_a_second_process_on_the_same_home_is_refused_while_the_first_works(
    trained: Efface, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.runner, "LOCK_SECONDS", 0.1)
    before = trained.kept()
    code = (
        "import sys, time; from server.storage.home import Home\n"
        "with Home(sys.argv[1]).lock(): print('held', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(trained.home)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        done = trained("forget", "--class", "9")
    finally:
        first.kill()
        first.communicate()

    assert done.exit_code == FAILED
    assert "home must be held by one process at a time" in done.stderr
    assert f"process {first.pid}" in done.stderr
    assert trained.kept() == before


@pytest.mark.parametrize("phase", ["unlearn", "recover", "retrain"])
def test_ctrl_c_keeps_the_version_and_the_same_command_goes_on(
    trained: Efface,
    stop_at: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
) -> None:
    words = ["forget", "--class", "9", "--compare", "retrain"]
    stop_at(phase, 1)
    stopped = trained(*words, "--json")
    monkeypatch.undo()

    assert stopped.exit_code == STOPPED
    assert "The same command again goes on where it was" in stopped.stderr
    assert json.loads(stopped.stdout)["error"] == "Interrupted"
    assert trained.version_states() == ["in-service"]
    assert trained.request_states() == ["done", "interrupted"]

    again = trained.json(*words)
    assert (again["request"], again["model_version"]) == ("r0002", "v0002")


def test_ctrl_c_while_relearning_keeps_the_version(
    forgotten: Efface, stop_at: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at("relearn", 1)
    stopped = forgotten("relearn", "--class", "9")
    monkeypatch.undo()

    assert stopped.exit_code == STOPPED
    assert forgotten.version_states() == ["superseded", "in-service"]
    assert forgotten.json("relearn", "--class", "9")["request"] == "r0003"


def test_training_stopped_and_resumed_gives_the_weights_of_one_that_was_not(
    empty: Efface,
    trained_home: Path,
    stop_at: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_at("train", 1)
    assert empty("train", *TINY).exit_code == STOPPED
    monkeypatch.undo()

    empty.json("train", *TINY)

    resumed = safetensors.numpy.load((empty.home / WEIGHTS).read_bytes())
    whole = safetensors.numpy.load((trained_home / WEIGHTS).read_bytes())
    assert set(resumed) == set(whole)
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)


def test_an_interrupted_request_can_be_given_up(
    trained: Efface, stop_at: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at("unlearn", 1)
    assert trained("forget", "--class", "9").exit_code == STOPPED
    monkeypatch.undo()

    done = trained("requests", "--abort", "r0002")

    assert done.exit_code == 0, done.output
    assert "version v0001 stays as it was" in done.stdout
    assert trained.request_states() == ["done", "aborted"]


def test_a_request_that_never_began_can_be_given_up(trained: Efface) -> None:
    with Ledger.open(database_url(Home(trained.home))) as ledger:
        ledger.new_request(kind="train", method="fedavg", federation="digits")

    assert trained("requests", "--abort", "r0002").exit_code == 0
    assert trained.request_states() == ["done", "aborted"]


def test_a_done_request_cannot_be_given_up(forgotten: Efface) -> None:
    before = forgotten.kept()

    done = forgotten("requests", "--abort", "r0002")

    assert done.exit_code == FAILED
    assert "r0002 which is done" in done.stderr
    assert forgotten.kept() == before


def test_a_result_of_which_too_little_was_measured_is_listed_as_not_shown(trained: Efface) -> None:
    # Accuracy holds, whatever it is, but nothing was compared with retraining.
    done = trained("forget", "--class", "0", "--max-forget-accuracy", "100", "--json")

    assert done.exit_code == NOT_VERIFIED
    assert json.loads(done.stdout)["code"] == "not-shown"
    listed, shown = trained("requests").stdout, trained("show", "r0002").stdout
    assert "r0002 forget class 0 not shown" in " ".join(listed.split())
    assert "not shown: verification shows neither success nor failure" in shown
    for state in ("failed", "not-shown"):
        (row,) = trained.json("requests", "--state", state)["requests"]
        assert row["reason_code"] == "not-shown"


def test_a_result_that_did_not_forget_has_exit_code_3_and_no_version(trained: Efface) -> None:
    # Far too small a step: the class is still known, and recovery may not roll back.
    options = ("unlearn-lr=1e-9", "unlearn-epochs=1", "recover-epochs=1", "threshold=100")
    words = [word for option in options for word in ("--set", option)]

    done = trained("forget", "--class", "0", "--method", "quickdrop", *words, "--json")

    assert done.exit_code == NOT_VERIFIED
    told = json.loads(done.stdout)
    assert told["error"] == "VerificationFailed"
    assert told["remedy"].startswith("try --method retraining or another, or have this one unlearn")
    assert f"; {told['remedy']}" in done.stderr
    assert trained.json("show", "r0002")["record"]["verdict"]["remedy"] == told["remedy"]
    assert told["remedy"] in " ".join(trained("show", "r0002").stdout.split())
    assert "What next" in (trained.home / "reports" / "r0002.html").read_text()
    assert "Version v0001 stays in service" in done.stderr
    assert trained.version_states() == ["in-service"]
    assert trained.request_states() == ["done", "failed"]
    assert (trained.home / "reports" / "r0002.html").is_file()


def test_a_result_that_creeps_back_has_exit_code_3_and_a_report(trained: Efface) -> None:
    # The guard rolls recovery back and gives up: no step is large enough to forget.
    options = ("unlearn-lr=1e-9", "unlearn-epochs=1", "recover-epochs=1")
    words = [word for option in options for word in ("--set", option)]

    done = trained("forget", "--class", "0", "--method", "quickdrop", *words, "--json")

    assert done.exit_code == NOT_VERIFIED
    assert "recovery brought the forget set back" in done.stderr
    assert "Version v0001 stays in service" in done.stderr
    assert trained.request_states() == ["done", "failed"]
    assert (trained.home / "reports" / "r0002.html").is_file()
    record = trained.json("show", "r0002")["record"]
    assert (record["verdict"]["state"], record["refused"]) == ("failed", True)


def test_what_is_not_shown_has_exit_code_3_and_both_remedies(trained: Efface) -> None:
    done = trained("forget", "--class", "9", "--json")

    assert done.exit_code == NOT_VERIFIED
    assert "try --compare retrain or --accept not-shown" in done.stderr
    assert json.loads(done.stdout)["remedy"] == "try --compare retrain or --accept not-shown"
    assert trained.version_states() == ["in-service"]
    assert trained.json("show", "r0002")["record"]["verdict"]["state"] == "not-shown"
    assert trained("forget", "--class", "9", *ACCEPT).exit_code == 0
    assert trained.version_states() == ["superseded", "in-service"]


def test_a_record_that_cannot_be_read_is_named(forgotten: Efface) -> None:
    path = forgotten.home / "runs" / "r0002" / "record.json"
    path.write_text("{")

    done = forgotten("report", "r0002")

    assert done.exit_code == NOT_VERIFIED
    assert str(path) in done.stderr
