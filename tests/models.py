"""Models of tests: another network of the same sizes, and its stem."""

from dataclasses import replace
from typing import Any

from torch import nn

from client.learning.models import ModelSpec, traced
from client.task import canonical


def changed(spec: ModelSpec, **options: Any) -> ModelSpec:
    """Return the same model with other options of its task, such as `net`."""
    return replace(spec, options=canonical({**spec.task.options, **options}))


def stem_of(spec: ModelSpec, model: nn.Module) -> list[nn.Module]:
    """Return the modules that a frozen stem leaves as they are."""
    return [model.get_submodule(name) for name in traced(spec).stem]
