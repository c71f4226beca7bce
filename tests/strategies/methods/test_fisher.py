"""Fisher forgetting: whose information counts, and how much noise it lets through."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from torch import Tensor

from client.app import app
from client.channels.layout import layout, to_text
from client.channels.masks import zero_
from client.data.site import open_site
from client.errors import BadSetting
from client.learning.curvature import fisher_diagonal
from client.learning.models import ModelSpec, build
from client.learning.spec import image_model
from client.steps.measuring import Fisher
from client.wire import ForgetSpec
from server.nodes.engines.inline import InlineGrid
from strategies.federation import Federation
from strategies.methods.fisher import FisherForgetting, FisherRounds
from tests.messages import NUM_CLIENTS, SPEC, message, network, told, weights
from tests.recording import Recording


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def record(**arrays: list[float]) -> ArrayRecord:
    return ArrayRecord({k: Array(np.array(v, dtype=np.float32)) for k, v in arrays.items()})


# ---- the noise ----------------------------------------------------------------------------------


def test_noise_is_the_inverse_fourth_root_of_the_information() -> None:
    # (16 / F)^(1/4): 2 for F = 1, 1 for F = 16, the clip for F = 0.
    model, information = record(w=[5.0, 5.0, 5.0], mean=[7.0]), record(w=[1.0, 16.0, 0.0])
    method = FisherForgetting(noise=16.0, clip=3.0)
    found = method.noisy(model, information, seeded())
    n = torch.randn(3, generator=seeded(), dtype=torch.float64)
    expected = 5.0 + torch.tensor([2.0, 1.0, 3.0]) * n
    torch.testing.assert_close(found["w"], expected.float())
    assert found["mean"].tolist() == [7.0]  # a buffer: without information, and without noise
    assert model["w"].numpy().tolist() == [5.0, 5.0, 5.0]


def test_the_power_and_the_clip_are_options() -> None:
    model, information = record(w=[0.0, 0.0]), record(w=[4.0, 0.25])
    # (4 / F)^(1/2) = 1 and 4, of which 2 are let through.
    method: Any = FisherForgetting().with_values({"noise": "4", "power": "0.5", "clip": "2"})
    found = method.noisy(model, information, seeded())["w"].double()
    n = torch.randn(2, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0]).double() * n, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "0"}, "noise must be positive, got 0"),
        ({"power": "2"}, r"power must lie in \[0, 1\], got 2"),
        ({"max-examples": "1"}, "max-examples must be at least 2, got 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        FisherForgetting().with_values(options)


# ---- the method ---------------------------------------------------------------------------------


class Informed(Recording):
    """Every parameter has the same information; the coordinator's work is done at once."""

    model_spec: ModelSpec = SPEC
    erased_classes: tuple[int, ...] = ()

    @property
    def spec(self) -> ModelSpec:
        return self.model_spec

    def settings(self, kind: Any, **more: Any) -> Any:
        return super().settings(kind, erased_classes=list(self.erased_classes), **more)

    def run(self, phase: str, rounds: Any, model: ArrayRecord, *, num_rounds: int) -> ArrayRecord:
        super().run(phase, rounds, model, num_rounds=num_rounds)
        parameters = dict(build(self.spec, seeded()).named_parameters())
        return ArrayRecord({k: torch.ones_like(p) for k, p in parameters.items()})

    def locally(self, phase: str, work: Any, **more: Any) -> ArrayRecord:
        done: ArrayRecord = work()
        return done


def scrubbed(federation: Any, model: ArrayRecord, **options: Any) -> dict[str, Tensor]:
    method: Any = FisherForgetting(**options)
    typed: Federation = federation
    return dict(method.forget(typed, model).to_torch_state_dict())


def test_the_retained_data_are_asked_for_their_information_once() -> None:
    federation = Informed()
    scrubbed(federation, weights())
    assert federation.phases == ["score"]
    step = federation.first("score")
    assert isinstance(step.settings, Fisher)
    assert (type(step.rounds), step.participants, step.num_rounds) == (FisherRounds, None, 1)
    assert (step.settings.side, step.settings.max_examples) == ("retain", 64)
    assert not step.rounds.changes_model


TINY: dict[str, Any] = {"noise": 1e-40}  # (1e-40)^(1/4) = 1e-10: nothing, in float32


@pytest.mark.parametrize(("erased", "gone"), [((), [3]), ((5,), [3, 5])])
def test_a_class_loses_its_row(erased: tuple[int, ...], gone: list[int]) -> None:
    federation = Informed()
    federation.erased_classes = erased
    before = dict(weights().to_torch_state_dict())
    found = scrubbed(federation, weights(), **TINY)
    stays = [k for k in range(10) if k not in gone]
    for name in ("classifier.weight", "classifier.bias"):
        mean = before[name][stays].mean(0)
        torch.testing.assert_close(found[name][gone], mean.expand_as(found[name][gone]))
        torch.testing.assert_close(found[name][stays], before[name][stays])


