"""The real-subset control: QuickDrop's protocol, on the images that distillation starts from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message

from client.app import app, handlers
from client.errors import BadSetting
from client.steps.ascent import Ascend
from client.steps.measuring import Describe
from client.steps.recovery import Descend
from client.steps.training import Fit
from client.wire import ForgetSpec
from server.nodes.engines.inline import InlineGrid
from strategies.methods.quickdrop import QuickDrop
from strategies.methods.quickdrop_calibrated import CalibratedQuickDrop
from strategies.methods.quickdrop_subset import CalibratedRealSubset, RealSubset
from tests.messages import NUM_CLIENTS, message, told, weights
from tests.recording import MODEL, Recording

CLASS_3: dict[str, Any] = {"forget_level": "class", "forget_classes": [3]}

# ---- the protocol -------------------------------------------------------------------------------


CONTROLS = [(RealSubset, QuickDrop), (CalibratedRealSubset, CalibratedQuickDrop)]


def steps(method: Any, function: str, **more: Any) -> Any:
    federation = Recording(**more)
    getattr(method, function)(federation, MODEL)
    return federation


@pytest.mark.parametrize("function", ["forget", "relearn"])
@pytest.mark.parametrize(
    "spec", [ForgetSpec("class", (3,)), ForgetSpec("client", (), ("client-0",))]
)
@pytest.mark.parametrize(("of", "distilled"), CONTROLS)
def test_all_but_the_images_is_as_in_the_method(
    of: type, distilled: type, function: str, spec: ForgetSpec
) -> None:
    control = steps(of(), function, forget=spec)
    original = steps(distilled(), function, forget=spec)
    assert control.phases == original.phases
    for mine, theirs in zip(control.steps, original.steps, strict=True):
        assert (mine.participants, mine.num_rounds) == (theirs.participants, theirs.num_rounds)
        if mine.phase in ("holders", "measure"):
            continue
        changed = {k for k, v in vars(theirs.settings).items() if vars(mine.settings)[k] != v}
        if isinstance(theirs.settings, Fit):  # ordinary rounds are on all of the data
            assert not changed
            continue
        assert changed == {"data", "scale"}
        expected = {"synthetic": "subset", "synthetic+original": "subset+original"}
        assert mine.settings.data == expected[theirs.settings.data]


@pytest.mark.parametrize("of", [RealSubset, CalibratedRealSubset])
def test_holders_are_counted_by_their_real_data(of: Any) -> None:
    assert steps(of(), "forget").first("holders").settings is False
    assert not of.needs.synthetic_data


class Scaled(Recording):
    """A version that was trained with one synthetic image for seven."""

    def settings(self, kind: Any, **more: Any) -> Any:
        return super().settings(kind, **{"scale": 7, **more})


@pytest.mark.parametrize("of", [RealSubset, CalibratedRealSubset])
def test_the_subset_is_as_large_as_the_synthetic_set_was(of: Any) -> None:
    federation: Any = Scaled()
    of().forget(federation, MODEL)
    sizes = {federation.first(phase).settings.scale for phase in ("unlearn", "recover")}
    assert sizes == {7}


@pytest.mark.parametrize("of", [RealSubset, CalibratedRealSubset])
@pytest.mark.parametrize(("option", "expected"), [("0", 10), ("4", 4)])
def test_without_one_its_size_is_an_option(of: Any, option: str, expected: int) -> None:
    control = steps(of().with_values({"scale": option}), "forget")
    assert control.first("unlearn").settings.scale == expected


def test_a_subset_cannot_be_fine_tuned() -> None:
    with pytest.raises(BadSetting, match="finetune-steps must be 0: a subset is not distilled, go"):
        RealSubset().with_values({"finetune-steps": "2"})


# ---- the images ---------------------------------------------------------------------------------


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InlineGrid]:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "private"))
    with InlineGrid(app, NUM_CLIENTS, workers=1) as made:
        yield made


def ask(grid: InlineGrid, message_type: str, **more: Any) -> Message:
    kind = handlers()[message_type].kind
    rate = {"lr": 0.05} if message_type != Describe.message.name else {}
    config = told(kind, **{"scale": 10, **rate, **more}).config()
    (reply,) = grid.send_and_receive([message(message_type, config, weights())])
    return reply


def arrays(reply: Message) -> ArrayRecord:
    assert not reply.has_error(), reply
    return reply.content.array_records["arrays"]


def make_synthetic_set(grid: InlineGrid, **more: Any) -> None:
    """Train without a single matching step, so that the synthetic images are those at the start."""
    arrays(ask(grid, Fit.message.name, steps=1, server_round=1, distill_fraction=0.0, **more))


SUBSETS: list[tuple[str, dict[str, Any]]] = [
    (Ascend.message.name, {"data": "subset"}),
    (Descend.message.name, {"data": "subset"}),
    (Descend.message.name, {"data": "subset+original"}),
    (Descend.message.name, {"data": "subset", "side": "forget"}),
    (Descend.message.name, {"data": "subset+original", "side": "all"}),
    (Descend.message.name, {"data": "subset", "hold": 1.0}),
    # What earlier requests took away is left out; the other images are the same.
    (Descend.message.name, {"data": "subset", "erased_classes": [0, 1]}),
]


@pytest.mark.parametrize(("message_type", "more"), SUBSETS)
def test_the_subset_is_what_distillation_starts_from(
    grid: InlineGrid, message_type: str, more: dict[str, Any]
) -> None:
    subset = ask(grid, message_type, **CLASS_3, **more)
    make_synthetic_set(grid)
    synthetic = {**more, "data": more["data"].replace("subset", "synthetic")}
    expected = ask(grid, message_type, **CLASS_3, **synthetic)

    for name, array in arrays(expected).items():
        assert np.array_equal(arrays(subset)[name].numpy(), array.numpy())
    for name in ("num-examples", "samples", "num-steps", "loss"):
        one, other = (r.content.metric_records["metrics"][name] for r in (subset, expected))
        assert one == other
    # Other images teach otherwise.
    again = ask(grid, message_type, **CLASS_3, **{**more, "seed": 1})
    assert any(
        not np.array_equal(arrays(again)[name].numpy(), array.numpy())
        for name, array in arrays(subset).items()
    )


def test_the_subset_is_kept_nowhere(grid: InlineGrid, tmp_path: Path) -> None:
    for side in ("retain", "all"):
        ask(grid, Descend.message.name, data="subset+original", side=side, **CLASS_3)
    ask(grid, Ascend.message.name, data="subset", **CLASS_3)
    assert not list((tmp_path / "private").rglob("*.safetensors"))


@pytest.mark.parametrize("data", ["subset", "subset+original", "synthetic+original"])
def test_one_example_and_its_double_hide_its_loss(grid: InlineGrid, data: str) -> None:
    # Of 20 images a node has a few of each class: where it has one, both parts are that one.
    few: dict[str, Any] = {"max_samples": 60, "forget_classes": []}
    make_synthetic_set(grid, **few, scale=2)
    described = ask(grid, Describe.message.name, **few).content.metric_records["metrics"]
    counts: Any = described["count-train-per-class"]
    for number in (1, max(counts)):
        others = [c for c in range(10) if c != counts.index(number)]
        options = {**few, "data": data, "erased_classes": others, "scale": 2}
        metrics = ask(grid, Descend.message.name, **options).content.metric_records["metrics"]
        assert metrics["num-examples"] == -(-number // 2) * (2 if "+" in data else 1)
        assert (metrics["loss"] > 0) == (number > 1)  # type: ignore[operator]


@pytest.mark.parametrize("message_type", [Ascend.message.name, Descend.message.name])
def test_a_subset_needs_a_size(grid: InlineGrid, message_type: str) -> None:
    reply = ask(grid, message_type, data="subset", scale=0, **CLASS_3)
    assert "BadSetting: scale must be at least 1 for data subset, got 0" in reply.error.reason
