"""A site's folder: what `efface site run` reads of it.

`efface site init` makes FOLDER/policy.toml and FOLDER/site.key, which are the executor's alone.
FOLDER/node.toml, which holds no secret, says how this node is connected:

    superlink = "fl.example.org:9092"   # the coordinator's Fleet API
    root-certificates = "ca.crt"        # who signed its certificate; "" takes the system's list
    key = "node.key"                    # the node's identity: for the SuperNode alone
    data = "npz:/srv/efface/site.npz"   # what it holds, as in Flower's node config
    data-dir = ""                       # where a named data set's files lie
    device = "cpu"
    store = "/srv/efface/store"         # the handlers' folder
    state = "state"                     # the executor's folder: what came, and scratch
    socket = "run/node.sock"            # where SuperNode and executor meet

Paths of ours may be relative to FOLDER. A table [config] takes further values of the node config.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from client.errors import BadSetting
from client.operator.bundles import Bundles

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

POLICY: Final = "policy.toml"
CONNECTION: Final = "node.toml"
_NEEDED: Final = ("superlink", "key", "store")
_KEYS: Final = frozenset(
    {*_NEEDED, "root-certificates", "data", "data-dir", "device", "state", "socket", "config"}
)
_LONGEST_SOCKET: Final = 100  # bytes; the kernel takes 107 and its ends


@dataclass(frozen=True)
class SiteFolder:
    """How one site runs its node.

    Attributes:
        folder: Where policy.toml lies; absolute.
        superlink: HOST:PORT of the coordinator's Fleet API.
        root_certificates: Who signed its certificate, None for the system's list.
        key: The node's private key (OpenSSH, a NIST curve).
        state: The executor's folder.
        socket: Unix socket of the SuperNode's Runtime API.
        node_config: What the SuperNode hands to the handlers with each message.
    """

    folder: Path
    superlink: str
    root_certificates: Path | None
    key: Path
    state: Path
    socket: Path
    node_config: Mapping[str, bool | float | int | str]

    @property
    def bundles(self) -> Bundles:
        """The bundles allowed here, and those that came."""
        return Bundles(self.folder, self.state)

    @property
    def store(self) -> Path:
        """The node's store."""
        return Path(str(self.node_config["store"]))

    def node_key(self) -> "EllipticCurvePrivateKey":
        """Read the node's private key.

        Raises:
            BadSetting: If it cannot be read, or is of another kind.
        """
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key

        if not self.key.exists():
            raise BadSetting(
                f"key must exist, got no {self.key}; make it: make_federation.py node-key NAME"
            )
        try:
            key = load_ssh_private_key(self.key.read_bytes(), None)
        except OSError as error:
            raise BadSetting(f"{self.key} must be readable here, got {error.strerror}") from None
        except ValueError as error:
            raise BadSetting(f"{self.key} must be an OpenSSH private key, got {error}") from None
        if not isinstance(key, EllipticCurvePrivateKey):
            raise BadSetting(f"{self.key} must be on a NIST curve, got {type(key).__name__}")
        return key

    @classmethod
    def load(cls, folder: Path) -> "SiteFolder":
        """Read the folder's node.toml.

        Raises:
            BadSetting: If it is missing, or a value is not what it must be.
        """
        folder = folder.expanduser().absolute()
        table = _table(folder / CONNECTION)
        for key in table:
            if key not in _KEYS:
                raise BadSetting(
                    f"{CONNECTION} must have only {', '.join(sorted(_KEYS))}, got {key!r}"
                )
        for key in _NEEDED:
            if not table.get(key):
                raise BadSetting(
                    f"{folder / CONNECTION} must say {key}, got nothing; deploy/DEPLOY.md shows one"
                )
        config = table.pop("config", {})
        if not isinstance(config, dict) or not all(
            isinstance(value, bool | int | float | str) for value in config.values()
        ):
            raise BadSetting("[config] must hold text, numbers and true or false alone")
        for key, value in table.items():
            if not isinstance(value, str):
                raise BadSetting(f"{key} must be text in quotes, got {value!r}")

        def path(key: str, usual: str = "") -> Path:
            return folder / (table.get(key) or usual)

        socket = path("socket", "run/node.sock")
        if len(bytes(socket)) > _LONGEST_SOCKET:
            raise BadSetting(
                f"socket must have a path of at most {_LONGEST_SOCKET} bytes, got {socket}; "
                'name a short one, such as socket = "/run/efface-node/node.sock"'
            )
        plain = {key: table[key] for key in ("data", "data-dir", "device") if table.get(key)}
        roots = path("root-certificates") if table.get("root-certificates") else None
        return cls(
            folder=folder,
            superlink=table["superlink"],
            root_certificates=roots,
            key=path("key"),
            state=path("state", "state"),
            socket=socket,
            node_config={
                **config,
                **plain,
                "store": str(path("store")),
                "policy": str(folder / POLICY),
            },
        )


def bundles_of(folder: Path) -> Bundles:
    """Return the bundles of a site.

    Raises:
        BadSetting: If the folder is not a site's.
    """
    folder = folder.expanduser().absolute()
    state = _table(folder / CONNECTION).get("state")
    return Bundles(folder, folder / (state if isinstance(state, str) and state else "state"))


def _table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadSetting(
            f"folder must be a site's, got {file.parent}, which holds no {file.name}; "
            "deploy/DEPLOY.md shows one"
        ) from None
    except PermissionError:
        raise BadSetting(f"{file} must be readable here, got no permission") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"{file} must be valid TOML: {error}") from None