def test_a_clients_request_leaves_the_rows() -> None:
    federation = Informed(ForgetSpec("client", (), ("client-0",)))
    found = scrubbed(federation, weights(), **TINY)
    for name, value in weights().to_torch_state_dict().items():
        torch.testing.assert_close(found[name], value)


def test_pruned_channels_stay_without_effect() -> None:
    pruned = {"body.0": (0, 3)}
    model = network()
    zero_(model, pruned)
    federation = Informed()
    federation.model_spec = replace(SPEC, pruned=tuple(to_text(pruned)))
    found = scrubbed(federation, ArrayRecord(model.state_dict()), noise=1.0)
    (layer,) = [each for each in layout(model) if each.name == "body.0"]
    for name in layer.tensors:
        assert not found[name][[0, 3]].any()
        assert found[name][[1, 2, 4, 5, 6, 7]].all()  # noise everywhere else


def test_running_statistics_stay() -> None:
    spec = image_model("resnet8", 10, channels=1, image_size=8)
    before = build(spec, seeded()).state_dict()
    federation = Informed()
    federation.model_spec = spec
    found = scrubbed(federation, ArrayRecord(before), noise=1.0)
    parameters = {name for name, _ in build(spec, seeded()).named_parameters()}
    assert {name for name in before if torch.equal(before[name], found[name])} == (
        set(before) - parameters
    )


def test_the_same_seed_gives_the_same_noise() -> None:
    one, other = (scrubbed(Informed(), weights()) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- the message --------------------------------------------------------------------------------


def asked(max_examples: int = 1000, **more: Any) -> Any:
    return told(Fisher, max_examples=max_examples, forget_level="class", forget_classes=[3], **more)


def ask(settings: Any) -> tuple[ArrayRecord, Any]:
    rounds = FisherRounds(settings)
    with InlineGrid(app, NUM_CLIENTS, workers=1) as grid:
        messages = rounds.configure_train(1, weights(), ConfigRecord(), grid)
        arrays, metrics = rounds.aggregate_train(1, grid.send_and_receive(messages))
    assert arrays is not None
    return arrays, metrics


@pytest.fixture(autouse=True)
def _store(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "private"))


@pytest.mark.parametrize("side", ["retain", "forget"])
def test_nodes_are_averaged_by_their_examples(side: str) -> None:
    arrays, metrics = ask(asked(side=side))
    # The mean over nodes, weighted by examples, is the mean over all examples.
    images = []
    for number in range(NUM_CLIENTS):
        site = open_site(asked(client=f"client-{number}"), {"partition-id": number})
        named = site.train.labels == 3
        images.append(site.inputs(site.train.where(named if side == "forget" else ~named)))
    every = fisher_diagonal(network(), torch.cat(images))
    for name, expected in every.items():
        found = torch.from_numpy(arrays[name].numpy())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)
    number = sum(map(len, images))
    assert (metrics["num-examples"], metrics["samples"]) == (number, 10 * number)


def test_a_node_looks_at_no_more_examples_than_asked_for() -> None:
    _, metrics = ask(asked(max_examples=4))
    assert metrics["num-examples"] == 4 * NUM_CLIENTS


def test_one_examples_gradient_stays_on_its_node() -> None:
    # Of 20 images a node has 0 to 4 of a class; class by class, one alone does not count.
    few: dict[str, Any] = {"max_samples": 60, "side": "forget", "forget_level": "class"}
    counts = torch.stack(
        [
            torch.bincount(
                open_site(
                    told(Fisher, client=f"client-{number}", **few), {"partition-id": number}
                ).train.labels,
                minlength=10,
            )
            for number in range(NUM_CLIENTS)
        ]
    )
    mixed = ((counts == 1).any(0) & (counts > 1).any(0)).nonzero().flatten().tolist()
    assert mixed
    for label in mixed:
        _, metrics = ask(told(Fisher, **few, forget_classes=[label]))
        assert metrics["num-examples"] == counts[:, label][counts[:, label] > 1].sum()

    # And what goes up of it is zeros.
    node, label = (counts == 1).nonzero().tolist()[0]
    one = told(Fisher, client=f"client-{node}", **few, forget_classes=[label])
    with InlineGrid(app, NUM_CLIENTS, workers=1) as grid:
        (reply,) = grid.send_and_receive(
            [message(Fisher.message.name, one.config(), weights(), node=node + 1)]
        )
    assert not any(array.numpy().any() for array in reply.content.array_records["arrays"].values())
