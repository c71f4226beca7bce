"""Which methods a model suits: what they need of a network, against what it is."""

from functools import lru_cache

import torch
from torch import fx

from client.channels.layout import layout
from client.errors import BadSetting
from client.learning.distillation import check_distillable
from client.learning.images import IMAGES
from client.learning.models import ModelSpec, build, shaped, traced
from strategies.method import Needs


def unsuited(needs: Needs, spec: ModelSpec) -> str | None:
    """Return why a method with these needs cannot serve a model; None if it can.

    Args:
        needs: What the method declares.
        spec: The model.
    """
    title, known = spec.task.title, traced(spec)
    if spec.task.own_loss and not needs.own_loss:
        return (
            f"task must be judged by cross-entropy of classes, got {title} with a loss of its own"
        )
    if needs.float_inputs and (why := undistillable(spec)) is not None:
        return f"network must be one to distil for, got {title}: {why}"
    if needs.head and known.head is None:
        return f"network must end in one linear layer, got {title}, which does not"
    if needs.channels and (why := _without_channels(spec)) is not None:
        return f"network must be of convolutions, linear layers and their norms, got {title}: {why}"
    return None


@lru_cache(maxsize=32)
def undistillable(spec: ModelSpec) -> str | None:
    """Return why no synthetic examples can be made with a network; None if they can."""
    if spec.name == IMAGES:
        return None
    try:
        model = build(spec.base, torch.Generator())
        check_distillable(model, spec.task.example(2))
    except BadSetting as error:
        return str(error)
    return None


def _without_channels(spec: ModelSpec) -> str | None:
    """Return why a network's channels cannot be told apart; None if they can."""
    if spec.name == IMAGES:
        return None
    model, known = shaped(spec), traced(spec)
    layers = layout(model)
    if not known.convolutions:
        return "it has no convolution"
    if known.head is None or layers[-1].name != known.head:
        return "its last layer is not linear"
    covered = {name for layer in layers for name in layer.tensors}
    if left := [name for name in known.trainable if name not in covered]:
        return f"{left[0]} belongs to no channel"
    try:
        fx.symbolic_trace(model)
    except Exception as error:  # whatever a network's own code does with a stand-in for a tensor
        return f"it cannot be traced ({type(error).__name__})"
    return None
