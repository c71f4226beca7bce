"""The coordinator's key: made once, private, and what it signs is known by its public half."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from client.errors import BadSetting
from client.orders import order_bytes, verify
from client.wire import ForgetSpec
from server.storage import keys
from server.storage.keys import KeyFileError, fingerprint, public_keys, signer, verified

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "keys"
    signer(folder)
    return folder


def test_the_key_is_made_once_and_for_its_owner_alone(made: Path) -> None:
    first, content = signer(made), (made / keys.PRIVATE).read_bytes()

    assert signer(made).public == first.public
    assert (made / keys.PRIVATE).read_bytes() == content
    assert {path.name: path.stat().st_mode & 0o777 for path in made.iterdir()} == {
        keys.PRIVATE: 0o600,
        keys.PUBLIC: 0o600,
    }
    assert made.stat().st_mode & 0o777 == 0o700
    assert public_keys(made) == [first.public]


def test_no_umask_opens_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        signer(tmp_path / "keys")
    finally:
        os.umask(before)
    assert (tmp_path / "keys" / keys.PRIVATE).stat().st_mode & 0o777 == 0o600


def test_processes_that_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from server.storage.keys import signer; "
        "print(signer(Path(sys.argv[1])).public)"
    )
    told = [sys.executable, "-c", code, str(tmp_path / "keys")]
    running = [
        subprocess.Popen(told, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)
    ]
    found = {process.communicate(timeout=300)[0].strip() for process in running}
    assert found == {signer(tmp_path / "keys").public}


@given(data=st.binary(max_size=200), other=st.binary(max_size=200))
def test_a_signature_is_of_these_bytes_by_this_key(made: Path, data: bytes, other: bytes) -> None:
    one = signer(made)
    signature = one.sign(data)

    assert signature == one.sign(data)
    assert verified(["A" * 43 + "=", one.public], data, signature)
    assert verified([one.public], other, signature) == (data == other)
    assert not verified(["A" * 43 + "="], data, signature)
    assert not verified([], data, signature)
    assert not verified([one.public], data, signature[:-4])
    assert not verified([one.public], data, "no base64")


def test_a_site_that_pins_the_key_takes_what_it_signs(made: Path) -> None:
    order = order_bytes(
        request="r0001-x",
        action="forget",
        target=ForgetSpec("class", (3,), ()),
        destroy=True,
        lineage="L",
        time="2026-01-01T00:00:00+00:00",
    )
    one = signer(made)
    assert verify(order, one.sign(order), [one.public]) == one.public


def test_the_fingerprint_is_the_sha256_of_the_keys_bytes() -> None:
    import hashlib

    raw = bytes(32)
    text = base64.b64encode(raw).decode()
    assert fingerprint(text) == hashlib.sha256(raw).hexdigest()
    with pytest.raises(BadSetting, match="public key must be base64 of a 32-byte"):
        fingerprint("c2hvcnQ=")


def test_one_that_others_can_read_is_refused(tmp_path: Path) -> None:
    signer(tmp_path)
    (tmp_path / keys.PRIVATE).chmod(0o640)
    with pytest.raises(KeyFileError, match=r"key must be open to its owner alone, got mode 0640"):
        signer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a key", b"\xff\xfe"])
def test_a_damaged_one_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    signer(tmp_path)
    (tmp_path / keys.PRIVATE).write_bytes(content)
    with pytest.raises(KeyFileError, match=r"key must be a whole Ed25519 private key.*restore"):
        signer(tmp_path)
    assert (tmp_path / keys.PRIVATE).read_bytes() == content


def test_one_of_another_kind_is_refused(tmp_path: Path) -> None:
    signer(tmp_path)
    other = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / keys.PRIVATE).write_bytes(other)
    with pytest.raises(KeyFileError, match="key must be an Ed25519 private key"):
        signer(tmp_path)


def test_a_lost_one_is_not_replaced_unseen(tmp_path: Path) -> None:
    lost = signer(tmp_path).public
    (tmp_path / keys.PRIVATE).unlink()
    with pytest.raises(KeyFileError, match=r"rename .*coordinator\.pub to former-1\.pub"):
        signer(tmp_path)

    (tmp_path / keys.PUBLIC).rename(tmp_path / "former-1.pub")
    now = signer(tmp_path).public
    assert now != lost
    assert public_keys(tmp_path) == [now, lost]


def test_two_halves_of_different_keys_are_refused(tmp_path: Path) -> None:
    signer(tmp_path / "one")
    signer(tmp_path / "two")
    (tmp_path / "one" / keys.PRIVATE).write_bytes((tmp_path / "two" / keys.PRIVATE).read_bytes())
    with pytest.raises(KeyFileError, match="got another one in"):
        signer(tmp_path / "one")


def test_a_damaged_public_key_is_said(tmp_path: Path) -> None:
    signer(tmp_path)
    (tmp_path / keys.PUBLIC).write_text("nonsense")
    with pytest.raises(KeyFileError, match=r"public key must be readable, got .*coordinator\.pub"):
        public_keys(tmp_path)
