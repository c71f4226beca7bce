"""Models: built from a seed, loaded with arrays, made smaller by what was pruned.

The networks themselves stand in `client.learning.networks` and in users' tasks. Of a network only
what changes in training travels; the rest, a pre-trained body for instance, is built at each place,
and its hash is part of the model's name.
"""

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from client.channels.compact import Spread, shrink_
from client.channels.layout import from_text, layout, prunable
from client.errors import BadSetting, CodeMismatch, EffaceError
from client.learning.images import IMAGES
from client.learning.networks import NAMES
from client.learning.spec import ModelSpec
from client.learning.trace import Trace, frozen_digest, trace
from client.task_folders import placed

__all__ = [
    "NAMES",
    "ModelSpec",
    "build",
    "check_frozen",
    "compact",
    "drawing",
    "identified",
    "loaded",
    "shaped",
    "state_of",
    "traced",
]

M = TypeVar("M", bound=nn.Module)
_drawing = threading.RLock()  # torch has one generator for all threads
_FIRST: int = 0  # seed of what does not travel: the same everywhere


def build(spec: ModelSpec, generator: torch.Generator) -> nn.Module:
    """Return a new model in training mode, on the CPU.

    Initial weights of the built-in task: ConvNet, LeNet and every bias as torch's default, uniform
    in +-1 / sqrt(fan in); the convolutions of the residual and VGG networks normal with variance
    2 / fan out (He et al. 2015, https://arxiv.org/abs/1502.01852), as in torchvision. Other tasks
    draw their own.

    Args:
        spec: What to build.
        generator: On the CPU. The only source of randomness.

    Raises:
        BadSetting: If the task or one of its options is wrong.
    """
    if spec.name == IMAGES:
        # Laid out without memory first: torch's own generator is neither used nor touched.
        model = copy.deepcopy(_layout(spec))
        model.to_empty(device="cpu")
        he = spec.task.title not in ("convnet", "lenet")
        for module in model.modules():
            _initialise(module, generator, he=he)
        return model
    seed = int(torch.randint(2**62, (), generator=generator))
    model = _made(spec.base, seed)
    still = _layout(spec.base).state_dict()
    model.load_state_dict({name: still[name] for name in traced(spec.base).frozen}, strict=False)
    _keep_frozen(model, traced(spec.base))
    if spec.compact:
        shrink_(model, from_text(spec.pruned))
    return model


