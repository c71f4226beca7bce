"""Whatever one of three nodes answers, in a round of any kind: the round is sound, or names it.

Real replies are changed at random. Either the result is finite and of the form that the honest
answers give it, or the round ends with `ClientLost` or `NothingTouched` that names the node.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strategies.rounds.base import ClientLost, NothingTouched, Rounds
from strategies.rounds.failures import cleaned
from tests.attacks.replies import EVIL, KINDS, Played, play

NUMBERS = st.one_of(
    st.integers(),
    st.integers(0, 200),
    st.floats(),
    st.floats(0, 100),
    st.lists(st.floats(), max_size=12),
    st.lists(st.integers(-(2**70), 2**70), max_size=12),
    st.lists(st.floats(0, 50), min_size=10, max_size=10),
)
DTYPES = st.sampled_from(["float32", "float64", "float16", "int64", "uint8", "bool", ">f4", "U3"])
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
FILLS = st.sampled_from([0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e30, -1e17, 1e-40])


@pytest.fixture(scope="module", autouse=True)
def _node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    played.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFACE_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@lru_cache(maxsize=len(KINDS))
def played(kind: str) -> Played:
    return play(kind)


@st.composite
def changed(draw: st.DrawFn, array: Array) -> Array:
    """Return an array that is no longer what was sent."""
    how = draw(st.sampled_from(["fill", "numbers", "form", "bytes", "claims", "same"]))
    values = array.numpy()
    if how == "fill":
        with np.errstate(all="ignore"):
            return Array(np.asarray(np.full(values.shape, draw(FILLS)).astype(values.dtype)))
    if how == "numbers":
        with np.errstate(all="ignore"):
            times = np.asarray(draw(st.floats(width=32)))
            return Array(np.asarray((values * times).astype(values.dtype)))
    if how == "form":
        return Array(np.zeros(draw(SHAPES), draw(DTYPES)))
    if how == "bytes":
        cut = draw(st.integers(0, len(array.data)))
        noise = draw(st.binary(max_size=40))
        return Array(array.dtype, array.shape, array.stype, array.data[:cut] + noise)
    if how == "claims":
        return Array(
            draw(st.one_of(DTYPES, st.text(max_size=5))),
            tuple(draw(st.lists(st.integers(-3, 2**62), max_size=3))),
            draw(st.sampled_from(["numpy.ndarray", "", "pickle"])),
            array.data,
        )
    return array


@st.composite
def hostile(draw: st.DrawFn, real: tuple[dict[str, Array], dict[str, Any]]) -> RecordDict:
    """Return a reply made of a real one."""
    arrays, numbers = dict(real[0]), dict(real[1])
    names = sorted(arrays)
    for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else []:
        arrays[name] = draw(changed(arrays[name]))
    for name in draw(st.lists(st.sampled_from(names), max_size=1)) if names else []:
        del arrays[name]
    for key in draw(st.lists(st.sampled_from(sorted(numbers)), max_size=3, unique=True)):
        value = draw(NUMBERS)
        numbers[key] = value
    for key in draw(st.lists(st.sampled_from(sorted(numbers)), max_size=1)):
        del numbers[key]
    if draw(st.integers(0, 9)) == 0:
        numbers[draw(st.text(max_size=20))] = 1.0
    if draw(st.integers(0, 9)) == 0:
        arrays[draw(st.text(max_size=20))] = Array(np.zeros(2))
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(numbers)})
    match draw(st.integers(0, 19)):
        case 0:
            content["more"] = ConfigRecord({"a": 1})
        case 1:
            del content["arrays"]
        case 2:
            content["twice"] = MetricRecord(numbers)
    return content


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_any_answer_is_sound_or_its_nodes_failure(kind: str, data: st.DataObject) -> None:
    real = played(kind)
    content = data.draw(hostile(real.answers[real.evil]))
    rounds = real.rounds()
    found = outcome(real, rounds, content)
    if isinstance(found, str):
        assert EVIL in found
        assert found == cleaned(found, longest=10_000)
        return
    expected = form(real.result(real.rounds(), None))
    assert form(found) == expected
    for array in found.values():
        assert np.isfinite(array.numpy()).all()
    assert all(failure.client == EVIL for failure in rounds.failures)
    assert all(np.isfinite(norm) for norm in rounds.norms.values())


def outcome(real: Played, rounds: Rounds, content: RecordDict) -> ArrayRecord | str:
    """Return what comes of a round; why it ended, where nothing comes of it."""
    try:
        return real.result(rounds, content)
    except (ClientLost, NothingTouched) as error:
        return str(error)


def form(arrays: ArrayRecord) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (tuple(a.numpy().shape), str(a.numpy().dtype)) for name, a in arrays.items()}


def test_the_random_answers_reach_both_ends() -> None:
    """A fuzz test that never gets a reply through, or never has one refused, tests nothing."""
    real, outcomes = played("fit"), set()

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(content=hostile(real.answers[real.evil]))
    def look(content: RecordDict) -> None:
        rounds = real.rounds()
        real.result(rounds, content)
        outcomes.add(bool(rounds.failures))

    look()
    assert outcomes == {True, False}
