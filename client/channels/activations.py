"""How far each class activates each channel of a model's convolutions.

Shapes: n images, C channels, K classes.
"""

from functools import partial

import torch
from torch import Tensor, nn

from client.errors import EffaceError
from client.learning.training import Pick


@torch.no_grad()
def class_activations(
    model: nn.Module, pick: Pick, labels: Tensor, num_classes: int, *, batch_size: int = 256
) -> tuple[dict[str, Tensor], Tensor]:
    """Return how far each class activates each channel of each convolution, summed over images.

        A = AvgPool(ReLU(O)), O the output of the convolution, before its norm

    Sums and counts of several clients may be added: their quotient is the mean over all images.

    Args:
        model: Classifier. Evaluated, not changed.
        pick: From positions to images.
        labels: int64 `(n,)`, in `[0, K)`; the classes of the images at positions 0 to n - 1.
        num_classes: K.
        batch_size: Images a pass; the maps of one layer and one batch are held at a time.

    Returns:
        Sums, float64 `(K, C)`, by module path of the convolution in the order of the forward pass;
        and images by class, int64 `(K,)`. On the CPU.

    Raises:
        EffaceError: If the model has no convolution.

    Source: Wang et al. 2022, "Federated Unlearning via Class-Discriminative Pruning", section 4.1,
    https://arxiv.org/abs/2110.11794
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if not layers:
        raise EffaceError(
            f"model must have a convolution, got a {type(model).__name__} without one; "
            "its channels cannot be scored by their activation"
        )
    labels = labels.cpu()
    sums = {
        name: torch.zeros(num_classes, layer.out_channels, dtype=torch.float64)
        for name, layer in layers.items()
    }
    seen: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Module, inputs: tuple[Tensor], maps: Tensor) -> None:
        seen[name] = maps.relu().mean(dim=(2, 3))

    was_training = model.training
    hooks = [layer.register_forward_hook(partial(watch, name)) for name, layer in layers.items()]
    try:
        model.eval()
        for batch in torch.arange(len(labels)).split(batch_size):
            images, _ = pick(batch)
            model(images)
            for name, activations in seen.items():
                sums[name].index_add_(0, labels[batch], activations.double().cpu())
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return sums, torch.bincount(labels, minlength=num_classes)
