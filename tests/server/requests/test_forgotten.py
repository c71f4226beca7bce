"""What is forgotten stays forgotten, wherever its data turn up, and is said."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from PIL import Image

from client.app import app
from client.data import datasets
from client.data.identity import identity
from client.errors import BadSetting, DataError, EffaceError
from client.store import Store
from client.wire import ForgetSpec
from server.evidence.record import to_json
from server.format import target_text
from server.nodes.engines import superlink
from server.nodes.engines.inline import InlineGrid
from server.nodes.federation import Round
from server.nodes.grid import ClientsMissing, NamedGrid
from server.requests import forgotten, records
from server.requests.audit import audit
from server.requests.data import shares
from server.requests.intake import AlreadyDone, Service
from server.runner import demo, run
from server.settings import RunSettings
from server.storage.home import Home
from server.storage.ledger import Ledger
from strategies.table import METHODS

JOB: dict[str, Any] = {
    "num_clients": 3,
    "partition": "iid",
    "model_width": 8,
    "model_depth": 2,
    "rounds": 2,
    "local_steps": 10,
    "batch_size": 32,
    "lr": 0.1,
    "scale": 20,
    "method": "quickdrop",
    "method_options": "recover-epochs=2,threshold=100",
    "max_forget_accuracy": 100.0,
    "max_relearning_gap": 100.0,
    "accept": "not-shown",
    "engine": "inline",
    "device": "cpu",
}
FEDERATION = "digits, 3 clients, iid, seed 0"


pytestmark = pytest.mark.usefixtures("surroundings")


class Listening:
    """Remembers notes; presses Ctrl-C at a phase."""

    def __init__(self, stop_at: str = "") -> None:
        self.stop_at = stop_at
        self.notes: list[str] = []

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        if done.phase == self.stop_at:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


def settings(home: Path, mode: str, **more: Any) -> RunSettings:
    usual = {**JOB, "mode": mode, "home": str(home), **more}
    if mode == "train":
        usual["method_options"] = ""
    if mode == "relearn":
        usual["method_options"] = "relearn-lr=0.1"
    return RunSettings(**usual).check()


def ask(home: Path, mode: str, listener: Listening | None = None, **more: Any) -> dict[str, Any]:
    return to_json(run(settings(home, mode, **more), listener or Listening()))


def service(home: Path) -> Service:
    return Service.open(Home(home))


def requests(home: Path) -> list[tuple[str, str]]:
    return [(row.id, row.state) for row in service(home).ledger.requests()]


def own_digits(path: Path) -> str:
    """Write the digits to a file of one's own and return its name as a data set."""
    data = datasets.load("digits")
    parts = {}
    for name, split in (("train", data.train), ("test", data.test)):
        parts[f"{name}_images"] = split.inputs.permute(0, 2, 3, 1).numpy()
        parts[f"{name}_labels"] = split.labels.numpy()
    np.savez(path, **parts)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained") / "home"
    ask(home, "train")
    return home


@pytest.fixture(scope="module")
def forgotten_home(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("forgotten") / "home"
    shutil.copytree(trained_home, home)
    ask(home, "forget", forget_classes="9")
    return home


@pytest.fixture
def trained(trained_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_home, tmp_path / "home"))


@pytest.fixture
def without_9(forgotten_home: Path, tmp_path: Path) -> Path:
    """A home in which r0002 has forgotten class 9."""
    return Path(shutil.copytree(forgotten_home, tmp_path / "home"))


# ---- training on what is forgotten --------------------------------------------------------------


def test_a_version_keeps_the_fingerprint_of_its_data(without_9: Path) -> None:
    expected = identity(datasets.load("digits"))
    versions = service(without_9).ledger.versions()
    assert [version.card["data_sha256"] for version in versions] == [expected] * 2


@pytest.mark.parametrize(
    "told",
    [
        {"num_clients": 4},
        {"federation": "hospital"},
        {"partition_seed": 1},
        {"max_samples": 300},
        {"dataset": "npz"},
    ],
)
def test_the_same_data_under_another_name_are_refused(
    without_9: Path, tmp_path: Path, told: dict[str, Any]
) -> None:
    if told.get("dataset") == "npz":
        told = {"dataset": own_digits(tmp_path / "own.npz")}
    with pytest.raises(
        BadSetting,
        match=r"got data that hold class 9 \(forgotten by r0002 in federation 'digits, 3 clients, "
        r"iid, seed 0'\); go on in the federation .*--allow-forgotten r0002",
    ):
        ask(without_9, "train", **told)
    assert requests(without_9) == [("r0001", "done"), ("r0002", "done")]  # nothing has started


