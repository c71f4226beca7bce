"""Comparing a ledger's rows with its seals (server/storage/seals.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.storage import keys
from server.storage.seals import (
    ENDED,
    HEAD,
    NOTHING_BEFORE,
    Rows,
    Seal,
    digest,
    sealed_once,
    version_digest,
)


@dataclass(frozen=True)
class Problem:
    """Something that does not verify, and whose it is."""

    text: str
    request: str | None = None
    version: str | None = None
    file: str | None = None

    @property
    def sentence(self) -> str:
        """What does not verify, and in which file."""
        return self.text + (f" in {self.file}" if self.file else "")


@dataclass(frozen=True)
class Checked:
    """What a ledger's seals say of its rows.

    Attributes:
        problems: What does not verify.
        unsigned: Ids of requests that ended before there were seals.
        sealed: The newest seal of each request that has one.
        hashes: Of all seals, in order.
        pruned: When each version's weights were, of those that have none any more; ISO 8601.
        settled: SHA-256 of what a client signed that did later what it owed a request, by request
            and client; empty of an earlier Efface's.
    """

    problems: tuple[Problem, ...] = ()
    unsigned: frozenset[str] = frozenset()
    sealed: Mapping[str, Seal] = field(default_factory=dict)
    hashes: Sequence[str] = ()
    pruned: Mapping[str, str] = field(default_factory=dict)
    settled: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def of(self, request: str) -> list[Problem]:
        """Return what concerns one request, or the chain as a whole."""
        return [p for p in self.problems if p.request in (request, None)]


def check(
    chain: Sequence[Seal],
    rows: Rows,
    publics: Sequence[str],
    head: Mapping[str, Any] | None = None,
    *,
    every_signature: bool = False,
) -> Checked:
    """Compare a ledger's rows with its seals.

    Args:
        chain: All seals in order.
        rows: All rows.
        publics: Public keys whose signatures count.
        head: `number` and `hash` of a seal that must be on the chain, if one was noted.
        every_signature: Whether to check each seal's; else the last one's, which covers the
            hashes of all before it.
    """
    if not chain:
        problems = []
        if head is not None:
            problems = [Problem(f"seals must reach number {head['number']} of {HEAD}, got none")]
        problems += [
            Problem(f"{name} ended under a seal, got none: seals were removed", name)
            for name in sealed_once(rows)
        ]
        ended = {name for name, row in rows.requests.items() if row["state"] in ENDED}
        return Checked(tuple(problems), frozenset(ended))
    hashes = [seal.hash for seal in chain]
    problems = _chain(chain, hashes, publics, head, every_signature=every_signature)
    began = chain[0].content if chain[0].kind == "began" else {}
    sealed = {seal.subject: seal for seal in chain if seal.kind == "request"}
    unsigned = frozenset(began.get("requests", {})) - set(sealed)
    problems += [
        Problem(
            f"row of {name} must be in the place that its id says, got another: it was moved",
            name if name in rows.requests else None,
            name if name in rows.versions else None,
        )
        for name in rows.moved
    ]
    try:
        problems += _requests(sealed, began, rows)
        problems += _versions(chain, began, rows)
        problems += _pending(chain, began, rows)
        problems += _pruned(chain, rows)
    except (KeyError, TypeError, ValueError, AttributeError):
        if not problems:  # a seal as it was made has all that is looked for
            raise
    settled = {
        (seal.subject, str(seal.content.get("client"))): str(seal.content.get("attestation", ""))
        for seal in chain
        if seal.kind == "settled"
    }
    return Checked(tuple(problems), unsigned, sealed, hashes, pruned(chain), settled)


def pruned(chain: Sequence[Seal]) -> dict[str, str]:
    """Return the versions whose weights were pruned, each with the time, ISO 8601."""
    return {str(s.content.get("version")): s.created for s in chain if s.kind == "pruned"}


def _requests(sealed: Mapping[str, Seal], began: Mapping[str, Any], rows: Rows) -> list[Problem]:
    """Compare the requests that have ended."""
    problems = []
    old = dict(began.get("requests", {}))
    expected = old | {name: seal.content["row"] for name, seal in sealed.items()}
    for name, wanted in expected.items():
        if name not in rows.requests:
            problems.append(Problem(f"request {name} has ended, got no row of it", name))
        elif digest(rows.requests[name]) != wanted:
            when = "it ended" if name in sealed else "the seals began"
            problems.append(Problem(f"row of {name} was changed after {when}", name))
    for name, row in rows.requests.items():
        if name not in expected and row["state"] in ENDED:
            text = f"row of {name} says {row['state']}, got no seal of it"
            problems.append(Problem(text, name))
    return problems


def _chain(
    chain: Sequence[Seal],
    hashes: Sequence[str],
    publics: Sequence[str],
    head: Mapping[str, Any] | None,
    *,
    every_signature: bool,
) -> list[Problem]:
    problems = []
    before = NOTHING_BEFORE
    for place, seal in enumerate(chain, 1):
        named = seal.subject or None
        if seal.number != place or seal.before != before or (seal.kind == "began") != (place == 1):
            problems.append(
                Problem(
                    f"seal {place} must follow the one before it, got number {seal.number}"
                    f"{f' of {named}' if named else ''}: seals were changed, removed or moved"
                )
            )
            break
        before = hashes[place - 1]
        due = every_signature or place == len(chain)
        if seal.key not in publics or (
            due and not keys.verified([seal.key], seal.signed, seal.signature)
        ):
            problems.append(
                Problem(
                    f"seal {place} must be signed by the coordinator's key, got one that is not: "
                    "it was changed, or made with another key",
                    named,
                )
            )
    if head is None and len(chain) > 1:
        problems.append(Problem(f"{HEAD} must note the newest seal, got no such file: removed"))
    if head is not None and head["hash"] not in hashes:
        problems.append(
            Problem(
                f"seals must hold the one that {HEAD} notes as the newest, got {len(hashes)} "
                "without it: the newest were removed, or all replaced, or the note was changed"
            )
        )
    return problems


def _versions(chain: Sequence[Seal], began: Mapping[str, Any], rows: Rows) -> list[Problem]:
    """Compare the versions: each as it entered, and the last one that entered service serving."""
    entered: dict[str, list[str]] = dict(began.get("versions", {}))
    made_by: dict[str, str] = {}
    for seal in chain:
        if seal.kind == "request" and seal.content["version"] is not None:
            name, hashed, state = seal.content["version"]
            entered[name], made_by[name] = [hashed, state], seal.subject
    problems, serving = [], dict[str, str]()
    for name, (hashed, state) in entered.items():
        if name not in rows.versions:
            problems.append(
                Problem(f"version {name} has entered, got no row of it", made_by.get(name), name)
            )
            continue
        row = rows.versions[name]
        if version_digest(row) != hashed:
            problems.append(
                Problem(f"row of {name} was changed after it entered", row["request"], name)
            )
        elif state == "in-service":
            serving[row["federation"]] = name
    for name, row in rows.versions.items():
        if name not in entered:
            problems.append(
                Problem(f"version {name} has entered, got no seal of it", row["request"], name)
            )
            continue
        state = entered[name][1]
        if state == "in-service" and serving.get(row["federation"]) != name:
            state = "superseded"
        if row["state"] != state:
            problems.append(
                Problem(
                    f"version {name} must be {state}, got a row that says {row['state']}",
                    row["request"],
                    name,
                )
            )
    return problems


def _pending(chain: Sequence[Seal], began: Mapping[str, Any], rows: Rows) -> list[Problem]:
    """Compare what requests owe to clients that were offline."""
    owed = {(request, client): done for request, client, done in began.get("pending", [])}
    ended = {request for request, _ in owed}
    for seal in chain:
        if seal.kind == "request":
            ended.add(seal.subject)
            owed |= {(seal.subject, client): False for client in seal.content["pending"]}
        elif seal.kind == "settled":
            owed[seal.subject, seal.content["client"]] = True
    there = {(request, client): done for request, client, done in rows.pending if request in ended}
    return [
        Problem(f"what {request} owes to {client} was changed by hand", request)
        for request, client in sorted(owed.keys() | there.keys())
        if owed.get((request, client)) != there.get((request, client))
    ]


def _pruned(chain: Sequence[Seal], rows: Rows) -> list[Problem]:
    """Compare the versions whose weights were pruned: known, and none that serves."""
    problems = []
    for seal in chain:
        if seal.kind != "pruned":
            continue
        name = seal.content["version"]
        row = rows.versions.get(name)
        if row is None or (row["sha256"], row["request"]) != (seal.content["sha256"], seal.subject):
            text = f"pruned weights must be a version's, got {name}, whose row is another"
        elif row["state"] == "in-service":
            text = f"version {name} must have weights to serve, got pruned ones"
        else:
            continue
        problems.append(Problem(text, seal.subject, name))
    return problems
