"""The privacy budget: what mechanisms tell together, and what is refused before it is told."""

import json
import math
import threading
from pathlib import Path

import pytest

from client.budget import ORDERS, Budget, BudgetSpent, Mechanism, epsilon
from client.errors import StoreError

DELTA = 1e-5
FIT = Mechanism(1.0, 0.1, 10)


@pytest.fixture
def budget(tmp_path: Path) -> Budget:
    return Budget(tmp_path / "store")


def charge(
    budget: Budget, mechanism: Mechanism = FIT, limit: float = math.inf, lineage: str = "r1"
) -> None:
    budget.charge(lineage, "train.fit", mechanism, limit=limit, delta=DELTA)


# ---- epsilon ------------------------------------------------------------------------------------


def by_hand(noise: float, times: int, delta: float) -> float:
    """Return the epsilon of a Gaussian mechanism, `times` over, by its Renyi divergence.

    RDP(a) = a / (2 z^2); epsilon = RDP(a) + log((a - 1) / a) - (log delta + log a) / (a - 1)
    (Canonne, Kamath and Steinke 2020, https://arxiv.org/abs/2004.00010, proposition 12).
    """
    return min(
        times * a / (2 * noise**2) + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)
        for a in ORDERS
    )


@pytest.mark.parametrize(("noise", "times"), [(1.0, 1), (4.0, 1), (10.0, 1), (10.0, 30)])
def test_epsilon_of_gaussian_mechanisms_is_that_of_the_formula(noise: float, times: int) -> None:
    found = epsilon([Mechanism(noise, 1.0, times)], DELTA)
    assert found == pytest.approx(by_hand(noise, times, DELTA), rel=1e-9)
    # Renyi divergence bounds from above: by the exact curve of the mechanism
    # (Balle and Wang 2018, theorem 8) delta is met with less.
    sigma = noise / math.sqrt(times)

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    exact = normal(0.5 / sigma - found * sigma) - math.exp(found) * normal(
        -0.5 / sigma - found * sigma
    )
    assert exact <= DELTA


def test_epsilon_of_sampled_steps_is_that_of_the_papers_accountants() -> None:
    # 60,000 examples, batches of 256, 60 epochs, noise 1.1: 3.0 in TensorFlow Privacy's tutorial,
    # with the conversion of its time; the one used here is a little tighter.
    steps = Mechanism(1.1, 256 / 60_000, 60 * 60_000 // 256)
    assert 2.3 < epsilon([steps], DELTA) < 3.01


def test_sampling_hides_and_steps_tell() -> None:
    whole, sampled = Mechanism(1.0, 1.0, 10), Mechanism(1.0, 0.1, 10)
    assert epsilon([sampled], DELTA) < epsilon([whole], DELTA)
    assert epsilon([sampled, sampled], DELTA) == epsilon([Mechanism(1.0, 0.1, 20)], DELTA)
    assert epsilon([sampled, Mechanism(10.0, 1.0, 1)], DELTA) > epsilon([sampled], DELTA)
    assert epsilon([], DELTA) == epsilon([Mechanism(1.0, 0.1, 0)], DELTA) == 0.0


# ---- what a store remembers ---------------------------------------------------------------------


def test_messages_add_up_over_lineages_and_processes(budget: Budget) -> None:
    for _ in range(3):
        charge(Budget(budget.folder))
    charge(budget, Mechanism(2.0, 0.1, 10), lineage="r2")
    assert [(s.lineage, s.mechanism.steps, s.messages) for s in budget.spent()] == [
        ("r1", 30, 3),
        ("r2", 10, 1),
    ]
    assert budget.epsilon(DELTA, lineage="r1") == epsilon([Mechanism(1.0, 0.1, 30)], DELTA)
    assert budget.epsilon(DELTA) > budget.epsilon(DELTA, lineage="r1")


def test_nothing_is_made_by_looking(budget: Budget) -> None:
    assert budget.spent() == []
    assert budget.epsilon(DELTA) == 0.0
    assert not budget.folder.exists()


def test_a_message_over_the_limit_is_refused_and_costs_nothing(budget: Budget) -> None:
    once = epsilon([FIT], DELTA)
    twice = epsilon([FIT, FIT], DELTA)
    limit = (once + twice) / 2
    charge(budget, limit=limit)
    with pytest.raises(BudgetSpent) as refused:
        charge(budget, limit=limit)
    assert str(refused.value).startswith(
        f"epsilon must stay at most {limit:g} at delta 1e-05, got {twice:.3f} with this message; "
        f"{once:.3f} is spent, {limit - once:.3f} is left"
    )
    assert budget.epsilon(DELTA) == once
    charge(budget, Mechanism(50.0, 0.1, 1), limit=limit)  # what still fits is answered


def test_a_limit_below_one_message_refuses_the_first(budget: Budget) -> None:
    with pytest.raises(BudgetSpent, match=r"0\.000 is spent, 0\.100 is left"):
        charge(budget, limit=0.1)
    assert budget.spent() == []


def test_the_files_are_their_owners_alone(budget: Budget) -> None:
    charge(budget)
    for name in ("budget.json", "budget.copy.json"):
        assert (budget.folder / name).stat().st_mode & 0o777 == 0o600
    assert budget.problems() == []


def test_a_budget_that_is_lost_does_not_begin_anew(budget: Budget) -> None:
    charge(budget)
    path = budget.folder / "budget.json"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(StoreError, match=r"must exist beside its copy.*restore it: cp"):
        charge(budget)
    for damage in (whole[:40], b"[]", whole.replace(b'"noise": 1.0', b'"noise": -1.0')):
        path.write_bytes(damage)
        with pytest.raises(StoreError, match="must be valid JSON of this store"):
            charge(budget)
    path.write_bytes(whole.replace(b'"steps": 10', b'"steps": 1'))
    assert "must be the same as budget.copy.json" in budget.problems()[0]
    path.write_bytes(whole)
    assert budget.problems() == []
    assert json.loads(whole)["spent"][0]["mechanism"] == {"noise": 1.0, "rate": 0.1, "steps": 10}


def test_messages_at_the_same_time_are_all_counted(budget: Budget) -> None:
    epsilon([FIT], DELTA)  # the imports, before any thread waits for them
    threads = [threading.Thread(target=charge, args=(budget,)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (spent,) = budget.spent()
    assert (spent.messages, spent.mechanism.steps) == (12, 120)
