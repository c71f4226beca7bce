"""Options that say how data are read, and the commands that look at data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from client.errors import BadSetting
from server.cli import app
from server.cli.command import FAILED, USAGE
from server.requests.data import moved
from server.settings import RunSettings

TINY = [
    *("--num-clients", "2", "--partition", "iid", "--rounds", "1", "--local-steps", "2"),
    *("--scale", "0", "--model-width", "8", "--model-depth", "1"),
]


def run(*words: str) -> Any:
    return CliRunner().invoke(app, [*words])


def document(*words: str) -> Any:
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return folders of colour images of two sizes, one of them broken."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (10 + number % 2 * 4, 12, 3)
                image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
                image.save(folder / f"{number}.png")
    (tmp_path / "photos" / "train" / "cat" / "broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


def test_train_reads_as_its_options_say(photos: Path, tmp_path: Path) -> None:
    home = ("--home", str(tmp_path / "home"))
    asked = ("--dataset", f"folder:{photos}", "--image-size", "8", "--color", "grey")
    done = run("train", *TINY, *home, *asked)
    assert done.exit_code == FAILED
    assert "broken.png (cannot identify image file)" in done.stderr

    record = document("train", *TINY, *home, *asked, "--fit", "stretch", "--skip-broken")

    assert record["changed"]
    version = document("show", "v0001", *home)["version"]
    assert version["card"]["settings"]["dataset"] == (
        f"folder:{photos}?size=8&color=grey&fit=stretch&skip-broken=1"
    )


def test_options_of_images_need_images_of_ones_own(tmp_path: Path) -> None:
    done = run("train", "--home", str(tmp_path), "--dataset", "digits", "--image-size", "8")
    assert done.exit_code == USAGE
    assert "size must come with images of one's own" in done.stderr


def test_data_show_says_what_a_set_holds_and_how_it_was_read(photos: Path) -> None:
    found = document("data", "show", f"folder:{photos}?size=8", "--skip-broken")
    assert found["shape"] == [3, 8, 8]
    assert found["classes"] == [
        {"name": name, "num_train": 12, "num_validation": 0, "num_test": 3}
        for name in ("cat", "dog")
    ]
    assert any(note.startswith("1 broken file was left out: ") for note in found["notes"])


def test_sites_make_one_columns_file_without_their_rows(tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 10)):
        rows = "".join(f"{start + i},{'ny'[i % 2]}\n" for i in range(10))
        (tmp_path / f"{name}.csv").write_text("age,sick\n" + rows)
        source = f"table:{tmp_path / name}.csv?label=sick"
        document("data", "columns", source, "-o", str(tmp_path / f"{name}.toml"))
    files = [str(tmp_path / f"{name}.toml") for name in "ab"]
    merged = document("data", "columns", *files, "-o", str(tmp_path / "all.toml"))
    assert (merged["rows"], merged["classes"], merged["num_inputs"]) == (20, ["n", "y"], 1)
    text = (tmp_path / "all.toml").read_text()
    assert "mean = 9.5" in text  # of 0 to 19
    shown = document(
        "data", "show", f"table:{tmp_path}/a.csv?label=sick&columns={tmp_path}/all.toml"
    )
    assert shown["shape"] == [1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.toml", "a.toml"], "columns files must differ"),
        (["digits"], "sources must be one table:PATH"),
        (["a.toml"], "sources must be one table:PATH"),
    ],
)
def test_what_makes_no_columns_file_is_refused(
    tmp_path: Path, words: list[str], message: str
) -> None:
    done = run("data", "columns", *words, "-o", str(tmp_path / "x.toml"))
    assert done.exit_code == USAGE
    assert message in done.stderr


def test_moved_data_are_read_as_before_unless_it_says_otherwise() -> None:
    before = RunSettings(dataset="npz:/old.npz?size=16")
    for told, expected in {
        "/new.npz": "npz:/new.npz?size=16",
        "npz:/new.npz": "npz:/new.npz?size=16",
        "npz:/new.npz?size=8": "npz:/new.npz?size=8",
    }.items():
        asked = RunSettings(dataset=before.dataset, data=told).rooted()
        assert moved(asked).dataset == expected


def test_a_bad_option_is_refused_before_any_work() -> None:
    with pytest.raises(BadSetting, match="color must be grey or rgb, got 'red'"):
        RunSettings(dataset="npz:a.npz?color=red").check_training()
    with pytest.raises(BadSetting, match="dataset must hold images"):
        RunSettings(dataset="table:a.csv?label=x").check_training()


def test_more_clients_than_all_are_refused() -> None:
    RunSettings(fraction=0.5, over_select=0.2).check_training()
    with pytest.raises(BadSetting, match=r"over-select must be 0 with fraction 1, got 0.2"):
        RunSettings(over_select=0.2).check_training()
