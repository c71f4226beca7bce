"""PUF: the targets' own training, applied backwards, then ordinary rounds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from client.app import app
from client.data.site import open_site
from client.steps.training import Fit
from client.wire import Common, ForgetSpec
from server.nodes.engines.inline import InlineGrid
from strategies.methods.puf import NegatedPseudoGradients, NegatedRounds
from tests.messages import network, told, weights
from tests.recording import MODEL, Recording


@pytest.mark.parametrize(
    "what", [ForgetSpec("class", (3,)), ForgetSpec("client", (), ("client-0",))]
)
def test_the_holders_train_on_what_is_forgotten_and_the_server_steps_back(what: ForgetSpec) -> None:
    federation: Any = Recording(what)
    NegatedPseudoGradients().with_values({"eta-u": "3"}).forget(federation, MODEL)
    assert federation.phases == ["measure", "holders", "unlearn", "measure"]
    assert federation.first("holders").settings is False  # counted by their real data
    step = federation.first("unlearn")
    assert step.settings == federation.ordinary(side="forget")
    assert (step.participants, step.num_rounds) == (["client-0", "client-2"], 1)
    assert (type(step.rounds), step.rounds.others) == (NegatedRounds, -3.0)
    assert (step.rounds.scales, step.rounds.takes_all) == ({}, True)


def test_recovery_is_by_ordinary_rounds_without_the_target() -> None:
    class Lost(Recording):
        def accuracies(self, model: Any) -> Any:
            self.retain = 99.0 if not self.steps else 10.0  # before the request, and after
            return super().accuracies(model)

    federation: Any = Lost()
    NegatedPseudoGradients().with_values({"rounds": "3"}).forget(federation, MODEL)
    assert federation.phases.count("recover") == 3
    assert federation.first("recover").settings == federation.ordinary()


def test_a_round_on_one_node_is_eta_u_steps_up_the_loss_of_its_forget_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path))
    job = {"num_clients": 1, "max_samples": 100}
    asked = told(
        Fit,
        side="forget",
        steps=1,
        lr=0.1,
        batch_size=1000,
        forget_level="class",
        forget_classes=[3],
        **job,
    )
    rounds = NegatedRounds(asked, scales={}, others=-2.0)
    with InlineGrid(app, 1) as grid:
        result = rounds.start(grid, weights(), num_rounds=1)
    site = open_site(told(Common, **job), {"partition-id": 0})
    part = site.train.where(site.train.labels == 3)
    assert len(part) > 1
    own = network()
    cross_entropy(own(site.inputs(part)), part.labels).backward()
    for name, parameter in own.named_parameters():
        # One step down is -0.1 g; minus twice that is 0.2 g up.
        expected = (parameter + 0.2 * parameter.grad).detach()  # type: ignore[operator]
        found = torch.from_numpy(result.arrays[name].numpy())
        # The order of the images differs: sums in another order, in float32.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
