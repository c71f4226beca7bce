"""Three sites with the default policy, `updates = "sums"`, train and forget; one turns hostile.

Each has data, a policy, a key and pinned peers of its own, and answers as on a SuperLink; only the
wire is left out (deploy/try_three_sites.py has it: real SuperNodes take minutes for a sum).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message
from sklearn.datasets import load_digits

from client.app import app
from client.errors import EffaceError
from client.keys import public_text
from client.logbook import Logbook
from client.operator.folder import POLICY
from client.policy import Policy
from client.store import Store
from server.evidence.record import to_json
from server.nodes.engines.inline import InlineGrid
from server.nodes.grid import NamedGrid
from server.requests.intake import Service
from server.settings import RunSettings
from server.storage.home import Home
from server.storage.keys import signer
from tests.policies import written_policy

NAMES = ("client-0", "client-1", "client-2")
JOB: dict[str, Any] = {
    **{"dataset": "none", "model_classes": 10, "model_channels": 1, "model_image_size": 8},
    **{"num_clients": 3, "rounds": 2, "local_steps": 30, "scale": 0, "lr": 0.1},
    **{"model_width": 8, "model_depth": 1, "engine": "superlink", "device": "cpu"},
    **{"secure_aggregation": True, "evaluate_every": 0},
}
FORGET = {"mode": "forget", "forget_classes": "3", "method": "sga", "accept": "not-shown"}
# What may go up of one site alone: steps of the protocol, yes or no, and the classes' names.
ALONE = {
    *("query.keys", "query.shares", "query.confirm", "query.unmask", "query.describe"),
    "query.settle",
}
Lie = Callable[[Message], Message | None]


class Quiet:
    """Hears nothing."""

    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


class Three:
    """The sites and their coordinator's home.

    Attributes:
        lies: What client-2 makes of its answers, by message type.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.lies: dict[str, Lie] = {}
        pixels, labels = load_digits(return_X_y=True)
        images = np.rint(pixels.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        order = np.random.default_rng(0).permutation(len(labels))
        self.home.mkdir(mode=0o700)
        coordinator = Home(self.home)
        pinned = signer(coordinator.keys).public
        for name in NAMES:
            written_policy(self.site(name), name, coordinators=f'["{pinned}"]')
        keys = {n: public_text(Policy.load(self.site(n) / POLICY).key()) for n in NAMES}
        for i, name in enumerate(NAMES):
            with (self.site(name) / POLICY).open("a") as file:  # [peers] is its last section
                file.writelines(f'{n} = "{keys[n]}"\n' for n in NAMES if n != name)
            rows = order[i::3]
            np.savez(
                self.site(name) / "data.npz", train_images=images[rows], train_labels=labels[rows]
            )

    def site(self, name: str) -> Path:
        return self.folder / "sites" / name

    def answer(self, message: Message, context: Context) -> Message:
        """Answer as the site that the message has come to."""
        name = NAMES[int(context.node_config["partition-id"])]
        config: dict[str, bool | float | int | str] = {
            "data": f"npz:{self.site(name) / 'data.npz'}",
            "store": str(self.site(name) / "store"),
            "policy": str(self.site(name) / POLICY),
            "device": "cpu",
        }
        own = Context(context.run_id, context.node_id, config, context.state, context.run_config)
        reply: Message = app(message, own)
        lie = self.lies.get(message.metadata.message_type)
        if lie is not None and name == NAMES[2]:
            return lie(reply) or reply
        return reply

    def ask(self, **more: Any) -> dict[str, Any]:
        service = Service.open(Home(self.home))
        request = service.prepare(RunSettings(**{**JOB, "home": str(self.home), **more}).check())
        with InlineGrid(self.answer, len(NAMES)) as inner:
            return to_json(service.execute(request, NamedGrid(inner, 60.0, 0.005), Quiet()))

    def log(self, name: str) -> list[dict[str, Any]]:
        book = Logbook(self.site(name) / "store")
        assert book.verify() == []
        return list(book.entries())

    def weights(self, version: str) -> dict[str, Any]:
        return dict(Service.open(Home(self.home)).registry.load(version)[0])

    def in_service(self) -> str | None:
        try:
            return Service.open(Home(self.home)).registry.resolve(None).id
        except EffaceError:
            return None


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Three:
    for name in ("EFFACE_HOME", "EFFACE_STORE", "EFFACE_DATA_DIR", "EFFACE_DATABASE_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return Three(tmp_path)


# ---- the sites as they are meant to be -----------------------------------------------------------


def test_they_train_and_forget_and_nothing_of_one_site_goes_up(three: Three) -> None:
    trained = three.ask()
    assert (trained["model_version"], three.in_service()) == ("v0001", "v0001")

    options = "unlearn-rounds=2,unlearn-epochs=10,unlearn-lr=0.05,rounds=1"
    record = three.ask(**FORGET, method_options=options)

    assert record["verdict"]["state"] in ("passed", "not-shown"), record["verdict"]
    assert three.in_service() == record["model_version"] == "v0002"
    assert all(np.isfinite(a).all() for a in three.weights("v0002").values())
    for name in NAMES:
        (told,) = Store(three.site(name) / "store").state().tombstones.values()
        assert told.classes == (3,)
        lines = three.log(name)
        assert {line["outcome"] for line in lines} == {"answered"}
        summed = [line for line in lines if line["message"] not in ALONE]
        assert {"train.fit", "train.ascend", "evaluate.heldout"} <= {e["message"] for e in summed}
        assert all(line["in_sum_of"] == ", ".join(NAMES) for line in summed)
        # No count of one site's examples either.
        for line in lines:
            counts = {k: v for k, v in line["numbers"].items() if k.startswith("num-")}
            assert not any(counts.values()), line


# ---- one hostile coordinator ---------------------------------------------------------------------


def test_a_coordinator_that_asks_each_site_alone_is_refused_by_all(three: Three) -> None:
    with pytest.raises(EffaceError) as caught:
        three.ask(secure_aggregation=False)

    assert "this site answers in sums only: run with --secure-aggregation" in str(caught.value)
    assert three.in_service() is None
    for name in NAMES:
        fits = [line for line in three.log(name) if line["message"] == "train.fit"]
        assert [line["outcome"] for line in fits] == ["refused"]


# ---- one hostile client --------------------------------------------------------------------------


def arrays_of(reply: Message) -> ArrayRecord:
    found: ArrayRecord = reply.content.array_records["arrays"]
    return found


def noise(reply: Message) -> None:
    """Put random numbers of the same form in place of all: keys, shares, what is masked."""
    for name, array in arrays_of(reply).items():
        size = int(np.dtype(array.dtype).itemsize * np.prod(array.shape))
        draws = np.frombuffer(np.random.default_rng(0).bytes(size), array.dtype)
        arrays_of(reply)[name] = Array(draws.reshape(array.shape).copy())


def noise_of_one_form(reply: Message) -> None:
    """Leave what the masked numbers are, and put random ones in their place."""
    forms = arrays_of(reply).get("forms")
    noise(reply)
    if forms is not None:
        arrays_of(reply)["forms"] = forms


def not_a_number(reply: Message) -> None:
    for name, array in arrays_of(reply).items():
        arrays_of(reply)[name] = Array(np.full(array.shape, np.nan, np.float32))


def unreadable(reply: Message) -> None:
    """Leave what is said of the arrays, and spoil their bytes."""
    for name, array in arrays_of(reply).items():
        spoilt = Array(array.dtype, tuple(array.shape), array.stype, b"no array at all")
        arrays_of(reply)[name] = spoilt


def other_type(reply: Message) -> None:
    """Say one type, and send another."""
    for name, array in arrays_of(reply).items():
        spoilt = Array(np.zeros(array.shape, np.complex64))
        arrays_of(reply)[name] = Array(array.dtype, tuple(array.shape), array.stype, spoilt.data)


def shorter(reply: Message) -> None:
    for name, array in arrays_of(reply).items():
        arrays_of(reply)[name] = Array(array.numpy()[:-1].copy())


def nothing(reply: Message) -> None:
    for kind in (reply.content.array_records, reply.content.metric_records):
        for name in list(kind):
            del reply.content[name]


def no_arrays(reply: Message) -> None:
    reply.content["arrays"] = ArrayRecord()


def no_numbers(reply: Message) -> None:
    del reply.content["metrics"]


def raises(reply: Message) -> None:
    raise RuntimeError("\x1b[2Jboom")


LIES = [
    noise,
    not_a_number,
    unreadable,
    other_type,
    shorter,
    nothing,
    no_arrays,
    no_numbers,
    raises,
]


@pytest.mark.parametrize(
    "kind", ["query.keys", "query.shares", "train.fit", "query.confirm", "query.unmask"]
)
@pytest.mark.parametrize("lie", LIES)
def test_a_hostile_client_cannot_break_a_version(three: Three, lie: Lie, kind: str) -> None:
    three.lies = {kind: lie}

    failure: EffaceError | None = None
    try:
        three.ask(rounds=1)
    except EffaceError as error:
        failure = error

    if failure is not None:  # in words, and nothing in service
        assert str(failure).isprintable()
        assert three.in_service() is None
        assert Service.open(Home(three.home)).ledger.request("r0001").state == "failed"
    else:  # or it is left out, and the others' model is sound
        assert three.in_service() == "v0001"
        weights = three.weights("v0001")
        assert all(np.isfinite(a).all() and np.abs(a).max() < 100 for a in weights.values())
    for name in NAMES:
        assert all(line["in_sum_of"] for line in three.log(name) if line["message"] not in ALONE)
