"""What each node holds of a request's data: counted where the coordinator knows, assumed elsewhere.

Counts are expectations: of a node's examples a share is held out, the same of every class.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from client.data.datasets import Data
from client.wire import ForgetSpec
from strategies.parts.effort import Holding


def counted(
    data: Data, shares: Sequence[Tensor], num_classes: int, *, holdout: float
) -> dict[str, Tensor]:
    """Return the training examples of each class of simulated nodes, `(K,)`, by name."""
    labels = data.train.labels
    rows = (labels[share].bincount(minlength=num_classes) for share in shares)
    return {f"client-{i}": row.double() * (1 - holdout) for i, row in enumerate(rows)}


def assumed(
    forget: ForgetSpec,
    erased: Sequence[str],
    num_clients: int,
    num_classes: int,
    *,
    each: float,
    seen: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the same for nodes that nobody has asked: all have `each`, and of all classes alike.

    Args:
        forget: The clients named are among them.
        erased: Clients that are not, by earlier requests.
        num_clients: With those.
        num_classes: K.
        each: Training examples of a node.
        seen: Names of nodes that took part in training; the others are given some.
    """
    present = max(1, num_clients - len(erased))
    others = sorted({*seen} - {*forget.clients, *erased})
    names = [*forget.clients, *others, *(f"another {i}" for i in range(present))][:present]
    return {
        name: torch.full((num_classes,), each / num_classes, dtype=torch.float64) for name in names
    }


def holdings(
    counts: Mapping[str, Tensor],
    forget: ForgetSpec,
    erased: Mapping[str, Any],
    *,
    holdout: float,
    assumed: bool,
) -> dict[str, Holding]:
    """Return what each node holds of what goes, of what stays, and to be measured on.

    Args:
        counts: Training examples of each class by name.
        forget: What the request names.
        erased: "classes" and "clients" of earlier requests, which are left out of training. Of
            the level of this request they are measured with what it names.
        holdout: The share of a node's examples that is not in `counts`.
        assumed: Whether nobody counted.
    """

    def of(name: str, row: Tensor) -> Holding:
        of_classes = forget.level == "class"
        left_out, named = torch.zeros_like(row).bool(), torch.zeros_like(row).bool()
        named[list(forget.classes)] = True
        left_out[list(erased["classes"])] = True
        measured = ~left_out | of_classes
        if name in forget.clients:
            named[:] = True
        if name in erased["clients"]:
            measured = left_out | named if of_classes else torch.ones_like(named)
            left_out[:] = True
        elif name in forget.clients:
            measured[:] = True
        known = row * ~left_out
        return Holding(
            forget=tuple((known * named).tolist()),
            retain=tuple((known * ~named).tolist()),
            heldout=float((row * measured).sum()) * holdout / (1 - holdout),
            assumed=assumed,
        )

    return {name: of(name, row) for name, row in counts.items()}
