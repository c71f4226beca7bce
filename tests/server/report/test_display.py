"""Tables in a terminal: what must not be broken is not, however narrow it is."""

import io

import pytest
from rich.console import Console

from server.evidence.record import Record
from server.report.display import cost_table, table

HEAD = ["Version", "State", "From", "Request", "Forgot", "Created (UTC)", "Federation", "Retain %"]
FEDERATION = "digits, 10 clients, dirichlet:0.5, seed 0"
ROW = [
    *("v0002", "in-service", "v0001", "r0002", "class 9 (sneaker)", "2026-01-02 03:04"),
    *(FEDERATION, "98.7"),
]
# Head, one row, and how many of the columns hold text: as the commands have them.
TABLES = {
    "versions": (HEAD, ROW, 7),
    "first version": (HEAD, [*ROW[:2], "–", "r0001", "–", ROW[5], "digits", "62.0"], 7),
    "requests": (
        ["Request", "Kind", "Of", "State", "Result", "Asked by", "Created (UTC)"],
        ["r0002", "forget", "class 9", "interrupted", "–", "A. Person", "2026-01-02 03:04"],
        7,
    ),
    "forgotten": (
        [
            *("Forgotten", "Federation", "In service", "Since (UTC)", "Request", "Method"),
            *("Waits at", "Still known by"),
        ],
        ["class 9", FEDERATION, "v0002", "2026-01-02 03:04", "r0002", "retraining", "–", "v0003"],
        8,
    ),
    "methods": (
        ["Method", "Forgets", "How"],
        ["quickdrop-calibrated-subset", "class, client", "climb as far as data never seen lie"],
        3,
    ),
}


def lines(width: int, head: list[str] = HEAD, row: list[str] = ROW, text: int = 7) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table(head, [row], text=text))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", TABLES)
def test_ids_states_and_numbers_stay_whole(name: str, width: int) -> None:
    head, row, text = TABLES[name]
    shown = lines(width, head, row, text)
    assert all(len(line) <= width for line in shown)
    # What is there is not broken: every word, of the columns and of what stands in them.
    whole = " ".join([*head, *row]).split()
    assert set(" ".join(shown).split()) <= set(whole)
    assert row[0] in " ".join(shown)


def test_the_least_important_columns_go_first() -> None:
    assert lines(200)[0].split() == " ".join(HEAD).split()
    assert "Federation" not in lines(80)[0]
    narrow = lines(60)[0]
    assert "Version" in narrow
    assert "Forgot" in narrow
    assert "Retain %" in narrow


def test_all_columns_stay_where_there_is_room() -> None:
    assert "digits, 10 clients, dirichlet:0.5, seed 0" in lines(200)[1]


def test_costs_count_examples_which_may_be_no_images() -> None:
    heads = [column.header for column in cost_table(Record(seconds={"train": 1.0})).columns]
    assert heads == ["Phase", "Seconds", "Rounds", "Examples seen", "Up", "Down"]
