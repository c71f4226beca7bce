"""Users' tasks: their options, their sources, what is refused of them before any work."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from client import own_task
from client.data.whole import whole
from client.errors import BadSetting, CodeMismatch, DataError
from client.learning.models import (
    ModelSpec,
    build,
    check_frozen,
    draws_at_random,
    identified,
    loaded,
    state_of,
    traced,
)
from client.node import told_of
from client.own_task import offer, source_of, task_of
from client.task import Data, Examples, Task, canonical, judge, option_values
from client.task_folders import look_in, place

TASKS = Path(__file__).parent.parent / "tasks"


def kept(folder: Path, text: str) -> tuple[str, str]:
    """Keep a task's sources where tasks are looked for; return its name and its code."""
    source = source_of(text)
    source.keep(folder)
    look_in(folder)
    return source.name, source.code


def spec_of(folder: Path, text: str, **options: Any) -> ModelSpec:
    name, code = kept(folder, text)
    known = task_of(name, code=code).known_options()
    task = task_of(name, canonical({**known, **options}), code)
    return identified(ModelSpec.of(task.fitted(None), name, code))


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


# ---- options -------------------------------------------------------------------------------------


class Optioned(Task):
    input_shape = (2,)
    class_names = ("a", "b")
    hidden: int = 4
    rate: float = 0.5
    wide: bool = False
    kind: str = "plain"
    not_one = 7
    _hidden: int = 1


def test_annotated_values_are_options_with_their_defaults() -> None:
    assert Optioned.known_options() == {"hidden": 4, "rate": 0.5, "wide": False, "kind": "plain"}
    assert Optioned(hidden=8, rate=1).options == {
        "hidden": 8, "rate": 1.0, "wide": False, "kind": "plain",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "must be one of hidden, rate, wide, kind, got 'depth'"),
        ({"hidden": "8"}, "hidden of task Optioned must be int, got '8'"),
        ({"hidden": True}, "hidden of task Optioned must be int, got True"),
        ({"wide": 1}, "wide of task Optioned must be bool, got 1"),
    ],
)
def test_an_unknown_option_and_one_of_another_type_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadSetting, match=message):
        Optioned(**options)


def test_options_are_read_from_texts() -> None:
    texts = ["hidden=8", " rate = 0.25", "wide=yes", "kind=deep"]
    assert option_values(Optioned.known_options(), texts) == {
        "hidden": 8, "rate": 0.25, "wide": True, "kind": "deep",
    }  # fmt: skip
    for text, message in (
        ("hidden", "must be NAME=VALUE, got 'hidden'"),
        ("depth=1", "must be one of hidden, .*, got 'depth'"),
        ("hidden=many", "hidden must be int, got 'many'"),
        ("wide=perhaps", "wide must be bool, got 'perhaps'"),
    ):
        with pytest.raises(BadSetting, match=message):
            option_values(Optioned.known_options(), [text])
    with pytest.raises(BadSetting, match=r"has none, got 'width'; .* width: int = 32 in the class"):
        option_values({}, ["width=5"])


@pytest.mark.parametrize("options", ["[]", "7", "{", '"text"'])
def test_options_that_are_no_json_object_are_refused(options: str) -> None:
    with pytest.raises(BadSetting, match="task-options must be"):
        task_of("images", options)


def test_what_a_task_does_not_say_is_asked_for() -> None:
    class Silent(Task):
        pass

    with pytest.raises(BadSetting, match="must have an input_shape, got none"):
        Silent().fitted(None)

    class Nameless(Task):
        input_shape = (2,)

    with pytest.raises(BadSetting, match="must have class_names, or a loss of its own, got 0"):
        Nameless().fitted(None)


# ---- sources -------------------------------------------------------------------------------------


def test_a_task_is_found_by_the_hash_of_its_sources_alone(tmp_path: Path) -> None:
    text = (TASKS / "tables.py").read_text() + "# of this test alone\n"
    name, code = kept(tmp_path, f"{written(tmp_path, text)}:Wine")
    assert name == "mine:Wine"
    assert len(code) == 64
    assert task_of(name, '{"hidden":8}', code).options == {"hidden": 8, "dropout": 0.1}
    other = code[::-1]
    with pytest.raises(CodeMismatch, match=f"must be here with the code {other[:12]}, got none"):
        task_of(name, code=other)
    (tmp_path / code / "mine.py").write_text("print('another')")
    own_task._class_of.cache_clear()
    with pytest.raises(CodeMismatch):
        task_of(name, '{"hidden":9}', code)


