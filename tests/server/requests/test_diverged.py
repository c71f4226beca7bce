"""Steps that were too large: the error names the phase and the option that makes them smaller."""

import math
from pathlib import Path
from typing import Any

import pytest

from server.evidence.record import Record
from server.runner import run
from server.settings import RunSettings
from strategies.rounds.base import ClientLost
from strategies.smaller_steps import smaller_steps
from strategies.table import method

OTHERS = Path(__file__).parents[2] / "tasks" / "others.py"
JOB = {
    **{"engine": "inline", "num_clients": 3, "partition": "iid", "device": "cpu", "rounds": 2},
    **{"local_steps": 4, "batch_size": 16, "lr": 1e-5, "scale": 0, "evaluate_every": 0},
}


class Quiet:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


def ask(home: Path, **more: Any) -> Record:
    return run(RunSettings(**{**JOB, "home": str(home), **more}).check(), Quiet())


@pytest.fixture
def task(tmp_path: Path) -> str:
    """Return a regression on numbers that are not scaled, whose loss runs away."""
    text = OTHERS.read_text().replace("(targets - targets.mean()) / targets.std()", "10 * targets")
    assert "10 * targets" in text
    (tmp_path / "raw.py").write_text(text)
    return f"{tmp_path / 'raw.py'}:Sugar"


def test_an_ascent_that_diverges_names_the_option_and_a_value(tmp_path: Path, task: str) -> None:
    home = tmp_path / "home"
    ask(home, task=task)
    asked = {"mode": "forget", "forget_clients": "client-1", "method": "sga", "trial": True}
    asked["method_options"] = "clip=0,radius=0"
    with pytest.raises(ClientLost) as lost:
        ask(home, **asked)
    assert lost.value.phase == "unlearn"
    assert [failure.code for failure in lost.value.failures] == ["diverged"]
    told = str(lost.value)
    assert told.startswith("round 1 of unlearn must have 1 answer of 1 client, got 0 (client-1: ")
    assert "loss or weights stopped being finite" in told
    assert told.endswith("try smaller steps, such as --set unlearn-lr=1e-05 (now 0.02)")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "--lr 1e+08 (now 1e+09)"),
        ({"final_lr": 1e5}, "--lr 1e+08 --final-lr 10000 (now 1e+09 and 100000)"),
    ],
)
def test_a_training_that_diverges_names_rates_that_go_together(
    tmp_path: Path, task: str, more: dict[str, float], words: str
) -> None:
    with pytest.raises(ClientLost) as lost:
        ask(tmp_path / "home", task=task, lr=1e9, **more)
    assert str(lost.value).endswith(f"train with smaller steps, such as {words}")


def test_an_ascent_on_a_loss_without_bound_is_held_by_default(tmp_path: Path, task: str) -> None:
    home = tmp_path / "home"
    ask(home, task=task)
    asked = {"mode": "forget", "forget_clients": "client-1", "method": "sga", "trial": True}
    record = ask(home, **asked)
    # 1500 is foretold by a model of 97 weights of length 2 or more: a round goes 0.33 of that.
    (part,) = [one for one in record.participation if one.phase == "unlearn"]
    assert 0.5 < (part.largest_update_norm or 0.0) < 2.5
    assert record.original is not None
    assert record.recovered is not None
    assert (record.recovered.loss or math.inf) < 2 * (record.original.loss or 0.0)


def test_a_training_that_diverges_names_its_own(tmp_path: Path, task: str) -> None:
    with pytest.raises(ClientLost, match=r"such as --lr 0\.5 \(now 5\)$") as lost:
        ask(tmp_path / "home", task=task, lr=5.0)
    assert lost.value.phase == "train"


@pytest.mark.parametrize(
    ("name", "phase", "level", "words"),
    [
        ("quickdrop", "unlearn", "class", "--set unlearn-lr=0.002 (now 0.02)"),
        ("quickdrop", "recover", "class", "--set recover-lr="),
        ("quickdrop", "relearn", "class", "--set relearn-lr=0.005 (now 0.05)"),
        ("quickdrop-calibrated", "unlearn", "client", "--set client-unlearn-lr="),
        ("quickdrop-calibrated", "unlearn", "class", "--set unlearn-lr=0.001 (now 0.01)"),
        ("sga", "recover", "client", "--set unlearn-lr="),  # its own recovery has no rate
        ("sga", "relearn", "class", "the version's own lr, 0.1: train again"),
        ("sga", "retrain", "class", "the version's own lr, 0.1: train again"),
        ("puf", "unlearn", "client", "--set eta-u=0.2 (now 2)"),
        ("influential-de", "unlearn", "class", "--set lr=0.01 (now 0.1)"),
        ("s2u", "unlearn", "client", "the version's own lr, 0.1: train again"),
    ],
)
def test_each_method_and_phase_has_an_option(name: str, phase: str, level: str, words: str) -> None:
    assert words in smaller_steps(method(name, level, {}), phase, level, lr=0.1)


def test_rates_that_fall_are_both_named() -> None:
    told = smaller_steps(method("sga", "class", {}), "retrain", "class", lr=0.1, final_lr=0.02)
    assert told == (
        "these rounds take the version's own rates, 0.1 falling to 0.02: train again with a lower "
        "--lr and --final-lr"
    )
    # No larger than an ordinary round's, which is one as at the end of training.
    asked = method("sga", "class", {"unlearn-lr": "0.5"})
    told = smaller_steps(asked, "unlearn", "class", lr=0.1, final_lr=0.02)
    assert "unlearn-lr=0.02 (now 0.5)" in told


def test_the_value_now_is_the_requests() -> None:
    asked = method("sga", "class", {"unlearn-lr": "0.5"})
    assert "unlearn-lr=0.05 (now 0.5)" in smaller_steps(asked, "unlearn", "class", lr=0.1)
