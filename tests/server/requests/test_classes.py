"""Classes by name, from the folders to the verdict, as a user meets them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from PIL import Image
from typer.testing import CliRunner

from client.app import app as client_app
from client.data import class_names
from client.data.datasets import load
from client.errors import BadSetting
from client.policy import FILE
from client.steps.measuring import Describe
from server.cli import app
from server.cli.command import FAILED, USAGE
from server.evidence.record import to_json
from server.format import class_text
from server.nodes.class_names import ClassesDiffer, differences
from server.nodes.engines.inline import InlineGrid
from server.nodes.grid import NamedGrid
from server.requests.classes import check_as_trained, class_number, joined, numbered
from server.requests.intake import Service
from server.settings import RunSettings
from server.storage.home import Home
from tests.policies import written_policy

CLOTHES = ("Bag, large", "Sneaker", "T-shirt", "Trouser")
TWELVE = tuple(map(str, range(12)))
TINY = [
    *("--num-clients", "2", "--partition", "iid", "--rounds", "2", "--local-steps", "6"),
    *("--batch-size", "16", "--scale", "4", "--lr", "0.1", "--model-width", "8", "--holdout", "0"),
]


pytestmark = pytest.mark.usefixtures("surroundings")


def write(root: Path, names: tuple[str, ...], *, train: int = 12, test: int = 3) -> Path:
    """Write noisy 8x8 images, a folder a class; class k's own bar is bright."""
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(names):
            draws = np.random.default_rng([label, count])
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 60, (8, 8))
                pixels[label % 8, :] += 150 if label < 8 else 0
                pixels[:, label % 8] += 0 if label < 8 else 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


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


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a home whose v0001 knows `CLOTHES`, and its data."""
    root = tmp_path_factory.mktemp("clothes")
    data = write(root / "data", CLOTHES)
    Efface(root / "home").json("train", "--dataset", f"folder:{data}", *TINY)
    return root


@pytest.fixture
def efface(clothes: Path, tmp_path: Path) -> Efface:
    """Return a copy of the home."""
    shutil.copytree(clothes / "home", tmp_path / "home")
    return Efface(tmp_path / "home")


FORGET = ("--method", "sga", "--trial", "--max-forget-accuracy", "100")


# ---- the number and the folder -------------------------------------------------------------------


def test_class_2_is_the_folder_2_and_not_the_folder_10(tmp_path: Path) -> None:
    efface, data = Efface(tmp_path / "home"), write(tmp_path / "data", TWELVE, test=1)
    for number in range(4):  # four more test images in the folder that is to be forgotten
        source = data / "test" / "2" / "0.png"
        shutil.copy(source, source.with_name(f"more{number}.png"))
    efface.json("train", "--dataset", f"folder:{data}", *TINY)
    record = efface.json("forget", "--class", "2", *FORGET)
    assert record["forget"]["classes"] == [2]
    assert record["class_names"] == list(TWELVE)
    rows = [line.split() for line in efface("evaluate", "v0002").stdout.splitlines()]
    (forgotten,) = [row for row in rows if "forgotten" in row]
    assert forgotten[:3] == ["2", "forgotten", "5"]  # the folder 10 has one test image


def test_a_class_is_named_by_its_name_wherever_it_is_shown(efface: Efface) -> None:
    done = efface("forget", "--class", "sneaker", *FORGET)
    assert done.exit_code == 0, done.output
    assert "forgot class 1 (Sneaker)" in done.stdout
    for words in (("show", "r0002"), ("show", "v0002"), ("requests",), ("models",)):
        assert "class 1 (Sneaker)" in " ".join(efface(*words).stdout.split()), words
    assert "1 (Sneaker)" in efface("evaluate", "v0002").stdout
    page = (efface.home / "reports" / "r0002.html").read_text()
    assert "<h1>Forget class 1 (Sneaker)</h1>" in page
    assert 'scope="row">class 2 (T-shirt)</th>' in page


def test_names_with_commas_several_names_and_numbers_are_taken(
    efface: Efface,
) -> None:
    plan = efface.json("forget", "--class", "Bag, large", "--class", "2", *FORGET, "--dry-run")
    assert plan["forget"]["classes"] == [0, 2]
    assert plan["class_names"] == list(CLOTHES)
    shown = efface("forget", "--class", "bag, LARGE", *FORGET, "--dry-run").stdout
    assert "would forget class 0 (Bag, large)" in " ".join(shown.split())


def test_an_unknown_name_is_refused_with_those_that_are_known(
    efface: Efface,
) -> None:
    done = efface("forget", "--class", "Boot", *FORGET)
    assert done.exit_code == USAGE
    known = "known: 0 Bag, large, 1 Sneaker, 2 T-shirt, 3 Trouser"
    assert f"class must be a class's name or number, got 'Boot'; {known}" in done.output
    assert [r["id"] for r in efface.json("requests")["requests"]] == ["r0001"]


def test_evaluate_and_relearn_take_names(efface: Efface) -> None:
    shown = efface("evaluate", "--relearning", "trouser").stdout
    assert "Relearning of class 3 (Trouser): mean" in shown
    done = efface("relearn", "--class", "Trouser", "--method", "sga")
    assert (
        "relearning must name what version v0001 has forgotten, got class 3 (Trouser)"
        in done.output
    )


def test_the_demonstration_takes_a_name_and_refuses_an_unknown_one_at_once(
    tmp_path: Path,
) -> None:
    efface, data = Efface(tmp_path / "home"), write(tmp_path / "data", CLOTHES)
    words = ["demo", "--dataset", f"folder:{data}", *TINY]
    done = efface(*words, "--class", "boot")
    assert done.exit_code == USAGE
    assert "class must be a class's name or number, got 'boot'" in done.output
    assert efface.json("requests")["requests"] == []
    easy = ["--max-forget-accuracy", "100", "--accept", "not-shown"]
    shown = efface(*words, *easy, "--class", "trouser")
    assert "forgot class 3 (Trouser) in v0002" in shown.stdout, shown.output


def test_a_version_keeps_what_its_weights_need_elsewhere(efface: Efface) -> None:
    card = json.loads((efface.home / "versions" / "v0001" / "card.json").read_text())
    card = card.get("card", card)
    data = card["data"]
    assert data["class_names"] == list(CLOTHES)
    assert (data["num_classes"], data["image_shape"]) == (4, [1, 8, 8])
    assert len(data["mean"]) == len(data["std"]) == 1
    assert 0 < data["mean"][0] < 1
    assert card["model"]["name"] == "images"
    efface.json("forget", "--class", "3", *FORGET)
    assert efface.json("show", "v0002")["version"]["card"]["data"] == data


def test_what_is_passed_over_is_said_once(tmp_path: Path) -> None:
    efface, data = Efface(tmp_path / "home"), write(tmp_path / "data", CLOTHES[:2])
    (data / "train" / "__MACOSX").mkdir()
    (data / "train" / "Sneaker" / "Thumbs.db").write_bytes(b"no image")
    done = efface("train", "--dataset", f"folder:{data}", *TINY)
    assert done.exit_code == 0, done.output
    note = "data: 2 files and folders that hold no images were passed over: Thumbs.db, __MACOSX"
    assert done.output.count(note) == 1


# ---- data that are no longer those of training ---------------------------------------------------


def rename(data: Path) -> None:
    for part in ("train", "test"):
        (data / part / "T-shirt").rename(data / part / "Uniform")


def add(data: Path) -> None:
    shutil.copytree(data / "train" / "T-shirt", data / "train" / "Apron")


def remove(data: Path) -> None:
    for part in ("train", "test"):
        shutil.rmtree(data / part / "Trouser")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Uniform comes after Trouser, Apron before Bag.
        (rename, "class 2 of v0001 is 'T-shirt', and in "),
        (add, "class 0 of v0001 is 'Bag, large', and in "),
        (remove, "class 3 of v0001 is 'Trouser', and in "),
    ],
)
@pytest.mark.parametrize("words", [("forget", "--class", "0", *FORGET), ("evaluate",)])
def test_a_request_on_data_with_other_classes_is_refused_before_anything_starts(
    tmp_path: Path, change: Callable[[Path], None], message: str, words: tuple[str, ...]
) -> None:
    efface, data = Efface(tmp_path / "home"), write(tmp_path / "data", CLOTHES)
    efface.json("train", "--dataset", f"folder:{data}", *TINY, "--rounds", "1")
    change(data)
    done = efface(*words)
    assert done.exit_code == FAILED
    assert f"classes differ from training: {message}" in done.output
    assert [r["id"] for r in efface.json("requests")["requests"]] == ["r0001"]


def test_a_version_from_before_names_is_known_by_its_number_of_classes_and_the_old_order(
    tmp_path: Path,
) -> None:
    card = {"model": {"num_classes": 12, "channels": 1, "image_size": 8}}
    twelve = load(f"folder:{write(tmp_path / 'twelve', TWELVE, train=1, test=0)}")
    with pytest.raises(ClassesDiffer, match=r"class 2 of v0001 is '10', and in .* it is '2'"):
        check_as_trained("v0001", card, twelve)
    padded = tuple(f"{number:02}" for number in range(12))  # both orders number these alike
    check_as_trained(
        "v0001", card, load(f"folder:{write(tmp_path / 'padded', padded, train=1, test=0)}")
    )
    with pytest.raises(ClassesDiffer, match="training: v0001 knows 12, and digits has 10; use"):
        check_as_trained("v0001", card, load("digits"))
    check_as_trained("v0001", card, None)


def test_images_of_another_size_than_those_of_training_are_refused(tmp_path: Path) -> None:
    data = load(f"folder:{write(tmp_path, CLOTHES, train=1, test=0)}")
    model = {"num_classes": 4, "channels": 1, "image_size": 16}
    with pytest.raises(ClassesDiffer, match=r"examples differ from training: v0001 was trained on"):
        check_as_trained("v0001", {"model": model, "data": {"class_names": CLOTHES}}, data)


# ---- sites ---------------------------------------------------------------------------------------


def sites(home: Path, **folders: Path) -> Callable[[Message, Context], Message]:
    """Return a client that plays the sites `client-0`, `client-1` with data of their own."""
    names = [name.replace("_", "-") for name in folders]
    policies = {name: str(policy(home / "sites" / name, name)) for name in names}

    def client(message: Message, context: Context) -> Message:
        name = f"client-{context.node_config['partition-id']}"
        data, store = f"folder:{folders[name.replace('-', '_')]}", str(home / "stores" / name)
        own = Context(
            context.run_id,
            context.node_id,
            {"data": data, "store": store, "policy": policies[name]},
            context.state,
            context.run_config,
        )
        answer: Message = client_app(message, own)
        return answer

    return client


def policy(folder: Path, name: str) -> Path:
    """Return the policy of a site with few images, made the first time."""
    few = {"updates": '"single"', "min_examples": "2", "min_batch": "2"}
    return folder / FILE if folder.exists() else written_policy(folder, name, **few)


def ask(home: Path, client: Callable[[Message, Context], Message], **more: Any) -> dict[str, Any]:
    """Run a request on real sites: what the superlink engine's ServerApp does."""
    told = {
        "home": str(home),
        "num_clients": 2,
        "rounds": 1,
        "local_steps": 3,
        "batch_size": 8,
        "scale": 0,
        "model_width": 8,
        "engine": "superlink",
        "device": "cpu",
        **more,
    }
    service = Service.open(Home(home))
    request = service.prepare(RunSettings(**told).check())
    with InlineGrid(client, 2) as inner:
        return to_json(service.execute(request, NamedGrid(inner, 60.0, 0.005), Quiet()))


