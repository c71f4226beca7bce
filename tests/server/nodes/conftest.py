"""The small job done in this process: what other engines are compared with."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.small_job import forget, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained") / "home"
    train(home, "inline")
    return home


@pytest.fixture(scope="module")
def inline(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    home = Path(shutil.copytree(trained, tmp_path_factory.mktemp("inline") / "home"))
    return home, forget(home, "inline")


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(trained, tmp_path / name))
