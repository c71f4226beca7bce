"""A stock of retrained models on digits: trained, stopped, gone on with, and read by a request."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import efface
from server.cli import app
from server.evidence.record import from_json, to_json
from server.nodes.federation import Round
from server.report.stock import stock_table
from server.requests.yardstick import seed_of
from server.runner import run
from server.settings import RunSettings
from server.storage.home import Home
from server.storage.ledger import Ledger
from server.storage.registry import note_of, unpack

TINY: dict[str, Any] = {
    "num_clients": 2,
    "partition": "iid",
    "rounds": 2,
    "local_steps": 4,
    "batch_size": 32,
    "scale": 0,
    "model_width": 8,
    "engine": "inline",
    "device": "cpu",
}
EASY: dict[str, Any] = {"method": "retraining", "accept": "not-shown", "compare": "retrain"}


class Watching:
    """Remembers retraining's rounds; presses Ctrl-C at one of them."""

    def __init__(self, stop_at: int = 0) -> None:
        self.stop_at, self.rounds = stop_at, list[int]()

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        if done.phase != "retrain":
            return
        if len(self.rounds) + 1 == self.stop_at:
            raise KeyboardInterrupt
        self.rounds.append(done.number)

    def note(self, text: str) -> None:
        """Hear it."""


def ask(home: Path, mode: str, listener: Watching | None = None, **more: Any) -> dict[str, Any]:
    told = RunSettings(**{"mode": mode, "home": str(home), **TINY, **more}).check()
    return to_json(run(told, listener or Watching()))


def files(home: Path) -> dict[int, Path]:
    """Return the kept models by their seeds."""
    found = Home(home).cache.glob("retrained-*.safetensors")
    return {note_of(path)["inputs"]["training"]["seed"]: path for path in found}


def weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return dict(unpack(path.read_bytes(), path)[0])


pytestmark = pytest.mark.usefixtures("shared_surroundings")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("stock") / "home"
    ask(home, "train")
    return home


@pytest.fixture(scope="module")
def stopped(trained: Path) -> tuple[Path, dict[str, Any], Watching]:
    """A stock of three that was stopped in its second model's second round, and gone on with."""
    home = trained.with_name("stopped")
    shutil.copytree(trained, home)
    asked = {"forget_classes": "3", "count": 3}
    with pytest.raises(KeyboardInterrupt):
        ask(home, "yardstick", Watching(stop_at=4), **asked)
    assert list(files(home)) == [0]
    second = Watching()
    return home, ask(home, "yardstick", second, **asked), second


def test_a_stopped_stock_trains_nothing_twice(
    stopped: tuple[Path, dict[str, Any], Watching],
) -> None:
    home, _, second = stopped
    # Round 1 of the second model was kept, and the third is trained whole.
    assert second.rounds == [2, 1, 2]
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        rows = [(row.kind, row.state, row.result_version) for row in ledger.requests()]
        assert ledger.erased(ledger.requests()[0].federation).classes == ()
    assert rows == [("train", "done", "v0001"), ("yardstick", "done", None)]
    assert not list((home / "runs" / "r0002").glob("retrain*"))
    assert set(files(home)) == {seed_of(0, number) for number in range(3)}
    assert len({note_of(path)["inputs"]["code"] for path in files(home).values()}) == 1


def test_its_record_has_the_scores_of_each_and_no_verdict(
    stopped: tuple[Path, dict[str, Any], Watching],
) -> None:
    home, record, _ = stopped
    assert record["verdict"] is None
    assert [one["number"] for one in record["stock"]] == [0, 1, 2]
    assert [one["seed"] for one in record["stock"]] == [seed_of(0, n) for n in range(3)]
    for one in record["stock"]:
        assert one["scores"]["forget_accuracy"] is not None
        assert one["scores"]["relearning_curve"]["mean"] is not None
        assert one["features"]["probe"] is not None
    assert record["command"].startswith("efface yardstick --class 3 --count 3")
    assert "--method" not in record["command"]  # yardstick has no such option
    page = (home / "reports" / "r0002.html").read_text()
    assert "3 models were retrained from scratch without class 3" in page
    assert "Of one model, Retrained 0." in page
    # Of a result there is nothing to say.
    for absent in ("What this evidence", "Speed-up was not", "own curve was not", "not measured;"):
        assert absent not in page
    table = stock_table(from_json(record))
    assert table is not None
    assert sum(spanned for _, spanned in table.groups) == len(table.headings) == 9


