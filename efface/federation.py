"""A federation: the clients that learn together, and the versions that come of it.

It is long because every call declares its arguments and says what they mean.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from client.errors import BadSetting, EffaceError
from efface import asking, source
from efface.asking import ClassName, Setting
from efface.listed import Erased, Plan
from efface.progress import Watcher, as_before, watching
from efface.result import Result
from efface.source import Source
from efface.version import Version
from server import runner
from server.evidence.record import Record
from server.evidence.scores import ModelScores
from server.evidence.serial import read
from server.requests import derived, forgotten, records
from server.requests.asked import asked, check_federation
from server.requests.evaluation import evaluated
from server.requests.execution import VerificationFailed, refusal
from server.requests.intake import AlreadyDone
from server.settings import RunSettings, federation_name
from server.storage.home import NoSuchHome, home_path
from server.storage.ledger import Ledger, RequestRow, VersionRow
from server.storage.opened import give_up, opened
from server.storage.registry import Arrays, Registry
from server.storage.seals import EditedError
from server.verify_options import OF_VERIFY

log = logging.getLogger("efface.api")

Compare = Literal["retrain"]
Accept = Literal["not-shown"]


class Federation:
    """The clients that learn together, and the home where the coordinator keeps what comes of it.

    Make one with `inline`, `ray` or `superlink`. Nothing is written or started until `train`. The
    same arguments later, in another process or on the command line, mean the same federation:
    versions, requests and what was forgotten are in the home, not in this object.

    Settings have the names of the command line's options, with `_` for `-`: `num_clients`,
    `partition`, `local_steps`. A name or value that is wrong raises `BadSetting` before any work.

    Example:
        ```python
        import efface

        federation = efface.Federation.inline("digits", num_clients=3, home="digits-home")
        version = federation.train(rounds=8)
        result = federation.forget(class_=9, compare="retrain")
        print(result.verdict)
        ```
    """

    def __init__(
        self,
        data: Source,
        *,
        engine: Literal["inline", "ray", "superlink"] = "inline",
        home: str | os.PathLike[str] | None = None,
        progress: Watcher = None,
        **settings: Setting,
    ) -> None:
        """Describe a federation; `inline`, `ray` and `superlink` say more by their names.

        Args:
            data: What is learned; see `inline`.
            engine: Where the clients run.
            home: Folder of versions, requests and reports; EFFACE_HOME or ~/.efface if None.
            progress: A function that is called with a `Progress` after every round; True for bars
                in the terminal, False for silence, None for bars where standard error is a
                terminal. What the function raises stops the request; the same call goes on.
            settings: Of data, model, training and machine, as `efface train --help` lists them.

        Raises:
            BadSetting: If a setting is unknown or breaks its rule.
        """
        connection = settings.pop("connection", "") if engine == "superlink" else ""
        self._settings: dict[str, Any] = {
            **source.settings_of(data),
            **_without_data(data, asking.settings("Federation", settings)),
            "engine": engine,
            "connection": connection,
        }
        self._home = home_path(home)
        self._progress = progress
        described = self._asked("train", {})
        check_federation(described.federation)
        described.check_data()
        self._name = federation_name(described.rooted())

    @classmethod
    def inline(
        cls,
        data: Source,
        *,
        num_clients: int = 10,
        home: str | os.PathLike[str] | None = None,
        progress: Watcher = None,
        **settings: Setting,
    ) -> Federation:
        """Return a federation whose clients are simulated in this process.

        Args:
            data: "digits" or another published data set (`efface data list`), "npz:PATH" or
                "folder:PATH"; or a task of your own, by its class or as "chest.py:ChestXray", for
                which the setting `dataset` then names what its `data` reads.
            num_clients: Clients to share the data among; `partition` says how.
            home: Folder of versions, requests and reports; EFFACE_HOME or ~/.efface if None.
            progress: See `Federation`.
            settings: Likewise.

        Raises:
            BadSetting: If a setting is unknown or breaks its rule.

        Example:
            ```python
            federation = efface.Federation.inline(
                "npz:scans.npz", num_clients=4, partition="dirichlet:0.1", model="resnet20"
            )
            ```
        """
        return cls(
            data,
            engine="inline",
            home=home,
            progress=progress,
            num_clients=num_clients,
            **settings,
        )

    @classmethod
    def ray(
        cls,
        data: Source,
        *,
        num_clients: int = 10,
        home: str | os.PathLike[str] | None = None,
        progress: Watcher = None,
        **settings: Setting,
    ) -> Federation:
        """Return a federation whose clients are simulated on Ray: one machine, or a cluster.

        The same seed gives the same weights as `inline`. It needs the extra `simulation`.

        Args:
            data: See `inline`.
            num_clients: Clients to share the data among.
            home: Folder of versions, requests and reports; EFFACE_HOME or ~/.efface if None.
            progress: See `Federation`.
            settings: Likewise; `client_gpus=0.25` lets four clients share a GPU.

        Raises:
            BadSetting: If a setting is unknown or breaks its rule.

        Example:
            ```python
            federation = efface.Federation.ray("cifar10", num_clients=100, client_gpus=0.1)
            ```
        """
        return cls(
            data, engine="ray", home=home, progress=progress, num_clients=num_clients, **settings
        )

    @classmethod
    def superlink(
        cls,
        connection: str,
        data: Source = "none",
        *,
        home: str | os.PathLike[str] | None = None,
        progress: Watcher = None,
        **settings: Setting,
    ) -> Federation:
        """Return the federation of real clients that a running SuperLink reaches.

        Args:
            connection: The SuperLink's name in Flower's config.toml.
            data: The coordinator's own test data, as for `inline`; "none" where only the clients
                have data, and then `model_classes`, `model_channels` and `model_image_size`.
            home: Folder of versions, requests and reports; EFFACE_HOME or ~/.efface if None.
            progress: See `Federation`.
            settings: Likewise; `num_clients` to wait for, or `clients=["site-a", "site-b"]`.

        Raises:
            BadSetting: If a setting is unknown or breaks its rule.

        Example:
            ```python
            federation = efface.Federation.superlink(
                "hospitals",
                clients=["site-a", "site-b", "site-c"],
                model_classes=2,
                model_channels=1,
                model_image_size=64,
            )
            ```
        """
        return cls(
            data,
            engine="superlink",
            home=home,
            progress=progress,
            connection=connection,
            **settings,
        )

    # ---- work ----------------------------------------------------------------------------------

    def train(
        self,
        *,
        allow_forgotten: str | Iterable[str] | None = None,
        by: str = "",
        why: str = "",
        progress: Watcher = None,
        **settings: Setting,
    ) -> Version:
        """Train a first version over all clients and put it in service.

        Ctrl-C stops it; the same call goes on where it was, `abort` gives it up.

        Args:
            allow_forgotten: Requests whose forgetting this training may undo (`forgotten`).
            by: Who asked; kept in the ledger.
            why: Why it was asked; kept in the ledger.
            progress: Instead of the federation's own.
            settings: Of model, training and machine, such as `rounds=20`, `lr=0.1`, `seed=1`; they
                win over those given to the federation. Without `scale`, no synthetic examples are
                made of a task for which none can be.

        Returns:
            The new version; `version.result` has its record.

        Raises:
            BadSetting: If a setting is wrong, or something forgotten would be learned again.
            EffaceError: If it cannot be carried out.

        Example:
            ```python
            version = federation.train(rounds=8, local_steps=10)
            version.scores.retain_accuracy   # percent
            ```
        """
        values = asking.settings("train", settings)
        values["allow-forgotten"] = ",".join(asking.texts("allow_forgotten", allow_forgotten))
        record = self._run(self._asked("train", values, by=by, why=why), progress)
        return self.version(str(record.model_version))

    def forget(
        self,
        *,
        class_: ClassName | None = None,
        classes: ClassName | Iterable[ClassName] | None = None,
        client: str | None = None,
        clients: str | Iterable[str] | None = None,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
        compare: Compare | None = None,
        accept: Accept | None = None,
        trial: bool = False,
        version: Version | str | None = None,
        by: str = "",
        why: str = "",
        progress: Watcher = None,
        **settings: Setting,
    ) -> Result:
        """Make a version forget classes or clients, check it, and put it in service if it passes.

        A verdict of "failed" or "not-shown" is no error: the result says so, its version is turned
        away and the one before stays in service. What has been forgotten already is not forgotten
        again: the result is that of the request that did, with `changed` False. Ctrl-C stops it;
        the same call goes on where it was.

        Args:
            class_: A class, by its name, or as a whole number by its number.
            classes: Several classes.
            client: A client.
            clients: Several clients.
            method: Its name (`efface methods`); "auto" for the shortest that can serve the
                request; quickdrop-calibrated if None, or where that cannot serve it as "auto".
            options: The method's hyper-parameters, such as `{"recover_rounds": 2}`.
            compare: "retrain" trains without the data too, as the yardstick that a verdict needs.
            accept: "not-shown" puts the version in service though too little was measured to say.
            trial: Whether to keep the result whatever its verdict, and out of service.
            version: Where to start; the one in service if None.
            by: Who asked; kept in the ledger.
            why: Why it was asked; kept in the ledger.
            progress: Instead of the federation's own.
            settings: Of the request and the machine, such as `max_forget_accuracy=3.0`,
                `destroy=True`, `data="moved/scans.npz"`.

        Returns:
            What came of it.

        Raises:
            BadSetting: If something asked for is unknown or cannot be; nothing has started.
            EffaceError: If it cannot be carried out.

        Example:
            ```python
            result = federation.forget(
                class_=9, compare="retrain", by="Data protection", why="Request 17"
            )
            if not result.verdict:
                print(result.verdict)
            ```
        """
        asked_for = self._change(
            "forget",
            settings,
            named=(class_, classes, client, clients),
            options=options,
            version=version,
            by=by,
            why=why,
            own={"method": method, "compare": compare, "accept": accept, "trial": trial},
        )
        try:
            return Result(self, self._run(asked_for, progress))
        except AlreadyDone as done:
            if done.request is None:
                raise
            return self._unchanged(done.request)
        except VerificationFailed as refused:
            if refused.record is None:
                raise
            return Result(self, refused.record)

    def relearn(
        self,
        *,
        class_: ClassName | None = None,
        classes: ClassName | Iterable[ClassName] | None = None,
        client: str | None = None,
        clients: str | Iterable[str] | None = None,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
        trial: bool = False,
        version: Version | str | None = None,
        by: str = "",
        why: str = "",
        progress: Watcher = None,
        **settings: Setting,
    ) -> Result:
        """Bring back classes or clients that a version has forgotten.

        Args:
            class_: See `forget`.
            classes: Likewise.
            client: Likewise.
            clients: Likewise.
            method: Its name; "auto" for the one that forgot; quickdrop-calibrated if None, or
                where that cannot serve as "auto".
            options: The method's hyper-parameters.
            trial: Whether to keep the result out of service.
            version: Where to start; the one in service if None.
            by: Who asked; kept in the ledger.
            why: Why it was asked; kept in the ledger.
            progress: Instead of the federation's own.
            settings: Of the request and the machine.

        Returns:
            What came of it; it has no verdict.

        Raises:
            BadSetting: If it was not forgotten, or cannot be brought back; nothing has started.
            EffaceError: If it cannot be carried out.

        Example:
            ```python
            federation.relearn(class_=9).version
            ```
        """
        asked_for = self._change(
            "relearn",
            settings,
            named=(class_, classes, client, clients),
            options=options,
            version=version,
            by=by,
            why=why,
            own={"method": method, "trial": trial},
        )
        return Result(self, self._run(asked_for, progress))

    def yardstick(
        self,
        *,
        class_: ClassName | None = None,
        classes: ClassName | Iterable[ClassName] | None = None,
        client: str | None = None,
        clients: str | Iterable[str] | None = None,
        count: int = 3,
        version: Version | str | None = None,
        by: str = "",
        why: str = "",
        progress: Watcher = None,
        **settings: Setting,
    ) -> Result:
        """Retrain models without classes or clients, for verdicts to be compared with.

        None of them serves. `forget` of the same with `compare="retrain"` reads them; from three
        on their spread sets the limits of its verdict. Those that are there already are not trained
        again, so that the same call goes on where it was stopped.

        Args:
            class_: See `forget`.
            classes: Likewise.
            client: Likewise.
            clients: Likewise.
            count: How many there are to be, from 1 to 100.
            version: Whose training is repeated; the one in service if None.
            by: Who asked; kept in the ledger.
            why: Why it was asked; kept in the ledger.
            progress: Instead of the federation's own.
            settings: Of the machine.

        Returns:
            What came of it; it has no verdict and no version. `record.stock` has what was measured
            of each.

        Raises:
            BadSetting: If it cannot be; nothing has started.
            EffaceError: If it cannot be carried out.

        Example:
            ```python
            federation.yardstick(class_=9, count=5)
            federation.forget(class_=9, compare="retrain").verdict
            ```
        """
        asked_for = self._change(
            "yardstick",
            settings,
            named=(class_, classes, client, clients),
            options=None,
            version=version,
            by=by,
            why=why,
            own={"count": count},
        )
        return Result(self, self._run(asked_for, progress))

    def plan(
        self,
        *,
        class_: ClassName | None = None,
        classes: ClassName | Iterable[ClassName] | None = None,
        client: str | None = None,
        clients: str | Iterable[str] | None = None,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
        compare: Compare | None = None,
        accept: Accept | None = None,
        trial: bool = False,
        version: Version | str | None = None,
        by: str = "",
        why: str = "",
        **settings: Setting,
    ) -> Plan:
        """Return what `forget` with the same arguments would take; nothing is written or started.

        Args:
            class_: See `forget`.
            classes: Likewise.
            client: Likewise.
            clients: Likewise.
            method: Likewise; "auto" says which it would be, and why.
            options: Likewise.
            compare: Likewise.
            accept: Likewise.
            trial: Likewise.
            version: Likewise.
            by: Likewise.
            why: Likewise.
            settings: Likewise.

        Raises:
            BadSetting: If the request would be refused.
            AlreadyDone: If it has been forgotten already.

        Example:
            ```python
            plan = federation.plan(class_=9, method="auto")
            print(plan.method, plan.rounds, plan.seconds)
            ```
        """
        asked_for = self._change(
            "forget",
            settings,
            named=(class_, classes, client, clients),
            options=options,
            version=version,
            by=by,
            why=why,
            own={"method": method, "compare": compare, "accept": accept, "trial": trial},
        )
        return Plan.of(runner.plan(asked_for))

    def evaluate(
        self,
        version: Version | str | None = None,
        *,
        relearning: ClassName | Iterable[ClassName] | None = None,
        data: str = "",
    ) -> ModelScores:
        """Measure a version on its data set's test part, in percent.

        Args:
            version: Which; the one in service if None.
            relearning: Classes of which to measure, too, how fast they come back.
            data: Where the version's data lie now, if they have moved.

        Returns:
            Accuracies, the classes' own in their order, and the curve if it was asked for.

        Raises:
            BadSetting: If a class is unknown.
            EffaceError: If there is no such version, or no test image here.

        Example:
            ```python
            scores = federation.evaluate("v0002", relearning=9)
            scores.forget_accuracy, scores.curve_mean
            ```
        """
        name = self._resolved(version)
        home, ledger = opened(str(self._home))
        with ledger, as_before():
            found = evaluated(home, ledger, name, asking.class_texts(relearning), data)
        for text in (*found.notes, *found.cautions):
            log.info("%s: %s", name, text)
        return read(ModelScores, {**found.scores, "relearning_curve": found.curve}, "scores")

    # ---- what there is -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name under which its versions and erasures belong together."""
        return self._name

    @property
    def home(self) -> Path:
        """Folder of versions, requests and reports."""
        return self._home

    @property
    def in_service(self) -> Version | None:
        """The version that serves now; None before the first training."""
        ledger = self._ledger()
        if ledger is None:
            return None
        with ledger:
            row = ledger.in_service(self._name)
        return None if row is None else Version(self, row)

    def versions(self) -> list[Version]:
        """Return all its versions, the oldest first.

        Example:
            ```python
            for version in federation.versions():
                print(version.id, version.state, version.has_forgotten)
            ```
        """
        ledger = self._ledger()
        if ledger is None:
            return []
        with ledger:
            return [Version(self, row) for row in ledger.versions(self._name)]

    def version(self, name: str) -> Version:
        """Return a version by its name, such as "v0001".

        Raises:
            EffaceError: If there is no such version, or another federation made it.
        """
        return Version(self, self._row(name))

    def requests(self, state: str | None = None) -> list[RequestRow]:
        """Return all its requests, the oldest first: who asked for what, and what came of it.

        Args:
            state: Only those "received", "running", "done", "failed", "interrupted" or "aborted".

        Example:
            ```python
            [(row.id, row.kind, row.state, row.asked_by) for row in federation.requests()]
            ```
        """
        ledger = self._ledger()
        if ledger is None:
            return []
        with ledger:
            return ledger.requests(self._name, state=state)  # type: ignore[arg-type]

    def result(self, request: str) -> Result:
        """Return what came of a request, from its record.

        Args:
            request: Its name, such as "r0002".

        Raises:
            EffaceError: If there is no such request, it has no record, for it has not ended or
                failed before its end, or its record was altered since.

        Example:
            ```python
            federation.result("r0002").verdict
            ```
        """
        home, ledger = opened(str(self._home))
        with ledger:
            row = self._own(ledger.request(request))
            found = records.verified(home, ledger, row)
        if found is None:
            raise EffaceError(
                f"request {row.id} must have a record, got none: it is {row.state}"
                + (f" ({row.reason})" if row.reason else "")
            )
        return Result(self, found)

    def abort(self, request: str) -> RequestRow:
        """Give up a request that was interrupted or never began; its base version stays.

        Args:
            request: Its name, such as "r0003".

        Returns:
            The request as it is now.

        Raises:
            EffaceError: If there is no such request, or it runs, or has ended.

        Example:
            ```python
            for row in federation.requests("interrupted"):
                federation.abort(row.id)
            ```
        """
        _, ledger = opened(str(self._home))
        with ledger:
            self._own(ledger.request(request))
        _, ledger, row = give_up(self._home, request)
        ledger.close()
        return row

    def forgotten(self) -> list[Erased]:
        """Return all that is forgotten now, a class or client each.

        Example:
            ```python
            [(one.classes, one.clients, one.request) for one in federation.forgotten()]
            ```
        """
        ledger = self._ledger()
        if ledger is None:
            return []
        with ledger:
            found = forgotten.listed(ledger)
        return [Erased.of(one) for one in found if one["federation"] == self._name]

    def __repr__(self) -> str:
        """Return engine, name and home."""
        return f"<Federation {self._name!r} on {self._settings['engine']}, home {self.home}>"

    # ---- within --------------------------------------------------------------------------------

    def _asked(
        self,
        mode: str,
        values: Mapping[str, Any],
        *,
        version: Version | str | None = None,
        classes: list[str] | None = None,
        clients: list[str] | None = None,
        options: list[str] | None = None,
        by: str = "",
        why: str = "",
    ) -> RunSettings:
        made = asked(
            {**self._settings, **values},
            mode=mode,
            home=str(self._home),
            classes=classes or (),
            clients=clients or (),
            options=options or (),
            asked_by=by,
            why=why,
        )
        # What is wrong with a request itself is said whether or not there is a version.
        return made if mode == "train" else replace(made, version=self._resolved(version))

    def _change(
        self,
        mode: Literal["forget", "relearn", "yardstick"],
        settings: Mapping[str, Setting],
        *,
        named: tuple[Any, Any, Any, Any],
        options: Mapping[str, Any] | None,
        version: Version | str | None,
        by: str,
        why: str,
        own: Mapping[str, Any],
    ) -> RunSettings:
        """Return the settings of a request on a version; those of `own` that are None are left out.

        Args:
            named: A class, classes, a client and clients, as they were given.
        """
        class_, classes, client, clients = named
        given = {key: value for key, value in own.items() if value is not None}
        return self._asked(
            mode,
            {**asking.settings(mode, settings), **given},
            version=version,
            classes=asking.class_texts(_one_of("class", class_, "classes", classes)),
            clients=asking.texts("client", _one_of("client", client, "clients", clients)),
            options=asking.option_texts(options),
            by=by,
            why=why,
        )

    def _run(self, settings: RunSettings, progress: Watcher) -> Record:
        watcher = self._progress if progress is None else progress
        with as_before(), watching(watcher) as listener:
            return runner.run(settings, listener)

    def _unchanged(self, request: str) -> Result:
        found = self.result(request)
        return Result(self, found.record, changed=False)

    def _resolved(self, version: Version | str | None) -> str:
        """Return the id of the version that is meant: this federation's own in service if None."""
        home, ledger = opened(str(self._home))
        named = version.id if isinstance(version, Version) else version
        with ledger:
            return Registry(home, ledger, sweep=False).resolve(named, self._name).id

    def _own(self, row: RequestRow) -> RequestRow:
        """Return a request if it is this federation's.

        Raises:
            EffaceError: If it is another's.
        """
        if row.federation != self._name:
            raise EffaceError(
                f"request must belong to {self._name}, got {row.id} of {row.federation}"
            )
        return row

    def _row(self, name: str) -> VersionRow:
        home, ledger = opened(str(self._home))
        with ledger:
            return Registry(home, ledger, sweep=False).resolve(name, self._name)

    def _weights(self, row: VersionRow, allowed: Sequence[str] = ()) -> Arrays:
        home, ledger = opened(str(self._home))
        with ledger:
            derived.check_use(ledger, row, allowed, by=derived.by_argument)
            return Registry(home, ledger, sweep=False).load(row)[0]

    def _page(self, request: str, path: Path | None) -> Path:
        home, ledger = opened(str(self._home))
        with ledger:
            return records.page(home, ledger, ledger.request(request), path)

    def _verified(self, request: str, told: Mapping[str, Any], progress: Watcher) -> Record:
        """Judge a request again, write down what is found, and return that record."""
        watcher = self._progress if progress is None else progress
        reached = {key: self._settings[key] for key in OF_VERIFY if key in self._settings}
        with as_before(), watching(watcher) as listener:
            found = runner.verify(str(self._home), request, {**reached, **told}, listener)
        if found.again is None:
            raise EditedError(f"{found.problems[0].sentence}; see `efface audit`")
        for note in found.notes:
            log.info("%s: %s", request, note)
        return found.again

    def _refusal(self, record: Record) -> EffaceError:
        _, ledger = opened(str(self._home))
        with ledger:
            return refusal(record, ledger.request(str(record.request)).reason or "")

    def _ledger(self) -> Ledger | None:
        """Return the ledger to look at; None where there is no home yet."""
        with suppress(NoSuchHome):
            return opened(str(self._home))[1]
        return None


def _one_of(name: str, one: Any, plural: str, several: Any) -> Any:
    """Return what one of two arguments names.

    Raises:
        BadSetting: If both are given.
    """
    if one is not None and several is not None:
        raise BadSetting(f"request must name {name} or {plural}, got both; give one of them")
    return several if one is None else one


def _without_data(data: Source, given: dict[str, Any]) -> dict[str, Any]:
    """Return settings that do not say a second time what the data are.

    Raises:
        BadSetting: If they do.
    """
    if "dataset" in given and "task" not in source.settings_of(data):
        raise BadSetting(f"dataset must be given once, got {data!r} and {given['dataset']!r}")
    return given
