"""Attention by its formula: torch's fused kernels can be differentiated once only.

Matching goes down to the inputs through the gradients, and a Hessian's diagonal through them, too.
torch's own switch between its kernels (`torch.nn.attention.sdpa_kernel`) is one for all threads of
the process; this one is the thread's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from client.errors import BadSetting

_FUSED = (scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention)


class ByFormula(TorchFunctionMode):
    """Computes softmax(q k^T / sqrt(d)) v step by step, meanwhile."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, or in the place of attention the operations that it is made of."""
        if func in _FUSED:
            return _attention(*args, **(kwargs or {}))
        if func is multi_head_attention_forward and kwargs and not kwargs.get("need_weights", True):
            # What it calls does not come by here. Asked for weights, it takes the formula itself.
            return func(*args, **{**kwargs, "need_weights": True})[0], None
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_attention_math(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    return found[0]


@contextmanager
def differentiated_twice() -> Iterator[None]:
    """Tell clearly of an operation that has no second derivative.

    Raises:
        BadSetting: If there is one in what runs meanwhile.
    """
    try:
        yield
    except RuntimeError as error:
        told = str(error)
        if "is not implemented" not in told and "double backward" not in told.lower():
            raise
        raise BadSetting(
            f"network must be made of operations with second derivatives, got one without: {told}; "
            "choose a method without them"
        ) from error
