"""The last message of a request: an answer that it was applied already must be expected."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from client import attestation
from client.app import app
from client.keys import public_text, simulated_key
from server.nodes.engines.inline import InlineGrid
from server.nodes.federation import GridFederation
from server.nodes.grid import NamedGrid
from server.storage.journal import Journal
from strategies.rounds.base import ClientLost
from tests.messages import NUM_CLIENTS, values

NINE = {"forget_level": "class", "forget_classes": [9]}


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NamedGrid]:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "stores"))
    with InlineGrid(app, NUM_CLIENTS, node_config={}, workers=1) as inner:
        yield NamedGrid(inner, 60.0)


def federation(grid: NamedGrid, folder: Path, request: str = "r2") -> GridFederation:
    return GridFederation(grid, values(request=request, **NINE), Journal(folder, {}))


def test_a_request_is_applied_once_and_its_answer_is_kept(grid: NamedGrid, tmp_path: Path) -> None:
    first = federation(grid, tmp_path / "j").settle("forget", destroy=False)
    assert {name: m["applied"] for name, m in first.items()} == {
        f"client-{i}": 0.0 for i in range(NUM_CLIENTS)
    }
    assert federation(grid, tmp_path / "j").settle("forget", destroy=False) == first


def test_a_name_that_was_used_before_is_a_failure_each_time(
    grid: NamedGrid, tmp_path: Path
) -> None:
    federation(grid, tmp_path / "other").settle("forget", destroy=False, names=["client-1"])
    for _ in range(2):
        with pytest.raises(ClientLost, match="request must be new to client-1, got the answer"):
            federation(grid, tmp_path / "j").settle("forget", destroy=False)


def test_a_stop_between_the_message_and_its_answer_is_no_surprise(
    grid: NamedGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = federation(grid, tmp_path / "j")
    sent = NamedGrid.send_and_receive

    def stop(*told: object, **more: object) -> None:
        sent(*told, **more)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(NamedGrid, "send_and_receive", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.settle("forget", destroy=False)
    monkeypatch.setattr(NamedGrid, "send_and_receive", sent)
    again = federation(grid, tmp_path / "j").settle("forget", destroy=False)
    assert {m["applied"] for m in again.values()} == {1.0}


def test_one_that_was_offline_may_have_had_it(grid: NamedGrid, tmp_path: Path) -> None:
    federation(grid, tmp_path / "j").settle("forget", destroy=False)
    late = federation(grid, tmp_path / "late")
    told = late.settle("forget", destroy=False, names=["client-2"], again=True)
    assert told["client-2"]["applied"] == 1


# ---- what nodes sign ----------------------------------------------------------------------------

Change = Callable[[dict[str, bytes]], dict[str, bytes]]
LIAR = "client-1"


def lying(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Have the attestations of a question changed on their way, by the client's name."""
    sent = NamedGrid.send_and_receive

    def changed(grid: NamedGrid, messages: Any, **more: Any) -> list[Message]:
        replies = list(sent(grid, messages, **more))
        names = {node.node_id: node.name for node in grid.get_nodes()}
        raw = {
            names[r.metadata.src_node_id]: r.content.array_records["arrays"][attestation.ARRAY]
            .numpy()
            .tobytes()
            for r in replies
        }
        told = change(raw)
        for one in replies:
            own = told.get(names[one.metadata.src_node_id])
            found = {} if own is None else {attestation.ARRAY: Array(np.frombuffer(own, np.uint8))}
            one.content["arrays"] = ArrayRecord(found)
        return replies

    monkeypatch.setattr(NamedGrid, "send_and_receive", changed)


def test_each_signs_that_it_carried_the_order_out(grid: NamedGrid, tmp_path: Path) -> None:
    asked = federation(grid, tmp_path / "j")
    asked.settle("forget", destroy=True)
    population = asked.common["simulation"].population
    assert list(asked.attestations) == [f"client-{i}" for i in range(NUM_CLIENTS)]
    for name, document in asked.attestations.items():
        attestation.check(document)
        assert document["key"] == public_text(simulated_key(name, population))
        said = document["statement"]
        assert (said["site"], said["request"], said["applied"]) == (name, "r2", "now")
        assert (said["tombstone"], said["destroyed"], said["sets"]) == ("kept", "classes", 0)
        assert said["simulated"] is True
    resumed = federation(grid, tmp_path / "j")
    resumed.settle("forget", destroy=True)
    assert resumed.attestations == asked.attestations


def earlier(grid: NamedGrid, folder: Path, request: str) -> bytes:
    """Return what the liar signed of another request."""
    other = federation(grid, folder, request)
    other.settle("forget", destroy=False, names=[LIAR])
    return attestation.canonical(other.attestations[LIAR])


def flipped(raw: bytes, place: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


@pytest.mark.parametrize("fault", ["missing", "swapped", "byte", "empty", "long", "stranger"])
def test_a_wrong_or_missing_signature_is_that_clients_failure(
    grid: NamedGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def change(raw: dict[str, bytes]) -> dict[str, bytes]:
        said = attestation.read(raw[LIAR])["statement"]
        made = {
            "missing": None,
            "swapped": raw["client-2"],
            "byte": flipped(raw[LIAR], 40),
            "empty": b"",
            "long": b" " * (attestation.MAX_BYTES + 1),
            "stranger": attestation.made(said, simulated_key("client-9", "elsewhere")),
        }[fault]
        left = {name: one for name, one in raw.items() if name != LIAR}
        return left if made is None else left | {LIAR: made}

    lying(monkeypatch, change)
    with pytest.raises(ClientLost, match=rf"{LIAR} did not") as lost:
        federation(grid, tmp_path / "j").settle("forget", destroy=False)
    assert [(one.client, one.code) for one in lost.value.failures] == [(LIAR, "bad-reply")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("order_sha256", "0" * 64), ("code_sha256", "0" * 64), ("tombstone", "lifted")),
        *(("destroyed", "all"), ("applied", "before"), ("simulated", False)),
    ],
)
def test_a_node_that_signs_something_else_has_failed(
    grid: NamedGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    asked = federation(grid, tmp_path / "j")
    key = simulated_key(LIAR, asked.common["simulation"].population)

    def change(raw: dict[str, bytes]) -> dict[str, bytes]:
        said = attestation.read(raw[LIAR])["statement"]
        return raw | {LIAR: attestation.made({**said, name: value}, key)}

    lying(monkeypatch, change)
    with pytest.raises(ClientLost) as lost:
        asked.settle("forget", destroy=False)
    assert [(one.client, one.code) for one in lost.value.failures] == [(LIAR, "bad-reply")]
    assert f"must say {name}" in lost.value.failures[0].reason


def test_one_of_another_request_is_refused(
    grid: NamedGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = earlier(grid, tmp_path / "other", "r1")
    lying(monkeypatch, lambda raw: raw | {LIAR: old})
    with pytest.raises(ClientLost) as lost:
        federation(grid, tmp_path / "j").settle("forget", destroy=False)
    assert "must say request 'r2', got 'r1'" in lost.value.failures[0].reason


def test_a_key_that_the_operator_pinned_must_be_the_one(grid: NamedGrid, tmp_path: Path) -> None:
    asked = federation(grid, tmp_path / "j")
    other = public_text(simulated_key("client-9", "elsewhere"))
    asked.site_keys = {LIAR: [other]}
    with pytest.raises(ClientLost) as lost:
        asked.settle("forget", destroy=False)
    assert [one.client for one in lost.value.failures] == [LIAR]
    assert "by the key that is known of it" in lost.value.failures[0].reason
