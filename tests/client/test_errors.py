"""Codes of errors: they alone say what an error is, whatever its words say."""

import pytest

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
