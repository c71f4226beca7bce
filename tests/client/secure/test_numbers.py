"""Fixed point, masks, and answers as vectors."""

import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from client.errors import AggregationRefused
from client.messages import WORK, Declaration
from client.secure import fixed_point, masks
from client.secure.vector import (
    Shape,
    decoded,
    encoded,
    forms_from_bytes,
    forms_to_bytes,
    length,
)

FIT = Declaration("train.fit", example={}, arrays="model", metrics=WORK, sums="mean")
SUMS = Declaration(
    "train.representation",
    example={},
    arrays="class-sums",
    metrics={"count-per-class": "per-class"},
    sums="sum",
)
FORMS = {"w": Shape((2, 2), "float32"), "count": Shape((), "int64")}


def stream(key: bytes, number: int) -> np.ndarray:
    raw = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * number))
    return np.frombuffer(raw, dtype="<u8")


@pytest.mark.parametrize("size", [0, 1, 7, 2**15, 2**15 + 1, 100_001])
def test_masks_are_chacha20_whatever_the_chunks(size: int) -> None:
    one, other = b"1" * 32, b"2" * 32
    vector = np.arange(size, dtype=np.uint64)
    masks.apply(vector, [one], [other])
    expected = np.arange(size, dtype=np.uint64) + stream(one, size) - stream(other, size)
    assert np.array_equal(vector, expected)
    masks.apply(vector, [other], [one])
    assert np.array_equal(vector, np.arange(size, dtype=np.uint64))


def test_fixed_point_rounds_to_the_nearest_and_wraps_around() -> None:
    # 2^24 = 16777216; a quarter of a unit rounds away, three quarters of one round up.
    unit = 2.0**-24
    values = np.array([1.0, -1.0, 0.25 * unit, 0.75 * unit, -0.75 * unit])
    into = np.zeros(5, dtype=np.int64)
    fixed_point.encode(values, 1.0, 10, "x", into)
    assert into.tolist() == [16777216, -16777216, 0, 1, -1]
    assert into.view(np.uint64)[1] == 2**64 - 16777216
    fixed_point.encode(values[:1], 3.0, 10, "x", into[:1])
    assert into[0] == 3 * 16777216


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e12, -1e12])
def test_what_is_out_of_range_is_refused(bad: float) -> None:
    # 2^61 / 2^24 / 10 nodes is about 1.4e10.
    values = np.array([0.0, bad, 0.0], dtype=np.float32)
    with pytest.raises(AggregationRefused, match=r"loss must lie in \[-1.37e\+10, 1.37e\+10\]"):
        fixed_point.encode(values, 1.0, 10, "loss", np.zeros(3, dtype=np.int64))


def test_the_largest_numbers_of_all_nodes_still_add_up() -> None:
    most = np.array([fixed_point.limit(10), -fixed_point.limit(10)])
    total = np.zeros(2, dtype=np.uint64)
    for _ in range(10):
        into = np.zeros(2, dtype=np.int64)
        fixed_point.encode(most, 1.0, 10, "x", into)
        total += into.view(np.uint64)
    fixed_point.check_sum(total.view(np.int64))
    found = fixed_point.decode(total.view(np.int64))
    assert found == pytest.approx([2.0**37, -(2.0**37)], rel=1e-12)


def test_a_sum_beyond_the_range_is_refused() -> None:
    for bad in (2**62 + 1, -(2**62) - 1, -(2**63)):
        with pytest.raises(AggregationRefused, match="within the range"):
            fixed_point.check_sum(np.array([0, bad], dtype=np.int64))


