"""The inline engine: how many clients compute side by side."""

import os
from typing import Any

import pytest
import torch

from server.nodes.engines import inline
from server.nodes.engines.inline import InlineGrid, side_by_side
from tests.small_job import train


def test_on_a_gpu_two_clients_compute_side_by_side_and_on_a_cpu_one_a_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert (side_by_side("cpu"), side_by_side("cuda")) == (16, 2)
    with InlineGrid(lambda message, context: message, 3) as grid:
        assert grid.workers == 16


@pytest.mark.parametrize(
    ("told", "there", "workers"),
    [("auto", True, 2), ("cuda:0", True, 2), ("cpu", True, 16), ("auto", False, 16)],
)
def test_a_request_goes_by_the_device_that_its_clients_compute_on(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, told: str, there: bool, workers: int
) -> None:
    class Found(Exception):
        """How many were asked for; nothing is computed."""

    def grid(*args: Any, workers: int, **more: Any) -> Any:
        raise Found(workers)

    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(there))
    monkeypatch.setattr(inline, "InlineGrid", grid)
    with pytest.raises(Found) as found:
        train(tmp_path, "inline", device=told)
    assert found.value.args == (workers,)
