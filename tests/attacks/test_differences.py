"""T3: two answers that differed by one example gave its loss, its activations and its gradient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import answered
from client.policy import PolicyRefused
from client.steps.channels import Ablation, Representation
from client.steps.measuring import Fisher, Heldout
from client.steps.training import Fit
from client.touched import Touched
from tests.attacks import prepared
from tests.attacks.site import Hospital, hospital, record, weights

STEP = {"steps": 1, "lr": 1.0, "scale": 0}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return hospital(tmp_path_factory.mktemp("t3"))


@pytest.mark.parametrize("updates", ["single", "sums"])
def test_the_hold_out_part_is_the_sites_own(tmp_path: Path, updates: str) -> None:
    site = hospital(tmp_path, updates=updates)
    n = len(site.labels)
    for kind, said in ((Fit, STEP), (Heldout, {}), (Representation, {})):
        refused = site.refusal(kind, **said, holdout=(n // 10 + 1.5) / n)
        assert "holdout must be at most 0.1 at site-a" in refused or updates == "sums"
    if updates == "sums":
        return
    counts = {
        site.ask(Fit, weights(k), **STEP, batch_size=2000, holdout=k / n).metrics["num-examples"]
        for k in (0, 1, 100)
    }
    assert counts == {n - int(0.1 * n)}  # smaller ones are asked for in vain


def sets_behind(site: Hospital, kind: Any, values: list[int], key: str, **said: Any) -> Any:
    """Return the sketches of the sets that a site's answers were made from."""
    found = []
    for value in values:
        before = kept(site)
        site.ask(kind, **{**said, key: value})
        found.append(kept(site)[-1] if len(kept(site)) > len(before) else None)
    return found


def kept(site: Hospital) -> Any:
    path = site.store / answered.FILE
    raw = path.read_bytes() if path.exists() else b""
    return np.frombuffer(raw, answered.RECORD)["sketch"]


@pytest.mark.parametrize(
    ("kind", "key", "said"),
    [
        (Fisher, "max_examples", {"side": "retain"}),
        (Ablation, "max_examples", {"forget_level": "class", "forget_classes": [7]}),
        (Representation, "samples_per_class", {}),
    ],
)
def test_one_more_example_is_another_draw(
    site: Hospital, kind: Any, key: str, said: dict[str, Any]
) -> None:
    arrays = weights(len(str(kind)))
    a, b = sets_behind(site, kind, [40, 41], key, arrays=arrays, **said)
    # Unrelated draws of 40 and 41 of some hundred differ in dozens of examples.
    assert (a != b).sum() > 20


@pytest.mark.parametrize("left", [1, 2, 4])
def test_all_but_a_handful_is_all(site: Hospital, left: int) -> None:
    # A batch that leaves a few out takes them in; so does a sample.
    state = prepared.shifts()
    every = site.ask(Fit, record(state), **STEP, batch_size=5000, phase=f"all {left}")
    n = int(every.metrics["samples"])
    most = site.ask(Fit, record(state), **STEP, batch_size=n - left, phase=f"most {left}")
    assert most.metrics["samples"] == n
    asked = {"side": "retain", "holdout": 0.1}
    few = site.ask(Fisher, weights(60 + left), **asked, max_examples=n - left)
    assert few.metrics["num-examples"] == n


def test_a_class_of_a_handful_makes_no_difference(tmp_path: Path) -> None:
    def keep(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (labels != 3) | (np.cumsum(labels == 3) <= 1)  # type: ignore[no-any-return]

    site = hospital(tmp_path, keep=keep, holdout="0.0")
    state = prepared.shifts()
    said = {**STEP, "batch_size": 5000, "holdout": 0.0}
    whole = site.ask(Fit, record(state), **said)
    without = site.ask(Fit, record(state), **said, erased_classes=[3])
    for part in (0, 1):
        np.testing.assert_array_equal(
            prepared.change(whole.arrays, state)[part], prepared.change(without.arrays, state)[part]
        )


def test_answers_with_equal_weights_differ_by_enough_or_not_at_all(tmp_path: Path) -> None:
    def sketch(rows: range) -> Any:
        touched = Touched()
        touched.rows("train", 2000)[list(rows)] = True
        return touched.sketch("ab" * 32)

    def keep(name: bytes, rows: range) -> None:
        answered.keep(tmp_path, name.ljust(32), sketch(rows), least=5)

    keep(b"w", range(1000))
    keep(b"w", range(1000))
    keep(b"w", range(1005))
    for rows in (range(1001), range(4, 1000), range(1009), range(2, 1002)):
        with pytest.raises(PolicyRefused, match="or differ by at least 5, got fewer"):
            keep(b"w", rows)
    keep(b"other", range(1001))
    keep(b"w", range(500, 1500))
    assert len(np.fromfile(tmp_path / answered.FILE, answered.RECORD)) == 4


def test_a_record_that_a_power_cut_cut_short_is_written_over(tmp_path: Path) -> None:
    touched = Touched()
    touched.images(torch.rand(6, 1, 8, 8))
    sketch = touched.sketch("ab" * 32)
    answered.keep(tmp_path, bytes(32), sketch, least=5)
    with (tmp_path / answered.FILE).open("ab") as file:
        file.write(b"half")
    answered.keep(tmp_path, b"1" * 32, sketch, least=5)
    found = np.fromfile(tmp_path / answered.FILE, answered.RECORD)
    assert [bytes(w) for w in found["weights"]] == [bytes(32), b"1" * 32]


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered, "KEPT", 3)
    touched = Touched()
    touched.rows("train", 10)[:] = True
    for number in range(20):
        answered.keep(tmp_path, bytes([number]) * 32, touched.sketch("00" * 32), least=5)
    found = np.fromfile(tmp_path / answered.FILE, answered.RECORD)["weights"]
    assert len(found) <= 6
    assert bytes(found[-1]) == bytes([19]) * 32


def test_a_sketch_tells_nothing_without_the_seed() -> None:
    touched = Touched()
    touched.rows("train", 10)[:7] = True
    assert (touched.sketch("00" * 32) != touched.sketch("11" * 32)).sum() >= 5
    assert not Touched().sketch("00" * 32).any()
