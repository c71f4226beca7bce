"""The Python API on digits, inline: what it returns, refuses, and leaves as it was."""

import inspect
import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import efface
from efface import asking
from efface.asking import TAKEN
from efface.source import settings_of
from server.cli import app
from server.cli.options import NAMED_DIFFERENTLY, OPTIONS
from server.settings import RunSettings
from tests.tasks.others import Texts
from tests.tasks.tables import Wine

ROOT = Path(__file__).parent.parent.parent
# Small enough that a request takes about a second. The limits let a model pass that has hardly
# learned anything; those who test verdicts set their own.
SMALL: dict[str, Any] = {
    "num_clients": 2,
    "partition": "iid",
    "model_width": 8,
    "rounds": 3,
    "scale": 20,
}
SURE = {"max_forget_accuracy": 100.0, "max_relearning_gap": 100.0, "accept": "not-shown"}


def small(home: Path, **more: Any) -> efface.Federation:
    return efface.Federation.inline("digits", home=home, **{**SMALL, **more})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> efface.Federation:
    """A federation that was trained and has forgotten the 3."""
    federation = small(tmp_path_factory.mktemp("api") / "home")
    federation.train(by="Trainer")
    federation.forget(class_=3, by="Data protection", why="Request 17", **SURE)
    return federation


# ---- the whole life ------------------------------------------------------------------------------


def test_training_makes_the_first_version(served: efface.Federation) -> None:
    version = served.version("v0001")

    assert (version.id, version.parent, version.request) == ("v0001", None, "r0001")
    assert version.class_names == tuple("0123456789")
    assert version.scores.retain_accuracy is not None
    assert version.result.kind == "train"
    assert version.result.verdict is None
    assert not version.has_forgotten.classes


def test_forgetting_puts_a_new_version_in_service(served: efface.Federation) -> None:
    result = served.result("r0002")

    assert result.version == served.in_service == served.version("v0002")
    assert result.version != served.version("v0001")
    assert (result.kind, result.changed, result.refused) == ("forget", True, False)
    assert result.record.asked_by == "Data protection"
    assert result.record.why == "Request 17"
    assert served.version("v0002").has_forgotten.classes == (3,)
    assert [version.state for version in served.versions()] == ["superseded", "in-service"]
    assert result.costs.rounds["recover"]
    assert repr(result).startswith("<Result r0002, forget: v0002, verdict ")
    assert repr(served.version("v0002")) == "<Version v0002, in-service, has forgotten 3>"


def test_what_a_request_made_is_judged_again_by_todays_limits(served: efface.Federation) -> None:
    result = served.result("r0002")
    before = result.record
    again = result.verify()

    assert isinstance(again, efface.Verdict)
    recovered = before.recovered
    assert recovered is not None
    found = {f.code: f.value for f in again.findings}
    assert found.get("forget-accuracy", found.get("nothing-to-show")) == recovered.forget_accuracy
    assert found["retain-accuracy"] == recovered.retain_accuracy
    assert served.result("r0002").record == before
    with pytest.raises(efface.EffaceError, match="must be one to forget, got r0001: train"):
        served.result("r0001").verify()


def test_a_version_in_hand_knows_when_it_no_longer_serves(tmp_path: Path) -> None:
    federation = small(tmp_path / "home", rounds=1)
    first = federation.train()
    assert first.in_service

    federation.train(seed=1)

    assert not first.in_service


def test_what_is_forgotten_is_listed(served: efface.Federation) -> None:
    (erased,) = served.forgotten()

    assert (erased.classes, erased.clients, erased.request) == ((3,), (), "r0002")
    assert erased.in_service == "v0002"
    assert erased.since is not None
    assert erased.since.tzinfo is not None


def test_requests_are_listed_and_filtered(served: efface.Federation) -> None:
    rows = served.requests()

    assert [(row.id, row.kind, row.state) for row in rows[:2]] == [
        ("r0001", "train", "done"),
        ("r0002", "forget", "done"),
    ]
    assert rows[1].asked_by == "Data protection"
    assert served.requests("interrupted") == []


