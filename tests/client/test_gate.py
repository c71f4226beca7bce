"""The gate: what may go up of an answer, whatever handler made it."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from client.app import handlers
from client.gate import gated
from client.law import COUNTED, check, tells_of_one_site
from client.messages import Common
from client.policy import Answers, Policy, PolicyRefused
from client.steps.measuring import Describe
from client.steps.store import Condense, Settle
from client.steps.training import Fit
from tests.attacks.site import Hospital, hospital
from tests.messages import network, told

KINDS: list[type[Common]] = sorted((h.kind for h in handlers().values()), key=str)


def site(**answers: Any) -> Policy:
    return Policy(name="client-0", answers=Answers(**answers), folder=Path("/site"))


def through(
    policy: Policy, kind: type[Common], metrics: dict[str, Any], distinct: int
) -> tuple[dict[str, Any], nn.Module | None]:
    settings = told(kind, **kind.message.example)
    found, arrays = gated(policy, kind, settings, metrics, network(), distinct)
    assert arrays is None or isinstance(arrays, nn.Module)
    return found, arrays


@pytest.mark.parametrize(("distinct", "passes"), [(0, False), (4, False), (5, True), (900, True)])
def test_below_the_least_no_arrays_and_no_counts_go_up(distinct: int, passes: bool) -> None:
    metrics = {"num-examples": 900, "num-steps": 3, "samples": 96, "loss": 1.5}
    found, arrays = through(site(updates="single"), Fit, metrics, distinct)
    assert (arrays is not None) == passes
    assert found == (metrics if passes else dict.fromkeys(metrics, 0.0))


def test_training_needs_a_whole_batch() -> None:
    policy = site(updates="single", min_batch=50)
    metrics = {"num-examples": 49, "num-steps": 1, "samples": 49, "loss": 1.0}
    assert through(policy, Fit, dict(metrics), 49) == (dict.fromkeys(metrics, 0.0), None)
    assert through(policy, Fit, dict(metrics), 50)[1] is not None
    assert through(policy, Describe, {"num-examples": 49}, 49)[0] == {"num-examples": 49}


def test_a_handful_among_the_counts_is_none() -> None:
    metrics = {"num-examples": 900, "num-forget": 4, "num-retain": 896, "count": [1.0, 2.0]}
    found, _ = through(site(updates="single"), Describe, metrics, 900)
    assert found == {**metrics, "num-forget": 0.0}


def test_a_site_that_answers_in_sums_says_only_whether_there_is_enough() -> None:
    metrics = {
        "num-examples": 900,
        "num-forget": 4,
        "num-retain": 896,
        "count-train-per-class": [90.0, 80.0],
    }
    found, arrays = through(site(), Describe, metrics, 900)
    assert found == {
        "num-examples": 1.0,
        "num-forget": 0.0,
        "num-retain": 1.0,
        "count-train-per-class": [0.0, 0.0],
    }
    assert arrays is not None  # the classes' names


def test_an_order_is_confirmed_however_few_examples_there_are() -> None:
    metrics = {"num-examples": 3, "applied": 1.0, "destroyed": 2}
    for policy in (site(updates="single"), site()):
        found, _ = through(policy, Settle, dict(metrics), 3)
        assert (found["num-examples"], found["applied"]) == (0.0, 1.0)


def test_a_simulated_node_tells_all_that_it_noted() -> None:
    metrics = {"num-examples": 1, "num-steps": 1, "samples": 1, "loss": 0.0}
    assert through(Policy.simulated("client-0"), Fit, metrics, 1) == (metrics, network_like())


class network_like:  # noqa: N801
    """Equal to any network: what came in goes out."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, nn.Module)


@pytest.mark.parametrize("kind", KINDS)
def test_in_sums_alone_only_questions_are_answered(kind: type[Common]) -> None:
    settings = told(kind, **{**kind.message.example, "holdout": 0.1, "scale": 10})
    policy = site(min_batch=1)
    if tells_of_one_site(kind):
        with pytest.raises(PolicyRefused, match="this site answers in sums only"):
            check(policy, kind, settings)
    else:
        assert kind.message.arrays in ("none", "class-names", "attestation", "sealed")
        check(policy, kind, settings)


def test_some_messages_tell_of_one_site_and_some_do_not() -> None:
    assert {k for k in (Fit, Describe, Settle, Condense) if tells_of_one_site(k)} == {Fit}


def test_every_count_of_work_has_a_limit() -> None:
    # Whatever a message may ask for without an end of its own is limited by the policy, or by the
    # data: a new setting must be one of these.
    by_the_data = {"max_examples", "samples_per_class", "batches", "image_batch"}
    open_ended = set()
    for kind in KINDS:
        for name, spec in kind.__dataclass_fields__.items():
            rule = spec.metadata.get("rule")
            if rule and spec.type in (int, float) and rule.holds(10**15):
                open_ended.add(name)
    # A wider clip of noised gradients is narrowed to the policy's own.
    identifiers = {"seed", "server_round", "scale", "eps", "distill_every", "clip_norm"}
    identifiers |= {"clip", "radius"}  # hold an ascent, which may go without: no work is in them
    assert open_ended - identifiers - by_the_data <= set(COUNTED)


@pytest.mark.parametrize(
    ("answers", "said", "why"),
    [
        ({"serve": ["query.describe"]}, {}, "message must be one that client-0 serves"),
        ({"levels": ["client"]}, {"forget_level": "class"}, "forget-level must be one that"),
        ({"levels": []}, {"forget_level": "class"}, "serves .none of them., got class"),
        (
            {"methods": ["sga"]},
            {"method": "fedosd"},
            r"serves \(sga\), got fedosd",
        ),
        ({"methods": ["sga"]}, {"forget_level": "class"}, "got no method's name"),
        ({"methods": ["sga"]}, {"forget_level": "class", "method": "sga"}, ""),
        ({"methods": ["sga"]}, {}, ""),
    ],
)
def test_a_site_serves_what_it_says(
    answers: dict[str, Any], said: dict[str, Any], why: str
) -> None:
    settings = told(Fit, **{**Fit.message.example, "forget_classes": [3], **said})
    policy = site(updates="single", **answers)
    if not why:
        check(policy, Fit, settings)
        return
    with pytest.raises(PolicyRefused, match=why):
        check(policy, Fit, settings)


@pytest.fixture(scope="module")
def in_sums(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return hospital(tmp_path_factory.mktemp("sums"), updates="sums")


def test_a_description_in_sums_has_names_and_no_number(in_sums: Hospital) -> None:
    answer = in_sums.ask(Describe, forget_level="class", forget_classes=[3])
    assert set(answer.arrays) == {"class-names"}
    counts = {k: v for k, v in answer.metrics.items() if k.startswith(("num-", "count-"))}
    assert counts["num-examples"] == 1
    assert counts["num-retain"] == 1
    assert not any(counts["count-train-per-class"])
    assert all(v in (0, 1) for v in counts.values() if not isinstance(v, list))
