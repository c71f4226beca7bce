"""What a request to forget made, judged again by one who was not there."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from client.app import app as of_clients
from server.cli import app
from server.cli.command import NOT_VERIFIED, STOPPED, USAGE
from server.evidence.record import Record
from server.evidence.scores import ModelScores
from server.evidence.verdict import Limits
from server.nodes.engines.inline import InlineGrid
from server.nodes.grid import ClientsMissing, NamedGrid
from server.requests import features, yardstick
from server.requests.attendance import await_clients
from server.requests.claims import claimed
from server.requests.intake import Service
from server.requests.verification import _beside, settings_of
from server.settings import RunSettings
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


def unrecorded(home: Path, *words: str, code: int) -> dict[str, Any]:
    return verify(home, *words, "--unrecorded", code=code)


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
    found = unrecorded(home, "r0002", code=0)
    assert files(home) == before
    assert (found["verification"], found["report"], found["asked_clients"]) == (None, None, False)
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
    assert unrecorded(home, "v0002", code=0) == found


def test_it_is_judged_by_the_limits_that_are_named_and_those_of_the_request_are_said(
    home: Path,
) -> None:
    found = unrecorded(home, "r0002", *EASY, code=NOT_VERIFIED)
    assert found["limits"] == {"forget_accuracy": 100.0, "relearning_gap": 100.0}
    assert any("judged by other limits: forget accuracy 5 %" in n for n in found["notes"])
    # Original's 78 % lies within 100 % as well: nothing would be shown.
    assert found["verdict"]["findings"][0]["code"] == "nothing-to-show"
    assert found["recorded"]["findings"][0]["code"] == "forget-accuracy"


def test_limits_of_one_that_is_recorded_are_no_wider_than_the_request_s_and_the_defaults(
    own: Path,
) -> None:
    for words, said in {
        ("--max-forget-accuracy", "60"): "max-forget-accuracy must be at most 5, got 60",
        ("--max-relearning-gap", "15.5"): "max-relearning-gap must be at most 15, got 15.5",
    }.items():
        found = run(own, "verify", "r0002", *words)
        assert found.exit_code == USAGE
        assert said in " ".join(found.stderr.split()), found.stderr
    kept = json.loads(run(own, "requests", "--json").stdout)["requests"]
    assert [row["id"] for row in kept] == ["r0001", "r0002"]
    narrow = ("--max-forget-accuracy", "2", "--max-relearning-gap", "10")
    found = verify(own, "r0002", *narrow, code=0)
    assert found["limits"] == {"forget_accuracy": 2.0, "relearning_gap": 10.0}
    (later,) = json.loads(run(own, "show", "r0002", "--json").stdout)["verifications"]
    assert (later["state"], later["retrainings"], later["limits"]) == ("passed", 1, "by-hand")
    # A request that asked for narrower ones is judged by these, and by no wider.
    done(own, "forget", *CLASS_3, "--compare", "retrain", "--trial", *narrow)
    found = verify(own, "r0004", code=0)
    assert found["limits"] == {"forget_accuracy": 2.0, "relearning_gap": 10.0}
    assert run(own, "verify", "r0004", "--max-forget-accuracy", "3").exit_code == USAGE
    # Wider ones of its own are none that another goes by.
    done(own, "forget", *CLASS_3, "--trial", *EASY)
    assert verify(own, "r0006", code=0)["limits"] == {
        "forget_accuracy": 5.0,
        "relearning_gap": 15.0,
    }
    assert run(own, "verify", "r0006", *EASY).exit_code == USAGE


def test_the_verdict_changes_when_more_retrained_models_have_come(own: Path) -> None:
    done(own, "forget", "--class", "3", "--method", "sga", "--trial")
    kept = record(own, "r0003")["verdict"]
    assert (kept["state"], kept["retrainings"]) == ("not-shown", None)
    # One was there already, which that request did not read.
    one = run(own, "verify", "r0003", "--unrecorded", "--json")
    first = json.loads(one.stdout)
    assert (first["verdict"]["retrainings"], first["verdict"]["false_alarms"]) == (1, None)
    done(own, "yardstick", "--class", "3", "--count", "3")
    found = verify(own, "r0003", "--by", "Auditor", code=0)
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
    assert "Sealed in the ledger as r0006." in shown
    # Each verification is on the request's page, whose record is as it was.
    assert record(own, "r0003")["verdict"] == kept
    page = (own / "reports" / "r0003.html").read_text()
    assert "Judged again" in page
    rows = [line for line in page.splitlines() if "r0005, " in line or "r0006, " in line]
    assert len(rows) == 2
    told = ("passed", "3", "by their spread", "coordinator", "Auditor")
    assert "".join(f"<td>{cell}</td>" for cell in told) in rows[0]
    later = json.loads(run(own, "show", "r0003", "--json").stdout)["verifications"]
    assert [(one["request"], one["state"], one["asked_by"]) for one in later] == [
        ("r0005", "passed", "Auditor"),
        ("r0006", "passed", ""),
    ]


def test_a_verification_is_a_sealed_request_that_leaves_the_one_it_is_about_as_it_was(
    own: Path,
) -> None:
    # In service, so that there is an order, and so a certificate.
    done(own, "forget", *CLASS_3, "--accept", "not-shown", *EASY)
    before, version = record(own, "r0003"), (own / "versions" / "v0003" / "card.json").read_bytes()
    found = verify(own, "v0003", "--by", "Auditor", "--why", "Yearly", code=0)
    mine = record(own, "r0004")
    assert (found["verification"], mine["kind"], mine["model_version"]) == ("r0004", "verify", None)
    assert (mine["asked_by"], mine["why"]) == ("Auditor", "Yearly")
    assert mine["command"] == "efface verify r0003 --engine inline"
    about = mine["verifies"]
    assert (about["request"], about["version"], about["state"]) == ("r0003", "v0003", "not-shown")
    assert (about["asked_clients"], about["notes"]) == (False, found["notes"])
    row = json.loads(run(own, "show", "r0003", "--json").stdout)["request"]
    assert (about["record_sha256"], row["state"]) == (row["record_sha256"], "done")
    assert mine["verdict"] == found["verdict"]
    assert record(own, "r0003") == before
    assert (own / "versions" / "v0003" / "card.json").read_bytes() == version
    assert "r0004 judged r0003 again: class 3 forgotten" in done(own, "show", "r0004").stdout
    text = (own / "reports" / "r0004.html").read_text()
    assert "<h1>Judged again: forget class 3</h1>" in text
    assert "r0003, finished 20" in text
    assert "Judged again since" not in text
    assert json.loads(done(own, "audit", "--json").stdout)["verified"]
    # A certificate made from now on says so, whoever reads it.
    path, key, html = str(own.parent / "c.json"), own.parent / "key", own.parent / "c.html"
    done(own, "certificate", "r0003", "-o", path, "--html", str(html))
    for page in (own / "reports" / "r0003.html", html):
        assert "Judged again since, by r0004: passed" in page.read_text()
    text = (own / "reports" / "r0003.html").read_text()
    assert text.index("Judged again since") < text.index("Verdict: ")
    key.write_text(done(own, "key").stdout)
    told = json.loads(done(own, "certificate", "verify", path, "--key", str(key), "--json").stdout)
    (one,) = told["statement"]["predicate"]["verifications"]
    assert (one["request"], one["state"], one["asked_by"]) == ("r0004", "passed", "Auditor")
    assert any(said.startswith("Judged again at 20") for said in told["says"])
    # What was changed in it by hand is found as in any record.
    document = own / "runs" / "r0004" / "record.json"
    document.write_text(document.read_text().replace("Yearly", "Nearly"))
    assert run(own, "audit").exit_code == NOT_VERIFIED
    assert run(own, "certificate", "r0003", "-o", path, "--force").exit_code == NOT_VERIFIED
    assert (
        json.loads(run(own, "show", "r0003", "--json").stdout)["verifications"][0]["state"] is None
    )


def test_what_a_client_held_is_measured_again_by_the_clients(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(own, "forget", "--client", "client-1", "--method", "sga", "--trial")
    kept = record(own, "r0003")
    done(own, "yardstick", "--client", "client-1", "--count", "3")
    # Nobody but its client can say, and its answers cost: it is written down.
    refused = run(own, "verify", "r0003", "--unrecorded")
    assert refused.exit_code == USAGE
    assert "leave --unrecorded out" in refused.stderr
    # Stopped on the way, it goes on: no client is asked twice for the same.
    asked: list[str] = []
    monkeypatch.setattr(InlineGrid, "push_messages", noting(InlineGrid.push_messages, asked))
    with monkeypatch.context() as stop:
        stop.setattr(features, "measured", stopped)
        assert run(own, "verify", "r0003").exit_code == STOPPED
    # Two clients; Original, the result, and the three retrained models.
    assert asked.count("evaluate.heldout") == 2 * 5
    asked.clear()
    found = json.loads(run(own, "verify", "r0003", "--json").stdout)
    assert (found["verification"], found["asked_clients"]) == ("r0005", True)
    assert asked == []
    for name in ("original", "recovered"):
        assert found[name]["heldout"] == kept[name]["heldout"]
        assert found[name]["forget_accuracy"] == kept[name]["forget_accuracy"]
        for what in ("membership", "client_relearning"):
            assert found[name][what] == kept[name][what] is not None
    scores = [one["scores"] for one in record(own, "r0004")["stock"]]
    assert [one["scores"]["heldout"] for one in found["stock"]] == [s["heldout"] for s in scores]
    verdict = found["verdict"]
    assert (verdict["retrainings"], verdict["false_alarms"]) == (3, 0.05)
    assert found["recorded"] == kept["verdict"]
    assert record(own, "r0005")["verifies"]["measured_by"] == ["client-0", "client-1"]
    assert not (own / "runs" / "r0005" / "journal").exists()
    page = (own / "reports" / "r0005.html").read_text()
    assert "the clients (client-0, client-1) and the coordinator" in page


def test_another_relearning_at_the_client_is_said() -> None:
    then = Record(recovered=ModelScores(membership=30.0, client_relearning=20.0))
    again = replace(then, recovered=ModelScores(membership=30.0, client_relearning=40.0))
    (line,) = _beside(then, again, RunSettings(), Limits())
    assert line == (
        "how much surer the result is of each half of the training examples when the other half "
        "was learned again is +40.0 points now, and +20.0 in the record"
    )


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [(None, 3.0, "is measured now, and was not then"), (3.0, None, "was then, and is not now")],
)
def test_a_client_relearning_of_one_side_alone_is_said(
    was: float | None, now: float | None, words: str
) -> None:
    then = Record(recovered=ModelScores(membership=30.0, client_relearning=was))
    again = replace(then, recovered=ModelScores(membership=30.0, client_relearning=now))
    (line,) = _beside(then, again, RunSettings(), Limits())
    assert line == f"client relearning {words}"


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (30.3, []),
        (
            31.0,
            ["how much surer the result is of training examples is +31.0 points now, and +30.0"],
        ),
        (None, ["was measured then, and not now: a site that has erased them looks at them no"]),
    ],
)
def test_a_membership_that_differs_or_is_not_measured_any_more_is_said(
    now: float | None, words: list[str]
) -> None:
    then = Record(original=ModelScores(membership=60.0), recovered=ModelScores(membership=30.0))
    before = None if now is None else ModelScores(membership=60.0)
    again = replace(then, original=before, recovered=ModelScores(membership=now))
    told = list(_beside(then, again, RunSettings(), Limits()))
    assert len(told) == len(words)
    assert all(text in line for text, line in zip(words, told, strict=True))


def noting(push: Any, asked: list[str]) -> Any:
    """Return what sends messages and notes what they are called."""

    def noted(grid: InlineGrid, messages: Any) -> Any:
        sent = list(messages)
        asked.extend(message.metadata.message_type for message in sent)
        return push(grid, sent)

    return noted


def stopped(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_of_clients_that_are_away_it_is_said_who_and_why_nothing_is_measured(own: Path) -> None:
    done(own, "forget", "--client", "client-1", "--method", "sga", "--trial")
    service = Service.open(Home(own))
    for request, said in {
        "r0003": "client client-1 must be online for r0003 to be judged again, got offline",
        "r0002": "r0002 is judged again by what all of them measure, or not at all",
    }.items():
        found = claimed(service.home, service.ledger, request)
        assert found.subject is not None
        settings = settings_of(found.subject, {"join-timeout": 0.01}, service.home)
        row = replace(found.row, kind="verify", settings=settings.plain())
        with InlineGrid(of_clients, 1) as nodes, pytest.raises(ClientsMissing, match=said):
            await_clients(service, row, settings, NamedGrid(nodes, 1.0))


def test_where_only_clients_have_data_they_measure_classes_as_well(tmp_path: Path) -> None:
    digits = load_digits()
    images, home = (digits.images[:400] * 15).astype(np.uint8), tmp_path / "home"
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=digits.target[:400])
    done(home, "train", *TINY, "--dataset", f"npz:{tmp_path / 'd.npz'}", "--holdout", "0.4")
    done(home, "yardstick", "--class", "3", "--count", "2")
    done(home, "forget", *CLASS_3, "--compare", "retrain", "--trial")
    kept = record(home, "r0003")
    found = json.loads(run(home, "verify", "r0003", "--json").stdout)
    assert (found["verification"], found["asked_clients"]) == ("r0004", True)
    for name in ("original", "retrained", "recovered"):
        assert found[name]["forget_accuracy"] == kept[name]["forget_accuracy"]
        assert found[name]["heldout"]["decides"]
    assert found["features"] == kept["features"]
    assert found["features"]["original"]["head_back"] is not None
    assert found["verdict"] == kept["verdict"]
    assert [one["number"] for one in found["stock"]] == [0, 1]
    shown = (home / "reports" / "r0004.html").read_text()
    assert "the clients (client-0, client-1) and the coordinator" in shown


def test_retrained_models_can_be_added_for_what_is_forgotten_but_not_for_what_was_before(
    own: Path,
) -> None:
    done(own, "forget", *CLASS_3, "--accept", "not-shown", *EASY)
    made = done(own, "yardstick", "--class", "3", "--count", "2")
    assert "class 3 was forgotten by r0003" in made.output
    found = verify(own, "r0003", code=0)
    assert [one["number"] for one in found["stock"]] == [0, 1]
    assert found["verdict"]["retrainings"] == 2
    # With class 4 forgotten, too, one without class 3 alone would know it, and none is kept.
    done(own, "forget", "--class", "4", "--method", "retraining", "--accept", "not-shown", *EASY)
    late = run(own, "yardstick", "--class", "3", "--count", "3")
    assert late.exit_code == USAGE
    assert "would know class 4, forgotten since" in " ".join(late.output.split())
    assert verify(own, "r0003", code=NOT_VERIFIED)["stock"] == []
    done(own, "yardstick", "--class", "4", "--count", "1")
    assert len(verify(own, "r0006", code=0)["stock"]) == 1


def test_without_a_retrained_model_it_says_what_is_not_measured(own: Path) -> None:
    for path in Home(own).cache.glob("retrained-*.safetensors"):
        path.unlink()
    found = verify(own, "r0002", code=NOT_VERIFIED)
    assert (found["retrained"], found["features"], found["stock"]) == (None, None, [])
    assert any("not kept any more: 0" in note for note in found["notes"])
    # That the method was retraining is what the record says: nobody who verifies has seen it.
    assert (found["verdict"]["yardstick"], found["verdict"]["state"]) == (None, "not-shown")
    assert found["recorded"]["state"] == "passed"
    # It is listed, and heads no page: the request's own had a retrained model.
    page = (own / "reports" / "r0002.html").read_text()
    assert "r0003, " in page
    assert "Judged again since" not in page


def original_as_retrained(home: Path) -> Path:
    """Put Original in the place of a retrained model, with that one's note; return the file."""
    (path,) = Home(home).cache.glob("retrained-*.safetensors")
    weights = home / "versions" / "v0001" / WEIGHTS_NAME
    arrays, _ = unpack(weights.read_bytes(), weights)
    path.write_bytes(pack(arrays, note_of(path)))
    return path


