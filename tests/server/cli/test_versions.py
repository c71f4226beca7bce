"""Export, predict and prune on versions that the command line made, and giving requests up."""

import csv
import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from client.channels.compact import Spread
from client.channels.layout import layout, to_text
from client.data import datasets
from client.learning.models import ModelSpec, compact, shaped
from server.cli import app
from server.cli.command import FAILED, NOT_VERIFIED, USAGE
from server.requests import exporting, weights
from server.storage.home import Home
from server.storage.ledger import Ledger
from tests.seals import as_if_unsealed

TINY = [
    *("--num-clients", "3", "--partition", "iid", "--rounds", "2", "--local-steps", "8"),
    *("--batch-size", "32", "--scale", "0", "--lr", "0.1"),
    *("--model-width", "8", "--model-depth", "2"),
]
EASY = ["--accept", "not-shown", "--max-forget-accuracy", "100"]
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in exporting.ONNX_PACKAGES),
    reason="the extra onnx is not installed",
)


# v0001 and v0002 know what was forgotten since.
ALLOWED = ["--allow-forgotten", "r0002", "--allow-forgotten", "r0003"]


class Efface:
    """The command on one home; versions may know what was forgotten."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *words: str, allowed: bool = True) -> Any:
        more = ALLOWED if allowed and words[0] in ("export", "predict") else []
        return CliRunner().invoke(app, [*words, *more, "--home", str(self.home)])

    def json(self, *words: str) -> Any:
        done = self(*words, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


pytestmark = pytest.mark.usefixtures("shared_surroundings")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v0001 trained, v0002 forgot class 9 by pruning channels, v0003 class 8."""
    home = tmp_path_factory.mktemp("shared") / "home"
    efface = Efface(home)
    efface.json("train", *TINY)
    efface.json("forget", "--class", "9", "--method", "class-pruning", *EASY)
    efface.json("forget", "--class", "8", "--method", "retraining", *EASY)
    return home


@pytest.fixture
def efface(shared: Path, tmp_path: Path) -> Efface:
    return Efface(Path(shutil.copytree(shared, tmp_path / "home")))


def inputs() -> torch.Tensor:
    data = datasets.load("digits")
    return datasets.normalise(data.test.inputs, data.mean, data.std)


def outputs(home: Path, version: str) -> torch.Tensor:
    opened = Home(home, reading=True)
    ledger = Ledger.look(opened)
    with torch.no_grad():
        return weights.network(opened, ledger, ledger.version(version))(inputs())


# ---- export -------------------------------------------------------------------------------------


def test_a_safetensors_file_holds_the_model_and_says_what_it_needs(
    efface: Efface, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"

    found = efface.json("export", "v0002", "-o", str(path))

    assert path.stat().st_mode & 0o777 == 0o600
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["bytes"] == path.stat().st_size
    assert (found["input_shape"], found["input_dtype"]) == ([1, 8, 8], "float32")
    assert found["erased"] == {"classes": [9], "clients": []}
    assert found["channels_pruned"] > 0
    assert not found["compact"]
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["efface"])["class_names"] == list("0123456789")
    card = efface.json("show", "v0002")["version"]["card"]
    network = shaped(ModelSpec.of_card(card["model"]))
    network.load_state_dict(safetensors.torch.load_file(path), assign=True)
    with torch.no_grad():
        assert torch.equal(network.eval()(inputs()), outputs(efface.home, "v0002"))


def test_a_state_dict_is_read_without_running_anything(efface: Efface, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"

    done = efface("export", "latest", "-o", str(path))

    assert done.exit_code == 0, done.output
    state = torch.load(path, weights_only=True)
    card = efface.json("show", "v0003")["version"]["card"]
    network = shaped(ModelSpec.of_card(card["model"]))
    network.load_state_dict(state, assign=True)
    with torch.no_grad():
        assert torch.equal(network.eval()(inputs()), outputs(efface.home, "v0003"))


def test_the_pruned_channels_are_said(efface: Efface, tmp_path: Path) -> None:
    done = efface("export", "v0002", "-o", str(tmp_path / "model.pt"))

    assert "channels pruned, kept at zero" in done.stdout
    assert "channels pruned" not in efface("export", "v0001", "-o", f"{tmp_path}/a.pt").stdout


def of_onnx(path: Path, given: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return what an ONNX file computes, by the runtime, or else by onnx's reference."""
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        session: Any = onnxruntime.InferenceSession(path)
    else:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))
    found: np.ndarray[Any, Any] = session.run(None, {"inputs": given.numpy()})[0]
    return found