class Quiet:
    """Hears nothing."""

    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


NO_DATA = {"dataset": "none", "model_classes": 2, "model_channels": 1, "model_image_size": 8}


def test_sites_with_other_class_names_do_not_train_together(tmp_path: Path) -> None:
    client = sites(
        tmp_path,
        client_0=write(tmp_path / "a", ("cat", "dog")),
        client_1=write(tmp_path / "b", ("cat", "horse")),
    )
    with pytest.raises(ClassesDiffer) as caught:
        ask(tmp_path / "home", client, **NO_DATA)
    assert "client-1: class 1 is 'horse', not 'dog'" in str(caught.value)
    service = Service.open(Home(tmp_path / "home"))
    assert service.ledger.versions() == []
    (row,) = service.ledger.requests()
    assert row.state == "failed"


def test_a_site_is_compared_with_the_coordinators_own_data(tmp_path: Path) -> None:
    own = write(tmp_path / "own", ("cat", "dog"))
    other = write(tmp_path / "b", ("bird", "cat"))
    client = sites(tmp_path, client_0=own, client_1=other)
    with pytest.raises(ClassesDiffer) as caught:
        ask(tmp_path / "home", client, dataset=f"folder:{own}")
    assert "others than the coordinator has: client-1: class 0 is 'bird'" in str(caught.value)


