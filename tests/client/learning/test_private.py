"""Training under noise: what is clipped, what is added, and what the fast way owes to the slow."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from client.channels.layout import from_text
from client.channels.masks import freeze
from client.errors import BadSetting, EffaceError
from client.learning.models import build
from client.learning.networks import Classifier
from client.learning.private import (
    DerivedDraws,
    Draws,
    Noise,
    SecretDraws,
    check_private,
    clipped_sum,
    noised_counts,
    of_classes,
    private_sgd,
)
from client.learning.recovery import known
from client.learning.spec import image_model
from client.learning.trace import features_and_logits, train_mode
from client.seeds import generator
from tests.own_networks import batch, network


def model_of(name: str = "convnet", size: int = 8) -> Classifier:
    spec = image_model(name, num_classes=10, channels=1, image_size=size, width=6, depth=2)
    return build(spec, torch.Generator().manual_seed(0))


def examples(count: int, size: int = 8) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, size, size, generator=draws)
    return images, torch.randint(0, 10, (count,), generator=draws)


def noise_of(count: int, *, multiplier: float, clip_norm: float = 1.0, rate: float = 1.0) -> Noise:
    return Noise(multiplier, clip_norm, rate, count, DerivedDraws(generator(0, "noise")))


def one_by_one(
    model: Classifier, images: Tensor, labels: Tensor, clip_norm: float
) -> dict[str, Tensor]:
    """Return the sum of clipped gradients, by a backward pass for each example."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        cross_entropy(model(image[None]), label[None]).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values() if g is not None))
        for name, g in gradients.items():
            if g is not None:
                total[name] += g * min(1.0, clip_norm / norm)
    return total


# ---- clipping -----------------------------------------------------------------------------------


