"""What holds for any input: partitions, slices of channels, settings on the wire, the mean."""

from dataclasses import fields
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.app import handlers
from client.channels.layout import Layer, layout
from client.channels.slices import from_row, scatter, take, to_row
from client.errors import BadSetting
from client.learning.models import NAMES, build
from client.learning.spec import image_model
from client.messages import Common
from client.simulation.partition import MIN_SAMPLES, partition
from client.simulation.settings import Simulation
from server.settings import RunSettings
from strategies.parts.averaging import weighted_average
from tests.messages import values

few = settings(max_examples=40, deadline=None, derandomize=True)
KINDS: list[type[Common]] = sorted((h.kind for h in handlers().values()), key=str)
SMALL = {"lenet5": (1, 28), "resnet18": (3, 8)}  # channels, image size

# ---- partitions ----------------------------------------------------------------------------------

SPECS = st.one_of(
    st.sampled_from(["iid", "one-class", "natural", "shards:1", "shards:2"]),
    st.floats(0.1, 10).map("dirichlet:{}".format),
    st.floats(0.1, 1).map("bias:{}".format),
)


@given(
    spec=SPECS,
    labels=st.lists(st.integers(0, 4), min_size=40, max_size=120),
    num_clients=st.integers(1, 9),
    num_ids=st.integers(9, 20),
    seed=st.integers(0, 2**63 - 1),
)
@few
def test_a_partition_gives_every_example_to_exactly_one_client(
    spec: str, labels: list[int], num_clients: int, num_ids: int, seed: int
) -> None:
    ids = torch.arange(len(labels)) % num_ids
    generator = torch.Generator().manual_seed(seed)
    try:
        parts = partition(spec, torch.tensor(labels), num_clients, generator, ids)
    except BadSetting:
        # More classes than clients, or too few examples for so skewed a draw.
        assert spec.split(":")[0] in ("one-class", "bias", "dirichlet", "shards")
        assume(False)
        raise
    assert len(parts) == num_clients
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    for part in parts:
        assert part.tolist() == sorted(part.tolist())
        assert len(part) >= (1 if spec == "natural" else MIN_SAMPLES)


# ---- slices --------------------------------------------------------------------------------------


@lru_cache
def model(name: str) -> tuple[dict[str, Tensor], tuple[Layer, ...]]:
    channels, size = SMALL.get(name, (1, 8))
    spec = image_model(name, num_classes=3, channels=channels, image_size=size, width=4, depth=2)
    built = build(spec, torch.Generator().manual_seed(0))
    return built.state_dict(), layout(built)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=10, deadline=None, derandomize=True)
def test_slices_come_back_as_they_were_taken(name: str, data: st.DataObject) -> None:
    state, layers = model(name)
    some = data.draw(st.lists(st.sampled_from(layers), min_size=1, max_size=3, unique=True))
    chosen = {
        layer.name: tuple(
            sorted(data.draw(st.sets(st.integers(0, layer.num_channels - 1), min_size=1)))
        )
        for layer in layers
        if layer in some
    }
    slices = take(state, layers, chosen)
    row = to_row(slices)
    assert row.shape == (sum(part.numel() for part in slices.values()),)
    again = from_row(row, slices)
    assert list(again) == list(slices)
    assert all(torch.equal(again[key], slices[key]) for key in slices)

    whole = scatter(state, slices, layers, chosen)
    assert list(whole) == list(state)
    assert all(torch.equal(whole[key], state[key]) for key in state)

    changed = scatter(state, {key: part + 1 for key, part in slices.items()}, layers, chosen)
    found = take(changed, layers, chosen)
    assert all(torch.equal(found[key], slices[key] + 1) for key in slices)
    others = {
        layer.name: left
        for layer in layers
        if (left := tuple(set(range(layer.num_channels)) - set(chosen.get(layer.name, ()))))
    }
    before, after = take(state, layers, others), take(changed, layers, others)
    assert all(torch.equal(before[key], after[key]) for key in before)


