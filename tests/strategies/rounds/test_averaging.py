"""The weighted mean of models by hand."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from client.learning.models import build
from client.learning.spec import image_model
from client.seeds import generator
from strategies.parts.averaging import weighted_average


def model(**tensors: np.ndarray) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor) for name, tensor in tensors.items()})


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def test_models_weigh_as_many_examples_as_they_saw() -> None:
    # (1 * (0, 8) + 3 * (4, 0)) / 4 = (3, 2).
    found = weighted_average([model(w=f32(0, 8)), model(w=f32(4, 0))], [1, 3])
    assert found["w"].numpy().tolist() == [3.0, 2.0]
    assert found["w"].numpy().dtype == np.float32


def test_a_weight_of_zero_does_not_count() -> None:
    found = weighted_average([model(w=f32(1)), model(w=f32(99))], [2, 0])
    assert found["w"].numpy().tolist() == [1.0]


def test_one_model_comes_back_bit_for_bit() -> None:
    numbers = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    for weight in (1, 7, 0.1):
        assert np.array_equal(weighted_average([model(w=numbers)], [weight])["w"].numpy(), numbers)


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_integer_buffers_keep_their_dtype_and_are_rounded(dtype: type) -> None:
    # (10 + 10 + 11) / 3 = 10.33 -> 10;  (1 * 1 + 3 * 2) / 4 = 1.75 -> 2.
    tens = [model(n=np.array(n, dtype=dtype)) for n in (10, 10, 11)]
    found = weighted_average(tens, [1, 1, 1])["n"].numpy()
    assert (found.dtype, found.shape, int(found)) == (np.dtype(dtype), (), 10)
    two = [model(n=np.array([n], dtype=dtype)) for n in (1, 2)]
    assert weighted_average(two, [1, 3])["n"].numpy().tolist() == [2]


def test_a_network_with_batch_norm_keeps_names_order_shapes_and_dtypes() -> None:
    spec = image_model("resnet20", num_classes=3, channels=1, image_size=8)
    one, two = (ArrayRecord(build(spec, generator(s, "x")).state_dict()) for s in (0, 1))
    found = weighted_average([one, two], [1, 1])
    assert list(found) == list(one)
    for name in one:
        assert (found[name].shape, found[name].dtype) == (one[name].shape, one[name].dtype)


def test_sums_are_taken_in_double_precision() -> None:
    # In float32 2^24 + 1 is 2^24; the mean of 2^24, 1 and -2^24 would lose the one.
    big = 2.0**24
    found = weighted_average([model(w=f32(big)), model(w=f32(1)), model(w=f32(-big))], [1, 1, 1])
    assert found["w"].numpy()[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [2.0, -1.0]])
def test_weights_that_make_no_mean_are_refused(weights: list[float]) -> None:
    models = [model(w=f32(1))] * len(weights)
    with pytest.raises(ValueError, match="weights must be at least 0 and of positive sum"):
        weighted_average(models, weights)


def test_models_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="the same tensors in the same order"):
        weighted_average([model(w=f32(1)), model(v=f32(1))], [1, 1])
    with pytest.raises(ValueError, match="tensor w must have one shape and dtype"):
        weighted_average([model(w=f32(1)), model(w=f32(1, 2))], [1, 1])
    with pytest.raises(ValueError, match="tensor w must have one shape and dtype"):
        weighted_average([model(w=f32(1)), model(w=np.array([1]))], [1, 1])
