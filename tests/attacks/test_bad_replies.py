"""What a hostile node may answer: each was averaged, or ended the others' work, before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.data import class_names
from client.steps.measuring import Heldout, Membership
from strategies.rounds.base import ClientLost, Rounds
from strategies.rounds.failures import cleaned, failure_in
from strategies.rounds.replies import BadReply, Expected, bounds, check
from tests.attacks.replies import EVIL, Played, play
from tests.messages import told

HEADER = b"\x93NUMPY\x01\x00"


def header(text: bytes) -> bytes:
    return HEADER + len(text).to_bytes(2, "little") + text


PICKLED = header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n") + (
    b"cos\nsystem\n(S'touch pwned'\ntR."
)
HUGE = header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000,), }\n") + bytes(16)

Arrays = dict[str, Array]
Numbers = dict[str, Any]


def each(make: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {name: Array(np.asarray(make(a.numpy()))) for name, a in arrays.items()}


def forged(data: bytes, claim: tuple[int, ...] = (1,)) -> Callable[[Arrays], Arrays]:
    def lie(arrays: Arrays) -> Arrays:
        return {n: Array(a.dtype, a.shape, a.stype, data) for n, a in arrays.items()}

    return lie


BAD_ARRAYS: dict[str, Callable[[Arrays], Arrays]] = {
    "NaN": each(lambda a: (a * np.nan).astype(a.dtype)),
    "infinity": each(lambda a: (a * 0 + np.inf).astype(a.dtype)),
    "3e38": each(lambda a: (a * 0 + 3e38).astype(a.dtype)),
    "wrong shape": each(lambda a: np.zeros((2, 2), a.dtype)),
    "0-d": each(lambda a: np.asarray(1, a.dtype)),
    "float64": each(lambda a: a.astype(np.float16)),
    "transposed lie": lambda arrays: {
        n: Array(a.dtype, (*a.shape, 1), a.stype, a.data) for n, a in arrays.items()
    },
    "one more": lambda arrays: {**arrays, "zz": Array(np.zeros(3))},
    "one less": lambda arrays: dict(list(arrays.items())[1:]),
    "renamed": lambda arrays: {f"{name}x": array for name, array in arrays.items()},
    "none": lambda arrays: {},
    "pickle": forged(PICKLED),
    "header of 1e11 floats": forged(HUGE),
    "no header": forged(b""),
    "half a header": forged(HEADER + b"\xff\xff{"),
    "short data": lambda arrays: {
        n: Array(a.dtype, a.shape, a.stype, a.data[:-1]) for n, a in arrays.items()
    },
    "long data": lambda arrays: {
        n: Array(a.dtype, a.shape, a.stype, a.data + b"\0") for n, a in arrays.items()
    },
    "other kind": lambda arrays: {
        n: Array(a.dtype, a.shape, "pickle", a.data) for n, a in arrays.items()
    },
}
BAD_NUMBERS: dict[str, Callable[[Numbers], Numbers]] = {
    "1e18 examples": lambda m: m | {"num-examples": 10**18},
    "more than described": lambda m: m | {"num-examples": 1000},
    "10^400 examples": lambda m: m | {"num-examples": 10**400},
    "10^5000 examples": lambda m: m | {"num-examples": 10**5000},
    "infinite examples": lambda m: m | {"num-examples": float("inf")},
    "NaN examples": lambda m: m | {"num-examples": float("nan")},
    "-1e9 examples": lambda m: m | {"num-examples": -(10**9)},
    "a list of examples": lambda m: m | {"num-examples": [1.0, 2.0]},
    "no examples said": lambda m: {k: v for k, v in m.items() if k != "num-examples"},
    "no seconds": lambda m: {k: v for k, v in m.items() if k != "seconds"},
    "negative seconds": lambda m: m | {"seconds": -1.0},
    "NaN seconds": lambda m: m | {"seconds": float("nan")},
    "undeclared": lambda m: m | {"my-\x1b[31msecret": 1.0},
    "other code": lambda m: m | {"code": 1},
    "a list for a code": lambda m: m | {"code": [1, 2]},
}


@pytest.fixture(scope="module", autouse=True)
def _node(tmp_path_factory: pytest.TempPathFactory) -> Any:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFACE_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="module")
def training(_node: None) -> Played:
    return play("fit")


@pytest.fixture(scope="module")
def ascent(_node: None) -> Played:
    return play("ascend")


def without_evil(played: Played, arrays: Arrays, numbers: Numbers) -> tuple[Rounds, ArrayRecord]:
    rounds = played.rounds()
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(numbers)})
    return rounds, played.result(rounds, content)


def assert_left_out(played: Played, arrays: Arrays, numbers: Numbers) -> None:
    """Check that the round is as if the hostile node had not answered, and that it is named."""
    rounds, found = without_evil(played, arrays, numbers)
    (failure,) = rounds.failures
    assert failure.client == EVIL
    assert failure.code in ("bad-reply", "code-mismatch", "unchanged")
    assert failure.reason == cleaned(failure.reason)
    silent = played.rounds()
    replies = [
        Message(RecordDict({"a": ArrayRecord(a), "m": MetricRecord(dict(m))}), reply_to=q)
        for i, (q, (a, m)) in enumerate(zip(played.questions, played.answers, strict=True))
        if i != played.evil
    ]
    expected, _ = silent.aggregate_train(1, replies)
    assert expected is not None
    for name in expected:
        assert np.array_equal(found[name].numpy(), expected[name].numpy())


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_that_were_not_asked_for_change_nothing(
    training: Played, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays, numbers = training.answers[training.evil]
    assert_left_out(training, BAD_ARRAYS[kind](arrays), numbers)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("kind", BAD_NUMBERS)
def test_numbers_that_cannot_be_change_nothing(training: Played, kind: str) -> None:
    arrays, numbers = training.answers[training.evil]
    assert_left_out(training, arrays, BAD_NUMBERS[kind](numbers))


def test_an_update_out_of_all_proportion_changes_nothing(training: Played) -> None:
    arrays, numbers = training.answers[training.evil]
    assert_left_out(training, each(lambda a: (a + 1e6).astype(a.dtype))(arrays), numbers)


def test_who_must_answer_and_sends_rubbish_ends_the_round_and_is_named(ascent: Played) -> None:
    for make in BAD_ARRAYS.values():
        arrays, numbers = ascent.answers[ascent.evil]
        with pytest.raises(ClientLost, match=f"{EVIL}: ") as lost:
            without_evil(ascent, make(arrays), numbers)
        assert [failure.client for failure in lost.value.failures] == [EVIL]
        assert not lost.value.passing


def test_who_sends_back_what_it_was_to_unlearn_on_has_not_taken_part(ascent: Played) -> None:
    sent = dict(ascent.questions[0].content.array_records["arrays"])
    _, numbers = ascent.answers[ascent.evil]
    with pytest.raises(ClientLost, match=f"{EVIL}: must change the model .* same weights back"):
        without_evil(ascent, sent, numbers)


def test_who_says_that_its_classes_are_deep_enough_is_noted(ascent: Played) -> None:
    sent = dict(ascent.questions[0].content.array_records["arrays"])
    _, numbers = ascent.answers[ascent.evil]
    rounds = ascent.rounds()
    object.__setattr__(rounds.settings, "target_losses", [1.0] * 10)
    content = RecordDict({"a": ArrayRecord(sent), "m": MetricRecord(numbers | {"num-steps": 0})})
    ascent.result(rounds, content)
    assert (rounds.idle, rounds.failures) == ([EVIL], [])


def test_a_holder_that_uses_nothing_of_what_it_has_described_is_noted(ascent: Played) -> None:
    _, numbers = ascent.answers[ascent.evil]
    rounds, _ = without_evil(ascent, {}, numbers | {"num-examples": 0})
    assert rounds.idle == [EVIL]


def test_a_holder_that_sends_its_channels_back_unchanged_has_not_taken_part() -> None:
    played = play("channels")
    arrays, numbers = played.answers[played.evil]
    rounds = played.rounds()
    rounds.required = [EVIL]  # as the method does with those that hold the class
    content = RecordDict(
        {"a": rounds.sent_to_change(), "m": MetricRecord(dict(numbers))}  # what it was sent
    )
    assert set(rounds.sent_to_change()) == set(arrays)
    with pytest.raises(ClientLost, match=f"{EVIL}: must change the model .* same weights back"):
        played.result(rounds, content)
    # Who holds none of it may find nothing to change in the channels of another's class.
    others = played.rounds()
    played.result(others, content)
    assert (others.failures, others.idle) == ([], [])


@pytest.mark.parametrize("examples", [0, None])
def test_a_target_whose_gradient_leads_nowhere_is_noted(examples: int | None) -> None:
    played = play("target")
    arrays, numbers = played.answers[played.evil]
    rounds, _ = without_evil(
        played,
        each(np.zeros_like)(arrays),
        numbers if examples is None else numbers | {"num-examples": examples},
    )
    assert (rounds.idle, rounds.failures) == ([EVIL], [])


# ---- questions ----------------------------------------------------------------------------------

HELD = {
    **{f"{side}-{what}-per-class": [0.0] * 10 for side in ("forget", "retain")
       for what in ("correct", "count", "loss")},
    "num-examples": 100, "samples": 100, "seconds": 1.0, "partition": -1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"forget-count-per-class": [0.0] * 9 + [1e6]}, "add up to at most num-examples"),
        ({"num-examples": 1e6}, "num-examples must be at most 100"),
        ({"forget-correct-per-class": [0.0] * 9 + [-285.0]}, "from 0 to"),
        ({"forget-correct-per-class": [0.0] * 9 + [5.0]}, "at most forget-count-per-class"),
        ({"forget-count-per-class": [0.0] * 9 + [float("nan")]}, "finite"),
        ({"forget-loss-per-class": [float("inf")] * 10}, "finite"),
        ({"retain-count-per-class": [1.0]}, "must hold 10 numbers, got 1"),
        ({"retain-count-per-class": 7.0}, "must be per-class"),
    ],
)
def test_held_out_counts_that_cannot_be_are_that_sites_failure(lie: Numbers, words: str) -> None:
    expected = Expected(Heldout.message, {}, 10, most=100.0, same_code=False)
    good = RecordDict({"a": ArrayRecord(), "m": MetricRecord(dict(HELD))})
    assert check(good, expected)[1]["num-examples"] == 100
    bad = RecordDict({"a": ArrayRecord(), "m": MetricRecord({**HELD, **lie})})
    with pytest.raises(BadReply, match=words):
        check(bad, expected)


SURE = {
    "num-members": 70.0, "num-others": 0.0, "members-confidence": 50.0, "others-confidence": 0.0,
    "num-relearned": 70.0, "relearned-confidence": 60.0,
    "num-examples": 70, "samples": 70, "seconds": 1.0, "partition": -1,
}  # fmt: skip
OTHER = {
    "num-members": 0.0, "num-others": 30.0, "members-confidence": 0.0, "num-examples": 30,
    "num-relearned": 0.0, "relearned-confidence": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("client", "lie", "words"),
    [
        (EVIL, {"members-confidence": 70.1}, "members-confidence must be at most num-members, 70"),
        (EVIL, {"members-confidence": -1.0}, "from 0 to"),
        (EVIL, {"members-confidence": float("nan")}, "finite"),
        (EVIL, {"others-confidence": 1.0}, "others-confidence must be at most num-others, 0"),
        (EVIL, {"num-members": 70.5}, "num-members must be at most 70"),
        (EVIL, {"num-members": 60.0, "num-others": 1.0}, "num-others must be at most 0"),
        (EVIL, {"relearned-confidence": 70.1}, "must be at most num-relearned, 70, got 70.1"),
        (EVIL, {"num-relearned": 70.5}, "num-relearned must be at most 70"),
        (EVIL, {"num-members": 60.0}, "num-relearned must be at most num-members, 60, got 70"),
        (EVIL, {"num-relearned": 1.0, "relearned-confidence": 1.0}, "must be 0 or num-members, 70"),
        (EVIL, {"num-examples": 60}, "must add up to at most num-examples, 60"),
        ("client-1", {}, "num-members must be at most 0"),  # who stays has none
        ("client-1", {**OTHER, "num-others": 31.0}, "num-others must be at most 30"),
    ],
)
def test_confidence_that_cannot_be_is_that_sites_failure(
    client: str, lie: Numbers, words: str
) -> None:
    named = told(Membership, forget_level="client", forget_clients=[EVIL])
    most = bounds(named, client, {"num-examples": 70, "num-heldout": 30})
    expected = Expected(Membership.message, {}, 10, 100.0, most, same_code=False)
    honest = SURE if client == EVIL else {**SURE, **OTHER, "others-confidence": 30.0}
    good = RecordDict({"a": ArrayRecord(), "m": MetricRecord(dict(honest))})
    assert check(good, expected)[1]["seconds"] == 1.0
    bad = RecordDict({"a": ArrayRecord(), "m": MetricRecord({**SURE, **lie})})
    with pytest.raises(BadReply, match=words):
        check(bad, expected)


@pytest.mark.parametrize("size", [-1, class_names.MAX_BYTES + 1, 10**12])
def test_names_of_classes_take_no_more_memory_than_they_may(size: int) -> None:
    array = Array("uint8", (size,), "numpy.ndarray", HUGE)
    expected = Expected(Heldout.message, None, 10, same_code=False)
    content = RecordDict(
        {"a": ArrayRecord({class_names.ARRAY: array}), "m": MetricRecord(dict(HELD))}
    )
    with pytest.raises(BadReply, match="class names in one array of at most"):
        check(content, expected)


# ---- texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;PWNED\x07\x1b[2J\x1b[31mAll is well\x1b[0m", "All is well"),
        ("\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\", "here"),
        ("a\r\nb\tc\x00\x7f\x9b31md", "a b cd"),
        ("\u202eevil\u2066\u200b", "evil"),
        ("x" * 10_000, "x" * 499 + "…"),
        ("Grüße, 你好 🙂", "Grüße, 你好 🙂"),
        ("\ud800", ""),
    ],
)
def test_a_nodes_text_is_one_line_without_what_steers_a_terminal(text: str, shown: str) -> None:
    assert cleaned(text) == shown
    assert failure_in(Error(2, text), "a\x1b[31m").client == "a"


def test_an_error_is_told_without_what_flower_puts_round_it() -> None:
    told = "<class 'client.node.NodeError'>:<'[data-missing] DataMissing: the node's own log says'>"
    found = failure_in(Error(2, told), "site-a")
    assert (found.code, found.reason) == ("data-missing", "DataMissing: the node's own log says")
    assert found.passing
    plain = failure_in(Error(2, "<class 'RuntimeError'>:<'out of memory'>"), "site-a")
    assert (plain.code, plain.reason) == ("raised", "RuntimeError: out of memory")
    assert failure_in(Error(5, ""), "b").code == "unavailable"
    assert failure_in(Error(2, "[no-such-code] x"), "b").code == "raised"