def test_within_its_federation_it_is_left_out_as_before(without_9: Path) -> None:
    record = ask(without_9, "train")
    assert record["original"]["per_class_accuracy"][9] <= 5
    assert record["warnings"] == []


def test_what_is_asked_for_by_name_is_learned_again_kept_and_said(without_9: Path) -> None:
    listener = Listening()
    record = ask(without_9, "train", listener, num_clients=4, allow_forgotten="r0002")
    said = (
        "class 9, forgotten by r0002 in federation 'digits, 3 clients, iid, seed 0', is learned "
        "again, as --allow-forgotten r0002 asked for"
    )
    assert listener.notes == [said]
    assert record["warnings"] == [said]
    assert service(without_9).ledger.request("r0003").settings["allow-forgotten"] == "r0002"
    assert "--allow-forgotten r0002" in record["command"]
    # And the list says who knows it.
    (listed,) = forgotten.listed(service(without_9).ledger)
    assert (listed["request"], listed["known_by"]) == ("r0002", ["v0003"])
    ask(without_9, "forget", forget_classes="9", version="v0003")
    assert [one["known_by"] for one in forgotten.listed(service(without_9).ledger)] == [[], []]


def test_only_what_a_training_would_undo_can_be_allowed(without_9: Path) -> None:
    with pytest.raises(BadSetting, match=r"this training would undo \(r0002\), got r0007"):
        ask(without_9, "train", num_clients=4, allow_forgotten="r0002,r0007")


def test_what_was_relearned_or_tried_binds_nobody(without_9: Path) -> None:
    ask(without_9, "relearn", forget_classes="9")
    ask(without_9, "forget", forget_classes="3", trial=True)
    assert ask(without_9, "train", num_clients=4)["model_version"] == "v0005"


def test_other_data_are_not_touched(without_9: Path, tmp_path: Path) -> None:
    data = datasets.load("digits")
    few = data.train.labels != 9
    np.savez(
        tmp_path / "others.npz",
        train_images=data.train.inputs[few].permute(0, 2, 3, 1).numpy(),
        train_labels=data.train.labels[few].numpy(),
    )
    told = {"dataset": f"npz:{tmp_path / 'others.npz'}", "num_clients": 2, "rounds": 1}
    assert ask(without_9, "train", **told)["model_version"] == "v0003"


