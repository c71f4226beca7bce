"""A SuperNode's Runtime API on a Unix socket, without a coordinator, for tests of executors."""

import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from client.operator.bundles import Bundle
from client.operator.folder import SiteFolder
from client.operator.launcher import environment
from tests.policies import written_policy

ROOT = Path(__file__).parents[3]
NODE_ID = 7
PATIENCE = 300.0  # seconds; a machine may be busy


@dataclass
class LoneNode:
    """A node that hands out what a test puts in."""

    site: SiteFolder
    states: NodeStateFactory
    runs: int = 0
    log: list[str] = field(default_factory=list)

    def answer(
        self, app: str, content: RecordDict | None = None, seconds: float = PATIENCE
    ) -> Message | None:
        """Have an allowed bundle with this client/app.py answer a message; None if it does not."""
        packed = BytesIO()
        with zipfile.ZipFile(packed, "w") as bundle:
            bundle.writestr("client/__init__.py", "")
            bundle.writestr("client/app.py", app)
        found = Bundle(packed.getvalue())
        self.site.bundles.allow(found.hash, "a test's", found)
        return self.send(found, content, seconds)

    def send(
        self, bundle: Bundle, content: RecordDict | None = None, seconds: float = PATIENCE
    ) -> Message | None:
        """Have a bundle answer a message; None if it does not within some seconds."""
        self.runs += 1
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, self.runs, 1
        state = self.states.state()
        store = self.states.objectstore_factory.store()
        run = Run.create_empty(self.runs)
        run.fab_hash, run.series_id = bundle.hash, self.runs
        state.store_run(run)
        state.store_fab(Fab(bundle.hash, bundle.content, {}))
        context = Context(self.runs, NODE_ID, dict(self.site.node_config), RecordDict(), {})
        state.set_run_series_context(self.runs, context)
        message = Message(content or RecordDict(), dst_node_id=NODE_ID, message_type="query")
        state.create_task(task_type=TaskType.CLIENT_APP, run_id=self.runs, fab_hash=bundle.hash)
        _insert_message(message, state, store)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for reply in state.get_messages(is_reply=True, run_ids=[self.runs]):
                return _whole(reply, store)
            time.sleep(0.02)
        return None


def _whole(reply: Message, store: Any) -> Message:
    from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree

    if reply.has_error():
        return reply

    def pulled(name: str) -> bytes:
        while not (content := store.get(name)):
            time.sleep(0.02)
        return bytes(content)

    tree = store.get_object_tree(reply.metadata.message_id)
    return pull_and_inflate_object_from_tree(tree, pulled, lambda _: None, return_type=Message)


@contextmanager
def lone_node(folder: Path) -> Iterator[LoneNode]:
    """Yield a node whose executors can be started on `folder`."""
    written_policy(folder, "lone")
    path = f"/tmp/efface-lone-{os.getpid()}-{time.monotonic_ns()}.sock"
    (folder / "node.toml").write_text(
        f'superlink = "127.0.0.1:9"\nkey = "node.key"\nstore = "store"\nsocket = "{path}"\n'
    )
    states = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    states.state().set_node_id(NODE_ID)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    server = uvicorn.Server(
        uvicorn.Config(create_app(state_factory=states), access_log=False, log_level="warning")
    )
    api = threading.Thread(target=server.run, args=([listening],), daemon=True)
    api.start()
    try:
        yield LoneNode(SiteFolder.load(folder), states)
    finally:
        server.should_exit = True
        api.join(10)
        Path(path).unlink(missing_ok=True)


@contextmanager
def executor(
    node: LoneNode, *options: str, more: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Yield an executor of a node that has said that it is ready; what it prints is kept."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "client.operator.executor", str(node.site.folder)),
            *("--parent", str(os.getpid()), *options),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(), "PYTHONPATH": str(ROOT), **(more or {})},
    )
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            node.log.append(line.rstrip())
            if "ready: tasks come from" in line:
                ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(PATIENCE), node.log
        yield process
    finally:
        process.terminate()
        process.wait(30)
        reader.join(10)
