"""Class-discriminative pruning: scores by hand, and which way they are used."""

import math
from typing import Any

import numpy as np
import pytest

from client.channels.layout import Layer
from client.errors import BadSetting
from strategies.methods.class_pruning import ClassPruning, chosen, explained, tf_idf

# Three classes (rows), three channels (columns): channel 0 is class 0's, channel 1 the others'.
THREE = np.array([[3.0, 0.0, 1.0], [1.0, 2.0, 1.0], [0.0, 4.0, 0.0]])


def layers(*sizes: int) -> list[Layer]:
    return [Layer(f"body.{i}", size, True, ()) for i, size in enumerate(sizes)]


def test_tf_idf_of_three_channels_and_three_classes_by_hand() -> None:
    # TF of class 0: 3/4, 0, 1/4. Every class has the mean 4/3 over its channels; at least that
    # reach channel 0 in class 0, channel 1 in classes 1 and 2, channel 2 in none.
    # IDF: log(4/2), log(4/3), log(4/1).
    expected = [0.75 * math.log(2), 0.0, 0.25 * math.log(4)]
    assert tf_idf(THREE, 0).tolist() == pytest.approx(expected)
    # Class 1: TF 1/4, 1/2, 1/4.
    expected = [0.25 * math.log(2), 0.5 * math.log(4 / 3), 0.25 * math.log(4)]
    assert tf_idf(THREE, 1).tolist() == pytest.approx(expected)


def test_a_channel_that_all_classes_use_scores_nothing() -> None:
    everywhere = np.array([[5.0, 1.0], [5.0, 1.0], [5.0, 1.0]])
    # Channel 0 is above the mean in all 3 classes: log(4/4) = 0.
    assert tf_idf(everywhere, 0)[0] == 0.0


def test_a_class_that_nobody_holds_scores_nothing() -> None:
    assert tf_idf(np.array([[0.0, 0.0], [1.0, 2.0]]), 0).tolist() == [0.0, 0.0]


def test_a_class_that_nobody_holds_does_not_count_among_the_classes() -> None:
    # Else all its channels, 0 as their mean is, would be common ones.
    with_one = np.vstack([THREE, np.zeros((1, 3))])
    assert tf_idf(with_one, 0).tolist() == tf_idf(THREE, 0).tolist()


def test_high_scores_go() -> None:
    scores = {"body.0": tf_idf(THREE, 0)}
    # A third of three channels: channel 0, the most of class 0; 2 has half of its score.
    assert chosen(scores, {}, layers(3), share=1 / 3, scope="global") == {"body.0": (0,)}
    assert chosen(scores, {}, layers(3), share=0.5, scope="global") == {"body.0": (0, 2)}


def test_one_threshold_over_all_layers_or_one_a_layer() -> None:
    scores = {"body.0": np.array([0.9, 0.8, 0.1, 0.2]), "body.1": np.array([0.0, 0.3])}
    # Two of six: both in the first layer. By layer, a third of 4 is 2, of 2 is 1.
    found = chosen(scores, {}, layers(4, 2), share=1 / 3, scope="global")
    assert found == {"body.0": (0, 1)}
    found = chosen(scores, {}, layers(4, 2), share=1 / 3, scope="layer")
    assert found == {"body.0": (0, 1), "body.1": (1,)}


def test_what_is_pruned_stays_pruned_and_is_not_counted_again() -> None:
    scores = {"body.0": np.array([0.9, 0.8, 0.1, 0.2])}
    # Channel 0 is gone; of the three that are left a third goes.
    found = chosen(scores, {"body.0": (0,)}, layers(4), share=1 / 3, scope="global")
    assert found == {"body.0": (0, 1)}


def test_equal_scores_go_in_the_order_of_layers_and_channels() -> None:
    scores = {"body.0": np.ones(3), "body.1": np.ones(3)}
    found = chosen(scores, {}, layers(3, 3), share=0.3, scope="global")
    assert found == {"body.0": (0, 1)}


def test_a_layer_is_never_emptied() -> None:
    scores = {"body.0": np.array([0.9, 0.8]), "body.1": np.array([0.1, 0.2, 0.3])}
    with pytest.raises(BadSetting, match=r"layer body\.0 must keep at least one of its 2 channels"):
        chosen(scores, {}, layers(2, 3), share=0.4, scope="global")


@pytest.mark.parametrize(
    ("sizes", "before", "scope", "remedy"),
    [
        ([2, 3], {}, "global", "lower it, or use scope=layer"),
        ([2, 3], {"body.0": (1,)}, "global", "lower it, or choose another method"),
        ([2, 3], {"body.0": (1,)}, "layer", "choose another method"),
        # Of one convolution both scopes are the same, and of its last channel none can go.
        ([2], {}, "global", "lower it"),
        ([2], {"body.0": (1,)}, "global", "choose another method"),
    ],
)
def test_a_layer_that_would_be_emptied_names_what_helps(
    sizes: list[int], before: dict[str, tuple[int, ...]], scope: str, remedy: str
) -> None:
    scores = {f"body.{n}": np.linspace(0.9 - n / 2, 0.8 - n / 2, k) for n, k in enumerate(sizes)}
    with pytest.raises(BadSetting, match=rf"got none at prune-share 0\.6; {remedy}$"):
        chosen(scores, before, layers(*sizes), share=0.6, scope=scope)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune-share": "0"}, r"prune-share must lie in \(0, 1\), got 0"),
        ({"prune-share": "1.5"}, r"prune-share must lie in \(0, 1\), got 1.5"),
        ({"scope": "model"}, "scope must be one of global, layer, got 'model'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        ClassPruning().with_values(options)


def test_the_report_gets_every_class_s_scores_and_the_choice() -> None:
    found: dict[str, Any] = explained({"body.0": THREE}, {"body.0": (0,)})
    assert found["chosen"] == {"body.0": [0]}
    scores = found["scores"]["body.0"]
    assert scores["columns"] == ["0", "1", "2"]
    # A row a channel, a column a class.
    assert [row[0] for row in scores["values"]] == pytest.approx(tf_idf(THREE, 0).tolist())
