"""A home opened to be looked at: nothing is written or created."""

from contextlib import suppress
from typing import Final

from client.errors import EffaceError
from server.storage.home import Home
from server.storage.ledger import Ledger

GONE: Final = "the process that ran it ended without a word"


def opened(path: str = "") -> tuple[Home, Ledger]:
    """Return a home and its ledger, to be looked at: nothing is written or created.

    A request whose process is gone is seen as interrupted.

    Args:
        path: The home; empty for EFFACE_HOME or ~/.efface.

    Raises:
        NoSuchHome: If it is named and not there.
    """
    home = Home(path or None, reading=True)
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
