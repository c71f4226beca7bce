"""What a network is, found by running it once: its last layer, its first, what of it is trained.

Users bring networks of their own, whose layers have any names. What a method needs of one is asked
here, before any work.

It is long because each fact about a network has its own exceptions.

Shapes: B examples, F features, K outputs.
"""

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from client.errors import BadSetting, EffaceError

PASSING: Final = (nn.Identity, nn.Flatten)  # may stand behind the last layer: they change no number


@dataclass(frozen=True)
class Trace:
    """What a network is.

    Attributes:
        head: Name of the Linear whose output, (B, K), is the network's: the last call, and the only
            one of this layer. None if the output is anything else. "" is the network itself.
        num_outputs: K; None if the output is no tensor (B, K).
        stem: Modules with parameters of their own that are done before the second Conv2d begins.
            Empty with fewer than two convolutions: the stem would be all of the network.
        convolutions: Names of Conv2d in the order of their first calls.
        trainable: Names of parameters with `requires_grad`; one that has several, the first alone.
        travels: Names in the order of the state dict of what changes in training: the trainable
            parameters, and the buffers of norms with running statistics that are not frozen.
        frozen: The other names in the state dict, but for second names of what travels.
        aliases: Second names in the state dict, each with the first one of the same tensor.
        frozen_norms: Norms with running statistics to be kept in eval mode in training: all their
            parameters are frozen; of those without any, all of the nearest module around them.
        float_inputs: Whether a gradient can flow to the inputs.
        others: Modules with trainable parameters of 2 dimensions or more whose gradient does not
            follow from what an ordinary Conv2d or Linear saw and gave (`is_plain`): Embedding,
            Conv1d, LSTM, MultiheadAttention, a layer that is never called.
        shared: Names of parameters that two modules own, or whose module is called more than once.
        mixes_examples: Whether the output of an example depends on others in training: by
            BatchNorm that is not frozen, or has no running statistics.
    """

    head: str | None
    num_outputs: int | None
    stem: tuple[str, ...]
    convolutions: tuple[str, ...]
    trainable: tuple[str, ...]
    travels: tuple[str, ...]
    frozen: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...]
    frozen_norms: tuple[str, ...]
    float_inputs: bool
    others: tuple[str, ...]
    shared: tuple[str, ...]
    mixes_examples: bool


@torch.no_grad()
def trace(model: nn.Module, inputs: Tensor) -> Trace:
    """Return what a network is, by one forward pass.

    Args:
        model: Left as it is, modes included. It may be without memory, on the meta device, if its
            forward pass asks for no values.
        inputs: A batch as in training, `(B, ...)`, on the model's device.

    Raises:
        BadSetting: If the network keeps state that is no tensor.
        Exception: Whatever the forward pass raises.
    """
    names = {module: name for name, module in model.named_modules()}
    begun, done, outputs = _run(model, inputs)
    calls = [module for module, _, _ in done]
    tensor = isinstance(outputs, Tensor) and outputs.dim() == 2
    frozen_norms = [module for module in names if _is_frozen_norm(model, module)]
    state = model.state_dict(keep_vars=True)
    firsts = _first_names(state)
    moving = _moving(model, frozen_norms)
    travels = tuple(n for n, first in firsts.items() if n == first and id(state[n]) in moving)
    return Trace(
        head=_head(names, done, outputs) if tensor else None,
        num_outputs=outputs.shape[1] if tensor else None,
        stem=tuple(names[module] for module in _stem(begun)),
        convolutions=tuple(dict.fromkeys(names[m] for m in calls if isinstance(m, nn.Conv2d))),
        trainable=tuple(name for name, p in model.named_parameters() if p.requires_grad),
        travels=travels,
        frozen=tuple(n for n, first in firsts.items() if first not in travels),
        aliases=tuple((n, first) for n, first in firsts.items() if n != first),
        frozen_norms=tuple(names[module] for module in frozen_norms),
        float_inputs=inputs.is_floating_point(),
        others=tuple(
            name
            for module, name in names.items()
            if not (is_plain(module) and module in calls)
            and any(p.requires_grad and p.dim() > 1 for p in module.parameters(recurse=False))
        ),
        shared=_shared(model, calls),
        mixes_examples=mixes_examples(model),
    )


