"""The executor of a site: takes tasks from the SuperNode and gives each to a gate.

It stands in the place of `flower-superexec`. Before it asks for the first task it has given up the
network, root and every way to new privileges; what it starts can do no more than it.

    python -m client.operator.executor FOLDER --parent PID [--user NAME] [--strict]
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
from pathlib import Path
from typing import Any, Final

from client.errors import BadSetting, NotIsolated
from client.operator import isolation
from client.operator.folder import POLICY, SiteFolder
from client.operator.part import account, start

log = logging.getLogger("efface.site")
_GRACE: Final = 10.0  # seconds for a gate that was asked to end
POLL_SECONDS: Final = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"  # flwr's own name


def main() -> None:
    """Take tasks until told to end."""
    parser = argparse.ArgumentParser(description="Run a site's executor.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--strict", action="store_true")
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
    signal.signal(signal.SIGTERM, _end)
    take_tasks(site, work)


def take_tasks(site: SiteFolder, work: Path) -> None:
    """Ask the SuperNode for one task after the other and have a gate answer each."""
    import httpx
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.constant import TaskType

    from client.operator.runtime import connected

    pause = float(os.environ.get(POLL_SECONDS, "0.2"))
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
                answer_task(site, work, answer.token)
            else:
                time.sleep(pause)


def answer_task(site: SiteFolder, work: Path, token: str) -> None:
    """Start a gate for one task and wait for it: a SuperNode hands on one message at a time."""
    scratch = Path(tempfile.mkdtemp(dir=work))
    environment = {**os.environ, "HOME": str(scratch), "TMPDIR": str(scratch)}
    gate = subprocess.Popen(
        # -P: neither this folder nor the scratch one is where modules come from.
        [sys.executable, "-P", "-m", "client.operator.gate", str(site.folder), str(os.getpid())],
        stdin=subprocess.PIPE,
        cwd=scratch,
        env=environment,
    )
    try:
        assert gate.stdin is not None
        with gate.stdin as pipe:  # not on the command line, where every user could read it
            pipe.write(token.encode())
        gate.wait()
    except BaseException:
        gate.terminate()
        try:
            gate.wait(_GRACE)
        except subprocess.TimeoutExpired:
            gate.kill()
            gate.wait()
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
