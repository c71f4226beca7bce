"""NoT: exactly the chosen layers' weights change their sign, on the server, before fine-tuning."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from client.errors import BadSetting
from client.learning.models import ModelSpec, build
from client.learning.spec import image_model
from client.wire import ForgetSpec
from strategies.methods.not_negation import WeightNegation, negated, weights_by_layer
from tests.messages import weights
from tests.recording import MODEL, Recording


@dataclass
class Shaped(Recording):
    """Of any model."""

    model_spec: ModelSpec | None = None

    @property
    def spec(self) -> ModelSpec:
        return self.model_spec or super().spec


def changed(before: ArrayRecord, after: ArrayRecord) -> set[str]:
    """Return the arrays that became their negative, if all others are the same bit for bit."""
    assert list(after) == list(before)
    names = set()
    for name in before:
        old, new = before[name].numpy(), after[name].numpy()
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        if not np.array_equal(old, new):
            assert np.array_equal(-old, new)
            names.add(name)
    return names


def forget(model: ArrayRecord, spec: ModelSpec | None = None, **options: str) -> Shaped:
    federation: Any = Shaped(model_spec=spec)
    WeightNegation().with_values(options).forget(federation, model)
    found: Shaped = federation
    return found


def test_the_chosen_array_is_negated_and_the_argument_is_not() -> None:
    found = negated(MODEL, ["body.weight"])
    assert found["body.weight"].numpy().tolist() == [-1.0, -2.0]
    assert MODEL["body.weight"].numpy().tolist() == [1.0, 2.0]
    assert changed(MODEL, found) == {"body.weight"}


def test_the_first_layers_weight_alone_is_negated() -> None:
    model = weights()  # two convolutions with bias and norm, then the classifier
    assert changed(model, forget(model).first("unlearn").model) == {"body.0.weight"}


def test_the_first_so_many_layers_are_negated() -> None:
    model = weights()
    found = changed(model, forget(model, layers="2").first("unlearn").model)
    assert found == {"body.0.weight", "body.4.weight"}


def test_a_residual_networks_first_convolution_is_its_first_layer() -> None:
    spec = image_model("resnet20", num_classes=10, channels=1, image_size=8)
    model = ArrayRecord(build(spec, torch.Generator().manual_seed(0)).state_dict())
    assert changed(model, forget(model, spec).first("unlearn").model) == {"body.0.weight"}


def test_layers_of_every_kind_count_and_frozen_ones_do_not() -> None:
    network = nn.Sequential(nn.Conv1d(3, 4, 5), nn.GroupNorm(2, 4), nn.GRU(4, 2), nn.Linear(2, 2))
    found = [["0.weight"], ["2.weight_ih_l0", "2.weight_hh_l0"], ["3.weight"]]
    network.register_parameter("positions", nn.Parameter(torch.zeros(3, 9)))
    assert weights_by_layer(network) == found
    network[0].requires_grad_(False)  # it does not travel
    assert weights_by_layer(network) == found[1:]


def test_the_classifier_is_never_negated() -> None:
    with pytest.raises(BadSetting, match="layers must be at most 2 of the model's 3, got 3"):
        forget(weights(), layers="3")


def test_negation_is_the_servers_and_fine_tuning_is_everybodys() -> None:
    class Lost(Shaped):
        def accuracies(self, model: Any) -> Any:
            self.retain = 99.0 if not self.steps else 10.0  # before the request, and after
            return super().accuracies(model)

    for what in (ForgetSpec("class", (3,)), ForgetSpec("client", (), ("client-0",))):
        federation: Any = Lost(what)
        WeightNegation().with_values({"rounds": "2"}).forget(federation, weights())
        # Nobody is asked for what is to be forgotten: its holder may be gone.
        assert federation.phases == ["measure", "unlearn", *["measure", "recover"] * 2]
        assert federation.first("unlearn").settings == 0  # no image passed through a model
        step = federation.first("recover")
        left = set(step.participants)
        assert left == {"client-0", "client-1", "client-2"} - set(what.clients)
        assert step.settings.side == "retain"
        assert changed(weights(), step.model) == {"body.0.weight"}
