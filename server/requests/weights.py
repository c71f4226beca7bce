"""A version's network with its weights, and what somebody else needs to know to use it."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from client.channels.layout import from_text
from client.learning.models import ModelSpec, loaded
from client.task import Task
from client.wire import tensors
from server.nodes.federation import from_numpy
from server.requests import derived
from server.requests.classes import card_names
from server.storage.home import Home
from server.storage.ledger import Ledger, VersionRow
from server.storage.registry import Registry
from server.storage.seals import EditedError


def version(home: Home, ledger: Ledger, name: str = "", allowed: Sequence[str] = ()) -> VersionRow:
    """Return the version that a user's word means, if its row is as it was signed.

    Args:
        home: Where it is.
        ledger: The home's.
        name: Its id, `latest`, or empty for the one in service.
        allowed: Requests of which it may know what they forgot.

    Raises:
        UnknownIdError, RegistryError, BadSetting: If there is none, or several.
        EditedError: If the ledger was changed by hand there.
        PrunedError: If its weights were destroyed.
        KnowsForgotten: If it knows what was forgotten.
    """
    registry = Registry(home, ledger, sweep=False)
    row = registry.resolve(name or None)
    if edited := [p for p in ledger.checked(home).problems if p.version == row.id]:
        raise EditedError(f"{edited[0].text}; see `efface audit`")
    registry.check_kept(row)
    derived.check_use(ledger, row, allowed)
    return row


def network(home: Home, ledger: Ledger, row: VersionRow) -> nn.Module:
    """Return a version's network with its weights, on the CPU, in evaluation mode.

    Raises:
        PrunedError: If the weights were destroyed for room.
        RegistryError: If they cannot be read, or are not those that were entered.
    """
    arrays, card = Registry(home, ledger, sweep=False).load(row)
    return loaded(ModelSpec.of_card(card["model"]), tensors(from_numpy(arrays))).eval()


def task(row: VersionRow) -> Task:
    """Return what a version has learned.

    Raises:
        CodeMismatch: If its sources are not in the home any more.
    """
    return ModelSpec.of_card(row.card["model"]).task


def facts(row: VersionRow) -> dict[str, Any]:
    """Return what a version's weights need elsewhere, as JSON holds it.

    Inputs `(B, *input_shape)` are as the task prepares them. Images are float32: pixels / 255, less
    `mean`, divided by `std`, by channel; both are null where every site normalises by its own.
    """
    spec = ModelSpec.of_card(row.card["model"])
    data = row.card.get("data") or {}
    inputs = spec.task.example(1)
    return {
        "version": row.id,
        "weights_sha256": row.sha256,
        "model": spec.task.title,
        "input_shape": list(inputs.shape[1:]),
        "input_dtype": str(inputs.dtype).removeprefix("torch."),
        "mean": data.get("mean"),
        "std": data.get("std"),
        "class_names": list(card_names(row.card) or map(str, range(spec.num_classes))),
        "erased": row.card.get("erased"),
        "channels_pruned": sum(map(len, from_text(spec.pruned).values())),
        "compact": spec.compact,
    }