def test_another_source_is_another_task_beside_the_first(tmp_path: Path) -> None:
    text = "from client.task import Task\nclass Mine(Task):\n    size: int = {}\n"
    found = []
    for size in (1, 2):
        name, code = kept(tmp_path / "kept", written(tmp_path, text.format(size)) + ":Mine")
        found.append(task_of(name, code=code).options["size"])
    assert found == [1, 2]


def test_a_package_is_a_task_with_relative_imports(tmp_path: Path) -> None:
    written(tmp_path, "", "chest/__init__.py")
    written(tmp_path, "SIZE = 5\n", "chest/sizes.py")
    text = (
        "from client.task import Task\nfrom .sizes import SIZE\n"
        "class Chest(Task):\n    size: int = SIZE\n"
    )
    name, code = kept(tmp_path / "kept", written(tmp_path, text, "chest/task.py") + ":Chest")
    assert name == "chest.task:Chest"
    assert task_of(name, code=code).options == {"size": 5}


def test_of_a_package_only_what_can_be_imported_and_comes_into_a_bundle_travels(
    tmp_path: Path,
) -> None:
    text = "from client.task import Task\nclass Chest(Task): pass\n"
    file = written(tmp_path, text, "chest/__init__.py")
    for other in ("test_chest.py", "deep/chest_test.py", ".venv/lib.py", "my notes/a.py"):
        written(tmp_path, "", f"chest/{other}")
    written(tmp_path, "", "chest/deep/layers.py")
    assert set(source_of(f"{file}:Chest").files) == {"chest/__init__.py", "chest/deep/layers.py"}


@pytest.mark.parametrize("name", ["test_chest.py", "chest_test.py", "röntgen.py", "my-chest.py"])
def test_a_file_that_no_bundle_would_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadSetting, match="must be named like a Python module"):
        source_of(f"{written(tmp_path, '', name)}:Mine")


def test_functions_of_a_module_are_a_task(tmp_path: Path) -> None:
    text = (
        "from torch import nn\nfrom client.task import Data, Examples\n"
        "input_shape = (2,)\nclass_names = ('a', 'b')\n"
        "def network():\n    return nn.Linear(2, 2)\n"
        "def data(source):\n    return Data(Examples([[0.0, 1.0]] * 4, [0, 1, 0, 1]))\n"
    )
    name, code = kept(tmp_path / "kept", written(tmp_path, text))
    task = task_of(name, code=code)
    assert (name, task.num_classes) == ("mine", 2)
    assert isinstance(task.network(), nn.Linear)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Mine: pass", "must be a class derived from client.task.Task, got type"),
        ("", "must be a class derived from client.task.Task, got none"),
        ("import no_such_package", "must be importable, got ModuleNotFoundError"),
        ("\n1 / 0", r"must be importable, got ZeroDivisionError.* \(mine.py, line 2\)"),
    ],
)
def test_a_file_without_such_a_task_is_refused(tmp_path: Path, text: str, message: str) -> None:
    name, code = kept(tmp_path / "kept", written(tmp_path, text) + ":Mine")
    with pytest.raises(BadSetting, match=message):
        task_of(name, code=code)


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadSetting, match="must name a Python file or package"):
        source_of("nowhere.py:Mine")