def test_a_retrained_model_that_was_put_there_is_not_read(own: Path) -> None:
    """By its limits whatever Original does would be as Retrained does it."""
    path = original_as_retrained(own)
    for words in (
        ["verify", "r0002"],
        ["yardstick", "--class", "3", "--count", "1"],
        ["forget", *CLASS_3, "--compare", "retrain", "--trial"],
        ["evaluate", "v0002", "--features", "3"],
    ):
        refused = run(own, *words)
        assert refused.exit_code == NOT_VERIFIED, words
        assert "retrained model must have the weights of the SHA-256" in refused.stderr
    found = json.loads(run(own, "audit", "--json").stdout)
    assert found["checked"]["retrained"] == 1
    assert [str(path) in one["text"] for one in found["problems"]] == [True]
    path.unlink()
    done(own, "yardstick", "--class", "3", "--count", "1")
    made = max(path.parent.name for path in Home(own).runs.glob("*/record.json"))
    assert record(own, made)["stock"][0]["sha256"] == record(own, "r0002")["stock"][0]["sha256"]
    assert run(own, "audit").exit_code == 0


def test_models_that_no_record_has_are_not_read(own: Path) -> None:
    """Whoever can write the folder adds some as like the result as need be."""
    done(own, "yardstick", "--class", "3", "--count", "3")
    before = verify(own, "r0002", "--unrecorded", code=0)["stock"]
    cache = Home(own).cache
    paths = {note_of(path)["inputs"]["training"]["seed"]: path for path in cache.iterdir()}
    first = paths[before[0]["seed"]]
    inputs = note_of(first)["inputs"]
    arrays, _ = unpack((own / "versions" / "v0001" / WEIGHTS_NAME).read_bytes(), first)
    # Under a name that is read first, and as the next of the stock.
    (cache / f"retrained-{'0' * 16}.safetensors").write_bytes(pack(arrays, note_of(first)))
    fourth = yardstick.of_number(inputs, 3)
    note = {**note_of(first), "inputs": fourth}
    yardstick.path_of(cache, fourth).write_bytes(pack(arrays, note))
    assert verify(own, "r0002", "--unrecorded", code=0)["stock"] == before
    audited = json.loads(run(own, "audit", "--json").stdout)
    assert (audited["verified"], audited["checked"]["unrecorded"]) == (True, 2)


