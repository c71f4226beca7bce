"""Who is there when a request starts: waiting, saying who is missing, and what clients missed."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from client.learning.models import ModelSpec
from client.wire import ForgetSpec
from server.evidence.measures import Judge
from server.nodes.grid import ClientsMissing, NamedGrid
from server.requests import attestations
from server.requests.forgotten import target
from server.requests.orders import order_of
from server.requests.resolved import ResolvedRequest
from server.requests.workspace import Workspace
from server.settings import RunSettings, parse
from server.storage import keys
from server.storage.ledger import RequestRow
from strategies.rounds.base import ClientLost
from strategies.table import METHODS

if TYPE_CHECKING:
    from server.requests.context import Work


def await_clients(
    workspace: Workspace, row: RequestRow, settings: RunSettings, grid: NamedGrid
) -> None:
    """Wait for the clients that a request needs.

    Raises:
        ClientsMissing: If some do not come. Of a client that the request names, the message says
            which methods would work without it.
    """
    absent = workspace.absent(row)
    if not settings.simulated:
        grid.only = frozenset(settings.participants)
    why = ""
    try:
        grid.wait_for(settings.num_clients, settings.join_timeout, without=absent)
    except ClientsMissing as error:
        why = str(error)
    if settings.simulated and all(node.name for node in grid.get_nodes()):
        grid.only = frozenset(settings.participants)  # before, they may have no names yet
    names = sorted(node.name for node in grid.get_nodes())
    # A simulation's nodes may not have their names yet.
    missing = [name for name in row.clients if name not in (*names, *absent)] if all(names) else []
    if missing:
        raise ClientsMissing(_offline(workspace, row, missing, names, why))
    if why:
        lower = " or lower num-clients" if row.kind == "train" else ""
        if row.kind == "verify":
            lower = (
                f". {row.settings['verifies']} is judged again by what all of them measure, or not "
                "at all; nothing was measured"
            )
        raise ClientsMissing(why + lower)


def _offline(
    workspace: Workspace, row: RequestRow, missing: list[str], names: list[str], why: str
) -> str:
    whose = ForgetSpec("client", (), tuple(missing))
    there = f"(online: {', '.join(names) or 'none'}{'; ' if why else ''}{why})"
    if row.kind == "verify":
        about = str(row.settings["verifies"])
        return (
            f"{whose} must be online for {about} to be judged again, got offline {there}: what a "
            "client held is measured on its own data, and nothing stands in for them. Start it "
            f"first; of a client that is gone for good the record of {about} is what there is: "
            f"efface show {about}"
        )
    text = f"{whose} must be online for method {row.method}, got offline {there}; start it first"
    if row.kind != "forget":
        return text
    card = workspace.ledger.version(str(row.base_version)).card
    kept = workspace.history(card) is not None
    able = [
        name
        for name, kind in METHODS.items()
        if not kind.needs.target_online
        and str(row.level) in kind.needs.levels
        and (kept or not kind.needs.history)
    ]
    return f"{text}, or take a --method that works without it: {', '.join(able)}"


def settle_pending(work: "Work") -> None:
    """Have clients that are back do what they missed while they were offline.

    Whoever fails still owes it, and the request at hand goes on.
    """
    ledger = work.workspace.ledger
    online = {node.name for node in work.grid.get_nodes()}
    for owed in ledger.pending():
        row = ledger.request(owed.request)
        if owed.client not in online or not _same_clients(work.request.row, row):
            continue
        try:
            destroyed, signed = _settle(work, row, owed.client)
        except ClientLost as error:
            work.listener.note(f"clean-up of {row.id} still waits at {owed.client}: {error}")
            continue
        sealed = attestations.keep_late(work.workspace.home, row, signed)
        ledger.settle_pending(row.id, owed.client, sealed)
        work.listener.note(
            f"{owed.client} is back and has done what {row.id} ({row.kind} {target(row)}) asks: "
            f"{destroyed} synthetic examples destroyed"
        )


def _settle(work: "Work", row: RequestRow, client: str) -> tuple[int, Mapping[str, Any]]:
    """Send one client an earlier request's last message.

    Returns:
        How many images it destroyed, and what it signed.
    """
    card = work.workspace.ledger.version(str(row.base_version)).card
    settings, model = parse(row.settings), ModelSpec.of_card(card["model"]).base
    registry = work.request.registry
    then = replace(work, request=ResolvedRequest(row, settings, model, None, None, None, registry))
    journal = f"settle-{row.id}"
    spec = target(row)
    federation = then.federation(
        journal,
        Judge(model, None, spec),
        lineage=card["lineage"],
        forget=spec,
        erased=card["erased"],
    )
    order = order_of(work.workspace.home, row, settings, card["lineage"])
    federation.common |= order.common
    federation.site_keys = keys.site_keys(work.workspace.home.keys)
    try:
        answers = federation.settle(row.kind, destroy=order.destroy, names=[client], again=True)
    finally:
        shutil.rmtree(then.folder / journal, ignore_errors=True)
    return int(answers[client]["destroyed"]), federation.attestations[client]


def _same_clients(one: RequestRow, other: RequestRow) -> bool:
    """Return whether two requests reach the same clients by their names."""
    if one.federation == other.federation:
        return True
    links = [parse(row.settings) for row in (one, other)]
    return not any(s.simulated for s in links) and links[0].superlink == links[1].superlink
