"""Models: built from a seed, loaded with arrays, made smaller by what was pruned.

The networks themselves stand in `client.learning.networks`.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from client.channels.compact import Spread, shrink_
from client.channels.layout import from_text, layout, prunable
from client.errors import BadSetting
from client.learning.networks import BUILDERS, NAMES, Classifier
from client.learning.spec import ModelSpec

__all__ = [
    "MIN_IMAGE_SIZE",
    "NAMES",
    "Classifier",
    "ModelSpec",
    "build",
    "compact",
    "loaded",
    "shaped",
]

MIN_IMAGE_SIZE = 8

M = TypeVar("M", bound=nn.Module)


def build(spec: ModelSpec, generator: torch.Generator) -> Classifier:
    """Return a new model in training mode, float32, on the CPU.

    Initial weights: ConvNet, LeNet and every bias as torch's default, uniform in
    +-1 / sqrt(fan in); the convolutions of the residual and VGG networks normal with variance
    2 / fan out (He et al. 2015, https://arxiv.org/abs/1502.01852), as in torchvision.

    Args:
        spec: Name and sizes.
        generator: On the CPU. The only source of randomness: the model is laid out without memory
            first, so that torch's global generator is neither used nor touched.

    Raises:
        BadSetting: If the name is unknown or a size out of range.
    """
    model = copy.deepcopy(_layout(spec))
    model.to_empty(device="cpu")
    he = spec.name not in ("convnet", "lenet")
    for module in model.modules():
        _initialise(module, generator, he=he)
    return model


def loaded(spec: ModelSpec, state: Mapping[str, Tensor]) -> Classifier:
    """Return a model in training mode that holds the tensors of `state` themselves, not copies.

    Args:
        spec: Name and sizes.
        state: Parameters and buffers by name, all of them, on the CPU.

    Raises:
        BadSetting: If the spec is wrong, or names, shapes or dtypes are not the model's.
    """
    model = _twin(_layout(spec))
    for name, wanted in model.state_dict().items():
        if name in state and state[name].dtype != wanted.dtype:
            raise BadSetting(f"array {name} must be {wanted.dtype}, got {state[name].dtype}")
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise BadSetting(f"arrays must fit the model {spec}, got {error}") from error
    return model


def shaped(spec: ModelSpec) -> Classifier:
    """Return a model of its own whose tensors take no memory: torch's meta device.

    Raises:
        BadSetting: If the spec is wrong.
    """
    return copy.deepcopy(_layout(spec))


def compact(spec: ModelSpec, state: Mapping[str, Tensor]) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Return the smaller model without `spec.pruned`, which computes the same.

    Args:
        spec: Of the model at full size. Its pruned channels count as 0 (`zero_`) whatever they are.
        state: Its parameters and buffers by name, all of them, on the CPU. Not changed.

    Returns:
        The spec of the compact model and its parameters and buffers, copies, for `loaded`.

    Raises:
        BadSetting: If the model is compact already, `state` does not fit it, or `spec.pruned` may
            not be pruned (`prunable`).
    """
    if spec.compact:
        raise BadSetting(f"model must be at full size, got a compact one: {spec}")
    model = loaded(spec, state)
    shrink_(model, from_text(spec.pruned))
    return replace(spec, compact=True), {n: t.clone() for n, t in model.state_dict().items()}


def _twin(module: M) -> M:
    """Return a copy that shares tensors and nothing else; `copy.deepcopy` is much slower."""
    twin = copy.copy(module)
    # Parameters, buffers, children and hooks are dictionaries of a module.
    vars(twin).update((k, v.copy()) for k, v in vars(module).items() if isinstance(v, dict))
    twin._modules = {k: None if m is None else _twin(m) for k, m in module._modules.items()}
    return twin


@lru_cache(maxsize=16)  # a node builds the same model for every message
def _layout(spec: ModelSpec) -> Classifier:
    """Return the model without memory for its tensors; to be copied, never changed."""
    _check(spec)
    with torch.device("meta"):
        model = BUILDERS[spec.name](spec)
    if spec.pruned:
        pruned = prunable(from_text(spec.pruned), layout(model))
        if spec.compact:
            shrink_(model, pruned)
    return model


def _check(spec: ModelSpec) -> None:
    if spec.name not in BUILDERS:
        raise BadSetting(f"model must be one of {', '.join(NAMES)}, got '{spec.name}'")
    if spec.num_classes < 2:
        raise BadSetting(f"num_classes must be at least 2, got {spec.num_classes}")
    if spec.channels not in (1, 3):
        raise BadSetting(f"channels must be 1 or 3, got {spec.channels}")
    if spec.image_size < MIN_IMAGE_SIZE:
        raise BadSetting(
            f"image_size must be at least {MIN_IMAGE_SIZE}, got {spec.image_size}; "
            "enlarge the images first"
        )
    if spec.width < 1 or spec.depth < 1:
        raise BadSetting(
            f"width and depth must be at least 1, got width {spec.width}, depth {spec.depth}"
        )


@torch.no_grad()
def _initialise(module: nn.Module, generator: torch.Generator, *, he: bool) -> None:
    """Fill the parameters and buffers that `module` itself owns."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        bound = module.weight[0].numel() ** -0.5  # 1 / sqrt(fan in)
        if he and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        else:
            module.weight.uniform_(-bound, bound, generator=generator)
        if module.bias is not None:
            module.bias.uniform_(-bound, bound, generator=generator)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        module.reset_parameters()  # constants: nothing is drawn
    elif isinstance(module, Spread):
        module.reset_positions()
    elif any(True for _ in module.parameters(recurse=False)):
        raise TypeError(f"every layer type must be initialised here, got {type(module).__name__}")