def test_the_same_images_of_the_class_are_refused_in_any_company(
    without_9: Path, tmp_path: Path
) -> None:
    train = datasets.load("digits").train
    some = train.labels.flip(0) % 2 == 1  # 1, 3, 5, 7 and 9 backwards, called 0 to 4
    np.savez(
        tmp_path / "odd.npz",
        train_images=train.inputs.flip(0)[some].permute(0, 2, 3, 1).numpy(),
        train_labels=(train.labels.flip(0)[some] // 2).numpy(),
    )
    with pytest.raises(BadSetting, match="forgotten by r0002"):
        ask(without_9, "train", dataset=f"npz:{tmp_path / 'odd.npz'}", num_clients=2)
    # Within the federation the class is left out by its number, which is another one now.
    with pytest.raises(BadSetting, match="as they were numbered and shared out then"):
        ask(without_9, "train", dataset=f"npz:{tmp_path / 'odd.npz'}", federation=FEDERATION)


def test_images_more_fewer_or_altered_make_no_other_class(without_9: Path, tmp_path: Path) -> None:
    train = datasets.load("digits").train

    def copy(name: str, keep: Any) -> str:
        images, labels = train.inputs.clone(), train.labels
        images[(labels == 9).nonzero()[0], 0, 0, 0] ^= 1  # one image of the class has changed
        path = tmp_path / f"{name}.npz"
        kept = keep.numpy()
        pixels = images.permute(0, 2, 3, 1).numpy()
        np.savez(path, train_images=pixels[kept], train_labels=labels.numpy()[kept])
        return f"npz:{path}"

    nine = train.labels == 9
    half = ~nine | (nine.cumsum(0) % 2 == 0)
    for name, keep in (("altered", nine | ~nine), ("half", half)):
        with pytest.raises(BadSetting, match="forgotten by r0002"):
            ask(without_9, "train", dataset=copy(name, keep), num_clients=2)
    # Without any of its images it is other data.
    others = copy("others", ~nine)
    assert ask(without_9, "train", dataset=others, num_clients=2)["model_version"]


def test_a_forgotten_clients_share_is_refused_to_others(trained: Path) -> None:
    ask(trained, "forget", forget_clients="client-1")
    with pytest.raises(BadSetting, match=r"hold client client-1 \(forgotten by r0002"):
        ask(trained, "train", num_clients=4)
    # Under the federation's own name another partition would leave out another share.
    with pytest.raises(
        BadSetting, match="train on the data as they were numbered and shared out then"
    ):
        ask(trained, "train", num_clients=4, federation=FEDERATION)
    assert ask(trained, "train")["model_version"] == "v0003"


def test_who_knows_a_forgotten_client_is_listed_until_that_has_forgotten_it_too(
    trained: Path,
) -> None:
    ask(trained, "forget", forget_clients="client-1")
    ask(trained, "train", federation="hospital", allow_forgotten="r0002")
    (listed,) = forgotten.listed(service(trained).ledger)
    assert listed["known_by"] == ["v0003"]
    ask(trained, "forget", forget_clients="client-1", version="v0003")
    assert [one["known_by"] for one in forgotten.listed(service(trained).ledger)] == [[], []]


def test_demonstrations_are_federations_of_their_own(without_9: Path) -> None:
    told = settings(without_9, "train", rounds=1, local_steps=4)
    demo(told, Listening(), forget="3")
    shown = demo(told, Listening(), forget="3")  # once more, although 3 and 9 were forgotten
    assert shown.model_version
    # And what they forget and relearn is nobody else's.
    with pytest.raises(BadSetting, match=r"allow-forgotten r0002$"):
        ask(without_9, "train", num_clients=4)


def test_an_older_version_is_known_by_its_data_sets_name(
    without_9: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = Ledger.version

    def older(ledger: Ledger, name: str) -> Any:
        row = version(ledger, name)
        card = {key: value for key, value in row.card.items() if key != "data_sha256"}
        return row.__class__(**{**vars(row), "card": card})

    monkeypatch.setattr(Ledger, "version", older)
    with pytest.raises(BadSetting, match="forgotten by r0002"):
        ask(without_9, "train", num_clients=4)


@pytest.mark.parametrize(("connection", "refused"), [("lab", True), ("elsewhere", False)])
def test_real_nodes_are_those_that_a_superlink_reaches(
    tmp_path: Path, connection: str, refused: bool
) -> None:
    home = tmp_path / "home"
    real = {"engine": "superlink", "dataset": "none", "model_classes": 10, "model_channels": 1,
            "model_image_size": 8}  # fmt: skip
    ledger = service(home).ledger
    told = settings(home, "train", connection="lab", **real)
    _done(home, "train", told)
    _done(
        home, "forget", settings(home, "forget", forget_clients="site-c", connection="lab", **real)
    )

    asked = settings(home, "train", connection=connection, federation="new", **real)
    if refused:
        with pytest.raises(BadSetting, match=r"client site-c \(forgotten by r0002"):
            service(home).prepare(asked)
        return
    row = service(home).prepare(asked).row
    # Which clients are there is known when it starts: a name that was forgotten is refused.
    forgotten.check_clients(ledger, row, asked, ["site-a", "site-b"])
    with pytest.raises(BadSetting, match=r"client site-c \(forgotten by r0002"):
        forgotten.check_clients(ledger, row, asked, ["site-a", "site-c"])


def _done(home: Path, kind: Any, told: RunSettings) -> None:
    """Enter a done request of real clients without any of them."""
    ledger, registry = service(home).ledger, service(home).registry
    serving = ledger.in_service("sites")
    row = ledger.new_request(
        kind=kind,
        method="retraining",
        federation="sites",
        level="client" if told.forget_clients else None,
        clients=told.forget.clients,
        settings=told.plain(),
        base_version=None if serving is None else serving.id,
    )
    ledger.start(row.id)
    card = {"settings": told.training(), "erased": {"classes": [], "clients": []}}
    registry.commit(
        row.id,
        {"weight": np.zeros(1, dtype=np.float32)},
        card,
        parent=None if serving is None else serving.id,
        federation="sites",
        state="in-service",
    )


# ---- the list -----------------------------------------------------------------------------------


def test_the_list_has_classes_and_clients_with_their_requests(without_9: Path) -> None:
    ask(without_9, "forget", forget_classes="8")
    ask(without_9, "forget", forget_clients="client-1")
    ask(without_9, "relearn", forget_classes="9")
    ledger = service(without_9).ledger

    found = forgotten.listed(ledger)
    assert [(one["classes"], one["clients"], one["request"]) for one in found] == [
        ([8], [], "r0003"),
        ([], ["client-1"], "r0004"),
    ]
    for one in found:
        row = ledger.request(one["request"])
        assert one["federation"] == FEDERATION
        assert (one["version"], one["method"], one["pending"]) == ("v0005", "quickdrop", [])
        assert row.finished is not None
        assert one["since"] == row.finished.isoformat()
    # The version's card, the record and the words for it say the same.
    erased = {"classes": [8], "clients": ["client-1"]}
    card = ledger.version("v0005").card
    assert card["erased"] == erased
    record = records.read(Home(without_9), ledger.request("r0005"))
    assert record is not None
    assert to_json(record)["has_forgotten"] == erased
    assert target_text(card["erased"]) == "class 8 and client client-1"
    page = (without_9 / "reports" / "r0005.html").read_text()
    assert "class 8 and client client-1" in page
    # What was relearned is retained again; what is forgotten is class 8 alone.
    scores = card["scores"]
    assert scores["forget_accuracy"] == scores["per_class_accuracy"][8]
    of_others = [scores["per_class_accuracy"][c] for c in range(10) if c != 8]
    assert min(of_others) <= scores["retain_accuracy"] <= max(of_others)
    test = datasets.load("digits").test.labels
    kept = [int((test == c).sum()) for c in range(10)]
    right = sum(n * scores["per_class_accuracy"][c] for c, n in enumerate(kept) if c != 8)
    assert scores["retain_accuracy"] == pytest.approx(right / (sum(kept) - kept[8]))


def test_when_all_is_relearned_the_version_has_no_forget_accuracy(without_9: Path) -> None:
    ask(without_9, "relearn", forget_classes="9")
    scores = service(without_9).ledger.version("v0003").card["scores"]
    assert scores["forget_accuracy"] is None
    assert forgotten.listed(service(without_9).ledger) == []


# ---- clients that are offline -------------------------------------------------------------------


def without(
    home: Path,
    gone: str,
    monkeypatch: pytest.MonkeyPatch,
    mode: str = "forget",
    listener: Listening | None = None,
    client: Callable[[Message, Context], Message] = app,
    **told: Any,
) -> dict[str, Any]:
    """Run a request while one client is not online; none is gone if `gone` is empty."""
    opened = service(home)
    monkeypatch.setenv("EFFACE_STORE", str(opened.home.clients))
    request = opened.prepare(settings(home, mode, join_timeout=0.05, **told))
    with InlineGrid(client, JOB["num_clients"]) as inner:
        everybody = inner.get_nodes()
        monkeypatch.setattr(inner, "get_nodes", lambda: [n for n in everybody if n.name != gone])
        done = opened.execute(request, NamedGrid(inner, 60.0, 0.005), listener or Listening())
        return to_json(done)


def store(home: Path, name: str) -> Store:
    return Store(next((home / "clients").rglob(name)))


CLIENT_2 = ForgetSpec("client", (), ("client-2",))
RETRAINED = {"method": "retraining", "method_options": ""}


def test_a_holder_that_is_offline_is_named_with_the_methods_that_work_without_it(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ClientsMissing,
        match=r"client-2 must be online for method quickdrop, got offline \(online: client-0, "
        r"client-1; .*start it first, or take a --method that works without it: .*retraining",
    ) as error:
        without(trained, "client-2", monkeypatch, forget_clients="client-2")
    assert "num-clients" not in str(error.value)  # forget has no such option
    assert "federaser" not in str(error.value)  # nothing was stored for it
    (row,) = service(trained).ledger.requests(state="failed")
    assert (row.id, row.reason) == ("r0002", str(error.value))


def test_clients_that_are_missed_before_they_have_names_fail_the_request_too(
    trained: Path,
) -> None:
    opened = service(trained)
    request = opened.prepare(settings(trained, "forget", forget_classes="3"))

    def ready() -> None:
        raise ClientsMissing("clients online must be at least 3, got 2")

    with InlineGrid(app, 3) as inner, pytest.raises(ClientsMissing):
        opened.execute(request, NamedGrid(inner, 60.0, 0.005), Listening(), ready)
    assert requests(trained)[-1] == ("r0002", "failed")


def test_a_request_that_no_superlink_takes_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*_: Any) -> int:
        raise EffaceError("SuperLink must answer, got none")

    monkeypatch.setattr(superlink, "check_connection", lambda name: None)
    monkeypatch.setattr(superlink, "stage_app", lambda folder, told, task: folder)
    monkeypatch.setattr(superlink, "submit", submit)
    with pytest.raises(EffaceError, match="must answer"):
        ask(tmp_path / "home", "train", engine="superlink")
    (row,) = service(tmp_path / "home").ledger.requests()
    assert (row.state, row.reason) == (
        "aborted",
        "no SuperLink took it: SuperLink must answer, got none",
    )


def test_what_an_offline_client_missed_is_listed_until_it_has_done_it(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listening()
    gone = {"forget_clients": "client-2", "listener": listener, **RETRAINED}
    without(trained, "client-2", monkeypatch, **gone)
    assert any("client-2 is offline: r0002 waits there" in note for note in listener.notes)
    ledger = service(trained).ledger
    assert [(p.request, p.client) for p in ledger.pending()] == [("r0002", "client-2")]
    assert forgotten.listed(ledger)[0]["pending"] == ["client-2"]
    assert store(trained, "client-2").generations()
    assert store(trained, "client-2").state().tombstones == {}

    # Another request while it is still away waits there as well.
    without(trained, "client-2", monkeypatch, forget_classes="3", **RETRAINED)
    assert [(p.request, p.client) for p in ledger.pending()] == [
        ("r0002", "client-2"),
        ("r0003", "client-2"),
    ]

    back = Listening()
    without(trained, "", monkeypatch, listener=back, forget_classes="5", **RETRAINED)
    assert ledger.pending() == []
    assert [one["pending"] for one in forgotten.listed(ledger)] == [[], [], []]
    assert store(trained, "client-2").generations() == []
    here = store(trained, "client-2").state()
    assert list(here.tombstones.values())[:2] == [CLIENT_2, ForgetSpec("class", (3,))]
    assert "client-2 is back and has done what r0002 (forget client client-2) asks" in back.notes[0]
    # The others were told once.
    assert len(store(trained, "client-0").state().applied) == 3

    # What it signed late is kept, sealed and walked by an audit.
    late = trained / "runs" / "r0002" / "attestations.json"
    (document,) = json.loads(late.read_text())["attestations"]
    said = document["statement"]
    assert (said["site"], said["destroyed"], said["sets"] > 0) == ("client-2", "all", True)
    found = audit(service(trained).home, ledger)
    assert (found.problems, found.counts["attestations"]) == ([], 9)
    kept = late.read_text()
    late.write_text(kept.replace(document["signature"][:8], "AAAAAAAA"))
    texts = [one.text for one in audit(service(trained).home, ledger).problems]
    assert any("attestation of 'client-2' for r0002: attestation of" in text for text in texts)
    assert any("must be the one that was sealed, got another one" in text for text in texts)
    late.unlink()
    (problem,) = audit(service(trained).home, ledger).problems
    assert problem.text.endswith("must be the one that was sealed, got none")


def test_retraining_without_an_offline_client_enters_service(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"forget_clients": "client-2", "accept": "passed", **RETRAINED}
    record = without(trained, "client-2", monkeypatch, **told)
    assert (record["verdict"]["state"], record["in_service"]) == ("passed", True)
    page = (trained / "reports" / "r0002.html").read_text()
    assert "retraining from scratch, which is the yardstick itself" in page
    assert "unknown" not in page
    assert "--compare retrain" not in page  # there is nothing that it could add


def test_a_client_that_fails_at_what_it_missed_still_owes_it(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(trained, "client-2", monkeypatch, forget_clients="client-2", **RETRAINED)
    token = service(trained).ledger.request("r0002").token

    def failing(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        if config["request"] == token and config["phase"] == "settle":
            raise RuntimeError("disk full")
        return app(message, context)

    back = Listening()
    told = {"forget_classes": "5", **RETRAINED}
    without(trained, "", monkeypatch, listener=back, client=failing, **told)
    assert back.notes[0].startswith("clean-up of r0002 still waits at client-2")
    assert [p.request for p in service(trained).ledger.pending()] == ["r0002"]


def test_a_trial_leaves_nothing_to_clean_up(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"forget_clients": "client-2", "trial": True, **RETRAINED}
    without(trained, "client-2", monkeypatch, **told)
    assert service(trained).ledger.pending() == []


# ---- before a request starts --------------------------------------------------------------------


def plan(home: Path, **told: Any) -> dict[str, Any]:
    return service(home).plan(settings(home, "forget", **told))


def test_the_last_client_cannot_be_forgotten(trained: Path) -> None:
    with pytest.raises(BadSetting, match="must leave at least one client with data, got none"):
        plan(trained, forget_clients="client-0,client-1,client-2")
    ask(trained, "forget", forget_clients="client-1")
    with pytest.raises(BadSetting, match="must leave at least one client with data, got none"):
        ask(trained, "forget", forget_clients="client-0,client-2")
    assert requests(trained) == [("r0001", "done"), ("r0002", "done")]  # nothing has started
    assert plan(trained, forget_clients="client-0")["warnings"] == []


@pytest.fixture(scope="module")
def one_class_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clients that hold one class each; the model hardly knows any."""
    home = tmp_path_factory.mktemp("one-class") / "home"
    ask(home, "train", num_clients=10, partition="one-class", rounds=1, local_steps=4)
    return home


def test_a_client_that_alone_holds_a_class_is_named_with_it(
    one_class_home: Path, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(one_class_home, tmp_path / "home"))
    told = settings(home, "train", num_clients=10, partition="one-class")
    shared = shares(told, datasets.load("digits"))
    assert shared is not None
    (label,) = datasets.load("digits").train.labels[shared[4]].unique().tolist()
    said = (
        f"client client-4 alone holds all examples of class {label}: without them the model will "
        "lose what nobody else can teach it"
    )
    assert plan(home, forget_clients="client-4", **RETRAINED)["warnings"] == [said]
    # Its class is named itself: then nothing is lost that should stay.
    known = plan(home, forget_classes=str(label), **RETRAINED)["warnings"]
    assert not any("alone" in warning for warning in known)

    listener = Listening()
    record = ask(home, "forget", listener, forget_clients="client-4", **RETRAINED)
    assert record["warnings"] == [said]
    assert listener.notes[0] == said


def test_a_class_that_the_version_never_knew_has_nothing_to_show(one_class_home: Path) -> None:
    each = service(one_class_home).ledger.version("v0001").card["scores"]["per_class_accuracy"]
    unknown, known = each.index(min(each)), each.index(max(each))
    assert each[unknown] <= 5 < each[known]
    (said,) = plan(one_class_home, forget_classes=str(unknown), **RETRAINED)["warnings"]
    assert said.startswith(f"nothing to show: v0001 never knew class {unknown}, its accuracy on it")
    assert plan(one_class_home, forget_classes=str(known), **RETRAINED)["warnings"] == []


def test_an_interrupted_request_that_is_passed_by_is_said(trained: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(trained, "forget", Listening("unlearn"), forget_classes="9")
    assert plan(trained, forget_classes="9")["warnings"] == []  # it is taken up
    assert plan(trained, forget_classes="3", trial=True)["warnings"] == []  # nothing is superseded
    said = (
        "r0002 (forget class 9) was interrupted on v0001 and is passed by: once this request is "
        "done it can go on no more. Finish it first with the same command, or give it up: efface "
        "requests --abort r0002"
    )
    assert plan(trained, forget_classes="3")["warnings"] == [said]
    listener = Listening()
    ask(trained, "forget", listener, forget_classes="3")
    assert listener.notes[0] == said
    # Its rounds knew class 3: they are gone, and the request is given up.
    assert plan(trained, forget_classes="9")["warnings"] == []
    opened = service(trained)
    assert opened.ledger.request("r0002").state == "aborted"
    assert not (trained / "runs" / "r0002" / "journal").exists()
    (seal,) = opened.ledger.noted("destroyed")
    assert (seal.subject, dict(seal.content)) == ("r0003", {"what": "rounds", "name": "r0002"})


# ---- data that have moved -----------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A home trained on a file of one's own, `own.npz` beside it, with class 9 forgotten."""
    home = tmp_path / "home"
    ask(home, "train", dataset=own_digits(tmp_path / "own.npz"))
    return home


def test_data_that_have_moved_are_found_where_the_request_says(own: Path) -> None:
    former, now = own.parent / "own.npz", own.parent / "elsewhere" / "scans.npz"
    now.parent.mkdir()
    former.rename(now)
    with pytest.raises(
        DataError, match=rf"npz file must exist, got {former}; if the data of v0001 .*--data PATH"
    ):
        ask(own, "forget", forget_classes="9")
    # Its clients find their synthetic sets again: the method needs them.
    record = ask(own, "forget", forget_classes="9", data=str(now))
    assert record["dataset"] == f"npz:{now}"
    assert record["unlearned"] is not None
    # The new version knows where they are.
    assert ask(own, "relearn", forget_classes="9")["model_version"] == "v0003"


def test_other_data_are_refused_wherever_they_lie(own: Path) -> None:
    former = own.parent / "own.npz"
    with np.load(former) as found:
        parts = dict(found)
    parts["train_labels"][0] = (parts["train_labels"][0] + 1) % 10
    np.savez(own.parent / "other.npz", **parts)
    with pytest.raises(BadSetting, match=r"must be those that v0001 was trained on .*other\.npz"):
        ask(own, "forget", forget_classes="9", data=f"npz:{own.parent / 'other.npz'}")
    # The same where the file itself has changed since.
    np.savez(former, **parts)
    with pytest.raises(BadSetting, match=r"must be those that v0001 was trained on .*own\.npz"):
        ask(own, "forget", forget_classes="9")
    assert requests(own) == [("r0001", "done")]


def test_digits_lie_nowhere(trained: Path) -> None:
    with pytest.raises(BadSetting, match="leave --data out"):
        ask(trained, "forget", forget_classes="9", data="/srv")


# ---- what is asked for again, and numbers that mean another class --------------------------------


@pytest.mark.parametrize(
    "method", [name for name, kind in METHODS.items() if "client" in kind.needs.levels]
)
def test_a_client_that_is_forgotten_already_is_said_to_be(trained: Path, method: str) -> None:
    ask(trained, "forget", forget_clients="client-1")
    told: dict[str, Any] = {"forget_clients": "client-1", "method": method, "method_options": ""}
    with pytest.raises(AlreadyDone, match="client client-1 already"):
        service(trained).plan(settings(trained, "forget", **told))
    with pytest.raises(AlreadyDone, match="client client-1 already"):
        ask(trained, "forget", **told)


def pets(folder: Path, names: Sequence[str]) -> str:
    """Write a folder of images, a class each, and return its name as a data set."""
    for part, count in (("train", 24), ("test", 8)):
        for name in names:
            draws = np.random.default_rng([len(part), *name.encode()])
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return f"folder:{folder}"


def test_a_number_that_means_another_class_now_is_refused_in_its_own_federation(
    tmp_path: Path,
) -> None:
    home, names = tmp_path / "home", ["bird", "cat", "dog", "fish"]
    same = {"federation": "pets", "rounds": 1, "local_steps": 2}
    data = pets(tmp_path / "pets", names)
    ask(home, "train", dataset=data, **same)
    ask(home, "forget", method="retraining", method_options="", forget_classes="dog")
    # Another class comes first, so that 2 is the cat; and one image of the dog is gone.
    for part in ("train", "test"):
        shutil.copytree(tmp_path / "pets" / part / "cat", tmp_path / "pets" / part / "ant")
    (tmp_path / "pets" / "train" / "dog" / "0.png").unlink()
    with pytest.raises(BadSetting, match=r"class 2 \(dog\) \(forgotten by r0002"):
        ask(home, "train", dataset=data, **same)
