"""What a person is told of a method's hyper-parameters."""

from dataclasses import fields

import pytest

from strategies.table import METHODS

WORDS = {
    (name, option.name): option.metadata["words"]
    for name, method in METHODS.items()
    for option in fields(method)
}


@pytest.mark.parametrize("of", WORDS, ids="-".join)
def test_every_option_has_words_of_one_line(of: tuple[str, str]) -> None:
    words = WORDS[of]

    assert words == " ".join(words.split()) != ""
    assert len(words) <= 100
    assert not words.endswith(".")
    assert "image" not in words  # data of any kind are forgotten
    assert words != of[1].replace("_", " ")  # the name again says nothing


@pytest.mark.parametrize("name", METHODS)
def test_no_two_options_of_a_method_have_the_same_words(name: str) -> None:
    said = [words for (method, _), words in WORDS.items() if method == name]

    assert len(set(said)) == len(said)


def test_the_same_words_are_of_the_same_name() -> None:
    named = {words: option for (_, option), words in WORDS.items()}

    assert {of: named[words] for of, words in WORDS.items()} == {of: of[1] for of in WORDS}
