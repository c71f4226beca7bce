"""What a network is: its last layer, its stem, what of it travels; on networks of many kinds."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from client.errors import BadSetting, EffaceError
from client.learning.models import NAMES, build, compact, loaded, shaped
from client.learning.spec import image_model
from client.learning.trace import (
    Trace,
    features_and_logits,
    frozen_digest,
    frozen_norms_still,
    is_plain,
    mixes_examples,
    trace,
    train_mode,
)
from tests.own_networks import NETWORKS, Adapter, batch, network


def traced(name: str) -> Trace:
    return trace(network(name), batch(name)[0])


# ---- the built-in networks ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_network_is_found_as_it_says_itself(name: str) -> None:
    model = shaped(image_model(name, num_classes=4, channels=3, image_size=32, width=4, depth=3))
    found = trace(model, torch.zeros(2, 3, 32, 32, device="meta"))
    own = {module: key for key, module in model.named_modules()}
    stem = {"lenet": ["0"], "resnet18": ["conv1", "bn1"]}.get(name, ["0", "1"])
    assert (found.head, found.num_outputs) == ("classifier", 4)
    assert found.stem == tuple(f"body.{module}" for module in stem)
    assert set(found.convolutions) == {k for m, k in own.items() if isinstance(m, nn.Conv2d)}
    assert found.trainable == tuple(key for key, _ in model.named_parameters())
    assert found.travels == tuple(model.state_dict())
    assert found.frozen == found.aliases == found.others == found.shared == found.frozen_norms == ()
    assert found.mixes_examples == (name not in ("convnet", "lenet"))


def test_a_network_of_one_convolution_has_no_stem() -> None:
    spec = image_model("convnet", num_classes=4, channels=1, image_size=8, width=4, depth=1)
    found = trace(shaped(spec), torch.zeros(2, 1, 8, 8, device="meta"))
    assert found.stem == ()
    assert found.convolutions == ("body.0",)


def test_a_pruned_network_is_found_too() -> None:
    spec = image_model(
        "resnet8", num_classes=4, channels=1, image_size=8, pruned=("body.0:0,1", "body.3.conv1:2")
    )
    model = build(spec, torch.Generator().manual_seed(0))
    small = loaded(*compact(spec, model.state_dict()))
    found = trace(small, torch.zeros(2, 1, 8, 8))
    assert found.head == "classifier"
    assert found.travels == tuple(small.state_dict())


# ---- networks of users --------------------------------------------------------------------------

HEADS = {
    "mlp": "4",
    "reports": "answer",
    "patches": "answer",
    "attention": "answer",
    "series": "7",
    "dense": "classifier",
    "adapted": "score",
    "tied": "answer",
    "twice": "answer",
    "besides": "answer",
    "two-heads": None,
    "recurrent": "answer",
    "places-first": "answer",
    "normed": "2",
    "in-place": "6",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_layer_is_found_whatever_its_name(name: str) -> None:
    assert traced(name).head == HEADS[name]


class Behind(nn.Module):
    """Something behind a linear layer on rows (B, 2)."""

    def __init__(self, behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.last = nn.Linear(2, 3)
        self.behind = behind

    def forward(self, rows: Tensor) -> Tensor:
        return self.behind(self.last(rows))


@pytest.mark.parametrize(
    ("behind", "head"),
    [
        (nn.Identity(), "last"),
        (nn.Flatten(), "last"),
        (nn.Dropout(), None),  # the same in eval mode alone
        (nn.Softmax(dim=1), None),
        (lambda logits: logits / 2.0, None),
        (lambda logits: logits.div_(2.0), None),
        (lambda logits: (logits, logits), None),
        (lambda logits: logits[:, None], None),
        (Adapter(nn.Linear(3, 3), 1), None),
    ],
)
def test_only_a_linear_layer_whose_output_is_the_networks_is_its_head(
    behind: Callable[[Tensor], Tensor], head: str | None
) -> None:
    assert trace(Behind(behind), torch.zeros(4, 2)).head == head


def test_a_layer_of_another_kind_is_no_head() -> None:
    class Cosine(nn.Linear):
        def forward(self, rows: Tensor) -> Tensor:
            return nn.functional.linear(rows, self.weight / self.weight.norm())

    assert trace(Cosine(2, 3), torch.zeros(4, 2)).head is None
    assert trace(nn.Linear(2, 3), torch.zeros(4, 2)).head == ""
    twice = nn.Linear(2, 2)
    assert trace(nn.Sequential(twice, twice), torch.zeros(4, 2)).head is None
    assert trace(nn.Linear(2, 3), torch.zeros(4, 5, 2)).head is None  # a row for every place


def test_the_number_of_outputs_is_that_of_rows_alone() -> None:
    assert traced("tied").num_outputs == 20
    assert traced("two-heads").num_outputs is None
    assert trace(nn.Linear(2, 3), torch.zeros(4, 5, 2)).num_outputs is None


def test_the_stem_ends_where_the_second_convolution_begins() -> None:
    found = traced("dense")
    # The norm of the first dense layer runs before that layer's convolution.
    assert found.stem == ("features.0", "features.1", "features.3.norm")
    assert found.convolutions == ("features.0", "features.3.conv", "features.4.conv")
    assert traced("patches").stem == traced("series").stem == traced("mlp").stem == ()


def test_a_stem_can_be_frozen_without_the_second_convolution() -> None:
    class Scaled(nn.Module):
        """A parameter of its own around both convolutions."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.first, self.second = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.second(self.first(images * self.scale)).mean(dim=(2, 3))

    assert trace(Scaled(), torch.zeros(2, 1, 8, 8)).stem == ("first",)


