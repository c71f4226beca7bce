"""benchmarks/turned.py: what a change of all images alike hides from Original's row, by hand."""

import torch
from flwr.app import ArrayRecord

from benchmarks.turned import moved_back, put_back, table
from tests.server.evidence.features.test_measures import JUDGE, ORIGINAL, RETRAINED

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


def test_a_row_a_model_with_original_first() -> None:
    models = {"Original": ArrayRecord(ORIGINAL), "Retrained": ArrayRecord(RETRAINED)}
    _, _, original, retrained = table(JUDGE, models)
    cells = [cell.strip() for cell in original.strip("|").split("|")]
    assert cells[:4] == ["Original", "100.0", "100.0", "100.0"]
    assert retrained.startswith("| Retrained | ")
