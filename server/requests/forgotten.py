"""What is forgotten now, and the checks that keep it so.

What was forgotten belongs to data and clients, not to a path, a partition or a seed. Within one
federation it is left out of training. Elsewhere a training that would touch it is refused, unless
it names the request that forgot it. Demonstrations are federations of their own, which nobody
relies on: what they erase binds nobody, and they are bound by nothing.

It is long because the checks of a training, of a version's data and the list must agree on what an
erasure is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from client.data.datasets import Data
from client.data.identity import class_identities, identity, overlap
from client.errors import BadSetting
from client.wire import ForgetSpec
from server.format import target_text
from server.requests.classes import card_names
from server.settings import RunSettings
from server.storage.ledger import Ledger, Pending, RequestRow, VersionRow
from server.storage.registry import DEMO_PREFIX

OVERLAP: Final = 0.25  # share of a class's images from which data hold it
NEW_NAME: Final = "--allow-forgotten"
SHARING: Final = ("dataset", "partition", "num-clients", "max-samples", "partition-seed")


@dataclass(frozen=True)
class Erasure:
    """A class or a client that a federation has forgotten and not relearned.

    Attributes:
        federation: Whose versions have forgotten it.
        spec: The one class or client.
        request: The request that forgot it.
        card: Card of the version that came of it.
        in_service: The version that serves the federation now.
    """

    federation: str
    spec: ForgetSpec
    request: RequestRow
    card: Mapping[str, Any]
    in_service: str | None

    @property
    def since(self) -> datetime | None:
        """When the request was done."""
        return self.request.finished


def erasures(ledger: Ledger) -> list[Erasure]:
    """Return all that is forgotten now, by federation in the order of their first versions."""
    found = []
    for federation in dict.fromkeys(row.federation for row in ledger.versions()):
        erased, serving = ledger.erased(federation), ledger.in_service(federation)
        named = [
            *((ForgetSpec("class", (c,)), erased.class_requests[c]) for c in erased.classes),
            *((ForgetSpec("client", (), (n,)), erased.client_requests[n]) for n in erased.clients),
        ]
        for spec, request in named:
            row = ledger.request(request)
            version = row.result_version or row.base_version
            card = {} if version is None else ledger.version(version).card
            found.append(
                Erasure(federation, spec, row, card, None if serving is None else serving.id)
            )
    return found


# ---- training -----------------------------------------------------------------------------------


def check_training(
    ledger: Ledger, settings: RunSettings, data: Data | None, federation: str
) -> list[Erasure]:
    """Refuse a training that would touch what is forgotten, and return what it may touch.

    Args:
        ledger: The home's.
        settings: The training's.
        data: The coordinator's data set, if it has one.
        federation: The training's.

    Raises:
        BadSetting: If something forgotten would be learned again that `allow-forgotten` does not
            name, or it names what is not touched.
    """
    if federation.startswith(DEMO_PREFIX):
        return []
    touched = [e for e in erasures(ledger) if _touches(settings, data, federation, e)]
    allowed = _allowed(settings)
    requests = list(dict.fromkeys(erasure.request.id for erasure in touched))
    if unknown := [name for name in allowed if name not in requests]:
        raise BadSetting(
            "allow-forgotten must name requests whose forgetting this training would undo "
            f"({', '.join(requests) or 'none'}), got {unknown[0]}; see `efface forgotten`"
        )
    _refuse([erasure for erasure in touched if erasure.request.id not in allowed], federation)
    return touched


def check_clients(
    ledger: Ledger, row: RequestRow, settings: RunSettings, names: Iterable[str]
) -> None:
    """Refuse a training of real clients of which one was forgotten elsewhere, by its name.

    Raises:
        BadSetting: Naming the request.
    """
    if settings.simulated or row.federation.startswith(DEMO_PREFIX):
        return
    online, allowed = set(names), _allowed(settings)
    _refuse(
        [
            erasure
            for erasure in erasures(ledger)
            if erasure.federation != row.federation
            and not erasure.federation.startswith(DEMO_PREFIX)
            and erasure.request.settings["engine"] == "superlink"
            and online & set(erasure.spec.clients)
            and erasure.request.id not in allowed
        ],
        row.federation,
    )


def check_names(
    ledger: Ledger, row: RequestRow, settings: RunSettings, names: Sequence[str]
) -> None:
    """Refuse a training whose sites' class names are not those that were forgotten by number.

    Args:
        ledger: The home's.
        row: The training's.
        settings: Its settings.
        names: Those on which the sites agree; none where nobody knows them.

    Raises:
        BadSetting: Naming the request that forgot the class.
    """
    allowed = _allowed(settings)
    _refuse(
        [
            erasure
            for erasure in erasures(ledger)
            if names
            and erasure.federation == row.federation
            and erasure.spec.level == "class"
            and erasure.request.id not in allowed
            and _renamed(names, erasure)
        ],
        row.federation,
    )


def _allowed(settings: RunSettings) -> list[str]:
    return [part.strip() for part in settings.allow_forgotten.split(",") if part.strip()]


def _touches(settings: RunSettings, data: Data | None, federation: str, erasure: Erasure) -> bool:
    if erasure.federation.startswith(DEMO_PREFIX):
        return False
    then = erasure.request.settings
    if erasure.federation == federation:
        # Left out, a class by its number and a client by its name. But where the class has another
        # number now, or a simulated client's name stands for another share, others would be.
        if erasure.spec.level == "class":
            return data is not None and (
                _renumbered(data, erasure) or _renamed(data.class_names, erasure)
            )
        shared = erasure.card.get("settings", {})
        now = settings.plain()
        return (
            settings.simulated
            and any(shared.get(key, now[key]) != now[key] for key in SHARING)
            and _same_data(settings, data, erasure)
        )
    if not settings.simulated and then["engine"] == "superlink":
        # Real nodes have data of their own: they are those that one SuperLink reaches.
        there = str(then.get("connection") or "efface")
        return settings.superlink == there or _same_data(settings, data, erasure)
    return _same_data(settings, data, erasure)


def _renumbered(data: Data, erasure: Erasure) -> bool:
    by_class = erasure.card.get("class_sha256", {})
    now = class_identities(data)
    return any(
        digest == by_class.get(str(then)) and label not in erasure.spec.classes
        for then in erasure.spec.classes
        for label, digest in now.items()
    )


def _renamed(names: Sequence[str], erasure: Erasure) -> bool:
    """Return whether the number of a forgotten class means another class now."""
    then = card_names(erasure.card)
    if then is None:  # an older version's card has numbers alone
        return False
    for label in erasure.spec.classes:
        now = names[label] if label < len(names) else None
        if now != then[label] and (now is not None or then[label] in names):
            return True
    return False


def _same_data(settings: RunSettings, data: Data | None, erasure: Erasure) -> bool:
    """Return whether data hold what was forgotten: its class's images, or a client's among all."""
    if data is None:
        return False
    then = erasure.card.get("data_sha256")
    if then is None:  # an older version's card does not have it
        return bool(erasure.card.get("settings", {}).get("dataset") == settings.dataset)
    by_class = erasure.card.get("class_sha256", {})
    there = {by_class.get(str(label)) for label in erasure.spec.classes}
    if then == identity(data) or there & set(class_identities(data).values()):
        return True
    # Some images more, fewer or altered make no other data.
    sketches = erasure.card.get("class_sketch", {})
    named = erasure.spec.classes or tuple(int(label) for label in sketches)
    return any(overlap(data, sketches.get(str(label), ())) >= OVERLAP for label in named)


def _refuse(touched: Sequence[Erasure], federation: str) -> None:
    if not touched:
        return
    what = ", ".join(
        f"{_words(e)} (forgotten by {e.request.id} in federation {e.federation!r})" for e in touched
    )
    requests = dict.fromkeys(e.request.id for e in touched)
    elsewhere = [e.federation for e in touched if e.federation != federation]
    go_on = (
        f"go on in the federation where it is left out (--federation {elsewhere[0]!r}, or the "
        "settings of its training)"
        if elsewhere
        else "train on the data as they were numbered and shared out then, so that it is left out"
    )
    raise BadSetting(
        f"training must leave out what is forgotten, got data that hold {what}; {go_on}, or have "
        "it learned again, which the ledger keeps: "
        + " ".join(f"{NEW_NAME} {request}" for request in requests)
    )


def _words(erasure: Erasure) -> str:
    return target_text(vars(erasure.spec), card_names(erasure.card))


def learned_again(touched: Sequence[Erasure]) -> list[str]:
    """Return what is said of a training that was allowed to touch what is forgotten."""
    return [
        f"{_words(e)}, forgotten by {e.request.id} in federation {e.federation!r}, is learned "
        f"again, as {NEW_NAME} {e.request.id} asked for"
        for e in touched
    ]


# ---- a version's data ---------------------------------------------------------------------------


def check_data(settings: RunSettings, base: VersionRow, data: Data | None) -> list[str]:
    """Refuse data that are not those of a version, and return what could not be checked.

    Of real clients the coordinator has test images at most: where these are others now, it is said.

    Raises:
        BadSetting: If they have another content.
    """
    if data is None:
        return []
    then, now = base.card.get("data_sha256"), identity(data)
    where = settings.data or settings.dataset
    if then is None:
        if settings.data:
            return [
                f"{base.id} keeps no fingerprint of its data: whether {where} holds the same was "
                "not checked"
            ]
        return []
    if then == now:
        return []
    text = (
        f"data must be those that {base.id} was trained on (SHA-256 {then[:12]}...), got others "
        f"({now[:12]}...) in {where}"
    )
    if settings.simulated or settings.data:
        raise BadSetting(
            f"{text}; put the former ones back, or say where they lie now with --data, or train "
            "a new version"
        )
    return [text]


# ---- the list -----------------------------------------------------------------------------------


def listed(ledger: Ledger) -> list[dict[str, Any]]:
    """Return what `efface forgotten` shows: a class or client each, with its pending clean-up."""
    pending = ledger.pending()
    serving = [
        row
        for row in ledger.versions()
        if row.state == "in-service" and not row.federation.startswith(DEMO_PREFIX)
    ]
    found = []
    for erasure in erasures(ledger):
        row = erasure.request
        found.append(
            {
                "federation": erasure.federation,
                "version": erasure.in_service,
                "level": erasure.spec.level,
                "classes": list(erasure.spec.classes),
                "clients": list(erasure.spec.clients),
                "request": row.id,
                "since": None if row.finished is None else row.finished.isoformat(),
                "method": row.method,
                "pending": [p.client for p in pending if p.request == row.id],
                "known_by": _known_by(erasure, serving),
                "class_names": list((erasure.card.get("data") or {}).get("class_names") or ()),
                "data_sha256": erasure.card.get("data_sha256"),
                "demonstration": erasure.federation.startswith(DEMO_PREFIX),
            }
        )
    return found


def _known_by(erasure: Erasure, serving: Sequence[VersionRow]) -> list[str]:
    """Return the versions in service elsewhere that were trained on the same data with it."""
    then = erasure.card.get("data_sha256")
    if then is None or erasure.federation.startswith(DEMO_PREFIX):
        return []
    return [
        row.id
        for row in serving
        if row.federation != erasure.federation
        and row.card.get("data_sha256") == then
        and not set(erasure.spec.classes) & set(row.card["erased"]["classes"])
        and not set(erasure.spec.clients) & set(row.card["erased"]["clients"])
    ]


def pending_text(pending: Sequence[Pending], ledger: Ledger) -> list[str]:
    """Return what waits at clients that were offline, a sentence each."""
    return [
        f"{p.client} was offline when {p.request} ({target(ledger.request(p.request))}) ended: it "
        "has no tombstone of it and may hold synthetic examples, until a request reaches it"
        for p in pending
    ]


def target(row: RequestRow) -> ForgetSpec:
    """Return what a request names."""
    return ForgetSpec(str(row.level), row.classes, row.clients)
