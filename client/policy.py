"""A site's own law: what its operator allows, whatever a coordinator asks for.

`policy.toml` lies at the site, and the node config names it. No message can change it: what a
coordinator tells is checked against it, and can only be stricter.

It is long because each entry stands once, with its rule, its default and what it means.
"""

import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from client.errors import BadSetting, EffaceError
from client.files import check_private, make_private, write_atomic
from client.keys import KEY_TEXT, is_public_key, public_key, simulated_key
from client.settings import (
    ANY,
    MIN_CLIP,
    Rule,
    Settings,
    at_least,
    between,
    list_of,
    name,
    one_of,
    positive,
    setting,
    short_or_empty,
)

FILE: Final = "policy.toml"
KEY: Final = "site.key"
SUMS: Final = "sums"
SINGLE: Final = "single"
MAKE_ONE: Final = "make one: efface site init FOLDER --name NAME"


class PolicyError(EffaceError):
    """A site's policy is missing, damaged, or open to others; its operator must mend it."""

    code = "policy-error"


class PolicyRefused(EffaceError):
    """A site's policy does not allow what a message asks for; nothing was done."""

    code = "policy-refused"


_MOST: Final = 2**63 - 1


def _hexadecimal(value: str) -> bool:
    return len(value) == 64 and set(value) <= set("0123456789abcdef")


# ---- its parts, as they stand in the file --------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DataPolicy(Settings):
    """How the site's data are split; the seed is secret: it decides every draw."""

    holdout: float = setting(between(0.0, 0.5), 0.1)
    split_seed: str = setting(Rule(_hexadecimal, "be 64 hexadecimal digits"), "0" * 64)


@dataclass(frozen=True, kw_only=True)
class Answers(Settings):
    """What may go up, and to which questions."""

    min_examples: int = setting(between(1, 1e6), 5)  # distinct ones behind any answer
    min_batch: int = setting(between(1, 1e6), 5)  # behind a step of training
    updates: str = setting(one_of(SUMS, SINGLE), SUMS)
    messages_a_day: int = setting(at_least(1), 10_000)
    serve: list[str] = setting(list_of(str, "message types"), [])  # none: all of them
    levels: list[str] = setting(
        list_of(str, "levels: class, client", lambda v: v in ("class", "client")),
        ["class", "client"],
    )
    methods: list[str] = setting(list_of(str, "methods' names"), [])  # none: all of them


@dataclass(frozen=True, kw_only=True)
class Limits(Settings):
    """The most work that one message may ask for."""

    steps: int = setting(at_least(1), 10_000)  # of local training, epochs counted in steps too
    epochs: int = setting(at_least(1), 1_000)
    batch_size: int = setting(at_least(1), 65_536)
    lr: float = setting(positive(), 10.0)
    image_lr: float = setting(positive(), 100.0)
    image_steps: int = setting(at_least(1), 100)
    outer_steps: int = setting(at_least(1), 1_000)
    inner_steps: int = setting(at_least(1), 1_000)
    threads: int = setting(at_least(1), 64)
    parameters: int = setting(at_least(1), 100_000_000)  # of the model
    memory_mb: int = setting(at_least(1), 8_192)  # that training may take, estimated


@dataclass(frozen=True, kw_only=True)
class SyntheticPolicy(Settings):
    """How many synthetic examples the site keeps, and for how many trainings."""

    min_scale: int = setting(at_least(1), 10)  # one example for at least so many real ones
    quota_mb: int = setting(at_least(1), 1_024)
    lineages: int = setting(at_least(1), 8)


@dataclass(frozen=True, kw_only=True)
class Privacy(Settings):
    """Noise on what training tells of one example, and the budget that it is paid from."""

    required: bool = setting(ANY, False)
    epsilon: float = setting(positive(), 8.0)
    delta: float = setting(between(1e-15, 0.1), 1e-5)
    clip_norm: float = setting(at_least(MIN_CLIP), 1.0)
    noise_multiplier: float = setting(positive(), 1.0)  # of gradients, over their clip norm
    counts_noise: float = setting(positive(), 10.0)  # standard deviation, of held-out counts


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """The site's own key, and those of the coordinators whose orders it takes."""

    sign: str = setting(short_or_empty(), KEY)  # a file, beside the policy if not absolute
    store: str = setting(short_or_empty(), "")  # a file, likewise; in the store itself if empty
    coordinators: list[str] = setting(
        list_of(str, f"keys, each {KEY_TEXT}", lambda v: is_public_key(v)), []
    )