@needs_onnx
def test_an_onnx_file_gives_the_models_outputs(efface: Efface, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"

    found = efface.json("export", "v0002", "-o", str(path))

    assert path.stat().st_mode & 0o777 == 0o600
    assert found["channels_pruned"] > 0
    # float32, summed in another order; logits are of the order of 10. Any number of images.
    expected = outputs(efface.home, "v0002").numpy()
    np.testing.assert_allclose(of_onnx(path, inputs()[:5]), expected[:5], atol=1e-4)
    np.testing.assert_allclose(of_onnx(path, inputs()[:1]), expected[:1], atol=1e-4)


@needs_onnx
def test_a_compact_network_can_be_written_as_onnx(tmp_path: Path) -> None:
    whole = ModelSpec("resnet8", num_classes=4, channels=1, image_size=8)
    layer = next(one for one in layout(shaped(whole)) if one.convolution)
    spec = ModelSpec(**{**vars(whole), "pruned": tuple(to_text({layer.name: (0, 3)}))})
    from client.learning.models import build, loaded

    state = build(whole, torch.Generator().manual_seed(0)).state_dict()
    network = loaded(*compact(spec, state)).eval()
    given = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(given).numpy()
    path = tmp_path / "model.onnx"
    path.write_bytes(exporting._onnx(network, {"input_shape": [1, 8, 8]}))

    np.testing.assert_allclose(of_onnx(path, given), expected, atol=1e-4)


def test_the_places_of_removed_channels_are_filled_with_zeros_bit_for_bit() -> None:
    spread = Spread(5, [1, 4])
    maps = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))

    assert torch.equal(exporting._Places(spread)(maps), spread(maps))


def test_onnx_without_its_packages_says_what_to_install(
    efface: Efface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "ONNX_PACKAGES", ("onnx", "no_such_package"))

    done = efface("export", "v0001", "-o", str(tmp_path / "model.onnx"))

    assert done.exit_code == USAGE
    assert "no no_such_package" in done.stderr
    assert "pip install 'efface[onnx]'" in done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.bin", "must end in .safetensors, .pt, .onnx, got model.bin"),
        ("there.pt", "must not be there yet"),
        ("nowhere/model.pt", "must lie in a folder that exists"),
    ],
)
def test_an_output_that_cannot_be_is_refused(
    efface: Efface, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "there.pt").write_text("mine")

    done = efface("export", "v0001", "-o", str(tmp_path / name))

    assert done.exit_code == USAGE
    assert words in done.stderr
    assert (tmp_path / "there.pt").read_text() == "mine"


def test_a_file_is_written_over_on_request(efface: Efface, tmp_path: Path) -> None:
    (tmp_path / "there.pt").write_text("mine")

    efface.json("export", "v0001", "-o", str(tmp_path / "there.pt"), "--force")

    assert torch.load(tmp_path / "there.pt", weights_only=True)
    assert (tmp_path / "there.pt").stat().st_mode & 0o777 == 0o600


def test_a_version_that_knows_what_was_forgotten_is_given_to_whoever_says_so(
    efface: Efface, tmp_path: Path
) -> None:
    path = tmp_path / "m.pt"
    for words in (["export", "v0002", "-o", str(path)], ["predict", "v0002", "digits"]):
        done = efface(*words, allowed=False)
        assert done.exit_code == USAGE
        assert "got v0002, which knows class 8 (forgotten by r0003)" in done.stderr
        one_of_two = efface("export", "v0001", *words[2:], *ALLOWED[:2], allowed=False)
        assert one_of_two.exit_code == USAGE
    assert not path.exists()
    assert efface("predict", "in-service", "digits", allowed=False).exit_code == 0
    done = efface("export", "v0002", "-o", str(path), *ALLOWED[2:], allowed=False)
    assert done.exit_code == 0, done.output
    efface.json("relearn", "--class", "8", "--method", "sga")
    assert efface("predict", "v0002", "digits", allowed=False).exit_code == 0


