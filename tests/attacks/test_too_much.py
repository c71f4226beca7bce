"""T10: sizes and counts that took all memory, killed the process, or never ended."""

import resource
import time
from pathlib import Path
from typing import Any

import pytest

from client.messages import Common
from client.steps.ascent import Ascend
from client.steps.measuring import Heldout
from client.steps.recovery import Descend
from client.steps.store import Condense
from client.steps.training import Fit
from tests.attacks.site import SPEC, Hospital, hospital
from tests.models import changed


def of(**options: Any) -> dict[str, Any]:
    """Return what a message says of another model of the built-in task."""
    return Common.of_model(changed(SPEC, **options))


STEP = {"steps": 1, "lr": 0.1, "scale": 0}
ASKED: list[tuple[type[Common], dict[str, Any], str]] = [
    (Fit, {**STEP, **of(num_classes=2 * 10**7)}, "num_classes must lie in"),
    (Fit, {**STEP, **of(num_classes=100_000)}, "model-classes must be 10, as site-a has"),
    (Fit, {**STEP, **of(width=6000)}, "width must lie in"),
    (Fit, {**STEP, **of(width=4096, depth=8)}, "model must have at most 100000000"),
    (Fit, {**STEP, "threads": 3000}, "threads must lie in"),
    (Fit, {**STEP, "threads": 1000}, "threads must be at most 64 at site-a"),
    (Fit, {**STEP, "steps": 10**15}, "steps must be at most 10000 at site-a"),
    (Fit, {**STEP, "steps": 0, "epochs": 10**15}, "epochs must be at most 1000 at site-a"),
    (Fit, {**STEP, "steps": 0, "epochs": 900, "batch_size": 8}, "epochs must take at most 10000"),
    (Fit, {**STEP, "lr": 1e12}, "lr must be at most 10 at site-a"),
    (Fit, {**STEP, "batch_size": 10**9}, "batch-size must be at most 65536 at site-a"),
    (Fit, {**STEP, "batch_size": 65_000, **of(width=512)}, "memory must be at most 8192 MB"),
    (Fit, {**STEP, "scale": 10, "image_steps": 10**9}, "image-steps must be at most 100"),
    (Fit, {**STEP, "scale": 10, "image_lr": 1e9}, "image-lr must be at most 100"),
    (Fit, {**STEP, **of(net="resnet56", image_size=2048)}, "must be at most|as site-a has"),
    (Ascend, {"data": "original", "epochs": 10**9, "lr": 0.1}, "epochs must be at most 1000"),
    (Descend, {"epochs": 10**9, "lr": 0.1}, "epochs must be at most 1000"),
    (Condense, {"outer_steps": 10**9}, "outer-steps must be at most 1000"),
    (Heldout, {**of(width=4096, depth=8), "holdout": 0.1}, "model must have at most"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return hospital(tmp_path_factory.mktemp("t10"))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MB on Linux


@pytest.mark.parametrize("number", range(len(ASKED)))
def test_too_much_is_refused_at_once_and_takes_no_memory(site: Hospital, number: int) -> None:
    kind, said, why = ASKED[number]
    before, started = peak(), time.process_time()
    refused = site.refusal(kind, **said)
    assert any(each in refused for each in why.split("|")), refused
    assert time.process_time() - started < 5
    assert peak() - before < 200


def test_a_day_has_so_many_messages(tmp_path: Path) -> None:
    from client.logbook import Logbook

    site = hospital(tmp_path, messages_a_day="3")
    for _ in range(3):
        site.ask(Heldout, holdout=0.1)
    for _ in range(3):
        assert "messages must be at most 3 a day at site-a" in site.refusal(Heldout, holdout=0.1)
    # The log is not flooded: the first that was too many stands for the rest.
    outcomes = [entry["outcome"] for entry in Logbook(site.store).entries()]
    assert outcomes == ["answered"] * 3 + ["refused"]
