"""What lies below the last layer, measured by a request and again, on its version, afterwards."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from typer.testing import CliRunner

from client.app import app as app_of_clients
from server.cli import app
from server.cli.command import USAGE
from server.evidence.features.scores import FeatureScores
from server.evidence.measures import Judge
from server.evidence.scores import ModelScores
from server.nodes.engines.inline import InlineGrid
from server.nodes.federation import Cost, GridFederation
from server.nodes.grid import NamedGrid
from server.requests.features import measured
from server.requests.yardstick import Yardstick
from server.storage.journal import Journal
from tests.messages import NUM_CLIENTS, SPEC, values, weights

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
    left = json.loads(run(home, "show", "r0003").stdout)["derived"]
    gone = [(one["kind"], one["state"]) for one in left]
    assert gone == [("version", "kept"), ("version", "kept"), ("yardstick", "destroyed")]
    assert left[-1]["name"].startswith("retrained-")


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


# ---- where the coordinator has no images --------------------------------------------------------


def test_clients_find_a_class_that_only_the_last_layer_hides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "stores"))
    known = weights()
    # Untrained, it would know nothing: every image is class 3, until that row is masked.
    loud = {name: array.numpy().copy() for name, array in known.items()}
    (bias,) = [name for name in loud if loud[name].shape == (10,)]
    loud[bias][3] = 100.0
    masked = {**loud, bias: loud[bias] * np.where(np.arange(10) == 3, -1, 1)}
    original, hidden = (
        ArrayRecord({name: Array(array.astype(np.float32)) for name, array in one.items()})
        for one in (loud, masked)
    )
    class_3 = {"forget_level": "class", "forget_classes": [3]}
    asked: list[str] = []
    with InlineGrid(app_of_clients, NUM_CLIENTS, node_config={}, workers=1) as inner:
        grid = NamedGrid(inner, 60.0)
        told = values(request="r2", holdout=0.3, **class_3)
        federation = GridFederation(grid, told, Journal(tmp_path / "j", {}))
        judge = Judge(SPEC, None, federation.forget)
        yardstick = Yardstick(ModelScores(), Cost(), cached=True, weights=known)
        sent = NamedGrid.send_and_receive

        def noted(grid: NamedGrid, messages: Any, **more: Any) -> Any:
            asked.extend(message.metadata.message_type for message in messages)
            return sent(grid, messages, **more)

        monkeypatch.setattr(NamedGrid, "send_and_receive", noted)
        found = measured(judge, federation, (SPEC, original), (SPEC, hidden), yardstick)
        assert federation.heldout(hidden, SPEC).forget.accuracy([3]) == 0.0
        assert found is not None
        assert (found.original, found.result) == (FeatureScores(100.0), FeatureScores(100.0))
        assert found.retrained == FeatureScores(100.0)  # its other rows are no match for it
        assert set(asked) == {"evaluate.heldout"}
        # Under noise each answer costs: none is asked for.
        federation.common["noise_multiplier"] = 1.0
        asked.clear()
        assert measured(judge, federation, (SPEC, original), (SPEC, hidden), yardstick) is None
        assert asked == []


def test_what_only_a_client_held_is_measured_as_a_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "stores"))
    known = weights()
    loud = {name: array.numpy().copy() for name, array in known.items()}
    (bias,) = [name for name in loud if loud[name].shape == (10,)]
    loud[bias][0] = 100.0  # every image is class 0, which client-0 alone holds
    masked = {**loud, bias: loud[bias] * np.where(np.arange(10) == 0, -1, 1)}
    original, hidden = (
        ArrayRecord({name: Array(array.astype(np.float32)) for name, array in one.items()})
        for one in (loud, masked)
    )
    client = {"forget_level": "client", "forget_clients": ["client-0"]}
    with InlineGrid(app_of_clients, 10, node_config={}, workers=1) as inner:
        grid = NamedGrid(inner, 60.0)
        shares = {"num_clients": 10, "partition": "one-class"}
        told = values(request="r2", holdout=0.3, **shares, **client)
        federation = GridFederation(grid, told, Journal(tmp_path / "j", {}))
        assert federation.classes_alone() == (0,)
        judge = Judge(SPEC, None, federation.forget, alone=federation.classes_alone())
        yardstick = Yardstick(ModelScores(), Cost(), cached=True, weights=known)
        found = measured(judge, federation, (SPEC, original), (SPEC, hidden), yardstick)
        # Accuracy on what it holds out says that it is forgotten; the features say otherwise.
        assert judge.full(hidden, federation).forget_accuracy == 0.0
        assert found is not None
        assert found.result == FeatureScores(100.0)
        assert judge.full(original, federation).membership is not None
        shared = values(request="r3", holdout=0.3, num_clients=10, **client)
        other = GridFederation(grid, shared, Journal(tmp_path / "k", {}))
        assert other.classes_alone() == ()
        assert Judge(SPEC, None, other.forget).of_classes is None
