"""Other ways than the mean to make one model: each by hand on three or five numbers."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from strategies.parts.averaging import PLAIN, Aggregation, shortened, weighted_average


def model(*values: float) -> ArrayRecord:
    return ArrayRecord(
        {
            "w": Array(np.array(values, dtype=np.float32)),
            "n.num_batches_tracked": Array(np.array(round(values[0]))),
        }
    )


def made(kind: str, *ends: float, clip: float = 0.0) -> float:
    """Return what becomes of models at these numbers, each of one example, from one at 0."""
    models, norms = [model(end) for end in ends], [abs(end) for end in ends]
    found = Aggregation(kind, clip).of(model(0.0), models, [1.0] * len(ends), norms)
    assert found["w"].numpy().dtype == np.float32
    assert found["n.num_batches_tracked"].numpy().dtype == np.int64
    return float(found["w"].numpy()[0])


@pytest.mark.parametrize(
    ("kind", "ends", "expected"),
    [
        ("mean", (1.0, 2.0, 900.0), 301.0),
        ("median", (1.0, 2.0, 900.0), 2.0),
        ("median", (1.0, 2.0), 1.5),
        ("trimmed-mean", (1.0, 2.0, 900.0), 2.0),  # one at either end
        ("trimmed-mean", (-900.0, 1.0, 2.0, 900.0), 1.5),
        ("trimmed-mean", (-900.0, 1.0, 2.0, 6.0, 900.0), 3.0),  # a fifth of five is one
        ("trimmed-mean", (1.0, 3.0), 2.0),  # of two none
    ],
)
def test_one_client_pulls_the_mean_and_not_the_middle(
    kind: str, ends: tuple[float, ...], expected: float
) -> None:
    assert made(kind, *ends) == pytest.approx(expected)


def test_a_long_update_is_shortened_before_it_counts() -> None:
    assert made("mean", 1.0, 2.0, 900.0, clip=3.0) == pytest.approx(2.0)
    assert made("median", 1.0, 7.0, 900.0, clip=3.0) == pytest.approx(3.0)


def test_a_shortened_update_has_the_share_asked_for_and_whole_counters() -> None:
    found = shortened(model(0.0, 10.0), model(3.0, 14.0), 0.5)
    assert found["w"].numpy().tolist() == [1.5, 12.0]
    assert int(found["n.num_batches_tracked"].numpy()) == 3


def test_the_plain_mean_is_the_weighted_average_bit_for_bit() -> None:
    models = [model(0.1, 0.2), model(1e7, 3.0)]
    expected = weighted_average(models, [3.0, 4.0])
    found = PLAIN.of(model(0.0, 0.0), models, [3.0, 4.0], [1.0, 1.0])
    assert all(np.array_equal(found[n].numpy(), expected[n].numpy()) for n in expected)
