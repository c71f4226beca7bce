"""The wire: every handler is called, and nothing but what is declared goes up."""

import math
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import nn

from client import attestation, steps, wire
from client.app import app, handlers
from client.channels.layout import to_text
from client.channels.masks import zero_
from client.data import class_names
from client.data.site import open_site
from client.errors import BadSetting, EffaceError
from client.learning.curvature import local_quasi_newton
from client.learning.training import minibatches
from client.messages import CLASS_3, WORK, Common, Declaration
from client.node import Node, answers
from client.seeds import generator
from client.simulation.settings import Simulation
from client.steps.ascent import Ascend
from client.steps.channels import SLICES, Ablation, FitChannels, Representation
from client.steps.measuring import Describe, Fisher, Heldout
from client.steps.recovery import Descend
from client.steps.secure import Step
from client.steps.store import Condense, Settle
from client.steps.training import Fit
from client.store import Store
from server.nodes.engines.inline import InlineGrid
from tests.messages import NUM_CLIENTS, SPEC, message, network, told, weights
from tests.models import changed
from tests.policies import written_policy

DIRECTORIES = ("EFFACE_STORE", "EFFACE_DATA_DIR", "EFFACE_HOME")
ALL: list[type[Common]] = sorted((h.kind for h in handlers().values()), key=str)
# The steps of secure aggregation follow one another: tests/client/steps/test_secure.py has them.
KINDS = [kind for kind in ALL if not issubclass(kind, Step)]


