"""A Flower app that trains in its own way has its model forget by Efface's rounds."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp

from client.errors import BadSetting
from client.own_task import offer, task_of
from efface import flower
from server.nodes.engines.inline import InlineGrid
from tests.tasks.rows import Row

CLIENTS = 3


def trained() -> ArrayRecord:
    """Return a model that knows all three."""
    return ArrayRecord(
        {
            "weight": torch.tensor([[-1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]),
            "bias": torch.tensor([0.0, 0.0, -6.0]),
        }
    )


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[InlineGrid]:
    monkeypatch.setenv("HOME", str(tmp_path))
    app = ClientApp()
    flower.answer(app, Row)
    with InlineGrid(app, CLIENTS) as found:
        yield found


def ask(grid: InlineGrid, **more: Any) -> flower.Unlearned:
    given = {"num_clients": CLIENTS, "rounds": 10, "batch_size": 16, "lr": 0.1, **more}
    return flower.forget(grid, trained(), Row, **given)


@pytest.mark.parametrize("method", ["sga", "retraining"])
@pytest.mark.parametrize("target", [{"class_": 2}, {"client": "client-2"}])
def test_a_model_forgets_what_the_clients_answer_for(
    grid: InlineGrid, method: str, target: dict[str, Any]
) -> None:
    options = {"unlearn_lr": 0.1, "client_depth": 8.0} if method == "sga" else None
    done = ask(grid, method=method, options=options, **target)

    assert done.before.forget == 100.0
    assert done.before.retain == 100.0
    assert done.after.forget == 0.0
    assert done.after.retain == 100.0
    assert done.costs["unlearn"].up > 0
    assert list(done.arrays) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "must name class_ or client, got none"),
        ({"class_": 2, "client": "client-0"}, "must name class_ or client, got both"),
        ({"class_": 3}, r"class must lie in \[0, 3\), got 3"),
        ({"class_": 2, "method": "quickdrop"}, "got quickdrop, which needs synthetic data"),
        ({"client": "client-0", "method": "federaser"}, "got federaser, which needs updates"),
        ({"class_": 2, "method": "class-pruning"}, "method class-pruning cannot serve this model"),
        ({"class_": 2, "lr": 0.0}, "lr must be positive"),
        (
            {"client": "client-7"},
            "client must be one of client-0, client-1, client-2, got client-7",
        ),
    ],
)
def test_what_cannot_be_is_refused(grid: InlineGrid, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        ask(grid, **asked)


def test_an_offered_task_is_found_by_its_name_and_code() -> None:
    source = offer(Row)

    assert type(task_of(source.name, "{}", source.code)) is Row
    assert source.name == "rows:Row"


def test_a_task_that_stands_in_no_file_is_not_offered() -> None:
    class Inner(Row):
        pass

    with pytest.raises(BadSetting, match="task Inner must stand at the top of a file"):
        offer(Inner)
