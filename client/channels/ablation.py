"""What a model loses without each of its channels, exactly and in far less than a pass for each.

Shapes: n and B images, C channels, K classes, H rows, W columns, P copies.

It is long because the pass that copies only what differs needs a rule for each kind of layer.
"""

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from client.channels.compact import Spread
from client.channels.convolution import Convolution
from client.errors import EffaceError


@dataclass(frozen=True)
class Effects:
    """What the model loses without one channel, for each channel of each hidden layer.

    Attributes:
        accuracy: By layer, a Conv2d or Linear in the order of the forward pass: accuracy with the
            channel minus accuracy without it, in percent of the images, float64 `(C,)`.
        loss: Mean cross-entropy in nats without the channel minus with it, float64 `(C,)`.
    """

    accuracy: dict[str, Tensor]
    loss: dict[str, Tensor]


@torch.no_grad()
def ablation(
    model: nn.Module, images: Tensor, labels: Tensor, *, max_batch: int = 2**20
) -> Effects:
    """Return what the model loses when one channel's output behind its norm is 0.

    The same as one pass over the images for each channel, but many times faster (see
    benchmarks/ablation.py), because

    - a copy of the model without a channel starts where that channel is read: all before is shared;
    - the layer that reads it is linear: its output is the shared one plus what one channel adds;
    - images on which the channel makes no difference where it is read are left out;
    - BatchNorm is folded into the convolution, and small maps are convolved by Winograd's method.

    Sums are taken in another order than the model takes them, so that logits differ from its own
    by some rounding. That is measured; where the right class and the best other one are as close
    as `CLOSE` times that, the model itself is asked. So accuracies are the model's, and a channel
    that makes no difference has an effect of exactly 0.

    Args:
        model: Classifier from images `(B, C, H, W)` to logits `(B, K)`, a composition of modules
            and functions without parameters that treats each image by itself. Evaluated, not
            changed.
        images: Float32 `(n, C, H, W)`, on the model's device.
        labels: int64 `(n,)`, in `[0, K)`, on the same device.
        max_batch: Numbers in the largest map of a batch of copies; some ten such maps are held at
            a time, and all maps of a part of the images, 16 times as many. At least one copy and
            one image are, whatever their size.

    Returns:
        Effects on the CPU, for every layer but the last.

    Raises:
        EffaceError: If there are no images.

    Source: Xu et al. 2024, "Update Selective Parameters: Federated Machine Unlearning Based on
    Model Explanation", definition 4 and algorithm 1, https://arxiv.org/abs/2406.12516
    """
    if not len(images):
        raise EffaceError("images must hold at least one, got none: effects would be unknown")
    was_training = model.training
    model.eval()
    try:
        return _ablation(model, images, labels, max_batch)
    finally:
        model.train(was_training)


CLOSE = 16
"""Times the rounding of the logits, relative to the largest, that counts as a close decision."""


