"""A recipe: what a benchmark trains, makes forget, by which methods, and how often.

A TOML file, described in benchmarks/README.md. Everything in it is checked before work starts.

It is long because every part of a recipe is read and checked here.
"""

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from client.errors import BadSetting
from client.wire import ForgetSpec
from server.bench.columns import COLUMNS, USUAL
from server.bench.values import (
    as_flag,
    as_number,
    as_numbers,
    as_table,
    as_text,
    check_known,
    check_list,
)
from server.requests.data import check_samples, check_shares, check_simulation, server_data
from server.settings import TRAINING, RunSettings
from strategies.table import METHODS, method

_DATA: Final = frozenset(
    {"dataset", "num_clients", "max_samples", "holdout", "partition_seed", "partition"}
)
_OURS: Final = frozenset({"seed", "federation"})  # training settings that the harness sets
_TRAINING: Final = frozenset(key.replace("-", "_") for key in TRAINING)
_TABLES: Final[Mapping[str, frozenset[str]]] = {
    "data": _DATA | {"partitions"},
    "model": frozenset(key for key in _TRAINING if key.split("_")[0] == "model"),
    "training": frozenset(key for key in _TRAINING - _DATA - _OURS if key.split("_")[0] != "model"),
}
_KEYS: Final = (
    *("extends", "title", "source", "data", "model", "training", "sweep"),
    *("methods", "options", "server_samples", "levels"),
    *("seeds", "oracle_seeds", "relearn", "evaluate_every", "columns"),
)
_METHOD_KEYS: Final = ("name", "label", "options", "server_samples")
_LEVEL_KEYS: Final = ("name", "classes", "clients", "sequence", "compare_at")


@dataclass(frozen=True)
class Contender:
    """A method with its options, as one row of a table.

    Attributes:
        label: The row's name.
        name: The method's, in `strategies.table.METHODS`.
        options: Its hyper-parameters, `name=value,name=value`.
        server_samples: The coordinator's own examples, if the method needs some.
    """

    label: str
    name: str
    options: str = ""
    server_samples: str = ""


