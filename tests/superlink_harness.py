"""A real federation on loopback: SuperLink with TLS, one SuperNode process per name.

Certificates, keys, the connection file and the registrations are made by the very script that
operators use (deploy/make_federation.py). Everything started here stops with the context, and on
Linux also when the tests are interrupted or killed: see tests/supervisor.py.
"""

import importlib.util
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flwr.proto.control_pb2 import ListNodesRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from tests.policies import written_policy
from tests.supervisor import supervised

REPOSITORY = Path(__file__).resolve().parent.parent
DEPLOY_SCRIPT = REPOSITORY / "deploy" / "make_federation.py"
PROGRAMS = Path(sys.executable).parent
CONNECTION = "loopback"
# Every process of a federation carries its mark in the environment. The SuperLink starts its
# SuperExec in a new session, so a process group does not name them all; the mark does.
MARK = "EFFACE_TEST_FEDERATION"


@dataclass
class RunningFederation:
    """A federation whose SuperLink is healthy and whose nodes are online.

    Attributes:
        folder: What make_federation.py made: ca/, server/, keys/, home/.
        home: FLWR_HOME that holds the connection file; pass it as `flwr_home`.
        connection: Name of the connection in that file.
        control_port: The SuperLink's HTTP port (Control and Runtime API).
        fleet_port: The port that nodes dial: gRPC and their own in the release that we pin, the
            control port from 1.40 on.
        environment: Environment of every process; a test's own `flwr` commands use it too.
        processes: What was started, by name: "superlink" and the node names.
        node_ids: Flower's id of each registered name.
    """

    folder: Path
    home: Path
    connection: str
    control_port: int
    fleet_port: int
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    node_ids: dict[str, str] = field(default_factory=dict)

    def log(self, name: str) -> str:
        """Return what process `name` has printed so far."""
        return (self.folder / "logs" / f"{name}.log").read_text(errors="replace")

    def start(self, name: str, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        """Start `command` under a supervisor, with its own Flower home and log file."""
        home = self.folder / "homes" / name  # as on a machine of its own
        home.mkdir(parents=True, exist_ok=True)
        (self.folder / "logs").mkdir(exist_ok=True)
        with (self.folder / "logs" / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                supervised(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.environment, "FLWR_HOME": str(home)},
                cwd=home,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def register(self, *names: str) -> None:
        """Register nodes with the running SuperLink, by the deploy script."""
        for line in make_federation(self.folder, "register", *names).splitlines():
            _, name, _, _, node_id = line.split()  # registered NAME as node ID
            self.node_ids[name] = node_id

    def start_supernode(
        self,
        name: str,
        config: Mapping[str, object] | None = None,
        *,
        authority: Path | None = None,
        options: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a SuperNode with key `keys/NAME`; does not wait until it is online."""
        return self.start(
            name,
            [
                PROGRAMS / "flower-supernode",
                "--superlink",
                f"127.0.0.1:{self.fleet_port}",
                "--root-certificates",
                authority or self.folder / "ca" / "ca.crt",
                "--auth-supernode-private-key",
                self.folder / "keys" / name,
                "--port",
                str(free_ports(1)[0]),
                "--node-config",
                " ".join(f"{key}={json.dumps(value)}" for key, value in (config or {}).items()),
                *options,
            ],
        )

    def start_site(
        self,
        name: str,
        config: Mapping[str, object] | None = None,
        *,
        options: Sequence[str] = (),
        policy: Mapping[str, str] | None = None,
    ) -> Path:
        """Start a node as its operator does, with `efface site run`; return the site's folder.

        Args:
            name: The node, whose key is `keys/NAME`.
            config: What node.toml says of data, data-dir, store and device.
            options: More of `efface site run`.
            policy: What differs from the safe defaults, as `written_policy` takes it.
        """
        folder = self.folder / "sites" / name
        written_policy(folder, name, **(policy or {}))
        node = {
            "superlink": f"127.0.0.1:{self.fleet_port}",
            "root-certificates": str(self.folder / "ca" / "ca.crt"),
            "key": str(self.folder / "keys" / name),
            "store": str(folder / "store"),
            # The paths of test folders are longer than a Unix socket's may be.
            "socket": f"/tmp/efface-{self.fleet_port}-{name}.sock",
            **(config or {}),
        }
        table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in node.items())
        (folder / "node.toml").write_text(table)
        self.start(name, [PROGRAMS / "efface", "site", "run", folder, *options])
        return folder

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `flwr` command against this federation's connection file."""
        return subprocess.run(
            [str(PROGRAMS / "flwr"), *arguments],
            capture_output=True,
            text=True,
            timeout=180,
            env={**self.environment, "FLWR_HOME": str(self.home)},
        )

    def online(self) -> set[str]:
        """Return the names of the nodes that the SuperLink calls online."""
        # What `flwr supernode ls` asks, without a process that has to load flwr for it.
        client = ControlHttpClient.from_server_address(
            server_address=f"127.0.0.1:{self.control_port}",
            insecure=False,
            root_certificates=(self.folder / "ca" / "ca.crt").read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        try:
            nodes = client.ListNodes(ListNodesRequest()).nodes_info
        finally:
            client.close()
        online = {str(node.node_id) for node in nodes if node.status == "online"}
        # The listing has no names, so the ids that `register` printed stand between the two.
        return {name for name, node_id in self.node_ids.items() if node_id in online}

    def left_over(self) -> list[int]:
        """Return the ids of this federation's processes that still run (Linux only)."""
        mark = f"{MARK}={self.environment[MARK]}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                carries_mark = mark in (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # ended meanwhile, or another user's
                continue
            if carries_mark and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        return found

    def stop(self, seconds: float = 15.0) -> None:
        """Stop every process: politely first, by force after `seconds`."""
        for process in self.processes.values():
            process.terminate()  # the supervisor asks the command, and ends what is left
        deadline = time.monotonic() + seconds
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        # Grandchildren watch their parent and end by themselves within a second or so.
        while self.left_over() and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in self.left_over():
            os.kill(pid, signal.SIGKILL)


def prepare_federation(
    tmp_path: Path, node_names: Sequence[str], environment: Mapping[str, str] | None = None
) -> RunningFederation:
    """Make keys and certificates for `node_names` and choose ports; start nothing yet."""
    folder = tmp_path / "federation"
    control_port, fleet_port = free_ports(2)
    if importlib.util.find_spec("flwr.supernode.fleet_http_client"):
        fleet_port = control_port
    federation = RunningFederation(
        folder=folder,
        home=folder / "home",
        connection=CONNECTION,
        control_port=control_port,
        fleet_port=fleet_port,
        environment={
            **os.environ,
            # Flower's daemons start each other by bare name.
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            MARK: uuid.uuid4().hex,
            **(environment or {}),
        },
    )
    make_federation(
        folder,
        *("all", *node_names, "--connection", CONNECTION),
        *("--address", f"127.0.0.1:{control_port}"),
    )
    return federation


@contextmanager
def running_federation(
    tmp_path: Path,
    node_names: Sequence[str],
    node_configs: Mapping[str, Mapping[str, object]] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    deadline: float = 300.0,
    superexec: Sequence[str | Path] = (),
) -> Iterator[RunningFederation]:
    """Start a SuperLink and one SuperNode for each name, and stop them at the end.

    Args:
        tmp_path: Folder for keys, state and logs.
        node_names: Names under which the nodes are registered.
        node_configs: For each name the values of its `--node-config`.
        environment: More variables for every process, such as EFFACE_HOME.
        deadline: Seconds until all nodes must be online.
        superexec: Command of the SuperExec, where it is not the SuperLink's own.

    Raises:
        AssertionError: If a process ends early or the deadline passes; it holds the logs' ends.
    """
    federation = prepare_federation(tmp_path, node_names, environment)
    folder, control_port = federation.folder, federation.control_port
    fleet_port = federation.fleet_port
    limit = time.monotonic() + deadline
    try:
        federation.start(
            "superlink",
            [
                PROGRAMS / "flower-superlink",
                *("--fleet-api-address", f"127.0.0.1:{fleet_port}"),
                *("--host", "127.0.0.1", "--port", str(control_port)),
                *("--ssl-certfile", folder / "server" / "server.pem"),
                *("--ssl-keyfile", folder / "server" / "server.key"),
                *("--ssl-ca-certfile", folder / "ca" / "ca.crt"),
                *("--enable-supernode-auth",),
                *("--isolation", "process" if superexec else "subprocess"),
                *("--database", folder / "state.db", "--disable-runtime-dependency-installation"),
            ],
        )
        wait_until(lambda: superlink_is_healthy(federation), federation, limit)
        if superexec:
            address = ("--runtime-api-address", f"127.0.0.1:{control_port}")
            roots = ("--root-certificates", folder / "ca" / "ca.crt")
            federation.start("superexec", [*superexec, *address, *roots])
        if node_names:
            federation.register(*node_names)
        for name in node_names:
            federation.start_supernode(name, (node_configs or {}).get(name))
        wait_until(lambda: federation.online() >= set(node_names), federation, limit)
        yield federation
    finally:
        federation.stop()


def make_federation(folder: Path, *arguments: str) -> str:
    """Run deploy/make_federation.py as an operator would and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(DEPLOY_SCRIPT), "--folder", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def superlink_is_healthy(federation: RunningFederation, authority: Path | None = None) -> bool:
    """Return whether the SuperLink's /health answers over TLS checked with `authority`.

    Raises:
        ssl.SSLCertVerificationError: If the server's certificate is not signed by it.
    """
    context = ssl.create_default_context(cafile=authority or federation.folder / "ca" / "ca.crt")
    address = f"https://127.0.0.1:{federation.control_port}/health"
    try:
        with urllib.request.urlopen(address, timeout=5, context=context) as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise error.reason from None
        return False  # not listening yet
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Return different TCP ports that were free on loopback a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_until(condition: Callable[[], bool], federation: RunningFederation, limit: float) -> None:
    """Poll `condition` until it holds; fail with the logs when a process ends or time is up."""
    while True:
        ended = [name for name, process in federation.processes.items() if process.poll()]
        if not ended and condition():
            return
        if ended or time.monotonic() > limit:
            logs = "\n".join(
                f"--- {name}\n{federation.log(name)[-3000:]}" for name in federation.processes
            )
            raise AssertionError(f"federation did not start (ended: {ended})\n{logs}")
        time.sleep(0.2)
