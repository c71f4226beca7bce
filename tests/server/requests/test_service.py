"""Requests from end to end on digits: stopped, failed, repeated, one after another."""

import hashlib
import json
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message

from client import attestation
from client.app import app
from client.errors import BadSetting, DataMissing, EffaceError, marked
from client.keys import simulated_key
from client.simulation.settings import PREFIX, Simulation
from client.steps.ascent import Ascend
from client.steps.measuring import Describe, Heldout
from client.steps.recovery import Descend
from client.steps.store import Settle
from client.steps.training import Fit
from client.store import Store
from client.wire import ForgetSpec
from server.evidence.record import to_json
from server.nodes.engines.inline import InlineGrid
from server.nodes.federation import Round
from server.nodes.grid import ClientsMissing, NamedGrid
from server.requests.context import initial_weights
from server.requests.data import server_data
from server.requests.execution import NotShown, Unsettled, VerificationFailed
from server.requests.intake import AlreadyDone, Service, Unpublished
from server.runner import _after_failure, run
from server.settings import RunSettings, federation_name, parse
from server.storage.history import History
from server.storage.home import Home
from server.storage.ledger import Ledger
from server.storage.registry import unpack
from strategies.rounds.base import ClientLost
from strategies.rounds.replay import after

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
    "accept": "not-shown",  # most of these do not compare with retraining
    "max_relearning_gap": 100.0,  # two rounds make no model whose curve says much
    "engine": "inline",
    "device": "cpu",
}
NODES = ["client-0", "client-1", "client-2"]
SHORT = "recover-epochs=2,threshold=100"
NO_EFFECT = "unlearn-lr=1e-9,recover-lr=1e-9,recover-epochs=1"


pytestmark = pytest.mark.usefixtures("surroundings")


class Watching:
    """Remembers what it is told; presses Ctrl-C at a phase's round."""

    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        self.stop_at = stop_at
        self.rounds: list[Round] = []
        self.notes: list[str] = []

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        if (done.phase, done.number) == self.stop_at:
            raise KeyboardInterrupt
        self.rounds.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def phases(self) -> list[tuple[str, int]]:
        return [(done.phase, done.number) for done in self.rounds]


def settings(home: Path, mode: str, **more: Any) -> RunSettings:
    return RunSettings(**{"mode": mode, "home": str(home), **JOB, **more}).check()


def ask(home: Path, mode: str, listener: Watching | None = None, **more: Any) -> dict[str, Any]:
    return to_json(run(settings(home, mode, **more), listener or Watching()))


def forget(home: Path, listener: Watching | None = None, **more: Any) -> dict[str, Any]:
    told = {"method_options": SHORT, "max_forget_accuracy": 30.0, **more}
    if "forget_clients" not in told:
        told.setdefault("forget_classes", "3")
    return ask(home, "forget", listener, **told)


def relearn(home: Path, listener: Watching | None = None, **more: Any) -> dict[str, Any]:
    told = {"method_options": "relearn-lr=0.1", **more}
    if "forget_clients" not in told:
        told.setdefault("forget_classes", "3")
    return ask(home, "relearn", listener, **told)


def ask_with(
    home: Path,
    client: Callable[[Message, Context], Message],
    told: RunSettings,
    monkeypatch: pytest.MonkeyPatch,
    listener: Watching | None = None,
) -> dict[str, Any]:
    """Run a request on clients of the test's own making."""
    service = Service.open(Home(home))
    monkeypatch.setenv("EFFACE_STORE", str(service.home.clients))
    request = service.prepare(told)
    with InlineGrid(client, JOB["num_clients"]) as inner:
        return to_json(
            service.execute(request, NamedGrid(inner, 60.0, 0.005), listener or Watching())
        )


