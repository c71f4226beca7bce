"""The switches of torch that make a GPU's work repeatable: on while work goes on, then as before.

They can be set without a GPU; that they do their work is tested where there is one
(`tests/server/test_gpu.py`).
"""

import os

import pytest
import torch

from client.learning.repeatable import repeatable

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


def test_a_gpu_works_repeatably_and_is_left_as_it_was() -> None:
    torch.backends.cudnn.benchmark = True
    try:
        with repeatable(GPU):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
            assert not torch.backends.cudnn.benchmark
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"

        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False


def test_the_last_of_several_pieces_of_work_switches_back() -> None:
    first, second = repeatable(GPU), repeatable(GPU)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)

    assert torch.are_deterministic_algorithms_enabled()
    second.__exit__(None, None, None)
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_error_switches_back() -> None:
    with pytest.raises(ValueError, match="work"), repeatable(GPU):
        raise ValueError("work")

    assert not torch.are_deterministic_algorithms_enabled()


def test_a_cpu_is_left_alone() -> None:
    with repeatable(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