def test_a_second_request_for_the_same_gives_the_first_ones_result(
    served: efface.Federation,
) -> None:
    again = served.forget(classes=["3"])

    assert not again.changed
    assert again.id == "r0002"
    assert again.version == served.version("v0002")
    with pytest.raises(efface.AlreadyDone):
        served.plan(class_=3)


def test_what_was_forgotten_is_brought_back(tmp_path: Path) -> None:
    federation = small(tmp_path / "home")
    federation.train()
    federation.forget(client="client-1", method="not", options={"rounds": 1}, **SURE)
    assert federation.version("v0002").has_forgotten.clients == ("client-1",)

    result = federation.relearn(clients=["client-1"], method="not", options={"rounds": 1})

    assert result.kind == "relearn"
    assert result.verdict is None
    assert result.version is not None
    assert not result.version.has_forgotten.clients
    assert federation.forgotten() == []


def test_the_command_line_goes_on_with_what_python_began(served: efface.Federation) -> None:
    done = CliRunner().invoke(app, ["show", "v0002", "--home", str(served.home)])

    assert done.exit_code == 0, done.output
    assert "class 3" in done.output


# ---- verdicts ------------------------------------------------------------------------------------


def test_a_request_that_is_not_shown_is_a_result_and_no_error(served: efface.Federation) -> None:
    before = served.in_service
    result = served.forget(class_=5, max_forget_accuracy=100.0)

    assert result.verdict is not None
    assert not result.verdict
    assert result.verdict.state == "not-shown"
    assert any("--compare retrain" in text for text in result.verdict.not_measured)
    assert str(result.verdict).startswith("Verdict: not shown\n")
    assert (result.refused, result.version) == (True, None)
    assert served.in_service == before
    with pytest.raises(efface.NotShown, match="not"):
        result.raise_if_refused()
    with pytest.raises(efface.NotShown):
        served.result(result.id).raise_if_refused()


def test_a_verdict_is_true_only_if_it_passed() -> None:
    assert efface.Verdict("passed")
    assert not efface.Verdict("failed")
    assert not efface.Verdict("not-shown")


def test_a_trial_is_kept_whatever_its_verdict(served: efface.Federation) -> None:
    before = served.in_service
    result = served.forget(client="client-0", method="sga", trial=True)

    assert result.version is not None
    assert result.version.state == "trial"
    assert served.in_service == before
    result.raise_if_refused()


def test_a_report_is_written_where_it_is_asked_for(
    served: efface.Federation, tmp_path: Path
) -> None:
    path = served.result("r0002").report(tmp_path / "x.html")

    assert path == tmp_path / "x.html"
    assert "Data protection" in path.read_text()
    assert served.result("r0002").report() == served.home / "reports" / "r0002.html"
    with pytest.raises(efface.BadSetting, match="output must lie in a folder that exists"):
        served.result("r0002").report(tmp_path / "none" / "x.html")


# ---- a version's model ---------------------------------------------------------------------------


def test_a_versions_model_is_a_plain_module_with_its_weights(served: efface.Federation) -> None:
    version = served.version("v0002")
    network = version.model()

    assert isinstance(network, torch.nn.Module)
    assert not network.training
    assert list(network.state_dict()) == list(version.weights())
    for name, array in version.weights().items():
        np.testing.assert_array_equal(network.state_dict()[name].numpy(), array)


def test_a_versions_model_scores_as_it_was_measured(served: efface.Federation) -> None:
    from client.data import datasets

    version, test = served.version("v0001"), datasets.load("digits").test
    assert version.mean is not None
    assert version.std is not None
    pixels = test.inputs.float() / 255
    for refused in (version.model, version.weights, lambda: version.export("any.pt")):
        with pytest.raises(efface.EffaceError, match=r"got v0001, which knows class 3") as told:
            refused()
        # What is to be said is said in the words of whoever asks.
        assert "this one all the same: allow_forgotten=['r0002']" in str(told.value)
    network = version.model(allow_forgotten="r0002")
    with torch.no_grad():
        found = network((pixels - version.mean[0]) / version.std[0]).argmax(1)
    right = (found == test.labels).double().mean().item()

    assert 100 * right == pytest.approx(served.evaluate("v0001").retain_accuracy)


