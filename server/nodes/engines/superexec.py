"""`flower-superexec` for the coordinator's machine, with what a ServerApp imports loaded once.

Every request is a ServerApp of its own: a new process that takes seconds to load torch and flwr,
longer than a small request works. Started as this module, Flower's SuperExec loads them once and
each ServerApp is a copy of it (fork), which then does what `flwr-serverapp` does. Nothing of an app
is imported in the SuperExec itself. Options are those of `flower-superexec`:

    python -P -m server.nodes.engines.superexec --runtime-api-address 127.0.0.1:8000 \\
        --root-certificates ca.crt

(`-P`: or its working directory is where Python looks first; no ServerApp looks there.) Where a
process must not be copied, with EFFACE_WARM=0, and where an app's own versions are to be installed,
each is a new process, as Flower has it.
"""

import importlib
import logging
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from client.operator import warm

if TYPE_CHECKING:
    from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

log = logging.getLogger("efface.superexec")
RELEASE: Final = "1.39.0"  # of flwr, whose parts this puts together
LOADED: Final = (
    "numpy.random",
    "torch",
    "safetensors.torch",
    "sqlalchemy.orm",
    "sqlalchemy.dialects.sqlite",
    "matplotlib.figure",
    "flwr.superlink.cli.flwr_serverapp",
    "flwr.serverapp",
    "flwr.clientapp",
)
BLAS_THREADS: Final = "OPENBLAS_NUM_THREADS"
OURS: Final = ("client", "server", "strategies")  # what an app of ours brings itself


def main() -> None:
    """Run Flower's SuperExec, whose ServerApps are copies of this process."""
    if why := load():
        log.warning("each ServerApp starts a new process: %s", why)
    from flwr.supercore.cli.flower_superexec import flower_superexec
    from flwr.supercore.superexec import run_superexec

    known = vars(run_superexec)
    if "get_executor" not in known:
        log.warning("each ServerApp starts a new process: flwr is not that of %s", RELEASE)
        flower_superexec()
        return
    usual = known["get_executor"]

    def copying(*arguments: Any, **more: Any) -> Any:
        executor = usual(*arguments, **more)
        return Copying(executor) if type(executor).__name__ == "SubprocessExecutor" else executor

    known["get_executor"] = copying
    flower_superexec()


def load() -> str:
    """Import what ServerApps need, unless no copy is to be had; return why not."""
    if why := warm.obstacle():
        return why
    before = os.environ.get(BLAS_THREADS)
    # Or numpy starts threads as it is loaded, and a process with threads cannot be copied.
    os.environ.setdefault(BLAS_THREADS, "1")
    try:
        warm.load(LOADED, client=False)
    finally:
        if before is None:
            del os.environ[BLAS_THREADS]  # it is read once, and is no ServerApp's setting
    return warm.obstacle()


class Copying:
    """Flower's executor of local processes, but that a ServerApp is a copy of this one.

    Args:
        usual: Flower's own, for everything else.
    """

    def __init__(self, usual: Any) -> None:
        self.usual = usual
        self.copies: list[warm.Copy] = []

    def launch(self, spec: "ExecutionSpec") -> "LaunchResult":
        """Start the process that a spec describes."""
        from flwr.supercore.constant import TaskType
        from flwr.supercore.superexec.executor import LaunchResult

        # What is loaded here would hide the versions that an app has installed for itself.
        own = spec.runtime_dependency_install
        if spec.task_type != TaskType.SERVER_APP or own or warm.obstacle():
            result: LaunchResult = self.usual.launch(spec)
            return result
        try:
            work = partial(_serve, _words(spec), silent=spec.suppress_output)
            self.copies.append(warm.Copy(work, None))
        except OSError as error:
            return LaunchResult.failed(str(error))
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Take note of copies that have ended."""
        self.copies = [copy for copy in self.copies if not copy.ended()]
        self.usual.reconcile()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.usual, name)


def _words(spec: "ExecutionSpec") -> list[str]:
    """Return the command line of `flwr-serverapp`, as flwr's own executor writes it.

    Without what has an app's dependencies installed: no copy is made then.
    """
    words = ["flwr-serverapp", "--runtime-api-address", spec.runtime_api_address]
    words += ["--token", spec.token]
    if spec.insecure:
        words.append("--insecure")
    elif spec.root_certificates_path is not None:
        words += ["--root-certificates", spec.root_certificates_path]
    if spec.parent_pid is not None:
        words += ["--parent-pid", str(spec.parent_pid)]
    return words


def _serve(words: list[str], *, silent: bool) -> None:
    """Be a ServerApp's process, whose output goes to the SuperLink's log, and else nowhere."""
    from flwr.supercore.exit import exit_handler
    from flwr.superlink.cli.flwr_serverapp import flwr_serverapp

    exit_handler.registered_exit_handlers.clear()  # the SuperExec's, for its own end
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):
        del sys.path[0]  # what `python -m` puts there, and `flwr-serverapp` has not
    if silent:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    sys.argv = words
    flwr_serverapp()


if __name__ == "__main__":
    # Not as __main__, which the ServerApp's own modules must not find in its place.
    importlib.import_module("server.nodes.engines.superexec").main()
