"""Who takes part can be named: nobody else gets a message."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from client.app import app
from client.errors import BadSetting
from server.evidence.record import to_json
from server.nodes.engines.inline import InlineGrid
from server.nodes.grid import ClientsMissing, NamedGrid
from server.requests.attendance import await_clients
from server.requests.intake import Service, inherited
from server.runner import run
from server.settings import RunSettings, essence, federation_name
from server.storage.home import Home

JOB: dict[str, Any] = {
    "num_clients": 4,
    "partition": "iid",
    "model_width": 8,
    "rounds": 1,
    "local_steps": 4,
    "batch_size": 32,
    "scale": 20,
    "engine": "inline",
    "device": "cpu",
    "accept": "not-shown",
    "max_relearning_gap": 100.0,
    "max_forget_accuracy": 100.0,
}
THREE = "client-2,client-0, client-3"
NAMES = ("client-0", "client-2", "client-3")


pytestmark = pytest.mark.usefixtures("surroundings")


class Silent:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


def settings(home: Path, mode: str, **more: Any) -> RunSettings:
    return RunSettings(**{"mode": mode, "home": str(home), **JOB, **more}).check()


def ask(home: Path, mode: str, **more: Any) -> dict[str, Any]:
    return to_json(run(settings(home, mode, **more), Silent()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v0001, of three named clients of four."""
    home = tmp_path_factory.mktemp("trained") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("EFFACE_DATABASE_URL", raising=False)
        ask(home, "train", clients=THREE)
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "home"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the nodes that got a message."""
    found: set[str] = set()
    push = InlineGrid.push_messages

    def watched(self: InlineGrid, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        names = {node.node_id: node.name for node in self.get_nodes()}
        found.update(names[message.metadata.dst_node_id] for message in sent)
        return push(self, sent)

    monkeypatch.setattr(InlineGrid, "push_messages", watched)
    return found


def test_no_other_node_gets_a_message(tmp_path: Path, asked: set[str]) -> None:
    record = ask(tmp_path / "home", "train", clients=THREE)

    assert asked == set(NAMES)
    assert record["num_clients"] == 3
    (version,) = Service.open(Home(tmp_path / "home")).ledger.versions()
    assert version.card["settings"]["clients"] == "client-0,client-2,client-3"
    assert version.federation == (
        "digits, 3 clients (client-0, client-2, client-3) of 4, iid, seed 0"
    )


@pytest.mark.parametrize("named", ["", "client-3,client-2,client-0"])
def test_a_request_on_the_version_asks_the_same(home: Path, asked: set[str], named: str) -> None:
    for mode in ("forget", "relearn"):
        record = ask(
            home, mode, forget_classes="3", method="retraining", compare="none", clients=named
        )
        assert record["settings"]["clients"] == "client-0,client-2,client-3"
    assert asked == set(NAMES)


@pytest.mark.parametrize("named", ["client-0,client-2", "client-0,client-1,client-2,client-3"])
def test_a_request_cannot_pass_by_who_was_trained_on(home: Path, named: str) -> None:
    with pytest.raises(BadSetting, match=r"clients must be those that v0001 was trained on \(cl"):
        ask(home, "forget", forget_classes="3", clients=named)
    assert len(Service.open(Home(home)).ledger.requests()) == 1


def test_who_was_erased_need_not_be_named_again(home: Path, asked: set[str]) -> None:
    ask(home, "forget", forget_clients="client-2", method="retraining")
    asked.clear()
    ask(home, "forget", forget_classes="3", method="retraining", clients="client-0,client-3")
    assert {"client-0", "client-3"} <= asked <= set(NAMES)
    assert "client-1" not in asked


def test_a_client_that_does_not_take_part_cannot_be_forgotten(home: Path) -> None:
    with pytest.raises(BadSetting, match="client must be one of those that take part"):
        ask(home, "forget", forget_clients="client-1", method="retraining")


def test_a_version_without_names_can_be_given_all_of_them(tmp_path: Path, asked: set[str]) -> None:
    home = tmp_path / "home"
    ask(home, "train", num_clients=3)
    with pytest.raises(BadSetting, match="clients must be all 3 that v0001 was trained on"):
        ask(home, "forget", forget_classes="3", clients="client-0,client-1")
    everybody = "client-0,client-1,client-2"
    record = ask(home, "forget", forget_classes="3", method="retraining", clients=everybody)
    assert record["settings"]["clients"] == everybody
    assert asked == set(everybody.split(","))


@pytest.mark.parametrize(
    ("named", "why"),
    [
        (
            "client-0,client-4",
            "name in clients must be one of client-0 to client-3, got 'client-4'",
        ),
        ("client-0,a/b", "name in clients must be 1 to 64 letters"),
        ("client-0,\x1b[2J", "name in clients must be 1 to 64 letters"),
    ],
)
def test_an_unknown_name_is_an_error_before_anything_starts(
    tmp_path: Path, asked: set[str], named: str, why: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        ask(tmp_path / "home", "train", clients=named)
    assert str(caught.value).startswith(why)
    assert Service.open(Home(tmp_path / "home")).ledger.requests() == []
    assert asked == set()


def test_an_offline_one_is_an_error_before_anything_starts(tmp_path: Path, asked: set[str]) -> None:
    """On a SuperLink, where names are those of who comes."""
    service = Service.open(Home(tmp_path / "home"))
    told = settings(
        tmp_path / "home", "train", engine="superlink", clients="client-0,site-x", join_timeout=0.1
    )
    request = service.prepare(told)
    assert request.settings.num_clients == 2
    with InlineGrid(app, 3) as inner:
        grid = NamedGrid(inner, round_timeout=1, poll_seconds=0.01)
        with pytest.raises(ClientsMissing, match=r"got no site-x after 0.1 s \(client-0, client-1"):
            service.execute(request, grid, Silent())
    assert asked == set()


def test_a_node_that_was_not_named_is_refused_whoever_writes_to_it() -> None:
    with InlineGrid(app, 3) as inner:
        grid = NamedGrid(inner, 1, 0.01, only=frozenset({"client-1"}))
        nodes = {node.name: node.node_id for node in inner.get_nodes()}
        assert grid.get_node_ids() == [nodes["client-1"]]
        other = Message(RecordDict(), dst_node_id=nodes["client-0"], message_type="query.describe")
        for send in (grid.push_messages, grid.send_and_receive):
            with pytest.raises(ClientsMissing, match="message must go to one of client-1, got nod"):
                send([other])


def test_a_node_without_a_name_takes_no_part_on_a_superlink(tmp_path: Path) -> None:
    service = Service.open(Home(tmp_path / "home"))
    told = settings(tmp_path / "home", "train", engine="superlink", clients="client-1")
    row = service.prepare(told).row
    with InlineGrid(app, 2) as inner:
        there = inner.get_nodes()
        unnamed = NodeInfo(node_id=there[0].node_id)
        inner.get_nodes = lambda: [unnamed, there[1]]  # type: ignore[method-assign]
        grid = NamedGrid(inner, round_timeout=1, poll_seconds=0.01)
        await_clients(service, row, told, grid)
        assert [node.name for node in grid.get_nodes()] == ["client-1"]


def test_names_belong_to_the_federations_identity() -> None:
    def name(**more: Any) -> str:
        return federation_name(RunSettings(**{**JOB, **more}))

    assert name() == "digits, 4 clients, iid, seed 0"
    assert name(clients="client-1, client-0") == name(clients="client-0,client-1")
    assert name(clients="client-0") != name(clients="client-1")
    many = ",".join(f"client-{i}" for i in range(40))
    assert len(name(num_clients=50, clients=many)) < 100
    assert name(num_clients=50, clients=many) != name(num_clients=50, clients=many + ",client-41")
    real = {"engine": "superlink", "dataset": "none"}
    assert name(**real, clients="b,a") == "none, 2 clients (a, b) of SuperLink efface"


def test_a_request_of_old_is_still_known_again() -> None:
    now = RunSettings(**JOB).plain()
    since = ("clients", "image-start", "image-batch", "final-lr")
    old = {key: value for key, value in now.items() if key not in since}
    assert essence(old) == essence(now)
    assert essence({**now, "clients": "client-1"}) != essence(now)
    assert essence({**now, "image-start": "noise"}) != essence(now)
    assert essence({**now, "image-batch": 4}) != essence(now)
    assert essence({**now, "final-lr": 0.01}) != essence(now)


def test_what_an_older_release_did_not_know_a_version_was_trained_without() -> None:
    now = RunSettings(**JOB, final_lr=0.05)
    card: dict[str, Any] = {"settings": now.training(), "data_dir": ""}
    version: Any = SimpleNamespace(id="v0001", card=card)
    assert inherited(RunSettings(**JOB), version).final_lr == 0.05
    del card["settings"]["final-lr"]
    assert inherited(now, version).final_lr == 0.0
