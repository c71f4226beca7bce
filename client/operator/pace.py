"""How long Flower waits where a round waits with it, and how long we have it wait.

All that is changed of flwr is here, in memory alone, and each value names its place in the release
it was read in. Where one is not as it was, or with EFFACE_PACE=0, flwr waits as it does by itself:
everything works, slower.
"""

import logging
import os
import time
from typing import Any, Final

log = logging.getLogger("efface.site")
SWITCH: Final = "EFFACE_PACE"
RELEASE: Final = "1.39.0"  # of flwr

# flwr.supernode.start_client_internal, in seconds: after a question for a message that found none,
# and while a reply, or an object of it, is not there yet.
IDLE: Final = 3
REPLY: Final = 0.5
# flwr.supercore.constant, defaults of two functions in flwr.supercore.inflatable.inflatable_utils:
# how soon an object that is not there yet is asked for again. The pause doubles up to a limit.
FIRST_PULL: Final = 1  # PULL_INITIAL_BACKOFF, seconds
LONGEST_PULL: Final = 10  # PULL_BACKOFF_CAP, seconds
PULLS: Final = 500  # PULL_MAX_TRIES_PER_OBJECT
PULL_SECONDS: Final = 7200  # PULL_MAX_TIME, which stays
PULLING: Final = ("pull_objects", "pull_and_inflate_object_from_tree")

# What we have it wait.
SHARE: Final = 0.1  # of the time in which nothing came: a round is late by that share at most
SHORTEST_IDLE: Final = 0.05  # seconds
SHORTEST_REPLY: Final = 0.01
OUR_FIRST_PULL: Final = 0.01
OUR_LONGEST_PULL: Final = 1.0
_GAP: Final = 0.05  # seconds between two waits for one reply, at most


class Pause:
    """A pause that grows with the time in which nothing has happened: who is idle asks rarely."""

    def __init__(self, shortest: float, longest: float) -> None:
        """Begin now; both limits are in seconds."""
        self.shortest, self.longest = shortest, longest
        self.happened()

    def happened(self) -> None:
        """Note that something has happened now."""
        self.since = time.monotonic()

    def seconds(self) -> float:
        """Return how long to wait now."""
        return min(max(self.shortest, SHARE * (time.monotonic() - self.since)), self.longest)


class NodeTime:
    """Stands for the module `time` in the SuperNode's loop: its own two sleeps become pauses."""

    def __init__(self) -> None:
        self._idle = Pause(SHORTEST_IDLE, IDLE)
        self._reply = Pause(SHORTEST_REPLY, REPLY)
        self._woke = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait as long as the last message's time says, or as long as was asked."""
        if seconds == IDLE:
            seconds = self._idle.seconds()
        elif seconds == REPLY:
            self._idle.happened()
            if time.monotonic() - self._woke > _GAP:  # the first wait for this reply
                self._reply.happened()
            seconds = self._reply.seconds()
        time.sleep(seconds)
        self._woke = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def quicken_node() -> None:
    """Have the SuperNode in this process wait less."""
    from flwr.supernode import start_client_internal as loop

    quicken_pulls()
    if os.environ.get(SWITCH) == "0":
        return
    if vars(loop).get("time") is not time:
        log.warning("flwr waits by itself: its SuperNode is not that of %s", RELEASE)
        return
    vars(loop)["time"] = NodeTime()


def quicken_pulls() -> None:
    """Have this process ask sooner for objects that are not there yet, and as long as before."""
    from flwr.supercore.inflatable import inflatable_utils

    if os.environ.get(SWITCH) == "0":
        return
    ours = {
        "initial_backoff": OUR_FIRST_PULL,
        "backoff_cap": OUR_LONGEST_PULL,
        "max_tries_per_object": int(2 * PULL_SECONDS / OUR_LONGEST_PULL),
    }
    for name in PULLING:
        usual = getattr(getattr(inflatable_utils, name, None), "__kwdefaults__", None) or {}
        if not set(ours) <= set(usual):
            log.warning("flwr waits by itself: its %s is not that of %s", name, RELEASE)
            return
    for name in PULLING:
        getattr(inflatable_utils, name).__kwdefaults__.update(ours)
