"""How often a request asks its clients: not the same twice, and nothing else is changed by that."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from client.app import app
from server.nodes import federation as nodes
from server.nodes.engines.inline import InlineGrid
from server.nodes.federation import GridFederation
from server.nodes.grid import NamedGrid
from server.storage.journal import Journal
from tests.messages import values
from tests.messages import weights as of_a_model
from tests.small_job import forget, train, weights

ASKED = list[tuple[str, str]]
SGA: dict[str, Any] = {
    "method": "sga",
    "accept": "not-shown",
    "max_forget_accuracy": 100.0,
    "max_relearning_gap": 100.0,
    # Steps so small that both ascents are asked for, and no recovery.
    "method_options": "threshold=0,unlearn-rounds=2,unlearn-lr=1e-6",
    "rounds": 2,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    train(home, "inline", scale=0, keep_updates=0)
    return home


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> ASKED:
    found: ASKED = []
    exchanged = NamedGrid._exchanged

    def noted(grid: NamedGrid, sent: list[Message], timeout: float | None) -> Iterator[Any]:
        (one,) = {
            (m.metadata.message_type, str(m.content.config_records["config"]["phase"]))
            for m in sent
        }
        found.append(one)
        return exchanged(grid, sent, timeout)

    monkeypatch.setattr(NamedGrid, "_exchanged", noted)
    return found


@pytest.mark.parametrize("level", ["class", "client"])
def test_a_model_that_was_measured_is_not_measured_again(
    trained: Path, tmp_path: Path, asked: ASKED, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    target = {"forget_classes": "3"} if level == "class" else {"forget_clients": "client-1"}
    records, models, questions = [], [], []
    for name in ("sharing", "plain"):
        home = tmp_path / name
        shutil.copytree(trained, home)
        if name == "plain":  # no question is like another
            numbers = itertools.count()
            monkeypatch.setattr(nodes, "_same", lambda *_, n=numbers: str(next(n)))
        asked.clear()
        records.append(forget(home, "inline", **SGA, **target))
        models.append(weights(home, "v0002"))
        questions.append(list(asked))

    sharing, plain = questions
    measured, ascent = ("evaluate.heldout", "guard"), ("train.ascend", "unlearn")
    evaluated, counts = ("evaluate.heldout", "evaluate"), ("query.describe", "describe")
    settled = ("query.settle", "settle")
    # Of a client's data, whether they show as members, too: of Original and of the end.
    shown = [("evaluate.membership", "evaluate")] if level == "client" else []
    # Three models, each measured once: Original, and what each ascent makes of it.
    assert sharing == [
        *(evaluated, *shown, counts, ascent, measured, ascent, measured, *shown, settled)
    ]
    # Else Original by the evaluation and by the method; the last model by the method, by recovery,
    # which finds nothing to do, and by the evaluation.
    assert plain == [
        *(evaluated, *shown, measured, counts, ascent, measured, ascent, measured),
        *(measured, evaluated, *shown, settled),
    ]
    one, other = models
    for name in other:
        np.testing.assert_array_equal(one[name], other[name])
    for key in ("original", "recovered", "verdict", "participation"):
        assert records[0][key] == records[1][key], key


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GridFederation]:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "stores"))
    told = values(request="r2", holdout=0.3, forget_level="class", forget_classes=[3])
    with InlineGrid(app, 3, node_config={}, workers=1) as inner:
        grid = NamedGrid(inner, 60.0)
        yield GridFederation(grid, told, Journal(tmp_path / "journal", {}))


def test_another_model_other_erasures_and_other_clients_are_asked_anew(
    federation: GridFederation, asked: ASKED
) -> None:
    model = of_a_model()
    changed = ArrayRecord({n: Array(a.numpy() * np.float32(1.5)) for n, a in model.items()})

    first = federation.accuracies(model)
    assert federation.accuracies(model) == first
    assert len(asked) == 1
    federation.accuracies(changed)
    assert len(asked) == 2
    federation.common["erased_classes"] = [4]
    federation.accuracies(model)
    assert len(asked) == 3
    federation.accuracies(model)
    assert len(asked) == 3
    federation.grid.only = frozenset({"client-0", "client-1"})
    federation.accuracies(model)
    assert len(asked) == 4


def test_who_failed_is_asked_again(
    federation: GridFederation, asked: ASKED, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ask = of_a_model(), nodes.ask

    def without_one(*told: Any, **more: Any) -> Any:
        found = ask(*told, **more)
        gone = sorted(found.metrics)[0]
        del found.metrics[gone]
        found.failures.append(nodes.Failure(gone, "it was busy", "busy"))
        return found

    monkeypatch.setattr(nodes, "ask", without_one)
    federation.plan = nodes.Plan(1, 1.0, 0.5)
    federation.accuracies(model)
    federation.accuracies(model)
    assert len(asked) == 2


def test_counts_are_asked_anew_after_a_round_and_after_what_may_change_a_store(
    federation: GridFederation, asked: ASKED
) -> None:
    federation.describe()
    federation.describe()
    assert len(asked) == 1
    federation.common["erased_classes"] = [4]
    federation.describe()
    assert len(asked) == 2
    federation.settle("forget", destroy=False)
    federation.describe()
    assert [kind for kind, _ in asked] == [
        *["query.describe"] * 2,
        "query.settle",
        "query.describe",
    ]


def test_under_noise_every_answer_is_drawn_and_charged_anew(
    federation: GridFederation, asked: ASKED
) -> None:
    federation.common["noise_multiplier"] = 1.0
    federation.accuracies(of_a_model())
    federation.accuracies(of_a_model())
    assert len(asked) == 2


def test_a_request_that_was_stopped_asks_on_where_it_was(
    federation: GridFederation, asked: ASKED, tmp_path: Path
) -> None:
    model = of_a_model()
    first = [federation.accuracies(model), federation.accuracies(model)]
    again = GridFederation(
        federation.grid, dict(federation.common), Journal(tmp_path / "journal", {})
    )
    assert [again.accuracies(model), again.accuracies(model), again.accuracies(model)][:2] == first
    assert len(asked) == 1
