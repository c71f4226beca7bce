"""Orders: their bytes, and who may sign them."""

import base64
from typing import Any

import pytest

from client.keys import public_text, simulated_key
from client.messages import ForgetSpec
from client.orders import order_bytes, verify
from client.policy import PolicyRefused

KEY, OTHER = simulated_key("coordinator", "a"), simulated_key("coordinator", "b")
PINNED = [public_text(OTHER), public_text(KEY)]


def order(**more: Any) -> bytes:
    return order_bytes(
        **{
            "request": "r0002-x",
            "action": "forget",
            "target": ForgetSpec("class", (9, 3)),
            "destroy": False,
            "lineage": "r0001-x",
            "time": "2026-11-21T10:15:00+00:00",
            **more,
        }
    )


def signed(content: bytes) -> str:
    return base64.b64encode(KEY.sign(content)).decode()


def test_the_bytes_are_those_written_down_here() -> None:
    # What sites and coordinators of different releases must agree on.
    assert order() == (
        b"efface order 1\n"
        b'{"action":"forget","classes":[3,9],"clients":[],"destroy":false,"level":"class",'
        b'"lineage":"r0001-x","request":"r0002-x","time":"2026-11-21T10:15:00+00:00"}'
    )
    assert order(target=ForgetSpec("class", (3, 9, 3))) == order()


def test_a_pinned_key_signs_and_is_named() -> None:
    assert verify(order(), signed(order()), PINNED) == public_text(KEY)


@pytest.mark.parametrize(
    "more",
    [
        {"request": "r0003-x"},
        {"action": "relearn"},
        {"target": ForgetSpec("class", (9,))},
        {"target": ForgetSpec("client", (), ("site-a",))},
        {"destroy": True},
        {"lineage": "other"},
        {"time": "2026-11-22T10:15:00+00:00"},
    ],
)
def test_an_order_that_says_anything_else_is_not_signed(more: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused, match="signed by a key that this site pinned"):
        verify(order(**more), signed(order()), PINNED)


@pytest.mark.parametrize(
    ("signature", "message"),
    [("", "got another signature"), ("?", "must be base64"), ("AAAA", "got another signature")],
)
def test_what_is_no_signature_is_refused(signature: str, message: str) -> None:
    with pytest.raises(PolicyRefused, match=message):
        verify(order(), signature, PINNED)


def test_a_key_that_is_not_pinned_is_refused() -> None:
    for keys in ([], PINNED[:1]):
        with pytest.raises(PolicyRefused, match="signed by a key that this site pinned"):
            verify(order(), signed(order()), keys)


@pytest.mark.parametrize("time", ["", "now", "2026-11-21T10:15:00"])
def test_an_order_has_a_time_that_is_the_same_everywhere(time: str) -> None:
    with pytest.raises(PolicyRefused, match="ISO 8601 with an offset"):
        order(time=time)
