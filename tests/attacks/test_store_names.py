"""T9: a lineage or a request that was called like a file of the store's own broke the store."""

from pathlib import Path

import pytest
import torch

from client.errors import StoreError
from client.steps.channels import FitChannels
from client.steps.measuring import Describe
from client.steps.store import Settle
from client.steps.training import Fit
from client.store import Store, SyntheticSet
from tests.attacks.site import Hospital, hospital

NAMES = [
    *("state.json", "state.copy.json", "site-report.html", "base-0.safetensors", "log"),
    *("answers.bin", "State.JSON", "LOG", "x.tmp", ".hidden", "../x", "a/b", ".."),
]


FEW = SyntheticSet(torch.rand(5, 1, 8, 8), torch.zeros(5, dtype=torch.int64))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return hospital(tmp_path_factory.mktemp("t9"))


@pytest.mark.parametrize("name", NAMES)
def test_no_lineage_is_called_so(site: Hospital, name: str) -> None:
    refused = site.refusal(Fit, lineage=name, steps=1, lr=0.1, batch_size=64, scale=10)
    assert "lineage must be 1 to 64 letters" in refused
    with pytest.raises(StoreError, match="lineage must be letters"):
        Store(site.store).save(name, 1, FEW, model="any")


@pytest.mark.parametrize("name", NAMES)
def test_a_request_may_be_called_anything_and_harms_nothing(site: Hospital, name: str) -> None:
    named = {"forget_level": "class", "forget_classes": [9]}
    site.ask(Settle, request=name, action="forget", destroy=False, **named)
    site.ask(FitChannels, request=name, channels=["classifier:3"], steps=1, batch_size=64, lr=0.1)
    assert site.ask(Describe).metrics["num-examples"] > 1000
    assert Store(site.store).verify() == []


def test_a_store_of_before_is_read_whatever_lies_in_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "log").mkdir(mode=0o700)
    assert store.generations() == []
    assert store.destroy() == 0