def test_no_record_but_a_sealed_one_says_which_retrained_model_is_right(own: Path) -> None:
    path = original_as_retrained(own)
    forged = yardstick.sha256(unpack(path.read_bytes(), path)[0])
    with Ledger.of(Home(own)) as ledger:
        about = ledger.request("r0002")
        row = ledger.new_request(
            kind="yardstick",
            method="retraining",
            federation=about.federation,
            level="class",
            classes=about.classes,
        )
        ledger.abort(row.id)
    folder = own / "runs" / row.id
    folder.mkdir(exist_ok=True)
    told = {"stock": [{"file": path.name, "sha256": forged}]}
    (folder / "record.json").write_text(json.dumps(told))
    assert "retrained model must have the weights" in run(own, "verify", "r0002").stderr


def test_a_record_of_the_stock_that_is_gone_is_no_reason_to_read_what_is_there(own: Path) -> None:
    done(own, "yardstick", "--class", "3", "--count", "2")
    (own / "runs" / "r0003" / "record.json").unlink()
    for words in (["verify", "r0002"], ["forget", *CLASS_3, "--compare", "retrain", "--trial"]):
        refused = run(own, *words)
        assert refused.exit_code == NOT_VERIFIED, words
        assert "record of r0003 must be as it was when the request ended, got none" in (
            refused.stderr
        )


def test_of_an_earlier_record_it_is_said_that_a_retrained_model_is_another_now(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_as_retrained(own)
    monkeypatch.setattr("server.requests.records.stock_hashes", lambda *_: {})
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
    told = json.loads(found.stdout)
    assert told["code"] == "pruned"
    assert "got r0003, whose v0001 was pruned" in told["message"]


def test_what_cannot_be_judged_again_is_refused_with_its_reason(own: Path) -> None:
    assert run(own, "forget", "--class", "4", "--method", "sga").exit_code == NOT_VERIFIED
    for words, said in {
        "r0001": "must be one to forget, got r0001: train",
        "v0001": "must be one to forget, got v0001, made by r0001: train",
        "r0003": "a result that was kept, got r0003, which is failed",
        "r0009": "r0009",
    }.items():
        found = run(own, "verify", words)
        assert found.exit_code == USAGE, found.output
        assert said in found.stderr, found.stderr
    assert run(own, "verify", "r0002", "--max-forget-accuracy", "101").exit_code == USAGE
    away = run(own, "verify", "r0002", "--engine", "superlink")
    assert "engine must be inline or ray, which reaches the clients of r0002" in away.stderr
