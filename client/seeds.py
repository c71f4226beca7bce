"""Random numbers: one generator for every (seed, phase, round, client), and none shared.

Two processes that hold the same four values draw the same numbers, whatever ran before in them;
this is what makes the same seed give the same weights on every engine.
"""

import hashlib

import torch


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and on every part of `path`, in order."""
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Return a new CPU generator for one purpose.

    Args:
        seed: The run's seed.
        path: What the numbers are for: the phase, the round, the client's name.
    """
    return torch.Generator().manual_seed(derive(seed, *path))
