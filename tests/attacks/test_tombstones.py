"""T5: what was forgotten came back by another name, a forged order, or an id used before."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client import attestation
from client.keys import public_text
from client.messages import ForgetSpec
from client.orders import order_bytes
from client.policy import Policy
from client.steps.ascent import Ascend
from client.steps.measuring import Describe, Membership
from client.steps.recovery import Descend
from client.steps.store import Settle
from client.steps.training import Fit
from tests.attacks.site import NAME, Hospital, hospital

COORDINATOR = Ed25519PrivateKey.generate()
STRANGER = Ed25519PrivateKey.generate()
NINE = {"forget_level": "class", "forget_classes": [9]}
ITSELF = {"forget_level": "client", "forget_clients": [NAME]}
TIME = "2026-11-21T10:15:00+00:00"


def signed(
    key: Ed25519PrivateKey,
    action: str,
    request: str,
    said: dict[str, Any],
    *,
    destroy: bool = False,
) -> dict[str, Any]:
    target = ForgetSpec(
        said["forget_level"],
        tuple(said.get("forget_classes", ())),
        tuple(said.get("forget_clients", ())),
    )
    content = order_bytes(
        request=request, action=action, target=target, destroy=destroy, lineage="r0001", time=TIME
    )
    signature = base64.b64encode(key.sign(content)).decode()
    return {"request": request, **said, "order_time": TIME, "order_signature": signature}


def settled(action: str, request: str, said: dict[str, Any], **more: bool) -> dict[str, Any]:
    """Return a signed order's settings."""
    return {
        "action": action,
        "destroy": False,
        **signed(COORDINATOR, action, request, said, **more),
        **more,
    }


