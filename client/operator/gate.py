"""One message at a site: let in a bundle that the operator allowed, and answer with it; no other.

A process of its own for each message: a copy of the executor (`client.operator.warm`), or a new
one, which gets the task's token on standard input. It does what `flwr-clientapp` of flwr 1.39.0
does, in this order:

1. Pull the message and the bundle's bytes from the SuperNode.
2. Compute their SHA-256 and look for it in the operator's list. If it is not there, answer with an
   error that names it; nothing of the bundle was unpacked, nothing of it ran.
3. Unpack client/ of these bytes into an empty folder of this message's own.
4. Import `client.app` from there, and from nowhere else: not from another folder that the
   coordinator could name, not from what an earlier message left, and no module that lies beside
   client/ in the bundle, whatever its name.
5. Call it, and send up what it answers.

In a copy of an executor that has imported the installed client/ already, a bundle whose client/
holds the very same bytes runs that import in place of 3 and 4 (`client.operator.preloaded`).
"""

import importlib
import logging
import sys
import tempfile
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from client.errors import ForeignBundle, marked
from client.operator import isolation, pace, preloaded
from client.operator.bundles import APP, Bundle, Bundles
from client.operator.folder import SiteFolder
from client.operator.preloaded import PACKAGE
from client.operator.runtime import RuntimeSocketClient, connected

log = logging.getLogger("efface.site")


def main() -> None:
    """Answer one task, whose token comes on standard input."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each question
    site, parent = SiteFolder.load(Path(sys.argv[1])), int(sys.argv[2])
    isolation.give_up_privileges(parent)
    isolation.first_to_go()
    serve(site, sys.stdin.buffer.read().decode())


def serve(site: SiteFolder, token: str) -> None:
    """Answer one task in this process, which is good for nothing else after it."""
    pace.quicken_pulls()
    with connected(site.socket, token) as node:
        alive = HeartbeatSender(make_task_heartbeat_fn_http(node))
        alive.start()
        try:
            answer(node, site.bundles)
        finally:
            alive.stop()


def answer(node: RuntimeSocketClient, bundles: Bundles) -> None:
    """Pull one task's message, answer it, and say that the task is done."""
    message, context, _, fab = pull_task_input(node)
    bundle = Bundle(fab.content)
    details = ""
    try:
        bundles.note(bundle)
        bundles.check(bundle)
        reply = _app(bundle)(message, context)
    except Exception as error:
        details, reply = _failure(error, message)
    _send(node, reply, context, details)


def _app(bundle: Bundle) -> ClientApp:
    """Return a bundle's app."""
    if (loaded := preloaded.app_of(bundle)) is not None:
        return loaded
    folder = Path(tempfile.mkdtemp(prefix="bundle-"))
    bundle.unpack(folder)
    return load(folder)


class BundleFinder(MetaPathFinder):
    """Finds `client` and what is in it in one folder, and nowhere else.

    Args:
        folder: Where the bundle's client/ was unpacked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of `client`; None leaves all others to those after it.

        Raises:
            ModuleNotFoundError: If the bundle has no such module: the installed one must not
                stand in for it.
        """
        if fullname.partition(".")[0] != PACKAGE:
            return None
        found = PathFinder.find_spec(fullname, [str(self.folder)] if path is None else path)
        if found is None:
            raise ModuleNotFoundError(f"bundle must hold {fullname}, got none", name=fullname)
        return found


def load(folder: Path) -> ClientApp:
    """Return the app of the bundle's client/ in `folder`, in place of the installed one.

    Raises:
        ForeignBundle: If there is none.
    """
    # This module is of the package `client`, too, the one that the operator installed. What is in
    # memory of it goes on working; every import from now on is the bundle's.
    preloaded.forget_package()
    sys.meta_path.insert(0, BundleFinder(folder))
    if not (folder / APP).is_file():
        raise ForeignBundle(f"bundle must hold {APP}, got none")
    app = importlib.import_module(f"{PACKAGE}.app").app
    if not isinstance(app, ClientApp):
        raise ForeignBundle(f"{PACKAGE}.app must be a Flower app, got {type(app).__name__}")
    return app


def _failure(error: Exception, message: Message) -> tuple[str, Message]:
    """Return what is told of a failure: in Flower's own form, which the coordinator reads."""
    foreign = isinstance(error, ForeignBundle)
    if foreign:
        log.error("%s", error)
    else:
        log.error("the app raised an exception", exc_info=error)
    reason = marked(error, str(error)) if foreign else f"{type(error)}:<'{error}'>"
    code = ErrorCode.INVALID_FAB if foreign else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    return reason, Message(Error(code, reason), reply_to=message)


def _send(node: RuntimeSocketClient, reply: Message, context: Context, details: str) -> None:
    push_message(node, reply, context)
    push_task_output(
        client=node,
        context=None if details else context,
        sub_status=SubStatus.FAILED if details else SubStatus.COMPLETED,
        details=details,
    )


if __name__ == "__main__":
    main()
