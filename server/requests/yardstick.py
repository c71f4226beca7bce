"""Retrained: models that never saw the forget set, each trained once for the same inputs and kept.

Number 0 has the request's own seed; the others' seeds are derived from it, and nothing but its seed
sets one apart. Together they are the stock that a verdict reads (`server.evidence.spread`).

It is long because what a retrained model depends on decides what is found, kept and destroyed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from flwr.app import ArrayRecord

from client.files import overwrite, write_atomic
from client.seeds import derive
from client.wire import ForgetSpec
from server.evidence.measures import Judge
from server.evidence.scores import Curve, ModelScores
from server.evidence.serial import read
from server.evidence.stock import Retraining
from server.nodes.federation import Cost, GridFederation, from_numpy, to_numpy
from server.provenance import code
from server.requests.costs import timeline
from server.settings import RunSettings
from server.storage.ledger import Erased
from server.storage.registry import Arrays, RegistryError, note_of, pack, unpack
from server.storage.seals import EditedError

CODE: Final = "strategies.methods.retraining"
PATTERN: Final = "retrained-*.safetensors"
MOST: Final = 100  # retrained models of one request


@dataclass(frozen=True)
class Yardstick:
    """One retrained model: its number and seed, its scores, what its training cost, whether it was
    in the cache, its weights, and their file and SHA-256."""

    scores: ModelScores
    cost: Cost
    cached: bool
    weights: ArrayRecord
    number: int = 0
    seed: int = 0
    file: str | None = None
    sha256: str | None = None

    @property
    def measured(self) -> Retraining:
        """What the record keeps of it; its rounds are told of number 0 alone."""
        return Retraining(
            self.number,
            self.seed,
            replace(self.scores, timeline=None),
            file=self.file,
            sha256=self.sha256,
        )


def seed_of(seed: int, number: int) -> int:
    """Return the seed of one retrained model of a request with this seed."""
    return derive(seed, "yardstick", number) if number else seed


def inputs_of(
    settings: RunSettings, model: Mapping[str, Any], federation: GridFederation, name: str
) -> dict[str, Any]:
    """Return all that a retraining depends on, as JSON values.

    Args:
        settings: Of the request.
        model: The network's specification.
        federation: Says what is forgotten, what was erased, and who holds what.
        name: The federation's: two may share every setting, and a site's data may change.
    """
    without = {
        key: value
        for key, value in settings.training().items()
        if key not in ("scale", "distill-every", "distill-fraction", "keep-updates")
        and not key.startswith("image-")
    }
    return {
        "training": without,
        "model": dict(model),
        "forget": asdict(federation.forget),
        "erased": [federation.common["erased_classes"], federation.common["erased_clients"]],
        "code": code(CODE),
        "federation": name,
        "data": federation.class_counts(),
    }


def of_number(inputs: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return what one retrained model depends on, from what number 0 does."""
    training = inputs["training"]
    seed = seed_of(int(training["seed"]), number)
    return {**inputs, "training": {**training, "seed": seed}}


def path_of(cache: Path, inputs: Mapping[str, Any]) -> Path:
    """Return the file of one retrained model, by what it depends on (`inputs_of`)."""
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    return cache / f"retrained-{digest}.safetensors"


def sha256(arrays: Arrays) -> str:
    """Return the SHA-256 of a retrained model's weights, without what its training took."""
    return hashlib.sha256(pack(arrays)).hexdigest()


def loaded(path: Path, sealed: Mapping[str, str]) -> tuple[Arrays, Any, str]:
    """Return a retrained model's weights, its note, and the SHA-256 of the weights.

    Args:
        path: Its file.
        sealed: What sealed records have of it, by the file's name (`records.stock_hashes`).

    Raises:
        EditedError: If it is another model than the newest record read.
        RegistryError: If it cannot be read.
    """
    arrays, note = unpack(path.read_bytes(), path)
    found = sha256(arrays)
    if (wanted := sealed.get(path.name, found)) != found:
        raise EditedError(
            f"retrained model must have the weights of the SHA-256 {wanted[:12]}... that the "
            f"record of its last request has, got {found[:12]}... in {path}: it was put there by "
            "hand. Remove the file: it is trained anew where a request needs it"
        )
    return arrays, note, found