def test_sites_are_compared_with_what_the_version_was_trained_on(tmp_path: Path) -> None:
    a = write(tmp_path / "a", ("cat", "dog", "fox"))
    b = write(tmp_path / "b", ("cat", "dog", "fox"))
    client = sites(tmp_path, client_0=a, client_1=b)
    three = {**NO_DATA, "model_classes": 3}
    trained = ask(tmp_path / "home", client, **three)
    assert trained["class_names"] == ["cat", "dog", "fox"]
    version = Service.open(Home(tmp_path / "home")).ledger.version("v0001")
    assert version.card["data"] == {
        "class_names": ["cat", "dog", "fox"],
        "num_classes": 3,
        "image_shape": [1, 8, 8],
        "mean": None,
        "std": None,
        "num_train": None,
        "num_test": None,
    }
    for part in ("train", "test"):
        (b / part / "dog").rename(b / part / "eel")
    change = {"mode": "forget", "method": "sga", "trial": True, "max_forget_accuracy": 100.0}
    with pytest.raises(ClassesDiffer, match="v0001 has: client-1: class 1 is 'eel', not 'dog'"):
        ask(tmp_path / "home", client, **three, **change, forget_classes="fox")
    for part in ("train", "test"):
        (b / part / "eel").rename(b / part / "dog")
    done = ask(tmp_path / "home", client, **three, **change, forget_classes="fox")
    assert done["forget"]["classes"] == [2]


