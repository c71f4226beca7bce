"""efface.toml: what it says, what wins over it, and what `efface init` and `config` make of it."""

import importlib
import importlib.util
import json
import sys
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from server.cli import app, options, project, running
from server.cli.command import USAGE
from server.cli.setup import STARTER, starter
from server.settings import RunSettings


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory of its own, and no environment of Efface's."""
    for name in ("EFFACE_HOME", "EFFACE_CONFIG", "EFFACE_DATA_DIR", "EFFACE_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[RunSettings]:
    """The settings of the requests that commands would carry out."""
    found: list[RunSettings] = []

    def carry_out(call: Any, told: RunSettings, port: Any) -> Any:
        found.append(told)
        return running.Answer({})

    monkeypatch.setattr(running, "carry_out", carry_out)
    return found


def run(*words: str) -> Any:
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.output
    return done


def refused(*words: str) -> str:
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == USAGE, done.output
    return str(done.stderr)


# ---- what holds ---------------------------------------------------------------------------------


def test_a_command_takes_what_the_file_says_of_its_settings(
    folder: Path, settings: list[RunSettings]
) -> None:
    (folder / "efface.toml").write_text(
        'rounds = 3\nlr = 1\nengine = "ray"\ncompare = "retrain"\nsecure-aggregation = true\n'
        'asked-by = "Ada"\n'
    )

    run("train")
    run("forget", "--class", "1")

    train, forget = settings
    assert (train.rounds, train.lr, train.engine, train.compare) == (3, 1.0, "ray", "none")
    assert train.secure_aggregation
    # A request takes training settings of its version's.
    assert (forget.rounds, forget.engine, forget.compare) == (20, "ray", "retrain")
    assert (train.asked_by, forget.asked_by) == ("Ada", "Ada")


def test_a_flag_wins_over_a_commands_table_and_that_over_the_rest(
    folder: Path, settings: list[RunSettings]
) -> None:
    (folder / "efface.toml").write_text(
        'method = "sga"\nasked-by = "Ada"\n[relearn]\nmethod = "retraining"\n'
    )

    run("forget", "--class", "1")
    run("relearn", "--class", "1")
    run("relearn", "--class", "1", "--method", "not", "--by", "Bob")

    assert [s.method for s in settings] == ["sga", "retraining", "not"]
    assert [s.asked_by for s in settings] == ["Ada", "Ada", "Bob"]


def test_the_environment_wins_over_the_file_and_a_flag_over_both(
    folder: Path, settings: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "efface.toml").write_text('home = "here"\ndata-dir = "sets"\n')

    run("train")
    monkeypatch.setenv("EFFACE_HOME", "/elsewhere")
    monkeypatch.setenv("EFFACE_DATA_DIR", "/other")
    run("train")
    run("train", "--home", "/third", "--data-dir", "/fourth")

    # Empty: whoever opens the home, or the data, asks the environment.
    homes = [str(folder / "here"), "", "/third"]
    assert [s.home for s in settings] == homes
    assert [s.data_dir for s in settings] == [str(folder / "sets"), "", "/fourth"]


def test_paths_are_relative_to_the_file_that_is_named(
    folder: Path, settings: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "mine.toml").write_text(
        'dataset = "npz:scans.npz"\nserver-samples = "test:16"\ndata = "folder:photos"\nhome = "h"'
    )

    run("train", "--config", "a/mine.toml")
    monkeypatch.setenv("EFFACE_CONFIG", "a/mine.toml")
    run("forget", "--class", "1")

    train, forget = settings
    assert train.dataset == f"npz:{folder}/a/scans.npz"
    assert (forget.server_samples, forget.data) == ("test:16", f"folder:{folder}/a/photos")
    assert train.home == forget.home == f"{folder}/a/h"
    (folder / "a" / "mine.toml").write_text('dataset = "table:t.csv?label=x&columns=c.toml"')
    run("train")
    assert settings[-1].dataset == f"table:{folder}/a/t.csv?label=x&columns={folder}/a/c.toml"


def test_a_methods_options_hold_for_the_method_beside_them(
    folder: Path, settings: list[RunSettings]
) -> None:
    (folder / "efface.toml").write_text(
        'method = "sga"\n[method-options]\ndepth = 2\nrecover-rounds = 1\n'
        '[relearn]\nmethod = "retraining"\n'
    )

    run("forget", "--class", "1")
    run("forget", "--class", "1", "--set", "depth=3")
    run("forget", "--class", "1", "--method", "not")
    run("relearn", "--class", "1")
    run("train")

    told = [s.method_options for s in settings]
    assert told == ["depth=2,recover-rounds=1", "depth=3", "", "", ""]


def test_commands_that_look_read_the_home_of_the_file(folder: Path) -> None:
    (folder / "efface.toml").write_text('home = "nowhere"\n')

    assert f"no such home: {folder}/nowhere" in refused("models")


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_client = 3", ["efface.toml", "'num_client'", "did you mean num-clients"]),
        ("rounds = 2.5", ["rounds must be a whole number, got 2.5", "efface.toml"]),
        ("rounds = true", ["rounds must be a whole number, got True"]),
        ('lr = "0.1"', ["lr must be a number, got '0.1'"]),
        ("rounds = 0", ["rounds must be at least 1, got 0", "efface.toml"]),
        (
            "[trian]",
            [
                "one of train, forget, yardstick, relearn, verify, demo, got [trian]",
                "did you mean train",
            ],
        ),
        ("[forget]\nrounds = 3", ["setting of `efface forget`, got rounds", "above the tables"]),
        ("[forget]\nmethot = 'sga'", ["'methot'", "did you mean method"]),
        ("[train]\nhome = 'h'", ["setting of `efface train`, got home"]),
        ("allow-forgotten = 'r0002'", ["allow-forgotten", "--allow-forgotten"]),
        ("version = 'v0001'", ["said with each request", "--version"]),
        ("mode = 'train'", ["must be a setting, got 'mode'"]),
        ("method-options = 'a=1'", ["method-options must be a table"]),
        ("[method-options]\na = [1]", ["method-options.a must be one value, got [1]"]),
        ("rounds = ", ["config must be TOML in UTF-8", "efface.toml"]),
    ],
)
def test_a_file_that_says_something_wrong_is_refused(
    folder: Path, text: str, words: list[str]
) -> None:
    (folder / "efface.toml").write_text(text)

    told = refused("train")

    assert all(word in told for word in words), told


