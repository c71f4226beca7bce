"""What lies below the last layer, measured by a request and again, on its version, afterwards."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.cli.command import USAGE

TINY = [
    *("--num-clients", "2", "--partition", "iid", "--rounds", "1", "--local-steps", "4"),
    *("--batch-size", "32", "--scale", "0", "--model-width", "8", "--model-depth", "2"),
]


def run(home: Path, *words: str) -> Any:
    return CliRunner().invoke(app, [*words, "--home", str(home), "--json"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained, class 3 forgotten and measured again (first.json); then class 4 forgotten, too."""
    home = tmp_path_factory.mktemp("features") / "home"
    assert run(home, "train", *TINY).exit_code == 0
    easy = ["--accept", "not-shown", "--max-forget-accuracy", "100", "--method", "retraining"]
    done = run(home, "forget", "--class", "3", *easy, "--compare", "retrain")
    assert done.exit_code == 0, done.output
    done = run(home, "evaluate", "v0002", "--features", "3")
    (home.parent / "first.json").write_text(done.stdout)
    done = run(home, "forget", "--class", "4", *easy)
    assert done.exit_code == 0, done.output
    return home


def record(home: Path, request: str) -> Any:
    return json.loads((home / "runs" / request / "record.json").read_text())


def test_measured_again_a_version_has_the_numbers_of_its_request(home: Path) -> None:
    found = json.loads((home.parent / "first.json").read_text())
    assert found["features"] == record(home, "r0002")["features"]
    assert found["features_from"] == "v0001"
    for name in ("original", "retrained", "result"):
        assert found["features"][name]["probe"] is not None


def test_of_a_class_forgotten_earlier_the_version_before_that_is_original(home: Path) -> None:
    found = json.loads(run(home, "evaluate", "v0003", "--features", "3").stdout)
    assert found["features_from"] == "v0001"
    kept = record(home, "r0002")["features"]["original"]
    assert found["features"]["original"]["probe"] == kept["probe"]
    # Retrained without class 3 knew class 4: it was destroyed with the request to forget that.
    assert found["features"]["retrained"] is None


def test_without_a_retrained_that_was_kept_it_says_so(home: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", "v0003", "--features", "4", "--home", str(home)])
    assert done.exit_code == 0, done.output
    assert "Original (v0002)" in done.output
    assert "no Retrained was kept" in done.output
    document = json.loads(run(home, "evaluate", "v0003", "--features", "4").stdout)
    assert document["features"]["retrained"] is None
    assert document["features"]["result"]["layers"] == []


def test_of_the_version_itself_where_it_still_has_the_class(home: Path) -> None:
    found = json.loads(run(home, "evaluate", "v0001", "--features", "5").stdout)
    assert found["features_from"] == "v0001"
    assert found["features"]["original"] == found["features"]["result"]


def test_not_asked_for_it_is_not_measured_and_an_unknown_class_is_refused(home: Path) -> None:
    found = json.loads(run(home, "evaluate", "v0001").stdout)
    assert (found["features"], found["features_from"]) == (None, None)
    assert run(home, "evaluate", "v0001", "--features", "nonsense").exit_code == USAGE