def failing(
    message_type: str, names: list[str], server_round: int | None = None
) -> Callable[[Message, Context], Message]:
    """Return clients of which some fail at one kind of message."""

    def client(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        if (
            message.metadata.message_type == message_type
            and config["client"] in names
            and server_round in (None, config["server-round"])
        ):
            raise RuntimeError("out of memory")
        return app(message, context)

    return client


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained") / "home"
    ask(home, "train")
    return home


@pytest.fixture(scope="module")
def compared_home(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v0002 has forgotten class 3 and was compared with retraining, without a stop."""
    home = tmp_path_factory.mktemp("compared") / "home"
    shutil.copytree(trained_home, home)
    forget(home, compare="retrain")
    return home


@pytest.fixture
def trained(trained_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_home, tmp_path / "home"))


@pytest.fixture
def forgotten(compared_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared_home, tmp_path / "home"))


# ---- what a home holds --------------------------------------------------------------------------


def requests(home: Path) -> list[tuple[str, str]]:
    return [(row.id, row.state) for row in Service.open(Home(home)).ledger.requests()]


def requests_reason(home: Path, request: str) -> str:
    return str(Service.open(Home(home)).ledger.request(request).reason)


def versions(home: Path) -> list[tuple[str, str]]:
    return [(row.id, row.state) for row in Service.open(Home(home)).ledger.versions()]


def weights(home: Path, version: str) -> dict[str, np.ndarray]:
    return Service.open(Home(home)).registry.load(version)[0]


def retrained(home: Path) -> dict[str, np.ndarray]:
    (path,) = Home(home).cache.glob("retrained-*.safetensors")
    return unpack(path.read_bytes(), path)[0]


def card(home: Path, version: str) -> dict[str, Any]:
    return Service.open(Home(home)).registry.load(version)[1]


def stores(home: Path) -> dict[str, Store]:
    return {name: Store(next((home / "clients").rglob(name))) for name in NODES}


def tombstones(home: Path) -> list[dict[str, ForgetSpec]]:
    """Return every node's tombstones by the request's id; nodes know it with its time behind."""
    return [
        {name.partition("-")[0]: spec for name, spec in store.state().tombstones.items()}
        for store in stores(home).values()
    ]


def digests(home: Path) -> dict[str, str]:
    """Return a checksum of every node's sets, by place in the home.

    Of the tensors: they are encrypted, with other keys in every home.
    """
    found = {}
    for folder in (home / "clients").glob("*/*"):
        store = Store(folder)
        for kept in store.generations():
            held = store.load(kept.lineage, model=kept.model, before=kept.number + 1)
            assert held is not None
            content = held.images.numpy().tobytes() + held.labels.numpy().tobytes()
            place = str(kept.path.relative_to(home)).replace(kept.lineage, "lineage")
            found[place] = hashlib.sha256(content).hexdigest()
    return found


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert list(one) == list(other)
    assert all(np.array_equal(one[name], other[name]) for name in one)


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({}, "digits, 3 clients, iid, seed 0"),
        (
            {"engine": "ray", "max_samples": 90, "partition_seed": 2},
            "digits, 3 clients, iid, 90 images, seed 2",
        ),
        # Real clients have data of their own: only who they are tells two federations apart.
        ({"engine": "superlink", "connection": "lab"}, "digits, 3 clients of SuperLink lab"),
        ({"engine": "superlink", "dataset": "none"}, "none, 3 clients of SuperLink efface"),
        ({"engine": "superlink", "federation": "hospitals"}, "hospitals"),
    ],
)
def test_a_federation_is_named_by_what_its_clients_are(
    tmp_path: Path, told: dict[str, Any], name: str
) -> None:
    assert federation_name(settings(tmp_path, "train", **told)) == name


# ---- stopped and taken up again -----------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
def test_training_that_was_stopped_ends_with_the_same_weights_and_the_same_sets(
    trained_home: Path, tmp_path: Path, number: int
) -> None:
    home = tmp_path / "home"
    with pytest.raises(KeyboardInterrupt):
        ask(home, "train", Watching(("train", number)))
    assert requests(home) == [("r0001", "interrupted")]
    assert versions(home) == []

    again = Watching()
    ask(home, "train", again)

    assert again.phases == [("train", n) for n in range(number, 3)]  # the rest, and no more
    assert requests(home) == [("r0001", "done")]
    assert_equal(weights(home, "v0001"), weights(trained_home, "v0001"))
    assert digests(home) == digests(trained_home)


def test_a_training_that_was_stopped_does_not_bring_back_what_was_erased_since(
    trained: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(trained, "train", Watching(("train", 2)), seed=5)
    assert list((trained / "runs" / "r0002" / "journal").glob("*.safetensors"))
    forget(trained)

    again = Watching()
    ask(trained, "train", again, seed=5)

    # Its rounds know the class: they are gone, and training begins anew, without it.
    assert requests(trained)[1:] == [("r0002", "aborted"), ("r0003", "done"), ("r0004", "done")]
    given_up = Service.open(Home(trained)).ledger.request("r0002")
    assert "class 3 was erased since (r0003)" in str(given_up.reason)
    assert not (trained / "runs" / "r0002" / "journal").exists()
    assert again.phases == [("train", 1), ("train", 2)]
    assert card(trained, "v0003")["erased"]["classes"] == [3]


def test_a_trial_does_not_stop_a_training(trained: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(trained, "train", Watching(("train", 2)), seed=5)
    forget(trained, trial=True)
    again = Watching()
    ask(trained, "train", again, seed=5)
    assert requests(trained)[1:] == [("r0002", "done"), ("r0003", "done")]
    assert again.phases == [("train", 2)]


@pytest.mark.parametrize(
    ("phase", "number"), [("unlearn", 1), ("recover", 1), ("recover", 2), ("retrain", 2)]
)
def test_forgetting_that_was_stopped_keeps_the_version_and_ends_with_the_same_weights(
    trained: Path, compared_home: Path, phase: str, number: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        forget(trained, Watching((phase, number)), compare="retrain")
    assert requests(trained) == [("r0001", "done"), ("r0002", "interrupted")]
    assert versions(trained) == [("v0001", "in-service")]
    assert tombstones(trained) == [{}] * 3

    again = Watching()
    record = forget(trained, again, compare="retrain")

    assert again.phases[0] == (phase, number)
    assert (record["request"], record["model_version"]) == ("r0002", "v0002")
    assert requests(trained)[1] == ("r0002", "done")
    assert versions(trained) == [("v0001", "superseded"), ("v0002", "in-service")]
    assert_equal(weights(trained, "v0002"), weights(compared_home, "v0002"))
    assert_equal(retrained(trained), retrained(compared_home))
    assert tombstones(trained) == [{"r0002": ForgetSpec("class", (3,))}] * 3
    # Costs of rounds done before the stop are in the record too.
    assert record["rounds"] == {"retrain": 2, "unlearn": 1, "recover": 2}


@pytest.mark.parametrize("number", [1, 2])
def test_relearning_that_was_stopped_keeps_the_version_and_ends_with_the_same_weights(
    forgotten: Path, tmp_path: Path, number: int
) -> None:
    whole = Path(shutil.copytree(forgotten, tmp_path / "whole"))
    relearn(whole)
    with pytest.raises(KeyboardInterrupt):
        relearn(forgotten, Watching(("relearn", number)))
    assert requests(forgotten)[2] == ("r0003", "interrupted")
    assert versions(forgotten) == [("v0001", "superseded"), ("v0002", "in-service")]
    assert tombstones(forgotten) == [{"r0002": ForgetSpec("class", (3,))}] * 3

    relearn(forgotten)

    assert requests(forgotten)[2] == ("r0003", "done")
    assert_equal(weights(forgotten, "v0003"), weights(whole, "v0003"))
    assert digests(forgotten) == digests(whole)


def test_a_stop_between_the_tombstones_and_the_version_is_made_good(
    trained: Path, compared_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last moment: every node has settled, the version is not written yet.
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("server.storage.registry.Registry.commit", stop)
        with pytest.raises(KeyboardInterrupt):
            forget(trained)
    assert versions(trained) == [("v0001", "in-service")]
    assert tombstones(trained) == [{"r0002": ForgetSpec("class", (3,))}] * 3

    forget(trained)

    assert_equal(weights(trained, "v0002"), weights(compared_home, "v0002"))
    assert tombstones(trained) == [{"r0002": ForgetSpec("class", (3,))}] * 3


# ---- stopped after the end ----------------------------------------------------------------------


def stopped_after(
    monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException | None = None
) -> None:
    """Stop a process just after a change of the ledger, before it can say what it did."""
    real = getattr(Ledger, method)

    def stop(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise error or KeyboardInterrupt

    monkeypatch.setattr(Ledger, method, stop)


def evidence(home: Path, request: str) -> dict[str, Any]:
    """Return a request's record, and check that its page is there and nothing to resume."""
    folder = home / "runs" / request
    assert (home / "reports" / f"{request}.html").is_file()
    # What a request may have beside them: the order to its nodes, the events of its rounds.
    kept = {path.name for path in folder.iterdir()} - {"order.json", "events.jsonl"}
    assert kept == {"record.json", "record.signature.json"}
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return found


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_stop_after_the_version_entered_loses_no_evidence(
    trained: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    with monkeypatch.context() as patched:
        stopped_after(patched, "finish", error)
        with pytest.raises(Unpublished, match=r"r0002 is done \(v0002\).*efface report r0002"):
            forget(trained)

    assert requests(trained)[1] == ("r0002", "done")  # the next process to open the home
    record = evidence(trained, "r0002")
    assert (record["model_version"], record["verdict"]["state"]) == ("v0002", "not-shown")
    assert (record["in_service"], record["refused"]) == (True, False)
    assert record["created"] < record["started"] < record["finished"]


def test_a_report_that_cannot_be_written_is_written_when_the_home_is_opened(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("server.report.write.write_report", full)
        with pytest.raises(Unpublished, match="No space left on device"):
            forget(trained)
        assert requests(trained)[1] == ("r0002", "done")  # not an obstacle to other work

    assert versions(trained)[1] == ("v0002", "in-service")
    assert evidence(trained, "r0002")["model_version"] == "v0002"


def test_a_stop_after_a_refusal_loses_no_evidence(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stopped_after(patched, "fail")
        with pytest.raises(VerificationFailed, match=r"r0002 is failed .*efface report r0002"):
            forget(trained, method_options=NO_EFFECT + ",threshold=100", max_forget_accuracy=5.0)

    assert requests(trained)[1] == ("r0002", "failed")
    record = evidence(trained, "r0002")
    assert (record["model_version"], record["verdict"]["passed"]) == (None, False)


def test_a_request_that_has_not_ended_has_no_record(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.storage.registry.Registry.commit", stop)
    with pytest.raises(KeyboardInterrupt):
        forget(trained)

    assert requests(trained)[1] == ("r0002", "interrupted")
    assert not (trained / "runs" / "r0002" / "record.json").exists()


# ---- clients that fail --------------------------------------------------------------------------


def test_a_client_that_fails_in_a_training_round_is_tolerated_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = Watching()
    client = failing(Fit.message.name, ["client-1"], server_round=1)
    home = tmp_path / "home"
    ask_with(home, client, settings(home, "train"), monkeypatch, watching)
    first, second = watching.rounds
    assert [failure.client for failure in first.failures] == ["client-1"]
    assert "out of memory" in first.failures[0].reason
    assert (first.num_clients, second.num_clients, second.failures) == (2, 3, [])
    assert versions(home) == [("v0001", "in-service")]


def test_too_many_failures_fail_the_training_without_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    client = failing(Fit.message.name, ["client-1", "client-2"])
    with pytest.raises(ClientLost, match="must have 2 answers of 3 clients, got 1"):
        ask_with(home, client, settings(home, "train"), monkeypatch)
    assert requests(home) == [("r0001", "failed")]
    assert versions(home) == []


@pytest.mark.parametrize(
    ("message_type", "reason"),
    [
        (Describe.message.name, "clients must answer describe: client-1 did not"),
        (Ascend.message.name, "round 1 of unlearn must have 3 answers of 3 clients, got 2"),
    ],
)
def test_a_holder_that_fails_fails_the_request_and_the_version_stays(
    trained: Path, monkeypatch: pytest.MonkeyPatch, message_type: str, reason: str
) -> None:
    told = settings(
        trained, "forget", forget_classes="3", method_options=SHORT, max_forget_accuracy=30.0
    )
    before = weights(trained, "v0001")
    with pytest.raises(ClientLost, match=reason):
        ask_with(trained, failing(message_type, ["client-1"]), told, monkeypatch)
    assert requests(trained) == [("r0001", "done"), ("r0002", "failed")]
    assert versions(trained) == [("v0001", "in-service")]
    assert_equal(weights(trained, "v0001"), before)
    failed = Service.open(Home(trained)).ledger.request("r0002")
    assert reason in str(failed.reason)

    # The operator asks again when the client is well, and all is done.
    forget(trained)
    assert versions(trained) == [("v0001", "superseded"), ("v0002", "in-service")]
    assert all(ForgetSpec("class", (3,)) in found.values() for found in tombstones(trained))


def test_a_client_that_cannot_measure_is_left_out_and_named(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = settings(
        trained, "forget", forget_classes="3", method_options=SHORT, max_forget_accuracy=30.0
    )
    ask_with(trained, failing(Heldout.message.name, ["client-1"]), told, monkeypatch)
    record = json.loads((trained / "runs" / "r0002" / "record.json").read_text())
    sites = [site["client"] for site in record["recovered"]["heldout"]["sites"]]
    assert sites == ["client-0", "client-2"]
    assert {absence["client"] for absence in record["absences"]} == {"client-1"}
    assert any("client-1 was left out of" in remark for remark in record["remarks"])


def test_a_fault_that_may_pass_leaves_a_request_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = tmp_path / "home", {"now": False}

    def client(message: Message, context: Context) -> Message:
        if message.metadata.message_type == Fit.message.name and away["now"]:
            raise DataMissing("npz file must exist, got /private/scans.npz")
        return app(message, context)

    def lost(done: Round) -> None:
        away["now"] = True

    watching = Watching()
    monkeypatch.setattr(watching, "round", lambda done, scores: lost(done))
    with pytest.raises(ClientLost, match="must have 2 answers of 3 clients, got 0"):
        ask_with(home, marked_errors(client), settings(home, "train"), monkeypatch, watching)
    assert requests(home) == [("r0001", "interrupted")]
    away["now"] = False
    again = Watching()
    ask_with(home, client, settings(home, "train"), monkeypatch, again)
    assert requests(home) == [("r0001", "done")]
    assert [done.number for done in again.rounds] == [2]  # from where it was


def marked_errors(client: Callable[[Message, Context], Message]) -> Callable[..., Message]:
    """Return a client whose errors tell their code, as a node's handler does."""

    def told(message: Message, context: Context) -> Message:
        try:
            return client(message, context)
        except EffaceError as error:
            raise RuntimeError(marked(error, type(error).__name__)) from error

    return told


def test_a_client_that_says_it_settled_before_it_was_asked_is_not_believed(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def client(message: Message, context: Context) -> Message:
        reply: Message = app(message, context)
        ours = context.node_config["partition-id"] == 2
        if message.metadata.message_type == Settle.message.name and ours:
            reply.content.metric_records["metrics"]["applied"] = 1.0
            config = dict(message.content.config_records["config"])
            own = {key: value for key, value in config.items() if key.startswith(PREFIX)}
            key = simulated_key("client-2", Simulation.parse(own, prefix=PREFIX).population)
            raw = reply.content.array_records["arrays"][attestation.ARRAY].numpy().tobytes()
            said = {**attestation.read(raw)["statement"], "applied": "before"}
            lie = np.frombuffer(attestation.made(said, key), np.uint8)
            reply.content["arrays"] = ArrayRecord({attestation.ARRAY: Array(lie)})
        return reply

    told = settings(trained, "forget", forget_classes="3", method_options=SHORT)
    told = replace(told, max_forget_accuracy=100.0)
    with pytest.raises(Unsettled, match="request must be new to client-2"):
        ask_with(trained, client, told, monkeypatch)
    assert requests(trained)[1] == ("r0002", "interrupted")


def test_a_client_that_does_not_settle_leaves_a_request_that_goes_on(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # client-1's synthetic set is destroyed already: a new request could not ascend on it.
    told = settings(trained, "forget", forget_clients="client-1", method_options=SHORT)
    with pytest.raises(Unsettled, match=r"settle: client-2 did not .*the same command goes on"):
        ask_with(trained, failing(Settle.message.name, ["client-2"]), told, monkeypatch)
    assert requests(trained)[1] == ("r0002", "interrupted")
    assert versions(trained) == [("v0001", "in-service")]

    watching = Watching()
    ask(trained, "forget", watching, forget_clients="client-1", method_options=SHORT)

    assert watching.rounds == []  # no round is run again
    assert requests(trained)[1] == ("r0002", "done")
    assert versions(trained) == [("v0001", "superseded"), ("v0002", "in-service")]
    assert tombstones(trained) == [{"r0002": ForgetSpec("client", (), ("client-1",))}] * 3


def test_one_lost_client_does_not_stop_recovery(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = settings(
        trained, "forget", forget_classes="3", method_options=SHORT, max_forget_accuracy=30.0
    )
    record = ask_with(
        trained, failing(Descend.message.name, ["client-1"], server_round=1), told, monkeypatch
    )
    assert record["model_version"] == "v0002"


# ---- twice, and one after another ---------------------------------------------------------------


def test_forgetting_twice_says_so_and_changes_nothing(forgotten: Path) -> None:
    before = requests(forgotten), versions(forgotten), tombstones(forgotten), digests(forgotten)
    with pytest.raises(
        AlreadyDone, match=r"version v0002 has forgotten class 3 already \(r0002\); nothing was ch"
    ):
        forget(forgotten)
    after = requests(forgotten), versions(forgotten), tombstones(forgotten), digests(forgotten)
    assert after == before


def test_a_second_request_keeps_the_first_class_out(forgotten: Path) -> None:
    record = forget(forgotten, forget_classes="5")

    assert card(forgotten, "v0003")["erased"] == {"classes": [3, 5], "clients": []}
    per_class = record["recovered"]["per_class_accuracy"]
    assert per_class[3] <= 5
    assert per_class[5] <= 30
    # Neither counts as retained: the mean is over the other eight.
    others = [per_class[c] for c in range(10) if c not in (3, 5)]
    assert min(others) <= record["recovered"]["retain_accuracy"] <= max(others)
    both = {"r0002": ForgetSpec("class", (3,)), "r0003": ForgetSpec("class", (5,))}
    assert tombstones(forgotten) == [both] * 3


def test_a_new_training_leaves_out_what_was_erased(forgotten: Path) -> None:
    watching = Watching()
    record = ask(forgotten, "train", watching)
    assert watching.notes == ["left out of training, because it was erased: class 3"]
    assert record["original"]["per_class_accuracy"][3] <= 5
    for store in stores(forgotten).values():
        ours = [g for g in store.generations() if g.lineage == record["lineage"]]
        assert ours
        assert all(3 not in generation.counts for generation in ours)


def test_relearning_lifts_the_tombstone_and_brings_the_class_back(forgotten: Path) -> None:
    before = card(forgotten, "v0002")["scores"]["forget_accuracy"]
    record = relearn(forgotten, method_options="relearn-lr=0.1,relearn-rounds=4")
    assert record["relearned"]["forget_accuracy"] >= before + 30
    assert tombstones(forgotten) == [{}] * 3
    assert card(forgotten, "v0003")["erased"] == {"classes": [], "clients": []}
    # And it can be forgotten once more.
    forget(forgotten)
    assert tombstones(forgotten) == [{"r0004": ForgetSpec("class", (3,))}] * 3


def test_relearning_what_was_not_forgotten_is_refused(forgotten: Path) -> None:
    with pytest.raises(
        EffaceError, match="must name what version v0002 has forgotten, got class 5"
    ):
        relearn(forgotten, forget_classes="5")
    assert len(requests(forgotten)) == 2


# ---- verdicts -----------------------------------------------------------------------------------


def test_a_result_that_did_not_forget_gets_no_version(trained: Path) -> None:
    with pytest.raises(VerificationFailed, match=r"above 5.0 %.*v0001 stays in service"):
        forget(trained, method_options=NO_EFFECT + ",threshold=100", max_forget_accuracy=5.0)
    assert requests(trained) == [("r0001", "done"), ("r0002", "failed")]
    assert versions(trained) == [("v0001", "in-service")]
    assert tombstones(trained) == [{}] * 3
    assert (Home(trained).reports / "r0002.html").exists()


def test_a_class_that_creeps_back_whatever_is_tried_fails_with_a_report(trained: Path) -> None:
    failed = r"^r0002: verification failed: recovery brought .* back.*v0001 stays"
    with pytest.raises(VerificationFailed, match=failed):  # though the accuracy is in its limit
        forget(trained, method_options=NO_EFFECT, max_forget_accuracy=100.0)
    assert requests(trained)[1] == ("r0002", "failed")
    record = evidence(trained, "r0002")
    (crept,) = [f for f in record["verdict"]["findings"] if f["code"] == "crept-back"]
    assert (record["verdict"]["state"], crept["state"]) == ("failed", "exceeded")
    assert crept["value"] > crept["limit"]
    assert versions(trained) == [("v0001", "in-service")]
    assert tombstones(trained) == [{}] * 3


def test_what_is_not_shown_does_not_enter_service_unless_that_is_accepted(trained: Path) -> None:
    remedies = "--compare retrain or --accept not-shown"
    with pytest.raises(NotShown, match=f"v0001 stays in service.*{remedies}"):
        forget(trained, accept="passed")
    assert versions(trained) == [("v0001", "in-service")]
    assert tombstones(trained) == [{}] * 3
    refused = evidence(trained, "r0002")
    assert (refused["verdict"]["state"], refused["model_version"]) == ("not-shown", None)
    assert (refused["in_service"], refused["refused"]) == (False, True)
    assert "not measured: relearning curve" in requests_reason(trained, "r0002")
    # A SuperLink's run fails with it: whoever started that is told the same.
    with pytest.raises(NotShown, match=f"v0001 stays in service.*{remedies}"):
        _after_failure(Home(trained), "r0002", EffaceError("the run failed"))

    assert forget(trained, accept="not-shown")["in_service"] is True
    assert versions(trained)[1] == ("v0002", "in-service")


def test_what_is_compared_with_retraining_enters_service_by_default(trained: Path) -> None:
    record = forget(trained, accept="passed", compare="retrain")
    assert (record["verdict"]["state"], record["in_service"]) == ("passed", True)


def test_a_trial_is_kept_whatever_its_verdict(trained: Path) -> None:
    told = {"method_options": NO_EFFECT + ",threshold=100", "max_forget_accuracy": 5.0}
    record = forget(trained, trial=True, **told)
    assert (record["verdict"]["state"], record["in_service"]) == ("failed", False)
    assert versions(trained) == [("v0001", "in-service"), ("v0002", "trial")]
    record = forget(trained, trial=True, method_options=NO_EFFECT)  # recovery gives up
    assert "crept-back" in {finding["code"] for finding in record["verdict"]["findings"]}
    assert (record["verdict"]["state"], record["refused"]) == ("failed", False)
    assert versions(trained)[2] == ("v0003", "trial")


def test_a_request_is_parsed_opened_and_read_once(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def counted(name: str, place: str) -> None:
        real = pkgutil.resolve_name(place)

        def count(*told: Any, **more: Any) -> Any:
            seen.append(name)
            return real(*told, **more)

        monkeypatch.setattr(place, count)

    counted("parse", "server.requests.resolved.parse")
    counted("parse", "server.runner.parse")
    counted("data", "server.requests.data.server_data")
    counted("data", "server.requests.intake.server_data")
    counted("data", "server.requests.resolved.server_data")
    counted("weights", "server.storage.registry.Registry.load")

    forget(trained, compare="retrain")
    # What intake checked is what is carried out: its settings are not parsed a second time.
    assert seen == ["data", "weights"]


def test_retraining_is_its_own_yardstick(trained: Path) -> None:
    record = forget(trained, method="retraining", method_options="", accept="passed")
    assert (record["verdict"]["state"], record["verdict"]["yardstick"]) == ("passed", "itself")


def test_a_model_that_never_knew_the_class_has_nothing_to_show(trained: Path) -> None:
    known = max(card(trained, "v0001")["scores"]["per_class_accuracy"])
    told = {"max_forget_accuracy": known, "compare": "retrain", "accept": "passed"}
    with pytest.raises(NotShown, match="nothing to show"):
        forget(trained, **told)
    assert versions(trained) == [("v0001", "in-service")]


def test_retraining_is_done_once_for_the_same_inputs(forgotten: Path) -> None:
    # As in the request before, from the version before it.
    watching = Watching()
    again = forget(forgotten, watching, compare="retrain", version="v0001", trial=True)
    assert again["retrain_cached"] is True
    assert not any(phase == "retrain" for phase, _ in watching.phases)
    assert "retraining was found in the cache" in watching.notes
    assert again["seconds"]["retrain"] > 0
    # Another class is another retraining.
    other = forget(forgotten, forget_classes="5", compare="retrain", trial=True)
    assert other["retrain_cached"] is False
    # A trial leaves everything as it was.
    assert versions(forgotten)[1] == ("v0002", "in-service")
    assert tombstones(forgotten) == [{"r0002": ForgetSpec("class", (3,))}] * 3


# ---- synthetic sets -----------------------------------------------------------------------------


def test_a_forgotten_clients_synthetic_set_is_destroyed_and_only_that(trained: Path) -> None:
    before = digests(trained)
    record = forget(trained, forget_clients="client-1")
    left = digests(trained)
    assert left == {place: sha for place, sha in before.items() if "/client-1/" not in place}
    assert len(left) < len(before)
    assert record["recovered"]["forget_accuracy"] is not None  # on its held-out data
    spec = ForgetSpec("client", (), ("client-1",))
    assert tombstones(trained) == [{"r0002": spec}] * 3
    assert card(trained, "v0002")["erased"] == {"classes": [], "clients": ["client-1"]}

    relearn(trained, forget_clients="client-1")
    assert tombstones(trained) == [{}] * 3
    assert stores(trained)["client-1"].generations()


def test_a_forgotten_class_is_destroyed_on_request_and_drawn_anew_to_relearn(
    trained: Path,
) -> None:
    forget(trained, destroy=True)
    for store in stores(trained).values():
        assert all(3 not in generation.counts for generation in store.generations())
        assert store.generations()
    relearn(trained)
    for store in stores(trained).values():
        assert 3 in store.generations()[-1].counts


def test_without_synthetic_sets_a_method_that_needs_them_is_refused_with_the_others(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    ask(home, "train", scale=0, rounds=1)
    with pytest.raises(BadSetting, match="trained with --scale 0; train again") as refused:
        forget(home)
    named = str(refused.value).rpartition(": ")[2].split(", ")
    assert {"retraining", "sga", "quickdrop-subset"} <= set(named)
    assert {"quickdrop", "quickdrop-calibrated", "federaser"}.isdisjoint(named)
    assert requests(home) == [("r0001", "done")]


def test_a_store_of_another_model_is_an_error_and_nothing_is_lost(trained: Path) -> None:
    for store in stores(trained).values():
        newest = store.generations()[-1]
        found = store.load(newest.lineage, model=newest.model)
        assert found is not None
        store.save(newest.lineage, newest.number, found, model="another")
    before = digests(trained)
    with pytest.raises(ClientLost, match=r"clients must answer describe: client-0, .*StoreError"):
        forget(trained)
    assert digests(trained) == before
    assert requests(trained)[1] == ("r0002", "failed")
    assert versions(trained) == [("v0001", "in-service")]


# ---- stored updates -----------------------------------------------------------------------------

KEPT = {"keep_updates": 1, "scale": 20}


@pytest.fixture(scope="module")
def kept_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("kept") / "home"
    ask(home, "train", **KEPT)
    return home


@pytest.fixture
def kept(kept_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept_home, tmp_path / "home"))


def updates(home: Path) -> dict[str, str]:
    """Return a checksum of every stored update, by request, round and client."""
    found = {}
    for path in sorted((home / "updates").rglob("*.update")):
        request, number, client = path.relative_to(home / "updates").parts
        name = f"{request.partition('-')[0]}/{int(number)}/{client.removesuffix('.update')}"
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_updates_are_kept_every_so_many_rounds_and_counted(kept: Path, trained_home: Path) -> None:
    assert sorted(updates(kept)) == [f"r0001/{n}/{name}" for n in (1, 2) for name in NODES]
    record = json.loads((kept / "runs" / "r0001" / "record.json").read_text())
    size = sum(path.stat().st_size for path in (kept / "updates").rglob("*.update"))
    assert record["storage"]["updates"] == size
    assert record["storage"]["updates_seconds"] > 0
    sets = sum(path.stat().st_size for path in (kept / "clients").rglob("*.safetensors"))
    assert record["storage"]["synthetic"] == sets
    # They change nothing in the model, and nothing is kept unasked.
    assert_equal(weights(kept, "v0001"), weights(trained_home, "v0001"))
    assert updates(trained_home) == {}
    record = json.loads((trained_home / "runs" / "r0001" / "record.json").read_text())
    assert (record["storage"]["updates"], record["storage"]["updates_seconds"]) == (0, 0.0)


def test_an_update_is_what_a_client_changed_in_its_round(kept: Path) -> None:
    (folder,) = (kept / "updates").iterdir()
    first, second = History(folder).rounds()
    service = Service.open(Home(kept))
    told = parse(service.ledger.request("r0001").settings)
    model = initial_weights(told.model_spec(server_data(told)), told.seed)
    for kept_round in (first, second):
        assert len(set(kept_round.weights.values())) <= 2  # equal shares, give or take one
        model = after(model, kept_round)
    for name, array in weights(kept, "v0001").items():
        np.testing.assert_allclose(model[name].numpy(), array, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("number", [1, 2])
def test_a_training_that_was_stopped_neither_loses_nor_doubles_an_update(
    kept_home: Path, tmp_path: Path, number: int
) -> None:
    home = tmp_path / "home"
    with pytest.raises(KeyboardInterrupt):
        ask(home, "train", Watching(("train", number)), **KEPT)
    # The round of the stop is kept already; the same one takes its place.
    assert len(updates(home)) == 3 * number
    ask(home, "train", **KEPT)
    assert updates(home) == updates(kept_home)


def test_the_updates_of_a_training_that_failed_are_destroyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"

    def client(message: Message, context: Context) -> Message:
        if message.metadata.message_type == Heldout.message.name:
            assert updates(home)
            raise RuntimeError("out of memory")
        return app(message, context)

    with pytest.raises(ClientLost):
        ask_with(home, client, settings(home, "train", **KEPT), monkeypatch)
    assert updates(home) == {}
    assert list((home / "updates").iterdir()) == []


def test_a_client_that_failed_leaves_no_update_of_its_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    client = failing(Fit.message.name, ["client-1"], server_round=1)
    ask_with(home, client, settings(home, "train", **KEPT), monkeypatch)
    of_round_2 = [f"r0001/2/{name}" for name in NODES]
    assert sorted(updates(home)) == ["r0001/1/client-0", "r0001/1/client-2", *of_round_2]


def test_a_forgotten_clients_updates_are_destroyed_and_only_those(kept: Path) -> None:
    before = updates(kept)
    forget(kept, forget_clients="client-1")
    left = {name: sha for name, sha in before.items() if not name.endswith("client-1")}
    assert updates(kept) == left
    # What is left can be replayed, and what was calibrated takes its place.
    forget(kept, forget_clients="client-2", method="federaser", method_options="")
    assert sorted(updates(kept)) == ["r0003/1/client-0", "r0003/2/client-0"]


def test_a_forgotten_class_takes_all_updates_along(kept: Path) -> None:
    forget(kept)
    assert updates(kept) == {}
    before = requests(kept)
    with pytest.raises(
        BadSetting,
        match=r"must have stored updates for method federaser, got v0002 without: a later "
        r"request destroyed them; .*choose another method: quickdrop, ",
    ):
        forget(kept, forget_classes="5", method="federaser", method_options="")
    assert requests(kept) == before


def test_a_stop_before_the_updates_are_destroyed_is_made_good(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Service, "sweep", lambda self: None)
        forget(kept)
    assert updates(kept)
    Service.open(Home(kept))
    assert updates(kept) == {}


@pytest.mark.parametrize("method", ["quickdrop", "federaser"])
def test_a_trial_leaves_the_updates_as_they_were(kept: Path, method: str) -> None:
    before = updates(kept)
    options = SHORT if method == "quickdrop" else ""
    forget(kept, method=method, method_options=options, max_forget_accuracy=100.0, trial=True)
    assert updates(kept) == before


def test_a_result_that_did_not_forget_leaves_the_updates_as_they_were(kept: Path) -> None:
    before = updates(kept)
    with pytest.raises(VerificationFailed):
        forget(kept, method_options=NO_EFFECT + ",threshold=100", max_forget_accuracy=5.0)
    assert updates(kept) == before


def test_without_stored_updates_a_method_that_needs_them_is_refused_with_the_others(
    trained: Path,
) -> None:
    with pytest.raises(
        BadSetting,
        match=r"got v0001 without: it was trained without --keep-updates; .*another method: ",
    ) as refused:
        forget(trained, forget_clients="client-1", method="federaser", method_options="")
    named = str(refused.value).rpartition(": ")[2].split(", ")
    assert {"quickdrop", "retraining"} <= set(named)
    assert {"federaser", "class-pruning"}.isdisjoint(named)  # the one needs them, too
    assert requests(trained) == [("r0001", "done")]


def test_keeping_updates_changes_nothing_in_what_retraining_is_cached_by(
    kept: Path, compared_home: Path
) -> None:
    forget(kept, compare="retrain", trial=True)
    (path,), (other,) = (Home(h).cache.glob("retrained-*") for h in (kept, compared_home))
    assert path.name == other.name


# ---- clients that have gone ---------------------------------------------------------------------


def without(home: Path, gone: str, monkeypatch: pytest.MonkeyPatch, **told: Any) -> dict[str, Any]:
    """Run a request while one client is not online."""
    service = Service.open(Home(home))
    monkeypatch.setenv("EFFACE_STORE", str(service.home.clients))
    request = service.prepare(settings(home, "forget", join_timeout=0.05, **told))
    with InlineGrid(app, JOB["num_clients"]) as inner:
        everybody = inner.get_nodes()
        monkeypatch.setattr(inner, "get_nodes", lambda: [n for n in everybody if n.name != gone])
        return to_json(service.execute(request, NamedGrid(inner, 60.0, 0.005), Watching()))


@pytest.mark.parametrize("method", ["retraining", "federaser"])
def test_a_client_that_has_left_can_be_forgotten_where_the_method_does_not_ask_it(
    kept: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = without(kept, "client-2", monkeypatch, forget_clients="client-2", method=method)
    assert done["model_version"] == "v0002"
    assert card(kept, "v0002")["erased"]["clients"] == ["client-2"]
    # From now on it is waited for no more, nor let in.
    again = without(kept, "client-2", monkeypatch, forget_classes="3", method="retraining")
    assert again["model_version"] == "v0003"
    assert card(kept, "v0003")["erased"]["clients"] == ["client-2"]


def test_a_client_that_has_left_cannot_ascend(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClientsMissing, match="at least 3, got 2"):
        without(kept, "client-2", monkeypatch, forget_clients="client-2", method="sga")
    assert versions(kept) == [("v0001", "in-service")]


def test_only_the_named_client_may_be_missing(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClientsMissing, match="at least 2 beside client-2, got 1"):
        without(kept, "client-1", monkeypatch, forget_clients="client-2", method="retraining")


# ---- pruned versions ----------------------------------------------------------------------------


@pytest.mark.parametrize("compact", [0, 1])
@pytest.mark.parametrize("method", ["retraining", "rapid-retraining"])
def test_retraining_after_pruning_starts_from_the_whole_network(
    trained: Path, method: str, compact: int
) -> None:
    options = f"prune-share=0.25,rounds=1,compact={compact}"
    free = {"max_forget_accuracy": 100.0, "max_relearning_gap": 100.0}
    ask(trained, "forget", method="class-pruning", forget_classes="3", method_options=options,
        **free)  # fmt: skip
    assert card(trained, "v0002")["model"]["pruned"]
    ask(trained, "forget", method=method, forget_classes="5", **free)
    assert not card(trained, "v0003")["model"]["pruned"]
    assert card(trained, "v0003")["model"]["compact"] is False
    first, last = weights(trained, "v0001"), weights(trained, "v0003")
    assert {k: a.shape for k, a in first.items()} == {k: a.shape for k, a in last.items()}
    # No channel is zero: all were trained.
    assert all(abs(row).sum() > 0 for row in last["body.0.weight"])
