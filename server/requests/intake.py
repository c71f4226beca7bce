"""Requests on arrival: checked, written down, and handed to `server.requests.execution`.

`prepare` checks a request to train, forget or relearn; nothing has started when it fails. `execute`
has what was written down carried out on any engine's grid, and a stopped one goes on from there.

It is long because all that can be wrong with a request is checked here, before anything starts.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from client.data.datasets import Data
from client.errors import BadSetting, DiskFull, EffaceError, code_of, kind_of
from client.learning.models import ModelSpec, build
from client.own_task import source_of
from client.wire import ForgetSpec
from server.evidence.record import Record
from server.evidence.verdict import YARDSTICK
from server.format import target_text
from server.nodes.grid import NamedGrid
from server.provenance import hardware
from server.requests import forgotten, planning, verification
from server.requests.cautions import cautions, check_left, unmatched
from server.requests.claims import checked
from server.requests.classes import card_names, check_as_trained, numbered
from server.requests.context import Work
from server.requests.data import (
    check_shares,
    check_simulation,
    keep_stores,
    moved,
    own_samples,
    server_data,
    shares,
    version_data,
)
from server.requests.execution import Unsettled, execute
from server.requests.progress import Listener
from server.requests.resolved import ResolvedRequest, resolve
from server.requests.tasks import check_judges, check_level, check_task, with_scale
from server.requests.workspace import Workspace
from server.settings import (
    DEFAULT_METHOD,
    TRAINING,
    RunSettings,
    essence,
    federation_name,
    parse,
)
from server.storage.ledger import Erased, RequestRow, VersionRow
from strategies.rounds.base import ClientLost
from strategies.table import METHODS, method


class AlreadyDone(EffaceError):
    """The version has forgotten this already; nothing was changed.

    Attributes:
        request: The request by which it has; None where the ledger has none.
    """

    code = "already-done"

    def __init__(self, message: str = "", *, see: str = "", request: str | None = None) -> None:
        super().__init__(message, see=see)
        self.request = request


class Unpublished(EffaceError):
    """The request is done and its version entered; only its report is not written yet."""

    code = "unpublished"


@dataclass(frozen=True)
class _Checked:
    """A request on a version that has passed every check.

    `settings` are as they were asked; `method` is the one they name, or the one chosen.
    """

    settings: RunSettings
    method: str
    base: VersionRow
    situation: planning.Situation
    chosen: planning.Chosen | None
    warnings: list[str]

    @property
    def kind(self) -> str:
        return self.settings.mode


class Service(Workspace):
    """Takes requests on one home."""

    # ---- arrival -------------------------------------------------------------------------------

    def prepare(self, settings: RunSettings) -> ResolvedRequest:
        """Check a request and write it down; an interrupted one that is the same is taken up.

        Returns:
            The request, resolved: what `execute` takes.

        Raises:
            BadSetting: If something asked for is unknown or out of range.
            AlreadyDone: If the version has forgotten the same thing already.
        """
        if settings.mode == "request":
            return self.resolved(settings.request)
        settings = settings.rooted()
        if settings.mode == "train":
            return self._prepare_train(settings)
        if settings.mode == "verify":
            return self._prepare_verify(settings)
        if settings.mode == "yardstick":
            settings = replace(settings, method=YARDSTICK, method_options="")
        return self._prepare_change(settings)

    def resolved(self, request_id: str) -> ResolvedRequest:
        """Return a request that was written down, resolved from its row."""
        return resolve(self.ledger.request(request_id), self.registry)

    def _prepare_train(self, settings: RunSettings) -> ResolvedRequest:
        settings = self._with_task(settings)
        settings, notes = with_scale(settings, None)
        settings.check_training()
        if settings.participants:
            settings = replace(settings, clients=",".join(settings.participants))
            if not settings.simulated:
                settings = replace(settings, num_clients=settings.num_participants)
        data = server_data(settings)
        check_simulation(settings, data)
        check_shares(settings, data)
        if data is None and not settings.holdout:
            raise BadSetting(
                "holdout must be positive when the coordinator has no data, got 0: nothing could "
                "be measured"
            )
        spec = settings.model_spec(data)
        model = build(spec, torch.Generator())
        settings, more = with_scale(settings, spec)
        settings = replace(settings, by_default="")
        check_task(settings, spec)
        if data is not None:
            check_judges(spec, model, data)
        federation = federation_name(settings)
        touched = forgotten.check_training(self.ledger, settings, data, federation)
        row = self._write_down(
            settings, kind="train", method="fedavg", federation=federation, forget=ForgetSpec()
        )
        learned_again = forgotten.learned_again(touched)
        self.note_warnings(
            row, [*notes, *more, *self._edited(), *learned_again, *unmatched(settings)]
        )
        return resolve(row, self.registry, settings, data)

    def _with_task(self, settings: RunSettings) -> RunSettings:
        """Keep the sources of a user's own task in the home, and return settings that name them."""
        if not settings.task or settings.task_code:
            return settings
        source = source_of(settings.task)
        source.keep(self.home.tasks)
        return replace(settings, task=source.name, task_code=source.code)

    def _prepare_verify(self, settings: RunSettings) -> ResolvedRequest:
        """Write a verification down, whose settings `verification.settings_of` made."""
        subject = checked(self.home, self.ledger, settings.verifies)
        verification.check_limits(subject, settings)
        _, said = verification.data_of(subject, settings)
        row = self._write_down(
            settings,
            kind="verify",
            method=subject.row.method,
            federation=subject.row.federation,
            forget=settings.forget,
            base=subject.before.id,
        )
        self.note_warnings(row, said)
        if settings.data and settings.simulated:
            keep_stores(self.home.clients, parse(subject.row.settings), settings)
        return resolve(row, self.registry)

    def _prepare_change(self, settings: RunSettings) -> ResolvedRequest:
        checked = self._checked(settings)
        row = self._write_down(
            checked.settings,
            kind=checked.kind,
            method=checked.method,
            federation=checked.base.federation,
            forget=checked.settings.forget,
            base=checked.base.id,
        )
        self.note_warnings(row, checked.warnings)
        if settings.data and settings.simulated:
            before = inherited(RunSettings(engine=settings.engine), checked.base)
            keep_stores(self.home.clients, before, checked.settings)
        if checked.chosen is not None:
            self.note_choice(row, checked.chosen)
        return resolve(row, self.registry, checked.settings, checked.situation.data)

    def plan(self, settings: RunSettings) -> dict[str, Any]:
        """Check a request to forget, or for a stock, as `prepare` does; return what it will take.

        Nothing is written down, and no node is asked.

        Raises:
            BadSetting, AlreadyDone: As `prepare`.
        """
        if settings.mode == "yardstick":
            settings = replace(settings, method=YARDSTICK, method_options="")
        checked = self._checked(settings.rooted())
        told, base = checked.settings, checked.base
        same = self._interrupted(told, told.mode, base.federation, base.id)
        name = checked.method if same is None else same.method
        chosen = None if checked.chosen is None else asdict(checked.chosen)
        return {
            "format": 1,
            "changed": False,
            "kind": told.mode,
            "method": name,
            "chosen": chosen if same is None else self.chosen(same),
            "forget": asdict(told.forget),
            "class_names": list(card_names(base.card) or ()),
            "base_version": base.id,
            "federation": base.federation,
            "engine": told.engine,
            "takes_up": None if same is None else same.id,
            "warnings": checked.warnings,
            **checked.situation.document(name),
        }

    def _checked(self, settings: RunSettings) -> _Checked:
        base = self.registry.resolve(settings.version or None)
        again = None
        if settings.mode == "yardstick" and base.state == "in-service":
            again = self._forgotten_by(settings, base)
            base = base if again is None else self.ledger.version(str(again.base_version))
        self.registry.check_kept(base)
        settings = inherited(_with_participants(settings, base), base)
        settings.check_sums()
        data = version_data(settings, base)
        check_as_trained(base.id, base.card, data)
        classes = ModelSpec.of_card(base.card["model"]).num_classes
        named = numbered(settings.forget_classes, card_names(base.card), classes)
        settings = replace(settings, forget_classes=named)
        forget = settings.forget
        if forget.level == "none":
            raise BadSetting(
                "request must name classes or clients, got nothing; "
                "try --class 9 or --client client-0"
            )
        automatic = settings.method == planning.AUTO
        if automatic and settings.options:
            raise BadSetting(
                "option must be for a method that is named, got method auto with "
                f"{settings.method_options!r}; name the method, or leave --set out",
                see="efface methods",
            )
        if not automatic:
            method(settings.method, forget.level, settings.options)
        warnings = forgotten.check_data(settings, base, data)
        check_simulation(settings, data)
        spec = settings.model_spec(data)
        check_level(spec, forget)
        out = [c for c in forget.classes if c >= spec.num_classes]
        if out:
            raise BadSetting(f"class must lie in [0, {spec.num_classes}), got {out[0]}")
        erased = self.ledger.erased(base.federation)
        forgetting = settings.mode in ("forget", "yardstick")
        if forgetting:  # first: no method can plan to forget what is not there
            _check_not_forgotten(forget, base, erased, spec.num_classes)
        situation = self._situation(settings, base, data)
        if forgetting:
            check_left(situation)
        # With options of its own, the default is as good as named.
        default = settings.is_default("method") and not settings.options
        default &= settings.mode != "yardstick"
        settings = replace(settings, by_default="")
        why = situation.why_no_default() if default and not automatic else None
        if why is not None:
            automatic, settings = True, replace(settings, method=planning.AUTO)
            situation = replace(situation, settings=settings)
        chosen = None
        if automatic:
            chosen = situation.choose() if forgetting else self._as_forgotten(erased, base, forget)
            if why is not None:
                place = f"method {chosen.method} takes the place of {DEFAULT_METHOD}, the default"
                warnings.append(f"{place}: {why.removesuffix('; choose another method')}")
        elif forgetting:
            situation.check(settings.method)
        asked = settings
        if chosen is not None:
            settings = replace(settings, method=chosen.method)
        if settings.mode == "relearn":
            _check_forgotten(settings, base)
        serving = self.ledger.in_service(base.federation)
        served = serving is None or serving.id == base.id or again is not None
        if serving is not None and not served and not settings.trial:
            trial = "" if settings.mode == "yardstick" else ", or add --trial to experiment"
            raise BadSetting(
                f"version must be the one in service ({serving.id}), got {base.id}, which may "
                f"know what was erased since; leave --version out{trial}",
                see="efface models",
            )
        if settings.forget.level == "client":
            self._check_clients(settings)
        same = self._interrupted(asked, asked.mode, base.federation, base.id)
        warnings += [*self._edited(), *cautions(situation, self.ledger, same)]
        if again is not None:
            what = target_text(vars(forget), card_names(base.card))
            warnings.append(
                f"{what} was forgotten by {again.id}: these are retrained models of {base.id}, for "
                f"`efface verify {again.id}` to read"
            )
        return _Checked(asked, settings.method, base, situation, chosen, warnings)

    def _forgotten_by(self, settings: RunSettings, serving: VersionRow) -> RequestRow | None:
        """Return the request that forgot just this; None if what is named is known still.

        A model retrained for it leaves out the same as it did, and is trained as the version was
        that it started from.

        Raises:
            BadSetting: If more was forgotten since, which such a model would know.
        """
        classes = ModelSpec.of_card(serving.card["model"]).num_classes
        told = numbered(settings.forget_classes, card_names(serving.card), classes)
        forget = replace(settings, forget_classes=told).forget
        erased = self.ledger.erased(serving.federation)
        by = {erased.class_requests.get(c) for c in forget.classes}
        by |= {erased.client_requests.get(name) for name in forget.clients}
        if len(by) != 1 or (found := by.pop()) is None:
            return None
        row = self.ledger.request(found)
        if (set(row.classes), set(row.clients)) != (set(forget.classes), set(forget.clients)):
            whole = target_text(
                {"classes": row.classes, "clients": row.clients}, card_names(serving.card)
            )
            raise BadSetting(
                f"retrained models of what is forgotten must leave out all that {row.id} forgot "
                f"({whole}), got {target_text(vars(forget), card_names(serving.card))}; name all "
                "of it"
            )
        before = self.ledger.version(str(row.base_version)).card["erased"]
        since = (
            ForgetSpec("class", tuple({*erased.classes} - {*before["classes"], *row.classes})),
            ForgetSpec("client", (), tuple({*erased.clients} - {*before["clients"], *row.clients})),
        )
        named = [
            target_text(vars(one), card_names(serving.card))
            for one in since
            if one.classes or one.clients
        ]
        if named:
            what = target_text(vars(forget), card_names(serving.card))
            raise BadSetting(
                f"retrained models must not know what is forgotten, got a request for some that "
                f"leave {what} out, as {row.id} did, and would know {' and '.join(named)}, "
                "forgotten since; train some for the later request, which leave both out, and "
                "judge that again",
                see="efface forgotten",
            )
        return row

    def _situation(
        self, settings: RunSettings, base: VersionRow, data: Data | None
    ) -> planning.Situation:
        root = self.registry.lineage(base.id)[-1]
        samples = 0
        if settings.server_samples:
            samples = len(own_samples(settings, data)[0].labels)
        return planning.Situation(
            settings=settings,
            base=base,
            spec=ModelSpec.of_card(base.card["model"]),
            data=data,
            shares=shares(settings, data),
            kept=self.history(base.card),
            server_examples=samples,
            trained_on=self.ledger.request(root.request).settings["engine"],
            trained_by=root.card["hardware"],
            machine=hardware(),
        )

    def _as_forgotten(
        self, erased: Erased, base: VersionRow, forget: ForgetSpec
    ) -> planning.Chosen:
        """Return the method by which something was forgotten: it knows how to bring it back.

        Raises:
            BadSetting: If nothing of it was.
        """
        what = target_text(vars(forget), card_names(base.card))
        found = [
            *(erased.class_requests.get(label) for label in forget.classes),
            *(erased.client_requests.get(name) for name in forget.clients),
        ]
        for request in filter(None, found):
            row = self.ledger.request(request)
            return planning.Chosen(row.method, f"{what} was forgotten by it in {request}")
        raise BadSetting(
            f"relearning must name what has been forgotten, got {what}; see `efface requests`",
            see="efface requests",
        )

    def _check_clients(self, settings: RunSettings) -> None:
        for name in settings.forget.clients:
            if not settings.takes_part(name):
                raise BadSetting(
                    f"client must be one of those that take part "
                    f"({', '.join(settings.participants)}), got {name!r}"
                )
        if settings.engine == "superlink":
            return  # names are the SuperLink's; an unknown one is refused when the nodes are asked
        known = {f"client-{i}" for i in range(settings.num_clients)}
        for name in settings.forget.clients:
            if name not in known:
                raise BadSetting(
                    f"client must be one of client-0 to client-{settings.num_clients - 1}, "
                    f"got {name!r}"
                )

    def _edited(self) -> list[str]:
        """Return a warning if the ledger was changed by hand: it may lack what was erased."""
        problems = self.ledger.checked(self.home).problems
        if not problems:
            return []
        return [f"the ledger does not verify ({problems[0].text}); `efface audit` shows all"]

    def _write_down(
        self,
        settings: RunSettings,
        *,
        kind: Any,
        method: str,
        federation: str,
        forget: ForgetSpec,
        base: str | None = None,
    ) -> RequestRow:
        return self._interrupted(settings, kind, federation, base) or self.ledger.new_request(
            kind=kind,
            method=method,
            federation=federation,
            level=None if forget.level == "none" else forget.level,  # type: ignore[arg-type]
            classes=forget.classes,
            clients=forget.clients,
            settings=settings.plain(),
            base_version=base,
            asked_by=settings.asked_by,
            why=settings.why,
        )

    def _interrupted(
        self, settings: RunSettings, kind: str, federation: str, base: str | None
    ) -> RequestRow | None:
        """Return the request that was interrupted and asked for the same, if there is one."""
        for row in self.ledger.requests(federation, state="interrupted"):
            same = row.kind == kind and row.base_version == base
            if same and essence(row.settings) == essence(settings.plain()):
                return row
        return None

    # ---- work ----------------------------------------------------------------------------------

    def execute(
        self,
        request: ResolvedRequest,
        grid: NamedGrid,
        listener: Listener,
        ready: Callable[[], None] | None = None,
    ) -> Record:
        """Run a request that was written down and return its record; `ready` is called first.

        Raises:
            VerificationFailed: If the result did not forget.
            NotShown: If it is not shown to have forgotten and the request does not accept that.
            Unpublished: If all was done but the report.
            EffaceError: If the request cannot be carried out; it is then `failed`, or where clients
                are away or their fault may pass `interrupted`.
            KeyboardInterrupt, Unsettled: If it was stopped; it is then `interrupted`.
        """
        request_id = request.id
        self.ledger.start(request_id)
        self.home.working_on(request_id)
        try:
            for text in self.warnings(request.row):
                listener.note(text)
            if ready is not None:
                ready()
            return execute(Work(self, request, grid, listener))
        except BaseException as error:
            now = self.ledger.request(request_id)
            if now.state != "running":
                if isinstance(error, EffaceError):
                    raise
                raise _unpublished(now, error) from error
            goes_on = isinstance(error, Unsettled | DiskFull) or (
                isinstance(error, ClientLost) and error.passing
            )
            if isinstance(error, EffaceError) and not goes_on:
                self.ledger.fail(request_id, str(error), code=error.code)
            else:
                self._interrupt(request_id, error)
            raise
        finally:
            self.sweep()

    def _interrupt(self, request_id: str, error: BaseException) -> None:
        try:
            self.ledger.interrupt(request_id, _stop_reason(error), code=code_of(error))
        except DiskFull as full:
            # Not even that has room. Who looks next sees that nobody works on the request.
            error.add_note(f"the ledger could not be told: {full}")