def retrained(
    judge: Judge,
    federation: GridFederation,
    cache: Path,
    inputs: Mapping[str, Any],
    train: Callable[[], tuple[ArrayRecord, GridFederation]],
    note: Callable[[str], None],
    number: int = 0,
    sealed: Mapping[str, str] = MappingProxyType({}),
) -> Yardstick:
    """Return one retrained model from the cache, or train it and keep it there.

    Args:
        judge: Scores it.
        federation: The request's: its clients score, its journal keeps the curve.
        cache: Folder of the home.
        inputs: What it depends on (`inputs_of`).
        train: Trains it; returns the model and the federation that it was trained on.
        note: Told when it was found.
        number: Its place in the stock.
        sealed: See `loaded`.
    """
    path = path_of(cache, inputs)
    cached = path.exists()
    if cached:
        arrays, kept, digest = loaded(path, sealed)
        cost, notes = Cost(**kept["cost"]), kept.get("timeline", [])
        which = f" {number}" if number else ""
        note(f"retraining{which} was found in the cache")
    else:
        model, own = train()
        arrays, cost, notes = to_numpy(model), own.costs["retrain"], own.notes
        kept = {"cost": vars(cost), "inputs": inputs, "timeline": notes}
        write_atomic(path, pack(arrays, kept))
        digest = sha256(arrays)
    weights = from_numpy(arrays)
    scores = replace(
        judge.full(weights, federation),
        relearning_curve=relearning(judge, weights, federation, name_of("retrained", number)),
        timeline=timeline(notes),
    )
    seed = int(inputs["training"]["seed"])
    return Yardstick(scores, cost, cached, weights, number, seed, path.name, digest)


def name_of(what: str, number: int) -> str:
    """Return what the steps and folders of one retrained model are called; 0 has no number."""
    return f"{what}-{number}" if number else what


def kept(
    cache: Path,
    federation: str,
    forget: ForgetSpec,
    erased: Mapping[str, Sequence[Any]],
    training: Mapping[str, Any],
    sealed: Mapping[str, str],
) -> ArrayRecord | None:
    """Return a yardstick that a request has left in the cache, None if none did.

    Args:
        cache: Folder of the home.
        federation: Its name.
        forget: What the yardstick was trained without.
        erased: What had been forgotten before: "classes" and "clients".
        training: All that the version's training depended on.
        sealed: See `loaded`.

    Raises:
        EditedError: As `loaded`.
    """
    gone = [sorted(erased["classes"]), sorted(erased["clients"])]
    named = [forget.level, sorted(forget.classes), sorted(forget.clients)]
    for path in sorted(cache.glob(PATTERN)):
        inputs = note_of(path)["inputs"]
        if not _counts(path, inputs, sealed):
            continue
        told = inputs["forget"]
        same = [told["level"], sorted(told["classes"]), sorted(told["clients"])] == named
        same &= [sorted(part) for part in inputs["erased"]] == gone
        same &= (inputs["federation"], inputs["code"]) == (federation, code(CODE))
        same &= all(training.get(key) == value for key, value in inputs["training"].items())
        if same:
            return from_numpy(loaded(path, sealed)[0])
    return None


@dataclass(frozen=True)
class Kept:
    """A retrained model that is in the cache: its place in the stock, its seed, and its file.

    `data` are the clients' examples by class that it was trained on.
    """

    number: int
    seed: int
    path: Path
    data: Mapping[str, Any] = field(default_factory=dict)


def stock(
    cache: Path,
    settings: RunSettings,
    model: Mapping[str, Any],
    forget: ForgetSpec,
    erased: Mapping[str, Sequence[Any]],
    federation: str,
    now: Callable[[str], Erased],
    sealed: Mapping[str, str],
) -> tuple[list[Kept], int]:
    """Return the retrained models that a request would read, without asking a client.

    What the clients hold is taken from the models' own notes: where some were trained on other
    data than others, those of the larger number count, and those with number 0 of as many.

    Args:
        cache: Folder of the home.
        settings: Of the request.
        model: The network's specification.
        forget: What they were trained without.
        erased: What had been forgotten before: "classes" and "clients".
        federation: Its name.
        now: What a federation has forgotten now; models that know of it are left alone.
        sealed: See `loaded`. Models that no record has do not count where records have any.

    Returns:
        By number; and how many were left out, for they were trained on other data.
    """
    numbers = {seed_of(settings.seed, number): number for number in range(MOST)}
    training, told = settings.training(), _as_json(asdict(forget))
    gone = [sorted(erased["classes"]), sorted(erased["clients"])]
    groups: dict[str, dict[int, Kept]] = {}
    for path in sorted(cache.glob(PATTERN)):
        if not _may_stay(path, now):
            continue
        inputs = note_of(path)["inputs"]
        if not _counts(path, inputs, sealed):
            continue
        own = inputs["training"]
        same = (inputs["federation"], inputs["forget"]) == (federation, told)
        same &= [sorted(part) for part in inputs["erased"]] == gone
        same &= inputs["model"] == _as_json(model) and own["seed"] in numbers
        same &= all(training.get(key) == value for key, value in own.items() if key != "seed")
        if same:
            # Whoever was left out need not be there any more, for the models to be of one stock.
            without = {*forget.clients, *erased["clients"]}
            data = {who: held for who, held in inputs["data"].items() if who not in without}
            group = groups.setdefault(json.dumps(data, sort_keys=True), {})
            number = numbers[own["seed"]]
            group.setdefault(number, Kept(number, own["seed"], path, data))
    sorted_groups = [[group[number] for number in sorted(group)] for group in groups.values()]
    best = max(sorted_groups, key=lambda group: (len(group), -group[0].number), default=[])
    return best, sum(map(len, sorted_groups)) - len(best)


