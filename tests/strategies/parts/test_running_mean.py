"""The mean of models that come one by one: its bits know no order."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from strategies.parts.averaging import weighted_average
from strategies.parts.running_mean import RunningMean


def record(**arrays: object) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def mean(models: list[ArrayRecord], weights: list[float]) -> ArrayRecord:
    found = RunningMean()
    for model, weight in zip(models, weights, strict=True):
        found.add(model, weight)
    return found.mean()


def bits(model: ArrayRecord) -> dict[str, bytes]:
    return {name: array.numpy().tobytes() for name, array in model.items()}


def draws(count: int, spread: float) -> list[ArrayRecord]:
    """Return models whose numbers lie `spread` powers of ten apart, so that order matters."""
    random = np.random.default_rng(5)
    scale = 10.0 ** random.uniform(-spread, spread, (count, 40))
    return [record(w=(random.normal(size=40) * s).astype(np.float32)) for s in scale]


@pytest.mark.parametrize("spread", [0.0, 8.0, 18.0])
def test_every_order_gives_the_same_bits(spread: float) -> None:
    models, weights = draws(6, spread), [3.0, 1.0, 700.0, 2.5, 1 / 3, 12.0]
    pairs = list(zip(models, weights, strict=True))
    found = {
        bits(mean([m for m, _ in order], [w for _, w in order]))["w"]
        for order in list(permutations(pairs))[::7]
    }
    assert len(found) == 1


def test_a_sum_that_cancels_is_that_of_exact_arithmetic() -> None:
    models = draws(9, 3.0)
    models += [record(w=-m["w"].numpy()) for m in models]  # the sum of these 18 is 0
    rest = draws(3, 0.0)
    weights = [float(n) for n in range(1, 10)] * 2 + [5.0, 6.0, 7.0]
    total = sum(map(Fraction, weights))
    exact = [
        sum(
            Fraction(float(m["w"].numpy()[i])) * Fraction(w)
            for m, w in zip(models + rest, weights, strict=True)
        )
        / total
        for i in range(40)
    ]
    wanted = np.array([float(one) for one in exact]).astype(np.float32)
    assert mean(models + rest, weights)["w"].numpy().tobytes() == wanted.tobytes()


def test_it_is_the_mean_of_the_models_that_wait_for_each_other() -> None:
    # Both round a float64 sum to float32 once; of 4,000 numbers a few may fall to the other side.
    random = np.random.default_rng(1)
    models = [record(w=random.normal(size=(40, 100)).astype(np.float32)) for _ in range(7)]
    weights = [10.0, 20.0, 31.0, 4.0, 5.0, 66.0, 7.0]
    one, other = mean(models, weights)["w"].numpy(), weighted_average(models, weights)["w"].numpy()
    assert np.mean(one != other) < 0.001
    np.testing.assert_array_max_ulp(one, other, maxulp=1)


def test_counts_are_rounded_and_forms_stay() -> None:
    one = record(n=np.int64(3), w=np.zeros((2, 0), np.float32), x=np.float32([0.0]))
    other = record(n=np.int64(4), w=np.zeros((2, 0), np.float32), x=np.float32([0.0]))
    found = mean([one, other], [1.0, 3.0])  # 3.75
    assert {n: (a.shape, a.dtype) for n, a in found.items()} == {
        n: (a.shape, a.dtype) for n, a in one.items()
    }
    assert (int(found["n"].numpy()), float(found["x"].numpy()[0])) == (4, 0.0)


def test_what_is_no_model_of_the_mean_is_refused() -> None:
    one = record(w=[1.0, 2.0])
    for model, weight, message in [
        (record(v=[1.0, 2.0]), 1.0, "same tensors"),
        (record(w=[1.0]), 1.0, "one shape and dtype"),
        (record(w=[1.0, np.inf]), 1.0, "finite"),
        (one, -1.0, "at least 0"),
    ]:
        found = RunningMean()
        found.add(one, 1.0)
        with pytest.raises(ValueError, match=message):
            found.add(model, weight)
    with pytest.raises(ValueError, match="positive sum"):
        RunningMean().mean()