# ---- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (Examples(np.zeros((2, 3), "float32"), [0, 1]), r"must have shape \(2,\), .*, got \(3,\)"),
        (Examples(np.zeros((2, 2)), [0, 1]), "must be torch.float32, .*, got torch.float64"),
        (Examples(np.zeros((2, 2), "float32"), [0, 2]), r"labels must lie in \[0, 2\), got 2"),
        (Examples(np.zeros((2, 2), "float32"), [-1, 1]), r"labels must lie in \[0, 2\), got -1"),
    ],
)
def test_data_that_are_not_what_the_task_says_are_refused(examples: Examples, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Optioned().checked(Data(examples))


def test_labels_must_be_integers_one_an_example() -> None:
    with pytest.raises(DataError, match="labels must be integers"):
        Examples(np.zeros((2, 2)), np.array([0.5, 1.0]))
    with pytest.raises(DataError, match="inputs must be 2, one a label, got 3"):
        Examples(np.zeros((3, 2)), [0, 1])
    assert Examples(np.zeros((2, 2)), np.array([[0], [1]])).labels.tolist() == [0, 1]


def test_what_goes_wrong_in_a_task_is_said_with_its_kind_and_line(tmp_path: Path) -> None:
    text = (
        "from client.task import Task\nclass Mine(Task):\n    def data(self, s): float('Smith')\n"
    )
    name, code = kept(tmp_path / "kept", written(tmp_path, text) + ":Mine")
    with pytest.raises(DataError, match="data of task Mine must be readable, got ValueErr") as told:
        whole(task_of(name, code=code), "anything")
    assert str(told.value).endswith("could not convert string to float: 'Smith' (mine.py, line 3)")
    # From a node the words do not go up: they quote what was read. The line is of the bundle's.
    said = "[data-error] DataError in mine.py, line 3: the node's own log says why"
    assert told_of(told.value) == said


def test_an_offered_task_may_lie_in_a_package_of_its_packages_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from client.task import Task\nclass Mine(Task):\n    def data(self, s): float(s)\n"
    for folder in (tmp_path / "twice", tmp_path / "twice" / "twice"):
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "task.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("twice.twice.task").Mine
    assert offer(kind).name == "twice.twice.task:Mine"
    with pytest.raises(ValueError, match="could not convert") as told:
        kind.data(None, "x")
    assert place(told.value) == "twice/twice/task.py, line 3"


def test_an_error_of_ours_in_a_tasks_code_names_its_line_and_no_other_has_one(
    tmp_path: Path,
) -> None:
    text = "from client.task import Examples, Task\nclass Mine(Task):\n"
    text += "    def data(self, s):\n        return Examples([[0.0]], [0.5])\n"
    name, code = kept(tmp_path / "kept", written(tmp_path, text) + ":Mine")
    with pytest.raises(DataError, match=r"^labels must be .* \(mine.py, line 4\)$"):
        whole(task_of(name, code=code), "anything")
    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / "none").read_text()
    assert told_of(missing.value) == ("[unexpected] FileNotFoundError: the node's own log says why")
    error = BadSetting("network must be built, got none.npz")
    error.__cause__ = missing.value  # a file is missing at the site
    assert "none" not in told_of(error)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"labels": ["well", "ill"]}, "labels must be numbers, got texts; numpy.unique.labels, "),
        ({"ids": np.array(["p7", "p8"])}, "ids must be numbers, got texts; numpy.unique.ids, "),
        ({"inputs": np.array([["a"], ["b"]])}, "inputs must be numbers, got texts; convert them"),
        ({"targets": np.array([None, 1])}, "targets must be numbers, got object; convert them"),
    ],
)
def test_texts_and_other_objects_are_refused_with_what_to_do(
    part: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Examples(**{"inputs": np.zeros((2, 1), "float32"), "labels": [0, 1], **part})


def test_numbers_that_are_not_finite_are_said() -> None:
    inputs = np.zeros((3, 2), "float32")
    inputs[1, 0], inputs[2, 1] = np.nan, np.inf
    data = Optioned().checked(Data(Examples(inputs, [0, 1, 0])))
    assert [n.partition(":")[0] for n in data.notes] == [
        "2 of 3 train examples hold NaN or infinite numbers, the first at 1"
    ]
    assert Optioned().checked(Data(Examples(np.zeros((1, 2), "float32"), [0]))).notes == ()


def test_a_task_without_data_needs_the_name_of_some() -> None:
    with pytest.raises(BadSetting, match="must have a method `data`, or a data set that is named"):
        Optioned().data("")
    assert len(Optioned().data("digits").train) > 1_000


# ---- loss and score ------------------------------------------------------------------------------


class Judged(Task):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs() < 0.5


def test_a_loss_or_score_that_is_not_one_number_an_example_is_refused() -> None:
    loss, score = judge(Judged(), "loss"), judge(Judged(), "score")
    assert loss is not None
    assert score is not None
    with pytest.raises(BadSetting, match=r"loss of task Judged must give .*, \(4,\), got \(\);"):
        loss(torch.zeros(4), torch.ones(4))
    with pytest.raises(BadSetting, match=r"score .* \(4,\), got \(4, 3\); .*reduction='none'"):
        score(torch.zeros(4, 3), torch.ones(4, 3))
    assert score(torch.zeros(2), torch.tensor([0.0, 1.0])).tolist() == [True, False]
    assert judge(Optioned(), "loss") is None


class Squares(Dataset[Tensor]):
    """Reads nothing until it is asked; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Tensor:
        self.asked.append(index)
        return torch.full((2,), float(index * index))


def test_examples_may_be_read_one_at_a_time() -> None:
    squares = Squares()
    examples = Examples(squares, [0, 1, 0, 1, 0])
    assert squares.asked == []
    assert examples.take(torch.tensor([3, 1])).tolist() == [[9.0, 9.0], [1.0, 1.0]]
    assert sorted(squares.asked) == [1, 3]
    assert (examples.input_shape, examples.input_dtype) == ((2,), torch.float32)
    assert examples.subset(torch.tensor([2])).in_memory.tolist() == [[4.0, 4.0]]


# ---- networks ------------------------------------------------------------------------------------


def test_a_network_is_the_same_for_a_seed_and_torchs_generator_untouched(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, f"{TASKS / 'tables.py'}:Wine")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (build(spec, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(map(torch.equal, one.state_dict().values(), same.state_dict().values()))
    assert not torch.equal(one.get_parameter("0.weight"), other.get_parameter("0.weight"))


def test_a_loaded_network_computes_what_it_was_given(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, f"{TASKS / 'others.py'}:Words")
    model = build(spec, torch.Generator().manual_seed(3)).eval()
    tokens = spec.task.data("").test.in_memory
    again = loaded(spec, state_of(spec, model)).eval()
    assert torch.equal(model(tokens), again(tokens))
    assert traced(spec).head == "last"


def test_what_is_frozen_stays_at_home_and_must_be_the_same(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, f"{TASKS / 'others.py'}:Adapted")
    model = build(spec, torch.Generator().manual_seed(3))
    assert list(state_of(spec, model)) == ["last.weight", "last.bias"]
    assert len(spec.frozen) == 64
    other = build(spec, torch.Generator().manual_seed(4))
    weight = "body.0.weight"
    assert torch.equal(model.get_parameter(weight), other.get_parameter(weight))

    statistics = model.get_buffer("body.1.running_mean").clone()
    model.train()(torch.randn(4, 10, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(model.get_buffer("body.1.running_mean"), statistics)

    another = ModelSpec(spec.name, spec.options, spec.code, "0" * 64)
    with pytest.raises(CodeMismatch, match="that do not travel must have the hash 000000000000"):
        check_frozen(another)
    with pytest.raises(BadSetting, match="arrays must be those of the model"):
        loaded(spec, model.state_dict())


@pytest.mark.parametrize(("name", "random"), [("tables.py:Wine", True), ("others.py:Sugar", False)])
def test_it_is_known_whether_a_network_draws_in_training(
    tmp_path: Path, name: str, random: bool
) -> None:
    assert draws_at_random(spec_of(tmp_path, str(TASKS / name))) == random


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("nn.Linear(2, 3)", r"must return \(B, 2\), one number a class, got \(B, 3\)"),
        ("nn.Linear(3, 2)", r"must take examples \(2, 2\) of torch.float32"),
        ("nn.LSTM(2, 2)", r"must return \(B, 2\), one number a class, got something else"),
        ("1 / 0", "network of task Mine must be built, got ZeroDivisionError"),
        ("7", "network of task Mine must be a torch module, got int"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(tmp_path: Path, network: str, message: str) -> None:
    text = (
        "from torch import nn\nfrom client.task import Task\n"
        "class Mine(Task):\n    input_shape = (2,)\n    class_names = ('a', 'b')\n"
        f"    def network(self): return {network}\n"
    )
    with pytest.raises(BadSetting, match=message):
        spec_of(tmp_path / "kept", written(tmp_path, text) + ":Mine")


def test_a_former_cards_model_is_read() -> None:
    former = {"name": "lenet", "num_classes": 10, "channels": 1, "image_size": 28, "width": 32,
              "depth": 2, "pruned": ["body.0:1"], "compact": False}  # fmt: skip
    spec = ModelSpec.of_card(former)
    assert json.loads(spec.options) == {
        "net": "lenet", "num_classes": 10, "channels": 1, "image_size": 28, "width": 32, "depth": 2,
    }  # fmt: skip
    assert (spec.name, spec.pruned) == ("images", ("body.0:1",))
    # As stores of former releases name it.
    assert str(spec) == (
        "ModelSpec(name='lenet', num_classes=10, channels=1, image_size=28, width=32, depth=2)"
    )