# ---- checks of a request ------------------------------------------------------------------------


def inherited(settings: RunSettings, base: VersionRow) -> RunSettings:
    """Return `settings` with everything a version was trained with taken from its card."""
    # What an older release did not know, its versions were trained without: the default, whatever
    # the request says.
    own = {
        key: value
        for key, value in settings.plain().items()
        if key not in base.card["settings"] and key not in TRAINING
    }
    # A version may have named no clients, and a request those that they are.
    named = {"clients": base.card["settings"].get("clients") or settings.clients}
    merged = parse({**own, **base.card["settings"], **named})
    if settings.secure_aggregation and not merged.secure_aggregation:
        # Of what was trained without, a request can show less, never more.
        merged = replace(merged, secure_aggregation=True, keep_updates=0)
    # Data files may have moved since; where they were is only the default.
    data_dir = settings.data_dir or base.card["data_dir"]
    return moved(replace(merged, version=base.id, data_dir=data_dir))


def _with_participants(settings: RunSettings, base: VersionRow) -> RunSettings:
    """Return `settings` with the version's own clients, which a request may name again.

    Raises:
        BadSetting: If it names others: an erasure that passes by a client that was trained on
            would erase nothing there.
    """
    own, erased = parse(base.card["settings"]), base.card["erased"]["clients"]
    asked, trained = settings.participants, own.participants
    if trained and asked and not set(trained) - set(erased) <= set(asked) <= set(trained):
        raise BadSetting(
            f"clients must be those that {base.id} was trained on ({', '.join(trained)}), got "
            f"{', '.join(asked)}; leave --clients out"
        )
    if not trained and asked and len({*asked, *erased}) < own.num_clients:
        raise BadSetting(
            f"clients must be all {own.num_clients} that {base.id} was trained on, got "
            f"{', '.join(asked)}; leave --clients out"
        )
    named = ",".join(trained or (sorted({*asked, *erased}) if asked else ()))
    return replace(settings, clients=named)


