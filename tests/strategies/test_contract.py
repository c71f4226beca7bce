"""What every method of the table keeps to, whatever it does inside: one contract for all.

A method is run with what its `needs` declare and with nothing else: on a version trained without
synthetic sets if it says that it needs none, without the coordinator's own examples if it says so.
So a declaration that leaves something out fails here. One that asks for too much does as well:
without the thing the method must be refused.
"""

import functools
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message

import client.app
from client import attestation
from client.errors import BadSetting, EffaceError
from client.learning.models import ModelSpec, build
from client.steps.channels import SLICES
from client.steps.store import Settle
from client.store import Store
from client.wire import ForgetSpec, Form, forms
from server.evidence.phases import PHASES
from server.evidence.record import to_json
from server.evidence.verdict import Finding, Verdict
from server.nodes.engines.inline import InlineGrid
from server.nodes.federation import Round
from server.nodes.grid import NamedGrid
from server.nodes.sizes import size
from server.requests.execution import VerificationFailed
from server.requests.intake import Service
from server.runner import run
from server.settings import RunSettings
from server.storage.history import History
from server.storage.home import Home
from strategies.parts.averaging import weighted_average
from strategies.table import METHODS

JOB: dict[str, Any] = {
    "num_clients": 3,
    "partition": "iid",
    "max_samples": 300,
    "model_width": 8,
    "rounds": 2,
    "local_steps": 4,
    "batch_size": 32,
    "lr": 0.1,
    "engine": "inline",
    "device": "cpu",
    "join_timeout": 0.1,
    # A model this small tells nothing of how well a method forgets; that it is judged is enough.
    "max_forget_accuracy": 100.0,
    "max_relearning_gap": 100.0,
    "accept": "not-shown",
}
CALIBRATED = (
    "recover-rounds=2,client-recover-rounds=2,threshold=100,tolerance=100,client-tolerance=100"
)
# Work short enough for a test, and the same on every machine: nothing waits for an accuracy where
# a method lets one choose. A method that is not named here runs as it is by default.
OPTIONS = {
    "quickdrop": "recover-epochs=1,threshold=100,tolerance=100",
    "quickdrop-calibrated": CALIBRATED,
    "quickdrop-calibrated-subset": CALIBRATED,
    "quickdrop-subset": "recover-epochs=1,threshold=100,tolerance=100",
    "class-pruning": "rounds=2,target=100",
    "influential-de": "rounds=2",
    "sga": "unlearn-epochs=2,unlearn-rounds=1,rounds=2",
    "not": "rounds=2",
    "puf": "rounds=2",
    "s2u": "rounds=2",
    "rapid-retraining": "rounds=2",
}
LEVELS = ("class", "client")
REQUEST = {"class": {"forget_classes": "3"}, "client": {"forget_clients": "client-1"}}
NAMED = {
    "class": ForgetSpec("class", (3,)),
    "client": ForgetSpec("client", (), ("client-1",)),
}

SERVED = [(name, at) for name, kind in METHODS.items() for at in LEVELS if at in kind.needs.levels]
NOT_SERVED = [(name, at) for name in METHODS for at in LEVELS if (name, at) not in SERVED]
ONCE = [(name, next(at for n, at in SERVED if n == name)) for name in METHODS]


