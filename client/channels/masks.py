"""Channels made zero, kept as they are in training, or trained alone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.channels.layout import Channels, Layer, checked, layout
from client.channels.layout import rows as layout_rows


@torch.no_grad()
def zero_(model: nn.Module, channels: Channels) -> None:
    """Make `channels` exactly 0 behind their norm, in training and in evaluation, in place.

    Their weight, bias and norm become 0, the running mean 0 and the running variance 1.

    Behind a ReLU they stay so in training: the gradients of all these are exactly 0. Not so in a
    layer that is added to a residual stream, whose norm's bias gets the stream's gradient: use
    `freeze` before training. Running variances drift, without effect.

    Raises:
        BadSetting: As `checked`.
    """
    layers = layout(model)
    state = model.state_dict()
    device = state[layers[0].tensors[0]].device
    for name, places in layout_rows(layers, checked(channels, layers), device):
        state[name].index_fill_(0, places, 1 if name.endswith(".running_var") else 0)


def freeze(model: nn.Module, channels: Channels) -> None:
    """Keep the parameters of `channels` as they are in training: their gradients become 0.

    With plain, momentum or weight-decayed SGD, parameters that are 0 stay exactly 0.

    Args:
        model: Its parameters get hooks, which both `backward` and `torch.autograd.grad` run.
        channels: What to freeze.
    """
    layers = layout(model)
    parameters = dict(model.named_parameters())
    for name, places in layout_rows(layers, checked(channels, layers)):
        if name in parameters:  # running statistics are none
            _hook(parameters[name], places, passing=False)


def train_only(model: nn.Module, layers: Sequence[Layer], channels: Channels) -> None:
    """Let training change the parameters of `channels` alone, without weight decay.

    Args:
        model: Its parameters get hooks; those without chosen channels get no gradient at all.
        layers: The model's layout.
        channels: What to train.
    """
    rows = dict(layout_rows(layers, checked(channels, layers)))
    for name, parameter in model.named_parameters():
        if name in rows:
            _hook(parameter, rows[name], passing=True)
        else:
            parameter.requires_grad_(False)


def _hook(parameter: nn.Parameter, places: Tensor, *, passing: bool) -> None:
    """Have the gradient of a parameter pass at `places` alone, or everywhere else."""
    mask = torch.full((len(parameter), *[1] * (parameter.dim() - 1)), not passing)
    mask = mask.index_fill(0, places, passing).to(parameter.device)
    parameter.register_hook(lambda gradient: gradient * mask)