# ---- what travels -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_in_the_state_travels_or_is_frozen_or_is_a_second_name(name: str) -> None:
    found = traced(name)
    seconds = [second for second, _ in found.aliases]
    assert sorted([*found.travels, *found.frozen, *seconds]) == sorted(network(name).state_dict())
    assert set(found.trainable) <= set(found.travels)


def test_of_an_adapted_network_only_the_adapters_and_the_head_travel() -> None:
    found = traced("adapted")
    assert found.travels == found.trainable
    assert set(found.travels) == {
        *("first.down", "first.up", "second.down", "second.up"),
        *("score.weight", "score.bias"),
    }
    assert found.frozen_norms == ("norm",)
    assert {"norm.running_mean", "norm.weight", "first.base.weight"} <= set(found.frozen)
    assert not found.mixes_examples
    assert found.others == ("first", "second")


def test_running_statistics_travel_with_a_norm_that_is_trained() -> None:
    found = traced("dense")
    assert found.frozen == ()
    assert "features.1.num_batches_tracked" in found.travels
    assert found.mixes_examples


@pytest.mark.parametrize("frozen", [False, True])
def test_a_norm_without_parameters_goes_with_what_is_around_it(frozen: bool) -> None:
    body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False))
    body.requires_grad_(not frozen)
    found = trace(nn.Sequential(body, nn.Linear(3, 2)), torch.zeros(4, 2))
    assert ("0.1.running_mean" in found.travels) == (not frozen)
    assert ("0.1.running_mean" in found.frozen) == frozen
    assert found.frozen_norms == (("0.1",) if frozen else ())
    assert found.mixes_examples == (not frozen)


def test_half_a_norm_that_is_frozen_is_trained() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[1].bias.requires_grad_(False)
    found = trace(model, torch.zeros(4, 2))
    assert found.frozen_norms == ()
    assert "1.running_mean" in found.travels
    assert found.frozen == ("1.bias",)


def test_a_batch_norm_without_running_statistics_mixes_even_when_frozen() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False))
    model.requires_grad_(False)
    assert mixes_examples(model)


def test_a_tied_tensor_travels_once_and_is_not_frozen_under_its_second_name() -> None:
    found = traced("tied")
    assert found.aliases == (("answer.weight", "words.weight"),)
    assert found.shared == ("words.weight",)
    assert found.travels == ("words.weight", "body.weight", "body.bias")
    assert found.frozen == ()


def test_a_layer_called_twice_shares_its_parameters() -> None:
    assert traced("twice").shared == ("again.weight", "again.bias")
    assert traced("mlp").shared == ()


def test_layers_that_need_a_backward_pass_of_their_own_are_named() -> None:
    assert traced("series").others == ("0", "3")
    assert traced("recurrent").others == ("lstm",)
    assert traced("normed").others == ("0.parametrizations.weight",)
    assert traced("patches").others == ("", "encoder.self_attn", "encoder.self_attn.out_proj")
    assert traced("attention").others == traced("dense").others == traced("in-place").others == ()
    assert "words" in traced("reports").others


def test_convolutions_that_pad_with_something_else_are_not_plain() -> None:
    assert is_plain(nn.Conv2d(1, 1, 3, padding=1, groups=1))
    assert not is_plain(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))
    assert not is_plain(nn.Conv2d(1, 1, 3, padding="same"))
    assert not is_plain(nn.Conv1d(1, 1, 3))


