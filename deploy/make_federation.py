#!/usr/bin/env python3
"""Make what a federation needs before it starts: certificates, node keys, registrations.

One folder (`--folder`, default ./federation) holds everything:

    ca/ca.key          the certificate authority's private key: keep it offline
    ca/ca.crt          its certificate: goes to every site and to the `efface` command
    server/server.key  the SuperLink's private key
    server/server.pem  the SuperLink's certificate
    keys/NAME          a node's private key: made at the site, never leaves it
    keys/NAME.pub      its public key: goes to the coordinator
    home/config.toml   Flower's connection file (FLWR_HOME of the `flwr` and `efface` commands)

Private files have mode 0600. Nothing is ever overwritten. DEPLOY.md tells who runs which step.

Source of the formats: flwr 1.39.0 reads node keys as unencrypted OpenSSH files on a NIST curve.
"""

import argparse
import ipaddress
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CONNECTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# With `--isolation subprocess` the SuperLink's own SuperExec dials the loopback address, and so
# does the operator's `flwr` command: a certificate without these names fails at the first run.
LOOPBACK_NAMES = ("DNS:localhost", "IP:127.0.0.1", "IP:::1")
CLOCK_SKEW = timedelta(minutes=5)  # a site's clock may be behind the coordinator's


class DeployError(Exception):
    """A step was refused; the message names the rule and the remedy."""


