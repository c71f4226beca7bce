"""Orders: signed once with the coordinator's key, sent with what they are about, and kept."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.errors import EffaceError
from client.orders import order_bytes, verify
from client.policy import PolicyRefused
from client.wire import ForgetSpec
from server.nodes.engines.inline import InlineGrid
from server.requests.orders import NAME, order_of, problems
from server.runner import run
from server.settings import RunSettings, parse
from server.storage import keys
from server.storage.home import Home
from server.storage.ledger import Ledger

JOB: dict[str, Any] = {
    **{"num_clients": 2, "partition": "iid", "model_width": 8, "rounds": 1, "local_steps": 4},
    **{"batch_size": 32, "scale": 0, "engine": "inline", "device": "cpu", "method": "retraining"},
    **{"accept": "not-shown", "max_forget_accuracy": 100.0},
}


pytestmark = pytest.mark.usefixtures("surroundings")


class Silent:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Type and settings of every message."""
    found: list[tuple[str, dict[str, Any]]] = []
    push = InlineGrid.push_messages

    def watched(self: InlineGrid, messages: Iterable[Message]) -> Iterable[str]:
        given = list(messages)
        found.extend(
            (m.metadata.message_type, dict(m.content.config_records["config"])) for m in given
        )
        return push(self, given)

    monkeypatch.setattr(InlineGrid, "push_messages", watched)
    return found


def signed_for(config: dict[str, Any], action: str, *, destroy: bool) -> bytes:
    """Return the bytes that a site makes of a message to check its order."""
    return order_bytes(
        request=config["request"],
        action=action,
        target=ForgetSpec(
            config["forget-level"],
            tuple(config["forget-classes"]),
            tuple(config["forget-clients"]),
        ),
        destroy=destroy,
        lineage=config["lineage"],
        time=config["order-time"],
    )


def test_a_site_that_pinned_the_key_takes_every_order(
    tmp_path: Path, sent: list[tuple[str, dict[str, Any]]]
) -> None:
    home = Home(tmp_path / "home")

    def ask(mode: str, **more: Any) -> None:
        sent.clear()
        told = {"mode": mode, "home": str(home.path), **JOB, **more}
        run(RunSettings(**told).check(), Silent())

    ask("train")
    assert all(config["order-signature"] == "" for _, config in sent)
    (pinned,) = keys.public_keys(home.keys)

    for number, (mode, more, destroy) in enumerate(
        [
            ("forget", {"forget_classes": "3"}, False),
            ("relearn", {"forget_classes": "3"}, False),
            ("forget", {"forget_classes": "3", "destroy": True}, True),
            ("forget", {"forget_clients": "client-1"}, True),
        ],
        start=2,
    ):
        ask(mode, **more)
        last = [config for kind, config in sent if kind == "query.settle"]
        assert last
        for config in last:
            order = signed_for(config, mode, destroy=destroy)
            assert verify(order, config["order-signature"], [pinned]) == pinned
            assert config["destroy"] is destroy
        kept = json.loads((home.runs / f"r000{number}" / NAME).read_text())
        assert {kept["signature"]} == {config["order-signature"] for config in last}
        others = [config for kind, config in sent if kind != "query.settle"]
        if mode == "relearn":  # what reaches below a tombstone brings the order along
            for config in others:
                order = signed_for(config, mode, destroy=False)
                assert verify(order, config["order-signature"], [pinned]) == pinned
        else:
            assert all(config["order-signature"] == "" for config in others)

    ask("forget", forget_classes="5", trial=True)
    assert not any(kind == "query.settle" for kind, _ in sent)
    assert not (home.runs / "r0006" / NAME).exists()


def test_an_order_is_signed_once(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with Ledger.of(home) as ledger:
        told = RunSettings(mode="forget", forget_classes="3").check()
        ledger.new_request(
            kind="forget",
            method="sga",
            federation="f",
            level="class",
            classes=[3],
            settings=told.plain(),
        )
        row = ledger.request("r0001")
    settings, publics = parse(row.settings), keys.public_keys(home.keys)
    first = order_of(home, row, settings, "L")
    path = home.runs / "r0001" / NAME

    assert order_of(home, row, settings, "L") == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert problems(path, row, publics) == []
    with pytest.raises(EffaceError, match="order of r0001 must be the request's own"):
        order_of(home, row, replace(settings, destroy=True), "L")
    with pytest.raises(PolicyRefused, match="must be signed by a key that this site pinned"):
        verify(first.signed, first.signature, ["A" * 43 + "="])

    kept = json.loads(path.read_text())
    for change in ({"time": "2020-01-01T00:00:00+00:00"}, {"key": "A" * 43 + "="}):
        path.write_text(json.dumps({**kept, **change}))
        ((text, _),) = problems(path, row, publics)
        assert text.startswith("order of r0001 must be signed by the coordinator's key")
    path.write_text("{")
    with pytest.raises(EffaceError, match="order must be as it was signed, got"):
        order_of(home, row, settings, "L")
