"""How the coordinator puts together what nodes say of members, of whom one may lie."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ArrayRecord

from client.learning.spec import ModelSpec
from server.evidence.verdict import ENOUGH_SITES
from server.nodes.federation import FOR_A_MEDIAN, GridFederation, Surer
from server.storage.journal import Journal
from tests.messages import SPEC, values

CLIENT = {"forget_level": "client", "forget_clients": ["client-0"]}


def said(
    again: tuple[int, float] = (0, 0.0), **each: tuple[int, float, int, float]
) -> dict[str, dict[str, float]]:
    """Return answers: members and their confidence, others and theirs, by client.

    `again` is what the first client says of its members when half of them was learned again.
    """
    keys = ("num-members", "members-confidence", "num-others", "others-confidence")
    return {
        name: {
            **dict(zip(keys, told, strict=True)),
            "num-relearned": 0 if number else again[0],
            "relearned-confidence": 0.0 if number else again[1],
        }
        for number, (name, told) in enumerate(each.items())
    }


def of(*others: tuple[int, float]) -> dict[str, dict[str, float]]:
    return said(
        gone=(100, 90.0, 0, 0.0), **{f"s{i}": (0, 0.0, *one) for i, one in enumerate(others)}
    )


class Told:
    """A federation whose nodes answer what a test says, model by model."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self.lines: list[str] = []
        self.answers = list(answers)
        nodes: Any = SimpleNamespace()  # nobody is asked through it
        self.federation = GridFederation(
            nodes,
            values(request="r2", **CLIENT),
            Journal(folder / "j", {}),
            tell=self.lines.append,
        )
        monkeypatch.setattr(GridFederation, "_ask", lambda *_, **more: self.answers.pop(0))

    def measured(self, spec: ModelSpec = SPEC) -> float | None:
        return self.surer(spec).membership

    def surer(self, spec: ModelSpec = SPEC) -> Surer:
        return self.federation.membership(ArrayRecord(), spec)


def test_one_of_three_other_sites_cannot_set_what_unseen_examples_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FOR_A_MEDIAN == ENOUGH_SITES
    told = Told(tmp_path, monkeypatch, of((10, 5.0), (10, 6.0), (9999, 9999.0)))
    assert told.measured() == pytest.approx(90.0 - 60.0)
    told = Told(tmp_path, monkeypatch, of((10, 5.0), (10, 6.0), (9999, 0.0)))
    assert told.measured() == pytest.approx(90.0 - 50.0)
    # Of two, there is no middle one; together they count by their examples.
    told = Told(tmp_path, monkeypatch, of((10, 5.0), (30, 18.0)))
    assert told.measured() == pytest.approx(90.0 - 57.5)


def test_models_are_compared_by_the_same_examples_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = of((10, 5.0), (10, 6.0), (10, 7.0))
    fewer = of((10, 5.0), (10, 6.0))
    told = Told(tmp_path, monkeypatch, all_of_them, fewer, all_of_them)
    assert told.measured() is not None
    assert told.measured() is None
    assert told.lines == [
        "evaluate: whether members show was not measured: s2 did not answer alike of each model"
    ]
    assert told.measured() is not None


def test_where_no_client_that_is_to_go_answers_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    erased = said(gone=(0, 0.0, 0, 0.0), s1=(0, 0.0, 10, 5.0))
    told = Told(tmp_path, monkeypatch, erased, erased)
    assert told.measured() is told.measured() is None
    (line,) = told.lines
    assert "no client answers of training examples" in line


def test_of_a_task_with_a_loss_of_its_own_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(tmp_path, monkeypatch)
    monkeypatch.setattr(type(SPEC.task), "own_loss", property(lambda self: True))
    assert told.measured() is None
    assert "has a loss of its own" in told.lines[0]


def test_what_was_learned_again_is_held_against_what_the_model_says_of_unseen_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = said((100, 80.0), gone=(100, 60.0, 0, 0.0), other=(0, 0.0, 10, 5.0))
    found = Told(tmp_path, monkeypatch, answers).surer()
    assert found.membership == pytest.approx(60.0 - 50.0)
    assert found.client_relearning == pytest.approx(80.0 - 50.0)
    # Of too few members no half is learned again; the rest is measured.
    answers = said(gone=(3, 2.4, 0, 0.0), other=(0, 0.0, 10, 5.0))
    found = Told(tmp_path, monkeypatch, answers).surer()
    assert (found.membership, found.client_relearning) == (pytest.approx(30.0), None)
    # Nor is a model compared with one of which it was measured.
    first, second = (
        said((number, 40.0), gone=(100, 60.0, 0, 0.0), other=(0, 0.0, 10, 5.0))
        for number in (100, 0)
    )
    told = Told(tmp_path, monkeypatch, first, second)
    assert told.surer().client_relearning is not None
    assert told.surer() == Surer()