def test_what_is_done_to_a_model_changes_nothing_in_the_home(served: efface.Federation) -> None:
    version = served.version("v0002")
    with torch.no_grad():
        for parameter in version.model().parameters():
            parameter.zero_()

    assert any(array.any() for array in version.weights().values())


def test_a_version_is_measured_again(served: efface.Federation) -> None:
    scores = served.evaluate("v0002", relearning=3)

    assert scores.per_class_accuracy is not None
    assert len(scores.per_class_accuracy) == 10
    assert scores.forget_accuracy == scores.per_class_accuracy[3]
    assert scores.curve_mean is not None
    assert served.evaluate().relearning_curve is None
    assert served.version("v0002").evaluate(relearning=[3]) == scores


# ---- plans ---------------------------------------------------------------------------------------


def test_a_plan_says_what_a_request_takes_and_starts_nothing(served: efface.Federation) -> None:
    before = served.requests()
    plan = served.plan(
        class_=7, method="sga", options={"rounds": 2}, compare="retrain", by="Nobody", trial=True
    )

    assert (plan.method, plan.base_version, plan.takes_up) == ("sga", "v0002", None)
    assert plan.rounds > 0
    assert plan.seconds is not None
    assert any(phase["phase"] == "retrain" for phase in plan.document["phases"])
    assert served.requests() == before


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_cleints": 3}, "did you mean num_clients"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"method": "sga"}, "got 'method'"),
        ({"compare": "retrain"}, "setting must be one that Federation takes, got 'compare'"),
        ({"destroy": True}, "give it to Federation.forget"),
        ({"engine": "ray"}, "multiple values|engine"),
        ({"partition": "dirichlet"}, "partition"),
        ({"clients": ["client-7"]}, "client-0 to client-1"),
        ({"federation": "demo 1"}, "federation must not begin with 'demo '"),
    ],
)
def test_a_wrong_setting_is_refused_when_a_federation_is_described(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises((efface.BadSetting, TypeError), match=words):
        efface.Federation.inline("digits", home=tmp_path / "home", **{"num_clients": 2, **settings})
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("data", "words"), [("digitz", "dataset must be one of"), (7, "data must be a text such as")]
)
def test_a_wrong_source_is_refused_when_a_federation_is_described(data: Any, words: str) -> None:
    with pytest.raises(efface.BadSetting, match=words):
        efface.Federation.inline(data)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "request must name classes or clients, got nothing"),
        ({"class_": 3, "classes": [4]}, "request must name class or classes, got both"),
        ({"class_": True}, "class must be a name or a whole number, got True"),
        ({"class_": 4, "client": "client-0"}, "must name classes or clients, got both"),
        ({"class_": 12}, r"class must lie in \[0, 10\), got 12"),
        ({"client": "client-9"}, "client must be one of client-0 to client-1"),
        ({"client": 3}, "client must be texts, got 3"),
        ({"class_": 4, "method": "quick"}, "method must be one of"),
        ({"class_": 4, "options": {"recover_round": 1}}, "option must be one of"),
        ({"class_": 4, "options": {"recover_rounds": "1,2"}}, "without a comma"),
        ({"class_": 4, "compare": "always"}, "compare must be one of none, retrain"),
        ({"class_": 4, "rounds": 4}, "give it to Federation"),
        ({"class_": 4, "version": "v0009"}, "v0009"),
    ],
)
def test_a_wrong_request_is_refused_before_it_is_written_down(
    served: efface.Federation, asked: dict[str, Any], words: str
) -> None:
    before = served.requests()
    with pytest.raises(efface.EffaceError, match=words):
        served.forget(**asked)
    assert served.requests() == before


def test_before_the_first_training_there_is_nothing(tmp_path: Path) -> None:
    federation = small(tmp_path / "home")

    assert (federation.versions(), federation.requests(), federation.forgotten()) == ([], [], [])
    assert federation.in_service is None
    with pytest.raises(efface.BadSetting, match="home must exist"):
        federation.forget(class_=3)
    assert not (tmp_path / "home").exists()


def test_another_federations_versions_are_not_its_own(served: efface.Federation) -> None:
    other = small(served.home, num_clients=3)

    assert other.versions() == []
    with pytest.raises(efface.EffaceError, match="version must belong to"):
        other.version("v0001")
    with pytest.raises(efface.EffaceError, match="request must belong to"):
        other.result("r0001")


