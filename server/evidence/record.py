"""A request's record: one frozen value, and the JSON that it is kept and printed as.

    to_json(record)      what HOME/runs/ID/record.json holds and `--json` prints
    from_json(document)  the record again; documents of format 1 are brought up to date

Whoever measures gives a typed part; `server.requests` composes the record of them at the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from client.errors import BadSetting
from server.evidence import wording
from server.evidence.costs import SpeedUp
from server.evidence.features.scores import FeatureMeasures
from server.evidence.participation import Absence, Participation, remarks
from server.evidence.scores import ModelScores, RoundScores
from server.evidence.serial import plain, read
from server.evidence.stock import Retraining
from server.evidence.verdict import Limits, State, Verdict, decide

FORMAT: Final = 2  # of the documents written; 1 is read as well


@dataclass(frozen=True)
class Target:
    """What a request names: classes, or clients."""

    level: str | None = None
    classes: tuple[int, ...] = ()
    clients: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forgotten:
    """All that a version has forgotten."""

    classes: tuple[int, ...] = ()
    clients: tuple[str, ...] = ()


@dataclass(frozen=True)
class Traffic:
    """Bytes to the server and to the clients."""

    up: float | None = None
    down: float | None = None


@dataclass(frozen=True)
class Distillation:
    """What distillation took of training: a share from 0 to 1, and seconds."""

    client_seconds_share: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class PrivacySpent:
    """What a client's answers have told of any one of its examples (`client.budget`).

    From the first training of the version's lineage to the end of the request.
    """

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Verifies:
    """What a verification judges again.

    Attributes:
        request: The request to forget.
        version: The version that it made.
        record_sha256: Of its record, as the ledger seals it.
        state: Its own verdict's; None if it had none.
        finished: When it ended, ISO 8601.
        asked_clients: Whether clients measured anything anew; else the coordinator alone did.
        measured_by: Those that answered.
        notes: What is to be said beside today's verdict.
    """

    request: str | None = None
    version: str | None = None
    record_sha256: str | None = None
    state: State | None = None
    finished: str | None = None
    asked_clients: bool = False
    measured_by: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Storage:
    """Bytes of stored updates and of synthetic sets, and the seconds that keeping updates took."""

    updates: float | None = None
    updates_seconds: float | None = None
    synthetic: float | None = None


@dataclass(frozen=True)
class Costs:
    """Costs by phase; those of measuring stand apart."""

    seconds: Mapping[str, float | None] = field(default_factory=dict)
    seconds_measuring: Mapping[str, float | None] = field(default_factory=dict)
    rounds: Mapping[str, float | None] = field(default_factory=dict)
    samples: Mapping[str, float | None] = field(default_factory=dict)
    client_seconds: Mapping[str, float | None] = field(default_factory=dict)
    bytes: Mapping[str, Traffic | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Record(Costs):
    """All that is known of one request. None is what was not measured or does not apply.

    docs/json.md says what each field means.
    """

    request: str | None = None
    kind: str | None = None
    method: str | None = None
    chosen: Mapping[str, Any] | None = None
    engine: str | None = None
    seed: int | None = None
    created: str | None = None
    started: str | None = None
    finished: str | None = None
    command: str | None = None
    asked_by: str | None = None
    why: str | None = None
    forget: Target | None = None
    erased_before: tuple[int, ...] = ()
    has_forgotten: Forgotten | None = None
    warnings: tuple[str, ...] = ()
    model_version: str | None = None
    base_version: str | None = None
    in_service: bool | None = None
    refused: bool | None = None
    lineage: str | None = None
    dataset: str | None = None
    partition: str | None = None
    model: str | None = None
    num_clients: int | None = None
    num_classes: int | None = None
    num_train: int | None = None
    num_test: int | None = None
    class_names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    original: ModelScores | None = None
    retrained: ModelScores | None = None
    stock: tuple[Retraining, ...] = ()
    features: FeatureMeasures | None = None
    channels: Mapping[str, Any] | None = None
    model_bytes: int | None = None
    unlearned: ModelScores | None = None
    recovered: ModelScores | None = None
    relearned: ModelScores | None = None
    trained: ModelScores | None = None
    distillation: Distillation | None = None
    storage: Storage | None = None
    privacy: Mapping[str, PrivacySpent] = field(default_factory=dict)
    speed_up: SpeedUp | None = None
    timeline: tuple[RoundScores, ...] = ()
    participation: tuple[Participation, ...] = ()
    absences: tuple[Absence, ...] = ()
    attestations: tuple[Mapping[str, Any], ...] | None = None  # `client.attestation`
    hardware: str | None = None
    commit: str | None = None
    report: str | None = None
    verdict: Verdict | None = None
    retrain_cached: bool | None = None
    verifies: Verifies | None = None
    trained_version: str | None = None
    relearned_version: str | None = None

    @property
    def result(self) -> ModelScores | None:
        """Scores of what the request ended with."""
        return self.relearned or self.recovered or self.original


# ---- JSON ---------------------------------------------------------------------------------------


def to_json(record: Record) -> dict[str, Any]:
    """Return a record as JSON values, its verdict with its words."""
    document: dict[str, Any] = {"format": FORMAT, **plain(record)}
    if record.verdict is not None:
        document["verdict"] |= _worded(
            record.verdict, record.forget or Target(), record.class_names
        )
        document["verdict"]["remedy"] = remedy(record)
    document["remarks"] = remarks(record.participation, record.absences)
    return document


def remedy(record: Record) -> str | None:
    """Return what to do next where a request's result was turned away; None where it was not."""
    if record.verdict is None or not record.refused:
        return None
    return wording.remedy(record.verdict, record.method or "")


def _worded(verdict: Verdict, forget: Target, names: Sequence[str]) -> dict[str, Any]:
    level = forget.level or ""
    return {
        "passed": verdict.passed,
        "reasons": wording.reasons(verdict, level, forget.clients, names),
        "not_measured": [wording.not_measured(m, level) for m in verdict.missing],
    }


def from_json(document: Mapping[str, Any]) -> Record:
    """Return the record that a document holds; fields that this Efface does not know are left out.

    Raises:
        BadSetting: If it is of another format, or a part of it has another form.
    """
    version = document.get("format")
    if version == 1:
        return _upgraded(document)
    if version != FORMAT:
        raise BadSetting(
            f"record format must be 1 or {FORMAT}, got {version!r}; "
            "read it with the Efface that wrote it"
        )
    return read(Record, document)


def _upgraded(document: Mapping[str, Any]) -> Record:
    """Return the record of a document of format 1.

    Its verdict was prose. What it decided stays; the findings are made again from its numbers.
    """
    old = document.get("verdict")
    record = read(Record, {**document, "verdict": None})
    if not isinstance(old, Mapping) or record.forget is None or record.recovered is None:
        return record
    settings = record.settings
    found = decide(
        record.forget.level or "",
        record.recovered,
        original=record.original,
        retrained=record.retrained,
        limits=Limits(
            float(settings.get("max-forget-accuracy", Limits.forget_accuracy)),
            float(settings.get("max-relearning-gap", Limits.relearning_gap)),
        ),
        erased_before=record.erased_before,
        method=record.method or "",
    )
    state: State = "not-shown"
    if old.get("passed") is not None:
        state = "passed" if old["passed"] else "failed"
    trial = bool(settings.get("trial"))
    return replace(
        record,
        verdict=replace(found, state=state),
        in_service=record.model_version is not None and not trial,
        refused=state == "failed",
    )
