"""benchmarks/turned.py: what a change of all images alike hides from Original's row, by hand."""

import torch
from flwr.app import ArrayRecord

from benchmarks.turned import looked_at, moved_back, put_back, table
from tests.server.evidence.features.test_measures import JUDGE, ORIGINAL
from tests.server.evidence.features.test_measures import RETRAINED as NEW

# Three classes by their own feature; the row of class 2 reads the third.
LAYER = (torch.eye(3), torch.zeros(3))
FIRST = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [1.0, 0.0, 4.0]])


def test_features_that_all_moved_alike_hide_the_class_until_they_are_moved_back() -> None:
    found = FIRST - torch.tensor([0.0, 0.0, 6.0])
    kept = torch.tensor([0, 1])
    assert put_back(FIRST, LAYER, LAYER, 2).tolist() == [0, 1, 2]
    assert put_back(found, LAYER, LAYER, 2).tolist() == [0, 1, 0]
    torch.testing.assert_close(moved_back(found, FIRST, kept), FIRST)


def test_features_that_lost_the_class_are_not_found_by_moving() -> None:
    found = torch.tensor([[5.0, 0.0, -6.0], [0.0, 5.0, -6.0], [5.0, 0.0, -6.0]])
    moved = moved_back(found, FIRST, torch.tensor([0, 1]))
    assert put_back(moved, LAYER, LAYER, 2).tolist() == [0, 1, 0]


def test_the_row_put_back_is_originals_and_the_others_are_the_models_own() -> None:
    own = (torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -9.0]]), torch.zeros(3))
    assert put_back(FIRST, own, LAYER, 2).tolist() == [0, 1, 2]
    masked = (LAYER[0], torch.tensor([0.0, 0.0, -100.0]))
    assert put_back(FIRST, LAYER, masked, 2).tolist() == [0, 1, 0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_a_model_with_original_first() -> None:
    seen = {n: looked_at(JUDGE, ArrayRecord(m)) for n, m in (("Original", ORIGINAL), ("New", NEW))}
    head, _, original, new = table(seen, 2, [0, 1])
    assert cells(original)[:5] == ["Original", *["100.0"] * 4]
    assert cells(new)[0] == "New"
    assert len(cells(head)) == len(cells(original)) == len(cells(new))


def test_what_was_shifted_is_found_by_all_but_head_back_and_what_was_lost_by_none() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    features = 5.0 * torch.eye(3)[labels] + torch.randn(300, 3, generator=draws) / 10
    shifted = features - torch.tensor([0.0, 0.0, 9.0])
    lost = features.clone()  # images of class 2 have the features of class 0
    lost[labels == 2] = lost[labels == 2].roll(1, dims=1)
    seen = {
        name: (found, labels, LAYER)
        for name, found in (("Original", features), ("Shifted", shifted), ("Lost", lost))
    }
    _, _, *rows = table(seen, 2, [0, 1])
    # Head back, the same with the mean moved back, matched head, turned head.
    assert [cells(row)[1:5] for row in rows] == [
        ["100.0", "100.0", "100.0", "100.0"],
        ["0.0", "100.0", "100.0", "100.0"],
        ["0.0", "0.0", "0.0", "0.0"],
    ]