# ---- while it runs -------------------------------------------------------------------------------


def test_a_function_is_told_of_every_round(tmp_path: Path) -> None:
    steps: list[efface.Progress] = []
    small(tmp_path / "home", progress=steps.append).train()

    rounds = [step for step in steps if step.phase]
    assert [(step.phase, step.round, step.rounds) for step in rounds] == [
        ("train", number, 3) for number in (1, 2, 3)
    ]
    assert all(step.clients == 2 and step.seconds > 0 for step in rounds)
    assert rounds[-1].retain_accuracy is not None


def test_no_terminal_means_silence_and_true_means_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = small(tmp_path / "home", rounds=1)
    federation.train()
    assert capsys.readouterr() == ("", "")

    federation.train(progress=True, seed=1)
    told = capsys.readouterr()
    assert told.out == ""
    assert "train 1/1" in told.err


def test_a_stopped_request_goes_on_with_the_same_call(tmp_path: Path) -> None:
    def stop(step: efface.Progress) -> None:
        if step.round == 2:
            raise KeyboardInterrupt

    whole = small(tmp_path / "whole").train()
    federation = small(tmp_path / "home")
    with pytest.raises(KeyboardInterrupt):
        federation.train(progress=stop)
    assert [row.state for row in federation.requests()] == ["interrupted"]

    rounds: list[int] = []
    version = federation.train(progress=lambda step: rounds.append(step.round))

    assert [row.state for row in federation.requests()] == ["done"]
    assert 3 in rounds
    assert 1 not in rounds
    assert version.sha256 == whole.sha256


def test_what_a_function_raises_stops_a_request_which_can_be_given_up(tmp_path: Path) -> None:
    def fail(step: efface.Progress) -> None:
        raise ZeroDivisionError

    federation = small(tmp_path / "home", rounds=1)
    with pytest.raises(ZeroDivisionError):
        federation.train(progress=fail)
    (stopped,) = federation.requests("interrupted")

    assert federation.abort(stopped.id).state == "aborted"
    assert [row.state for row in federation.requests()] == ["aborted"]
    with pytest.raises(efface.EffaceError, match="aborted"):
        federation.abort(stopped.id)
    with pytest.raises(efface.EffaceError, match="must have a record, got none: it is aborted"):
        federation.result(stopped.id)