def loaded(spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a model in training mode with the values of `state`.

    That of images holds the tensors themselves, not copies.

    Args:
        spec: What it is.
        state: What travels of it by name, all of it, on the CPU.

    Raises:
        BadSetting: If the spec is wrong, or names, shapes or dtypes are not the model's.
        CodeMismatch: If what does not travel is not the same here.
    """
    check_frozen(spec)
    known = _travels(spec)
    if state.keys() != known.keys():
        odd = sorted(set(state) ^ set(known))
        raise BadSetting(f"arrays must be those of the model {spec}, got {odd[:8]} amiss or beside")
    for name, (dtype, shape) in known.items():
        if state[name].dtype != dtype:
            raise BadSetting(f"array {name} must be {dtype}, got {state[name].dtype}")
        if state[name].shape != shape:
            raise BadSetting(
                f"arrays must fit the model {spec}, got {name} of shape "
                f"{tuple(state[name].shape)} in place of {tuple(shape)}"
            )
    if spec.name == IMAGES:
        return _holding(_layout(spec), state)
    # Of another's network, tensors may have two names, which a copy keeps together.
    model = copy.deepcopy(_layout(spec))
    model.load_state_dict(state, strict=False)
    return model.train()


@lru_cache(maxsize=32)
def _travels(spec: ModelSpec) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Return dtype and shape of what travels of a model, by name."""
    state = _layout(spec).state_dict()
    return {name: (state[name].dtype, state[name].shape) for name in traced(spec).travels}


def state_of(spec: ModelSpec, model: nn.Module) -> dict[str, Tensor]:
    """Return what travels of a model, by name, in the model's order."""
    state = model.state_dict()
    return {name: state[name] for name in traced(spec).travels}


def shaped(spec: ModelSpec) -> nn.Module:
    """Return a model of its own whose values nobody reads; that of images takes no memory.

    Raises:
        BadSetting: If the spec is wrong.
    """
    return copy.deepcopy(_layout(spec))


@lru_cache(maxsize=32)
def traced(spec: ModelSpec) -> Trace:
    """Return what a model is: its last layer, its convolutions, what of it travels.

    Raises:
        BadSetting: If the network does not take the task's own examples.
    """
    return _traced(_layout(spec), spec)


def _traced(model: nn.Module, spec: ModelSpec) -> Trace:
    inputs = spec.task.example(2)  # batch norm needs two
    if any(t.is_meta for t in model.state_dict().values()):
        inputs = inputs.to("meta")
    try:
        return trace(_twin(model), inputs)  # hooks on it are not those of another thread
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadSetting(
            f"network of task {spec.task.title} must take examples {tuple(inputs.shape)} of "
            f"{inputs.dtype}, as the task prepares them, got {type(error).__name__}: {error}"
        ) from error


def identified(spec: ModelSpec) -> ModelSpec:
    """Return the spec with the hash of what does not travel of its model.

    Raises:
        BadSetting: If the network cannot be built or used.
    """
    outputs, task = traced(spec).num_outputs, spec.task
    if outputs != spec.num_classes and not task.own_loss:
        raise BadSetting(
            f"network of task {task.title} must return (B, {spec.num_classes}), one number a "
            f"class, got {'something else' if outputs is None else f'(B, {outputs})'}"
        )
    return replace(spec, frozen=_frozen(spec.base))


def check_frozen(spec: ModelSpec) -> None:
    """Refuse a model of which something that does not travel is another here.

    Raises:
        CodeMismatch: If its hash differs.
    """
    own = _frozen(replace(spec.base, frozen=""))
    if own != spec.frozen:
        raise CodeMismatch(
            f"parameters of {spec} that do not travel must have the hash "
            f"{spec.frozen[:12] or '(none)'}, got {own[:12] or '(none)'}: build them from the same "
            "files, with the same release of torch, at every site"
        )


@lru_cache(maxsize=32)
def _frozen(spec: ModelSpec) -> str:
    names = traced(spec).frozen
    return frozen_digest(_layout(spec), names) if names else ""


def compact(spec: ModelSpec, state: Mapping[str, Tensor]) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Return the smaller model without `spec.pruned`, which computes the same.

    Args:
        spec: Of the model at full size. Its pruned channels count as 0 (`zero_`) whatever they are.
        state: What travels of it by name, all of it, on the CPU. Not changed.

    Returns:
        The spec of the compact model and what travels of it, copies, for `loaded`.

    Raises:
        BadSetting: If the model is compact already, `state` does not fit it, or `spec.pruned` may
            not be pruned (`prunable`).
    """
    if spec.compact:
        raise BadSetting(f"model must be at full size, got a compact one: {spec}")
    model = loaded(spec, state)
    shrink_(model, from_text(spec.pruned))
    smaller = replace(spec, compact=True)
    return smaller, {n: t.clone() for n, t in state_of(smaller, model).items()}


def _holding(module: M, state: Mapping[str, Tensor], prefix: str = "") -> M:
    """Return a copy of a module, in training mode, that has the tensors of `state` for its own.

    A message's handling begins with it: `_twin`, `load_state_dict` and `train` in one pass.
    """
    twin = object.__new__(type(module))
    for key, value in vars(module).items():
        # Parameters, buffers, children and hooks are dictionaries of a module.
        vars(twin)[key] = value.copy() if isinstance(value, dict) else value
    vars(twin)["training"] = True
    for name, weight in module._parameters.items():
        if weight is not None and (given := state.get(prefix + name)) is not None:
            twin._parameters[name] = nn.Parameter(given, requires_grad=weight.requires_grad)
    for name in module._buffers:
        if (given := state.get(prefix + name)) is not None:
            twin._buffers[name] = given
    for name, child in module._modules.items():
        if child is not None:
            twin._modules[name] = _holding(child, state, f"{prefix}{name}.")
    return twin


def _twin(module: M) -> M:
    """Return a copy that shares tensors and nothing else; `copy.deepcopy` is much slower."""
    twin = copy.copy(module)
    # Parameters, buffers, children and hooks are dictionaries of a module.
    vars(twin).update((k, v.copy()) for k, v in vars(module).items() if isinstance(v, dict))
    twin._modules = {k: None if m is None else _twin(m) for k, m in module._modules.items()}
    return twin


@lru_cache(maxsize=16)  # a node builds the same model for every message
def _layout(spec: ModelSpec) -> nn.Module:
    """Return the model as it stands before training; to be copied, never changed.

    That of images has no memory for its tensors.
    """
    if spec.name == IMAGES:
        with torch.device("meta"):
            model = spec.task.network()
    else:
        model = _made(spec.base, _FIRST)
        if not (spec.pruned or spec.compact):
            _keep_frozen(model, _traced(model, spec))
    if spec.pruned:
        pruned = prunable(from_text(spec.pruned), layout(model))
        if spec.compact:
            shrink_(model, pruned)
    return model


@lru_cache(maxsize=32)
def draws_at_random(spec: ModelSpec) -> bool:
    """Return whether the network draws from torch's own generator in training: dropout does."""
    if spec.name == IMAGES:
        return False
    model, inputs = copy.deepcopy(_layout(spec)).train(), spec.task.example(2)
    with _drawing, torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        model(inputs)
        return not torch.equal(before, torch.get_rng_state())


@contextmanager
def drawing(spec: ModelSpec, seed: int) -> Iterator[None]:
    """Work with a network that draws from torch's own generator, at a seed, and nobody beside it.

    Others need not wait: their draws come from generators of their own.
    """
    if not draws_at_random(spec):
        yield
        return
    with _drawing, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _keep_frozen(model: nn.Module, known: Trace) -> None:
    """Have norm layers stay in eval mode whose parameters are frozen: their statistics, too."""
    for name in known.frozen_norms:
        layer = model.get_submodule(name).eval()
        vars(layer)["train"] = _stay


def _stay(mode: bool = True) -> None:
    """Stand in for `Module.train` of a layer that stays as it is."""


def _made(spec: ModelSpec, seed: int) -> nn.Module:
    """Return a task's own network, with torch's generator at a seed."""
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = spec.task.network()
        except EffaceError:
            raise
        except Exception as error:
            raise BadSetting(
                f"network of task {spec.task.title} must be built, got {type(error).__name__}: "
                f"{placed(error)}"
            ) from error
    if not isinstance(model, nn.Module):
        raise BadSetting(
            f"network of task {spec.task.title} must be a torch module, got {type(model).__name__}"
        )
    return model


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
