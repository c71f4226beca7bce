"""Tables in a terminal: what must not be broken is not, however narrow it is."""

import io

import pytest
from rich.console import Console

from server.report.display import table

HEAD = ["Version", "State", "From", "Request", "Forgot", "Created (UTC)", "Federation", "Retain %"]
ROW = [
    *("v0002", "in-service", "v0001", "r0002", "class 9 (sneaker)", "2026-01-02 03:04"),
    *("digits, 10 clients, dirichlet:0.5, seed 0", "98.7"),
]


def lines(width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table(HEAD, [ROW], text=7))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_ids_states_and_numbers_stay_whole(width: int) -> None:
    shown = lines(width)
    assert all(len(line) <= width for line in shown)
    words = " ".join(shown).split()
    for whole in ("v0002", "in-service", "98.7"):
        assert whole in words


def test_the_least_important_columns_go_first() -> None:
    assert lines(200)[0].split() == " ".join(HEAD).split()
    assert "Federation" not in lines(80)[0]
    narrow = lines(60)[0]
    assert "Version" in narrow
    assert "Forgot" in narrow
    assert "Retain %" in narrow


def test_all_columns_stay_where_there_is_room() -> None:
    assert "digits, 10 clients, dirichlet:0.5, seed 0" in lines(200)[1]
