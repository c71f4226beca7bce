"""How a part of a site starts: what it cannot start with is one line, and the launcher ends.

Starting it again would mend nothing, and a traceback tells an operator nothing.
"""

import os
import pwd
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from client.errors import BadSetting, EffaceError, marked

UNFIT: Final = os.EX_CONFIG  # the exit status of a part that a person has to mend something for


def start(main: Callable[[], None]) -> None:
    """Run a part's `main`; an error that its operator can mend ends the process as unfit."""
    try:
        main()
    except PermissionError as error:
        closed = f"{error.filename} must be open to the user of this process"
        _end(BadSetting(f"{closed}, got: {error.strerror}; chown it"))
    except EffaceError as error:
        _end(error)


def _end(error: EffaceError) -> NoReturn:
    print(marked(error, str(error)), file=sys.stderr, flush=True)
    raise SystemExit(UNFIT)


def account(user: str) -> pwd.struct_passwd:
    """Return a user of this machine.

    Raises:
        BadSetting: If there is none of that name.
    """
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise BadSetting(
            f"user must exist, got {user!r}; make it with: useradd --system {user}"
        ) from None
