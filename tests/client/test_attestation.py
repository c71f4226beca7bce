"""Attestations: one form, one signature, and nothing but what was claimed."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client import attestation
from client.attestation import BadAttestation, Claim
from client.keys import public_text

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
SAID: dict[str, Any] = {
    **{"site": "site-a", "request": "r0002-x", "action": "forget", "order_sha256": "ab" * 32},
    **{"applied": "now", "tombstone": "kept", "destroyed": "classes", "sets": 2},
    **{"code_sha256": "cd" * 32, "simulated": False, "time": "2026-01-01T00:00:00+00:00"},
}


def test_it_is_read_as_it_was_made() -> None:
    raw = attestation.made(SAID, KEY)
    found = attestation.read(raw)
    assert (found["statement"], found["key"]) == (SAID, public_text(KEY))
    attestation.check(found, Claim({"site": "site-a"}, [public_text(OTHER), public_text(KEY)]))
    assert len(raw) < attestation.MAX_BYTES / 2


def test_any_other_byte_is_refused() -> None:
    raw = attestation.made(SAID, KEY)
    for place in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[place] ^= 1 << bit
            with pytest.raises(BadAttestation):
                attestation.read(bytes(changed))


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"null", b"[]", b"{}", b"[" * 5_000, b"[" * 4_000, b"NaN", b"\xff", b'{"a":1e999}'),
        attestation.made(SAID, KEY) + b" ",
        attestation.made(SAID, KEY).replace(b'"sets":2', b'"sets": 2'),
        attestation.made(SAID, KEY).replace(b'{"key"', b'{"key":"","key"', 1),
    ],
)
def test_what_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(BadAttestation):
        attestation.read(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"sets": True},
        {"sets": -1},
        {"sets": 2.0},
        {"sets": 2**53},
        {"destroyed": "none"},
        {"simulated": 0},
        {"time": "2026-01-01T00:00:00"},
        {"time": "soon"},
        {"site": None},
        {"images": [1, 2]},
    ],
)
def test_a_signed_statement_of_another_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadAttestation):
        attestation.read(attestation.made({**SAID, **change}, KEY))


def test_a_statement_that_misses_a_part_is_refused() -> None:
    for name in SAID:
        left = {key: value for key, value in SAID.items() if key != name}
        with pytest.raises(BadAttestation, match="another form"):
            attestation.read(attestation.made(left, KEY))


@pytest.mark.parametrize("name", ["site", "request", "action", "order_sha256", "code_sha256"])
def test_it_must_say_what_is_claimed(name: str) -> None:
    found = attestation.read(attestation.made(SAID, KEY))
    with pytest.raises(BadAttestation, match=f"attestation must say {name} 'other'"):
        attestation.check(found, Claim({name: "other"}))


def test_it_must_be_by_the_key_that_is_known() -> None:
    found = attestation.read(attestation.made(SAID, KEY))
    with pytest.raises(BadAttestation, match="by the key that is known of it"):
        attestation.check(found, Claim({}, [public_text(OTHER)]))
    stolen = {**found, "key": public_text(OTHER)}
    with pytest.raises(BadAttestation, match="signed by the key in it"):
        attestation.check(stolen)