class Watching:
    """Remembers the rounds it is told of; presses Ctrl-C instead of hearing of one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.rounds: list[tuple[str, int]] = []

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        if len(self.rounds) == self.stop_at:
            raise KeyboardInterrupt
        self.rounds.append((done.phase, done.number))

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Exchange:
    """What a node was sent, and what it answered."""

    kind: str
    told: dict[str, Any]
    down: dict[str, Form]
    up: dict[str, Form]
    records: set[str]  # of the answer
    metrics: dict[str, Any]
    bytes_down: int
    bytes_up: int


@dataclass
class Wire:
    """Nodes as they are, with everything that they are sent and answer written down."""

    seen: list[Exchange] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tap(self, patch: pytest.MonkeyPatch) -> None:
        app = client.app.app

        def node(message: Message, context: Context) -> Message:
            kind, asked = message.metadata.message_type, message.content
            told = dict(asked.config_records["config"])
            down, bytes_down = forms(asked.array_records["arrays"]), size(message)
            answer = app(message, context)
            content = answer.content
            up = forms({k: v for r in content.array_records.values() for k, v in r.items()})
            metrics = {k: v for r in content.metric_records.values() for k, v in r.items()}
            found = Exchange(
                kind, told, down, up, set(content), metrics, bytes_down, size(answer)
            )  # fmt: skip
            with self.lock:
                self.seen.append(found)
            return answer

        patch.setattr(client.app, "app", node)


@dataclass(frozen=True)
class Done:
    """A request that nobody disturbed."""

    home: Path
    record: dict[str, Any]
    rounds: list[tuple[str, int]]
    seen: list[Exchange]


pytestmark = pytest.mark.usefixtures("shared_surroundings")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A home whose version was trained with so much beside the model, and with no more."""

    @functools.cache
    def home(*, synthetic_data: bool, history: bool) -> Path:
        made = tmp_path_factory.mktemp("trained") / "home"
        more = {"scale": 20 if synthetic_data else 0, "keep_updates": int(history)}
        told = RunSettings(**{"mode": "train", "home": str(made), **JOB, **more})
        run(told.check(), Watching())
        return made

    return home