def test_a_site_may_lack_the_last_classes_and_one_that_is_silent_is_passed_over(
    tmp_path: Path,
) -> None:
    a = write(tmp_path / "a", ("cat", "dog", "fox"))
    b = write(tmp_path / "b", ("cat", "dog"))
    three = {**NO_DATA, "model_classes": 3}
    record = ask(tmp_path / "home", sites(tmp_path, client_0=a, client_1=b), **three)
    assert record["class_names"] == ["cat", "dog", "fox"]
    broken = sites(tmp_path, client_0=a, client_1=tmp_path / "nowhere")
    record = ask(tmp_path / "home2", broken, **three, min_share=0.5)
    assert {absence["client"] for absence in record["absences"]} == {"client-1"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (np.frombuffer(b"no JSON", np.uint8), "client-1: class names must be JSON"),
        (np.frombuffer(b'["a", "b", "c"]', np.uint8), "must be a list of 1 to 2"),
    ],
)
def test_names_that_cannot_be_read_name_their_site(
    tmp_path: Path, names: "np.ndarray[Any, Any]", message: str
) -> None:
    data = write(tmp_path / "a", ("cat", "dog"))
    client = renamed(sites(tmp_path, client_0=data, client_1=data), names)

    with pytest.raises(ClassesDiffer, match=message.replace("[", r"\[")):
        ask(tmp_path / "home", client, **NO_DATA)