def _counts(path: Path, inputs: Mapping[str, Any], sealed: Mapping[str, str]) -> bool:
    """Return whether a verdict may read a file: under its own name, and known to a record.

    Whoever can write the folder could put models there that differ as the result does. A home
    whose records are of an earlier Efface has no hashes: there all count.
    """
    return path_of(path.parent, inputs) == path and (not sealed or path.name in sealed)


def _as_json(value: Any) -> Any:
    """Return a value as a note holds it: lists in place of tuples."""
    return json.loads(json.dumps(value))


def sweep(
    cache: Path,
    erased: Callable[[str], Erased],
    destroyed: Callable[[str, str], None] = lambda request, name: None,
) -> list[Path]:
    """Destroy the yardsticks that know what was erased since, and files that are none.

    Those of other code stay: no request reads them, but who trained them is to be told so
    (`of_other_code`), and may go back to that code.

    Args:
        cache: Folder of the home.
        erased: What a federation has forgotten now, by its name.
        destroyed: Told, before one goes, each request that forgot what it knows, and its name.

    Returns:
        The files destroyed.
    """
    found = sorted(cache.glob(PATTERN))
    gone = [path for path in found if not _harmless(path, erased)]
    for path in gone:
        for request in known(path, erased):
            destroyed(request, path.name)
        destroy(path)
    return gone


def destroy(path: Path) -> None:
    """Destroy one; one that is gone is left at that."""
    if path.exists() and path.stat().st_nlink > 1:
        path.unlink()  # another home's, too: `server.bench` shares them
    else:
        overwrite(path)


def unused(
    cache: Path, erased: Callable[[str], Erased], bases: Mapping[str, Sequence[Any]]
) -> list[Path]:
    """Return the yardsticks that no request on the versions with weights could use.

    Args:
        cache: Folder of the home.
        erased: What a federation has forgotten now, by its name.
        bases: By federation, what each of its versions with weights has forgotten: classes and
            clients, sorted.
    """
    return [
        path
        for path in sorted(cache.glob(PATTERN))
        if not _may_stay(path, erased) or not _of_some(note_of(path)["inputs"], bases)
    ]


def _of_some(inputs: Mapping[str, Any], bases: Mapping[str, Sequence[Any]]) -> bool:
    return list(map(sorted, inputs["erased"])) in bases.get(inputs["federation"], ())


def of_other_code(cache: Path, inputs: Mapping[str, Any]) -> int:
    """Return how many retrained models would be read, were they not made by other code.

    Args:
        cache: Folder of the home.
        inputs: What number 0 of the request's stock depends on (`inputs_of`).
    """

    # Settings that have come since have their defaults in a model of an older release.
    usual = {k: v for k, v in RunSettings().plain().items() if k in inputs["training"]}

    def but_code(found: Mapping[str, Any]) -> dict[str, Any]:
        told = {**usual, **found["training"]}
        training = {key: value for key, value in told.items() if key != "seed"}
        return {**_as_json(found), "training": _as_json(training), "code": ""}

    count = 0
    for path in cache.glob(PATTERN):
        try:
            found = note_of(path)["inputs"]
            count += found["code"] != inputs["code"] and but_code(found) == but_code(inputs)
        except (OSError, RegistryError, KeyError, TypeError, AttributeError, ValueError):
            continue  # not one
    return count


def _may_stay(path: Path, erased: Callable[[str], Erased]) -> bool:
    """Return whether a request could read it."""
    return _harmless(path, erased) and note_of(path)["inputs"].get("code") == code(CODE)


def _harmless(path: Path, erased: Callable[[str], Erased]) -> bool:
    """Return whether it is a yardstick that does not know what was erased."""
    try:
        return not _known(path, erased)
    except (OSError, RegistryError, KeyError, TypeError, ValueError):
        return False  # nothing that could be used


def known(path: Path, erased: Callable[[str], Erased]) -> list[str]:
    """Return the requests that forgot what a yardstick knows; none of a file that is not one."""
    try:
        return _known(path, erased)
    except (OSError, RegistryError, KeyError, TypeError, ValueError):
        return []


def _known(path: Path, erased: Callable[[str], Erased]) -> list[str]:
    inputs = note_of(path)["inputs"]
    forget, (classes, clients) = inputs["forget"], inputs["erased"]
    now = erased(inputs["federation"])
    found = [
        *(now.class_requests.get(c, "") for c in {*now.classes} - {*classes, *forget["classes"]}),
        *(now.client_requests.get(n, "") for n in {*now.clients} - {*clients, *forget["clients"]}),
    ]
    return sorted({*found})


def relearning(
    judge: Judge, model: ArrayRecord, federation: GridFederation | None, name: str
) -> Curve | None:
    """Return a model's relearning curve, measured once: the request's journal keeps it.

    Outside any request there is no federation, and nothing keeps it.
    """
    if federation is None:
        found = judge.relearning(model)
    else:
        found = federation.journal.value(f"relearning-{name}", lambda: judge.relearning(model))
    return None if found is None else read(Curve, found, "relearning curve")