def test_a_file_that_is_named_must_be_there(folder: Path) -> None:
    assert "config must name a file that is there, got" in refused("models", "--config", "no.toml")


def test_a_flag_that_breaks_a_rule_is_not_blamed_on_the_file(folder: Path) -> None:
    (folder / "efface.toml").write_text("rounds = 3\n")

    assert "efface.toml" not in refused("train", "--rounds", "0")


# ---- efface config ------------------------------------------------------------------------------


def test_config_says_where_each_value_comes_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "efface.toml").write_text('rounds = 3\nhome = "h"\n[forget]\nmethod = "auto"\n')
    monkeypatch.setenv("EFFACE_HOME", "/elsewhere")

    found = json.loads(run("config", "--json").stdout)

    assert found["file"] == str(folder / "efface.toml")
    rows = {(row["command"], row["key"]): row for row in found["settings"]}
    assert rows[None, "rounds"] == {
        "key": "rounds", "value": 3, "source": "file", "where": found["file"], "command": None,
    }  # fmt: skip
    assert rows[None, "home"]["value"] == "/elsewhere"
    assert rows[None, "home"]["where"] == "EFFACE_HOME"
    assert rows[None, "lr"]["source"] == "default"
    assert rows[None, "engine"]["value"] == "inline"
    assert rows["forget", "method"]["value"] == "auto"
    shown = run("config").stdout
    assert "forget: method" in shown
    assert "EFFACE_HOME" in shown


