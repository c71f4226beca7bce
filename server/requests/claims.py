"""What a request to forget claims, checked as `efface audit` does: record, order and weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from client.errors import BadSetting
from server.evidence.record import Record
from server.requests import attestations, audit, orders, records
from server.storage import keys
from server.storage.home import Home
from server.storage.ledger import Ledger, RequestRow, VersionRow
from server.storage.registry import PrunedError, Registry
from server.storage.seal_check import Checked, Problem
from server.storage.seals import EditedError


@dataclass(frozen=True)
class Subject:
    """A request whose claims verify, with the versions before and after it."""

    row: RequestRow
    before: VersionRow
    after: VersionRow
    record: Record


@dataclass(frozen=True)
class Claims:
    """What was found of a request's claims.

    Attributes:
        row: The request, one to forget whose result was kept.
        before: The version that it started from.
        after: The one that it made.
        problems: What does not verify.
        subject: What can be measured; None if something does not verify.
    """

    row: RequestRow
    before: VersionRow
    after: VersionRow
    problems: tuple[Problem, ...]
    subject: Subject | None = None


def claimed(home: Home, ledger: Ledger, identifier: str) -> Claims:
    """Check what a request claims; nothing is measured.

    Args:
        home: Where it is.
        ledger: The home's.
        identifier: The request's id, or that of the version that it made.

    Raises:
        UnknownIdError: If there is no such request or version.
        BadSetting: If it is no request to forget, or its result or record was not kept.
        PrunedError: If the weights before or after it were pruned.
    """
    row = subject_of(ledger, identifier)
    before, after = ledger.version(str(row.base_version)), ledger.version(str(row.result_version))
    sealed = ledger.checked(home, every_signature=True)
    record, problems = _claims(home, ledger, row, (before, after), sealed)
    if problems:
        return Claims(row, before, after, tuple(problems))
    if record is None:
        raise BadSetting(
            f"request must have a record to be compared with, got none of {row.id}",
            see="efface audit",
        )
    registry = Registry(home, ledger, sweep=False)
    for version in (before, after):
        try:
            registry.check_kept(version)
        except PrunedError as error:
            raise PrunedError(
                f"request must have the weights before and after it to be judged again, got "
                f"{row.id}, whose {version.id} was pruned: its record and what was found of it "
                "earlier stay",
                see=f"efface show {row.id}",
            ) from error
    return Claims(row, before, after, (), Subject(row, before, after, record))


def checked(home: Home, ledger: Ledger, request: str) -> Subject:
    """Return a request whose claims verify.

    Raises:
        EditedError: If something does not.
        UnknownIdError, BadSetting, PrunedError: As `claimed`.
    """
    found = claimed(home, ledger, request)
    if found.subject is None:
        raise EditedError(f"{found.problems[0].sentence}; see `efface audit`")
    return found.subject


def subject_of(ledger: Ledger, identifier: str) -> RequestRow:
    """Return the request that is meant, one to forget whose result was kept.

    Raises:
        UnknownIdError: If there is no such request or version.
        BadSetting: If it is another.
    """
    if identifier.startswith("v"):
        row = ledger.request(ledger.version(identifier).request)
        named = f"{identifier}, made by {row.id}: {row.kind}"
    else:
        row = ledger.request(identifier)
        named = f"{row.id}: {row.kind}"
    if row.kind != "forget":
        raise BadSetting(f"request must be one to forget, got {named}", see="efface requests")
    if row.result_version is None or row.state != "done":
        why = f" ({row.reason})" if row.reason else ""
        raise BadSetting(
            f"request must have a result that was kept, got {row.id}, which is {row.state}{why}; "
            "the same command with --trial makes a result that is kept whatever its verdict",
            see=f"efface show {row.id}",
        )
    return row


def _claims(
    home: Home,
    ledger: Ledger,
    row: RequestRow,
    versions: Sequence[VersionRow],
    checked: Checked,
) -> tuple[Record | None, list[Problem]]:
    """Return a request's record, and what of its claims does not verify."""
    ids = {version.id for version in versions}
    wrong = [p for p in checked.problems if p.request in (row.id, None) or p.version in ids]
    wrong += records.problems_of(home, row)
    found = orders.problems(home.runs / row.id / orders.NAME, row, keys.public_keys(home.keys))
    wrong += [Problem(text, row.id, file=str(file)) for text, file in found]
    for version in versions:
        wrong += audit.of_version(home, version, pruned=version.id in checked.pruned)
    if wrong:
        return None, list(dict.fromkeys(wrong))
    record = records.read(home, row)
    if record is not None:
        wrong += attestations.problems(home, ledger, row, record, checked)
    return record, wrong
