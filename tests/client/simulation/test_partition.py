"""Each partition gives every sample once, follows its rule, and refuses what it cannot do."""

import numpy as np
import pytest
import torch

from client.errors import BadSetting
from client.simulation import partition as module
from client.simulation.partition import MIN_SAMPLES, parse, partition

DRAWN = ("iid", "dirichlet:0.1", "dirichlet:100", "bias:0.1", "bias:0.5", "bias:1", "one-class")
SPECS = (*DRAWN, "shards:1", "shards:2", "natural")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(num_samples: int = 600, num_classes: int = 5) -> torch.Tensor:
    return torch.randint(num_classes, (num_samples,), generator=seeded(7))


def counts(parts: list[torch.Tensor], labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    return torch.stack([torch.bincount(labels[part], minlength=num_classes) for part in parts])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("num_clients", [5, 12])
def test_the_parts_together_are_the_data_set_once(spec, num_clients):
    labels = labels_of()
    ids = torch.arange(600) % 17

    parts = partition(spec, labels, num_clients, seeded(), ids)

    assert len(parts) == num_clients
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(600))
    for part in parts:
        assert part.dtype == torch.int64
        assert torch.equal(part, part.sort().values)
        assert len(part) >= MIN_SAMPLES


@pytest.mark.parametrize("spec", SPECS)
def test_one_seed_gives_one_partition_and_leaves_global_randomness_alone(spec):
    labels = labels_of()
    ids = torch.arange(600) % 17
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()

    first = partition(spec, labels, 7, seeded(3), ids)
    second = partition(spec, labels, 7, seeded(3), ids)

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()


@pytest.mark.parametrize("spec", [*DRAWN, "shards:2"])
def test_another_seed_gives_another_partition(spec):
    first = partition(spec, labels_of(), 7, seeded(3))
    second = partition(spec, labels_of(), 7, seeded(4))
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_two_calls_on_one_generator_differ():
    generator = seeded()
    first, second = (partition("iid", labels_of(), 5, generator) for _ in range(2))
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_iid_sizes_differ_by_at_most_one():
    # 600 = 7 x 85 + 5: five clients of 86, two of 85.
    sizes = sorted(len(part) for part in partition("iid", labels_of(), 7, seeded()))
    assert sizes == [85, 85, 86, 86, 86, 86, 86]


def test_a_small_alpha_skews_and_a_large_one_evens_out():
    labels = torch.arange(10_000) % 10  # 1000 of each class

    even = counts(partition("dirichlet:10000", labels, 10, seeded()), labels, 10)
    skewed = counts(partition("dirichlet:0.1", labels, 10, seeded()), labels, 10)

    # A share of Dirichlet(10000 x 10) is 0.1 with standard deviation 0.001: 100 +- 1 of 1000.
    assert (even - 100).abs().max() <= 6
    # At alpha 0.1 the largest of ten shares is 0.6 or so on average; at most a sample may be lost
    # to rounding.
    assert skewed.max(dim=0).values.double().mean() > 400
    assert torch.equal(skewed.sum(dim=0), torch.full((10,), 1000))


def test_dirichlet_cuts_each_class_at_the_drawn_shares():
    class Fixed:
        def dirichlet(self, alpha, size):
            return np.array([[0.25, 0.75], [0.5, 0.5]])

        def permutation(self, indices):
            return indices

    members = [np.arange(0, 8), np.arange(8, 12)]
    first, second = module._dirichlet(members, 2, 0.5, Fixed())

    # Class 0 has 8 samples: 2 and 6. Class 1 has 4: 2 and 2.
    assert first.tolist() == [0, 1, 8, 9]
    assert second.tolist() == [2, 3, 4, 5, 6, 7, 10, 11]


def test_dirichlet_draws_again_while_a_client_has_too_few_samples():
    # 40 clients over 10 classes at alpha 0.1: single draws often leave a client without data.
    labels = torch.arange(4000) % 10
    for seed in range(5):
        parts = partition("dirichlet:0.1", labels, 40, seeded(seed))
        assert min(len(part) for part in parts) >= MIN_SAMPLES


def test_dirichlet_gives_up_with_a_message():
    labels = torch.arange(200) % 2
    with pytest.raises(
        BadSetting,
        match=r"partition 'dirichlet:0.01' must leave at least 2 samples a client, got at most 0 "
        r"at the smallest of 50 clients in 1000 draws; use fewer clients, a larger alpha",
    ):
        partition("dirichlet:0.01", labels, 50, seeded())


def test_a_tiny_alpha_gives_a_class_to_one_client():
    labels = torch.arange(300) % 3
    table = counts(partition("dirichlet:0.001", labels, 2, seeded()), labels, 3)
    assert (table.max(dim=0).values == 100).all()


def test_bias_one_gives_each_group_one_class_alone():
    labels = torch.arange(600) % 3
    table = counts(partition("bias:1", labels, 6, seeded()), labels, 3)

    # Three groups of two clients: each class's 200 samples go to two clients, 100 each.
    assert sorted(table.max(dim=1).values.tolist()) == [100] * 6
    assert ((table > 0).sum(dim=1) == 1).all()
    assert ((table > 0).sum(dim=0) == 2).all()


