"""On a GPU, have the same work give the same bits each time.

A GPU adds numbers in whichever order its threads come, unless told otherwise. torch's switch for
that is one for the whole process: it is on while work goes on here, and as it was afterwards.
https://docs.pytorch.org/docs/stable/notes/randomness.html
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_working = 0  # pieces of work that go on, from several threads of an inline engine, say
_before: tuple[int, bool, bool] = (0, False, False)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Work on a device; on a GPU by operations that give the same bits each time.

    Of an operation that has no such form, torch warns, and it is done all the same. A CPU needs
    nothing of this.
    """
    if device.type != "cuda":
        yield
        return
    _begin()
    try:
        yield
    finally:
        _end()


def _begin() -> None:
    global _working, _before
    with _lock:
        if not _working:
            _before = _switches()
            # cuBLAS reads it as it starts: a fixed workspace, hence a fixed order of sums.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # By another name than `use_deterministic_algorithms`, which loads a compiler.
            _switch(1, benchmark=False, fill=False)
        _working += 1


def _end() -> None:
    global _working
    with _lock:
        _working -= 1
        if not _working:
            mode, benchmark, fill = _before
            _switch(mode, benchmark=benchmark, fill=fill)


def _switches() -> tuple[int, bool, bool]:
    return (
        torch.get_deterministic_debug_mode(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )


def _switch(mode: int, *, benchmark: bool, fill: bool) -> None:
    torch.set_deterministic_debug_mode(mode)
    torch.backends.cudnn.benchmark = benchmark
    # Filling what will be written anyway is for finding faults.
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