class Corner(Classifier):
    """Features are an image's two pixels: all parameters are the last layer's."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Flatten(), 2, 2)


def test_a_gradient_of_norm_5_is_clipped_to_1_and_a_shorter_one_is_left() -> None:
    # Of <w_0, x> the gradient in w_0 is x itself: (3, 4) has norm 5, (0.3, 0.4) has 0.5.
    model = Corner()
    images = torch.tensor([[3.0, 4.0], [0.3, 0.4]]).reshape(2, 1, 1, 2)

    def first(features: Tensor, logits: Tensor, label: Tensor) -> Tensor:
        return (model.classifier.weight.detach()[0] * 0.0).sum() + logits[0, 0]

    model.classifier.bias.requires_grad_(False)
    for chosen, expected in (([0], [0.6, 0.8]), ([1], [0.3, 0.4]), ([0, 1], [0.9, 1.2])):
        found = clipped_sum(
            model, images[chosen], torch.zeros(len(chosen)).long(), loss=first, clip_norm=1.0
        )
        assert set(found) == {"classifier.weight"}
        assert found["classifier.weight"][0].tolist() == pytest.approx(expected)
        assert found["classifier.weight"][1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("name", "size"), [("convnet", 8), ("lenet", 12)])
@pytest.mark.parametrize("clip_norm", [0.1, 1.0, 100.0])
def test_clipped_sums_are_those_of_one_example_after_the_other(
    name: str, size: int, clip_norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name, size)
    images, labels = examples(9, size)
    expected = one_by_one(model, images, labels, clip_norm)
    numbers = sum(p.numel() for p in model.parameters())
    for at_once in (9, 4, 1):  # all together, in parts of which the last is smaller, alone
        monkeypatch.setattr("client.learning.private.NUMBERS_AT_ONCE", at_once * numbers)
        found = clipped_sum(model, images, labels, loss=of_classes, clip_norm=clip_norm)
        for key, value in expected.items():
            # A bias before a norm has the gradient 0, up to rounding.
            assert torch.allclose(found[key], value, rtol=1e-4, atol=1e-5)


def test_the_sum_never_moves_by_more_than_the_clip_norm_with_one_example() -> None:
    model = model_of()
    images, labels = examples(6)
    images[5] *= 1e6  # the strongest example that anybody could think of
    whole = clipped_sum(model, images, labels, loss=of_classes, clip_norm=0.5)
    for left_out in range(6):
        rest = [i for i in range(6) if i != left_out]
        without = clipped_sum(model, images[rest], labels[rest], loss=of_classes, clip_norm=0.5)
        moved = math.sqrt(sum(float((whole[n] - without[n]).square().sum()) for n in whole))
        assert moved <= 0.5 * (1 + 1e-5)


def test_an_example_without_a_finite_gradient_adds_nothing() -> None:
    model = model_of()
    images, labels = examples(3)
    images[1, 0, 0, 0] = torch.inf
    both = clipped_sum(model, images, labels, loss=of_classes, clip_norm=1.0)
    others = clipped_sum(model, images[[0, 2]], labels[[0, 2]], loss=of_classes, clip_norm=1.0)
    for name in both:
        assert torch.allclose(both[name], others[name], atol=1e-6)


@pytest.mark.parametrize(("pixel", "clip_norm"), [(1.0, 1e-45), (3e38, 1.6e-6)])
def test_a_gradient_beyond_what_float32_can_shorten_adds_nothing(
    pixel: float, clip_norm: float
) -> None:
    # Its factor, C / |g|, is below the smallest normal number and would be rounded up.
    model = Corner()
    model.classifier.bias.requires_grad_(False)

    def first(features: Tensor, logits: Tensor, label: Tensor) -> Tensor:
        return logits[0, 0]

    image = torch.full((1, 1, 1, 2), pixel)
    found = clipped_sum(model, image, torch.zeros(1).long(), loss=first, clip_norm=clip_norm)
    moved = math.hypot(*found["classifier.weight"].flatten().tolist())
    assert moved <= clip_norm * (1 + 1e-6)


def test_what_is_frozen_gets_neither_gradient_nor_noise() -> None:
    model = model_of()
    freeze(model, from_text(["body.0:1,4"]))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.classifier.requires_grad_(False)
    images, labels = examples(8)
    private_sgd(model, lambda b: (images[b], labels[b]), noise_of(8, multiplier=1.0), 2, lr=0.5)
    after = dict(model.named_parameters())
    assert torch.equal(after["classifier.weight"], before["classifier.weight"])
    changed = (after["body.0.weight"] != before["body.0.weight"]).flatten(1).any(dim=1)
    assert changed.tolist() == [True, False, True, True, False, True]


# ---- networks of users --------------------------------------------------------------------------

HEADS = {
    "mlp": "4",
    "reports": "answer",
    "patches": "answer",
    "attention": "answer",
    "series": "7",
    "adapted": "score",
    "tied": "answer",
    "twice": "answer",
    "besides": "answer",
    "recurrent": "answer",
    "normed": "2",
    "in-place": "6",
}


def slowly(name: str, clip_norm: float, on_features: float) -> dict[str, Tensor]:
    """Return the sum of clipped gradients, each by a forward and a backward pass of its own."""
    model, (inputs, labels) = network(name), batch(name)
    train_mode(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in trained.items()}
    for one, label in zip(inputs, labels, strict=True):
        features, logits = features_and_logits(model, HEADS[name], one[None])
        value = cross_entropy(logits, label[None]) + on_features * features.square().mean()
        own = torch.autograd.grad(value, list(trained.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in own))
        for key, g in zip(trained, own, strict=True):
            total[key] += g * min(1.0, clip_norm / norm)
    return total


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("on_features", [0.0, 0.5])
def test_clipped_sums_of_any_network_are_those_of_one_example_after_the_other(
    name: str, on_features: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (inputs, labels) = network(name), batch(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    monkeypatch.setattr(
        "client.learning.private.NUMBERS_AT_ONCE", 4 * sum(p.numel() for p in trained)
    )

    def loss(features: Tensor, logits: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(logits, label) + on_features * features.square().mean()

    found = clipped_sum(model, inputs, labels, loss=loss, clip_norm=0.7, head=HEADS[name])

    expected = slowly(name, 0.7, on_features)
    assert list(found) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["mlp", "reports", "adapted", "tied"])
def test_one_pass_for_all_and_one_an_example_agree(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (inputs, labels) = network(name), batch(name)
    fast = clipped_sum(model, inputs, labels, loss=of_classes, clip_norm=0.7, head=HEADS[name])

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr("client.learning.curvature.vmap", lambda *_, **__: refuse)
    slow = clipped_sum(model, inputs, labels, loss=of_classes, clip_norm=0.7, head=HEADS[name])
    for key, value in fast.items():
        torch.testing.assert_close(slow[key], value, rtol=1e-9, atol=1e-12)


def test_a_network_that_cannot_take_all_examples_at_once_takes_them_one_by_one() -> None:
    class Branching(torch.nn.Linear):
        """Looks at a value, which one pass for all examples has no answer to."""

        def forward(self, rows: Tensor) -> Tensor:
            return super().forward(rows) * (2.0 if float(rows.sum().detach()) > 0 else 1.0)

    model, rows = Branching(2, 2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    found = clipped_sum(
        model, rows, torch.tensor([0, 0]), loss=of_classes, clip_norm=9.0, head=None
    )
    # Softmax gives 1/2: d loss / d logits = (-1/2, 1/2), times 2 for the first row.
    assert found["bias"].tolist() == pytest.approx([-1.5, 1.5])
    assert found["weight"].tolist() == [pytest.approx([-0.5, 0.0]), pytest.approx([0.5, 0.0])]


def test_a_mistake_in_a_network_is_told_as_it_is() -> None:
    model, (_, labels) = network("mlp"), batch("mlp")
    with pytest.raises(RuntimeError, match="shape"):
        clipped_sum(
            model,
            torch.zeros(7, 4, dtype=torch.float64),
            labels,
            loss=of_classes,
            clip_norm=1.0,
            head="4",
        )


def test_a_network_without_a_last_linear_layer_has_no_features() -> None:
    model, (rows, labels) = (
        torch.nn.Sequential(network("mlp"), torch.nn.LogSoftmax(1)),
        batch("mlp")[:2],
    )
    found = clipped_sum(model, rows, labels, loss=of_classes, clip_norm=1.0, head=None)
    # The softmax of logarithms of probabilities is these: the network without it has the same loss.
    expected = clipped_sum(network("mlp"), rows, labels, loss=of_classes, clip_norm=1.0, head="4")
    for key, value in expected.items():
        torch.testing.assert_close(found[f"0.{key}"], value)
    with pytest.raises((AttributeError, TypeError)):
        clipped_sum(
            model, rows, labels, loss=lambda f, z, y: f.square().sum(), clip_norm=1.0, head=None
        )


def test_a_last_layer_called_twice_is_no_last_layer() -> None:
    model, (rows, labels) = network("twice"), batch("twice")
    with pytest.raises(EffaceError, match="'again' must be called once in a pass, got 2"):
        clipped_sum(model, rows, labels, loss=of_classes, clip_norm=1.0, head="again")


def test_a_single_number_is_trained_under_noise_too() -> None:
    class Scaled(torch.nn.Linear):
        """Logits times a temperature that is learned."""

        def __init__(self) -> None:
            super().__init__(2, 2)
            self.scale = torch.nn.Parameter(torch.tensor(1.5))

        def forward(self, rows: Tensor) -> Tensor:
            return super().forward(rows) * self.scale

    model, rows = Scaled(), torch.tensor([[1.0, 2.0]])
    cross_entropy(model(rows), torch.tensor([1])).backward()
    found = clipped_sum(model, rows, torch.tensor([1]), loss=of_classes, clip_norm=99.0, head=None)
    torch.testing.assert_close(found["scale"], model.scale.grad)


def test_batch_norm_that_is_frozen_mixes_nothing_and_one_that_is_trained_is_refused() -> None:
    check_private(network("adapted"))
    with pytest.raises(BadSetting, match="must have no BatchNorm under noise"):
        check_private(network("dense"))


def test_other_running_statistics_would_go_up_without_noise() -> None:
    model = torch.nn.Sequential(
        torch.nn.InstanceNorm1d(2), torch.nn.Flatten(), torch.nn.Linear(8, 2)
    )
    check_private(model)
    model[0] = torch.nn.InstanceNorm1d(2, track_running_stats=True)
    with pytest.raises(BadSetting, match="must keep no running statistics under noise"):
        check_private(model)


def test_a_transformer_learns_under_noise_from_tokens() -> None:
    model, (tokens, labels) = network("reports", torch.float32), batch("reports")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loss = float(cross_entropy(model(tokens), labels).detach())
    private_sgd(
        model,
        lambda b: (tokens[b], labels[b]),
        noise_of(7, multiplier=1e-6, clip_norm=10.0),
        10,
        lr=0.5,
        head="answer",
    )
    assert float(cross_entropy(model(tokens), labels).detach()) < 0.7 * loss
    assert not torch.equal(model.words.weight, before["words.weight"])


# ---- noise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [DerivedDraws(generator(0, "test")), SecretDraws()])
def test_noise_is_standard_normal_and_samples_are_uniform(draws: Draws) -> None:
    # Of 200,000 numbers: the mean within 5 / sqrt(n), the variance within 5 sqrt(2 / n).
    numbers = draws.normal([400, 500])
    assert numbers.dtype == torch.float64
    assert abs(float(numbers.mean())) < 0.0112
    assert abs(float(numbers.var()) - 1.0) < 0.0159
    assert abs(float((numbers.abs() < 1.959964).double().mean()) - 0.95) < 0.0025
    assert abs(float((numbers**4).mean()) - 3.0) < 0.12  # normal, not only of its variance
    uniform = draws.uniform(200_000)
    assert 0.0 <= float(uniform.min()) < 1e-4
    assert 1 - 1e-4 < float(uniform.max()) < 1.0
    assert abs(float(uniform.mean()) - 0.5) < 0.0033


def test_derived_noise_is_the_same_again_and_secret_noise_never() -> None:
    seeds = [DerivedDraws(generator(3, "fit noise", 1, "a")) for _ in range(2)]
    assert torch.equal(*(draws.normal([50]) for draws in seeds))
    secret = SecretDraws()
    assert not torch.equal(secret.normal([50]), secret.normal([50]))


def test_the_noise_has_the_deviation_that_the_accountant_counts() -> None:
    # z C / (q n) = 2 * 0.5 / (0.25 * 40) = 0.1 a coordinate of the mean gradient.
    model = model_of()
    noise = noise_of(40, multiplier=2.0, clip_norm=0.5, rate=0.25)
    empty = {name: torch.zeros(100, *p.shape) for name, p in model.named_parameters()}
    assert noise.expected == 10.0
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    numbers = torch.cat(
        [torch.cat([n.flatten() for n in noise.noised(zeros, model).values()]) for _ in range(40)]
    )
    assert len(numbers) == 40 * sum(p[0].numel() for p in empty.values())
    assert float(numbers.std()) == pytest.approx(0.1, rel=0.02)


def test_each_example_is_in_a_batch_with_the_rate_by_itself() -> None:
    noise = noise_of(50, multiplier=1.0, rate=0.2)
    batches = list(noise.batches(2_000))
    sizes = torch.tensor([float(len(batch)) for batch in batches])
    seen = torch.stack([torch.bincount(batch, minlength=50) for batch in batches])
    # Binomial: mean n q = 10, variance n q (1 - q) = 8; no example twice.
    assert float(sizes.mean()) == pytest.approx(10.0, abs=0.35)
    assert float(sizes.var()) == pytest.approx(8.0, rel=0.2)
    assert int(seen.max()) == 1
    assert seen.double().mean(dim=0).sub(0.2).abs().max() < 0.05
    assert [len(batch) for batch in noise_of(50, multiplier=1.0).batches(3)] == [50] * 3


def test_without_noise_and_with_a_wide_clip_it_is_plain_sgd() -> None:
    # q = 1, C beyond every gradient, z next to nothing: full-batch gradient descent.
    images, labels = examples(12)
    private, plain = model_of(), model_of()
    done = private_sgd(
        private,
        lambda b: (images[b], labels[b]),
        noise_of(12, multiplier=1e-9, clip_norm=1e3),
        3,
        lr=0.2,
    )
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.2)
    for _ in range(3):
        optimiser.zero_grad()
        cross_entropy(plain(images), labels).backward()
        optimiser.step()
    for mine, theirs in zip(private.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    # No loss goes up, and of images as many as were to be expected.
    assert (done.num_steps, done.samples, done.loss) == (3, 36, 0.0)


def test_an_empty_batch_still_adds_noise() -> None:
    model = model_of()
    before = model.classifier.weight.detach().clone()
    images, labels = examples(4)
    noise = noise_of(4, multiplier=1.0, rate=1e-9)
    private_sgd(model, lambda b: (images[b], labels[b]), noise, 1, lr=1e-9)
    assert not torch.equal(model.classifier.weight, before)


def test_a_loss_of_two_kinds_is_taken_example_by_example() -> None:
    # What recovery holds down beside what it keeps, marked by labels below 0.
    model = model_of()
    images, labels = examples(4)
    marked = torch.where(torch.tensor([False, True, False, True]), -1 - labels, labels)

    def loss(features: Tensor, logits: Tensor, label: Tensor) -> Tensor:
        own = torch.where(label < 0, -1 - label, label)
        down = known(features, logits, own, outputs=1.0, on_features=0.5)
        return torch.where(label[0] < 0, down, cross_entropy(logits, own))

    found = clipped_sum(model, images, marked, loss=loss, clip_norm=1e6)
    features = model.features(images)
    logits = model.classifier(features)
    kept = cross_entropy(logits[::2], labels[::2], reduction="sum")
    held = 2 * known(features[1::2], logits[1::2], labels[1::2], outputs=1.0, on_features=0.5)
    expected = torch.autograd.grad(kept + held, list(model.parameters()))
    for (_, value), wanted in zip(found.items(), expected, strict=True):
        assert torch.allclose(value, wanted, rtol=1e-4, atol=1e-5)


def test_batchnorm_is_refused() -> None:
    images, labels = examples(4, 32)
    model = model_of("resnet8", 32)
    with pytest.raises(BadSetting, match=r"must have no BatchNorm under noise.*convnet and lenet"):
        private_sgd(model, lambda b: (images[b], labels[b]), noise_of(4, multiplier=1.0), 1, lr=0.1)


# ---- counts -------------------------------------------------------------------------------------


def test_noised_counts_are_whole_and_possible() -> None:
    counts, most = torch.tensor([50, 0, 100]), torch.tensor([100, 100, 100])
    draws = DerivedDraws(generator(0, "counts"))
    found = torch.stack([noised_counts(counts, most, 10.0, draws) for _ in range(2_000)])
    assert torch.equal(found, found.round())
    assert float(found.min()) == 0.0
    assert float(found.max()) == 100.0
    assert float(found[:, 0].mean()) == pytest.approx(50.0, abs=1.2)
    assert float(found[:, 0].std()) == pytest.approx(10.0, rel=0.08)
    assert torch.equal(noised_counts(counts, torch.zeros(3), 10.0, draws), torch.zeros(3).double())
