"""What a network is, found by running it once."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Trace:
    head: str | None
    stem: tuple[str, ...]
    convolutions: tuple[str, ...]
    trainable: tuple[str, ...]
    travels: tuple[str, ...]
    frozen: tuple[str, ...]
    frozen_norms: tuple[str, ...]
    float_inputs: bool
    mixes_examples: bool


@torch.no_grad()
def trace(model: nn.Module, inputs: Tensor) -> Trace:
    names = {module: name for name, module in model.named_modules()}
    calls: list[tuple[nn.Module, Any]] = []
    hooks = [
        m.register_forward_hook(lambda m, i, o: calls.append((m, o)))
        for m in names
        if m is not model
    ]
    modes = {m: m.training for m in names}
    model.eval()
    try:
        outputs = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for m, mode in modes.items():
            m.training = mode
    linear = [(m, o) for m, o in calls if isinstance(m, nn.Linear)]
    head = None
    if linear and linear[-1][1] is outputs and sum(m is linear[-1][0] for m, _ in linear) == 1:
        head = names[linear[-1][0]]
    stem: list[str] = []
    convolutions: list[str] = []
    for m, _ in calls:
        if isinstance(m, nn.Conv2d):
            convolutions.append(names[m])
        if len(convolutions) < 2 and any(True for _ in m.parameters(recurse=False)):
            stem.append(names[m])
    trainable = tuple(n for n, p in model.named_parameters() if p.requires_grad)
    norms = [m for m in names if isinstance(m, _BatchNorm) and m.track_running_stats]
    own = {m: list(m.parameters(recurse=False)) for m in norms}
    still = [m for m in norms if own[m] and not any(p.requires_grad for p in own[m])]
    moving = {
        f"{names[m]}.{n}".lstrip(".")
        for m in norms
        if m not in still
        for n, _ in m.named_buffers(recurse=False)
    }
    state = list(model.state_dict())
    travels = tuple(n for n in state if n in trainable or n in moving)
    return Trace(
        head=head,
        stem=tuple(stem) if len(convolutions) > 1 else (),
        convolutions=tuple(convolutions),
        trainable=trainable,
        travels=travels,
        frozen=tuple(n for n in state if n not in travels),
        frozen_norms=tuple(names[m] for m in still),
        float_inputs=inputs.is_floating_point(),
        mixes_examples=any(m not in still for m in norms),
    )


def features_and_logits(model: nn.Module, head: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []
    hook = model.get_submodule(head).register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    try:
        logits = model(inputs)
    finally:
        hook.remove()
    return seen[-1], logits


def frozen_digest(model: nn.Module, names: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    state = model.state_dict()
    for name in names:
        array = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)};".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