def _ablation(model: nn.Module, images: Tensor, labels: Tensor, max_batch: int) -> Effects:
    network = _Network(model, images[:1])
    lost = {
        name: torch.zeros(network.sizes[node][0], dtype=torch.int64, device=labels.device)
        for name, node in network.layers.items()
    }
    loss = {name: torch.zeros_like(zeros, dtype=torch.float64) for name, zeros in lost.items()}
    part = max(1, 16 * max_batch // sum(size.numel() for size in network.sizes.values()))
    for some, classes in zip(images.split(part), labels.split(part), strict=True):
        base = network.forward(some)
        logits = model(some)
        rounding = float((logits - base[network.logits]).abs().max() / logits.abs().max())
        tolerance = CLOSE * max(rounding, torch.finfo(logits.dtype).eps)
        right = logits.argmax(dim=1) == classes
        losses = cross_entropy(base[network.logits], classes, reduction="none")
        for name in network.layers:
            for channels, rows, found in network.copies(name, base, max_batch):
                still = found.argmax(dim=1) == classes[rows]
                close = _close(found, classes[rows], tolerance).nonzero().squeeze(1)
                most = max(1, max_batch // network.largest)
                for few in close.split(most) if len(close) else ():
                    asked = _without(model, network.zeroed[name], some[rows[few]], channels[few])
                    still[few] = asked.argmax(dim=1) == classes[rows[few]]
                lost[name].index_add_(0, channels, right[rows].long() - still.long())
                rise = cross_entropy(found, classes[rows], reduction="none") - losses[rows]
                loss[name].index_add_(0, channels, rise.double())
    return Effects(
        {name: 100.0 * total.double().cpu() / len(images) for name, total in lost.items()},
        {name: total.cpu() / len(images) for name, total in loss.items()},
    )


def _close(logits: Tensor, labels: Tensor, tolerance: float) -> Tensor:
    """Return where the right class and the best other one are close, bool `(P,)`."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1, keepdim=True)
    return ((own - others).abs() <= tolerance * logits.abs().amax(dim=1, keepdim=True)).squeeze(1)


def _without(model: nn.Module, module: str, images: Tensor, channels: Tensor) -> Tensor:
    """Return the model's own logits, `(B, K)`, each image without its own channel of `module`."""

    def zero(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        output = output.clone()
        output[torch.arange(len(channels), device=channels.device), channels] = 0
        return output

    hook = model.get_submodule(module).register_forward_hook(zero)
    try:
        return cast(Tensor, model(images))
    finally:
        hook.remove()


@dataclass(frozen=True)
class _Apart:
    """A value of all copies at once, as long as no channel has been read by another.

    Attributes:
        values: As the base's, `(B, C, H, W)` or `(B, C)`, but in each channel what the copy that
            changed it has there.
        starts: The first channel that the copy without channel c changed, for each c.
        span: How many it changed from there on; more than one if maps were flattened.
    """

    values: Tensor
    starts: Sequence[int]
    span: int = 1

    def changed(self, channel: int) -> slice:
        """Return the channels that the copy without `channel` changed."""
        return slice(self.starts[channel], self.starts[channel] + self.span)


class _Network:
    """A model in evaluation as a graph of small steps, whose values can be reused.

    Attributes:
        nodes: Steps in the order of the forward pass, the images first.
        logits: The last one.
        layers: By module path of a hidden Conv2d or Linear, the step whose channels are zeroed.
        zeroed: By the same, the path of the module that takes that step in the model: the norm
            behind the layer, if there is one.
        sizes: By step, the shape of its value for one image.
        largest: Numbers in the largest.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self._modules = dict(model.named_modules())
        # On a CPU, convolutions of few channels are up to a third faster where channels come last
        # in memory, group norms several times slower.
        grouped = any(isinstance(module, nn.GroupNorm) for module in model.modules())
        self._order = torch.contiguous_format if grouped else torch.channels_last
        self._runs: dict[fx.Node, Callable[[Tensor], Tensor]] = {}
        self._adds: dict[fx.Node, Callable[[Tensor, slice], Tensor]] = {}
        self.layers: dict[str, fx.Node] = {}
        self.zeroed: dict[str, str] = {}
        graph = fx.Graph()
        self.logits: fx.Node = _recording(model, "")(fx.Proxy(graph.placeholder("images"))).node
        for node in list(graph.nodes):
            if isinstance(self._module(node), (nn.Conv2d, nn.Linear)):
                self._add_layer(graph, node)
        self.layers = {n: node for n, node in self.layers.items() if node is not self.logits}
        self.nodes = list(graph.nodes)
        base = self.forward(image)
        self.sizes = {x: value.shape[1:] for x, value in base.items() if isinstance(value, Tensor)}
        self.largest = max(size.numel() for size in self.sizes.values())

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def _add_layer(self, graph: fx.Graph, node: fx.Node) -> None:
        """Prepare a layer, and take the norm behind it, if it can be folded, out of the graph."""
        name, layer = str(node.target), self._module(node)
        behind = next(iter(node.users), node)
        norm = self._module(behind)
        if len(node.users) != 1 or not isinstance(norm, (nn.BatchNorm2d, nn.GroupNorm)):
            behind, norm = node, None
        self.layers[name], self.zeroed[name] = behind, str(behind.target)
        if isinstance(layer, nn.Linear):
            matrix = layer.weight
            self._runs[node] = layer
            self._adds[node] = lambda change, inputs: change @ matrix[:, inputs].T
        elif isinstance(layer, nn.Conv2d):
            folded = norm if isinstance(norm, nn.BatchNorm2d) else None
            if folded is not None:
                behind.replace_all_uses_with(node)
                graph.erase_node(behind)
                self.layers[name] = node
            convolution = Convolution(layer, folded, self._order)
            self._runs[node] = convolution
            if layer.groups == 1:
                self._adds[node] = convolution.adds

    def forward(self, images: Tensor) -> dict[fx.Node, Any]:
        """Return the value of every step."""
        base: dict[fx.Node, Any] = {}
        for node in self.nodes:
            if node.op == "placeholder":
                base[node] = images.contiguous(memory_format=self._order)
            else:
                base[node] = self._run(node, base.__getitem__)
        return base

    def _run(self, node: fx.Node, get: Callable[[fx.Node], Any], *, in_place: bool = False) -> Any:
        """Return the value of a step, from those of the steps that it reads.

        Args:
            node: The step.
            get: From steps to their values.
            in_place: Whether a ReLU or an addition may write into its first argument.
        """
        arguments: tuple[Any, ...]
        named: dict[str, Any]
        arguments, named = cast(Any, fx.node.map_arg((node.args, node.kwargs), get))
        module = self._module(node)
        if node in self._runs:
            return self._runs[node](*arguments)
        if isinstance(module, nn.ReLU):  # not in place, unlike some in the model
            return arguments[0].relu_() if in_place else arguments[0].relu()
        if module is not None:
            return module(*arguments, **named)
        if node.target is operator.add and in_place:
            return arguments[0].add_(arguments[1])
        if node.op == "call_method":
            return getattr(arguments[0], str(node.target))(*arguments[1:], **named)
        return cast(Callable[..., Any], node.target)(*arguments, **named)

    def copies(
        self, name: str, base: Mapping[fx.Node, Any], max_batch: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield copies of the images without one channel each, in batches; none that cannot differ.

        Args:
            name: The layer of the channels.
            base: What `forward` returned for the images.
            max_batch: Numbers in the largest map of a batch.

        Yields:
            Channels and positions of the images, int64 `(P,)`, and logits `(P, K)`.
        """
        apart, dense = self._split(self.layers[name], base)
        border = {x for node in dense for x in node.all_input_nodes if x in apart}
        change = {x: (apart[x].values - base[x]).contiguous() for x in border}
        starts = apart[self.layers[name]].starts
        differ = torch.zeros(len(starts), len(base[self.logits]), dtype=torch.bool)
        for x, value in change.items():
            differing = value.ne(0).flatten(2).any(dim=2) if value.dim() > 2 else value.ne(0)
            by_channel = differing.t().cpu()
            for channel in starts:
                differ[channel] |= by_channel[apart[x].changed(channel)].any(dim=0)
        pairs = differ.nonzero().to(base[self.logits].device)
        size = max(self.sizes[node].numel() for node in dense)
        for some in pairs.split(max(1, max_batch // size)):
            channels, images = some.t().contiguous()
            yield channels, images, self._logits(dense, channels, images, base, apart, change)

    def _split(
        self, zeroed: fx.Node, base: Mapping[fx.Node, Any]
    ) -> tuple[dict[fx.Node, _Apart], list[fx.Node]]:
        """Return the values of steps that leave the channels apart, and the steps behind them."""
        starts = tuple(range(self.sizes[zeroed][0]))
        apart = {zeroed: _Apart(torch.zeros_like(base[zeroed]), starts)}
        dense: dict[fx.Node, None] = {}
        for node in self.nodes[self.nodes.index(zeroed) + 1 :]:
            inputs = node.all_input_nodes
            if not any(x in apart or x in dense for x in inputs):
                continue
            value = None
            if node is not self.logits and not any(x in dense for x in inputs):
                value = self._still_apart(node, apart, base)
            if value is None:
                dense[node] = None
            else:
                apart[node] = value
        return apart, list(dense)

    def _still_apart(
        self, node: fx.Node, apart: Mapping[fx.Node, _Apart], base: Mapping[fx.Node, Any]
    ) -> _Apart | None:
        """Return the value of a step for all copies at once; None if it mixes channels, or may."""
        first, *others = [apart[x] for x in node.all_input_nodes if x in apart]
        starts, span = first.starts, first.span
        module, target = self._module(node), node.target
        if any((x.starts, x.span) != (starts, span) for x in others):
            return None
        if isinstance(module, (nn.ReLU, nn.Identity)) or target is operator.add:
            pass
        elif first.values.dim() < 4:
            return None
        elif isinstance(module, Spread):
            starts = tuple(module.kept[c] for c in starts)
        elif isinstance(module, nn.Flatten) or (target, *node.args[1:]) == (torch.flatten, 1):
            area = first.values[0, 0].numel()
            starts, span = tuple(area * c for c in starts), area
        elif target is functional.pad:
            widths = cast(Sequence[int], node.args[1])  # of columns, rows, channels
            starts = tuple(c + widths[4] for c in starts) if len(widths) > 4 else starts
        elif target is operator.getitem:
            index = node.args[1]
            if not isinstance(index, tuple) or index[:2] != (slice(None), slice(None)):
                return None
        elif not isinstance(module, POOLS):
            return None
        values = self._run(node, lambda x: apart[x].values if x in apart else base[x])
        return _Apart(values, starts, span)

    def _logits(
        self,
        dense: Sequence[fx.Node],
        channels: Tensor,
        images: Tensor,
        base: Mapping[fx.Node, Any],
        apart: Mapping[fx.Node, _Apart],
        change: Mapping[fx.Node, Tensor],
    ) -> Tensor:
        """Return the logits `(P, K)` of `images` without `channels`, int64 `(P,)`, sorted."""
        values: dict[fx.Node, Tensor] = {}
        found, counts = channels.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0).tolist()
        rows = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        groups = list(zip(found.tolist(), rows, strict=True))

        def get(node: fx.Node) -> Any:
            if node in values or not isinstance(base[node], Tensor):
                return values.get(node, base[node])
            value = _rows(base[node], images)
            if node in apart:
                for channel, here in groups:
                    changed = apart[node].changed(channel)
                    value[here, changed] = apart[node].values[images[here], changed]
            return value

        last_reader = {x: node for node in dense for x in node.all_input_nodes}
        for node in dense:
            source = node.all_input_nodes[0]
            if source in apart and node in self._adds:
                value = _rows(base[node], images)
                for channel, here in groups:
                    changed = apart[source].changed(channel)
                    value[here].add_(
                        self._adds[node](change[source][images[here], changed], changed)
                    )
                values[node] = value
            else:
                spare = source in values and len(source.users) == 1 and self._is_new(source)
                values[node] = self._run(node, get, in_place=spare)
            for x in node.all_input_nodes:
                if last_reader[x] is node:
                    values.pop(x, None)
        return values[self.logits]

    def _is_new(self, node: fx.Node) -> bool:
        """Return whether the value of a step is never a view of another's."""
        norm = isinstance(self._module(node), (nn.BatchNorm2d, nn.GroupNorm))
        return norm or node in self._runs or node.target is operator.add


POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)


class _Recorder(nn.Module):
    """Stands in for a module without children: writes its call into the graph."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, value: fx.Proxy) -> fx.Proxy:
        return fx.Proxy(value.node.graph.call_module(self.path, (value.node,)))


def _recording(module: nn.Module, path: str) -> nn.Module:
    """Return a copy of `module` that writes what it does into the graph of its argument.

    torch.fx's own tracer would catch the calls of all modules of the process meanwhile, also those
    of other threads.
    """
    if not module._modules:
        return _Recorder(path)
    twin = copy.copy(module)
    twin._modules = {
        name: child and _recording(child, f"{path}.{name}".lstrip("."))
        for name, child in module._modules.items()
    }
    return twin


def _rows(maps: Tensor, rows: Tensor) -> Tensor:
    """Return `maps[rows]`, copied in the order of the memory, which is several times faster."""
    order = sorted(range(maps.dim()), key=maps.stride, reverse=True)
    taken = maps.permute(order).index_select(order.index(0), rows)
    return taken.permute([order.index(d) for d in range(maps.dim())])