@pytest.fixture(params=["single", "sums"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Hospital:
    pinned = f'["{public_text(COORDINATOR)}"]'
    return hospital(tmp_path, updates=request.param, coordinators=pinned)


def tombstones(site: Hospital) -> list[str]:
    return list(json.loads((site.store / "state.json").read_text())["tombstones"])


def test_another_name_is_refused_for_every_kind_of_message(site: Hospital) -> None:
    for kind in (Fit, Ascend, Descend, Describe, Settle):
        assert "client must be site-a" in site.refusal(kind, client="site-x")


def test_a_forged_order_lifts_and_destroys_nothing(site: Hospital) -> None:
    site.ask(Settle, **settled("forget", "r2", NINE))
    site.ask(Settle, **settled("forget", "r3", ITSELF))
    forged: list[dict[str, Any]] = [
        {"action": "relearn", "destroy": False, "request": "z1", **NINE},
        {"action": "relearn", "destroy": False, **signed(STRANGER, "relearn", "z2", ITSELF)},
        # A signature for another id, another action, another target.
        {"action": "relearn", "destroy": False, **signed(COORDINATOR, "relearn", "a", NINE)}
        | {"request": "z3"},
        {"action": "relearn", "destroy": False, **signed(COORDINATOR, "forget", "z4", NINE)},
        {"action": "relearn", "destroy": False, **signed(COORDINATOR, "relearn", "z5", NINE)}
        | ITSELF
        | {"forget_classes": []},
        {"action": "forget", "destroy": True, "request": "z6", **ITSELF},
        {"action": "forget", "destroy": True, **signed(COORDINATOR, "forget", "z7", ITSELF)},
        {"action": "forget", "destroy": False, "request": "z8", **NINE},
    ]
    for said in forged:
        assert "order must be signed" in site.refusal(Settle, **said)
    assert tombstones(site) == ["r2", "r3"]


def test_what_was_forgotten_is_not_trained_on_whatever_a_message_names(tmp_path: Path) -> None:
    site = hospital(tmp_path, coordinators=f'["{public_text(COORDINATOR)}"]')
    step = {"steps": 1, "batch_size": 64, "lr": 0.1, "scale": 0}
    before = site.ask(Fit, **step, side="forget", **NINE).metrics["num-examples"]
    assert before > 100
    site.ask(Settle, **settled("forget", "r2", NINE))
    for said in (
        {"side": "forget", **NINE},
        {"side": "forget", **NINE, "request": "r2"},
        {"side": "forget", **NINE, "phase": "relearn"},
    ):
        assert site.ask(Fit, **step, **said).metrics["num-examples"] == 0
    assert not site.tried(Descend, data="original", side="forget", lr=0.1, **NINE)
    every = site.ask(Fit, **step, side="all", **NINE).metrics["num-examples"]
    assert every == site.ask(Fit, **step, side="retain").metrics["num-examples"]

    # The coordinator's own order brings it back, while it is tried and then for good.
    told = signed(COORDINATOR, "relearn", "r4", NINE)
    assert site.ask(Fit, **step, side="forget", **told).metrics["num-examples"] == before
    site.ask(Settle, **settled("relearn", "r4", NINE))
    assert tombstones(site) == []
    assert site.ask(Fit, **step, side="forget", **NINE).metrics["num-examples"] == before


def test_a_site_that_was_forgotten_trains_no_more_whatever_a_message_names(tmp_path: Path) -> None:
    site = hospital(tmp_path, coordinators=f'["{public_text(COORDINATOR)}"]')
    step = {"steps": 1, "batch_size": 64, "lr": 0.1, "scale": 0}
    assert site.ask(Fit, **step, side="all", **ITSELF).metrics["num-examples"] > 1000
    site.ask(Settle, **settled("forget", "r3", ITSELF))
    for said in ({}, {"side": "all", **ITSELF}, {"side": "forget", **ITSELF}, {"side": "all"}):
        assert not site.tried(Fit, **step, **said)
    assert not site.tried(Ascend, data="original", lr=0.1, **ITSELF)
    assert not site.tried(Descend, data="original", side="all", lr=0.1, **ITSELF)


def test_an_order_that_was_carried_out_lifts_and_destroys_nothing_again(tmp_path: Path) -> None:
    site = hospital(tmp_path, coordinators=f'["{public_text(COORDINATOR)}"]')
    step = {"steps": 1, "batch_size": 64, "lr": 0.1, "scale": 0}
    site.ask(Fit, steps=2, batch_size=64, lr=0.1, scale=10)
    destroy = settled("forget", "r2", NINE, destroy=True)
    site.ask(Settle, **destroy)
    assert site.ask(Settle, **destroy).metrics["destroyed"] == 0
    back = signed(COORDINATOR, "relearn", "r4", NINE)
    site.ask(Settle, action="relearn", destroy=False, scale=10, **back)
    assert site.ask(Describe, **NINE).metrics["num-forget-synthetic"] > 10

    # Whoever saw the former order sends it again: what came back is not its business.
    site.ask(Settle, **destroy)
    assert site.ask(Describe, **NINE).metrics["num-forget-synthetic"] > 10

    site.ask(Settle, **settled("forget", "r5", NINE))
    assert site.ask(Fit, **step, side="forget", **back).metrics["num-examples"] == 0
    assert site.ask(Settle, action="relearn", destroy=False, scale=10, **back).metrics["applied"]
    assert tombstones(site) == ["r5"]
    assert site.ask(Fit, **step, side="forget", **back).metrics["num-examples"] == 0


def test_an_id_that_was_used_before_swallows_no_order(site: Hospital) -> None:
    site.ask(Settle, **settled("forget", "r9", NINE))
    again = site.ask(Settle, **settled("forget", "r9", NINE)).metrics
    assert again["applied"] == 1
    for action, said in (("forget", ITSELF), ("relearn", NINE)):
        refused = site.refusal(Settle, **settled(action, "r9", said))
        assert "request r9 must say what it said before (forget class 9), got" in refused
    assert tombstones(site) == ["r9"]


def test_without_a_pinned_key_a_site_forgets_and_nothing_more(tmp_path: Path) -> None:
    site = hospital(tmp_path)
    site.ask(Settle, action="forget", destroy=False, request="r2", **NINE)
    for said in ({"action": "relearn", "destroy": False}, {"action": "forget", "destroy": True}):
        told = signed(COORDINATOR, said["action"], "r3", NINE, destroy=bool(said["destroy"]))
        assert "site-a pinned no coordinator's key" in site.refusal(Settle, **said, **told)
    assert tombstones(site) == ["r2"]


def test_a_signed_order_destroys(tmp_path: Path) -> None:
    site = hospital(tmp_path, coordinators=f'["{public_text(COORDINATOR)}"]')
    site.ask(Fit, steps=2, batch_size=64, lr=0.1, scale=10)
    told = site.ask(Settle, **settled("forget", "r2", NINE, destroy=True)).metrics
    assert told["destroyed"] > 10
    assert site.ask(Describe, **NINE).metrics["num-forget-synthetic"] == 0


def test_a_site_signs_what_it_destroyed_and_tells_no_count_where_it_answers_in_sums(
    site: Hospital,
) -> None:
    site.tried(Fit, steps=2, batch_size=64, lr=0.1, scale=10)  # alone, where a site answers so
    answer = site.ask(Settle, **settled("forget", "r2", NINE, destroy=True))
    document = attestation.read(answer.arrays[attestation.ARRAY].tobytes())
    said, policy = document["statement"], Policy.load(site.policy)
    assert document["key"] == public_text(policy.key())
    assert (said["site"], said["destroyed"], said["tombstone"]) == (NAME, "classes", "kept")
    assert said["simulated"] is False
    assert said["sets"] == (None if policy.answers.updates == "sums" else 1)


def test_a_site_without_its_key_carries_nothing_out(site: Hospital) -> None:
    (site.policy.parent / "site.key").unlink()
    assert "PolicyError" in site.refusal(Settle, **settled("forget", "r2", NINE))
    assert not (site.store / "state.json").exists()


def test_what_was_forgotten_is_not_asked_after_as_a_member(tmp_path: Path) -> None:
    site = hospital(tmp_path, coordinators=f'["{public_text(COORDINATOR)}"]')

    def members(**said: Any) -> float:
        return float(site.ask(Membership, **{"forget_classes": [], **said}).metrics["num-members"])

    every = members(**ITSELF)
    assert every > 1000
    site.ask(Settle, **settled("forget", "r2", NINE))
    assert 100 < every - members(**ITSELF) < every  # an earlier request's are no members
    site.ask(Settle, **settled("forget", "r3", {"forget_classes": [], **ITSELF}))
    for said in (ITSELF, {**ITSELF, "request": "r3"}, {**ITSELF, "request": "r4"}):
        assert members(**said) == 0
