"""What is said of a training before it starts."""

from pathlib import Path
from typing import Any

import pytest

from server.requests.intake import Service
from server.settings import RunSettings
from server.storage.home import Home
from tests.small_job import JOB


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "got image-lr 0.1 and image-steps 1; tried were --image-lr 1 --image-steps 10"),
        ({"image_lr": 0.05}, "got image-lr 0.05 and image-steps 1; "),
        ({"image_lr": 1.0, "image_steps": 10}, ""),
        ({"image_start": "real"}, ""),
        ({"scale": 0}, ""),
    ],
)
def test_sets_that_would_stay_noise_are_told_of(
    told: dict[str, Any], said: str, tmp_path: Path
) -> None:
    asked = {**JOB, "image_start": "noise", **told, "home": str(tmp_path), "engine": "inline"}
    service = Service.open(Home(tmp_path))
    request = service.prepare(RunSettings(mode="train", **asked).check())
    warnings = service.warnings(service.ledger.request(request.id))
    found = [text for text in warnings if "stay noise" in text]
    assert len(found) == bool(said)
    assert all(said in text for text in found)
