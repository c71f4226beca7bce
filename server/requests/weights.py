"""A version's network with its weights, and what somebody else needs to know to use it."""

from typing import Any

from torch import nn

from client.channels.layout import from_text
from client.learning.models import ModelSpec, loaded
from client.wire import tensors
from server.nodes.federation import from_numpy
from server.requests.classes import card_names
from server.storage.home import Home
from server.storage.ledger import Ledger, VersionRow
from server.storage.registry import Registry
from server.storage.seals import EditedError


def version(home: Home, ledger: Ledger, name: str = "") -> VersionRow:
    """Return the version that a user's word means, if its row is as it was signed.

    Args:
        home: Where it is.
        ledger: The home's.
        name: Its id, `latest`, or empty for the one in service.

    Raises:
        UnknownIdError, RegistryError, BadSetting: If there is none, or several.
        EditedError: If the ledger was changed by hand there.
    """
    row = Registry(home, ledger, sweep=False).resolve(name or None)
    if edited := [p for p in ledger.checked(home).problems if p.version == row.id]:
        raise EditedError(f"{edited[0].text}; see `efface audit`")
    return row


def network(home: Home, ledger: Ledger, row: VersionRow) -> nn.Module:
    """Return a version's network with its weights, on the CPU, in evaluation mode.

    Raises:
        PrunedError: If the weights were destroyed for room.
        RegistryError: If they cannot be read, or are not those that were entered.
    """
    arrays, card = Registry(home, ledger, sweep=False).load(row)
    return loaded(ModelSpec.of_card(card["model"]), tensors(from_numpy(arrays))).eval()


def facts(row: VersionRow) -> dict[str, Any]:
    """Return what a version's weights need elsewhere, as JSON holds it.

    Inputs are images `(B, C, H, W)`, float32: pixels / 255, less `mean`, divided by `std`, by
    channel. `mean` and `std` are null where every site normalises by its own.
    """
    spec = ModelSpec.of_card(row.card["model"])
    data = row.card.get("data") or {}
    return {
        "version": row.id,
        "weights_sha256": row.sha256,
        "model": spec.name,
        "input_shape": [spec.channels, spec.image_size, spec.image_size],
        "input_dtype": "float32",
        "mean": data.get("mean"),
        "std": data.get("std"),
        "class_names": list(card_names(row.card) or map(str, range(spec.num_classes))),
        "erased": row.card.get("erased"),
        "channels_pruned": sum(map(len, from_text(spec.pruned).values())),
        "compact": spec.compact,
    }
