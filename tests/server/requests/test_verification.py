"""What a request to forget made, judged again by one who was not there."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.cli.command import NOT_VERIFIED, USAGE
from server.storage.home import Home
from server.storage.ledger import Ledger
from server.storage.registry import WEIGHTS_NAME, Registry, note_of, pack, unpack

TINY = [
    *("--num-clients", "2", "--partition", "iid", "--rounds", "4", "--local-steps", "16"),
    *("--batch-size", "32", "--scale", "0", "--model-width", "8", "--model-depth", "2"),
    *("--lr", "0.05"),
]
CLASS_3 = ("--class", "3", "--method", "retraining")
EASY = ("--max-forget-accuracy", "100", "--max-relearning-gap", "100")


def run(home: Path, *words: str) -> Any:
    return CliRunner().invoke(app, [*words, "--home", str(home)])


def done(home: Path, *words: str) -> Any:
    found = run(home, *words)
    assert found.exit_code == 0, found.output
    return found


def verify(home: Path, *words: str, code: int) -> dict[str, Any]:
    found = run(home, "verify", *words, "--json")
    assert found.exit_code == code, found.output[-500:]
    document: dict[str, Any] = json.loads(found.stdout)
    return document


def record(home: Path, request: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "runs" / request / "record.json").read_text())
    return found


def files(home: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a home but SQLite's own beside the ledger."""
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


@pytest.fixture(scope="module", autouse=True)
def _surroundings() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("EFFACE_HOME", "EFFACE_STORE", "EFFACE_DATA_DIR", "EFFACE_DATABASE_URL"):
            patch.setenv(name, "")
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained; class 3 forgotten as a trial beside one retrained model (r0002, v0002)."""
    home = tmp_path_factory.mktemp("verify") / "home"
    done(home, "train", *TINY)
    done(home, "forget", *CLASS_3, "--compare", "retrain", "--trial")
    return home


@pytest.fixture
def own(home: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be changed."""
    return Path(shutil.copytree(home, tmp_path / "home"))


def test_measured_again_all_numbers_are_those_of_the_record_and_nothing_is_written(
    home: Path,
) -> None:
    before = files(home)
    found = verify(home, "r0002", code=0)
    assert files(home) == before
    kept = record(home, "r0002")
    for name in ("original", "retrained", "recovered"):
        for what in ("forget_accuracy", "retain_accuracy", "per_class_accuracy", "loss"):
            assert found[name][what] == kept[name][what]
        assert found[name]["relearning_curve"] == kept[name]["relearning_curve"]
    assert found["features"] == kept["features"]
    assert [one["features"] for one in found["stock"]] == [one["features"] for one in kept["stock"]]
    # The same measures and the same limits: the same verdict, finding by finding.
    assert found["verdict"] == found["recorded"] == kept["verdict"]
    assert (found["request"], found["base_version"], found["version"]) == (
        "r0002",
        "v0001",
        "v0002",
    )
    assert (found["problems"], found["notes"]) == ([], [])
    assert (found["passed"], found["verdict"]["state"]) == (True, "passed")
    assert verify(home, "v0002", code=0) == found


def test_it_is_judged_by_the_limits_that_are_named_and_those_of_the_request_are_said(
    home: Path,
) -> None:
    found = verify(home, "r0002", *EASY, code=NOT_VERIFIED)
    assert found["limits"] == {"forget_accuracy": 100.0, "relearning_gap": 100.0}
    assert any("judged by other limits: forget accuracy 5 %" in n for n in found["notes"])
    # Original's 78 % lies within 100 % as well: nothing would be shown.
    assert found["verdict"]["findings"][0]["code"] == "nothing-to-show"
    assert found["recorded"]["findings"][0]["code"] == "forget-accuracy"


