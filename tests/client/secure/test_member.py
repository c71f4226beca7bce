"""The protocol, node by node: sums are exact, and whatever does not keep to it is refused."""

import itertools
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from flwr.common.secure_aggregation.crypto.shamir import combine_shares

from client.errors import AggregationRefused
from client.secure import member
from client.secure.context import threshold
from client.secure.identity import Identity
from client.secure.keys import PublicKeys, survivors_text
from client.secure.member import Part, bound_to
from client.secure.shares import shared
from strategies.rounds.unmasking import Course, combined, inverse, times, unmask
from tests.sums import NEVER, STEPS, Played, context_of, identity_of, play, random_vectors

FOUR = [f"node-{i}" for i in range(4)]
SEVEN = [f"node-{i}" for i in range(7)]


def plain_sum(played: Played, vectors: dict[str, np.ndarray]) -> np.ndarray:
    return np.sum([vectors[name] for name in played.masked], axis=0, dtype=np.uint64)


# Of four nodes three must be left: nobody drops out, or one of them at any step.
ONE_OF_FOUR = [{}, *({name: step} for name in FOUR for step in STEPS)]


@pytest.mark.parametrize("drops", ONE_OF_FOUR, ids=str)
def test_the_sum_is_the_plain_sum_whoever_drops_out(drops: dict[str, str]) -> None:
    vectors = random_vectors(FOUR)
    played = play(vectors, drops)
    survivors = {name for name in FOUR if drops.get(name, NEVER) not in ("shares", "work")}
    assert set(played.masked) == survivors
    assert np.array_equal(played.total(), plain_sum(played, vectors))


@pytest.mark.parametrize("steps", list(itertools.product(STEPS, repeat=2)), ids=str)
def test_two_of_seven_may_drop_out_at_any_two_steps(steps: tuple[str, str]) -> None:
    vectors = random_vectors(SEVEN, size=5)
    played = play(vectors, dict(zip(("node-1", "node-5"), steps, strict=True)))
    assert np.array_equal(played.total(), plain_sum(played, vectors))


@pytest.mark.parametrize("step", STEPS)
def test_with_fewer_than_t_at_any_step_there_is_no_sum(step: str) -> None:
    with pytest.raises(AggregationRefused):
        play(random_vectors(FOUR), {"node-0": step, "node-2": step}).total()


def test_a_masked_vector_is_not_the_vector_and_differs_every_time() -> None:
    vectors = {name: np.zeros(1000, dtype=np.uint64) for name in FOUR}
    first, second = play(vectors), play(vectors)
    for name in FOUR:
        # Of 1000 random numbers of 64 bits one is 0, or the same twice, once in 10^16 times.
        assert np.all(first.masked[name] != 0)
        assert np.all(first.masked[name] != second.masked[name])
        assert len(set(first.masked[name].tolist())) == 1000
    assert not first.total().any()


def test_fewer_than_t_shares_are_no_secret_and_any_t_are() -> None:
    secret = os.urandom(32)
    shares = shared(secret, 3, 5)
    for number in (1, 2):
        for some in itertools.combinations(shares, number):
            assert combined(some) != secret
    for some in itertools.combinations(shares, 3):
        assert combined(some) == combine_shares(list(some)) == secret
    assert combined(shares) == secret
    wrong = bytearray(shares[1])
    wrong[-1] ^= 1
    assert combined([shares[0], bytes(wrong), shares[2]]) is None
    assert combined([shares[0], shares[0], shares[1]]) is None


def test_the_field_is_one() -> None:
    draws = np.random.default_rng(0)
    one, other, third = (int.from_bytes(draws.bytes(16), "big") for _ in range(3))
    assert times(one, inverse(one)) == 1
    assert times(one, other) == times(other, one)
    assert times(one, other ^ third) == times(one, other) ^ times(one, third)


def test_one_node_that_reveals_a_wrong_share_does_not_spoil_the_sum() -> None:
    vectors = random_vectors(FOUR)
    played = play(vectors)
    liar = played.revealed["node-0"]
    for name in FOUR:
        liar[name] = liar[name][:-1] + bytes([liar[name][-1] ^ 1])
    assert np.array_equal(played.total(), plain_sum(played, vectors))
    played.revealed["node-1"] = liar
    with pytest.raises(AggregationRefused, match="must fit together"):
        played.total()


def test_each_node_reveals_one_share_a_peer_and_never_both() -> None:
    played = play(random_vectors(FOUR), {"node-3": "work"})
    assert set(played.revealed) == {"node-0", "node-1", "node-2"}
    for name, revealed in played.revealed.items():
        pairs = played.parts[name].pairs
        assert {n: s == pairs[n].seed for n, s in revealed.items()} == {
            "node-0": True,
            "node-1": True,
            "node-2": True,
            "node-3": False,
        }
        assert revealed["node-3"] == pairs["node-3"].masking
    with pytest.raises(AggregationRefused, match="signed"):
        member.confirm(
            replace(played.parts["node-0"], stage="signed"), FOUR[:3], identity_of("node-0")
        )


