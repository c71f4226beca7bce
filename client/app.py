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
from client.own_task import offer
from client.task import Task


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


def answer(app: ClientApp, *tasks: type[Task]) -> None:
    """Have a ClientApp answer Efface's messages, beside its own.

    Its own handlers stay as they are: those of Efface have names of their own
    (`@app.train("ascend")`), and Flower's plain `train` and `evaluate` are not among them.

    Args:
        app: Changed.
        tasks: Of the app, which messages may then name. They are found in the app itself, with its
            whole package, and need not come in a bundle.
    """
    for task in tasks:
        offer(task)
    for name, handler in handlers().items():
        category, _, action = name.partition(".")
        getattr(app, category)(action)(handler)


app = ClientApp()
answer(app)
