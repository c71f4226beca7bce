"""The journal: a stopped request goes on where it was, with exactly what it had."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import server.storage.journal
from server.storage.journal import Journal, JournalError
from server.storage.registry import RegistryError

SETTINGS = {"seed": 0, "method": "quickdrop", "lr": 0.02}


def weights(value: float) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "w": np.full((2, 3), value, dtype=np.float32),
        "count": np.array(int(value), dtype=np.int64),
    }


class Story:
    """A request of three steps that notes which of them it computed."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder, SETTINGS)
        self.computed: list[str] = []

    def step(self, key: str, value: float) -> Callable[[], tuple[dict[str, Any], Any]]:
        def compute() -> tuple[dict[str, Any], Any]:
            self.computed.append(key)
            return weights(value), {"loss": value, "pair": (1, 2)}

        return compute

    def run(self, until: int = 3) -> list[tuple[dict[str, Any], Any]]:
        steps = [("train", 1.0), ("unlearn", 2.0), ("recover", 3.0)]
        return [self.journal.arrays(key, self.step(key, value)) for key, value in steps[:until]]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(one: list[tuple[dict[str, Any], Any]], other: list[tuple[dict[str, Any], Any]]) -> bool:
    return all(
        list(a) == list(b)
        and m == n
        and all(
            (a[k].dtype, a[k].shape, a[k].tobytes()) == (b[k].dtype, b[k].shape, b[k].tobytes())
            for k in a
        )
        for (a, m), (b, n) in zip(one, other, strict=True)
    )


def test_a_resumed_request_computes_only_what_is_missing(tmp_path: Path) -> None:
    Story(tmp_path).run(until=2)
    resumed = Story(tmp_path)

    results = resumed.run()

    assert resumed.computed == ["recover"]
    assert same(results, Story(tmp_path / "fresh").run())
    assert results[0][1] == {"loss": 1.0, "pair": [1, 2]}


def test_the_first_run_sees_what_a_resumed_run_sees(tmp_path: Path) -> None:
    assert same(Story(tmp_path).run(), Story(tmp_path).run())


def test_a_step_asked_again_is_not_computed_again(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.run()

    again, _ = story.journal.arrays("train", story.step("train", 99.0))

    assert story.computed == ["train", "unlearn", "recover"]
    assert again["w"][0, 0] == 1.0


def test_values_are_kept_with_nan_and_array_scalars(tmp_path: Path) -> None:
    value = Journal(tmp_path, SETTINGS).value(
        "evaluate", lambda: {"loss": math.nan, "accuracy": np.float32(0.5), "classes": (1, 2)}
    )
    resumed = Journal(tmp_path, SETTINGS).value("evaluate", lambda: pytest.fail("computed again"))

    assert math.isnan(value.pop("loss"))
    assert math.isnan(resumed.pop("loss"))
    assert value == resumed == {"accuracy": 0.5, "classes": [1, 2]}


def test_a_value_without_json_form_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="note must be JSON content"):
        Journal(tmp_path, SETTINGS).value("x", lambda: {1, 2})


def test_a_transposed_array_comes_back_in_one_layout(tmp_path: Path) -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T

    first, _ = Journal(tmp_path, SETTINGS).arrays("train", lambda: ({"w": turned}, None))
    second, _ = Journal(tmp_path, SETTINGS).arrays("train", lambda: pytest.fail("again"))

    np.testing.assert_array_equal(first["w"], turned)
    np.testing.assert_array_equal(second["w"], turned)
    # Equal values in another layout may round otherwise in a product.
    assert first["w"].strides == second["w"].strides


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_truncated_step_and_all_after_it_are_computed_again(tmp_path: Path, length: int) -> None:
    expected = Story(tmp_path).run()
    path = tmp_path / "0002.unlearn.step.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    resumed = Story(tmp_path)

    assert same(resumed.run(), expected)

    assert resumed.computed == ["unlearn", "recover"]


