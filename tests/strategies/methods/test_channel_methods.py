"""Channel methods from end to end on digits: what they do to a version, its card and its record."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.channels.layout import from_text, layout
from client.errors import BadSetting
from client.learning.models import ModelSpec, build
from server.evidence.record import to_json
from server.requests.intake import Service
from server.runner import run
from server.settings import RunSettings
from server.storage.home import Home

JOB: dict[str, Any] = {
    "num_clients": 3,
    "partition": "iid",
    "model_width": 8,
    "rounds": 2,
    "local_steps": 8,
    "batch_size": 32,
    "lr": 0.1,
    "scale": 0,
    "engine": "inline",
    "device": "cpu",
    "max_forget_accuracy": 100.0,
    "max_relearning_gap": 100.0,
    "accept": "not-shown",
}


class Silent:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


def ask(home: Path, mode: str, **more: Any) -> dict[str, Any]:
    told = RunSettings(**{"mode": mode, "home": str(home), **JOB, **more}).check()
    return to_json(run(told, Silent()))


def load(home: Path, version: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    return Service.open(Home(home)).registry.load(version)


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained") / "home"
    patch = pytest.MonkeyPatch()
    patch.setenv("EFFACE_STORE", "")
    ask(home, "train")
    patch.undo()
    return home


@pytest.fixture
def home(trained_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFACE_STORE", "")
    return Path(shutil.copytree(trained_home, tmp_path / "home"))


def test_pruned_channels_are_zero_in_the_new_version_and_its_card_names_them(home: Path) -> None:
    record = ask(
        home, "forget", method="class-pruning", forget_classes="3",
        method_options="prune-share=0.25,rounds=2,target=100",
    )  # fmt: skip
    arrays, card = load(home, "v0002")
    pruned = from_text(card["model"]["pruned"])
    assert {name: list(c) for name, c in pruned.items()} == record["channels"]["chosen"]
    # A quarter of 8 + 8 channels.
    assert sum(map(len, pruned.values())) == 4
    assert record["rounds"] == {"score": 1, "unlearn": 0, "recover": 2}
    for layer in layout(build(ModelSpec.of_card(card["model"]), torch.Generator())):
        rows = list(pruned.get(layer.name, ()))
        for name in layer.tensors:
            assert not arrays[name][rows].any()
    # Relearning is refused: nothing can bring these channels back.
    with pytest.raises(BadSetting, match="pruned channels cannot be trained back"):
        ask(home, "relearn", forget_classes="3")


def test_a_compact_version_is_smaller_and_can_forget_again(home: Path) -> None:
    options = "prune-share=0.25,rounds=1,target=100,compact=1"
    record = ask(home, "forget", method="class-pruning", forget_classes="3", method_options=options)
    before, after = load(home, "v0001")[0], load(home, "v0002")[0]
    assert load(home, "v0002")[1]["model"]["compact"] is True
    assert sum(a.size for a in after.values()) < sum(a.size for a in before.values())
    assert record["recovered"]["retain_accuracy"] is not None
    again = ask(home, "forget", method="influential-de", forget_classes="5")
    assert again["model_version"] == "v0003"
    with pytest.raises(BadSetting, match="must have all its channels to be pruned, got a compact"):
        ask(home, "forget", method="class-pruning", forget_classes="7")


@pytest.mark.parametrize(
    ("method", "more"),
    [("influential-de", {}), ("influential-ce", {"server_samples": "test:100"})],
)
def test_every_parameter_outside_the_chosen_channels_is_the_same_bit_for_bit(
    home: Path, method: str, more: dict[str, str]
) -> None:
    record = ask(home, "forget", method=method, forget_classes="3", **more)
    (before, card), (after, _) = load(home, "v0001"), load(home, "v0002")
    layers = layout(build(ModelSpec.of_card(card["model"]), torch.Generator()))
    changed = 0
    for layer in layers:
        rows = record["channels"]["chosen"][layer.name]
        for name in layer.tensors:
            assert np.array_equal(np.delete(before[name], rows, 0), np.delete(after[name], rows, 0))
            changed += int(not np.array_equal(before[name][rows], after[name][rows]))
    assert changed
    assert record["channels"]["chosen"]["classifier"] == [3]
    ask(home, "relearn", method=method, forget_classes="3", **more)


def test_the_centralised_scheme_sends_not_one_byte(home: Path) -> None:
    record = ask(
        home, "forget", method="influential-ce", forget_classes="3", server_samples="test:100"
    )
    for phase in ("score", "unlearn"):
        assert record["bytes"][phase] == {"up": 0, "down": 0}
    assert record["rounds"] == {"score": 0, "unlearn": 0}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "influential-ce"}, "got no server-samples"),
        ({"method": "influential-ce", "server_samples": "test:9999"}, "must leave test examples"),
        ({"method": "influential-ce", "server_samples": "some"}, "test:NUMBER or npz:PATH"),
        ({"method": "influential-ce", "server_samples": "test:1"}, "every class to forget"),
        ({"method": "influential-de", "method_options": "delta=0"}, r"delta must lie in \(0, 1\]"),
        ({"method": "class-pruning", "method_options": "prune-share=1"}, "must lie in"),
        ({"method": "class-pruning", "forget_clients": "client-0"}, "served by quickdrop"),
        ({"method": "class-pruning", "method_options": "prune-share=0.99"}, "at least one of its"),
    ],
)
def test_bad_input_is_refused_and_the_version_stays(
    home: Path, more: dict[str, str], message: str
) -> None:
    named = {} if "forget_clients" in more else {"forget_classes": "3"}
    with pytest.raises(BadSetting, match=message):
        ask(home, "forget", **named, **more)
    assert [v.id for v in Service.open(Home(home)).ledger.versions()] == ["v0001"]