@pytest.fixture
def own_threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_a_run_leaves_the_process_as_it_was(
    tmp_path: Path, own_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EFFACE_STORE", raising=False)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)

    federation = small(tmp_path / "home", rounds=1)
    federation.train()
    federation.evaluate()

    assert torch.get_num_threads() == own_threads
    assert "EFFACE_STORE" not in os.environ
    assert torch.equal(torch.rand(1), expected)


# ---- arguments -----------------------------------------------------------------------------------


def test_numbers_names_and_paths_are_taken_as_python_has_them() -> None:
    assert asking.class_texts(3) == ["#3"]
    assert asking.class_texts(np.int64(3)) == ["#3"]
    assert asking.class_texts("cats") == ["cats"]
    assert asking.class_texts(["cats", 2]) == ["cats", "#2"]
    assert asking.option_texts({"recover_rounds": 2, "compact": True}) == [
        "recover-rounds=2",
        "compact=1",
    ]
    found = asking.settings("Federation", {"lr": np.float64(0.5), "data_dir": Path("/data")})
    assert found == {"lr": 0.5, "data-dir": "/data"}
    assert asking.settings("Federation", {"clients": ["a", "b"]}) == {"clients": "a,b"}


def test_every_setting_is_taken_somewhere() -> None:
    own = {"dataset", "engine", "connection", "version", "method", "compare", "accept", "trial"}
    own |= {"count"}
    options = {option.key for option in OPTIONS}

    assert set().union(*TAKEN.values()) | own == options
    assert not NAMED_DIFFERENTLY & set().union(*TAKEN.values())


def test_the_defaults_in_signatures_are_those_of_the_settings() -> None:
    for way in (efface.Federation.inline, efface.Federation.ray):
        told = inspect.signature(way).parameters["num_clients"].default
        assert told == RunSettings().num_clients


def test_every_public_name_is_documented_with_an_example() -> None:
    calls = {
        name: getattr(efface.Federation, name)
        for name in vars(efface.Federation)
        if not name.startswith("_")
    }
    for name, call in calls.items():
        assert inspect.getdoc(call), name
        if callable(call) and name != "version":
            assert "```python" in str(inspect.getdoc(call)), name
    for kind in (efface.Version, efface.Result, efface.Verdict, efface.Progress, efface.Federation):
        assert "```python" in str(inspect.getdoc(kind)), kind


def test_the_reference_names_all_that_is_public() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    told = re.findall(r"^::: efface\.(\w+)$", page, re.MULTILINE)

    assert sorted(told) == sorted(efface.__all__)
    table = runpy.run_path(str(ROOT / "docs" / "settings_table.py"))["on_page_markdown"](page)
    assert "<!-- settings -->" not in table
    for name in set().union(*TAKEN.values()):
        assert f"| `{name.replace('-', '_')}` |" in table


def test_settings_that_the_card_knows_are_the_versions_own(served: efface.Federation) -> None:
    """A request computes as its version was trained, whatever this description says."""
    other = small(served.home, rounds=9, lr=0.01)

    assert other.name == served.name
    assert other.in_service == served.in_service


def test_a_superlink_federation_is_described_without_asking_for_it(tmp_path: Path) -> None:
    federation = efface.Federation.superlink(
        "hospitals",
        home=tmp_path / "home",
        clients=["site-a", "site-b"],
        model_classes=2,
        model_channels=1,
        model_image_size=16,
    )

    assert federation.name == "none, 2 clients (site-a, site-b) of SuperLink hospitals"
    assert federation.versions() == []


# ---- a task of one's own -------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["class", "instance", "text"])
def test_a_task_is_the_first_argument(tmp_path: Path, given: str) -> None:
    source = {
        "class": Wine,
        "instance": Wine(hidden=8),
        "text": f"{Path(inspect.getfile(Wine))}:Wine",
    }[given]
    federation = efface.Federation.inline(
        source, num_clients=3, home=tmp_path / "home", partition="iid", scale=0, progress=False
    )
    version = federation.train(rounds=2, local_steps=4, batch_size=16)
    hidden = 8 if given == "instance" else 16
    assert version.weights()["0.weight"].shape == (hidden, 13)
    assert version.model()(torch.zeros(2, 13)).shape == (2, 3)
    assert version.class_names == Wine.class_names
    path = version.export(tmp_path / "wine.pt")
    assert torch.load(path, weights_only=True)["0.weight"].shape == (hidden, 13)


def test_a_file_of_functions_is_the_first_argument_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\nfrom client.task import Data, Examples\n"
        "input_shape = (2,)\nclass_names = ('a', 'b')\n"
        "def network():\n    return nn.Linear(2, 2)\n"
        "def data(source):\n    return Data(Examples([[0.0, 1.0]] * 4, [0, 1, 0, 1]))\n"
    )
    federation = efface.Federation.inline(str(file), num_clients=2, home=tmp_path / "home")
    assert federation.name.startswith("mine, 2 clients")


def test_an_instances_options_are_those_that_differ_and_have_no_comma() -> None:
    assert settings_of(Texts(hidden=8))["task-options"] == "hidden=8"
    with pytest.raises(
        efface.BadSetting, match=r"option columns .* without a comma, got 'age,bmi'"
    ):
        settings_of(Texts(columns="age,bmi"))


def test_a_task_without_a_file_is_refused(tmp_path: Path) -> None:
    class Lost(efface.Task):
        input_shape = (2,)
        class_names = ("a", "b")

    with pytest.raises(efface.BadSetting, match="task Lost must stand at the top of a file"):
        efface.Federation.inline(Lost, home=tmp_path / "home")
    with pytest.raises(efface.BadSetting, match="or a task, got a int"):
        efface.Federation.inline(7, home=tmp_path / "home")  # type: ignore[arg-type]
    with pytest.raises(efface.BadSetting, match="dataset must be given once, got 'digits'"):
        efface.Federation.inline("digits", dataset="mnist", home=tmp_path / "home")