def test_a_step_that_fails_is_not_kept(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.run(until=1)

    def fail() -> tuple[dict[str, Any], Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        story.journal.arrays("unlearn", fail)

    story.run()  # the same journal goes on too
    assert story.computed == ["train", "unlearn", "recover"]


def test_a_kill_during_a_write_leaves_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Story(tmp_path).run(until=1)
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(server.storage.journal, "write_atomic", half_write)
            Story(tmp_path).run(until=2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.glob(".*.tmp"))) == 1

    resumed = Story(tmp_path)
    resumed.run()

    assert resumed.computed == ["unlearn", "recover"]
    assert list(tmp_path.glob(".*.tmp")) == []


def half_write(path: Path, data: bytes, **_: object) -> None:
    (path.parent / f".{path.name}.x.tmp").write_bytes(data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def test_only_the_newest_round_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SETTINGS)
    assert journal.latest("train") is None
    for number in (1, 2, 3):
        journal.save_round("train", number, weights(number), [{"round": number}] * number)

    latest = Journal(tmp_path, SETTINGS).latest("train")

    assert latest is not None
    assert (latest[0], latest[2]) == (3, [{"round": 3}] * 3)
    assert same([(latest[1], None)], [(weights(3), None)])
    assert names(tmp_path) == ["0001.train.rounds.safetensors", "journal.json"]


def rounds(journal: Journal, key: str, *, stop_after: int | None = None) -> list[int]:
    """Run a step of five rounds, kept one by one; return the rounds computed now."""
    computed: list[int] = []

    def compute() -> tuple[dict[str, Any], Any]:
        number, arrays, history = journal.latest(key) or (0, weights(0), [])
        while number < 5:
            if number == stop_after:
                raise KeyboardInterrupt
            number += 1
            arrays, history = weights(arrays["w"][0, 0] + number), [*history, number]
            computed.append(number)
            journal.save_round(key, number, arrays, history)
        return arrays, history

    try:
        arrays, history = journal.arrays(key, compute)
    except KeyboardInterrupt:
        return computed
    assert (arrays["w"][0, 0], history) == (15.0, [1, 2, 3, 4, 5])  # 1 + 2 + 3 + 4 + 5
    return computed


def test_a_step_of_rounds_goes_on_at_the_round_it_had(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.run(until=1)
    assert rounds(story.journal, "unlearn", stop_after=3) == [1, 2, 3]
    assert names(tmp_path)[:2] == ["0001.train.step.safetensors", "0002.unlearn.rounds.safetensors"]
    resumed = Story(tmp_path)
    resumed.run(until=1)

    assert rounds(resumed.journal, "unlearn") == [4, 5]

    # The finished step needs its rounds no more.
    assert names(tmp_path)[:2] == ["0001.train.step.safetensors", "0002.unlearn.step.safetensors"]


def test_a_truncated_round_counts_as_not_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SETTINGS)
    rounds(journal, "train", stop_after=3)
    path = tmp_path / "0001.train.rounds.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    assert Journal(tmp_path, SETTINGS).latest("train") is None
    assert rounds(Journal(tmp_path, SETTINGS), "train") == [1, 2, 3, 4, 5]


def test_rounds_are_dropped_when_an_earlier_step_is_computed_again(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.run(until=1)
    rounds(story.journal, "unlearn", stop_after=3)
    (tmp_path / "0001.train.step.safetensors").unlink()
    resumed = Story(tmp_path)

    resumed.run(until=1)

    assert rounds(resumed.journal, "unlearn") == [1, 2, 3, 4, 5]


def test_a_journal_of_other_settings_is_refused(tmp_path: Path) -> None:
    Story(tmp_path).run()

    with pytest.raises(JournalError) as caught:
        Journal(tmp_path, {"seed": 1, "lr": 0.02, "rounds": None, "method": "quickdrop"})

    assert str(caught.value) == (
        "request must be resumed with the settings it began with, got rounds = null instead of "
        f"nothing, seed = 1 instead of 0 in {tmp_path}. "
        "Resume with the former settings, or abort the request and ask anew"
    )
    resumed = Story(tmp_path)
    resumed.run()
    assert resumed.computed == []


def test_the_order_of_settings_does_not_matter(tmp_path: Path) -> None:
    Journal(tmp_path, SETTINGS)
    Journal(tmp_path, dict(reversed(SETTINGS.items())))


def test_steps_without_settings_are_not_trusted(tmp_path: Path) -> None:
    Story(tmp_path).run()
    (tmp_path / "journal.json").write_text('{"settings": {')
    resumed = Story(tmp_path)

    resumed.run()

    assert resumed.computed == ["train", "unlearn", "recover"]


def test_another_order_of_steps_is_refused(tmp_path: Path) -> None:
    Story(tmp_path).run()

    message = "step 1 of a resumed request must be 'train' as in its first run, got 'recover'"
    with pytest.raises(JournalError, match=message):
        Journal(tmp_path, SETTINGS).value("recover", lambda: 1)


def test_a_step_inside_a_step_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SETTINGS)

    with pytest.raises(JournalError, match="outside other steps, got 'inner' inside 'outer'"):
        journal.value("outer", lambda: journal.value("inner", lambda: 1))


@pytest.mark.parametrize("key", ["", "../train", "a/b", ".x", "x" * 101, "a b"])
def test_a_key_that_is_no_file_name_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(JournalError, match="key must be at most 100 letters, digits"):
        Journal(tmp_path, SETTINGS).value(key, lambda: 1)


def test_a_cleared_journal_is_gone(tmp_path: Path) -> None:
    story = Story(tmp_path / "journal")
    story.run()

    story.journal.clear()
    story.journal.clear()

    assert list(tmp_path.iterdir()) == []


def test_files_are_private(tmp_path: Path) -> None:
    story = Story(tmp_path / "journal")
    story.run()
    story.journal.save_round("next", 1, weights(1), [])

    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "journal").iterdir()}
    assert (modes, (tmp_path / "journal").stat().st_mode & 0o777) == ({0o600}, 0o700)