def test_what_t_minus_one_reveal_unmasks_nothing() -> None:
    played = play(random_vectors(FOUR))
    course = played.course()
    few = {name: course.revealed[name] for name in FOUR[:2]}
    total = np.sum(list(played.masked.values()), axis=0, dtype=np.uint64)
    with pytest.raises(AggregationRefused, match="at least 3 of 4"):
        unmask(total, replace(course, revealed=few))


# ---- each step once, and for one context --------------------------------------------------------


def test_every_step_is_taken_once() -> None:
    played = play(random_vectors(FOUR))
    part, me = played.parts["node-0"], identity_of("node-0")
    sent = {n: own["node-0"] for n, own in played.sealed.items() if n != "node-0"}
    for again in (
        lambda: member.share(part, played.published, me),
        lambda: member.receive(part, sent),
        lambda: member.mask(part, np.zeros(3, dtype=np.uint64)),
        lambda: member.confirm(part, FOUR, me),
    ):
        with pytest.raises(AggregationRefused, match="each is taken once"):
            again()


@pytest.mark.parametrize(
    "more",
    [
        {"request": "r0002"},
        {"phase": "recover"},
        {"number": 2},
        {"attempt": "1" * 32},
        {"work": "train.descend"},
        {"settings": "3" * 64},
        {"model": "3" * 64},
        {"cohort": (*FOUR, "node-4")},
        {"clip": 1.0},
    ],
    ids=str,
)
def test_keys_of_one_context_are_none_of_another(more: dict[str, object]) -> None:
    here, there = Played(context_of(FOUR)), Played(context_of(FOUR, **more))
    assert here.context.digest != there.context.digest
    here.keys(FOUR)
    there.keys(FOUR)
    here.published["node-1"] = there.published["node-1"]
    with pytest.raises(AggregationRefused, match="keys of node-1 must be signed"):
        here.shares(["node-0"])


def test_shares_sealed_for_other_keys_are_refused() -> None:
    # The coordinator shows node-0 other keys of node-3 than it shows the rest.
    played, other = Played(context_of(FOUR)), Played(context_of(FOUR))
    played.keys(FOUR)
    other.keys(FOUR)
    rest = played.published["node-3"]
    played.published["node-3"] = other.published["node-3"]
    played.shares(["node-0"])
    played.published["node-3"] = rest
    played.shares(FOUR[1:])
    with pytest.raises(AggregationRefused, match="shares of node-1 must be those it sealed"):
        played.work(["node-0"], random_vectors(FOUR))


def test_nodes_that_were_shown_different_keys_make_no_common_sum() -> None:
    one = {"a": member.PublicKeys(b"1" * 32, b"2" * 32, b"")}
    two = {"a": member.PublicKeys(b"1" * 32, b"3" * 32, b"")}
    assert bound_to(context_of(FOUR), one) != bound_to(context_of(FOUR), two)
    assert bound_to(context_of(FOUR), one) != bound_to(context_of(FOUR, number=2), one)


def test_a_swapped_key_an_unpinned_peer_and_too_few_are_refused() -> None:
    played = Played(context_of(FOUR))
    played.keys(FOUR)
    me = identity_of("node-0")
    part = played.parts["node-0"]
    false = replace(played.published["node-1"], masking=os.urandom(32))
    with pytest.raises(AggregationRefused, match="keys of node-1 must be signed by the key"):
        member.share(part, {**played.published, "node-1": false}, me)
    stranger = Identity("node-0", me.key, lambda n: None if n == "node-2" else me.peer(n))
    with pytest.raises(AggregationRefused, match="peer node-2 must be pinned at this node"):
        member.share(part, played.published, stranger)
    two = {name: played.published[name] for name in FOUR[:2]}
    with pytest.raises(AggregationRefused, match="at least 3 of 4 nodes, got 2"):
        member.share(part, two, me)
    without = {name: played.published[name] for name in FOUR[1:]}
    with pytest.raises(AggregationRefused, match="must be this node's own under its name"):
        member.share(part, without, me)
    twice = {**played.published, "node-2": played.published["node-3"]}
    with pytest.raises(AggregationRefused, match="must be different ones, got one twice"):
        member.share(part, twice, me)


