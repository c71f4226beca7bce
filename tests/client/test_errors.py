"""Codes of errors: they alone say what an error is, whatever its words say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error

from client.errors import (
    BadSetting,
    EffaceError,
    NoSyntheticSet,
    StoreError,
    code_of,
    kind_of,
    marked,
    split_mark,
)
from client.steps.measuring import Describe
from strategies.rounds.failures import failure_in
from tests.attacks.site import hospital

MISLEADING = "BadSetting: CodeMismatch: no answer before the deadline"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadSetting(MISLEADING), "bad-setting"),
        (StoreError(MISLEADING), "store-error"),
        (NoSyntheticSet(MISLEADING), "no-synthetic-set"),
        (RuntimeError(MISLEADING), "unexpected"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_an_errors_code_is_that_of_its_class(error: BaseException, code: str) -> None:
    assert code_of(error) == code


def test_a_code_arrives_in_flowers_one_text_and_leaves_the_words_alone() -> None:
    sent = marked(NoSyntheticSet("one"), MISLEADING)
    # Flower puts the class of its own error before it.
    assert split_mark(f"<class 'client.node.NodeError'>:<'{sent}'>") == (
        "no-synthetic-set",
        f"<class 'client.node.NodeError'>:<'{MISLEADING}'>",
    )


@pytest.mark.parametrize("text", [MISLEADING, "[made-up] of a stranger", "", "[bad-setting]"])
def test_a_text_without_a_code_of_ours_has_none(text: str) -> None:
    assert split_mark(text) == (None, text)


def test_a_code_that_nobody_has_is_an_error_like_any_other() -> None:
    assert kind_of("bad-setting") is BadSetting
    assert kind_of("made-up") is kind_of(None) is EffaceError


IMAGES = np.zeros((20, 8, 8), np.uint8)
SIXTEEN = np.zeros((20, 16, 16), np.uint8)
TEN = np.arange(20) % 10


@pytest.mark.parametrize(
    ("arrays", "code", "words"),
    [
        (None, "data-missing", "the node's own log says why"),
        ({"images": IMAGES, "labels": TEN}, "data-keys", "the node's own log says why"),
        (
            {"train_images": IMAGES, "train_labels": TEN + 3, "num_classes": 10},
            "data-error",
            "the node's own log says why",
        ),
        (
            {"train_images": SIXTEEN, "train_labels": TEN, "num_classes": 10},
            "policy-refused",
            "examples must be (1, 16, 16), as site-a has them, got (1, 8, 8)",
        ),
    ],
)
def test_what_is_wrong_with_a_sites_data_is_told_by_its_kind_and_by_no_path(
    tmp_path: Path, arrays: dict[str, Any] | None, code: str, words: str
) -> None:
    site = hospital(tmp_path)
    (tmp_path / "data.npz").unlink()
    if arrays is not None:
        np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(EffaceError) as told:
        site.ask(Describe)
    shown = failure_in(Error(2, f"<class 'client.node.NodeError'>:<'{told.value}'>"), "site-a")
    assert shown.code == code
    assert words in shown.reason
    assert "<class" not in shown.reason
    assert str(tmp_path) not in shown.reason