def arrays_of(kind: type[Common]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return names, shapes and dtypes of the arrays that may go up; 8 channels, 10 classes."""
    sent = {name: (tuple(a.shape), a.dtype) for name, a in weights().items()}
    layers = {"body.0": 8, "body.4": 8, "classifier": 10}
    rows = {"body.0": 2, "body.1": 2, "classifier": 1}  # body.1 is the norm behind body.0
    numbers = sum(
        rows[n.rpartition(".")[0]] * math.prod(s[1:])
        for n, (s, _) in sent.items()
        if n.rpartition(".")[0] in rows
    )
    both = [f"{k}/{n}" for n in layers if n != "classifier" for k in ("accuracy", "loss")]
    return {
        "none": {},
        "model": sent,
        "parameters": sent,  # the ConvNet has no buffers
        "class-sums": dict.fromkeys(("body.0", "body.4"), ((10, 8), "float64")),
        "effects": {name: ((layers[name.partition("/")[2]],), "float64") for name in both},
        "slices": {SLICES: ((numbers,), "float32")},
        # ["0", "1", ... "9"]: 10 names of 3 bytes, 9 of ", ", brackets
        "class-names": {class_names.ARRAY: ((10 * 3 + 9 * 2 + 2,), "uint8")},
    }[kind.message.arrays]


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DIRECTORIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "private"))


def open_grid(**node: Any) -> InlineGrid:
    return InlineGrid(app, NUM_CLIENTS, node_config=node, workers=1)


@pytest.fixture
def grid() -> Iterator[InlineGrid]:
    with open_grid() as made:
        yield made


def config_of(kind: type[Common], **more: Any) -> ConfigRecord:
    config: ConfigRecord = told(kind, **{**kind.message.example, **more}).config()
    return config


def ask(grid: InlineGrid, kind: type[Common], config: ConfigRecord | None = None) -> Message:
    config = config_of(kind) if config is None else config
    (reply,) = grid.send_and_receive([message(kind.message.name, config, weights())])
    return reply


def train(grid: InlineGrid) -> None:
    """Give node 1 a synthetic set."""
    assert not ask(grid, Fit).has_error()


def store_file(tmp_path: Path) -> Path:
    return next((tmp_path / "private").rglob("*.safetensors"))


# ---- what goes up -------------------------------------------------------------------------------


def test_every_declared_message_has_exactly_one_handler() -> None:
    declared = set()
    for module in pkgutil.iter_modules(steps.__path__, "client.steps."):
        for value in vars(import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Common) and "message" in vars(value):
                declared.add(value)
    assert len(declared) == len(ALL) == len(handlers())
    assert declared == set(ALL)
    for name, handler in handlers().items():
        assert name == handler.kind.message.name
        assert re.fullmatch(r"(train|evaluate|query)\.[a-z]+", name)


def test_two_handlers_of_one_message_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @answers(Describe)
    def second(node: Node, settings: Describe) -> tuple[dict[str, Any], None]:
        return {}, None

    second.work.__module__ = "client.steps.store"
    monkeypatch.setattr("client.steps.store.second", second, raising=False)
    with pytest.raises(
        EffaceError, match=r"message query\.describe must have one handler, got two"
    ):
        handlers()


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_holds_one_array_record_one_metric_record_and_nothing_undeclared(
    grid: InlineGrid, kind: type[Common], tmp_path: Path
) -> None:
    train(grid)
    reply = ask(grid, kind)

    assert not reply.has_error(), reply
    content = reply.content
    assert (len(content), len(content.array_records), len(content.metric_records)) == (2, 1, 1)
    (arrays,), (metrics,) = content.array_records.values(), content.metric_records.values()

    # Parameters of the model that came down, slices of them, numbers by channel (and class), or
    # nothing; an image is 8x8, no parameter is.
    found = {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}
    if kind is Settle:  # a signed text, no longer than it may be
        (text,) = arrays.values()
        assert attestation.read(text.numpy().tobytes())
        assert found == {attestation.ARRAY: (tuple(text.shape), "uint8")}
        return
    assert found == arrays_of(kind)
    for array in arrays.values():
        assert tuple(array.shape[-2:]) != (8, 8)
        assert np.isfinite(array.numpy()).all()

    # Declared numbers, and lists only where they have one entry a class: a list of labels or of
    # losses would have one an example.
    for name, value in metrics.items():
        per_class = kind.message.up[name] == "per-class"
        assert isinstance(value, list) == per_class
        assert not per_class or len(value) == 10  # type: ignore[arg-type]
    assert metrics["code"] == wire.code_number(wire.fingerprint())
    assert metrics["partition"] == 0
    assert metrics["seconds"] > 0  # type: ignore[operator]
    assert str(tmp_path) not in repr(content)


def test_handlers_do_their_work(grid: InlineGrid) -> None:
    # 300 images over 3 nodes, a tenth held out: 90 to train on.
    fit = ask(grid, Fit).content.metric_records["metrics"]
    assert (fit["num-examples"], fit["num-steps"], fit["samples"]) == (90, 2, 64)
    counts = ask(grid, Describe, config_of(Describe)).content.metric_records["metrics"]
    assert (counts["num-examples"], counts["num-heldout"]) == (90, 10)
    per_class = [int(n) for n in counts["count-train-per-class"]]  # type: ignore[union-attr]
    assert (counts["num-forget"], counts["num-retain"]) == (per_class[3], 90 - per_class[3])
    # ceil(|D^c| / 10) images a class.
    assert counts["num-forget-synthetic"] == -(-per_class[3] // 10)
    ascent = ask(grid, Ascend).content.metric_records["metrics"]
    assert ascent["num-examples"] == counts["num-forget-synthetic"]
    descent = ask(grid, Descend).content.metric_records["metrics"]
    assert descent["num-examples"] == 2 * counts["num-retain-synthetic"]  # type: ignore[operator]
    settled = ask(grid, Settle).content.metric_records["metrics"]
    assert (settled["applied"], settled["destroyed"]) == (0, counts["num-forget-synthetic"])
    again = ask(grid, Settle).content.metric_records["metrics"]
    assert (again["applied"], again["destroyed"]) == (1, 0)
    left = ask(grid, Describe).content.metric_records["metrics"]
    assert left["num-forget-synthetic"] == 0


def fit(grid: InlineGrid, **more: Any) -> Message:
    return ask(grid, Fit, config_of(Fit, scale=0, **more))


def test_a_node_trains_on_the_side_that_is_asked_for(grid: InlineGrid) -> None:
    counts = ask(grid, Describe).content.metric_records["metrics"]
    expected = {
        "retain": counts["num-retain"],
        "forget": counts["num-forget"],
        "all": counts["num-examples"],
    }
    for side, number in expected.items():
        reply = fit(grid, side=side, **CLASS_3)
        assert reply.content.metric_records["metrics"]["num-examples"] == number
    # On examples of class 3 alone, the gradient of its bias, mean of p_3 - 1, is the only one
    # below 0: its bias grows, every other one falls.
    bias = fit(grid, side="forget", steps=1, batch_size=90, **CLASS_3)
    before, after = weights(), bias.content.array_records["arrays"]
    moved = after["classifier.bias"].numpy() - before["classifier.bias"].numpy()
    assert (moved > 0).tolist() == [label == 3 for label in range(10)]
    # Nothing to forget: nothing to train on.
    reply = fit(grid, side="forget")
    assert reply.content.metric_records["metrics"]["num-examples"] == 0


@pytest.mark.parametrize("curvature", ["fisher", "hessian"])
def test_a_node_trains_with_the_optimiser_that_is_asked_for(
    grid: InlineGrid, curvature: str
) -> None:
    site = open_site(told(Common), {"partition-id": 0})
    model = network()
    local_quasi_newton(
        model,
        site.pick(site.train, torch.device("cpu")),
        minibatches(len(site.train), 32, 2, generator(0, "test", 0, "client-0")),
        lr=0.1,
        beta1=0.8,
        hessian_power=0.5,
        eps=0.01,
        weight_decay=0.1,
        generator=generator(0, "test curvature", 0, "client-0"),
        curvature=curvature,
    )
    options = {"beta1": 0.8, "hessian_power": 0.5, "eps": 0.01, "weight_decay": 0.1}
    reply = fit(grid, optimiser="quasi-newton", server_round=0, curvature=curvature, **options)
    for name, value in model.state_dict().items():
        found = reply.content.array_records["arrays"][name].numpy()
        assert np.array_equal(found, value.numpy())


@pytest.mark.parametrize("more", [{"side": "forget"}, {"optimiser": "quasi-newton"}])
def test_synthetic_sets_are_made_by_sgd_on_what_is_retained(
    grid: InlineGrid, more: dict[str, str], tmp_path: Path
) -> None:
    reason = ask(grid, Fit, config_of(Fit, **more, **CLASS_3)).error.reason
    assert "BadSetting: scale must be 0 for side" in reason
    assert not list((tmp_path / "private").rglob("*.safetensors"))


def test_a_node_without_anything_to_forget_answers(grid: InlineGrid) -> None:
    train(grid)
    nobody = {"forget_level": "client", "forget_classes": [], "forget_clients": ["client-2"]}
    for kind in (Describe, Heldout, Descend, Settle):
        assert not ask(grid, kind, config_of(kind, **nobody)).has_error()


@pytest.mark.parametrize("kind", [Fit, Descend])
def test_a_node_that_lost_all_its_data_weighs_nothing(grid: InlineGrid, kind: type[Common]) -> None:
    train(grid)
    gone = {"forget_level": "client", "forget_classes": [], "forget_clients": ["client-0"]}
    reply = ask(grid, kind, config_of(kind, **gone))
    assert reply.content.metric_records["metrics"]["num-examples"] == 0


# ---- errors say nothing of the node's own -------------------------------------------------------


def own_node(folder: Path, data: str, **changes: str) -> dict[str, Any]:
    """Return the config of a real node, whose policy lets messages of these tests through."""
    changes = {
        "updates": '"single"',
        "holdout": "0.5",
        "min_examples": "1",
        "min_batch": "1",
        **changes,
    }
    changes |= {"min_scale": "1"}
    policy = written_policy(folder / "policy", "client-0", **changes)
    return {"data": data, "store": str(folder / "store"), "policy": str(policy)}


def no_data_file(folder: Path) -> dict[str, Any]:
    return own_node(folder, f"npz:{folder}/patients.npz")


def data_without_its_kind(folder: Path) -> dict[str, Any]:
    return own_node(folder, f"{folder}/patients.npz")


def no_policy(folder: Path) -> dict[str, Any]:
    return {**own_node(folder, f"npz:{site_file(folder)}"), "policy": f"{folder}/patients.toml"}


def open_policy(folder: Path) -> dict[str, Any]:
    config = own_node(folder, f"npz:{site_file(folder)}")
    Path(config["policy"]).chmod(0o644)
    return config


def open_store(folder: Path) -> dict[str, Any]:
    (folder / "store").mkdir(mode=0o755)
    return own_node(folder, f"npz:{site_file(folder)}")


def damaged_data(folder: Path) -> dict[str, Any]:
    (folder / "patients.npz").write_bytes(b"PK\x03\x04 not an archive")
    return no_data_file(folder)


def store_is_a_file(folder: Path) -> dict[str, Any]:
    (folder / "patients").write_text("in the way")
    return {"store": str(folder / "patients" / "store")}


def damaged_state(folder: Path) -> dict[str, Any]:
    (folder / "store").mkdir()
    (folder / "store" / "state.json").write_text("{")
    return {"store": str(folder / "store")}


def no_such_device(folder: Path) -> dict[str, Any]:
    return {"device": f"{folder}/patients"}


FAILURES = [
    no_data_file,
    data_without_its_kind,
    no_policy,
    open_policy,
    open_store,
    damaged_data,
    store_is_a_file,
    damaged_state,
    no_such_device,
]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_reply_holds_no_path(
    tmp_path: Path, kind: type[Common], failure: Callable[[Path], dict[str, Any]]
) -> None:
    with open_grid(**failure(tmp_path)) as grid:
        reply = ask(grid, kind)
    if not reply.has_error():
        # A store in the wrong place hurts only those who read or write a set.
        assert failure is store_is_a_file
        return
    reason = reply.error.reason
    assert str(tmp_path) not in reason
    assert tmp_path.name not in reason
    assert "patients" not in reason
    assert "/" not in reason.replace("client/steps", "")
    assert "Error" in reason  # its kind is told


@pytest.mark.parametrize("kind", [Fit, Ascend, Descend, Describe, Condense])
@pytest.mark.parametrize("damage", ["truncated", "of another model"])
def test_a_bad_synthetic_set_is_an_error_without_its_path(
    grid: InlineGrid, tmp_path: Path, kind: type[Common], damage: str
) -> None:
    train(grid)
    path = store_file(tmp_path)
    more: dict[str, Any] = {}
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        found = Store(path.parent.parent).load("r0001", model=str(told(Common).model_spec))
        assert found is not None
        Store(path.parent.parent).save("r0001", 1, found, model="another")
    if kind == Fit:
        more = {"server_round": 2}
    reply = ask(grid, kind, config_of(kind, **more))
    assert "StoreError" in reply.error.reason
    assert "/" not in reply.error.reason
    assert path.exists()


def test_a_model_that_diverges_is_an_error_that_names_the_remedy_here_only(
    grid: InlineGrid, caplog: pytest.LogCaptureFixture
) -> None:
    reply = ask(grid, Fit, config_of(Fit, lr=1e30, scale=0, steps=3))
    assert "the node's own log says why" in reply.error.reason
    assert "must be" in caplog.text
    assert "finite" in caplog.text


# ---- a handler that would tell more -------------------------------------------------------------


ANSWER = Declaration(
    "query.test", {}, arrays="model", metrics={**WORK, "count-train-per-class": "per-class"}
)


def answer_with(
    metrics: dict[str, Any],
    state: dict[str, torch.Tensor] | None = None,
    declared: Declaration = ANSWER,
) -> Callable[[], Message]:
    asked = message(declared.name, config_of(Describe), weights())
    like = wire.forms(weights())
    return lambda: wire.reply(asked, declared, metrics, num_classes=10, state=state, like=like)


@pytest.mark.parametrize(
    ("metrics", "rule"),
    [
        ({"images": [0.0] * 10}, "declared metrics only, got 'images'"),
        ({"labels": [3.0, 3.0, 1.0]}, "declared metrics only, got 'labels'"),
        ({"path": "/data/patients"}, "declared metrics only, got 'path'"),
        ({"loss": [0.5, 0.25]}, "metric loss must be scalar, got list"),
        ({"loss": "/data/patients"}, "metric loss must be a finite number"),
        ({"loss": float("nan")}, "metric loss must be a finite number, got nan"),
        ({"count-train-per-class": 3.0}, "must be per-class, got float"),
        ({"count-train-per-class": [3.0] * 64}, "must hold 10 numbers, got 64"),
        ({"count-train-per-class": [*[3.0] * 9, float("inf")]}, "must be a finite number"),
    ],
)
def test_an_undeclared_metric_is_refused(metrics: dict[str, Any], rule: str) -> None:
    with pytest.raises(EffaceError, match=re.escape(rule)):
        answer_with(metrics)()


@pytest.mark.parametrize("kind", KINDS)
def test_what_other_messages_may_tell_is_refused(kind: type[Common]) -> None:
    others = {name: form for k in KINDS for name, form in k.message.metrics.items()}
    undeclared = others.keys() - kind.message.up.keys()
    assert undeclared
    for name in undeclared:
        with pytest.raises(EffaceError, match=f"{kind.message.name} must hold declared metrics on"):
            answer_with({name: 0.0}, None, kind.message)()
    if kind.message.arrays == "none":
        with pytest.raises(EffaceError, match="must hold no array"):
            answer_with({}, network().state_dict(), kind.message)()


def changed_state(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**network().state_dict(), name: tensor}


@pytest.mark.parametrize(
    ("name", "tensor", "rule"),
    [
        ("images", torch.zeros(5, 1, 8, 8), "asked for alone, got ['images']"),
        ("classifier.weight", torch.zeros(5, 1, 8, 8), "must have shape (10, "),
        ("classifier.bias", torch.full((10,), torch.nan), "must be finite, got NaN"),
        ("classifier.bias", torch.zeros(10, dtype=torch.int64), "must be float32, got torch.int64"),
    ],
)
def test_an_array_that_is_no_parameter_is_refused(
    name: str, tensor: torch.Tensor, rule: str
) -> None:
    with pytest.raises(EffaceError, match=re.escape(rule)):
        answer_with({}, changed_state(name, tensor))()


def test_a_parameter_left_out_is_refused() -> None:
    state = dict(list(network().state_dict().items())[1:])
    with pytest.raises(EffaceError, match="arrays that were asked for alone"):
        answer_with({}, state)()


def test_a_handler_cannot_get_an_image_past_the_reply() -> None:
    @answers(Fit)
    def leak(node: Node, settings: Fit) -> tuple[dict[str, Any], nn.Module]:
        model = network()
        model.register_buffer("seen", node.site.inputs(node.site.train))
        return {"num-examples": node.count(node.site.train)}, model

    asked = message(Fit.message.name, config_of(Fit), weights())
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
    content = leak(asked, context).content
    assert list(content.array_records["arrays"]) == list(weights())


def test_of_examples_that_a_handler_did_not_note_nothing_goes_up() -> None:
    @answers(Fit)
    def unnoted(node: Node, settings: Fit) -> tuple[dict[str, Any], nn.Module]:
        labels = node.site.train.labels
        return {"num-examples": len(labels), "loss": float(labels.sum())}, network(1)

    asked = message(Fit.message.name, config_of(Fit), weights())
    content = unnoted(asked, Context(1, 1, {"partition-id": 0}, RecordDict(), {})).content
    metrics = content.metric_records["metrics"]
    assert (metrics["num-examples"], metrics["loss"]) == (0, 0)
    assert not content.array_records["arrays"]


# ---- what comes down ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_settings_survive_the_wire(kind: type[Common]) -> None:
    sent = told(kind, **kind.message.example)
    assert kind.parse(sent.config()) == sent


@pytest.mark.parametrize("kind", KINDS)
def test_no_message_gives_a_common_setting_a_meaning_of_its_own(kind: type[Common]) -> None:
    assert not set(kind.__annotations__) & {f.name for f in fields(Common)}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_setting_is_refused_by_every_handler(
    grid: InlineGrid, kind: type[Common]
) -> None:
    config = config_of(kind)
    config["learning-rate"] = 0.1
    reason = ask(grid, kind, config).error.reason
    assert "BadSetting: setting must be known to this node, got 'learning-rate'" in reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_setting_is_refused_by_every_handler(
    grid: InlineGrid, kind: type[Common]
) -> None:
    required = [
        f.name.replace("_", "-")
        for f in fields(kind)
        if f.default is MISSING and f.default_factory is MISSING
    ]
    assert "seed" in required
    for key in required:
        config = config_of(kind)
        del config[key]
        reason = ask(grid, kind, config).error.reason
        assert f"BadSetting: {key} must be given, got nothing" in reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_the_wrong_type_is_refused_whatever_the_key(kind: type[Common]) -> None:
    keys = list(config_of(kind))
    assert {"sim-dataset", "sim-num-clients"} < set(keys)
    parts = 2  # one of them, `secure`, is not in the config
    assert len(keys) == len(fields(kind)) - parts + len(fields(Simulation))
    for key in keys:
        wrong: Any = b"0"
        with pytest.raises(BadSetting, match=rf"^{key} must be \w+, got b'0'$"):
            kind.parse({**config_of(kind), key: wrong})


def test_a_whole_number_is_a_number_but_not_the_other_way_round() -> None:
    assert Fit.parse({**config_of(Fit), "lr": 1}).lr == 1.0
    for key, value in (("steps", 2.0), ("steps", True), ("destroy", 1)):
        kind = Settle if key == "destroy" else Fit
        with pytest.raises(BadSetting, match=f"{key} must be"):
            kind.parse({**config_of(kind), key: value})


@pytest.mark.parametrize(
    ("kind", "key", "value", "rule"),
    [
        (Fit, "lr", 0.0, "be positive"),
        (Fit, "lr", float("nan"), "be finite"),
        (Fit, "lr", float("inf"), "be finite"),
        (Fit, "steps", -1, "be at least 0"),
        (Fit, "epochs", -1, "be at least 0"),
        (Fit, "batch-size", 0, "be at least 1"),
        (Fit, "momentum", 1.0, "lie in [0, 0.999]"),
        (Fit, "weight-decay", -0.1, "lie in [0, 1]"),
        (Fit, "proximal", -1.0, "lie in [0, 1e+06]"),
        (Fit, "scale", -1, "be at least 0"),
        (Fit, "image-start", "mean", "be one of real, noise"),
        (Fit, "image-lr", -0.1, "be positive"),
        (Fit, "image-steps", 0, "be at least 1"),
        (Fit, "image-momentum", 1.5, "lie in [0, 0.999]"),
        (Fit, "image-batch", -1, "be at least 0"),
        (Fit, "distill-every", 0, "be at least 1"),
        (Fit, "distill-fraction", 1.5, "lie in [0, 1]"),
        (Fit, "side", "both", "be one of retain, forget, all"),
        (Fit, "optimiser", "adam", "be one of sgd, quasi-newton"),
        (Fit, "curvature", "exact", "be one of fisher, hessian"),
        (Fit, "beta1", 1.0, "lie in [0, 0.999]"),
        (Fit, "beta2", 1.0, "lie in [0, 0.9999]"),
        (Fit, "hessian-power", 1.5, "lie in [0, 1]"),
        (Fit, "eps", 0.0, "be positive"),
        (Fit, "holdout", 0.6, "lie in [0, 0.5]"),
        (Fit, "seed", -1, "lie in [0, 2^63)"),
        (Fit, "sim-num-clients", 0, "be at least 1"),
        (Fit, "sim-max-samples", -1, "be at least 0"),
        (Fit, "task", "../images", "name a task"),
        (Fit, "task-options", "[]", "be a JSON object"),
        (Fit, "task-code", "abc", "be a SHA-256"),
        (Fit, "device", "tpu", "be auto, cpu or cuda"),
        (Fit, "threads", 0, "lie in [1, 1024]"),
        (Fit, "precision", "float16", "be one of float32, bfloat16"),
        (Fit, "client", "", "be 1 to 64 letters, digits, spaces, '.', '_' or '-'"),
        (Fit, "request", "", "be a text of 1 to 200 characters"),
        (Fit, "phase", "x" * 201, "be a text of 1 to 200 characters"),
        (Fit, "fingerprint", "abc", "be a SHA-256 in hexadecimal"),
        (Fit, "forget-level", "sample", "be one of none, class, client"),
        (Fit, "forget-classes", [-1], "be a list of class numbers from 0 up"),
        (Fit, "erased-classes", ["3"], "be a list of class numbers from 0 up"),
        (Fit, "forget-clients", [""], "be a list of client names"),
        (Fit, "erased-clients", [3], "be a list of client names"),
        (Ascend, "data", "all", "be one of synthetic, subset, original"),
        (Ascend, "epochs", 0, "be at least 1"),
        (Ascend, "target-losses", [-1.0], "be a list of losses from 0 up"),
        (
            Descend,
            "data",
            "real",
            "be one of synthetic, synthetic+original, subset, subset+original, original",
        ),
        (Descend, "side", "both", "be one of retain, forget, all"),
        (Descend, "batches", -1, "be at least 0"),
        (Descend, "hold", -1.0, "lie in [0, 1000]"),
        (Descend, "hold-features", 1001.0, "lie in [0, 1000]"),
        (Condense, "outer-steps", 0, "be at least 1"),
        (Condense, "inner-steps", 0, "be at least 1"),
        (Representation, "samples-per-class", 1, "be 0 for all, or at least 2"),
        (Fisher, "side", "all", "be one of retain, forget"),
        (Fisher, "max-examples", 1, "be at least 2"),
        (Settle, "action", "abort", "be one of forget, relearn"),
    ],
)
def test_a_value_out_of_range_is_refused_with_key_rule_and_value(
    grid: InlineGrid, kind: type[Common], key: str, value: Any, rule: str
) -> None:
    config = ConfigRecord({**config_of(kind), key: value})
    reason = ask(grid, kind, config).error.reason
    assert f"BadSetting: {key} must {rule}" in reason
    assert f"got {value!r}" in reason or "finite" in rule


def test_settings_are_checked_where_they_are_made_too() -> None:
    with pytest.raises(BadSetting, match=r"lr must be positive, got -1\.0"):
        told(Ascend, lr=-1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_other_code_is_refused_by_every_handler(grid: InlineGrid, kind: type[Common]) -> None:
    reason = ask(grid, kind, config_of(kind, fingerprint="0" * 64)).error.reason
    assert "CodeMismatch: fingerprint must be " + wire.fingerprint()[:12] in reason
    assert "got 000000000000; install the same release" in reason


def test_weights_of_another_model_are_refused(grid: InlineGrid) -> None:
    reason = ask(grid, Fit, config_of(Fit, **Fit.of_model(changed(SPEC, width=9)))).error.reason
    assert "BadSetting: arrays must fit the model" in reason


def test_a_message_of_another_form_is_refused(grid: InlineGrid) -> None:
    odd = message(Describe.message.name, config_of(Describe))
    odd.content["more"] = ArrayRecord()
    (reply,) = grid.send_and_receive([odd])
    assert "message must hold 'arrays' and 'config', got ['arrays', 'config', 'more']" in (
        reply.error.reason
    )


def test_the_fingerprint_covers_every_source_of_the_client() -> None:
    assert re.fullmatch("[0-9a-f]{64}", wire.fingerprint())
    assert wire.code_number("ffffffffffff" + "0" * 52) == 2**48 - 1
    # A double, as MetricRecord has it, holds 48 bits exactly.
    assert float(2**48 - 1) == 2**48 - 1


def test_the_population_names_the_simulated_clients_data() -> None:
    base = Simulation(dataset="digits", num_clients=3, max_samples=300)
    # As it always was: stores of simulated nodes stay where they are.
    assert base.population == "ba832a88e501"
    others = [replace(base, partition="shards:2"), replace(base, federation="b")]
    assert len({base.population, *(other.population for other in others)}) == 3


def test_what_is_of_simulated_nodes_alone_has_a_prefix_and_may_be_missing() -> None:
    config = config_of(Describe)
    assert {key for key in config if key.startswith("sim-")} == {
        "sim-dataset",
        "sim-partition",
        "sim-num-clients",
        "sim-max-samples",
        "sim-partition-seed",
        "sim-federation",
        "sim-task",
    }
    site = told(Describe, **{**Describe.message.example}, simulation=None)
    assert not [key for key in site.config() if key.startswith("sim-")]
    assert Describe.parse(site.config()).simulation is None
    with pytest.raises(BadSetting, match="sim-num-clients must be given, got nothing"):
        Describe.parse({**site.config(), "sim-dataset": "digits"})
    with pytest.raises(BadSetting, match="setting must be known to this node, got 'sim-more'"):
        Describe.parse({**config, "sim-more": 1})


# ---- who is addressed, and which data it may open -----------------------------------------------


@pytest.mark.parametrize(
    "name", ["client-0", "node-1234567", "18446744073709551615", "Klinik Süd 2", "st_a.example.org"]
)
def test_a_node_may_be_called_so(name: str) -> None:
    assert told(Describe, client=name).client == name


@pytest.mark.parametrize(
    "name", ["../outside", "..", ".hidden", "a/b", "a\\b", "/etc", " a", "a\n", "a\0b", "?", "-a"]
)
@pytest.mark.parametrize("key", ["client", "lineage"])
def test_a_name_that_is_no_folder_is_refused(key: str, name: str) -> None:
    with pytest.raises(BadSetting, match=rf"^{key} must be 1 to 64 letters, digits, spaces, "):
        told(Describe, **{key: name})


def test_a_client_cannot_be_sent_out_of_the_store(grid: InlineGrid, tmp_path: Path) -> None:
    reply = ask(grid, Fit, ConfigRecord({**config_of(Fit), "client": "../../outside"}))
    assert "BadSetting: client must be 1 to 64 letters" in reply.error.reason
    assert list(tmp_path.iterdir()) == []


def site_file(folder: Path) -> Path:
    """Write four images of 8x8 in two classes, as a site would hold them."""
    path = folder / "site.npz"
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    np.savez(path, train_images=images, train_labels=labels, num_classes=10)
    return path


def test_a_simulated_node_opens_the_file_that_the_coordinator_names(
    grid: InlineGrid, tmp_path: Path
) -> None:
    config = config_of(Describe, dataset=f"npz:{site_file(tmp_path)}", num_clients=1, max_samples=0)
    assert not ask(grid, Describe, config).has_error()


@pytest.mark.parametrize("kind", ["npz", "folder"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_node_outside_a_simulation_opens_no_file_that_the_coordinator_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exists: bool
) -> None:
    monkeypatch.delenv("EFFACE_STORE")
    path = site_file(tmp_path) if exists else tmp_path / "none.npz"
    with open_grid(store=str(tmp_path / "store")) as grid:
        reply = ask(grid, Describe, config_of(Describe, dataset=f"{kind}:{path}"))
        named = ask(grid, Describe)  # a published set tells it nothing of the node's
    assert (
        f"BadSetting: dataset must be one of digits, mnist, fashion-mnist, cifar10, cifar100, svhn "
        f"on a node that names no data of its own, got '{kind}:{path}'; its operator names what it "
        'holds: --node-config \'data="npz:/path" store="/path" policy="/path"\''
    ) in reply.error.reason
    assert not named.has_error()


def test_a_node_that_names_its_data_ignores_what_the_coordinator_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EFFACE_STORE")
    own = own_node(tmp_path, f"npz:{site_file(tmp_path)}", holdout="0.0")
    with open_grid(**own) as grid:
        config = config_of(Describe, dataset="npz:/etc/passwd", holdout=0.0)
        metrics = ask(grid, Describe, config).content.metric_records["metrics"]
    assert metrics["num-examples"] == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_that_names_its_data_must_name_its_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type[Common]
) -> None:
    own = own_node(tmp_path, f"npz:{site_file(tmp_path)}")
    del own["store"]
    with open_grid(**own) as grid:
        reply = ask(grid, kind)
    assert "StoreError: the node's own log says why" in reply.error.reason
    assert "node config must name store beside data, got none" in caplog.text
    assert not (tmp_path / "private").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_that_names_its_data_must_name_its_policy(
    tmp_path: Path, kind: type[Common]
) -> None:
    own = {"data": f"npz:{site_file(tmp_path)}", "store": str(tmp_path / "store")}
    with open_grid(**own) as grid:
        reply = ask(grid, kind)
    assert (
        "PolicyRefused: node config must name a policy beside data, got none; its operator has to "
        "make one: efface site init FOLDER --name NAME"
    ) in reply.error.reason
    assert not (tmp_path / "store").exists()


# ---- one example's loss stays here --------------------------------------------------------------


LOSSES = {
    Fit: {"batch_size": 2, "scale": 0},
    Ascend: {"data": "original"},
    Descend: {"data": "original"},
    FitChannels: {"batch_size": 2},
    Heldout: {"holdout": 0.5},
    Ablation: {},
}


def losses_of(reply: Message) -> list[float]:
    """Return every loss in a reply."""
    assert not reply.has_error(), reply
    found = []
    for name, value in reply.content.metric_records["metrics"].items():
        if "loss" in name:
            found += [float(n) for n in (value if isinstance(value, list) else [value])]
    for name, array in reply.content.array_records["arrays"].items():
        if name.startswith("loss/"):
            found += array.numpy().tolist()
    return found


def examples_of(grid: InlineGrid, **more: Any) -> list[float]:
    """Return how many examples of each class node 1 holds."""
    config = config_of(Describe, **more)
    counts = ask(grid, Describe, config).content.metric_records["metrics"]
    return counts["count-train-per-class"]  # type: ignore[return-value]


@pytest.mark.parametrize("num_examples", [1, 2])
@pytest.mark.parametrize("kind", LOSSES)
def test_one_examples_loss_never_goes_up(
    grid: InlineGrid, kind: type[Common], num_examples: int
) -> None:
    # Half held out of 20 images: the classes have 0 to 4, here and there. All are erased but one.
    few: dict[str, Any] = {"max_samples": 60, "holdout": 0.5, "erased_classes": []}
    held = ask(grid, Heldout, config_of(Heldout, **few, forget_classes=[]))
    counts: list[float] = (
        held.content.metric_records["metrics"]["retain-count-per-class"]  # type: ignore[assignment]
        if kind == Heldout
        else examples_of(grid, **few)
    )
    label = counts.index(num_examples)
    forgets = kind in (Ascend, Ablation)
    more = {
        **few,
        **LOSSES[kind],
        "forget_classes": [label] if forgets else [],
        "erased_classes": [c for c in range(10) if c != label],
    }
    losses = losses_of(ask(grid, kind, config_of(kind, **more)))
    assert losses
    assert any(losses) == (num_examples > 1)


@pytest.mark.parametrize("kind", [Fit, FitChannels])
@pytest.mark.parametrize(("steps", "batch_size"), [(1, 1), (1, 2), (2, 1)])
def test_one_step_on_one_example_of_many_hides_its_loss(
    grid: InlineGrid, kind: type[Common], steps: int, batch_size: int
) -> None:
    more = {"steps": steps, "batch_size": batch_size, "forget_classes": []}
    if kind == Fit:
        more["scale"] = 0
    (loss,) = losses_of(ask(grid, kind, config_of(kind, **more)))
    assert (loss > 0) == (steps * batch_size > 1)


# ---- channels -----------------------------------------------------------------------------------


def channel_fit(grid: InlineGrid, arrays: ArrayRecord, **more: Any) -> Message:
    config = config_of(FitChannels, **more)
    (reply,) = grid.send_and_receive([message(FitChannels.message.name, config, arrays)])
    return reply


def test_slices_after_the_whole_model_mean_the_same_as_the_whole_model(grid: InlineGrid) -> None:
    first = channel_fit(grid, weights())
    slices = first.content.array_records["arrays"]
    row = slices[SLICES].numpy()
    moved = {**weights()}
    # One tensor after the other, as in the model.
    for name in (n for n in moved if n.startswith(("body.0.", "body.1.", "classifier."))):
        rows = moved[name].numpy().copy()
        chosen = [3] if name.startswith("classifier") else [0, 3]
        size = rows[chosen].size
        rows[chosen] = row[:size].reshape(rows[chosen].shape)
        row = row[size:]
        moved[name] = Array(rows)
    assert not len(row)

    again = channel_fit(grid, slices, whole=False, server_round=2)
    whole = channel_fit(grid, ArrayRecord(moved), server_round=2)

    assert not again.has_error(), again
    for name, array in again.content.array_records["arrays"].items():
        assert np.array_equal(array.numpy(), whole.content.array_records["arrays"][name].numpy())


def test_slices_without_the_model_are_refused(grid: InlineGrid) -> None:
    slices = channel_fit(grid, weights()).content.array_records["arrays"]
    reply = channel_fit(grid, slices, whole=False, request="r0002")
    assert "base model of r0002 must exist on node" in reply.error.reason


def test_slices_that_do_not_fit_are_refused(grid: InlineGrid) -> None:
    slices = channel_fit(grid, weights()).content.array_records["arrays"]
    reply = channel_fit(grid, slices, whole=False, channels=["body.0:0", "classifier:3"])
    # 57 = 2 * (9 + 1 + 2) + 32 + 1; of one channel of body.0 there would be 12 less.
    assert "slices must be a row of the chosen channels' 45 numbers" in reply.error.reason


def test_the_kept_model_goes_when_the_request_is_settled(grid: InlineGrid, tmp_path: Path) -> None:
    channel_fit(grid, weights())
    assert list((tmp_path / "private").rglob("base-*"))
    ask(grid, Settle)
    assert not list((tmp_path / "private").rglob("base-*"))


@pytest.mark.parametrize(
    "how",
    [
        {"optimiser": "sgd", "momentum": 0.9},
        {"optimiser": "quasi-newton"},
        {"optimiser": "quasi-newton", "curvature": "hessian"},
    ],
)
def test_pruned_channels_stay_zero_through_training(
    grid: InlineGrid, how: dict[str, str | float]
) -> None:
    pruned = {"body.0": (0, 3), "body.4": (7,)}
    model = network()
    zero_(model, pruned)
    asked = config_of(Fit, model_pruned=to_text(pruned), scale=0, steps=5, **how)
    (reply,) = grid.send_and_receive(
        [message(Fit.message.name, asked, ArrayRecord(model.state_dict()))]
    )
    trained = reply.content.array_records["arrays"]
    for name, rows in (("body.0", [0, 3]), ("body.1", [0, 3]), ("body.4", [7]), ("body.5", [7])):
        for kind in ("weight", "bias"):
            assert not trained[f"{name}.{kind}"].numpy()[rows].any()
            others = np.delete(trained[f"{name}.{kind}"].numpy(), rows, axis=0)
            assert others.any()


def test_the_fingerprint_sees_subfolders_and_paths(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "app.py").write_text("1")
    (tmp_path / "data" / "own.py").write_text("2")
    seen = {wire.digest_of(tmp_path)}
    (tmp_path / "data" / "own.py").write_text("3")
    seen.add(wire.digest_of(tmp_path))
    (tmp_path / "data" / "own.py").rename(tmp_path / "own.py")
    seen.add(wire.digest_of(tmp_path))
    assert len(seen) == 3