def test_a_key_that_is_no_point_and_one_of_two_nodes_are_named() -> None:
    played = Played(context_of(FOUR))
    played.keys(FOUR)
    me, digest = identity_of("node-0"), played.context.digest

    def signed(name: str, **more: bytes) -> dict[str, PublicKeys]:
        bare = replace(played.published[name], **more)
        signature = identity_of(name).key.sign(bare.signed(digest, name))
        return {**played.published, name: replace(bare, signature=signature)}

    for key in ("masking", "sharing"):  # both of small order: whatever they agree on is zero
        with pytest.raises(AggregationRefused, match="keys of node-2 must be ones of X25519"):
            member.share(played.parts["node-0"], signed("node-2", **{key: bytes(32)}), me)
    taken = signed("node-2", masking=played.published["node-1"].sharing)
    with pytest.raises(AggregationRefused, match="got one twice: of node-1 and node-2"):
        member.share(played.parts["node-0"], taken, me)


def test_sealed_shares_are_for_one_receiver_from_one_sender() -> None:
    played = Played(context_of(FOUR))
    played.keys(FOUR)
    played.shares(FOUR)
    part = played.parts["node-0"]
    right = {name: own["node-0"] for name, own in played.sealed.items() if name != "node-0"}
    for wrong in (
        {**right, "node-1": right["node-2"], "node-2": right["node-1"]},  # senders swapped
        {**right, "node-1": played.sealed["node-1"]["node-2"]},  # for another receiver
        {**right, "node-1": played.sealed["node-0"]["node-1"]},  # the node's own, sent back
    ):
        with pytest.raises(AggregationRefused, match="shares of node-1 must be those it sealed"):
            member.receive(part, wrong)
    assert member.receive(part, right).stage == "masked"


def test_survivors_must_be_t_with_this_node_among_them_and_all_masked() -> None:
    played = play(random_vectors(FOUR), {"node-3": "shares"})
    part, me = replace(played.parts["node-0"], stage="masked"), identity_of("node-0")
    for survivors, words in (
        (FOUR[:2], "survivors must be at least 3 of 4 nodes, got 2"),
        (FOUR[1:], "survivors must be this node and others"),
        (FOUR, "survivors must be this node and others that shared"),
        ([*FOUR[:3], "node-9"], "must be different nodes of the cohort"),
        ([*FOUR[:3], "node-0"], "must be different nodes of the cohort"),
    ):
        with pytest.raises(AggregationRefused, match=re.escape(words)):
            member.confirm(part, survivors, me)


def test_a_node_goes_on_only_with_t_signatures_of_what_it_signed_itself() -> None:
    vectors = random_vectors(SEVEN, size=3)
    played = play(vectors)
    part, me = played.parts["node-0"], identity_of("node-0")
    # Two nodes were told that node-6 had dropped out.
    for name in ("node-1", "node-2"):
        told = replace(played.parts[name], stage="masked")
        _, played.signatures[name] = member.confirm(told, SEVEN[:6], identity_of(name))
    assert member.reveal(part, played.signatures, me)  # five of seven are still t
    told = replace(played.parts["node-3"], stage="masked")
    _, played.signatures["node-3"] = member.confirm(told, SEVEN[:6], identity_of("node-3"))
    with pytest.raises(AggregationRefused, match="alike by at least 5 nodes, got 4"):
        member.reveal(part, played.signatures, me)
    strangers = {**played.signatures, "node-9": played.signatures["node-0"]}
    with pytest.raises(AggregationRefused, match="got 4"):
        member.reveal(part, strangers, me)


def test_a_node_that_dropped_out_has_no_say_in_who_survived() -> None:
    # Its key signs what the survivors sign, for the coordinator; a pinned stranger's, likewise.
    played = play(random_vectors(SEVEN, size=3), {"node-6": "work"})
    part, me = played.parts["node-0"], identity_of("node-0")
    text = survivors_text(bound_to(part.context, part.roster), part.survivors)
    four = {name: played.signatures[name] for name in SEVEN[:4]}
    for other in ("node-6", "node-9"):
        more = {**four, other: identity_of(other).key.sign(text)}
        with pytest.raises(AggregationRefused, match="at least 5 nodes, got 4"):
            member.reveal(part, more, me)
    assert member.reveal(part, {**four, "node-4": played.signatures["node-4"]}, me)


def test_no_two_sets_of_t_nodes_can_differ_without_a_node_that_signs_both() -> None:
    for number in range(3, 200):
        least = threshold(number)
        assert 3 * least > 2 * number
        assert least <= number
        assert 2 * least - number > number / 3  # nodes in both of two sets


def test_a_part_on_disk_is_the_part() -> None:
    played = play(random_vectors(FOUR))
    for part in played.parts.values():
        assert Part.from_json(part.to_json()) == part
        assert part.masking.hex() not in repr(part)
        assert str(part.seed) not in repr(part)


def test_unmasking_needs_the_course_of_this_very_sum() -> None:
    vectors = random_vectors(FOUR)
    played, other = play(vectors), play(vectors)
    mixed = Course(
        played.context,
        played.course().roster,
        played.commitments,
        sorted(played.masked),
        other.revealed,
    )
    with pytest.raises(AggregationRefused, match="must fit together"):
        unmask(np.zeros(3, dtype=np.uint64), mixed)