def test_exported_files_are_known_to_the_ledger_and_told_to_the_officer(
    efface: Efface, tmp_path: Path
) -> None:
    path, lost = tmp_path / "model.pt", tmp_path / "lost.pt"
    for output in (path, lost):
        assert efface.json("export", "v0001", "-o", str(output))["noted"]
    lost.unlink()

    left = [one for one in efface.json("show", "r0003")["derived"] if one["kind"] == "exported"]
    assert [(one["state"], one["path"]) for one in left] == [
        ("there", str(path)),
        ("not there", str(lost)),
    ]
    assert left[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    shown = efface("show", "r0003").stdout
    assert "Derived from it" in shown
    assert efface.json("audit")["verified"]


def test_versions_that_know_what_was_forgotten_long_enough_ago_go(efface: Efface) -> None:
    weights_of = [efface.home / "versions" / f"v000{n}" / "model.safetensors" for n in (1, 2, 3)]
    soon = efface.json("models", "prune", "--forgotten-days", "1", "--dry-run")
    assert soon["items"] == []
    done = efface.json("models", "prune", "--forgotten-days", "0", "--yes")
    assert [one["version"] for one in done["items"]] == ["v0001", "v0002"]
    assert [path.exists() for path in weights_of] == [False, False, True]
    left = efface.json("show", "r0003")["derived"]
    assert [(one["name"], one["state"]) for one in left] == [
        ("v0001", "destroyed"),
        ("v0002", "destroyed"),
    ]
    # What relearning aims at is gone; it relearns all the same.
    assert efface.json("relearn", "--class", "8", "--method", "sga")["trained"] is None
    assert efface("models", "prune", "--forgotten-days", "-1").exit_code == USAGE


def test_a_version_that_was_edited_is_not_exported(efface: Efface, tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(efface.home / "ledger.db") as database:
        database.execute("UPDATE versions SET card = '{}' WHERE id = 'v0002'")
    database.close()

    assert efface("export", "v0002", "-o", str(tmp_path / "m.pt")).exit_code == NOT_VERIFIED
    assert not (tmp_path / "m.pt").exists()


# ---- predict ------------------------------------------------------------------------------------


def test_predictions_are_a_class_and_a_probability_a_line(efface: Efface) -> None:
    done = efface("predict", "v0001", "digits")

    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(done.stdout.splitlines()))
    shares = outputs(efface.home, "v0001").softmax(dim=1)
    assert [row["example"] for row in rows] == [str(i) for i in range(len(shares))]
    assert [int(row["class"]) for row in rows] == shares.argmax(dim=1).tolist()
    found = [float(row["probability"]) for row in rows]
    assert found == pytest.approx(shares.max(dim=1).values.tolist(), abs=1e-6)


def test_predictions_as_a_document_and_as_a_file(efface: Efface, tmp_path: Path) -> None:
    path = tmp_path / "new.csv"

    found = efface.json("predict", "v0001", "digits", "--part", "train", "--output", str(path))

    assert (found["part"], found["num_images"]) == ("train", len(found["predictions"]))
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["class"] for row in rows] == [one["name"] for one in found["predictions"]]
    assert path.stat().st_mode & 0o777 == 0o600
    assert efface("predict", "v0001", "digits", "-o", str(path)).exit_code == USAGE


def test_a_task_of_ones_own_is_spoken_of_as_examples_not_images(tmp_path: Path) -> None:
    tasks = Path(__file__).parents[2] / "tasks"
    efface = Efface(tmp_path / "home")
    small = ("--num-clients", "2", "--rounds", "1", "--local-steps", "2", "--scale", "0")
    trained = efface("train", "--task", f"{tasks / 'others.py'}:Words", *small)
    assert "Examples seen" in trained.stdout, trained.output

    said = efface("export", "v0001", "-o", str(tmp_path / "words.pt")).stdout
    assert "inputs (12) int64" in said
    assert "as the task's transform returns them" in said
    assert "on 60 test examples of others:Words:" in efface("evaluate").stdout
    written = efface("predict", "v0001", "any", "-o", str(tmp_path / "words.csv"))
    assert "words.csv: 60 examples" in written.stdout.replace("\n", "")