def test_gradients_flow_to_numbers_and_not_to_tokens() -> None:
    assert traced("mlp").float_inputs
    assert not traced("reports").float_inputs


# ---- the pass -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_left_as_it_was(name: str) -> None:
    model = network(name)
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    drawn = torch.get_rng_state()
    trace(model, batch(name)[0])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("frozen", [False, True])
def test_without_memory_the_same_is_found(name: str, frozen: bool) -> None:
    model = network(name)
    with torch.device("meta"):
        light = network(name)
    for each in (model, light):
        each.requires_grad_(not frozen)  # torch's transformer then has a way of its own
    inputs, _ = batch(name)
    assert trace(light, inputs.to("meta")) == trace(model, inputs)


def test_hooks_are_removed_when_the_pass_fails() -> None:
    model = network("mlp").eval()
    model[0].train()
    with pytest.raises(RuntimeError, match="shapes"):
        trace(model, torch.zeros(2, 4, dtype=torch.float64))
    assert [module.training for module in model.modules()] == [False, True, *[False] * 4]
    assert not any(module._forward_hooks for module in model.modules())


def test_state_that_is_no_tensor_is_refused() -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 0}

    with pytest.raises(BadSetting, match="parameters and buffers, got _extra_state, a dict"):
        trace(Counting(2, 2), torch.zeros(1, 2))


# ---- features, modes, hashes --------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "two-heads"])
def test_features_are_what_goes_into_the_head_with_gradients(name: str) -> None:
    model, (inputs, labels) = network(name), batch(name)
    features, logits = features_and_logits(model, str(HEADS[name]), inputs)
    assert torch.equal(model.get_submodule(str(HEADS[name]))(features), logits)
    nn.functional.cross_entropy(logits, labels).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not model.get_submodule(str(HEADS[name]))._forward_pre_hooks


def test_a_head_that_is_not_called_once_is_an_error_and_the_hook_goes() -> None:
    model = network("twice")
    with pytest.raises(EffaceError, match="'again' must be called once in a pass, got 2"):
        features_and_logits(model, "again", batch("twice")[0])
    with pytest.raises(RuntimeError):
        features_and_logits(model, "answer", torch.zeros(2, 4, dtype=torch.float64))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_frozen_norms_stay_in_eval_mode() -> None:
    model, (rows, _) = network("adapted"), batch("adapted")
    before = model.norm.running_mean.clone()
    train_mode(model)
    assert model.training
    assert not model.norm.training
    model(rows)
    model.train()
    with frozen_norms_still(model):
        model(rows)
    assert model.norm.training
    assert torch.equal(model.norm.running_mean, before)
    trained = network("dense").eval()
    train_mode(trained)
    assert all(module.training for module in trained.modules())


def test_a_hash_tells_names_shapes_dtypes_and_values() -> None:
    model = nn.Linear(2, 3)
    first = frozen_digest(model, ["weight", "bias"])
    assert len(first) == 64
    assert frozen_digest(model, ["bias", "weight"]) == first
    assert frozen_digest(copy.deepcopy(model), ["weight", "bias"]) == first
    found = {first, frozen_digest(model, ["weight"]), frozen_digest(model, [])}
    other = copy.deepcopy(model)
    other.weight.data[0, 0] = torch.nextafter(other.weight.data[0, 0], torch.tensor(9.0))
    found.add(frozen_digest(other, ["weight", "bias"]))
    other = copy.deepcopy(model)
    other.weight.data = model.weight.data.reshape(2, 3)
    found.add(frozen_digest(other, ["weight", "bias"]))
    found.add(frozen_digest(copy.deepcopy(model).to(torch.bfloat16), ["weight", "bias"]))
    renamed = nn.ParameterDict({"weigth": model.weight, "bias": model.bias})
    found.add(frozen_digest(renamed, ["weigth", "bias"]))
    assert len(found) == 7


def test_a_hash_of_counters_and_of_single_numbers() -> None:
    model = nn.BatchNorm1d(2)
    first = frozen_digest(model, list(model.state_dict()))
    model.num_batches_tracked += 1
    assert frozen_digest(model, list(model.state_dict())) != first


def test_what_has_no_memory_cannot_be_hashed() -> None:
    with pytest.raises(BadSetting, match="weight must have values to be hashed, got none"):
        frozen_digest(nn.Linear(2, 2, device="meta"), ["weight"])
