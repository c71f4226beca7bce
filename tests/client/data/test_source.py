"""The text that names a data set says how it is read; what it cannot mean is refused."""

from pathlib import Path

import pytest

from client.data.source import (
    ImageReading,
    TableReading,
    check_site,
    image_reading,
    parse,
    rooted,
    table_reading,
    with_options,
)
from client.errors import BadSetting, DataError


def test_without_options_images_are_read_as_they_are() -> None:
    assert image_reading(parse("folder:photos")) == ImageReading()


def test_every_option_of_images_is_understood() -> None:
    text = "npz:a.npz?size=64&color=grey&fit=stretch&range=-1000..400.5&labels=named&skip-broken=1"
    assert image_reading(parse(text)) == ImageReading(
        size=64,
        color="grey",
        fit="stretch",
        value_range=(-1000.0, 400.5),
        named=True,
        skip_broken=True,
    )


def test_every_option_of_tables_is_understood() -> None:
    text = (
        "table:/a.csv?label=Heart disease%3F&id=p&site=s&drop=a,b%2Cc&categories=d"
        "&columns=/c.toml&test=.2"
    )
    with pytest.raises(BadSetting, match=r"test must be the share of the test part, .* got '\.2'"):
        table_reading(parse(text))
    assert table_reading(parse(text.replace("=.2", "=0.2"))) == TableReading(
        label="Heart disease?",
        record="p",
        site="s",
        drop=("a", "b,c"),
        categories=("d",),
        columns=Path("/c.toml"),
        test=0.2,
    )


def test_a_path_may_hold_a_question_mark_if_it_ends_with_one_more() -> None:
    assert parse("npz:odd?.npz?").path == "odd?.npz"
    assert parse("npz:odd?.npz?").text == "npz:odd?.npz?"
    assert parse("npz:odd?.npz?size=8").path == "odd?.npz"
    with pytest.raises(
        BadSetting, match=r"KEY=VALUE&KEY=VALUE, got '\.npz'; end a path that holds"
    ):
        parse("npz:odd?.npz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder:a?sise=8", "must be one of size, color, fit, range, skip-broken, got 'sise'"),
        ("folder:a?labels=named", "option of folder: must be one of size, .*got 'labels'"),
        ("table:a?size=8", "must be one of label, id, site, drop, .*, test, got 'size'"),
        ("npz:a?size=8&size=9", "option size of npz: must have one value, got it twice"),
        ("npz:a?size=", "option size of npz: must have one value, got none"),
        ("npz:?size=8", r"must name a path after 'npz:', got 'npz:\?size=8'"),
        ("npz:a?size=7", "size must be a whole number of pixels from 8 to 4096, got '7'"),
        ("npz:a?size=6.5", "size must be a whole number"),
        ("npz:a?color=red", "color must be grey or rgb, got 'red'"),
        ("npz:a?fit=crop", "fit must be pad or stretch, got 'crop'"),
        ("npz:a?range=5..5", r"range must be .* such as 0\.\.4095, got '5\.\.5'"),
        ("npz:a?skip-broken=yes", "skip-broken must be 0 or 1, got 'yes'"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        image_reading(parse(text))


def test_a_table_needs_a_label() -> None:
    with pytest.raises(BadSetting, match=r"classes' column: table:PATH\?label=COLUMN, got none"):
        table_reading(parse("table:a.csv"))


def test_paths_become_absolute_and_options_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    assert rooted("npz:a.npz?size=8") == "npz:/tmp/a.npz?size=8"
    assert rooted("table:a.csv?label=x%26y&columns=c.toml") == (
        "table:/tmp/a.csv?label=x%26y&columns=/tmp/c.toml"
    )
    assert rooted("digits") == "digits"


def test_options_are_added_once() -> None:
    assert with_options("folder:a?size=8", {"size": "16", "color": "grey"}) == (
        "folder:a?size=16&color=grey"
    )
    assert with_options("digits", {}) == "digits"
    with pytest.raises(BadSetting, match=r"size must come with images of one's own, .*'digits'"):
        with_options("digits", {"size": "16"})


def test_a_site_reads_no_table_by_its_own_numbers() -> None:
    with pytest.raises(DataError, match="must name the columns file that all sites share"):
        check_site("table:a.csv?label=x")
    check_site("table:a.csv?label=x&columns=c.toml")
    check_site("npz:a.npz")
