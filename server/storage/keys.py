"""The coordinator's key: by its signature sites know an order, and auditors know a record.

    HOME/keys/coordinator.pem   the private key (Ed25519, PKCS 8), mode 0600
    HOME/keys/coordinator.pub   the public key, in base64
    HOME/keys/former-*.pub      public keys of former private ones, which are lost
    HOME/keys/sites/NAME.pub    of a site, put there by the operator: base64, a line a key

It is made when the home is first written to and never overwritten. Whatever the coordinator signs
is signed by a `Signer`; whatever a site or an auditor pins is its `public`. What is signed begins
with a line of its own for each purpose (`efface seal 1`): no signature can be taken for one of
another kind.
"""

import base64
import hashlib
import os
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.errors import BadSetting, EffaceError
from client.files import make_private, room_for, sync_folder, write_atomic
from client.keys import KEY_TEXT, public_text
from client.keys import public_key as parsed

PRIVATE: Final = "coordinator.pem"
PUBLIC: Final = "coordinator.pub"
FORMER: Final = "former-*.pub"
SITES: Final = "sites"


class KeyFileError(EffaceError):
    """The coordinator's key is missing, damaged, or open to others."""

    code = "key-error"


@dataclass(frozen=True)
class Signer:
    """Signs in the coordinator's name.

    Attributes:
        public: The public key, its 32 bytes in base64: what others pin.
        fingerprint: SHA-256 of those bytes, hexadecimal: what people compare.
    """

    public: str
    fingerprint: str
    _private: Ed25519PrivateKey = field(repr=False)

    def sign(self, data: bytes) -> str:
        """Return the signature of `data` in base64; equal data have equal signatures."""
        return base64.b64encode(self._private.sign(data)).decode()


def signer(folder: Path) -> Signer:
    """Return the signer whose key is in `folder`; a first one is made there.

    Args:
        folder: A home's folder of keys (`Home.keys`).

    Raises:
        KeyFileError: If the key is open to others, damaged, or gone though it was there once.
    """
    path = folder / PRIVATE
    if not path.exists():
        if (folder / PUBLIC).exists():
            raise KeyFileError(
                f"key must be there, for this home has signed with it, got no {path}. Restore it "
                f"from a backup; if it is lost for good, rename {folder / PUBLIC} to former-1.pub: "
                "a new key is then made, which every site must pin anew (`efface key`)"
            )
        _make(path)
    private = _read(path)
    public = public_text(private)
    beside = folder / PUBLIC
    if not beside.exists():
        write_atomic(beside, public.encode() + b"\n")
    elif beside.read_bytes().strip() != public.encode():
        raise KeyFileError(
            f"key must be the one of {beside}, got another one in {path}. Restore both from the "
            "same backup"
        )
    return Signer(public, fingerprint(public), private)


def public_keys(folder: Path) -> list[str]:
    """Return the public keys in `folder`, in base64, the one in use first; nothing is made.

    Raises:
        KeyFileError: If a file holds no key.
    """
    return [_public(p) for p in (folder / PUBLIC, *sorted(folder.glob(FORMER))) if p.is_file()]


def site_keys(folder: Path) -> dict[str, list[str]]:
    """Return the public keys of sites that the operator pinned, by the site's name.

    Args:
        folder: A home's folder of keys (`Home.keys`).

    Raises:
        KeyFileError: If a line is no key, or a file has none.
    """
    found = {}
    for path in sorted((folder / SITES).glob("*.pub")):
        try:
            lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
            for line in lines:
                parsed(line)
        except (OSError, ValueError) as error:
            raise KeyFileError(f"site's key must be {KEY_TEXT}, got {path} ({error})") from error
        if not lines:
            raise KeyFileError(f"site's key must be {KEY_TEXT}, got none in {path}")
        found[path.stem] = lines
    return found


def _public(path: Path) -> str:
    try:
        text = path.read_text().strip()
        fingerprint(text)
    except (OSError, ValueError) as error:
        raise KeyFileError(
            f"public key must be readable, got {path} ({error}); restore it from a backup"
        ) from error
    return text


def fingerprint(public: str) -> str:
    """Return the SHA-256 of a public key's bytes, hexadecimal.

    Raises:
        BadSetting: If it is no Ed25519 public key in base64.
    """
    try:
        return hashlib.sha256(parsed(public).public_bytes_raw()).hexdigest()
    except ValueError as error:
        raise BadSetting(f"public key must be {KEY_TEXT}, got {public[:80]!r}") from error


def verified(publics: Sequence[str], data: bytes, signature: str) -> bool:
    """Return whether one of these public keys made the signature of `data`."""
    try:
        signed = base64.b64decode(signature, validate=True)
    except ValueError:
        return False
    for public in publics:
        with suppress(InvalidSignature):
            parsed(public).verify(signed, data)
            return True
    return False


def _make(path: Path) -> None:
    """Put a new key in `path`; one that another process made meanwhile stays."""
    content = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    make_private(path.parent)
    with room_for(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:  # mkstemp makes it for its owner alone
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(temporary, path)  # unlike a rename it replaces nothing
        finally:
            Path(temporary).unlink(missing_ok=True)
        sync_folder(path.parent)


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        content = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"key must be readable, got {path} ({error.strerror})") from error
    if mode & 0o077:
        raise KeyFileError(
            f"key must be open to its owner alone, got mode {mode:04o} of {path}. If nobody else "
            f"can have read it: chmod 600 {path}; else every site must pin a new one"
        )
    try:
        found = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(
            f"key must be a whole Ed25519 private key in PEM, got a damaged one in {path}; restore "
            "it from a backup"
        ) from error
    if not isinstance(found, Ed25519PrivateKey):
        raise KeyFileError(f"key must be an Ed25519 private key, got another kind in {path}")
    return found