@dataclass(frozen=True)
class Level:
    """What is forgotten: one request, or several in a row.

    Attributes:
        label: The table's name.
        requests: What each request names.
        in_a_row: Whether each request starts from what the one before left; else there is one.
        compare_at: Numbers of the requests, from 1, after which Retrained is trained as well.
    """

    label: str
    requests: tuple[ForgetSpec, ...]
    in_a_row: bool = False
    compare_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One training, from which every method starts.

    Attributes:
        partition: How the data are shared out.
        seed: Of the training.
        sweep: The setting that is varied and its value here; empty without a sweep.
        settings: All training settings, by their names in `RunSettings`.
    """

    partition: str
    seed: int
    sweep: tuple[str, Any] | tuple[()]
    settings: Mapping[str, Any]

    @property
    def swept(self) -> str:
        """`scale=10`, or an empty text."""
        return f"{self.sweep[0]}={self.sweep[1]}" if self.sweep else ""

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        return slug("-".join(filter(None, [self.partition, self.swept, f"seed-{self.seed}"])))


@dataclass(frozen=True)
class Recipe:
    """A checked recipe."""

    path: Path
    title: str
    source: str
    cells: tuple[Cell, ...]
    contenders: tuple[Contender, ...]
    levels: tuple[Level, ...]
    oracle_seeds: tuple[int, ...]
    relearn: bool
    evaluate_every: int
    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem


def slug(text: str) -> str:
    """Return `text` as a file name."""
    return re.sub(r"[^\w.=]+", "-", text).strip("-")


def load(path: Path) -> Recipe:
    """Return the recipe in a file, every key checked; `check_data` checks the rest.

    Raises:
        BadSetting: On the first key that is unknown, missing or out of range, naming it.
    """
    told = _read(path.absolute(), ())
    check_known("recipe key", told, _KEYS)
    for table, allowed in _TABLES.items():
        check_known(f"key of [{table}]", as_table(told, table), sorted(allowed))
    cells = tuple(_cells(told))
    num_clients = min(_settings(cell).num_clients for cell in cells)
    levels = tuple(_levels(told, num_clients))
    contenders = tuple(_contenders(told))
    for kind, names in (("method", contenders), ("level", levels)):
        labels = [slug(one.label) for one in names]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise BadSetting(f"{kind} names must differ, got {twice[0]!r} twice; add a label")
    return Recipe(
        path=path,
        title=as_text(told, "title", path.stem),
        source=as_text(told, "source", ""),
        cells=cells,
        contenders=contenders,
        levels=levels,
        oracle_seeds=as_numbers(told, "oracle_seeds", []),
        relearn=as_flag(told, "relearn"),
        evaluate_every=as_number(told, "evaluate_every", 5),
        columns=_columns(told),
    )


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Return a recipe's tables, laid over those of the recipe that it extends."""
    if path in seen:
        raise BadSetting(f"extends must not lead back to itself, got {path.name}")
    try:
        own = tomllib.loads(path.read_text())
    except OSError as error:
        raise BadSetting(f"recipe must be a readable file, got {path} ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"recipe must be TOML, got {path} ({error})") from None
    if "extends" not in own:
        return own
    if not isinstance(own["extends"], str):
        raise BadSetting(f"extends must name a recipe, got {own['extends']!r}")
    base = _read((path.parent / own["extends"]).resolve(), (*seen, path))
    merged = {**base, **own}
    for table in _TABLES:
        if isinstance(base.get(table), dict) and isinstance(own.get(table), dict):
            under = dict(base[table])
            if {"partition", "partitions"} & own[table].keys():  # one stands for the other
                under = {k: v for k, v in under.items() if k not in ("partition", "partitions")}
            merged[table] = {**under, **own[table]}
    options = [as_table(told, "options") for told in (base, own)]
    if any(options):
        under, over = options
        merged["options"] = {
            method: {**as_table(under, method), **as_table(over, method)}
            for method in (*under, *(method for method in over if method not in under))
        }
    return merged


# ---- parts --------------------------------------------------------------------------------------


def _cells(told: Mapping[str, Any]) -> Iterator[Cell]:
    data, seeds = dict(as_table(told, "data")), as_numbers(told, "seeds", [0])
    if "partition" in data and "partitions" in data:
        raise BadSetting("partition or partitions must be given, got both")
    one = data.pop("partition", RunSettings.partition)
    partitions = data.pop("partitions", [one])
    check_list("partitions", partitions, str, "texts")
    if not seeds:
        raise BadSetting("seeds must be at least one number, got none")
    base = {**data, **as_table(told, "model"), **as_table(told, "training")}
    for partition, value, seed in itertools.product(partitions, _sweep(told), seeds):
        settings = {"partition_seed": seed, **base, "partition": partition, "seed": seed}
        cell = Cell(partition, seed, value, settings | (dict([value]) if value else {}))
        _settings(cell)
        yield cell


def _sweep(told: Mapping[str, Any]) -> list[tuple[str, Any] | tuple[()]]:
    table = as_table(told, "sweep")
    if not table:
        return [()]
    allowed = sorted(_TRAINING - _OURS - {"partition", "partition_seed"})
    check_known("key of [sweep]", table, allowed)
    if len(table) > 1:
        raise BadSetting(f"sweep must vary one setting, got {', '.join(table)}")
    ((key, values),) = table.items()
    if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
        raise BadSetting(f"sweep must list different values, got {key} = {values!r}")
    return [(key, value) for value in values]


def _contenders(told: Mapping[str, Any]) -> Iterator[Contender]:
    listed = told.get("methods")
    options = as_table(told, "options")
    check_known("key of [options]", options, METHODS)
    if listed == "all":
        listed = [{"name": name} for name in METHODS]
    if not isinstance(listed, list) or not listed:
        raise BadSetting(f'methods must be "all" or a list, got {listed!r}')
    for entry in listed:
        one = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(one, dict):
            raise BadSetting(
                f"method must be a name or a table, got {entry!r}", see="efface methods"
            )
        check_known("key of [[methods]]", one, _METHOD_KEYS)
        name = one.get("name")
        if name not in METHODS:
            raise BadSetting(
                f"method must be one of {', '.join(METHODS)}, got {name!r}", see="efface methods"
            )
        chosen = {**_options(options.get(name, {})), **_options(one.get("options", {}))}
        samples = ""
        if METHODS[name].needs.server_data:
            samples = as_text({**told, **one}, "server_samples", "")
        text = ",".join(f"{key}={value}" for key, value in chosen.items())
        own = ", ".join(f"{key}={value}" for key, value in _options(one.get("options", {})).items())
        # Options are wrong at every level that the method serves, or at none.
        method(name, sorted(METHODS[name].needs.levels)[0], chosen)
        yield Contender(
            as_text(one, "label", f"{name}, {own}" if own else name), name, text, samples
        )


def _options(told: Any) -> dict[str, str]:
    if not isinstance(told, dict) or not all(
        isinstance(v, str | int | float) for v in told.values()
    ):
        raise BadSetting(f"options must be a table of numbers or texts, got {told!r}")
    for key, value in told.items():
        if isinstance(value, bool) or "," in str(value):
            raise BadSetting(f"{key} must be a number, or a text without a comma, got {value!r}")
    return {key.replace("_", "-"): str(value) for key, value in told.items()}


def _levels(told: Mapping[str, Any], num_clients: int) -> Iterator[Level]:
    listed = told.get("levels")
    if not isinstance(listed, list) or not listed or not all(isinstance(e, dict) for e in listed):
        raise BadSetting(f"levels must be a list of tables, got {listed!r}")
    for entry in listed:
        check_known("key of [[levels]]", entry, _LEVEL_KEYS)
        ways = [key for key in ("classes", "clients", "sequence") if key in entry]
        if len(ways) != 1:
            raise BadSetting(
                "level must name classes, clients or a sequence, got "
                f"{' and '.join(ways) or 'nothing'}; give each a [[levels]] of its own"
            )
        if ways == ["sequence"]:
            steps = entry["sequence"]
            if not isinstance(steps, list) or len(steps) < 2:
                raise BadSetting(f"sequence must list at least two requests, got {steps!r}")
            requests = tuple(_forget(step) for step in steps)
            usual = "in a row: " + ", ".join(map(str, requests))
        else:
            if not entry[ways[0]]:
                raise BadSetting(f"{ways[0]} must not be empty, got {entry[ways[0]]!r}")
            requests = (_forget(entry[ways[0]]),)
            kinds = {"class": "classes", "client": "clients"}
            if kinds[requests[0].level] != ways[0]:
                raise BadSetting(f"{ways[0]} must list them, got {entry[ways[0]]!r}")
            usual = str(requests[0])
        for name in (name for forget in requests for name in forget.clients):
            if name not in {f"client-{i}" for i in range(num_clients)}:
                raise BadSetting(
                    f"client must be one of client-0 to client-{num_clients - 1}, got {name!r}"
                )
        compare_at = as_numbers(entry, "compare_at", [])
        late = [number for number in compare_at if not 1 <= number <= len(requests)]
        if late or (compare_at and ways != ["sequence"]):
            raise BadSetting(
                f"compare_at must list numbers of a sequence's requests, from 1, got {compare_at}"
            )
        yield Level(as_text(entry, "name", usual), requests, ways == ["sequence"], compare_at)


def _forget(step: Any) -> ForgetSpec:
    """Return what `9`, `[3, 5]`, `"client-0"` or `["client-0"]` names."""
    several = step if isinstance(step, list) else [step]
    if several and all(type(c) is int and c >= 0 for c in several):
        return ForgetSpec("class", tuple(dict.fromkeys(several)))
    if several and all(isinstance(c, str) and c for c in several):
        return ForgetSpec("client", (), tuple(dict.fromkeys(several)))
    raise BadSetting(
        f"request must name classes from 0 up, or clients by their names, got {step!r}"
    )


def _columns(told: Mapping[str, Any]) -> tuple[str, ...]:
    chosen = told.get("columns", list(USUAL))
    check_list("columns", chosen, str, "names")
    for name in chosen:
        if name not in COLUMNS:
            raise BadSetting(f"column must be one of {', '.join(COLUMNS)}, got {name!r}")
    return tuple(chosen)


# ---- data ---------------------------------------------------------------------------------------


def check_data(recipe: Recipe, data_dir: str, device: str) -> None:
    """Refuse a recipe that does not fit the data or this machine, before any work starts.

    Args:
        recipe: As loaded.
        data_dir: Folder of the published data sets.
        device: Where clients compute.

    Raises:
        BadSetting: If a class, a client, a partition or the device is not there.
        DataError: If the data are not there.
    """
    for cell in recipe.cells:
        settings = replace(_settings(cell), data_dir=data_dir, device=device).check()
        data = server_data(settings)
        check_simulation(settings, data)
        check_shares(settings, data)
        spec = settings.model_spec(data)
        for level in recipe.levels:
            for forget in level.requests:
                if out := [c for c in forget.classes if c >= spec.num_classes]:
                    raise BadSetting(f"class must lie in [0, {spec.num_classes}), got {out[0]}")
        for one in recipe.contenders:
            if one.server_samples:
                check_samples(
                    replace(settings, method=one.name, server_samples=one.server_samples), data
                )


def _settings(cell: Cell) -> RunSettings:
    """Return a cell's training settings, checked as far as they can be without data."""
    told = {"mode": "train", "engine": "inline", **cell.settings}
    settings = RunSettings(**told).check()
    settings.check_training()
    return settings