def _check_not_forgotten(
    forget: ForgetSpec, base: VersionRow, erased: Erased, num_classes: int
) -> None:
    """Refuse to forget what a version has forgotten, or all but one class."""
    gone = base.card["erased"]
    classes = [c for c in forget.classes if c in gone["classes"]]
    clients = [c for c in forget.clients if c in gone["clients"]]
    if classes or clients:
        again = ForgetSpec(forget.level, tuple(classes), tuple(clients))
        what = target_text(vars(again), card_names(base.card))
        if again != forget:
            raise BadSetting(
                f"request must name only what version {base.id} knows, got {what}, which is "
                "forgotten already; leave that out"
            )
        by = (
            erased.class_requests.get(classes[0])
            if classes
            else erased.client_requests.get(clients[0])
        )
        raise AlreadyDone(
            f"version {base.id} has forgotten {what} already ({by or 'an earlier request'}); "
            "nothing was changed",
            request=by,
        )
    if forget.classes and len({*forget.classes, *gone["classes"]}) >= num_classes - 1:
        left = num_classes - len({*forget.classes, *gone["classes"]})
        raise BadSetting(f"request must leave at least two classes, got one that leaves {left}")


def _check_forgotten(settings: RunSettings, base: VersionRow) -> None:
    """Refuse to relearn what a version still knows, or what cannot be trained back."""
    if base.card["model"].get("pruned"):
        raise BadSetting(
            f"relearning must start from a version with all its channels, got {base.id}, "
            "whose pruned channels cannot be trained back; train again, or keep it so",
            see="efface requests",
        )
    if not METHODS[settings.method].needs.relearning:
        raise BadSetting(
            f"method {settings.method} must be able to relearn, got one that cannot: "
            "what it removes cannot be trained back; choose another method",
            see="efface methods",
        )
    forget, gone = settings.forget, base.card["erased"]
    known = ForgetSpec(
        forget.level,
        tuple(c for c in forget.classes if c not in gone["classes"]),
        tuple(c for c in forget.clients if c not in gone["clients"]),
    )
    if known.classes or known.clients:
        what = target_text(vars(known), card_names(base.card))
        raise BadSetting(
            f"relearning must name what version {base.id} has forgotten, got {what}; "
            "see `efface requests`",
            see="efface requests",
        )


# ---- errors ------------------------------------------------------------------------------------


def _stop_reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | SystemExit | EffaceError):
        return str(error) or "stopped by the operator"
    return f"{type(error).__name__}: {error}"


def _unpublished(row: RequestRow, error: BaseException) -> EffaceError:
    """Return what to say of an error after the request's end."""
    kind = kind_of(row.reason_code) if row.state == "failed" else Unpublished
    return kind(
        f"report of {row.id} must be written, got {type(error).__name__} {error}".rstrip()
        + f"; {row.id} is {row.state} ({row.result_version or row.reason}) all the same. "
        f"Write the report with: efface report {row.id}"
    )