# ---- settings ------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.one_of(st.integers(0, 100), st.integers(0, 2**63 - 1)),
    float: st.one_of(st.floats(0, 1), st.floats(0, 1e6)),
    str: TEXTS,
    list[float]: st.lists(st.floats(0, 1), max_size=4),
    list[int]: st.lists(st.integers(0, 1000), max_size=4),
    list[str]: st.lists(TEXTS, max_size=4),
    list[bytes]: st.lists(st.binary(max_size=30), max_size=4),
}


def others(kind: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return values, which fulfil their rules, of some of a kind's fields."""
    drawn = {
        spec.name: BY_TYPE[spec.type].filter(spec.metadata["rule"].holds)
        for spec in fields(kind)
        if "part" not in spec.metadata and possible(spec.type, spec.metadata["rule"])
    }
    return st.fixed_dictionaries({}, optional=drawn)


def possible(kind: Any, rule: Any) -> bool:
    """Return whether values of a type are likely to fulfil a rule: no choice among few texts."""
    examples = {str: ["a", "client 1"], int: [7], float: [0.4], bool: [True]}
    return all(rule.holds(example) for example in examples.get(kind, [[]]))


@given(data=st.data())
@few
def test_a_runs_settings_come_back_from_the_wire(data: st.DataObject) -> None:
    told = RunSettings(**data.draw(others(RunSettings)))
    config = told.config()
    assert isinstance(config, ConfigRecord)
    assert RunSettings.parse(config) == told
    assert RunSettings.parse(told.plain()) == told


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.message.name)
@given(data=st.data())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_messages_settings_come_back_from_the_wire(
    kind: type[Common], data: st.DataObject
) -> None:
    own = {key.replace("-", "_"): value for key, value in kind.message.example.items()}
    simulation = Simulation(dataset="digits", num_clients=3)
    shared = data.draw(st.one_of(st.none(), others(Simulation)))
    told = kind(
        **{
            **values(**own),
            **data.draw(others(kind)),
            "simulation": None if shared is None else Simulation(**{**vars(simulation), **shared}),
        }
    )
    again = kind.parse(told.config())
    assert again == told
    assert again.simulation == told.simulation
    assert again.config() == told.config()


def test_most_settings_are_drawn() -> None:
    drawn = [s.name for s in fields(RunSettings) if possible(s.type, s.metadata["rule"])]
    assert len(drawn) > 40
    assert {"seed", "lr", "dataset", "destroy"} <= set(drawn)


# ---- the weighted mean ---------------------------------------------------------------------------

# Of numbers below a thousand; an integer is the nearest one, at a half either neighbour.
NEAR = {"float32": 1e-4, "float64": 1e-10, "int64": 0.5 + 1e-9}


@given(
    shape=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    weights=st.lists(st.integers(0, 1000), min_size=1, max_size=6).filter(any),
    dtype=st.sampled_from(["float32", "float64", "int64"]),
    seed=st.integers(0, 2**32 - 1),
)
@few
def test_the_weighted_mean_is_that_of_a_slow_sum(
    shape: tuple[int, ...], weights: list[int], dtype: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    arrays = [np.asarray(random.normal(0, 100, shape)).astype(dtype) for _ in weights]
    models = [ArrayRecord({"a": Array(a), "b": Array(np.asarray(a + a))}) for a in arrays]
    found = weighted_average(models, [float(w) for w in weights])
    assert list(found) == ["a", "b"]
    for name, factor in (("a", 1), ("b", 2)):
        mean = found[name].numpy()
        assert (mean.shape, mean.dtype) == (shape, np.dtype(dtype))
        for place in np.ndindex(*shape):
            slow = sum(
                w * factor * float(a[place]) for w, a in zip(weights, arrays, strict=True)
            ) / sum(weights)
            assert abs(float(mean[place]) - slow) <= NEAR[dtype]
