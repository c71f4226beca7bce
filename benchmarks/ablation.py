"""Every channel's effect at once, against one forward pass for each channel of ResNet-20.

    python benchmarks/ablation.py

Random images, weights as built, uneven norms; one thread each. The slow way takes some minutes.
`--winograd` shows instead what our own way of small convolutions gains over PyTorch's, in processor
seconds of the one thread.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.channels.ablation import Effects, ablation
from client.channels.convolution import Convolution, Winograd
from client.channels.layout import layout
from client.learning.models import build
from client.learning.networks import Classifier
from client.learning.spec import image_model
from client.memory import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="images of 3x32x32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--own-malloc", action="store_true", help="as the C library comes")
    parser.add_argument("--winograd", action="store_true", help="with and without it, fast way")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    if not options.own_malloc:
        keep_freed_memory()  # as Efface's processes do: it helps the slow way more
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(options.images, 3, 32, 32, generator=draws)
    model = uneven(options.model, draws)
    with torch.no_grad():
        labels = model(images[:256]).argmax(dim=1).repeat(-(-options.images // 256))
    labels = labels[: options.images]
    labels[::3] = (labels[::3] + 1) % 10  # a third wrong

    ablation(model, images[:2], labels[:2])  # what happens once: memory, code paths
    if options.winograd:
        layers()
        whole(model, images, labels)
        return
    fast, fast_seconds = timed(lambda: ablation(model, images, labels))
    slow, slow_seconds = timed(lambda: one_pass_a_channel(model, images, labels))

    accuracy = max(float((fast.accuracy[k] - slow.accuracy[k]).abs().max()) for k in slow.accuracy)
    loss = max(float((fast.loss[k] - slow.loss[k]).abs().max()) for k in slow.loss)
    channels = sum(len(effects) for effects in slow.loss.values())
    print(
        f"{options.model}: {channels} channels, {options.images} images, {options.threads} thread"
    )
    print(f"one forward pass a channel  {slow_seconds:8.1f} s")
    print(f"ablation                    {fast_seconds:8.1f} s, {slow_seconds / fast_seconds:.1f}x")
    same = "the same" if accuracy < 1e-9 and loss < 1e-4 else "DIFFERENT"
    print(f"effects are {same}: largest difference {accuracy:.2g} points, {loss:.1g} nats")


@torch.no_grad()
def layers() -> None:
    """Print what one convolution takes each way: the fastest of five, as ablation calls it."""
    for channels, size, batch in ((64, 8, 64), (128, 8, 32), (128, 4, 64), (256, 4, 32)):
        layer = nn.Conv2d(channels, channels, 3, padding=1).eval()
        last = torch.channels_last
        maps = torch.randn(batch, channels, size, size).contiguous(memory_format=last)
        ours = Winograd(layer.weight, layer.bias, size)
        theirs = layer.to(memory_format=last)  # type: ignore[call-overload]
        own, usual = (min(spent(way, maps) for _ in range(5)) for way in (ours, theirs))
        print(
            f"{batch} maps of {channels}x{size}x{size}: PyTorch {1e3 * usual:.2f} ms, "
            f"Winograd {1e3 * own:.2f} ms, {usual / own:.2f}x"
        )


def whole(model: Classifier, images: Tensor, labels: Tensor) -> None:
    """Print what all channels' effects take each way, in turns."""
    usual_way = Convolution._best_way
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(3):
        for name, found in seconds.items():
            if name == "without":
                Convolution._best_way = direct  # type: ignore[method-assign]
            started = time.thread_time()
            ablation(model, images, labels)
            found.append(time.thread_time() - started)
            Convolution._best_way = usual_way  # type: ignore[method-assign]
    own, without_it = min(seconds["with"]), min(seconds["without"])
    print(f"all effects: without {without_it:.2f} s, with {own:.2f} s, {without_it / own:.2f}x")


def direct(self: Convolution, channels: int, height: int, width: int) -> Callable[[Tensor], Tensor]:
    """Return PyTorch's convolution, whatever the maps."""
    return partial(self._direct, weight=self.weight, bias=self.bias)


def spent(work: Callable[[Tensor], Tensor], maps: Tensor) -> float:
    """Return the thread's processor seconds of a call, of which one went before."""
    work(maps)
    started = time.thread_time()
    work(maps)
    return time.thread_time() - started


def uneven(name: str, draws: torch.Generator) -> Classifier:
    """Return a model in evaluation whose norms are not as built, and in which no class wins all."""
    model = build(image_model(name, num_classes=10), draws)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=draws)
            module.bias.data.normal_(0, 0.1, generator=draws)
            module.running_mean.normal_(0, 0.1, generator=draws)
            module.running_var.uniform_(0.5, 1.5, generator=draws)
    model.eval()
    with torch.no_grad():
        some = torch.randn(64, 3, 32, 32, generator=draws)
        model.classifier.bias -= model(some).mean(dim=0)
    return model


def timed(work: Callable[[], Effects]) -> tuple[Effects, float]:
    start = time.perf_counter()
    effects = work()
    return effects, time.perf_counter() - start


@torch.no_grad()
def one_pass_a_channel(model: Classifier, images: Tensor, labels: Tensor) -> Effects:
    """Return the effects found by zeroing one channel after another behind its norm."""
    modules = dict(model.named_modules())
    right, losses = scored(model(images), labels)
    effects = Effects({}, {})
    for layer in layout(model)[:-1]:
        place = modules[layer.tensors[-1].rpartition(".")[0]]  # the norm's, if there is one
        after = [without(model, place, c, images, labels) for c in range(layer.num_channels)]
        effects.accuracy[layer.name] = torch.tensor([right - a for a, _ in after])
        effects.loss[layer.name] = torch.tensor([b - losses for _, b in after])
    return effects


def without(
    model: Classifier, place: nn.Module, channel: int, images: Tensor, labels: Tensor
) -> tuple[float, float]:
    def zero(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        output[:, channel] = 0

    hook = place.register_forward_hook(zero)
    logits = model(images)
    hook.remove()
    return scored(logits, labels)


def scored(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy in percent and mean loss."""
    right = int((logits.argmax(dim=1) == labels).sum())
    return 100 * right / len(labels), float(cross_entropy(logits.double(), labels))


if __name__ == "__main__":
    main()