@pytest.fixture
def fresh(trained: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """A home of the test's own with what a method needs."""
    return lambda name: with_needs(name, trained, tmp_path / "home")


@pytest.fixture(scope="module")
def whole(
    trained: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Done]:
    """A request as it should be: never stopped, on a home that no test changes."""

    @functools.cache
    def forgotten(name: str, level: str) -> Done:
        home = with_needs(name, trained, tmp_path_factory.mktemp("whole") / "home")
        watching, tapped = Watching(), Wire()
        with pytest.MonkeyPatch.context() as patch:
            tapped.tap(patch)
            record = ask(home, "forget", name, level, watching)
        return Done(home, record, watching.rounds, tapped.seen)

    return forgotten


def with_needs(name: str, trained: Callable[..., Path], to: Path) -> Path:
    needs = METHODS[name].needs
    home = trained(synthetic_data=needs.synthetic_data, history=needs.history)
    return Path(shutil.copytree(home, to))


def ask(
    home: Path, mode: str, name: str, level: str, listener: Watching | None = None, **more: Any
) -> dict[str, Any]:
    """Ask for what a method is asked for, with the coordinator's own examples if it needs them."""
    told = {"method": name, "method_options": OPTIONS.get(name, ""), **REQUEST[level], **more}
    if METHODS[name].needs.server_data:
        told.setdefault("server_samples", "test:60")
    checked = RunSettings(**{"mode": mode, "home": str(home), **JOB, **told}).check()
    return to_json(run(checked, listener or Watching()))


# ---- what a home holds --------------------------------------------------------------------------


def requests(home: Path) -> list[tuple[str, str]]:
    return [(row.id, row.state) for row in Service.open(Home(home)).ledger.requests()]


def versions(home: Path) -> list[tuple[str, str]]:
    return [(row.id, row.state) for row in Service.open(Home(home)).ledger.versions()]


def load(home: Path, version: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    return Service.open(Home(home)).registry.load(version)


def tombstones(home: Path) -> list[list[ForgetSpec]]:
    """Return what every node keeps out, of those nodes that keep a store."""
    stores = sorted((home / "clients").glob("*/client-*"))
    return [list(Store(folder).state().tombstones.values()) for folder in stores]


def kept(home: Path) -> list[tuple[str, int, str]]:
    """Return the stored updates: training, round, client."""
    folders = sorted(Home(home).updates.iterdir())
    rounds = [(folder.name, done) for folder in folders for done in History(folder).rounds()]
    return [(name, done.number, client) for name, done in rounds for client in done.updates]


def assert_equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        assert np.array_equal(one[name], other[name]), name


@dataclass
class Untouched:
    """A home's version in service, to be found as it was."""

    home: Path

    def __post_init__(self) -> None:
        self.weights, self.card = load(self.home, "v0001")
        self.updates = kept(self.home)

    def check(self) -> None:
        assert versions(self.home) == [("v0001", "in-service")]
        weights, card = load(self.home, "v0001")
        assert_equal(weights, self.weights)
        assert card == self.card
        assert set(self.updates) <= set(kept(self.home))
        assert not any(tombstones(self.home))


# ---- a request is served ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "level"), SERVED)
def test_a_new_version_without_it_is_in_service_and_the_earlier_one_is_kept(
    whole: Callable[..., Done], trained: Callable[..., Path], name: str, level: str
) -> None:
    done = whole(name, level)
    assert requests(done.home)[1:] == [("r0002", "done")]
    assert versions(done.home) == [("v0001", "superseded"), ("v0002", "in-service")]

    needs = METHODS[name].needs
    before = load(trained(synthetic_data=needs.synthetic_data, history=needs.history), "v0001")[0]
    assert_equal(load(done.home, "v0001")[0], before)
    after, card = load(done.home, "v0002")
    assert all(np.isfinite(array).all() for array in after.values())
    assert any(not np.array_equal(before[key], after[key]) for key in before)
    named = NAMED[level]
    assert card["erased"] == {"classes": list(named.classes), "clients": list(named.clients)}
    # The model that the card describes is the one that is there.
    described = build(ModelSpec.of_card(card["model"]), torch.Generator())
    assert forms(described.state_dict()) == forms(after)
    assert tombstones(done.home) == [[named]] * 3
    if needs.history:  # what was calibrated without it is there for the next request
        assert kept(done.home)
        assert not any(client in named.clients for _, _, client in kept(done.home))


def scores_of(found: Any) -> None:
    assert {"forget_accuracy", "retain_accuracy", "loss", "heldout"} <= found.keys()
    known = [found["retain_accuracy"], *found["per_class_accuracy"]]
    assert len(known) == 11
    assert all(0 <= accuracy <= 100 for accuracy in known)
    assert np.isfinite(found["loss"])
    heldout = [found["heldout"], *found["heldout"]["sites"]]
    accuracies = [v for one in heldout for key, v in one.items() if key.endswith("accuracy")]
    assert all(0 <= accuracy <= 100 for accuracy in accuracies if accuracy is not None)
    assert len(found["heldout"]["sites"]) > 1


@pytest.mark.parametrize(("name", "level"), SERVED)
def test_its_record_is_complete_and_counts_what_crossed_the_wire(
    whole: Callable[..., Done], name: str, level: str
) -> None:
    done, named = whole(name, level), NAMED[level]
    record = done.record
    written = json.loads((done.home / "runs" / "r0002" / "record.json").read_text())
    assert written == json.loads(json.dumps(record))
    assert Path(record["report"]).stat().st_size > 1000
    told = {"level": level, "classes": list(named.classes), "clients": list(named.clients)}
    facts = ("request", "kind", "method", "base_version", "model_version", "forget")
    assert [record[key] for key in facts] == ["r0002", "forget", name, "v0001", "v0002", told]
    scores_of(record["original"])
    scores_of(record["recovered"])
    # Nothing is compared; of a class, a limit of 100 % leaves nothing to show. Retraining is its
    # own yardstick.
    shown = (name, level) == ("retraining", "client")
    assert record["verdict"]["state"] == ("passed" if shown else "not-shown")
    assert (record["original"]["relearning_curve"] is None) == (level == "client")
    assert record["storage"]["updates"] > 0 or not METHODS[name].needs.history

    # Every round that changed the model was told of, and has its scores.
    assert done.rounds
    assert [(note["phase"], note["round"]) for note in record["timeline"]] == done.rounds
    assert {phase for phase, _ in done.rounds} <= set(record["seconds"]) <= set(PHASES)
    for key in ("rounds", "samples", "client_seconds"):
        assert record[key].keys() == record["seconds"].keys()

    # What is settled comes after the record; all before is counted, message by message.
    asked = [e for e in done.seen if e.kind != Settle.message.name]
    assert sum(b["up"] for b in record["bytes"].values()) == sum(e.bytes_up for e in asked)
    assert sum(b["down"] for b in record["bytes"].values()) == sum(e.bytes_down for e in asked)
    for phase, seconds in record["seconds"].items():
        work = [e for e in asked if e.told["phase"] == phase]
        assert record["bytes"][phase]["up"] == sum(e.bytes_up for e in work)
        assert record["client_seconds"][phase] == pytest.approx(
            sum(e.metrics["seconds"] for e in work)
        )
        asked_rounds = len({e.told["server-round"] for e in work})
        # A stored round may be added as it is, without asking anybody.
        replayed = record["rounds"][phase] - asked_rounds
        assert replayed in ((0, 1) if METHODS[name].needs.history else (0,))
        if work:
            assert record["samples"][phase] == sum(e.metrics["samples"] for e in work)
        assert seconds > 0


# ---- the wire -----------------------------------------------------------------------------------


def nothing(model: dict[str, Form], down: dict[str, Form]) -> dict[str, Form]:
    return {}


def the_same(model: dict[str, Form], down: dict[str, Form]) -> dict[str, Form]:
    return down


def of_channels(model: dict[str, Form]) -> dict[str, int]:
    """Return the layers that have a weight of at least two dimensions, and their channels."""
    weights = {k.removesuffix(".weight"): f for k, f in model.items() if k.endswith(".weight")}
    return {name: form.shape[0] for name, form in weights.items() if len(form.shape) > 1}


def class_sums(model: dict[str, Form], down: dict[str, Form]) -> dict[str, Form]:
    layers = of_channels(model)
    classes = layers.pop("classifier")
    return {name: Form((classes, count), "float64") for name, count in layers.items()}


def effects(model: dict[str, Form], down: dict[str, Form]) -> dict[str, Form]:
    return {
        f"{what}/{name}": Form((count,), "float64")
        for what in ("accuracy", "loss")
        for name, count in of_channels(model).items()
        if name != "classifier"
    }


# What each kind of arrays is that a message may declare, from the model and what went down.
UP: dict[str, Callable[[dict[str, Form], dict[str, Form]], dict[str, Form]]] = {
    "none": nothing,
    "model": the_same,
    "parameters": the_same,  # this model has no buffers
    "class-sums": class_sums,
    "effects": effects,
    # ["0", "1", ... "9"]: 10 names of 3 bytes, 9 of ", ", brackets
    "class-names": lambda model, down: {"class-names": Form((10 * 3 + 9 * 2 + 2,), "uint8")},
}


@pytest.mark.parametrize(("name", "level"), SERVED)
def test_nothing_crosses_the_wire_but_what_is_declared(
    whole: Callable[..., Done], name: str, level: str
) -> None:
    done = whole(name, level)
    model = forms(load(done.home, "v0001")[0])
    assert done.seen
    for exchange in done.seen:
        # Down: the message's own settings, and the model or the slices of its channels.
        kind = client.app.handlers()[exchange.kind].kind
        kind.parse(exchange.told)
        slices = exchange.down.keys() == {SLICES}
        assert slices or not exchange.down or exchange.down == model
        # Up: one record of arrays and one of numbers.
        assert exchange.records == {"arrays", "metrics"}
        assert exchange.metrics.keys() <= kind.message.up.keys()
        for key, value in exchange.metrics.items():
            per_class = kind.message.up[key] == "per-class"
            assert len(np.atleast_1d(value)) == (10 if per_class else 1)
        if exchange.metrics.get("num-examples") == 0 and not exchange.up:
            continue  # who has nothing left may say so, and no more
        if kind.message.arrays == "slices":
            (form,) = exchange.up.values()
            assert exchange.up.keys() == {SLICES}
            whole_model = sum(int(np.prod(f.shape)) for f in model.values())
            assert len(form.shape) == 1
            assert form.shape[0] < whole_model
        elif kind.message.arrays == "attestation":
            (form,) = exchange.up.values()
            assert (exchange.up.keys(), form.dtype) == ({attestation.ARRAY}, "uint8")
            assert form.shape[0] <= attestation.MAX_BYTES
        else:
            assert exchange.up == UP[kind.message.arrays](model, exchange.down)


# ---- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "level"), NOT_SERVED)
def test_a_level_that_is_not_served_is_refused_with_all_methods_that_serve_it(
    fresh: Callable[[str], Path], name: str, level: str
) -> None:
    home = fresh(name)
    untouched = Untouched(home)
    with pytest.raises(BadSetting) as refused:
        ask(home, "forget", name, level)
    serving = [other for other, at in SERVED if at == level]
    said = re.search(rf"level {level} is served by (.*)$", str(refused.value))
    assert said is not None
    assert said[1].split(", ") == serving
    assert requests(home) == [("r0001", "done")]  # not even written down
    untouched.check()


REMEDIES = {
    "synthetic_data": "scale",
    "history": "--keep-updates",
    "server_data": "--server-samples",
}
LACKING = [(name, n) for name in METHODS for n in REMEDIES if getattr(METHODS[name].needs, n)]


@pytest.mark.parametrize(("name", "need"), LACKING)
def test_without_what_it_needs_a_request_is_refused_with_the_remedy(
    trained: Callable[..., Path], tmp_path: Path, name: str, need: str
) -> None:
    needs = METHODS[name].needs
    there = {n: getattr(needs, n) and n != need for n in ("synthetic_data", "history")}
    home = Path(shutil.copytree(trained(**there), tmp_path / "home"))
    untouched = Untouched(home)
    more = {"server_samples": ""} if need == "server_data" else {}
    with pytest.raises(EffaceError, match=REMEDIES[need]):
        ask(home, "forget", name, ONCE[list(METHODS).index(name)][1], **more)
    untouched.check()


@pytest.mark.parametrize(("name", "level"), ONCE)
def test_after_a_refused_result_the_same_request_gives_the_same_weights(
    whole: Callable[..., Done],
    fresh: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    level: str,
) -> None:
    home = fresh(name)
    untouched = Untouched(home)

    def failed(*_: Any, **__: Any) -> Verdict:
        return Verdict("failed", (Finding("erased-earlier", "exceeded", 90.0, 5.0, label=1),))

    with monkeypatch.context() as patch:
        patch.setattr("server.requests.execution.decide", failed)
        with pytest.raises(VerificationFailed, match=r"class 1.*is back.*v0001 stays in service"):
            ask(home, "forget", name, level)
    assert requests(home) == [("r0001", "done"), ("r0002", "failed")]
    untouched.check()

    # Asked again, on one core: neither what came before nor who was faster makes a difference.
    with monkeypatch.context() as patch:
        patch.setattr("server.nodes.engines.inline.os.cpu_count", lambda: 1)
        record = ask(home, "forget", name, level)
    assert record["model_version"] == "v0002"
    assert_equal(load(home, "v0002")[0], load(whole(name, level).home, "v0002")[0])


# ---- stopped and taken up again -----------------------------------------------------------------


@pytest.mark.parametrize(("name", "level"), SERVED)
def test_a_stopped_request_is_taken_up_and_ends_with_the_same_weights(
    whole: Callable[..., Done], fresh: Callable[[str], Path], name: str, level: str
) -> None:
    done, home = whole(name, level), fresh(name)
    untouched = Untouched(home)
    half = len(done.rounds) // 2
    with pytest.raises(KeyboardInterrupt):
        ask(home, "forget", name, level, Watching(stop_at=half))
    assert requests(home) == [("r0001", "done"), ("r0002", "interrupted")]
    untouched.check()

    again = Watching()
    record = ask(home, "forget", name, level, again)

    assert again.rounds == done.rounds[half:]  # the rest, and no more
    assert requests(home)[1] == ("r0002", "done")
    (weights, card), (expected, expected_card) = load(home, "v0002"), load(done.home, "v0002")
    assert_equal(weights, expected)
    assert card["model"] == expected_card["model"]
    keys = ("original", "unlearned", "recovered", "channels", "rounds", "samples", "timeline")
    assert {key: record[key] for key in keys} == {key: done.record[key] for key in keys}
    assert tombstones(home) == tombstones(done.home)
    trimmed = [[(number, client) for _, number, client in kept(h)] for h in (home, done.home)]
    assert trimmed[0] == trimmed[1]


# ---- who takes part -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "level"), SERVED)
def test_what_a_method_says_that_it_needs_of_the_nodes_it_uses(
    whole: Callable[..., Done], name: str, level: str
) -> None:
    needs, seen = METHODS[name].needs, whole(name, level).seen
    synthetic = {e.told["data"] for e in seen if "synthetic" in e.told.get("data", "")}
    assert bool(synthetic) is needs.synthetic_data
    if level == "client":
        own = [e for e in seen if e.told["client"] == "client-1" and e.kind.startswith("train.")]
        assert any(e.metrics["num-examples"] for e in own) is needs.target_online


@pytest.mark.parametrize("name", [name for name, level in SERVED if level == "client"])
def test_the_named_client_has_to_be_there_only_if_the_method_says_so(
    whole: Callable[..., Done],
    fresh: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    home = fresh(name)
    untouched = Untouched(home)
    everybody = InlineGrid.get_nodes
    monkeypatch.setattr(
        InlineGrid, "get_nodes", lambda self: [n for n in everybody(self) if n.name != "client-1"]
    )
    if METHODS[name].needs.target_online:
        with pytest.raises(EffaceError, match=r"^clients? .*online"):
            ask(home, "forget", name, "client")
        untouched.check()
    else:
        # Its absence changes not one bit: what it has is not used.
        ask(home, "forget", name, "client")
        done = whole(name, "client")
        assert_equal(load(home, "v0002")[0], load(done.home, "v0002")[0])


class SecureGrid(NamedGrid):
    """A server that learns only the mean of the nodes' arrays: every answer holds that."""

    def replies(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        yield from self.send_and_receive(messages, timeout=timeout)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        replies = super().send_and_receive(messages, timeout=timeout)
        sent = [r for r in replies if len(r.content.array_records["arrays"])]
        if not sent or attestation.ARRAY in sent[0].content.array_records["arrays"]:
            return replies  # what a site signs is no update
        counts = [float(r.content.metric_records["metrics"]["num-examples"]) for r in sent]
        if "count-per-class" in sent[0].content.metric_records["metrics"]:
            counts = [1.0] * len(sent)  # sums, which are added as they are
        used = [(r, n) for r, n in zip(sent, counts, strict=True) if n > 0]
        like = used[0][0].content.array_records["arrays"]
        mean = weighted_average(
            [r.content.array_records["arrays"] for r, _ in used], [n for _, n in used]
        )
        for reply, _ in used:
            arrays = {k: Array(mean[k].numpy().astype(like[k].numpy().dtype)) for k in like}
            reply.content.array_records["arrays"] = ArrayRecord(arrays)
        return replies


@pytest.mark.parametrize(("name", "level"), ONCE)
def test_single_nodes_updates_are_read_only_if_the_method_says_so(
    whole: Callable[..., Done],
    fresh: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    level: str,
) -> None:
    expected = load(whole(name, level).home, "v0002")[0]  # before the grid is another
    home = fresh(name)
    monkeypatch.setattr("server.runner.NamedGrid", SecureGrid)
    ask(home, "forget", name, level)
    found = load(home, "v0002")[0]
    # Means of means are rounded differently, and every step builds on the last.
    near = all(np.allclose(found[key], expected[key], rtol=1e-3, atol=1e-4) for key in expected)
    assert near is not METHODS[name].needs.individual_updates


# ---- brought back -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "level"), SERVED)
def test_it_is_brought_back_if_the_method_says_so_and_refused_if_not(
    whole: Callable[..., Done], tmp_path: Path, name: str, level: str
) -> None:
    home = Path(shutil.copytree(whole(name, level).home, tmp_path / "home"))
    before = load(home, "v0002")[0]
    if not METHODS[name].needs.relearning:
        with pytest.raises(BadSetting, match=r"relearn.* must .*, got "):
            ask(home, "relearn", name, level)
        assert len(requests(home)) == 2
        assert versions(home)[1:] == [("v0002", "in-service")]
        assert tombstones(home) == [[NAMED[level]]] * 3
        return
    tapped = Wire()
    with pytest.MonkeyPatch.context() as patch:
        tapped.tap(patch)
        record = ask(home, "relearn", name, level)
    after, card = load(home, "v0003")
    assert versions(home)[1:] == [("v0002", "superseded"), ("v0003", "in-service")]
    assert card["erased"] == {"classes": [], "clients": []}
    assert any(not np.array_equal(before[key], after[key]) for key in before)
    assert_equal(load(home, "v0002")[0], before)
    assert not any(tombstones(home))
    scores_of(record["relearned"])
    scores_of(record["trained"])
    # Who holds it trains on all it has, what comes back included.
    work = [e for e in tapped.seen if e.told["phase"] == "relearn"]
    assert {e.told["side"] for e in work} == {"all"}
    assert {e.told["client"] for e in work if e.metrics["num-examples"]} >= {"client-1"}
