"""What a person asked for, as settings: the one way in for the command line and for Python."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from client.errors import BadSetting
from server.requests.classes import joined
from server.settings import RunSettings, parse
from server.storage.registry import DEMO_PREFIX

# Settings whose defaults do not serve every task: not named, they give way to what does.
MAY_GIVE_WAY: Final = ("scale", "method")


def asked(
    values: Mapping[str, Any],
    *,
    mode: str,
    home: str = "",
    classes: Sequence[str] = (),
    clients: Sequence[str] = (),
    options: Sequence[str] = (),
    asked_by: str = "",
    why: str = "",
) -> RunSettings:
    """Return the settings of a request, checked one by one.

    Args:
        values: Settings by kebab-case key.
        mode: "train", "forget", "relearn" or "yardstick".
        home: The server home; empty for EFFACE_HOME or ~/.efface.
        classes: Classes to name, by name or number.
        clients: Clients to name.
        options: Hyper-parameters of the method, each as `name=value`.
        asked_by: Who asked.
        why: Why.

    Raises:
        BadSetting: If one breaks its rule.
    """
    told = {
        "mode": mode,
        "home": home,
        "forget-classes": joined(classes),
        "forget-clients": ",".join(clients),
        "method-options": ",".join(options),
        "asked-by": asked_by,
        "why": why,
        "by-default": ",".join(key for key in MAY_GIVE_WAY if key not in values),
    }
    for name in clients:
        if not name.strip() or "," in name:
            raise BadSetting(f"client must be one name without a comma, got {name!r}")
    return parse({**values, **told})


def check_federation(name: str) -> None:
    """Refuse a training in a federation that is called as demonstrations are.

    Raises:
        BadSetting: If it is.
    """
    if name.startswith(DEMO_PREFIX):
        raise BadSetting(
            f"federation must not begin with {DEMO_PREFIX!r}, got {name!r}: so "
            "demonstrations are called, which nothing that is forgotten binds"
        )