def is_plain(module: nn.Module) -> bool:
    """Return whether a layer is a Conv2d or Linear as torch has it.

    The gradient of its weight then follows from its inputs and the gradient of its outputs. Not so
    in subclasses with another forward pass, under weight norm, or where a convolution pads with
    anything but a number of zeros.
    """
    if "forward" in vars(module) or not set(module._parameters) <= {"weight", "bias"}:
        return False
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return False
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def mixes_examples(model: nn.Module) -> bool:
    """Return whether BatchNorm makes an example's output depend on others in training."""
    return any(
        isinstance(module, _BatchNorm)
        and not (_is_frozen_norm(model, module) and module.running_mean is not None)
        for module in model.modules()
    )


def keeps_statistics(model: nn.Module) -> bool:
    """Return whether a norm layer that is not frozen keeps running statistics of its inputs."""
    return any(
        isinstance(module, _NormBase)
        and module.running_mean is not None
        and not _is_frozen_norm(model, module)
        for module in model.modules()
    )


def train_mode(model: nn.Module) -> None:
    """Put a network in training mode, but for frozen norms, which use and keep their statistics."""
    model.train()
    for module in model.modules():
        if _is_frozen_norm(model, module):
            module.eval()


@contextmanager
def frozen_norms_still(model: nn.Module) -> Iterator[None]:
    """Have frozen norms in eval mode meanwhile."""
    norms = [m for m in model.modules() if m.training and _is_frozen_norm(model, m)]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def features_and_logits(model: nn.Module, head: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input of the last layer and the network's output, from one pass, with gradients.

    Args:
        model: Not changed. It gets a hook meanwhile: no other thread may use the same object.
        head: Name of the last layer, as `Trace` has it.
        inputs: `(B, ...)`.

    Returns:
        Features `(B, F)` and logits `(B, K)`.

    Raises:
        EffaceError: If the last layer was not called exactly once.
    """
    with inputs_of(model, head) as seen:
        logits = cast(Tensor, model(inputs))
    return only(seen, head), logits


@contextmanager
def inputs_of(model: nn.Module, head: str | None) -> Iterator[list[Tensor]]:
    """Collect what a layer gets meanwhile, an entry a call; None collects nothing."""
    seen: list[Tensor] = []
    if head is None:
        yield seen
        return

    def keep(layer: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append(given[0] if given else named["input"])

    hook = model.get_submodule(head).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def only(seen: list[Tensor], head: str) -> Tensor:
    """Return the one entry of what `inputs_of` collected.

    Raises:
        EffaceError: If there is another number of them.
    """
    if len(seen) != 1:
        raise EffaceError(f"last layer '{head}' must be called once in a pass, got {len(seen)}")
    return seen[0]


def frozen_digest(model: nn.Module, names: Collection[str]) -> str:
    """Return the SHA-256 of tensors: their names, dtypes, shapes and bytes.

    Args:
        model: Not changed.
        names: In the state dict; their order is of no account.

    Returns:
        64 hexadecimal digits.

    Raises:
        BadSetting: If a tensor has no memory.
    """
    state = model.state_dict()
    digest = hashlib.sha256()
    for name in sorted(names):
        tensor = state[name].detach()
        if tensor.is_meta:
            raise BadSetting(f"parameter {name} must have values to be hashed, got none")
        told = f"{len(name)}:{name} {tensor.dtype} {tuple(tensor.shape)};"
        digest.update(told.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---- the pass -----------------------------------------------------------------------------------


Calls = list[tuple[nn.Module, Any, int]]
"""Modules in the order in which they end, with their outputs, and writes into these by then."""


def _run(model: nn.Module, inputs: Tensor) -> tuple[list[tuple[nn.Module, bool]], Calls, Any]:
    """Return begins (True) and ends (False) of calls, the ended calls, and the output."""
    steps: list[tuple[nn.Module, bool]] = []
    done: Calls = []

    def begin(module: nn.Module, given: tuple[Any, ...]) -> None:
        steps.append((module, True))

    def end(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        steps.append((module, False))
        done.append((module, output, output._version if isinstance(output, Tensor) else 0))

    modes = [(module, module.training) for module in model.modules()]
    # Would look at the values of a padding mask, and pass its layers nested tensors.
    nesting = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder)]
    nested = [encoder.use_nested_tensor for encoder in nesting]
    hooks = [module.register_forward_pre_hook(begin) for module, _ in modes]
    hooks += [module.register_forward_hook(end) for module, _ in modes]
    try:
        model.eval()
        for encoder in nesting:
            encoder.use_nested_tensor = False
        outputs = model(inputs)
    finally:
        for encoder, was in zip(nesting, nested, strict=True):
            encoder.use_nested_tensor = was
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return steps, done, outputs


def _head(names: dict[nn.Module, str], done: Calls, outputs: Tensor) -> str | None:
    """Return the last layer's name, if its output is the network's."""
    parts = [
        (module, output, version)
        for module, output, version in done
        if not isinstance(module, PASSING) and not any(True for _ in module.children())
    ]
    if not parts:
        return None
    last, output, version = parts[-1]
    if not isinstance(last, nn.Linear) or not is_plain(last):
        return None
    if output is not outputs or version != outputs._version:  # or written into since
        return None
    return names[last] if sum(module is last for module, *_ in parts) == 1 else None


def _stem(steps: list[tuple[nn.Module, bool]]) -> list[nn.Module]:
    """Return the modules with parameters of their own that end before the second Conv2d begins.

    One that ends later, and has the second convolution inside, is no part: to freeze it would
    freeze that convolution, too.
    """
    found: dict[nn.Module, None] = {}
    seen: set[nn.Module] = set()
    for module, begins in steps:
        if begins and isinstance(module, nn.Conv2d):
            seen.add(module)
            if len(seen) == 2:
                return list(found)
        if not begins and any(True for _ in module.parameters(recurse=False)):
            found[module] = None
    return []


# ---- what is trained ----------------------------------------------------------------------------


def _is_frozen_norm(model: nn.Module, module: nn.Module) -> bool:
    """Return whether a module is a norm with running statistics that training leaves as it is."""
    if not isinstance(module, _NormBase) or module.running_mean is None:
        return False
    own = list(module.parameters())
    if not own:  # what it normalises decides
        own = _parameters_around(model, module)
    return not any(parameter.requires_grad for parameter in own)


def _parameters_around(model: nn.Module, module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the smallest module around `module` that has any."""
    around = [
        list(outer.parameters())
        for outer in model.modules()
        if any(inner is module for inner in outer.modules())
    ]
    return min((own for own in around if own), key=len, default=[])


def _moving(model: nn.Module, frozen_norms: Collection[nn.Module]) -> set[int]:
    """Return the identities of the tensors that training changes."""
    moving = {id(p) for p in model.parameters() if p.requires_grad}
    for module in model.modules():
        if isinstance(module, _NormBase) and module not in frozen_norms:
            moving |= {id(buffer) for buffer in module.buffers(recurse=False)}
    return moving


def _first_names(state: dict[str, Any]) -> dict[str, str]:
    """Return, for every name in a state dict, the first name of the same tensor."""
    firsts: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise BadSetting(
                f"network must keep its state in parameters and buffers, got {name}, "
                f"a {type(value).__name__}"
            )
        found[name] = firsts.setdefault(id(value), name)
    return found


def _shared(model: nn.Module, calls: list[nn.Module]) -> tuple[str, ...]:
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            times = max(1, sum(called is module for called in calls))
            uses[id(parameter)] = uses.get(id(parameter), 0) + times
    return tuple(name for name, p in model.named_parameters() if uses[id(p)] > 1)
