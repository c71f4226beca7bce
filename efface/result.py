"""What came of a request, and its verdict."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from server.evidence import verdict as evidence
from server.evidence import wording
from server.evidence.participation import remarks
from server.evidence.record import Costs, Record, Target
from server.evidence.verdict import Finding, State
from server.requests.execution import VerificationFailed

if TYPE_CHECKING:
    from efface.federation import Federation
    from efface.progress import Watcher
    from efface.version import Version


@dataclass(frozen=True)
class Verdict:
    """Whether a request forgot what it should. It is true only if that is shown.

    Attributes:
        state: "passed", "failed", or "not-shown": too little was measured to say.
        reasons: What it rests on, a sentence each.
        not_measured: What it would need and was not measured, and what would measure it.
        findings: The reasons as numbers, each beside its limit.
        yardstick: "retrained", "itself" (the method is retraining), or None.

    Example:
        ```python
        if not result.verdict:
            print(result.verdict.state, *result.verdict.reasons, sep="; ")
        ```
    """

    state: State
    reasons: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    yardstick: str | None = None

    @classmethod
    def of(cls, record: Record) -> Verdict | None:
        """Return a record's verdict in words; None where it has none, as of a training."""
        found: evidence.Verdict | None = record.verdict
        if found is None:
            return None
        target = record.forget or Target()
        level = target.level or ""
        return cls(
            found.state,
            tuple(wording.reasons(found, level, target.clients, record.class_names)),
            tuple(wording.not_measured(missing, level) for missing in found.missing),
            found.findings,
            found.yardstick,
        )

    def __bool__(self) -> bool:
        """Return whether it is "passed"."""
        return self.state == "passed"

    def __str__(self) -> str:
        """Return the state and the reasons, a line each, as the command line shows them."""
        told = [f"  {text}" for text in self.reasons]
        told += [f"  not measured: {text}" for text in self.not_measured]
        return "\n".join([f"Verdict: {wording.STATES[self.state]}", *told])


class Result:
    """What came of one request: its verdict, its numbers, and the version that it made.

    A request to forget whose verdict is "failed" or "not-shown" is a result like any other, not an
    error: look at `verdict`, or call `raise_if_refused`. Its version was turned away, so `version`
    is None and the one before it stays in service.

    Example:
        ```python
        result = federation.forget(client="client-3", compare="retrain")
        if result.verdict:
            result.version.model()
        result.report("client-3.html")
        ```
    """

    def __init__(self, federation: Federation, record: Record, *, changed: bool = True) -> None:
        """Wrap a record; `Federation` does so."""
        self._federation = federation
        self._record = record
        self._changed = changed

    @property
    def id(self) -> str:
        """The request's name in the home, such as "r0002"."""
        return str(self._record.request)

    @property
    def kind(self) -> str:
        """What was asked: "train", "forget", "relearn", "yardstick" or "verify"."""
        return str(self._record.kind)

    @property
    def verdict(self) -> Verdict | None:
        """Whether it forgot what it should; None of a request that was not to forget."""
        return Verdict.of(self._record)

    @property
    def record(self) -> Record:
        """All that is known of it, as `docs/json.md` describes it."""
        return self._record

    @property
    def version(self) -> Version | None:
        """The version that came of it; None if it was turned away."""
        name = self._record.model_version
        return None if name is None else self._federation.version(name)

    @property
    def refused(self) -> bool:
        """Whether its version was turned away, so that the one before stays in service."""
        return bool(self._record.refused)

    @property
    def changed(self) -> bool:
        """Whether this call did it; False if all had been forgotten already, by `id`."""
        return self._changed

    @property
    def costs(self) -> Costs:
        """Seconds, rounds, examples and bytes, each by phase."""
        return Costs(**{part.name: getattr(self._record, part.name) for part in fields(Costs)})

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be said beside the verdict: warnings, and clients that did not take part."""
        told = remarks(self._record.participation, self._record.absences)
        return (*self._record.warnings, *told)

    def report(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write its report, one HTML page without scripts or links, and return where it is.

        Args:
            path: File to write or replace; the home's own if None.

        Raises:
            BadSetting: If the folder is not there.
            EffaceError: If the record was altered since.

        Example:
            ```python
            result.report("request-17.html")
            ```
        """
        return self._federation._page(self.id, None if path is None else Path(path))

    def verify(
        self, *, data: str = "", by: str = "", why: str = "", progress: Watcher = None
    ) -> Verdict:
        """Judge again what a request to forget made, by limits of today.

        These are the defaults, or those of the request where they are narrower.

        Its record, order and weights are checked against their signatures first. Then the version
        before, the result and all retrained models that are kept by now are measured: of classes on
        the coordinator's test examples, of clients, and where only they have data, by the clients.
        What is found is a request of its own, sealed in the ledger; `verdict` stays.

        Args:
            data: Where the version's data lie now, if they have moved.
            by: Who asked; kept in the ledger.
            why: Why it was asked; kept in the ledger.
            progress: Instead of the federation's own.

        Returns:
            Today's verdict.

        Raises:
            EffaceError: If something does not verify (code "edited"), weights were pruned, or a
                client is away that must measure.

        Example:
            ```python
            result.verify().state, result.verdict.state
            ```
        """
        told = {"data": data, "asked-by": by, "why": why}
        verdict = Verdict.of(self._federation._verified(self.id, told, progress))
        if verdict is None:
            raise ValueError("a request that was judged again must have a verdict, got none")
        return verdict

    def raise_if_refused(self) -> None:
        """Raise where the command line would end with exit code 3.

        Raises:
            VerificationFailed: If the version was turned away: `NotShown` where too little was
                measured to say.

        Example:
            ```python
            federation.forget(classes=["9"], compare="retrain").raise_if_refused()
            ```
        """
        if self.refused:
            raise self._federation._refusal(self._record)

    def __repr__(self) -> str:
        """Return request, what it did, version and verdict."""
        verdict = self.verdict
        made = self._record.model_version or "no version"
        said = "" if verdict is None else f", verdict {wording.STATES[verdict.state]}"
        return f"<Result {self.id}, {self.kind}: {made}{said}>"


__all__ = ["Result", "Verdict", "VerificationFailed"]
