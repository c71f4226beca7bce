"""The Ray engine: Flower's simulation runtime, on this machine or a Ray cluster.

For many clients and GPU fractions. The ServerApp runs in a thread of this process and the clients
in Ray actors, so nothing here crosses a network unless the Ray cluster does.
"""

import logging
import os
import threading
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.errors import BadSetting

CLUSTER: Final = "RAY_ADDRESS"  # in the environment: Ray runs elsewhere, too
MOST_OPEN: Final = 1000


def under_way() -> tuple[int, int]:
    """Return how many messages may be under way, at least and at most (see `NamedGrid`).

    Every core works on one, and has another to go on with.
    """
    cores = os.cpu_count() or 1
    if os.environ.get(CLUSTER):
        ray: Any = import_module("ray")
        if ray.is_initialized():
            cores = int(ray.cluster_resources().get("CPU", cores))
        else:
            cores = MOST_OPEN  # nobody can tell yet
    return 2 * cores, max(MOST_OPEN, 2 * cores)


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
