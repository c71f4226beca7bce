"""A home opened to be looked at, and a stopped request given up."""

from contextlib import suppress
from pathlib import Path

from client.errors import EffaceError
from client.task_folders import look_in
from server.storage.home import Home
from server.storage.ledger import GONE, TRANSITIONS, Ledger, RequestRow, TransitionError


def opened(path: str = "") -> tuple[Home, Ledger]:
    """Return a home and its ledger, to be looked at: nothing is written or created.

    A request whose process is gone is seen as interrupted.

    Args:
        path: The home; empty for EFFACE_HOME or ~/.efface.

    Raises:
        NoSuchHome: If it is named and not there.
    """
    home = Home(path or None, reading=True)
    look_in(home.tasks)
    ledger = Ledger.look(home)
    if not ledger.requests(state="running") or home.held():
        return home, ledger
    if not ledger.is_copy:
        with suppress(EffaceError), home.lock():
            ledger.interrupt_running(GONE)
        return home, ledger
    # In the copy alone. It is taken anew: the request may have ended in between.
    ledger = Ledger.look(home)
    ledger.interrupt_running(GONE)
    return home, ledger


def give_up(path: Path, request: str) -> tuple[Home, Ledger, RequestRow]:
    """Give up a request that was interrupted or never began; its base version stays in service.

    Args:
        path: The home.
        request: Its id.

    Returns:
        The home and its ledger, and the request as it is now.

    Raises:
        UnknownIdError: If there is no such request.
        TransitionError: If it runs, or has ended.
        HomeBusy: If another process holds the home.
    """
    home = Home(path)
    with home.lock():
        ledger = Ledger.of(home)
        ledger.interrupt_running(GONE)
        state = ledger.request(request).state
        if not TRANSITIONS[state]:
            raise TransitionError(
                f"request to give up must not have ended yet, got {request} which is {state}; "
                "nothing is left to give up"
            )
        return home, ledger, ledger.abort(request, "given up by the operator")
