"""How near a made image is to real ones: PSNR and SSIM, with real images' own as the control.

Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP
2004, https://doi.org/10.1109/TIP.2003.819861: SSIM with its Gaussian window of 11 pixels, sigma
1.5.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW: Final = 11
SIGMA: Final = 1.5
C1, C2 = 0.01**2, 0.03**2


def psnr(image: Tensor, others: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio to each of others, in dB, `(n,)`; inf where equal.

    Args:
        image: `(C, H, W)`, pixels from 0 to 1.
        others: `(n, C, H, W)`.
    """
    return -10 * (others.double() - image.double()).square().flatten(1).mean(1).log10()


def ssim(image: Tensor, others: Tensor) -> Tensor:
    """Return the structural similarity to each of others, `(n,)`, at most 1.

    Args:
        image: `(C, H, W)`, pixels from 0 to 1; H and W at least 11.
        others: `(n, C, H, W)`.

    Raises:
        ValueError: If they are smaller.
    """
    if min(image.shape[-2:]) < WINDOW:
        raise ValueError(f"images must be {WINDOW} pixels high and wide, got {tuple(image.shape)}")
    a, b = image.double()[None], others.double()
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    together = _blurred(a * b) - mean_a * mean_b
    found = (2 * mean_a * mean_b + C1) * (2 * together + C2)
    found = found / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))
    return found.flatten(1).mean(1)


def nearest(image: Tensor, others: Tensor) -> tuple[float, float, int]:
    """Return PSNR and SSIM to the nearest of others by PSNR, and its place."""
    distances = psnr(image, others)
    place = int(distances.argmax())
    return float(distances[place]), float(ssim(image, others[place : place + 1])), place


def _blurred(images: Tensor) -> Tensor:
    places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    line = (-(places**2) / (2 * SIGMA**2)).exp()
    line = line / line.sum()
    channels = images.shape[1]
    window = (line[:, None] * line[None, :]).expand(channels, 1, WINDOW, WINDOW)
    return conv2d(images, window.to(images.device), groups=channels)