def test_bias_q_is_the_share_of_a_class_that_its_own_group_gets():
    labels = torch.arange(30_000) % 3
    table = counts(partition("bias:0.6", labels, 3, seeded()), labels, 3).double() / 10_000

    # One client a group: 0.6 of its own class, (1 - 0.6) / 2 = 0.2 of each other; standard
    # deviation sqrt(0.24 / 10000) = 0.005.
    own = table.max(dim=1).values
    others = table.sort(dim=1).values[:, :2]
    torch.testing.assert_close(own, torch.full((3,), 0.6).double(), atol=0.025, rtol=0)
    torch.testing.assert_close(others, torch.full((3, 2), 0.2).double(), atol=0.025, rtol=0)


def test_bias_of_one_over_the_classes_is_iid():
    labels = torch.arange(20_000) % 4
    table = counts(partition("bias:0.25", labels, 4, seeded()), labels, 4).double() / 5000
    torch.testing.assert_close(table, torch.full((4, 4), 0.25).double(), atol=0.03, rtol=0)


def test_one_class_gives_client_i_the_class_i_modulo_the_classes():
    labels = torch.tensor([4, 4, 4, 4, 9, 9, 9, 9, 9])
    parts = partition("one-class", labels, 3, seeded())

    # Classes 4 and 9: clients 0 and 2 share class 4, client 1 has all of class 9.
    assert [labels[part].tolist() for part in parts] == [[4, 4], [9] * 5, [4, 4]]


def test_shards_limit_the_classes_of_a_client():
    labels = torch.arange(1000) % 10  # 20 shards of 50: each lies within one class of 100
    table = counts(partition("shards:2", labels, 10, seeded()), labels, 10)
    assert ((table > 0).sum(dim=1) <= 2).all()
    assert (table.sum(dim=1) == 100).all()


def test_natural_gives_client_i_the_ith_smallest_id():
    ids = torch.tensor([30, 10, 20, 10, 30])
    parts = partition("natural", torch.zeros(5, dtype=torch.int64), 3, seeded(), ids)
    assert [part.tolist() for part in parts] == [[1, 3], [2], [0, 4]]


def test_natural_deals_ids_to_the_client_with_fewest_samples_and_never_splits_one():
    ids = torch.tensor([5] * 4 + [6] * 3 + [7] * 2 + [8])
    parts = partition("natural", torch.zeros(10, dtype=torch.int64), 2, seeded(), ids)
    # 5 (4) to client 0, 6 (3) to client 1, 7 (2) to client 1 (3 < 4), 8 (1) to client 0 (4 < 5).
    assert [sorted(set(ids[part].tolist())) for part in parts] == [[5, 8], [6, 7]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "partition must be one of iid, dirichlet:ALPHA, bias:Q, one-class, .*, got ''"),
        ("idd", "partition must be one of .*, got 'idd'"),
        ("iid:1", "partition must be one of .*, got 'iid:1'"),
        ("dirichlet", "partition must be one of .*, got 'dirichlet'"),
        ("dirichlet:", "partition must be one of .*, got 'dirichlet:'"),
        ("dirichlet:0", "alpha of dirichlet must be a positive number, got '0'"),
        ("dirichlet:-1", "alpha of dirichlet must be a positive number, got '-1'"),
        ("dirichlet:nan", "alpha of dirichlet must be a positive number, got 'nan'"),
        ("dirichlet:inf", "alpha of dirichlet must be a positive number, got 'inf'"),
        ("dirichlet:x", "alpha of dirichlet must be a positive number, got 'x'"),
        ("bias:0", "probability of bias must be above 0 and at most 1, got '0'"),
        ("bias:1.1", "probability of bias must be above 0 and at most 1, got '1.1'"),
        ("shards:0", "number of shards must be a whole number of at least 1, got '0'"),
        ("shards:1.5", "number of shards must be a whole number of at least 1, got '1.5'"),
    ],
)
def test_a_bad_spec_is_refused_without_data(spec, message):
    with pytest.raises(BadSetting, match=message):
        parse(spec)


@pytest.mark.parametrize(
    ("spec", "num_clients", "message"),
    [
        ("iid", 0, "num-clients must be at least 1, got 0"),
        ("iid", 16, "at least 2 samples a client, got 16 clients for 30 samples"),
        ("bias:0.5", 2, "at least the number of classes .* got 2 clients for 3 classes"),
        ("one-class", 2, "at least the number of classes .* got 2 clients for 3 classes"),
        ("shards:20", 2, "at most one shard a sample, got 2 x 20 shards for 30 samples"),
        ("natural", 2, "must have a column of ids, got a data set without"),
    ],
)
def test_a_partition_that_cannot_be_made_is_refused(spec, num_clients, message):
    with pytest.raises(BadSetting, match=message):
        partition(spec, torch.arange(30) % 3, num_clients, seeded())


def test_a_class_too_small_for_its_clients_is_refused():
    labels = torch.tensor([0] * 20 + [1] * 3)
    with pytest.raises(
        BadSetting,
        match="'one-class' must leave at least 2 samples a client, got 1 at client 3 of 4",
    ):
        partition("one-class", labels, 4, seeded())


def test_natural_with_more_clients_than_ids_or_odd_ids_is_refused():
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(BadSetting, match=r"at most the number of ids .* got 3 clients for 2 ids"):
        partition("natural", labels, 3, seeded(), torch.tensor([1, 1, 2, 2]))
    with pytest.raises(BadSetting, match=r"ids must have the labels' shape \(4,\), got \(3,\)"):
        partition("natural", labels, 2, seeded(), torch.tensor([1, 1, 2]))
