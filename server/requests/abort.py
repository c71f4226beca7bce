"""Giving a request up that will not go on."""

from server.storage.home import Home
from server.storage.ledger import GONE, Ledger, RequestRow


def give_up(home: Home, request_id: str) -> RequestRow:
    """Give up a request that was interrupted or never began; its base version stays as it was.

    Raises:
        UnknownIdError: If there is no such request.
        TransitionError: If it has ended.
        HomeBusy: If it is running, or another one is.
    """
    with home.lock():
        ledger = Ledger.of(home)
        ledger.interrupt_running(GONE)
        return ledger.abort(request_id, "given up by the operator")
