"""A certificate's statement: what one request to forget did, for whoever has only the file.

    statement(facts)       an in-toto Statement v1 with the predicate of docs/certificate.md
    read(data, public)     the statement of a file, verified offline
    sentences(statement)   what it certifies, in plain words

A statement holds what a request's record says of the whole: no weights, no updates, no inputs, no
path of the coordinator's machine, and no number of one client's own but what it attests: in how
many of its synthetic sets it destroyed something. Where one client alone is forgotten, the accuracy
on its held-out data is the evidence, and is there.

It is long because what is stated, and what is checked of a file, are one form.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from server.evidence import attested, derived, envelope, later
from server.evidence.derived import Left
from server.evidence.envelope import InvalidCertificate
from server.evidence.later import Later
from server.evidence.record import Record, Target, to_json
from server.evidence.serial import plain
from server.evidence.wording import STATES
from server.format import masked, target_text
from server.storage import keys
from server.storage.keys import Signer
from server.storage.seals import Seal, canonical

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:efface:unlearning/v1"
SHA256: Final = re.compile(r"[0-9a-f]{64}")
ROLES: Final = ("before", "after")
# Of a model's scores: what is of the whole. Where a request names one client, what was to be
# forgotten is that client's alone, and its accuracy is what the certificate is about.
_SCORES: Final = (
    *("forget_accuracy", "retain_accuracy", "loss", "per_class_accuracy", "relearning_curve"),
    *("membership", "client_relearning"),
)
# No medians: that of three clients is one client's own number.
_HELDOUT: Final = ("forget_accuracy", "retain_accuracy")
_MODELS: Final = ("original", "unlearned", "recovered", "retrained")
_COSTS: Final = (
    *("seconds", "seconds_measuring", "rounds", "samples", "client_seconds", "bytes", "speed_up"),
)


@dataclass(frozen=True)
class Version:
    """One set of weights: its id, and the SHA-256 of its file."""

    id: str
    sha256: str
    state: str
    pruned: str | None = None  # since when its weights are destroyed


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a certificate is made of.

    Attributes:
        record: The request's, verified.
        record_sha256: As the ledger seals it.
        before: The version that the request started from.
        after: The one that it made.
        code: Fingerprint of the code that the clients ran.
        task: Name of the task of the coordinator's own, and the SHA-256 of its code; empty if none.
        data_sha256: Fingerprint of the coordinator's data, if it has any.
        order: What the sites were told, with its signature.
        signed: The bytes of that signature.
        seal: The request's seal in the ledger.
        waiting: Clients that were offline and have yet to carry out the order.
        attestations: What sites signed of the order (`client.attestation`).
        derived: What was derived from what was forgotten, at the coordinator.
        verifications: What was found since, each by a request of its own.
        issued: When, ISO 8601 in UTC.
    """

    record: Record
    record_sha256: str
    before: Version
    after: Version
    code: str
    task: tuple[str, str]
    data_sha256: str | None
    order: Mapping[str, Any]
    signed: str
    seal: Seal
    waiting: Sequence[str]
    issued: str
    attestations: Sequence[Mapping[str, Any]] = ()
    derived: Sequence[Left] = ()
    verifications: Sequence[Later] = ()


def statement(facts: Facts) -> dict[str, Any]:
    """Return the in-toto statement of a request."""
    versions = {"before": plain(facts.before), "after": plain(facts.after)}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": f"{role}/{versions[role]['id']}", "digest": {"sha256": one["sha256"]}}
            for role, one in versions.items()
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate(facts, versions),
    }