def test_config_checks_every_value(folder: Path) -> None:
    (folder / "efface.toml").write_text("[demo]\nmodel-depth = 20\n")

    told = refused("config")

    assert "model-depth must lie in [1, 8], got 20" in told
    assert "efface.toml" in told


def test_config_without_a_file_says_how_to_write_one(folder: Path) -> None:
    assert "efface init" in run("config").stdout
    assert json.loads(run("config", "--json").stdout)["file"] is None


# ---- efface init --------------------------------------------------------------------------------


def test_init_writes_a_file_that_holds_and_a_task(
    folder: Path, settings: list[RunSettings]
) -> None:
    found = json.loads(run("init", "hearts", "--json").stdout)

    assert found["files"] == [str(folder / "hearts" / n) for n in ("efface.toml", "task.py")]
    run("train", "--config", "hearts/efface.toml")
    assert settings[0].home == str(folder / "hearts" / ".efface")
    run("config", "--config", "hearts/efface.toml")


@pytest.mark.parametrize("name", ["efface.toml", "task.py"])
def test_init_writes_over_nothing(folder: Path, name: str) -> None:
    (folder / name).write_text("# mine")

    assert str(folder / name) in refused("init")
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "# mine"


def test_init_does_not_read_a_broken_file(folder: Path) -> None:
    (folder / "efface.toml").write_text("rounds =")

    run("init", "other")


def test_the_lines_in_comments_are_settings_too(folder: Path) -> None:
    lines = starter("efface.toml").splitlines()
    likely = [line.removeprefix("# ") for line in lines]
    told = []
    for line in likely:
        key = line.partition(" = ")[0]
        if " = " in line and key.replace("-", "").isalpha() and not line.startswith("recover"):
            told.append(key)
    known = {o.key for o in options.OPTIONS} | set(project.MORE)

    assert {"compare", "asked-by", "engine", "clients"} <= set(told)
    assert set(told) - known <= {"task"}  # that the task file waits for
    assert tomllib.loads("\n".join(lines))


@dataclass
class _Examples:
    inputs: torch.Tensor
    labels: torch.Tensor
    ids: Any = None


@dataclass
class _Data:
    train: _Examples
    test: _Examples


class _Task:
    """As much of a task as the file needs, where this Efface has none."""

    def transform(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The class of the task file, on the real base class where there is one."""
    if importlib.util.find_spec("client.task") is None:
        stub = types.ModuleType("client.task")
        vars(stub).update(Task=_Task, Data=_Data, Examples=_Examples)
        monkeypatch.setitem(sys.modules, "client.task", stub)
    path = tmp_path / "task.py"
    path.write_text(starter("task.py"))
    spec = importlib.util.spec_from_file_location("the_task_of_a_project", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MyTask


def test_the_task_file_learns_as_it_stands(task: Any) -> None:
    made = task()
    data = made.data("")
    assert tuple(data.train.inputs.shape[1:]) == made.input_shape
    assert data.train.inputs.dtype == made.input_dtype
    assert len(data.train.labels) + len(data.test.labels) == 1797
    torch.manual_seed(0)
    network = made.network()
    step = torch.optim.SGD(network.parameters(), lr=0.2)
    for _ in range(200):
        step.zero_grad()
        outputs = network(made.transform(data.train.inputs))
        cross_entropy(outputs, data.train.labels).backward()
        step.step()
    with torch.no_grad():
        found = network(made.transform(data.test.inputs)).argmax(dim=1)

    assert (found == data.test.labels).float().mean() > 0.85


def test_the_starters_are_installed() -> None:
    told = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())

    assert told["tool"]["setuptools"]["package-data"]["server.cli"] == [f"{STARTER.name}/*"]
