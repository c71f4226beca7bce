"""The node's Flower app: every handler of `client.steps`, under its message's name.

Nothing stays in memory between messages.
"""

import pkgutil
from importlib import import_module
from typing import Any

from flwr.clientapp import ClientApp

from client import steps
from client.errors import EffaceError
from client.node import Handler


def handlers() -> dict[str, Handler[Any]]:
    """Return the handler of every message, by the message's name.

    Raises:
        EffaceError: If two handlers answer one message.
    """
    found: dict[str, Handler[Any]] = {}
    for module in pkgutil.iter_modules(steps.__path__, f"{steps.__name__}."):
        for handler in vars(import_module(module.name)).values():
            if not isinstance(handler, Handler) or handler.work.__module__ != module.name:
                continue
            name = handler.kind.message.name
            if name in found:
                raise EffaceError(f"message {name} must have one handler, got two")
            found[name] = handler
    return found


app = ClientApp()
for _name, _handler in handlers().items():
    _category, _, _action = _name.partition(".")
    getattr(app, _category)(_action)(_handler)