@pytest.mark.parametrize("names", [np.zeros((2, 2), np.uint8), None])
def test_a_site_that_says_no_names_has_none_to_compare(
    tmp_path: Path, names: "np.ndarray[Any, Any] | None"
) -> None:
    # A reply of another form is that site's failure; one without names has nothing to say.
    data = write(tmp_path / "a", ("cat", "dog"))
    honest = sites(tmp_path, client_0=data, client_1=data)
    assert ask(tmp_path / "home", renamed(honest, names), **NO_DATA)["class_names"] == [
        "cat",
        "dog",
    ]


def renamed(
    honest: Callable[[Message, Context], Message], names: "np.ndarray[Any, Any] | None"
) -> Callable[[Message, Context], Message]:
    """Return a client whose second node tells other class names."""

    def client(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        describes = message.metadata.message_type == Describe.message.name
        if context.node_config["partition-id"] != 1 or reply.has_error() or not describes:
            return reply
        arrays = {} if names is None else {class_names.ARRAY: Array(names)}
        metrics = reply.content.metric_records["metrics"]
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    return client


def test_the_first_class_that_differs_is_named_for_each_site() -> None:
    found = {"b": ("cat", "horse", "cow"), "a": ("cat", "dog"), "c": ("cat", "dog", "owl", "x")}
    assert differences(("cat", "dog", "owl"), found) == [
        "b: class 1 is 'horse', not 'dog'",
        "c: class 3 is 'x', not none",
    ]


# ---- what a person writes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names", "number"),
    [
        ("2", None, 2),
        ("2", TWELVE, 2),
        ("10", TWELVE, 10),
        ("#2", ("4", "3", "2"), 2),
        ("3", ("1", "2", "3"), 2),  # no class has that number
        ("Cat", ("cat", "dog"), 0),
        ("cat", ("Cat", "cat"), 1),  # as it is written comes first
        ("Gro\u0308\u00dfe", ("a", "Gr\u00f6\u00dfe"), 1),
        (" dog ", ("cat", "dog"), 1),
    ],
)
def test_a_name_or_number_means_one_class(
    text: str, names: tuple[str, ...] | None, number: int
) -> None:
    assert class_number(text, names, len(names or TWELVE)) == number


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (
            "2",
            ("1", "2", "3"),
            r"got '2', which is the name of class 1 \(2\) and the number of class 2 \(3\); "
            "write '#1' or '#2'",
        ),
        ("CAT", ("Cat", "cat"), r"got 'CAT', which fits class 0 \(Cat\) and class 1 \(cat\)"),
        ("cow", ("cat", "dog"), "got 'cow'; known: 0 cat, 1 dog"),
        ("2", ("cat", "dog"), r"class must lie in \[0, 2\), got 2; known: 0 cat, 1 dog"),
        ("#7", ("cat", "dog"), r"class must lie in \[0, 2\), got 7"),
        ("cat", None, "class must be a number from 0 up, got 'cat'"),
        ("0,1", None, "got '0,1'; name each class by a --class of its own"),
        ("cat, dog", ("cat", "dog"), "got 'cat, dog'; name each class by a --class of its own; kn"),
        ("-1", ("cat", "dog"), "got '-1'"),
    ],
)
def test_what_means_no_class_or_two_is_refused(
    text: str, names: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(BadSetting, match=message):
        class_number(text, names, len(names or TWELVE))


def test_several_names_travel_as_one_setting() -> None:
    names = ("a, b", 'say "x"', "c", "#1")
    assert numbered(joined(names), names, 4) == "0,1,2,1"
    assert numbered("9, 3", None, 10) == "9,3"
    assert numbered("", None, 10) == joined([]) == ""


def test_a_class_is_shown_with_its_name_unless_that_is_its_number() -> None:
    assert class_text(9, [*TWELVE[:9], "sneaker"]) == "class 9 (sneaker)"
    assert class_text(9, TWELVE) == class_text(9) == class_text(9, ["a"]) == "class 9"