def test_the_verdict_changes_when_more_retrained_models_have_come(own: Path) -> None:
    done(own, "forget", "--class", "3", "--method", "sga", "--trial")
    kept = record(own, "r0003")["verdict"]
    assert (kept["state"], kept["retrainings"]) == ("not-shown", None)
    # One was there already, which that request did not read.
    one = run(own, "verify", "r0003", "--json")
    first = json.loads(one.stdout)
    assert (first["verdict"]["retrainings"], first["verdict"]["false_alarms"]) == (1, None)
    done(own, "yardstick", "--class", "3", "--count", "3")
    found = verify(own, "r0003", code=0)
    assert found["recorded"] == first["recorded"] == kept
    assert (found["verdict"]["retrainings"], found["verdict"]["false_alarms"]) == (3, 0.05)
    assert (found["verdict"]["state"], found["verdict"]["missing"]) == ("passed", [])
    assert [one["number"] for one in found["stock"]] == [0, 1, 2]
    # What the yardstick's own record has of each, with its clients there.
    for mine, theirs in zip(found["stock"], record(own, "r0004")["stock"], strict=True):
        assert (mine["seed"], mine["features"]) == (theirs["seed"], theirs["features"])
        curve = theirs["scores"]["relearning_curve"]
        assert mine["scores"]["relearning_curve"] == curve
    shown = run(own, "verify", "r0003").stdout
    assert "limits by the spread of 3 retrained models" in shown
    assert "In the record" in shown


def test_without_a_retrained_model_it_says_what_is_not_measured(own: Path) -> None:
    for path in Home(own).cache.glob("retrained-*.safetensors"):
        path.unlink()
    found = verify(own, "r0002", code=0)
    assert (found["retrained"], found["features"], found["stock"]) == (None, None, [])
    assert any("not kept any more: 0" in note for note in found["notes"])
    # The method is retraining, so that it is its own yardstick.
    assert found["verdict"]["yardstick"] == "itself"


def test_a_retrained_model_that_is_another_now_is_said(own: Path) -> None:
    (path,) = Home(own).cache.glob("retrained-*.safetensors")
    # Original in its place, with the note of a retrained model.
    weights = own / "versions" / "v0001" / WEIGHTS_NAME
    arrays, _ = unpack(weights.read_bytes(), weights)
    path.write_bytes(pack(arrays, note_of(path)))
    found = verify(own, "r0002", code=NOT_VERIFIED)
    assert any("of Retrained 0 is" in note for note in found["notes"])


def test_an_edited_record_is_found_and_nothing_is_judged(own: Path) -> None:
    path = own / "runs" / "r0002" / "record.json"
    document = json.loads(path.read_text())
    document["verdict"]["state"] = "failed"
    path.write_text(json.dumps(document))
    found = verify(own, "r0002", code=NOT_VERIFIED)
    assert (found["passed"], found["verdict"], found["recorded"]) == (False, None, None)
    (problem,) = found["problems"]
    assert problem["request"] == "r0002"
    assert "as it was when the request ended" in problem["text"]
    assert "r0002 is not judged" in run(own, "verify", "r0002").stdout


@pytest.mark.parametrize("version", ["v0001", "v0002"])
def test_altered_weights_are_found(own: Path, version: str) -> None:
    path = own / "versions" / version / WEIGHTS_NAME
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    found = verify(own, "r0002", code=NOT_VERIFIED)
    assert [problem["version"] for problem in found["problems"]] == [version]
    assert found["verdict"] is None


def test_a_version_whose_weights_are_pruned_is_refused(own: Path) -> None:
    # The result in service, so that the version before it can be pruned.
    done(own, "forget", *CLASS_3, "--accept", "not-shown", *EASY, "--compare", "retrain")
    opened = Home(own)
    with Ledger.of(opened) as ledger:
        Registry(opened, ledger).prune(ledger.version("v0001"))
    found = run(own, "verify", "r0003", "--json")
    assert found.exit_code == USAGE
    assert "weights still, got v0001, pruned" in json.loads(found.stdout)["message"]


def test_what_cannot_be_judged_again_is_refused_with_its_reason(own: Path) -> None:
    done(own, "forget", "--client", "client-1", "--method", "retraining", "--trial")
    assert run(own, "forget", "--class", "4", "--method", "sga").exit_code == NOT_VERIFIED
    for words, said in {
        "r0001": "must be one to forget, got r0001: train",
        "v0001": "must be one to forget, got v0001, made by r0001: train",
        "r0003": "measured at the clients",
        "r0004": "a result that was kept, got r0004, which is failed",
        "r0009": "r0009",
    }.items():
        found = run(own, "verify", words)
        assert found.exit_code == USAGE, found.output
        assert said in found.stderr, found.stderr
    assert run(own, "verify", "r0002", "--max-forget-accuracy", "101").exit_code == USAGE