def test_own_images_are_normalised_as_the_version_was_trained(
    efface: Efface, tmp_path: Path
) -> None:
    data = datasets.load("digits")
    few = data.test.inputs[:20].permute(0, 2, 3, 1).numpy()
    labels = data.test.labels[:20].numpy()
    np.savez(tmp_path / "new.npz", train_images=few, train_labels=labels)

    done = efface("predict", "v0001", f"npz:{tmp_path}/new.npz")

    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(done.stdout.splitlines()))
    expected = outputs(efface.home, "v0001")[:20].argmax(dim=1).tolist()
    assert [int(row["class"]) for row in rows] == expected
    assert "has no test part: these are its training examples" in done.stderr


def test_images_of_another_shape_are_refused(efface: Efface, tmp_path: Path) -> None:
    images = np.zeros((4, 16, 16), np.uint8)
    np.savez(tmp_path / "new.npz", train_images=images, train_labels=np.arange(4))

    done = efface("predict", "v0001", f"npz:{tmp_path}/new.npz")

    assert done.exit_code == FAILED
    assert "must be 1x8x8 as v0001 takes them" in done.stderr
    assert "got 1x16x16" in done.stderr


# ---- prune and abort ----------------------------------------------------------------------------


def test_pruning_frees_what_it_says_and_the_home_still_verifies(efface: Efface) -> None:
    path = efface.home / "versions" / "v0002" / "model.safetensors"
    size = path.stat().st_size
    would = efface.json("models", "prune", "--keep", "0", "--dry-run")
    assert (would["changed"], path.exists()) == (False, True)
    assert would["items"][0]["version"] == "v0002"

    done = efface.json("models", "prune", "--keep", "0", "--yes")

    assert done["changed"]
    assert done["items"] == would["items"]
    assert done["bytes"] == would["bytes"] >= size
    assert not path.exists()
    assert efface.json("audit")["verified"]
    states = {v["id"]: v["pruned"] for v in efface.json("models")["versions"]}
    assert [states[name] is None for name in ("v0001", "v0002", "v0003")] == [True, False, True]
    assert "superseded, pruned" in efface("models").stdout
    assert "pruned 20" in efface("show", "v0002").stdout
    assert efface.json("report", "r0002")["report"]
    again = efface("models", "prune", "--keep", "0")
    assert (again.exit_code, again.stdout) == (0, "Nothing to prune: 0 B.\n")


def test_a_pruned_version_is_named_as_such_wherever_its_weights_are_asked_for(
    efface: Efface, tmp_path: Path
) -> None:
    efface.json("models", "prune", "--keep", "0", "--yes")

    for words in (
        ["evaluate", "v0002"],
        ["export", "v0002", "-o", str(tmp_path / "m.pt")],
        ["predict", "v0002", "digits"],
        ["forget", "--class", "1", "--version", "v0002", "--trial"],
    ):
        done = efface(*words)
        assert done.exit_code == USAGE, done.output
        assert "got v0002, pruned 20" in done.stderr


def test_pruning_asks_first(efface: Efface) -> None:
    path = efface.home / "versions" / "v0002" / "model.safetensors"
    words = ["models", "prune", "--keep", "0", "--home", str(efface.home)]

    refused = CliRunner().invoke(app, words, input="n\n")
    assert (refused.exit_code, path.exists()) == (FAILED, True)
    assert efface("models", "prune", "--keep", "0", "--json").exit_code == USAGE
    CliRunner().invoke(app, words, input="y\n")
    assert not path.exists()


def test_a_request_is_given_up_by_a_word_or_an_option(efface: Efface) -> None:
    as_if_unsealed(efface.home)
    with Ledger.open(f"sqlite:///{efface.home}/ledger.db") as ledger:
        for _ in range(2):
            ledger.new_request(kind="train", method="fedavg", federation="digits")

    found = efface.json("requests", "abort", "r0004")
    assert [row["state"] for row in found["requests"]] == ["aborted"]
    assert efface.json("requests", "--abort", "r0005")["requests"][0]["state"] == "aborted"
    done = efface("requests", "abort", "r0001")
    assert done.exit_code == FAILED
    assert "r0001 which is done" in done.stderr


def test_options_before_an_inner_command_hold_or_are_refused(efface: Efface) -> None:
    told = ["requests", "--home", str(efface.home), "--json", "abort", "r0009"]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == USAGE
    assert json.loads(done.stdout)["code"] == "unknown-id"

    done = CliRunner().invoke(app, ["requests", "--state", "done", "abort", "r0001"])
    assert done.exit_code == USAGE
    assert "--state must be given without abort" in done.stderr
