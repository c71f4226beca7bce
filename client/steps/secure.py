"""The steps of secure aggregation: keys, shares, who survived, and what takes their masks off.

Between `query.shares` and `query.confirm` comes the message whose answers are added up; it says so
by its `secure` part. `client.secure.member` has the protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from client.errors import AggregationRefused
from client.messages import Common, Declaration
from client.node import Answer, Node, ReplyArrays, answers
from client.secure import member
from client.secure.context import MIN_NODES, Context, Secured
from client.secure.keys import KEY_BYTES, SIGNATURE_BYTES, PublicKeys
from client.settings import list_of, name, setting
from client.wire import forms

KEYS: Final = "keys"  # of query.keys: both public keys and the signature, behind each other
PUBLISHED_BYTES: Final = 2 * KEY_BYTES + SIGNATURE_BYTES
SEALED: Final = "sealed"  # of query.shares: a row a peer, in the order of the roster
COMMITMENT: Final = "commitment"
SIGNATURE: Final = "signature"
SHARES: Final = "shares"  # of query.unmask: a row a node that has masks, in order

_COHORT: Final = [f"client-{i}" for i in range(MIN_NODES)]
_SUM: Final = Secured(
    attempt="0" * 32, cohort=_COHORT, work="train.fit", settings="0" * 64, model="0" * 64
)
_names: Final = list_of(str, "names of nodes", name().holds)


def _blobs(size: int, words: str) -> object:
    return list_of(bytes, f"{words}, {size} bytes each", lambda raw: len(raw) == size)


class Step(Common):
    """A message of the protocol itself: its `secure` part says of which sum."""


@dataclass(frozen=True, kw_only=True)
class MakeKeys(Step):
    """Two ephemeral key pairs for one sum; the public halves go up, signed."""

    message: ClassVar = Declaration(
        "query.keys", example={"secure": _SUM}, arrays="sealed", alone=(), noised=True
    )


@answers(MakeKeys)
def make_keys(node: Node, settings: MakeKeys) -> Answer:
    """Begin a sum."""
    context = _context(node)
    node.sums.check_cohort(context, context.cohort)
    part, public = member.begin(context, node.identity)
    node.sums.begin(part)
    return _told({KEYS: public.masking + public.sharing + public.signature})


@dataclass(frozen=True, kw_only=True)
class ShareSecrets(Step):
    """Shares of the node's two secrets, sealed for each peer, given the keys of all."""

    message: ClassVar = Declaration(
        "query.shares",
        example={
            "secure": _SUM,
            "names": _COHORT,
            "keys": [bytes(PUBLISHED_BYTES)] * MIN_NODES,
        },
        arrays="sealed",
        alone=(),
        noised=True,
    )

    names: list[str] = setting(_names)
    keys: list[bytes] = setting(_blobs(PUBLISHED_BYTES, "keys"))  # type: ignore[arg-type]


@answers(ShareSecrets)
def share_secrets(node: Node, settings: ShareSecrets) -> Answer:
    """Check the peers' keys, and share the secrets among them."""
    published = {
        name: PublicKeys(raw[:KEY_BYTES], raw[KEY_BYTES : 2 * KEY_BYTES], raw[2 * KEY_BYTES :])
        for name, raw in _paired(settings.names, settings.keys).items()
    }
    begun = node.sums.part(_context(node))
    part, sealed, commitment = member.share(begun, published, node.identity)
    node.sums.advance(begun, part)
    return _told({SEALED: [sealed[name] for name in sorted(sealed)], COMMITMENT: commitment})


@dataclass(frozen=True, kw_only=True)
class Confirm(Step):
    """The node's signature of who survived: it signs one set for a sum, and no other."""

    message: ClassVar = Declaration(
        "query.confirm",
        example={"secure": _SUM, "survivors": _COHORT},
        arrays="sealed",
        alone=(),
        noised=True,
    )

    survivors: list[str] = setting(_names)


@answers(Confirm)
def confirm(node: Node, settings: Confirm) -> Answer:
    """Sign the survivors."""
    context = _context(node)
    masked = node.sums.part(context)
    node.sums.check_cohort(context, settings.survivors)
    part, signature = member.confirm(masked, settings.survivors, node.identity)
    node.sums.advance(masked, part)
    return _told({SIGNATURE: signature})


@dataclass(frozen=True, kw_only=True)
class Unmask(Step):
    """One share of one secret of each peer, once t nodes have signed the same survivors."""

    message: ClassVar = Declaration(
        "query.unmask",
        example={
            "secure": _SUM,
            "names": _COHORT,
            "signatures": [bytes(SIGNATURE_BYTES)] * MIN_NODES,
        },
        arrays="sealed",
        alone=(),
        noised=True,
    )

    names: list[str] = setting(_names)
    signatures: list[bytes] = setting(_blobs(SIGNATURE_BYTES, "signatures"))  # type: ignore[arg-type]


@answers(Unmask)
def unmask(node: Node, settings: Unmask) -> Answer:
    """Reveal what takes off the masks of the sum, and of nothing else; the keys are gone then."""
    part = node.sums.part(_context(node))
    signatures = _paired(settings.names, settings.signatures)
    shares = member.reveal(part, signatures, node.identity)
    node.sums.end(part)
    return _told({SHARES: [shares[name] for name in sorted(shares)]})


def _context(node: Node) -> Context:
    context = node.sum_context
    if context is None:
        raise AggregationRefused("message must say which sum it is of, got no secure- settings")
    return context


def _paired(names: Sequence[str], blobs: Sequence[bytes]) -> dict[str, bytes]:
    if len(set(names)) != len(names) or len(names) != len(blobs):
        raise AggregationRefused("names must be different ones with one value each, got others")
    return dict(zip(names, blobs, strict=True))


def _told(content: Mapping[str, bytes | Sequence[bytes]]) -> Answer:
    """Return an answer of bytes: each as a row, several of equal length as a matrix."""
    state: dict[str, Tensor] = {}
    for key, blobs in content.items():
        rows = [blobs] if isinstance(blobs, bytes) else list(blobs)
        state[key] = torch.tensor([list(row) for row in rows], dtype=torch.uint8)
    return {"num-examples": 0}, ReplyArrays(state, forms(state))
