"""One answer, of one site or of a sum, to weights that sort examples into bins of one.

By default a site gives no answer alone; what a sum of three sites gives, and one of which a single
site holds anything, are limits that README states, and noise is what stops them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from sklearn.datasets import load_digits

from client.messages import Common
from client.steps.training import Fit
from server.nodes.engines.inline import InlineGrid
from server.nodes.grid import NamedGrid
from strategies.rounds.base import ClientLost, FederatedAveraging
from strategies.rounds.secure import SecureGrid
from tests.attacks import bins
from tests.attacks.site import SPEC, Hospital, hospital, record
from tests.attacks.test_three_sites import NAMES, Three
from tests.messages import told

SEEDS = range(3)


def known() -> Any:
    """Return what the attacker has of its own: 60 images of class 0."""
    pixels, labels = load_digits(return_X_y=True)
    return np.rint(pixels[labels == 0][:60].reshape(-1, 8, 8) * 255 / 16)


def alone(site: Hospital) -> float:
    """Return the best correlation of three attempts of one message each."""
    found = [0.0]
    for seed in SEEDS:
        state = bins.cut(known(), 160, seed)
        answer = site.tried(Fit, record(state), **bins.STEP)
        if answer:
            got = bins.images(answer.arrays, state, answer.metrics["num-examples"])
            found += [site.nearest(image) for image in got]
    return max(found)


def summed(three: Three, names: tuple[str, ...], examples: int, **said: Any) -> list[float]:
    """Return the best correlation, with images of these sites, of up to three sums of one step.

    There are fewer where the sites' budgets are spent.
    """
    files = [np.load(three.site(name) / "data.npz") for name in names]
    pixels, labels = (
        np.concatenate([file[key] for file in files]) for key in ("train_images", "train_labels")
    )
    seen = Hospital(three.folder, pixels, labels, three.folder)
    found = []
    for seed in SEEDS:
        state = bins.cut(known(), examples, seed)
        sizes = {**Common.of_model(SPEC), "simulation": None}
        asked = told(Fit, **sizes, **{**bins.STEP, "phase": f"train {seed}", **said})
        rounds = FederatedAveraging(asked)
        with InlineGrid(three.answer, len(NAMES)) as inner:
            grid = SecureGrid(NamedGrid(inner, 60.0, 0.005))
            sent = list(rounds.configure_train(1, record(state), ConfigRecord(), grid))
            try:
                model, totals = rounds.aggregate_train(1, list(grid.send_and_receive(sent)))
            except ClientLost as lost:
                if "epsilon must stay at most" not in str(lost):
                    raise
                break
        assert model is not None
        assert totals is not None
        arrays = {name: array.numpy() for name, array in model.items()}
        got = bins.images(arrays, state, float(totals["num-examples"]))  # type: ignore[arg-type]
        found.append(max([0.0, *(seen.nearest(image) for image in got)]))
    return found


def required(three: Three) -> None:
    """Have all three sites' policies require noise."""
    for name in NAMES:
        path = three.site(name) / "policy.toml"
        path.write_text(path.read_text().replace("required = false", "required = true"))


@pytest.fixture
def three(tmp_path: Path) -> Three:
    return Three(tmp_path)


def test_by_default_a_site_gives_no_answer_alone(tmp_path: Path) -> None:
    assert alone(hospital(tmp_path, updates="sums")) == 0.0


def test_one_message_gives_an_image_where_single_updates_go_up(tmp_path: Path) -> None:
    # A limit, not a promise: see README.
    assert alone(hospital(tmp_path, updates="single")) > 0.9


def test_one_sum_gives_an_image_of_one_of_its_sites(three: Three) -> None:
    # A limit, not a promise: see README. A sum hides whose image it is, and not the image.
    assert max(summed(three, NAMES, 160)) > 0.9


def test_one_sum_in_which_one_site_is_named_gives_an_image_of_that_site(three: Three) -> None:
    # A limit, not a promise: see README. The others have nothing to add to what is asked.
    named = {"side": "forget", "forget_level": "client", "forget_clients": [NAMES[0]]}
    assert max(summed(three, NAMES[:1], 53, **named)) > 0.9


@pytest.mark.parametrize("named", [False, True])
def test_with_sums_and_noise_no_image_comes_back(
    three: Three, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    required(three)
    # Under noise a bin's number is none: all of them are tried.
    monkeypatch.setattr(bins, "LONE", float("inf"))
    one = {"side": "forget", "forget_level": "client", "forget_clients": [NAMES[0]]}
    near = summed(three, NAMES[:1] if named else NAMES, 53, **(one if named else {}))
    assert len(near) == 2  # then the budgets are spent
    assert max(near) < 0.9