def predicate(facts: Facts, versions: Mapping[str, Any]) -> dict[str, Any]:
    """Return what docs/certificate.md describes, field by field."""
    record = facts.record
    told = to_json(record)
    forget = record.forget or Target()
    settings = record.settings
    return {
        "issued": facts.issued,
        "request": {
            "id": record.request,
            "level": forget.level,
            "classes": [
                {"number": c, "name": _name(record.class_names, c)} for c in forget.classes
            ],
            "clients": list(forget.clients),
            "asked_by": masked(record.asked_by or ""),
            "why": masked(record.why or ""),
            "asked": record.created,
            "started": record.started,
            "finished": record.finished,
        },
        "versions": dict(versions),
        "run": {
            "method": record.method,
            "options": str(settings.get("method-options", "")),
            "engine": record.engine,
            "seed": record.seed,
            "secure_aggregation": bool(settings.get("secure-aggregation")),
            "code_sha256": facts.code,
            "task": _task(*facts.task),
            "data_sha256": facts.data_sha256,
            "commit": record.commit,
            "model": record.model,
            "lineage": record.lineage,
            "hardware": record.hardware,
        },
        "participants": [
            {key: one[key] for key in ("client", "phase", "rounds", "answered", "idle")}
            for one in told["participation"]
            if one["rounds"] != 0  # of others nothing that they sent is in the model
        ],
        "absences": [
            {key: one[key] for key in ("client", "phase", "round", "code")}
            for one in told["absences"]
        ],
        "waiting": list(facts.waiting),
        "attestations": [plain(one) for one in facts.attestations],
        "derived": [plain(one) for one in facts.derived],
        "costs": {key: told[key] for key in _COSTS},
        "measures": {name: _scores(told[name]) for name in _MODELS},
        "features": told["features"],
        "verdict": {key: value for key, value in told["verdict"].items() if key != "remedy"},
        "verifications": [plain(one) for one in facts.verifications],
        "in_service": record.in_service,
        "order": {**facts.order, "signed": facts.signed},
        "seal": {**plain(vars(facts.seal)), "sha256": facts.seal.hash},
        "record_sha256": facts.record_sha256,
        "limits": limits(
            record, facts.before, facts.waiting, destroyed=bool(facts.order["destroy"])
        ),
    }


def limits(
    record: Record, before: Version, waiting: Sequence[str], *, destroyed: bool = True
) -> list[str]:
    """Return in plain words what a certificate does not say.

    Args:
        record: The request's.
        before: The version that it started from.
        waiting: Clients that were offline.
        destroyed: Whether the order had the clients destroy synthetic examples.
    """
    found = [
        "The evidence is empirical: it shows how the model behaves where it was measured, and "
        "proves nothing about what is left in its weights.",
        f"It speaks of the weights of version {record.model_version} alone. "
        + (
            f"Those of version {before.id} were destroyed at the coordinator, but copies"
            if before.pruned
            else f"Version {before.id}, older versions and copies"
        )
        + " of them anywhere still know what was to be forgotten.",
        "What was computed with an older version, such as predictions, exported files and models "
        "trained from it, is not reached.",
        "The coordinator signs what it measured and what the clients said. It cannot see whether "
        "a client told the truth, or kept a copy of its data or of a model.",
        "The signature says who signed, and that nothing was changed since. The time is that of "
        "the coordinator's clock.",
    ]
    if not destroyed:
        found.append(
            "Clients keep what synthetic examples they have of it, to relearn from: the order did "
            "not have them destroyed."
        )
    if record.retrained is None and record.method != "retraining":
        found.append(
            "No model was retrained without the data: there is no yardstick to say how far the "
            "forgetting should have gone."
        )
    elif record.retrained is not None and len(record.stock) > 1:
        found.append(
            f"The yardstick is {len(record.stock)} retrained models. More of them would tell "
            "smaller differences."
        )
    elif record.retrained is not None:
        found.append(
            "The yardstick is one retrained model. Another one would differ by some points, and "
            "differences of that size mean nothing."
        )
    if waiting:
        found.append(
            f"Not carried out yet at {', '.join(waiting)}, which were offline: what they derived "
            "from the data is still there until they have the order."
        )
    if str(record.settings.get("accept", "")) == "not-shown":
        found.append("The request asked for its result to enter service without a full verdict.")
    return found


def _task(name: str, sha256: str) -> dict[str, str] | None:
    return {"name": name, "sha256": sha256} if sha256 else None


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else str(number)


