"""Cheats that a verdict by three retrained models must catch, on digits."""

from functools import cached_property

import pytest
import torch

from benchmarks.cheats import Asked, Cheater, State, goals_of, judged
from client.seeds import derive
from server.evidence.stock import Retraining
from server.evidence.verdict import Verdict


class Made:
    """One Original, three retrained models and an honest one; all models of the tests."""

    def __init__(self) -> None:
        self.bench = Asked("digits", "", 3, 4000, 16, 2, 200, 64, 0.05).bench("cpu")
        everything = torch.arange(len(self.bench.data.train.labels))
        self.original = self.bench.train(everything, 0)
        self.cheater = Cheater(self.bench, self.original)
        self.before = self.measured(self.original)
        self.stock = [self.retrained(number) for number in range(3)]
        self.cheater.goals = goals_of(self.stock)

    def retrained(self, number: int) -> Retraining:
        seed = derive(0, "yardstick", number)
        return self.measured(self.bench.train(self.bench.positions(forgotten=False), seed), number)

    def measured(self, state: State, number: int = 0) -> Retraining:
        return self.bench.measure(number, number, state, self.original)

    @cached_property
    def honest(self) -> Retraining:
        return self.retrained(3)

    def judged(self, result: Retraining, level: str = "class") -> Verdict:
        return judged(result, self.before, self.stock, self.bench, level)


@pytest.fixture(scope="module")
def made() -> Made:
    return Made()


def test_an_honest_retraining_passes(made: Made) -> None:
    assert made.judged(made.honest).state == "passed"
    # Likewise of a client that alone holds the class.
    assert made.judged(made.honest, "client").state == "passed"


@pytest.mark.parametrize(
    ("name", "found_by"),
    [
        ("nothing done", "forget-accuracy"),
        ("logit masked", "head-back"),
        ("row averaged away", "head-back"),
        ("last layer fine-tuned", "head-back"),
        ("wrong class", "forget-accuracy"),
        ("older version", "forget-accuracy"),
        ("noise on the weights", "forget-accuracy"),
        ("masked, channels in another order", "matched-head"),
        ("masked, channels longer and shorter", "matched-head"),
        ("one holder of three", "forget-accuracy"),
        ("one tiny step, held down", "matched-head"),
        ("retrained, taught the class again, masked", "matched-head"),
        ("tuned: forget-accuracy", "relearning-curve"),
        ("tuned: relearning-curve", "matched-head"),
        ("tuned: head-back", "matched-head"),
    ],
)
def test_a_cheat_is_found_by_what_it_does_not_hide_from(
    made: Made, name: str, found_by: str
) -> None:
    result = made.measured(made.cheater.all[name]())
    for level in ("class", "client"):
        verdict = made.judged(result, level)
        assert verdict.state == "failed"
        assert found_by in [f.code for f in verdict.findings if f.state == "exceeded"]


@pytest.mark.parametrize("longer", [False, True])
def test_channels_in_another_order_are_the_same_function(made: Made, longer: bool) -> None:
    turned = made.cheater.reordered(made.original, longer=longer)
    inputs, _ = made.bench.pick(torch.arange(50))
    with torch.no_grad():
        own, found = (made.bench.network(one).eval()(inputs) for one in (made.original, turned))
    torch.testing.assert_close(found, own, atol=1e-4, rtol=1e-4)
    assert made.measured(turned).numbers["head back"] != made.before.numbers["head back"]
