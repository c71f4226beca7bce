"""Wrong labels: never the true one, uniform over the others, drawn by the generator alone."""

import torch

from client.learning.perturbation import wrong_labels

LABELS = torch.arange(3000) % 3


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_labels_to_forget_are_never_the_true_ones_and_the_others_stay() -> None:
    forget = LABELS == 1
    found = wrong_labels(LABELS, forget, 3, draws())
    assert torch.equal(found[~forget], LABELS[~forget])
    assert not bool((found[forget] == 1).any())
    assert found.dtype == torch.int64


def test_every_other_class_is_drawn_equally_often() -> None:
    found = wrong_labels(LABELS, LABELS == 1, 3, draws())[LABELS == 1]
    # 1,000 draws of two classes: 500 each, give or take 4 standard deviations of 15.8.
    assert abs(int((found == 0).sum()) - 500) < 64


def test_two_classes_leave_one_choice() -> None:
    labels = torch.tensor([0, 1, 1])
    assert wrong_labels(labels, torch.ones(3, dtype=torch.bool), 2, draws()).tolist() == [1, 0, 0]


def test_one_seed_gives_the_same_labels_and_another_does_not() -> None:
    everything = torch.ones(3000, dtype=torch.bool)
    once, again, other = (wrong_labels(LABELS, everything, 3, draws(s)) for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
