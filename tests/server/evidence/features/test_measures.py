"""All measures together, on models that were trained, edited and turned."""

import json
from dataclasses import replace

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from client.data.datasets import Data, Examples
from client.learning.models import build, state_of, traced
from client.learning.spec import image_model
from client.learning.training import local_sgd, minibatches
from client.seeds import generator
from client.wire import ForgetSpec
from server.evidence.features.measures import feature_measures
from server.evidence.features.scores import FEATURES, FeatureMeasures
from server.evidence.measures import Judge
from server.evidence.serial import plain, read

SPEC = image_model("convnet", 3, channels=1, image_size=8, width=8, depth=1)
HEAD = str(traced(SPEC).head)


def split(count: int, seed: int) -> Examples:
    """Return images of three classes: bright on the left, on the right, and on both sides."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 60, (count, 1, 8, 8), generator=draws, dtype=torch.uint8)
    images[labels != 1, :, :, :4] += 150
    images[labels != 0, :, :, 4:] += 150
    return Examples(images, labels)


DATA = Data(split(90, 1), split(90, 2), mean=(0.4,), std=(0.3,))
JUDGE = Judge(SPEC, DATA, ForgetSpec("class", (2,)))


def trained(*classes: int) -> dict[str, Tensor]:
    """Return the weights of a model that learned these classes from the training part."""
    model = build(SPEC, generator(0, "weights"))
    index = torch.isin(DATA.train.labels, torch.tensor(classes)).nonzero().flatten()

    def pick(batch: Tensor) -> tuple[Tensor, Tensor]:
        chosen = index[batch]
        return SPEC.task.prepare(DATA.train.take(chosen), DATA), DATA.train.wanted(chosen)

    local_sgd(model, pick, minibatches(len(index), 16, 60, generator(0, "order")), lr=0.05)
    return {name: value.clone() for name, value in state_of(SPEC, model).items()}


ORIGINAL, RETRAINED = trained(0, 1, 2), trained(0, 1)


def measured(state: dict[str, Tensor]) -> FeatureMeasures:
    found = feature_measures(
        JUDGE,
        (SPEC, ArrayRecord(ORIGINAL)),
        (SPEC, ArrayRecord(state)),
        (SPEC, ArrayRecord(RETRAINED)),
    )
    assert found.why_not is None
    return found


def hidden() -> dict[str, Tensor]:
    """Return Original with a last layer that never names class 2."""
    state = {name: value.clone() for name, value in ORIGINAL.items()}
    state[f"{HEAD}.bias"][2] = -100.0
    return state


def test_an_edited_last_layer_hides_nothing_from_what_lies_below_it() -> None:
    state = hidden()
    assert JUDGE.quick(ArrayRecord(state))["forget_accuracy"] == 0.0

    found = measured(state)

    # Only the last layer differs, and no measure looks at the result's own row of the class.
    assert found.result is not None
    assert replace(found.result, named=()) == found.original
    # That it answers otherwise is seen: both models name the class that is gone.
    assert found.retrained is not None
    assert found.result.named == found.retrained.named == (2,)
    assert found.result is not None
    assert found.result.head_back == 100.0
    assert found.result.class_means == 100.0


def test_retrained_is_the_yardstick_and_is_compared_with_nothing() -> None:
    found = measured(RETRAINED)
    assert found.retrained is not None
    assert found.result is not None

    assert found.retrained.layers == ()
    # As a result it is as like itself as can be.
    assert [layer.name for layer in found.result.layers][-1] == FEATURES
    assert all(
        round(value or 0.0, 9) == 1.0
        for layer in found.result.layers
        for value in (layer.forget, layer.retain)
    )
    assert found.result.neighbours_forget == found.result.neighbours_retain == 1.0
    assert (
        replace(found.result, layers=(), neighbours_forget=None, neighbours_retain=None)
        == found.retrained
    )
    assert found.original is not None
    assert (found.original.at_features.forget or 1.0) < 1.0


def test_the_same_again_and_through_json() -> None:
    found = measured(hidden())
    assert measured(hidden()) == found
    assert read(FeatureMeasures, json.loads(json.dumps(plain(found)))) == found


def test_the_models_are_left_as_they_are() -> None:
    state = hidden()
    before = {name: value.clone() for name, value in state.items()}
    measured(state)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_without_retrained_there_is_no_likeness() -> None:
    one = (SPEC, ArrayRecord(ORIGINAL))
    found = feature_measures(JUDGE, one, one, None)
    assert found.retrained is None
    assert found.result is not None
    assert (found.result.layers, found.result.neighbours_forget) == ((), None)
    assert found.result.head_back == 100.0


def test_it_says_why_it_does_not_apply() -> None:
    one = (SPEC, ArrayRecord(ORIGINAL))
    client = replace(JUDGE, forget=ForgetSpec("client", clients=("a",)))
    assert feature_measures(client, one, one, one) == FeatureMeasures(why_not="no-last-layer")
    few = replace(JUDGE, data=replace(DATA, test=split(3, 2)))
    assert feature_measures(few, one, one, one) == FeatureMeasures(why_not="too-few-images")