def test_the_mean_of_the_sum_is_the_weighted_mean() -> None:
    answers = [
        (3, 0.5, {"w": np.full((2, 2), 1.0, np.float32), "count": np.array(4)}),
        (1, 1.5, {"w": np.full((2, 2), 5.0, np.float32), "count": np.array(8)}),
    ]
    total = np.zeros(length(FIT, 10, FORMS), dtype=np.uint64)
    for examples, loss, arrays in answers:
        numbers = {"num-examples": examples, "loss": loss, "samples": 10, "num-steps": 1}
        total += encoded(FIT, numbers, arrays, FORMS, num_classes=10, num_nodes=3)
    # A third node has nothing, and what it would send does not count.
    total += encoded(
        FIT, {"num-examples": 0, "loss": 9.0}, answers[0][2], FORMS, num_classes=10, num_nodes=3
    )
    found = decoded(FIT, total, FORMS, num_classes=10)
    assert found.examples == 4
    assert found.numbers["samples"] == 20
    assert found.numbers["loss"] == pytest.approx((3 * 0.5 + 1.5) / 4)
    # (3 * 1 + 1 * 5) / 4 = 2; (3 * 4 + 8) / 4 = 5.
    assert found.arrays["w"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert found.arrays["w"].dtype == np.float32
    assert found.arrays["count"] == 5
    assert found.arrays["count"].dtype == np.int64
    assert list(found.arrays) == list(FORMS)


@pytest.mark.parametrize("num_nodes", [3, 10, 100])
def test_the_mean_of_many_is_near_the_exact_one(num_nodes: int) -> None:
    # Every node rounds by half a unit of 2^-24 at most; with an example or more each the mean of
    # what they send is off by as much at most.
    forms = {"w": Shape((2000,), "float64")}
    draws = np.random.default_rng(0)
    total = np.zeros(length(FIT, 10, forms), dtype=np.uint64)
    exact, all_examples = np.zeros(2000, dtype=np.longdouble), 0
    for i in range(num_nodes):
        examples, w = (
            (1 if i % 3 else 6000),
            draws.normal(scale=[0.01, 1.0, 1000.0][i % 3], size=2000),
        )
        numbers = {"num-examples": examples, "loss": 1.0}
        total += encoded(FIT, numbers, {"w": w}, forms, num_classes=10, num_nodes=num_nodes)
        exact += examples * w.astype(np.longdouble)
        all_examples += examples
    found = decoded(FIT, total, forms, num_classes=10)
    assert found.examples == all_examples
    error = np.abs(found.arrays["w"] - (exact / all_examples).astype(np.float64))
    assert error.max() <= 2.0**-25 * num_nodes / all_examples + 1e-12


def test_sums_add_up_as_they_are() -> None:
    forms = {"layer": Shape((2,), "float64")}
    total = np.zeros(length(SUMS, 3, forms), dtype=np.uint64)
    for examples in (5, 7):
        numbers = {"num-examples": examples, "count-per-class": [1.0, 2.0, 0.0]}
        arrays = {"layer": np.array([0.25, -1.0])}
        total += encoded(SUMS, numbers, arrays, forms, num_classes=3, num_nodes=3)
    found = decoded(SUMS, total, forms, num_classes=3)
    assert found.arrays["layer"].tolist() == [0.5, -2.0]
    assert found.numbers["count-per-class"] == [2.0, 4.0, 0.0]


def test_a_sum_with_a_mask_left_in_it_is_no_answer() -> None:
    numbers = {"num-examples": 5, "loss": 1.0}
    arrays = {"w": np.ones((2, 2), np.float32), "count": np.array(1)}
    total = encoded(FIT, numbers, arrays, FORMS, num_classes=10, num_nodes=3)
    masks.apply(total, [b"1" * 32])
    with pytest.raises(AggregationRefused):
        decoded(FIT, total, FORMS, num_classes=10)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}x",
        b"[1]",
        b'[["w", [2], "object"]]',
        b'[["w", [-1], "float32"]]',
        b'[["w", ["2"], "float32"]]',
        b'[[1, [2], "float32"]]',
        b'[["w", [1], "float32"], ["w", [1], "float32"]]',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_forms_that_are_none_are_refused(raw: bytes) -> None:
    with pytest.raises(AggregationRefused, match="must be names, shapes and dtypes"):
        forms_from_bytes(raw)
    assert forms_from_bytes(forms_to_bytes(FORMS)) == FORMS