def _scores(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    heldout = found["heldout"]
    kept = None
    if heldout is not None and len(heldout["sites"]) > 1:
        kept = {key: heldout[key] for key in _HELDOUT} | {"sites": len(heldout["sites"])}
    return {**{key: found[key] for key in _SCORES}, "heldout": kept}


# ---- the file -----------------------------------------------------------------------------------


def written(content: Mapping[str, Any], signer: Signer) -> bytes:
    """Return a statement as the signed file."""
    return envelope.sealed(PAYLOAD_TYPE, canonical(content), signer)


def read(
    data: bytes, public: str, site_keys: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the statement that a file holds, verified; nothing but file and keys is read.

    Args:
        data: The whole file.
        public: The coordinator's public key, base64.
        site_keys: Public keys of sites by name: each must have attested with its key.

    Raises:
        InvalidCertificate: If anything does not verify. The message says what.
    """
    payload = envelope.opened(data, PAYLOAD_TYPE, public)
    found = envelope.parsed(payload, "payload")
    for key, wanted in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if found.get(key) != wanted:
            raise InvalidCertificate(f"{key} must be {wanted}, got {ascii(found.get(key))[:80]}")
    try:
        _check_inside(found)
        attested.check(found["predicate"], site_keys)
        sentences(found)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidCertificate(
            f"statement must have the form of {PREDICATE_TYPE}, got another ({error!r})"
        ) from error
    return found


def _check_inside(found: Mapping[str, Any]) -> None:
    """Check that a statement's parts belong together, and the signatures that it quotes."""
    told = found["predicate"]
    if not isinstance(told["limits"], list) or any(type(one) is not str for one in told["limits"]):
        raise InvalidCertificate("limits must be a list of sentences, got another form")
    subject = [
        {"name": f"{role}/{told['versions'][role]['id']}", "digest": {"sha256": digest}}
        for role in ROLES
        if SHA256.fullmatch(digest := told["versions"][role]["sha256"])
    ]
    if len(subject) != len(ROLES) or found["subject"] != subject:
        raise InvalidCertificate("subject must be the versions of the predicate, got others")
    seal = dict(told["seal"])
    digest = seal.pop("sha256")
    link = Seal(**seal)
    if link.hash != digest or not keys.verified([link.key], link.signed, link.signature):
        raise InvalidCertificate("seal must be as it was signed, got another")
    if link.subject != told["request"]["id"]:
        raise InvalidCertificate("seal must be of the request, got another's")
    order = told["order"]
    text = str(order["signed"])
    if not keys.verified([order["key"]], text.encode(), order["signature"]):
        raise InvalidCertificate("order must be as it was signed, got another")
    content = envelope.parsed(text.partition("\n")[2].encode(), "order")
    if content != {k: v for k, v in order.items() if k not in ("key", "signature", "signed")}:
        raise InvalidCertificate("order must say what was signed, got another")
    asked = told["request"]
    named = [content["level"], content["classes"], content["clients"]]
    wanted = [asked["level"], [one["number"] for one in asked["classes"]], asked["clients"]]
    if named != wanted or not content["request"].startswith(f"{asked['id']}-"):
        raise InvalidCertificate("order must be of the request, got another's")


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Return in a few sentences what a statement certifies."""
    told = found["predicate"]
    asked, run, verdict = told["request"], told["run"], told["verdict"]
    before, after = (told["versions"][role] for role in ROLES)
    numbers = {one["number"]: one["name"] for one in asked["classes"]}
    names = [numbers.get(k, str(k)) for k in range(max(numbers, default=-1) + 1)]
    target = target_text({"classes": list(numbers), "clients": asked["clients"]}, names)
    who = sorted({one["client"] for one in told["participants"]})
    away = sorted({one["client"] for one in told["absences"] if one["client"]})
    found_text = [
        f"Request {asked['id']} to forget {target} was asked by "
        f"{asked['asked_by'] or 'nobody named'}{' (' + asked['why'] + ')' if asked['why'] else ''} "
        f"at {asked['asked']} and finished at {asked['finished']}.",
        f"Method {run['method']} made version {after['id']} (SHA-256 {after['sha256']}) of version "
        f"{before['id']} (SHA-256 {before['sha256']}).",
        f"Took part: {', '.join(who) or 'nobody'}."
        + (f" Absent from some of it: {', '.join(away)}." if away else ""),
        *attested.sentences(told),
        *derived.sentences(told.get("derived", [])),
        f"Verdict: {STATES[verdict['state']]}"
        + (f" ({'; '.join(verdict['reasons'])})" if verdict["reasons"] else "")
        + ".",
    ]
    if verdict["not_measured"]:
        found_text.append(f"Not measured: {'; '.join(verdict['not_measured'])}.")
    found_text += later.sentences(told.get("verifications", []))
    found_text.append("Limits: " + " ".join(told["limits"]))
    return [_printable(text) for text in found_text]


def _printable(text: str) -> str:
    """Return text that cannot steer the terminal of whoever verifies it."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