# ---- the whole -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What one site allows.

    Attributes:
        name: The node's own name; a message for another one is refused.
        data: The hold-out part, and the seed of every draw.
        answers: What may go up.
        limits: The most work of one message.
        synthetic: Synthetic images kept.
        privacy: Noise and budget.
        keys: The site's key and the coordinators'.
        peers: Public keys of the other sites, by name, for secure aggregation.
        folder: Where the file lies; None for a simulated node.
        population: Of a simulated node, which others can derive its key from.
    """

    name: str
    data: DataPolicy = field(default_factory=DataPolicy)
    answers: Answers = field(default_factory=Answers)
    limits: Limits = field(default_factory=Limits)
    synthetic: SyntheticPolicy = field(default_factory=SyntheticPolicy)
    privacy: Privacy = field(default_factory=Privacy)
    keys: Keys = field(default_factory=Keys)
    peers: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    population: str = ""

    @property
    def is_real(self) -> bool:
        """Whether a site stands behind it, and not a simulation."""
        return self.folder is not None

    @classmethod
    def new(cls, name: str) -> "Policy":
        """Return the safe defaults for a site, with a seed of its own.

        Raises:
            BadSetting: If the name is none.
        """
        _check_name(name)
        return cls(name=name, data=DataPolicy(split_seed=secrets.token_hex(32)))

    @classmethod
    def simulated(cls, name: str, population: str = "") -> "Policy":
        """Return the permissive policy of a node that no site stands behind.

        It refuses nothing that a message's own rules let through. Its key is derived from its
        name and population, so that simulated peers know each other's.
        """
        return cls(
            name=name,
            data=DataPolicy(holdout=0.0),
            # A simulation's data are nobody's; losses and sums keep their own floor, MIN_EXAMPLES.
            answers=Answers(min_examples=1, min_batch=1, updates=SINGLE, messages_a_day=_MOST),
            limits=replace(Limits(), **_UNLIMITED),
            synthetic=SyntheticPolicy(min_scale=1, quota_mb=_MOST, lineages=_MOST),
            population=population,
        )

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read a site's policy.

        Raises:
            PolicyError, NotPrivate: If the file is missing, open to others, or breaks a rule, with
                the remedy.
        """
        if not path.is_file():
            raise PolicyError(f"policy must be a file, got {path}, which is none; {MAKE_ONE}")
        check_private(path)
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PolicyError(f"{path} must be TOML, got {error}") from error
        try:
            return cls._parse(raw, path.parent)
        except BadSetting as error:
            raise PolicyError(f"{path}: {error}") from error

    @classmethod
    def _parse(cls, raw: dict[str, Any], folder: Path) -> "Policy":
        own = dict(raw)
        if "name" not in own:
            raise BadSetting(f"name must be given, got nothing; {MAKE_ONE}")
        found: dict[str, Any] = {"name": _check_name(own.pop("name")), "folder": folder.absolute()}
        for section, kind in _SECTIONS.items():
            found[section] = _section(section, kind, own.pop(section, {}))
        peers = own.pop("peers", {})
        if not isinstance(peers, dict):
            raise BadSetting(f"[peers] must be a table, got {peers!r}")
        for peer, key in peers.items():
            _check_name(peer)
            if not is_public_key(key):
                raise BadSetting(f"peers.{peer} must be {KEY_TEXT}, got {key!r}")
        if own:
            raise BadSetting(f"policy must hold known entries, got {', '.join(sorted(own))}")
        if found["data"].split_seed == DataPolicy().split_seed:
            raise BadSetting("data.split-seed must be given and secret: openssl rand -hex 32")
        return cls(**found, peers=peers)

    def text(self) -> str:
        """Return the policy as TOML, with what each entry means."""
        lines = [
            "# What this site allows, whatever a coordinator asks for (efface site init).",
            "# This file is private: chmod 600.",
            f"name = {_toml(self.name)}  # of this node; a message for another one is refused",
        ]
        for section in _SECTIONS:
            lines += ["", f"[{section}]"]
            part = getattr(self, section)
            for spec in fields(part):
                key = spec.name.replace("_", "-")
                said = _MEANING.get(f"{section}.{key}", "")
                line = f"{key} = {_toml(getattr(part, spec.name))}"
                lines.append(f"{line}  # {said}" if said else line)
        lines += ["", '[peers]  # other sites, for secure aggregation: name = "public key"']
        lines += [f"{_toml(peer)} = {_toml(key)}" for peer, key in sorted(self.peers.items())]
        return "\n".join(lines) + "\n"

    # -- keys ----------------------------------------------------------------------------------

    @property
    def store_keys(self) -> Path | None:
        """The file of what synthetic examples are encrypted with; None for one in the store."""
        if self.folder is None or not self.keys.store:
            return None
        return self.folder / self.keys.store

    def key(self) -> Ed25519PrivateKey:
        """Return the node's private key.

        Raises:
            PolicyError, NotPrivate: If its file is missing, damaged, or open to others.
        """
        if self.folder is None:
            return simulated_key(self.name, self.population)
        path = self.folder / self.keys.sign
        if not self.keys.sign or not path.is_file():
            raise PolicyError(f"keys.sign must name the site's key, got no file {path}; {MAKE_ONE}")
        check_private(path)
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise PolicyError(f"{path} must be a private key in PEM, got {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise PolicyError(f"{path} must be an Ed25519 key, got {type(key).__name__}")
        return key

    def peer(self, peer: str) -> Ed25519PublicKey:
        """Return the public key of another node, as this site pinned it.

        Raises:
            PolicyRefused: If it pinned none.
        """
        if self.folder is None:
            return simulated_key(peer, self.population).public_key()
        if peer == self.name:
            return self.key().public_key()
        if peer not in self.peers:
            raise PolicyRefused(
                f"peer {peer} must be pinned at {self.name} ([peers] of its policy), got no key"
            )
        return public_key(self.peers[peer])


_UNLIMITED: Final[dict[str, Any]] = {
    spec.name: float("inf") if spec.type is float else _MOST for spec in fields(Limits)
}
_SECTIONS: Final[Mapping[str, type[Settings]]] = {
    "data": DataPolicy,
    "answers": Answers,
    "limits": Limits,
    "synthetic": SyntheticPolicy,
    "privacy": Privacy,
    "keys": Keys,
}
_MEANING: Final = {
    "data.holdout": "share kept for evaluation, 0 to 0.5; a message cannot ask for more",
    "data.split-seed": "secret: decides the split and every draw",
    "answers.min-examples": "distinct examples behind any answer; below it nothing goes up",
    "answers.min-batch": "distinct examples behind a step of training",
    "answers.updates": '"sums": through secure aggregation alone; "single": this site\'s own',
    "answers.serve": 'message types such as "train.fit"; none: all',
    "answers.levels": "what a request may name",
    "answers.methods": 'such as "quickdrop"; none: all',
    "limits.steps": "of local training in one message; epochs count as their steps",
    "limits.memory-mb": "that a message's training may take, estimated before it begins",
    "synthetic.min-scale": "one synthetic example for at least so many real ones of a class",
    "synthetic.quota-mb": "of all synthetic examples in the store",
    "synthetic.lineages": "trainings whose synthetic examples are kept",
    "privacy.required": "refuse to train without noise",
    "privacy.epsilon": "the most that all answers together may tell of any one example",
    "privacy.noise-multiplier": "on gradients, over clip-norm; a message can only ask for more",
    "privacy.counts-noise": "standard deviation, on counts of right answers on held-out data",
    "keys.sign": "this site's private key, beside this file",
    "keys.store": "what synthetic examples are encrypted with; empty: in the store. "
    "Leave it out of backups",
    "keys.coordinators": "whose orders to forget, to lift and to destroy are taken",
}


def _section(section: str, kind: type[Settings], raw: Any) -> Settings:
    if not isinstance(raw, dict):
        raise BadSetting(f"[{section}] must be a table, got {raw!r}")
    known = {spec.name.replace("_", "-") for spec in fields(kind)}
    if unknown := sorted(set(raw) - known):
        raise BadSetting(
            f"[{section}] must hold {', '.join(sorted(known))} alone, got {', '.join(unknown)}"
        )
    return kind.parse({f"{section}.{k}": v for k, v in raw.items()}, prefix=f"{section}.")


def _check_name(value: Any) -> str:
    rule = name()
    if not isinstance(value, str) or not rule.holds(value):
        raise BadSetting(f"name must {rule.words}, got {value!r}")
    return value


def _toml(value: bool | int | float | str | list[str]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Names and keys hold neither quotes nor control characters; paths may.
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


def make_site(folder: Path, name: str) -> Policy:
    """Write a new site's policy and key into `folder`, for their owner alone.

    Raises:
        BadSetting: If the name is none, or the folder cannot be one.
        PolicyError: If one of the files is there already; nothing was changed.
    """
    policy = Policy.new(name)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise BadSetting(f"folder must be one, got the file {there}")
    for file in (FILE, KEY):
        if (folder / file).exists():
            raise PolicyError(
                f"{folder / file} must not exist yet, got one; move it away first, or go on with it"
            )
    make_private(folder)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_atomic(folder / KEY, pem)
    write_atomic(folder / FILE, policy.text().encode())
    return Policy.load(folder / FILE)
