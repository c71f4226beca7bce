"""The Ray engine: Flower's simulation runtime, on this machine or a Ray cluster.

For many clients and GPU fractions. The ServerApp runs in a thread of this process and the clients
in Ray actors, so nothing here crosses a network unless the Ray cluster does.
"""

import logging
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.errors import BadSetting

CLUSTER: Final = "RAY_ADDRESS"  # in the environment: Ray runs elsewhere, too
MANY: Final = 1000  # cores of a cluster that cannot be asked yet
MOST_OPEN: Final = 200  # what Flower 1.39 keeps of open messages, it goes through for each node


def under_way() -> tuple[int, int]:
    """Return how many messages may be under way, at least and at most (see `NamedGrid`).

    Every core works on one, and has another to go on with.
    """
    cores = os.cpu_count() or 1
    if os.environ.get(CLUSTER):
        ray: Any = import_module("ray")
        known = ray.cluster_resources() if ray.is_initialized() else {}
        cores = int(known.get("CPU", MANY))
    return 2 * cores, max(MOST_OPEN, 2 * cores)


def look_where_something_is(state: Any) -> None:
    """Have Flower's state in memory look for a node's messages only where one was stored.

    Its simulation asks for every node's, ten times a second, and each question goes through all
    messages that are open (`flwr.server.superlink.fleet.vce.vce_api.add_messages_to_queue` and
    `InMemoryLinkState.get_message_ins` in 1.39): with a thousand clients, seconds a round.

    Args:
        state: Of the grid; another one is left as it is.
    """
    store, get = (getattr(state, name, None) for name in ("store_message_ins", "get_message_ins"))
    if store is None or get is None:
        return
    waiting: Counter[int] = Counter()
    lock = threading.Lock()

    def store_message_ins(message: Message) -> Any:
        # Before it can be asked for: who comes in between finds nothing, and asks again.
        with lock:
            waiting[message.metadata.dst_node_id] += 1
        return store(message)

    def get_message_ins(node_id: int, limit: int | None, **more: Any) -> list[Message]:
        if not waiting[node_id]:
            return []
        found: list[Message] = get(node_id, limit, **more)
        with lock:
            waiting[node_id] -= len(found)
        return found

    state.store_message_ins, state.get_message_ins = store_message_ins, get_message_ins


def run_on_ray(
    client_app: ClientApp,
    work: Callable[[Grid], None],
    *,
    num_clients: int,
    environment: dict[str, str],
    cpus: int,
    gpus: float = 0.0,
    stop: threading.Event,
) -> None:
    """Run `work` with a grid of simulated nodes.

    Args:
        client_app: What each node runs.
        work: The ServerApp's main function; what it raises is raised here.
        num_clients: Nodes.
        environment: Variables that the nodes need, such as where their stores are.
        cpus: Cores that each client takes; it uses as many threads.
        gpus: Share of a GPU that each client takes.
        stop: Set when the operator interrupts, for `work` to notice.

    Raises:
        BadSetting: If Ray is not installed.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise BadSetting(
            "engine ray must have Ray installed, got none; install efface[simulation], or choose "
            "--engine inline"
        ) from error
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    failure: list[BaseException] = []
    ended = threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            look_where_something_is(getattr(grid, "state", None))
            work(grid)
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    # Ray's processes inherit these. (Flower 1.39 fills `runtime_env` itself and takes no other.)
    os.environ.update(environment)
    backend: dict[str, Any] = {
        "init_args": {"include_dashboard": False},
        "client_resources": {"num_cpus": cpus, "num_gpus": gpus},
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_simulation(server_app, client_app, num_clients, backend_config=backend)
    except KeyboardInterrupt:
        # The ServerApp's thread notices at its next poll and marks the request as interrupted.
        stop.set()
        ended.wait(timeout=60)
        raise
    if failure:
        raise failure[0]
