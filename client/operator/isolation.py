"""What the executor gives up before it asks for its first message: network, user, privileges.

All of it works with plain system calls, so that a unit or a container that has done it already
(PrivateNetwork=, User=; `network_mode: none`, `user:`) and a shell of root's come to the same.
What could not be given up is named by `weaknesses`, for a person to read.
"""

import ctypes
import errno
import os
import resource
import signal
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from client.errors import BadSetting
from client.operator.part import account

_NEWNET: Final = 0x40000000
_NEWUSER: Final = 0x10000000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
# Addresses for documentation (RFC 5737, RFC 3849). Connecting a datagram socket sends nothing: it
# only asks the kernel whether it knows a way there.
_ANYWHERE: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def leave_network() -> bool:
    """Move this process into a network of its own that has no interface up.

    Unix sockets that are files can still be reached. Root can always do this; others where the
    kernel lets them make a user namespace. Call it while there is one thread.

    Returns:
        Whether there is no way out now.
    """
    if not reaches_network():
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        libc.unshare(_NEWNET)
        return not reaches_network()
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEWUSER | _NEWNET) == 0:
        # The same ids inside: files belong to whom they did, and no program that is started from
        # here has a capability in this namespace either.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return not reaches_network()


def reaches_network() -> bool:
    """Return whether the kernel knows a way out of this machine, or even to its loopback."""
    for family, address in (*_ANYWHERE, (socket.AF_INET, "127.0.0.1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
        except OSError:  # no route, or the family itself is refused
            continue
        return True
    return False


def become(user: str) -> None:
    """Give up root for `user`, all groups but the user's own, and every way back.

    Raises:
        BadSetting: If there is no such user, or it is root.
    """
    entry = account(user)
    if entry.pw_uid == 0:
        raise BadSetting("user must not be root, got root; make one: useradd --system efface-run")
    if os.geteuid() == entry.pw_uid:
        return
    try:
        os.setgroups([entry.pw_gid])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except PermissionError:
        raise BadSetting(
            f"user can be given by root alone, got {user!r}; start as root or without it"
        ) from None


def give_up_privileges(parent: int) -> None:
    """Let nothing below this process gain a privilege, dump its memory, or outlive `parent`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs must be set")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    end_with(parent)


def end_with(parent: int) -> None:
    """Have the kernel end this process when `parent`, which started it, is gone."""
    # After any change of user, for that clears it.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)  # it went before the line above


def close_memory(closed: bool = True) -> None:
    """Keep other processes of this user out of this one's memory, or let them in again.

    What an executor starts is of its user; a bundle must not change the one that checks the next.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0 if closed else 1, 0, 0, 0)


def first_to_go() -> None:
    """Have the kernel end this process before others of the machine when memory is short.

    The executor lends a copy most of what it holds, and would be taken in the copy's place.
    """
    with suppress(OSError):  # a container may forbid it; then the kernel chooses by size
        Path("/proc/self/oom_score_adj").write_text("500")


def adopt_orphans() -> None:
    """Become the parent of every process below this one that loses its own."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children() -> None:
    """End all children, and with `adopt_orphans` all below them: nothing outlives its message."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        for child in _children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _children() -> list[int]:
    own, found = str(os.getpid()), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # PID (NAME) STATE PARENT ...; a name may hold anything.
            if (entry / "stat").read_text().rpartition(")")[2].split()[1] == own:
                found.append(int(entry.name))
        except OSError:  # gone meanwhile
            continue
    return found


def weaknesses(key: Path, bundles: Path) -> list[str]:
    """Return what this process could still do that an executor should not, in plain words.

    Args:
        key: The node's private key.
        bundles: The folder of the operator's list.
    """
    found = []
    if os.geteuid() == 0:
        found.append("it runs as root: give a user of its own (--user)")
    if _owner(key) == os.geteuid() or _can_open(key):
        found.append(
            "it could read the node's key: run it as a user of its own, as root with --user"
        )
    # Who may rename a folder on the way to the list puts another list in its place.
    open_ones = [one for one in (bundles / "allowed", bundles, *bundles.parents) if _changes(one)]
    if open_ones:
        found.append(
            f"it could write the list of allowed bundles ({open_ones[0]}): run it as a user that "
            "does not own the folder, nor one above it"
        )
    if reaches_network():
        found.append("it has a network: start as root, or in the unit or container of deploy/")
    return found


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def _changes(path: Path) -> bool:
    """Return whether this process can put something else in a path's place, or give it that mode.

    A folder with the sticky bit, such as /tmp, lets each user move the own files alone.
    """
    try:
        found = path.stat()
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return False
    except OSError:  # not there: then the folder above decides
        return False
    if found.st_uid == os.geteuid():
        return True
    return os.access(path, os.W_OK) and not found.st_mode & stat.S_ISVTX


def _can_open(path: Path) -> bool:
    try:
        path.open("rb").close()
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)
    return True
