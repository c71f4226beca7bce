"""Wrong labels for what is to be forgotten.

The perturbation samples of Xu et al. 2024, "Update Selective Parameters: Federated Machine
Unlearning Based on Model Explanation", https://arxiv.org/abs/2406.12516, section 4.4: examples of
the forgotten class under random wrong labels, which muddle what the model knows of it.
"""

import torch
from torch import Tensor


def wrong_labels(
    labels: Tensor, forget: Tensor, num_classes: int, generator: torch.Generator
) -> Tensor:
    """Return `labels` with those of the examples to forget drawn anew, never the true one.

    Args:
        labels: `(n,)` int64 in [0, K).
        forget: Boolean mask `(n,)`.
        num_classes: K, at least 2.
        generator: On the CPU; the only source of randomness.

    Returns:
        `(n,)` int64: uniform over the K - 1 other classes where `forget`, unchanged elsewhere.
    """
    shift = torch.randint(1, num_classes, labels.shape, generator=generator)
    return torch.where(forget, (labels + shift) % num_classes, labels)
