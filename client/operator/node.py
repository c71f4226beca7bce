"""The SuperNode of a site: the process that holds the node key and dials the coordinator.

It is `flower-supernode --isolation process` of flwr 1.39.0, put together from the same functions,
with two differences: the Runtime API, at which executors take tasks, listens on a Unix socket
instead of a port, so that who may reach it is a matter of file modes and an executor needs no
network at all; and it waits less while messages come (`client.operator.pace`).

    python -m client.operator.node FOLDER --parent PID [--user NAME]
"""

import argparse
import inspect
import os
import pwd
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from client.errors import BadSetting
from client.operator import isolation
from client.operator.folder import SiteFolder
from client.operator.part import account, start

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_STARTED_WITHIN: Final = 30.0  # seconds
_SHUTDOWN: Final = 5.0


def main() -> None:
    """Run the SuperNode until it is told to end."""
    parser = argparse.ArgumentParser(description="Run a site's SuperNode.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--user", default="", help="The executor's: the socket is for its group.")
    told = parser.parse_args()
    site = SiteFolder.load(told.folder)
    key = site.node_key()
    roots = _read(site.root_certificates)
    listening = _listen(site.socket, told.user)
    if os.geteuid() == 0:
        owner = site.key.stat().st_uid
        if owner != 0:
            isolation.become(pwd.getpwuid(owner).pw_name)
    isolation.give_up_privileges(told.parent)
    _run(site, listening, key, roots)


def _read(roots: Path | None) -> bytes | None:
    try:
        return None if roots is None else roots.read_bytes()
    except OSError as error:
        raise BadSetting(
            f"root-certificates must be a readable file, got {roots} ({error.strerror}): the "
            "coordinator sends it"
        ) from None


def _listen(path: Path, user: str) -> socket.socket:
    """Return a socket that listens at `path`, for this user and the executor's group alone."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.exists() and not path.is_socket():  # a file of another kind would be lost
        raise BadSetting(f"socket must be a path that nothing else has, got {path}")
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    if user and os.geteuid() == 0:
        os.chown(path, -1, account(user).pw_gid)
    return listening


def _run(
    site: SiteFolder,
    listening: socket.socket,
    key: "EllipticCurvePrivateKey",
    roots: bytes | None,
) -> None:
    import uvicorn
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.supercore.exit import add_exit_handler
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.main import create_app
    from flwr.supernode.nodestate import NodeStateFactory
    from flwr.supernode.start_client_internal import start_client_internal

    from client.operator import pace

    # Releases from 1.40 on know one transport, HTTP, and take no name of it.
    named = "transport" in inspect.signature(start_client_internal).parameters
    transport: dict[str, Any] = {"transport": TRANSPORT_TYPE_GRPC_RERE} if named else {}
    pace.quicken_node()
    states = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    server = uvicorn.Server(uvicorn.Config(create_app(state_factory=states), access_log=False))
    api = threading.Thread(target=server.run, args=([listening],), name="runtime-api")
    api.start()
    deadline = time.monotonic() + _STARTED_WITHIN
    while not server.started and api.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)

    def stop_api() -> None:
        server.should_exit = True
        api.join(_SHUTDOWN)
        server.force_exit = True
        with suppress(OSError):  # the folder may be root's
            site.socket.unlink()

    add_exit_handler(stop_api)
    start_client_internal(
        state_factory=states,
        server_address=site.superlink,
        node_config=dict(site.node_config),
        root_certificates=roots,
        insecure=False,
        **transport,
        authentication_keys=(key, key.public_key()),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    start(main)
