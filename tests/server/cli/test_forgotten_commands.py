"""What the commands say of what is forgotten, and what a site's store check finds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from client.data import datasets
from server.cli import app
from server.cli.command import FAILED, NOT_VERIFIED, USAGE
from server.storage.home import Home
from server.storage.ledger import Ledger, database_url
from tests.seals import as_if_unsealed

TINY = [
    *("--num-clients", "3", "--partition", "iid", "--rounds", "2", "--local-steps", "8"),
    *("--batch-size", "32", "--scale", "10", "--distill-every", "4", "--lr", "0.1"),
    *("--model-width", "8", "--model-depth", "2"),
]
EASY = ["--accept", "not-shown", "--max-forget-accuracy", "100", "--method", "retraining"]


class Efface:
    """The command on one home."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *words: str) -> Any:
        return CliRunner().invoke(app, [*words, "--home", str(self.home)])

    def json(self, *words: str) -> Any:
        done = self(*words, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


pytestmark = pytest.mark.usefixtures("surroundings")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes 8 and 9 and then client-1 were forgotten, class 9 was relearned."""
    home = tmp_path_factory.mktemp("shared") / "home"
    efface = Efface(home)
    efface.json("train", *TINY)
    efface.json("forget", "--class", "8", "--class", "9", *EASY)
    efface.json("forget", "--client", "client-1", *EASY)
    efface.json("relearn", "--class", "9", "--method", "retraining")
    return home


@pytest.fixture
def efface(shared: Path, tmp_path: Path) -> Efface:
    return Efface(Path(shutil.copytree(shared, tmp_path / "home")))


def test_the_list_the_versions_and_one_of_them_agree(efface: Efface) -> None:
    listed = efface.json("forgotten")
    named = [(one["classes"], one["clients"], one["request"]) for one in listed["forgotten"]]
    assert named == [([8], [], "r0002"), ([], ["client-1"], "r0003")]
    assert listed["pending"] == []
    shown = efface("forgotten").stdout
    assert "class 8" in shown
    assert "client client-1" in shown
    assert "v0004" in shown

    erased = {"classes": [8], "clients": ["client-1"]}
    assert efface.json("models")["versions"][-1]["card"]["erased"] == erased
    assert "class 8 and client client-1" in efface("models").stdout
    one = efface("show", "v0004").stdout
    assert "class 8 and client client-1" in one
    # A class that was relearned is retained: 8 alone is what is forgotten.
    card = efface.json("show", "v0004")["version"]["card"]
    percent = card["scores"]["per_class_accuracy"][8]
    assert f"class 8 {percent:.1f} %, retain {card['scores']['retain_accuracy']:.1f} %" in one
    assert "class 9" not in one.split("Lineage")[0]


def test_what_waits_is_shown_wherever_the_request_is(efface: Efface) -> None:
    as_if_unsealed(efface.home)
    with Ledger.open(database_url(Home(efface.home))) as ledger:
        ledger.note_pending("r0003", ["client-1"])
    (pending,) = efface.json("forgotten")["pending"]
    assert (pending["request"], pending["client"]) == ("r0003", "client-1")
    assert "client-1 was offline when r0003 (client client-1) ended" in efface("forgotten").stdout
    for name in ("r0003", "v0003", "v0004"):
        assert efface.json("show", name)["pending"] == [pending]
        assert "Waits at" in efface("show", name).stdout
    for name in ("r0002", "v0002"):
        assert efface.json("show", name)["pending"] == []


def test_training_on_it_elsewhere_is_refused_or_asked_for_by_name(efface: Efface) -> None:
    few = [*TINY, "--num-clients", "2", "--rounds", "1"]
    done = efface("train", *few)
    assert done.exit_code == USAGE
    assert "class 8 (forgotten by r0002" in done.stderr
    assert "client client-1 (forgotten by r0003" in done.stderr
    posing = efface("train", *few, "--federation", "demo of mine")
    assert posing.exit_code == USAGE
    assert "federation must not begin with 'demo '" in posing.stderr
    part = efface("train", *few, "--allow-forgotten", "r0002")
    assert part.exit_code == USAGE
    assert "r0002" not in part.stderr
    allowed = ["--allow-forgotten", "r0002", "--allow-forgotten", "r0003"]
    record = efface.json("train", *few, *allowed)
    assert record["settings"]["allow-forgotten"] == "r0002,r0003"
    assert [text.split(",")[0] for text in record["warnings"]] == ["class 8", "client client-1"]


def test_a_dry_run_prints_its_warnings(efface: Efface) -> None:
    done = efface("forget", "--client", "client-0", "--client", "client-2", "--dry-run")
    assert done.exit_code == USAGE
    assert "must leave at least one client" in done.stderr
    shown = efface("forget", "--class", "3", "--max-forget-accuracy", "100", "--dry-run")
    per_class = efface.json("show", "v0004")["version"]["card"]["scores"]["per_class_accuracy"]
    assert ("warning: nothing to show" in shown.stdout) == (per_class[3] <= 5)


def own_file(path: Path) -> None:
    """Write the digits to a file of one's own."""
    data = datasets.load("digits")
    parts = {}
    for name, split in (("train", data.train), ("test", data.test)):
        parts[f"{name}_images"] = split.inputs.permute(0, 2, 3, 1).numpy()
        parts[f"{name}_labels"] = split.labels.numpy()
    np.savez(path, **parts)


def own_folder(path: Path) -> None:
    """Write noise as images, a folder a class."""
    for part, count in (("train", 12), ("test", 3)):
        for name in ("cat", "dog", "fox"):
            draws = np.random.default_rng([len(part), *name.encode()])
            (path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(path / part / name / f"{number}.png")


@pytest.mark.parametrize(
    ("kind", "name", "write"), [("npz", "own.npz", own_file), ("folder", "own", own_folder)]
)
def test_data_that_have_moved_are_found_where_the_commands_say(
    tmp_path: Path, kind: str, name: str, write: Callable[[Path], None]
) -> None:
    efface, former, now = Efface(tmp_path / "home"), tmp_path / name, tmp_path / f"moved-{name}"
    write(former)
    few = [*TINY, "--rounds", "1", "--num-clients", "2", "--batch-size", "8"]
    efface.json("train", *few, "--dataset", f"{kind}:{former}")
    former.rename(now)

    lost = efface("evaluate")
    assert lost.exit_code == FAILED
    assert str(former) in lost.stderr
    assert "if the data of v0001 have moved" in lost.stderr
    for option in ("--data", "--data-dir"):
        found = efface.json("evaluate", option, str(now))
        assert found["dataset"] == f"{kind}:{now}"
    plan = ("forget", "--class", "1", "--method", "retraining", "--dry-run")
    assert str(former) in efface(*plan).stderr
    assert efface.json(*plan, "--data", str(now))["forget"]["classes"] == [1]


# ---- a site's store -----------------------------------------------------------------------------


def store_of(efface: Efface) -> Path:
    return next((efface.home / "clients").rglob("client-0"))


def verified(folder: Path) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["store", "verify", str(folder), "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_a_store_whose_state_was_deleted_is_not_well(efface: Efface) -> None:
    folder = store_of(efface)
    assert verified(folder) == (0, {"format": 1, "store": str(folder), "problems": [], "notes": []})
    (folder / "state.json").unlink()
    code, document = verified(folder)
    assert code == NOT_VERIFIED
    assert str(folder / "state.json") in document["problems"][0]


def test_altered_labels_are_found_and_never_listed(efface: Efface) -> None:
    folder = store_of(efface)
    path = sorted(folder.rglob("[0-9]*.safetensors"))[-1]
    content = path.read_bytes()
    path.write_bytes(content[:-9] + b"\0xx" + content[-6:])
    code, document = verified(folder)
    assert code == NOT_VERIFIED
    assert any(str(path) in line for line in document["problems"])
    listed = CliRunner().invoke(app, ["store", "ls", str(folder)])
    assert listed.exit_code == FAILED
    assert str(path) in listed.stderr
    assert listed.stdout == ""


def test_what_an_older_version_wrote_is_well_with_a_note(efface: Efface) -> None:
    folder = store_of(efface)
    path = sorted(folder.rglob("[0-9]*.safetensors"))[-1]
    tensors = {"images": torch.zeros(2, 1, 8, 8), "labels": torch.tensor([0, 1])}
    save_file(tensors, path, {"format": "1", "model": "a model"})
    code, document = verified(folder)
    assert (code, document["problems"]) == (0, [])
    assert [str(path) in note for note in document["notes"]] == [True]
    assert "note: " in CliRunner().invoke(app, ["store", "verify", str(folder)]).stdout
