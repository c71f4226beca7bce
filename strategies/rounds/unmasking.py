"""What takes the masks off a sum: the coordinator's side of `client.secure`, without messages.

It puts together the seeds of the survivors and the masking keys of those that dropped out, from
what t or more survivors reveal, and takes off the streams that they make. Of a node it learns one
of both, and so nothing but the sum.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from client.errors import AggregationRefused
from client.secure import keys, masks, member
from client.secure.context import Context
from client.secure.fixed_point import UInt64s
from client.secure.keys import KEY_BYTES, PublicKeys
from client.secure.shares import BLOCK_BYTES, PLACE_BYTES, SHARE_BYTES

_PADDING: Final = bytes([BLOCK_BYTES]) * BLOCK_BYTES  # PKCS #7, of a secret of two whole blocks
_POLYNOMIAL: Final = (1 << 128) | 0b10000111  # x^128 + x^7 + x^2 + x + 1, as pycryptodome's


@dataclass(frozen=True)
class Course:
    """What the coordinator has seen of one sum.

    Attributes:
        context: What it is about.
        roster: What nodes have published, by name in order.
        commitments: To the seeds of those that have shared their secrets, by name: all of them have
            masks with each other.
        survivors: Names of those whose vectors are in the sum.
        revealed: By the names of those that reveal: their shares by the nodes' names.
    """

    context: Context
    roster: Mapping[str, PublicKeys]
    commitments: Mapping[str, bytes]
    survivors: Sequence[str]
    revealed: Mapping[str, Mapping[str, bytes]] = field(repr=False)

    @property
    def bound(self) -> bytes:
        """The hash that every key depends on."""
        return member.bound_to(self.context, self.roster)


def unmask(total: UInt64s, course: Course) -> None:
    """Take all masks off a sum of the survivors' vectors, in place.

    Raises:
        AggregationRefused: If fewer than t nodes reveal shares, or theirs do not fit together. No
            key was put together then that tells anything.
    """
    course.context.among(course.revealed, "nodes that reveal shares")
    bound, dropped = course.bound, sorted(set(course.commitments) - set(course.survivors))
    subtract: list[bytes] = []
    add: list[bytes] = []
    secrets = _secrets(
        course,
        {name: functools.partial(_committed, course, bound, name) for name in course.survivors}
        | {name: functools.partial(_published, course, name) for name in dropped},
    )
    for name in course.survivors:
        subtract.append(member.own_mask(secrets[name], bound, name))
    for name in dropped:
        private = secrets[name]
        for other in course.survivors:
            # The survivor has added this stream if its name comes first.
            key = member.pair_mask(private, course.roster[other].masking, bound, name, other)
            (subtract if other < name else add).append(key)
    masks.apply(total, add, subtract)


def _committed(course: Course, bound: bytes, name: str, found: bytes) -> bool:
    return member.commitment(bound, name, found) == course.commitments[name]


def _published(course: Course, name: str, found: bytes) -> bool:
    return keys.public_key(found) == course.roster[name].masking


def _secrets(course: Course, wanted: Mapping[str, Callable[[bytes], bool]]) -> dict[str, bytes]:
    """Return nodes' secrets, given what tells each of them.

    Raises:
        AggregationRefused: If one's shares do not fit together. Of a single one whoever dealt them
            may have dealt wrong ones; of more it was one of those that reveal them.
    """
    found: dict[str, bytes] = {}
    unfit: list[str] = []
    for name, fits in wanted.items():
        secret = _secret(course, name, fits)
        if secret is None:
            unfit.append(name)
        else:
            found[name] = secret
        if len(unfit) == 2:
            break  # it tells as much as all of them would, and each takes long
    if not unfit:
        return found
    revealers = sorted(course.revealed)
    listed = ", ".join(revealers[:8]) + (", ..." if len(revealers) > 8 else "")
    own = f"{unfit[0]} dealt wrong ones, or " if len(unfit) == 1 else ""
    raise AggregationRefused(
        f"shares of {' and '.join(unfit)} must fit together, got some that do not: {own}one of "
        f"those that revealed them is at fault ({listed})"
    )


def _secret(course: Course, name: str, fits: Callable[[bytes], bool]) -> bytes | None:
    """Return a node's secret; one node that reveals a wrong share is left out."""
    revealers = [who for who in sorted(course.revealed) if name in course.revealed[who]]
    for chosen in _choices(revealers, course.context.threshold):
        found = combined([course.revealed[who][name] for who in chosen])
        if found is not None and fits(found):
            return found
    return None


def _choices(revealers: Sequence[str], least: int) -> Iterator[Sequence[str]]:
    if len(revealers) < least:
        return
    yield revealers[:least]
    for position in range(len(revealers)):
        others = [*revealers[:position], *revealers[position + 1 :]]
        if len(others) >= least and position < least:
            yield others[:least]


def combined(shares: Sequence[bytes]) -> bytes | None:
    """Return the secret of 32 bytes that shares belong to; None if they do not fit together.

    The same as Flower's `combine_shares`, which forms the weights anew for every secret: of a
    hundred nodes that takes two minutes, this a second.

    Args:
        shares: As `client.secure.shares.shared` makes them, of different places.
    """
    places = tuple(int.from_bytes(share[:PLACE_BYTES], "little") for share in shares)
    if any(len(share) != SHARE_BYTES for share in shares) or len(set(places)) != len(places):
        return None
    if not all(places):
        return None
    weights = at_zero(places)
    secret = b""
    for at in range(PLACE_BYTES, SHARE_BYTES, BLOCK_BYTES):
        block = 0
        for weight, share in zip(weights, shares, strict=True):
            block ^= times(weight, int.from_bytes(share[at : at + BLOCK_BYTES], "big"))
        secret += block.to_bytes(BLOCK_BYTES, "big")
    return secret[:KEY_BYTES] if secret[KEY_BYTES:] == _PADDING else None


@functools.lru_cache(maxsize=128)  # nearly all secrets of a sum have the same places
def at_zero(places: tuple[int, ...]) -> tuple[int, ...]:
    """Return Lagrange's weights of a polynomial's values at these places for its value at 0."""
    found = []
    for place in places:
        above, below = 1, 1
        for other in places:
            if other != place:
                above = times(above, other)
                below = times(below, other ^ place)
        found.append(times(above, inverse(below)))
    return tuple(found)


def times(one: int, other: int) -> int:
    """Return the product of two elements of GF(2^128)."""
    product = 0
    while other:
        if other & 1:
            product ^= one
        other >>= 1
        one <<= 1
        if one >> 128:
            one ^= _POLYNOMIAL
    return product


def inverse(one: int) -> int:
    """Return 1 / x in GF(2^128), x not 0: x^(2^128 - 2)."""
    found, square = 1, one
    for _ in range(127):
        square = times(square, square)
        found = times(found, square)
    return found
