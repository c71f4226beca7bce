"""The executor of a site: takes tasks from the SuperNode and gives each to a gate.

It stands in the place of `flower-superexec`. Before it asks for the first task it has given up the
network, root and every way to new privileges; what it starts can do no more than it.

    python -m client.operator.executor FOLDER --parent PID [--user NAME] [--strict] [--cold]
"""

import argparse
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from client.errors import BadSetting, NotIsolated
from client.operator import isolation, pace, warm
from client.operator.folder import POLICY, SiteFolder
from client.operator.part import account, start

log = logging.getLogger("efface.site")
_GRACE: Final = 10.0  # seconds for a gate that was asked to end
SHORTEST_POLL: Final = 0.02  # seconds between two questions for a task, soon after the last one
POLL_SECONDS: Final = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"  # flwr's own name; the longest


def main() -> None:
    """Take tasks until told to end."""
    parser = argparse.ArgumentParser(description="Run a site's executor.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--cold", action="store_true")
    told = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each question
    site = SiteFolder.load(told.folder)
    work = site.state / "work"
    _own(site, work, told.user)
    isolation.leave_network()
    if told.user:
        isolation.become(told.user)
    isolation.give_up_privileges(told.parent)
    policy = site.folder / POLICY
    if not os.access(policy, os.R_OK):
        raise BadSetting(
            f"{policy} must be readable by the executor's user, got none or no permission; make "
            f"it with `efface site init`, then: chown {pwd.getpwuid(os.geteuid()).pw_name} {policy}"
        )
    found = isolation.weaknesses(site.key, site.folder / "bundles")
    for weakness in found:
        log.warning("the executor is not fully apart: %s", weakness)
    if found and told.strict:
        raise NotIsolated("executor must be apart (--strict), got: " + "; ".join(found))
    shutil.rmtree(work, ignore_errors=True)  # what a gate that was killed has left
    work.mkdir(mode=0o700)
    isolation.adopt_orphans()
    isolation.close_memory()
    signal.signal(signal.SIGTERM, _end)
    take_tasks(site, work, copies=not told.cold and _warmed())


def _warmed() -> bool:
    """Load what messages need; return whether this process can be copied for them."""
    if not (why := warm.obstacle()):
        warm.load()
        why = warm.obstacle()
    if why:
        log.info("each message starts a new process: %s", why)
    return not why


def take_tasks(site: SiteFolder, work: Path, *, copies: bool) -> None:
    """Ask the SuperNode for one task after the other and have a gate answer each.

    Args:
        site: Whose tasks.
        work: Folder of the gates' own.
        copies: Whether gates are copies of this process, where that is possible.
    """
    import httpx
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.constant import TaskType

    from client.operator.runtime import connected

    pause = pace.Pause(SHORTEST_POLL, float(os.environ.get(POLL_SECONDS, "0.2")))
    reached = None
    with connected(site.socket) as node:
        while True:
            try:
                # Every kind: one that nobody takes would keep the SuperNode waiting for ever.
                asked = AcquireTaskRequest(supported_task_types=list(TaskType))
                answer = node.AcquireTask(asked)
            except httpx.TransportError:
                if reached is not False:
                    log.info("waiting for the SuperNode")
                reached = False
                time.sleep(1.0)
                continue
            if not reached:
                log.info("ready: tasks come from %s", site.socket)
            reached = True
            if answer.HasField("task") and answer.token:
                answer_task(site, work, answer.token, copies=copies)
                pause.happened()
            else:
                time.sleep(pause.seconds())


def answer_task(site: SiteFolder, work: Path, token: str, *, copies: bool) -> None:
    """Start a gate for one task and wait for it: a SuperNode hands on one message at a time."""
    scratch = Path(tempfile.mkdtemp(dir=work))
    gate: warm.Copy | subprocess.Popen[bytes] | None = None
    try:
        gate = (_copied(site, scratch, token) if copies else None) or _new(site, scratch, token)
        if status := gate.wait():
            log.error("the process of a message ended with status %d", status)
    except BaseException:
        if gate is not None:
            gate.terminate()
            try:
                gate.wait(_GRACE)
            except subprocess.TimeoutExpired:
                gate.kill()
                gate.wait()
        raise
    finally:
        isolation.end_children()  # whatever the gate has started and left
        shutil.rmtree(scratch, ignore_errors=True)


def _copied(site: SiteFolder, scratch: Path, token: str) -> warm.Copy | None:
    """Return a gate that is a copy of this process; None if there is none to be had now."""
    why = warm.obstacle()
    if not why:
        from client.operator import gate  # loaded already, and flwr with it

        try:
            return warm.Copy(lambda: gate.serve(site, token), scratch)
        except OSError as error:
            why = str(error.strerror)
    log.warning("a message starts a new process: %s", why)
    return None


def _new(site: SiteFolder, scratch: Path, token: str) -> "subprocess.Popen[bytes]":
    """Return a gate that is a new process."""
    gate = subprocess.Popen(
        # -P: neither this folder nor the scratch one is where modules come from.
        [sys.executable, "-P", "-m", "client.operator.gate", str(site.folder), str(os.getpid())],
        stdin=subprocess.PIPE,
        cwd=scratch,
        env={**os.environ, "HOME": str(scratch), "TMPDIR": str(scratch)},
    )
    assert gate.stdin is not None
    # Not on the command line, where every user could read it. One that has ended already says so
    # by its status.
    with suppress(BrokenPipeError), gate.stdin as pipe:
        pipe.write(token.encode())
    return gate


def _own(site: SiteFolder, work: Path, user: str) -> None:
    """Make the executor's folders; where root starts it for `user`, they are that user's."""
    owner = account(user) if user and os.geteuid() == 0 else None
    for folder in (site.state, site.state / "came", work, site.store):
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(mode=0o755 if folder != site.store else 0o700, parents=True, exist_ok=True)
        if owner is not None:
            for one in missing:
                os.chown(one, owner.pw_uid, owner.pw_gid)


def _end(number: int, frame: Any) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    start(main)
