"""One node's part in one sum: from its ephemeral keys to the shares that it reveals.

Each function is a step of the protocol. It refuses what does not keep to it, and returns the part
as it is afterwards; a step cannot be taken twice, for a key that hides two vectors hides neither.
Nothing here knows of messages or files.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from client.errors import AggregationRefused
from client.secure import keys, masks
from client.secure.context import Context
from client.secure.fixed_point import UInt64s
from client.secure.identity import Identity
from client.secure.keys import PublicKeys
from client.secure.shares import Pair, shared

Stage = Literal["begun", "shared", "masked", "signed"]


@dataclass(frozen=True)
class Part:
    """What a node must know of a sum between two messages.

    Attributes:
        context: What it is about.
        name: The node's own.
        stage: The last step taken.
        masking: Private key of the pairwise masks.
        sharing: Private key of sealed shares.
        seed: Of the node's own mask.
        roster: What the nodes that began have published, by name in order.
        pairs: Shares of peers' secrets, and of its own, by their names: those whose masks it has.
        survivors: Those that it has signed.
    """

    context: Context
    name: str
    stage: Stage
    masking: bytes = field(repr=False)
    sharing: bytes = field(repr=False)
    seed: bytes = field(default=b"", repr=False)
    roster: Mapping[str, PublicKeys] = field(default_factory=dict)
    pairs: Mapping[str, Pair] = field(default_factory=dict, repr=False)
    survivors: tuple[str, ...] = ()

    def at(self, stage: Stage) -> None:
        """Refuse a step that does not follow `stage`.

        Raises:
            AggregationRefused: If it does not.
        """
        if self.stage != stage:
            raise AggregationRefused(
                f"step must follow the one before it ({stage}), got it after {self.stage}: each is "
                "taken once"
            )

    def to_json(self) -> str:
        """Return all of it; it holds private keys."""
        return json.dumps(asdict(self), default=lambda raw: base64.b64encode(raw).decode())

    @classmethod
    def from_json(cls, text: str) -> "Part":
        """Return what `to_json` gave."""
        raw = json.loads(text)

        def of(kind: Any, found: Mapping[str, Any]) -> Any:
            return {name: kind(**_bytes(one)) for name, one in found.items()}

        context = {**raw["context"], "cohort": tuple(raw["context"]["cohort"])}
        secrets = _bytes({key: raw[key] for key in ("masking", "sharing", "seed")})
        return cls(
            Context(**context),
            raw["name"],
            raw["stage"],
            **secrets,
            roster=of(PublicKeys, raw["roster"]),
            pairs=of(Pair, raw["pairs"]),
            survivors=tuple(raw["survivors"]),
        )


def _bytes(values: Mapping[str, str]) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in values.items()}


def begin(context: Context, identity: Identity) -> tuple[Part, PublicKeys]:
    """Make two key pairs and sign their public halves (step 1).

    Raises:
        AggregationRefused: If the node is not of the cohort.
    """
    if identity.name not in context.cohort:
        raise AggregationRefused(
            f"cohort must have this node, {identity.name}, among it, got one without"
        )
    part = Part(context, identity.name, "begun", keys.new_private_key(), keys.new_private_key())
    bare = PublicKeys(keys.public_key(part.masking), keys.public_key(part.sharing), b"")
    text = bare.signed(context.digest, identity.name)
    return part, replace(bare, signature=keys.sign(identity.key, text))


def share(
    part: Part, published: Mapping[str, PublicKeys], identity: Identity
) -> tuple[Part, dict[str, bytes], bytes]:
    """Check who else is there, and share both secrets among them (steps 2 and 4).

    Args:
        part: After `begin`.
        published: What the nodes that began have published, by name; this one's among it.
        identity: Has the peers' pinned keys.

    Returns:
        The part; what is sealed for each peer, by name; the commitment to the seed.

    Raises:
        AggregationRefused: If there are fewer than t, or a key is not by the peer that it is said
            to be of.
    """
    part.at("begun")
    names = part.context.among(published, "nodes that have published keys")
    roster = {name: published[name] for name in names}
    own = roster.get(part.name)
    halves = (keys.public_key(part.masking), keys.public_key(part.sharing))
    if own is None or (own.masking, own.sharing) != halves:
        raise AggregationRefused("keys published must be this node's own under its name")
    drawn: dict[bytes, str] = {}
    for name, one in roster.items():
        for key in (one.masking, one.sharing):
            if key in drawn:
                raise AggregationRefused(
                    "keys published must be different ones, got one twice: of "
                    f"{' and '.join(sorted({drawn[key], name}))}"
                )
            drawn[key] = name
    for name, one in roster.items():
        pinned = identity.peer(name)
        if pinned is None:
            raise AggregationRefused(
                f"peer {name} must be pinned at this node, got no key of it; its operator adds it "
                "to the policy's [peers]"
            )
        if not keys.is_signed(pinned, one.signature, one.signed(part.context.digest, name)):
            raise AggregationRefused(
                f"keys of {name} must be signed by the key that this node pinned for it, and for "
                "this sum, got others"
            )
        if not (keys.is_public(one.masking) and keys.is_public(one.sharing)):
            raise AggregationRefused(f"keys of {name} must be ones of X25519, got others")
    part = replace(part, stage="shared", seed=os.urandom(keys.KEY_BYTES), roster=roster)
    bound = bound_to(part.context, roster)
    least = part.context.threshold
    pairs = dict(
        zip(
            names,
            map(
                Pair, shared(part.seed, least, len(names)), shared(part.masking, least, len(names))
            ),
            strict=True,
        )
    )
    sealed = {
        name: keys.seal(_sealing(part, bound, name, (part.name, name)), pairs[name].to_bytes())
        for name in names
        if name != part.name
    }
    part = replace(part, pairs={part.name: pairs[part.name]})
    return part, sealed, commitment(bound, part.name, part.seed)


def receive(part: Part, sealed: Mapping[str, bytes]) -> Part:
    """Open the peers' shares; these peers and this node mask their vectors (steps 4 and 5).

    After it the part must be kept before anything that it masks is sent.

    Args:
        part: After `share`.
        sealed: What each peer sealed for this node, by name.

    Raises:
        AggregationRefused: If fewer than t have shared, or a peer's are not for this node.
    """
    part.at("shared")
    names = part.context.among([*sealed, part.name], "nodes that have shared their secrets")
    if not set(names) <= set(part.roster):
        raise AggregationRefused("nodes that have shared must have published keys, got others")
    bound = bound_to(part.context, part.roster)
    place = list(part.roster).index(part.name) + 1
    pairs = dict(part.pairs)
    for name in names:
        if name != part.name:
            key = _sealing(part, bound, name, (name, part.name))
            raw = keys.unseal(key, sealed[name], name)
            pairs[name] = Pair.from_bytes(raw, place, name)
    return replace(part, stage="masked", pairs={name: pairs[name] for name in names})


def mask(part: Part, vector: UInt64s) -> None:
    """Hide a vector, in place (step 7). Once for a part: `receive` comes before each."""
    part.at("masked")
    bound = bound_to(part.context, part.roster)
    add = [own_mask(part.seed, bound, part.name)]
    subtract: list[bytes] = []
    for name in part.pairs:
        if name != part.name:
            key = pair_mask(part.masking, part.roster[name].masking, bound, part.name, name)
            (add if part.name < name else subtract).append(key)
    masks.apply(vector, add, subtract)


def confirm(part: Part, survivors: Sequence[str], identity: Identity) -> tuple[Part, bytes]:
    """Sign who is said to have survived (steps 8 and 9).

    Raises:
        AggregationRefused: If fewer than t have, or this node or one without masks is counted in
            wrongly.
    """
    part.at("masked")
    names = part.context.among(survivors, "survivors")
    if not set(names) <= set(part.pairs) or part.name not in names:
        raise AggregationRefused(
            "survivors must be this node and others that shared their secrets, got others"
        )
    text = keys.survivors_text(bound_to(part.context, part.roster), names)
    return replace(part, stage="signed", survivors=names), keys.sign(identity.key, text)


def reveal(part: Part, signatures: Mapping[str, bytes], identity: Identity) -> dict[str, bytes]:
    """Return one share for each peer: of a survivor's seed, of a dropped-out one's masking key.

    After it the part must be gone before the shares are sent (step 10).

    Args:
        part: After `confirm`.
        signatures: By survivors, of the survivors that this node has signed, by name.
        identity: Has the peers' pinned keys.

    Raises:
        AggregationRefused: If fewer than t have signed the same.
    """
    part.at("signed")
    text = keys.survivors_text(bound_to(part.context, part.roster), part.survivors)
    signed = [
        name
        for name, signature in signatures.items()
        if name in part.survivors
        and (pinned := identity.peer(name)) is not None
        and keys.is_signed(pinned, signature, text)
    ]
    if len(signed) < part.context.threshold:
        others = [name for name in part.survivors if name in signatures and name not in signed]
        raise AggregationRefused(
            f"survivors must be signed alike by at least {part.context.threshold} nodes, got "
            f"{len(signed)} that signed what this one did: the coordinator told others something "
            "else, or they were lost" + (f"; {', '.join(others[:8])} did not" if others else "")
        )
    return {
        name: pair.seed if name in part.survivors else pair.masking
        for name, pair in part.pairs.items()
    }


# ---- what nodes and coordinator derive alike ----------------------------------------------------


def bound_to(context: Context, roster: Mapping[str, PublicKeys]) -> bytes:
    """Return the hash of a context and of all keys published in it, 32 bytes."""
    found = hashlib.sha256(b"efface sums: roster" + context.digest)
    for name in sorted(roster):
        one = roster[name]
        found.update(len(name.encode()).to_bytes(4, "big") + name.encode())
        found.update(one.masking + one.sharing)
    return found.digest()


def own_mask(seed: bytes, bound: bytes, name: str) -> bytes:
    """Return the key of the stream that a node adds for itself."""
    return keys.derived(seed, bound, "own mask", name)


def pair_mask(private: bytes, public: bytes, bound: bytes, one: str, other: str) -> bytes:
    """Return the key of the stream that one of two nodes adds and the other subtracts."""
    return keys.agreed(private, public, bound, "pair mask", sorted((one, other)))


def commitment(bound: bytes, name: str, seed: bytes) -> bytes:
    """Return what tells a seed put together from another, 32 bytes, and nothing of the seed."""
    return keys.derived(seed, bound, "commitment", name)


def differs_by_few(one: Iterable[str], other: Iterable[str], least: int) -> bool:
    """Return whether two sets of nodes are different ones, by fewer than `least` nodes."""
    return 0 < len(set(one) ^ set(other)) < least


def _sealing(part: Part, bound: bytes, peer: str, way: tuple[str, str]) -> bytes:
    """Return the key of what one node seals for another; `way` is from whom to whom."""
    return keys.agreed(part.sharing, part.roster[peer].sharing, bound, "shares", way)
