"""Users' tasks are trained, forgotten and refused as the built-in one is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from client import own_task, task_folders
from client.errors import BadSetting
from client.task_folders import OWN
from server.evidence.record import Record
from server.nodes.engines.superlink import stage_app
from server.requests import exporting
from server.requests.evaluation import evaluated
from server.requests.intake import Service
from server.runner import plan, run
from server.settings import RunSettings
from server.storage.home import Home
from server.storage.ledger import Ledger
from server.storage.opened import opened
from strategies.table import METHODS
from tests.tasks.others import AdaptedEncoder

TASKS = Path(__file__).parents[2] / "tasks"
JOB = {
    **{"engine": "inline", "num_clients": 3, "partition": "iid", "device": "cpu", "rounds": 3},
    **{"local_steps": 8, "batch_size": 16, "lr": 0.1, "scale": 0, "evaluate_every": 0},
}


class Quiet:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


def ask(home: Path, **more: Any) -> Record:
    return run(RunSettings(**{**JOB, "home": str(home), **more}).check(), Quiet())


def trained(home: Path, task: str, **more: Any) -> Record:
    return ask(home, task=f"{TASKS / task}", **more)


def weights(home: Path, version: str) -> dict[str, Any]:
    return dict(Service.open(Home(home)).registry.load(version)[0])


def test_a_request_that_leaves_one_class_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    trained(home, "tables.py:Wine")
    with pytest.raises(BadSetting, match="leave at least two classes, got one that leaves 1"):
        ask(home, mode="forget", forget_classes="0,1", method="sga")


def test_a_table_is_trained_and_a_class_of_it_forgotten(tmp_path: Path) -> None:
    home = tmp_path / "home"
    record = trained(home, "tables.py:Wine", scale=4, task_options="hidden=12", rounds=6)
    assert (record.model, record.num_classes) == ("Wine", 3)
    assert record.result is not None
    assert record.result.retain_accuracy is not None
    assert record.result.retain_accuracy > 80
    assert weights(home, "v0001")["0.weight"].shape == (12, 13)
    # Synthetic examples were made of floats that are no images.
    assert list(home.glob("clients/*/client-0/*/*.safetensors"))

    options = "unlearn-lr=0.1,unlearn-epochs=20,recover-lr=0.05"
    done = ask(
        home, mode="forget", forget_classes="barbera", method="quickdrop", method_options=options,
        accept="not-shown",
    )  # fmt: skip
    assert done.result is not None
    assert done.result.forget_accuracy == 0.0


@pytest.mark.parametrize("task", ["tables.py:Wine", "others.py:Words"])
def test_the_same_seed_gives_the_same_bits_though_networks_draw(tmp_path: Path, task: str) -> None:
    for name in ("one", "two"):
        trained(tmp_path / name, task)
    one, two = (weights(tmp_path / name, "v0001") for name in ("one", "two"))
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in two.items()}


def test_a_task_with_a_loss_of_its_own_forgets_clients_and_no_class(tmp_path: Path) -> None:
    home = tmp_path / "home"
    record = trained(home, "others.py:Sugar", lr=0.02)
    assert record.result is not None
    assert record.result.retain_accuracy is not None  # of its own score
    with pytest.raises(BadSetting, match="level must be client for task Sugar, got class"):
        ask(home, mode="forget", forget_classes="0", method="sga")
    with pytest.raises(BadSetting, match="judged by cross-entropy of classes, got Sugar with a"):
        ask(home, mode="forget", forget_clients="client-1", method="fisher")
    done = ask(home, mode="forget", forget_clients="client-1", method="not", trial=True,
               method_options="rounds=2")  # fmt: skip
    assert done.model_version == "v0002"


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("others.py:Words", {"scale": 10}, "scale must be 0 for task Words, got 10: no synthetic"),
        (
            "others.py:Sugar",
            {"scale": 10},
            "scale must be 0 for task Sugar, got 10: .*a loss of",
        ),
        ("others.py:Sugar", {"noise_multiplier": 1.0}, "judged by cross-entropy with noise"),
        ("tables.py:Wine", {"model_width": 8}, "model-width must be left out with a task"),
        ("tables.py:Wine", {"task_options": "depth=3"}, "must be one of hidden, dropout, got 'dep"),
        ("others.py:Reduced", {}, r"loss of task Reduced must give one number an .* got \(\)"),
        ("others.py:Broadcast", {}, r"score of task Broadcast must give .* got \(2, 2\)"),
        ("others.py:Mismatched", {}, r"outputs \(2, 1\) and targets \(2, 3\) of .*: The size of"),
        ("tables.py:Beer", {}, "must be a class derived from client.task.Task, got none"),
        ("nowhere.py:Wine", {}, "must name a Python file or package"),
    ],
)
def test_what_a_task_cannot_is_refused_before_any_work(
    tmp_path: Path, task: str, more: dict[str, Any], message: str
) -> None:
    home = tmp_path / "home"
    with pytest.raises(BadSetting, match=message):
        trained(home, task, **more)
    assert Service.open(Home(home)).ledger.requests() == []


@pytest.mark.parametrize("level", ["class", "client"])
@pytest.mark.parametrize("task", ["tables.py:Wine", "others.py:Words"])
def test_each_method_serves_a_task_or_says_why_not(tmp_path: Path, task: str, level: str) -> None:
    home = tmp_path / "home"
    scale = 4 if task == "tables.py:Wine" else 0
    trained(home, task, keep_updates=1, scale=scale, rounds=2)
    asked = {"forget_classes": "2"} if level == "class" else {"forget_clients": "client-1"}
    refused = {}
    for name, kind in METHODS.items():
        if level not in kind.needs.levels:
            continue
        own = {"server_samples": "test:20"} if kind.needs.server_data else {}
        try:
            ask(home, mode="forget", method=name, trial=True, **asked, **own)
        except BadSetting as error:  # before any work
            refused[name] = str(error)
    no_convolutions = {"class-pruning", "influential-de", "influential-ce"}
    expected = no_convolutions if level == "class" else set()
    if not scale:
        expected |= {"quickdrop", "quickdrop-calibrated"}
    assert set(refused) == expected
    assert all("got" in text for text in refused.values())


def test_a_version_keeps_the_code_that_trained_it(tmp_path: Path) -> None:
    home, mine = tmp_path / "home", tmp_path / "mine.py"
    mine.write_text((TASKS / "tables.py").read_text())
    ask(home, task=f"{mine}:Wine")
    mine.write_text("raise RuntimeError('this is another file now')")
    done = ask(home, mode="forget", forget_clients="client-0", method="not", trial=True)
    assert done.model == "Wine"


def test_a_command_that_only_looks_finds_the_code_that_the_home_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path, "tables.py:Wine", rounds=1)

    def as_in_a_new_process() -> tuple[Home, Ledger]:
        monkeypatch.setattr(task_folders, "_folders", [])
        monkeypatch.delenv(task_folders.TASKS)
        own_task._class_of.cache_clear()
        own_task._task_of.cache_clear()
        return opened(str(tmp_path))

    home, ledger = as_in_a_new_process()
    assert evaluated(home, ledger).class_names == ("barolo", "grignolino", "barbera")
    home, ledger = as_in_a_new_process()
    row = ledger.version("v0001")
    written = exporting.export(home, ledger, row, tmp_path / "wine.safetensors")
    assert written.facts["class_names"] == ["barolo", "grignolino", "barbera"]
    as_in_a_new_process()
    asked = RunSettings(mode="forget", home=str(tmp_path), forget_classes="barbera", method="sga")
    assert plan(asked.check())["forget"]["classes"] == (2,)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("tables.py:Wine", "task Wine, 3 classes, called barolo, grignolino, barbera, "),
        ("others.py:Sugar", "task Sugar, no classes, 442 training and 0 test examples"),
    ],
)
def test_report_and_card_name_the_task_and_not_the_built_in_network(
    tmp_path: Path, task: str, words: str
) -> None:
    record = trained(tmp_path, task, rounds=1)
    page = Path(str(record.report)).read_text()
    assert f"<dd>{words}" in page
    assert "convnet" not in page
    assert "model-width" not in page
    card = json.loads((tmp_path / "versions" / "v0001" / "card.json").read_text())["card"]
    assert not [key for key in card["settings"] if key.startswith("model")]
    data = card["data"]
    assert (data["num_train"], data["num_test"]) == (record.num_train, record.num_test)
    # A request on it reads the card as one of old.
    done = ask(tmp_path, mode="forget", forget_clients="client-0", method="not", trial=True)
    assert done.model_version == "v0002"


def test_a_bundle_holds_the_task_and_its_hash_names_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    trained(home, "tables.py:Wine", rounds=1)
    (task,) = (home / "tasks").iterdir()
    app = stage_app(tmp_path / "app", {}, task=task)
    assert (app / "client" / OWN.name / task.name / "tables.py").is_file()
    card = json.loads((home / "versions" / "v0001" / "card.json").read_text())
    assert card.get("card", card)["model"]["code"] == task.name


def test_a_table_forgets_nothing_that_torch_draws_elsewhere(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained(tmp_path / "home", "tables.py:Wine", rounds=1)
    assert torch.equal(before, torch.get_rng_state())


def test_of_an_adapted_transformer_under_two_percent_travel(tmp_path: Path) -> None:
    home = tmp_path / "home"
    record = trained(home, "others.py:AdaptedWords", rounds=4)
    network = AdaptedEncoder(rank=2)
    size = sum(4 * parameter.numel() for parameter in network.parameters())  # float32
    trainable = [p for p in network.parameters() if p.requires_grad]
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    assert set(weights(home, "v0001")) == names
    messages = 4 * 3  # rounds and clients
    told = record.bytes["train"]
    assert told is not None
    for traffic in (told.up, told.down):
        assert traffic is not None
        assert sum(4 * p.numel() for p in trainable) < traffic / messages < 0.02 * size

    done = ask(home, mode="forget", forget_classes="2", method="sga", trial=True,
               method_options="unlearn-lr=0.2")  # fmt: skip
    assert done.recovered is not None
    assert done.recovered.forget_accuracy == 0.0


NORMED = '''
import torch
from torch import nn
from client.task import Data, Examples, Task

class Normed(Task):
    """Clients by `ids`: the last holds one example."""
    input_shape = (4,)
    class_names = ("a", "b")

    def network(self):
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))

    def data(self, source):
        inputs = torch.randn(41, 4, generator=torch.Generator().manual_seed(0))
        owners = torch.arange(41) // 20
        examples = Examples(inputs, (inputs[:, 0] > 0).long(), ids=owners)
        return Data(examples, Examples(inputs[:20], (inputs[:20, 0] > 0).long()))
'''


def test_batchnorm_and_one_example_are_no_fault_in_the_middle_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "normed.py").write_text(NORMED)
    told = {"task": f"{tmp_path / 'normed.py'}:Normed", "partition": "natural", "holdout": 0.0}
    with pytest.raises(BadSetting, match="batch-size must be at least 2 for Normed, got 1"):
        ask(tmp_path / "home", **told, batch_size=1)
    # Batches of 19 leave one over of 20; the third client's one example cannot be trained on.
    record = ask(tmp_path / "home", **told, batch_size=19, local_steps=4)
    assert record.model_version == "v0001"
    assert not record.absences