def test_number_0_is_what_a_request_trains_itself_bit_for_bit(
    trained: Path, stopped: tuple[Path, dict[str, Any], Watching]
) -> None:
    home = trained.with_name("alone")
    shutil.copytree(trained, home)
    record = ask(home, "forget", forget_classes="3", **EASY)
    (own,) = files(home).values()
    other = files(stopped[0])[0]
    assert own.name == other.name
    for name, array in weights(own).items():
        np.testing.assert_array_equal(array, weights(other)[name])
    assert record["retrained"] is not None
    assert [one["number"] for one in record["stock"]] == [0]
    assert record["verdict"]["retrainings"] == 1
    assert "the limits were set by hand" in record["verdict"]["reasons"][-1]


def test_a_request_reads_the_whole_stock_and_trains_nothing(
    stopped: tuple[Path, dict[str, Any], Watching],
) -> None:
    home = stopped[0].with_name("read")
    shutil.copytree(stopped[0], home)
    watching = Watching()
    record = ask(home, "forget", watching, forget_classes="3", **EASY)
    assert record["retrain_cached"] is True
    assert [one["number"] for one in record["stock"]] == [0, 1, 2]
    assert record["stock"][1:] == stopped[1]["stock"][1:]
    verdict = record["verdict"]
    assert (verdict["retrainings"], verdict["false_alarms"]) == (3, 0.05)
    codes = [f["code"] for f in verdict["findings"] if f["spread"] is not None]
    assert codes == [
        *("forget-accuracy", "relearning-curve", "head-back", "blank-head"),
        *("class-means", "probe", "matched-head", "turned-head"),
    ]
    page = (home / "reports" / f"{record['request']}.html").read_text()
    assert "3 models were retrained from scratch without the forget set" in page
    # Of what is forgotten by now they are those of the version before, for a verification.
    again = CliRunner().invoke(app, ["yardstick", "--class", "3", "--home", str(home), "--json"])
    found = json.loads(again.stdout)
    assert (found["base_version"], found["retrain_cached"]) == ("v0001", True)
    assert any(f"forgotten by {record['request']}" in said for said in found["warnings"])
    # Nor from a version that knows it: of the two ways out a stock has one.
    words = ["yardstick", "--class", "4", "--version", "v0001", "--home", str(home)]
    old = " ".join(CliRunner().invoke(app, words).output.split())
    assert "leave --version out" in old
    assert "--trial" not in old


def test_the_command_trains_what_is_missing_alone(
    stopped: tuple[Path, dict[str, Any], Watching],
) -> None:
    home = stopped[0].with_name("command")
    shutil.copytree(stopped[0], home)
    words = ["yardstick", "--class", "3", "--count", "4", "--home", str(home)]
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "4 models would be retrained without class 3; nothing was written down" in dry.output
    assert [line.split()[:2] for line in dry.output.splitlines()].count(["Retrain", "2"]) == 4
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "r0003 retrained 4 models without class 3; none serves" in done.output
    assert done.output.count("was found in the cache") == 3
    assert set(files(home)) == {seed_of(0, number) for number in range(4)}
    # From Python all are found: nothing is trained again.
    made = {path: path.stat().st_mtime_ns for path in files(home).values()}
    federation = efface.Federation.inline("digits", num_clients=2, partition="iid", home=home)
    found = federation.version("v0001").yardstick(class_=3, count=4)
    assert (found.id, found.kind) == ("r0004", "yardstick")
    assert (found.version, found.verdict) == (None, None)
    assert [one.number for one in found.record.stock] == [0, 1, 2, 3]
    assert {path: path.stat().st_mtime_ns for path in files(home).values()} == made


def test_of_a_client_a_stock_can_be_trained_as_well(trained: Path) -> None:
    home = trained.with_name("client")
    shutil.copytree(trained, home)
    record = ask(home, "yardstick", forget_clients="client-1", count=3)
    assert [one["features"] for one in record["stock"]] == [None] * 3
    for name in ("forget_accuracy", "membership", "client_relearning"):
        assert all(one["scores"][name] is not None for one in record["stock"])
    # Its classes are the other's, too.
    assert [one["scores"]["relearning_curve"] for one in record["stock"]] == [None] * 3
    table = stock_table(from_json(record))
    assert table is not None
    assert table.headings == ["forget", "retain", "membership", "client relearning"]

    judged = ask(home, "forget", forget_clients="client-1", **EASY)
    by_spread = [f for f in judged["verdict"]["findings"] if f["spread"] is not None]
    # What three models say of relearning is shown, and decides nothing.
    assert [f["code"] for f in by_spread] == ["forget-accuracy", "membership"]
    assert all(f["value"] is not None and f["original"] is not None for f in by_spread)