def write_new(path: Path, content: bytes, *, private: bool) -> None:
    """Write `content` to `path`, which must not exist yet.

    Args:
        path: File to create; missing folders are created with mode 0700.
        content: Bytes of the file.
        private: True gives mode 0600, False gives 0644.

    Raises:
        DeployError: If `path` exists. An overwritten key cannot be brought back.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = 0o600 if private else 0o644
    try:
        # O_EXCL: two commands at once cannot both believe that they made the key.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise DeployError(
            f"{path} must not exist yet: keys and certificates are never overwritten.\n"
            f"To replace it, move it away first: mv {path} {path}.old"
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask says
        file.write(content)
    print(f"wrote {path}")


def refuse_existing(*paths: Path) -> None:
    """Raise before any file of a pair is written, so that no half pair is left behind."""
    for path in paths:
        if path.exists():
            raise DeployError(
                f"{path} must not exist yet: keys and certificates are never overwritten.\n"
                f"To replace it, move it away first: mv {path} {path}.old"
            )


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return `key` as an unencrypted PKCS#8 PEM, the form that uvicorn and gRPC read."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def subject_names(text: str) -> list[x509.GeneralName]:
    """Return the names in `text`, such as "DNS:superlink.example.org,IP:10.0.0.5".

    The loopback names are added. Order is kept, repeats are dropped.

    Raises:
        DeployError: If an entry does not start with DNS: or IP:, or its value is malformed.
    """
    names: list[x509.GeneralName] = []
    for entry in [part.strip() for part in text.split(",") if part.strip()] + [*LOOPBACK_NAMES]:
        kind, _, value = entry.partition(":")
        name: x509.GeneralName
        try:
            if kind == "DNS" and re.fullmatch(r"(\*\.)?[A-Za-z0-9_.-]+", value):
                name = x509.DNSName(value)
            elif kind == "IP":
                name = x509.IPAddress(ipaddress.ip_address(value))
            else:
                raise ValueError
        except ValueError:
            raise DeployError(
                f"san must be a list like DNS:superlink.example.org,IP:10.0.0.5, got {entry!r}"
            ) from None
        if name not in names:
            names.append(name)
    return names


def make_authority(folder: Path, *, days: int) -> None:
    """Create the certificate authority: a P-384 key and a self-signed certificate.

    Raises:
        DeployError: If either file exists.
    """
    key_file, certificate_file = folder / "ca" / "ca.key", folder / "ca" / "ca.crt"
    refuse_existing(key_file, certificate_file)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Efface federation CA")])
    key_identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(key_identifier, critical=False)
        .sign(key, hashes.SHA384())
    )
    write_new(key_file, private_pem(key), private=True)
    write_new(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), private=False)


def make_server_certificate(folder: Path, san: str, *, days: int) -> None:
    """Create the SuperLink's P-384 key and its certificate for the names in `san`.

    Raises:
        DeployError: If the authority is missing, `san` is malformed, or the files exist.
    """
    key_file, certificate_file = folder / "server" / "server.key", folder / "server" / "server.pem"
    refuse_existing(key_file, certificate_file)
    names = subject_names(san)
    try:
        authority = x509.load_pem_x509_certificate((folder / "ca" / "ca.crt").read_bytes())
        authority_key = serialization.load_pem_private_key(
            (folder / "ca" / "ca.key").read_bytes(), password=None
        )
    except FileNotFoundError as error:
        raise DeployError(
            f"{error.filename} must exist before a server certificate can be signed.\n"
            f"Make the authority first: make_federation.py --folder {folder} ca"
        ) from None
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise DeployError(f"{folder}/ca/ca.key must be an elliptic-curve key made by `ca`")
    key = ec.generate_private_key(ec.SECP384R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Efface SuperLink")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(min(now + timedelta(days=days), authority.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            # Python 3.13 and later refuse a certificate without it.
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    write_new(key_file, private_pem(key), private=True)
    write_new(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), private=False)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return the usage of an authority's key, or of a server's."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def make_node_key(folder: Path, name: str) -> None:
    """Create a node's key pair on P-384 as OpenSSH files, without a passphrase.

    Equal to `ssh-keygen -t ecdsa -b 384 -N "" -C "" -f keys/NAME`.

    Raises:
        DeployError: If `name` is malformed or either file exists.
    """
    if not NODE_NAME.fullmatch(name):
        raise DeployError(
            f"name must be 1 to 64 letters, digits, '.', '_' or '-', got {name!r}; "
            "it names a file and stands in every report"
        )
    private_file, public_file = folder / "keys" / name, folder / "keys" / f"{name}.pub"
    refuse_existing(private_file, public_file)
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_new(private_file, private, private=True)
    write_new(public_file, public + b"\n", private=False)


def write_connection(folder: Path, connection: str, address: str, authority: Path | None) -> None:
    """Write the Flower connection file that the `flwr` and `efface` commands read.

    Args:
        folder: The federation's folder; the file is `home/config.toml` in it.
        connection: Name of the connection, used as `--connection NAME`.
        address: HOST:PORT of the SuperLink's Control API (its `--port`), not the Fleet port.
        authority: The certificate authority's certificate; None takes `ca/ca.crt`.

    Raises:
        DeployError: If a value is malformed or the file exists.
    """
    if not CONNECTION_NAME.fullmatch(connection) or connection == "default":
        raise DeployError(
            f"connection must be 1 to 64 letters, digits, '_' or '-' and not 'default', "
            f"got {connection!r}"
        )
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}", address):
        raise DeployError(f"address must be HOST:PORT, got {address!r}")
    certificate = (authority or folder / "ca" / "ca.crt").absolute()
    content = (
        f'[superlink]\ndefault = "{connection}"\n\n[superlink.{connection}]\n'
        f'address = "{address}"\nroot-certificates = {json.dumps(str(certificate))}\n'
    )
    write_new(folder / "home" / "config.toml", content.encode(), private=False)


def register(folder: Path, names: Sequence[str], connection: str | None) -> None:
    """Register nodes by name with a running SuperLink and print each node's id.

    A node must be registered before its SuperNode starts. A key can be registered once only,
    even after it was unregistered: a replacement needs a new key.

    Args:
        folder: The federation's folder, with `keys/NAME.pub` and `home/config.toml`.
        names: Nodes to register.
        connection: Name in config.toml; None takes the file's default.

    Raises:
        DeployError: If a public key is missing, `flwr` is not installed beside this Python, or
            the SuperLink refuses; nodes before the failing one stay registered.
    """
    for name in names:
        if not (folder / "keys" / f"{name}.pub").is_file():
            raise DeployError(
                f"{folder}/keys/{name}.pub must exist before {name} can be registered.\n"
                f"Get it from the site, or make it: make_federation.py --folder {folder} "
                f"node-key {name}"
            )
    flwr = Path(sys.executable).parent / "flwr"
    if not flwr.exists():
        raise DeployError(
            f"flwr must be installed beside {sys.executable}; run this script with the Python "
            "of the environment in which Efface is installed"
        )
    environment = dict(os.environ, FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    if (folder / "home" / "config.toml").is_file():
        environment["FLWR_HOME"] = str((folder / "home").absolute())
    for name in names:
        command = [str(flwr), "supernode", "register", str(folder / "keys" / f"{name}.pub")]
        command += [connection] if connection else []
        command += ["--name", name, "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {}
        if not answer.get("success"):
            reason = answer.get("error-message") or (done.stdout + done.stderr).strip()
            raise DeployError(
                f"{name} was not registered: {str(reason).strip()}\n"
                "Check that the SuperLink runs, that home/config.toml holds the address of its "
                "Control port, and that this key was never registered before."
            )
        print(f"registered {name} as node {answer['node-id']}")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", maxsplit=1)[0],
        epilog="See DEPLOY.md for who runs which step, and on which machine.",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("federation"), help="where everything is kept"
    )
    commands = parser.add_subparsers(dest="command", required=True)

    authority = commands.add_parser("ca", help="make the certificate authority")
    authority.add_argument("--days", type=_positive, default=3650, help="validity (3650)")

    server = commands.add_parser("server-cert", help="make the SuperLink's key and certificate")
    server.add_argument("--san", required=True, help="names, e.g. DNS:fl.example.org,IP:10.0.0.5")
    server.add_argument("--days", type=_positive, default=825, help="validity (825)")

    node = commands.add_parser("node-key", help="make a node's key pair (at the site)")
    node.add_argument("name")

    connection = commands.add_parser("connection", help="write the Flower connection file")
    connection.add_argument("connection")
    connection.add_argument("--address", default="127.0.0.1:8000", help="Control API (HOST:PORT)")
    connection.add_argument("--ca", type=Path, help="CA certificate (default: ca/ca.crt)")

    registration = commands.add_parser("register", help="register nodes with a running SuperLink")
    registration.add_argument("names", nargs="+", metavar="NAME")
    registration.add_argument("--connection", help="default: the one in home/config.toml")

    everything = commands.add_parser(
        "all",
        help="ca, server-cert, node-key for each name, connection: for a trial on one machine",
    )
    everything.add_argument("names", nargs="*", metavar="NAME", help="nodes to make keys for")
    everything.add_argument("--san", default="", help="names besides localhost and 127.0.0.1")
    everything.add_argument("--connection", default="efface")
    everything.add_argument("--address", default="127.0.0.1:8000")
    return parser


def _positive(text: str) -> int:
    """Parse a number of days."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"days must be at least 1, got {value}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one step. Return 0 when done, 1 when refused; usage errors exit with 2."""
    options = build_parser().parse_args(arguments)
    folder: Path = options.folder
    try:
        match options.command:
            case "ca":
                make_authority(folder, days=options.days)
            case "server-cert":
                make_server_certificate(folder, options.san, days=options.days)
            case "node-key":
                make_node_key(folder, options.name)
            case "connection":
                write_connection(folder, options.connection, options.address, options.ca)
            case "register":
                register(folder, options.names, options.connection)
            case "all":
                make_authority(folder, days=3650)
                make_server_certificate(folder, options.san, days=825)
                for name in options.names:
                    make_node_key(folder, name)
                write_connection(folder, options.connection, options.address, None)
                print("next: start the SuperLink, then run `register` for every node")
    except DeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
