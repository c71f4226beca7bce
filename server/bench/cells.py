"""The work of one cell: train once, then every method from there; what is finished is kept.

    OUT/cells/iid-seed-0/train.json              the training
                         class-9/quickdrop.json  one method at one level, or one Retrained more
                         home-1f0c...            versions, stores and journals: the training resumes
    OUT/cache/4be9.../                           Retrained models, shared by the values of a sweep

Each file holds the key of what its result depends on: the recipe's part, the kind of device, and
the code of the clients, the method, the coordinator that runs and times it, and the measuring. A
file with another key is made again. `FORMAT` stands for this file; versions of libraries and the
machine have no part in it.

It is long because training, methods, Retrained and the attack share a cell's homes and keys.
"""

import contextlib
import functools
import json
import os
import resource
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from client.errors import BadSetting, EffaceError
from client.learning.models import ModelSpec, loaded
from client.wire import ForgetSpec, tensors
from server import provenance
from server.bench import membership
from server.bench.keys import code, digest, of_recipe
from server.bench.recipe import Cell, Contender, Level, Recipe, slug
from server.evidence import wording
from server.evidence.record import Record, Target, to_json
from server.nodes.federation import Round, from_numpy, to_numpy
from server.provenance import commit, hardware
from server.requests.context import initial_weights, version_card
from server.requests.data import own_samples, server_data
from server.requests.execution import VerificationFailed
from server.requests.intake import Service
from server.runner import run
from server.settings import RunSettings, federation_name
from server.storage.home import Home, HomeBusy, write_json
from server.storage.ledger import Outcome
from server.storage.registry import unpack
from strategies.table import METHODS

FORMAT: Final = 1  # of a kept result; a new one makes all of them anew
# A benchmark shows how well a method forgot; it refuses none for it.
JUDGE_ALL: Final = {
    "max_forget_accuracy": 100.0,
    "max_relearning_gap": 100.0,
    "accept": "not-shown",
}
_DROPPED: Final = ("settings", "report", "command", "channels")

Report = Callable[[str, str], None]  # kind ("now", "done") and text


@dataclass(frozen=True)
class Task:
    """One file to make: a training, a method at a level, or a Retrained of another seed."""

    cell: Cell
    level: Level | None = None
    contender: Contender | None = None
    oracle: int | None = None

    @property
    def name(self) -> str:
        """Its place in the cell's folder, and in what a person reads."""
        if self.level is None:
            return "train"
        if self.contender is None:
            return f"{slug(self.level.label)}/retrained-seed-{self.oracle}"
        return f"{slug(self.level.label)}/{slug(self.contender.label)}"


def tasks(recipe: Recipe, cell: Cell) -> list[Task]:
    """Return everything that one cell has to do, in order; oracles come where there is a verdict.

    A sequence needs none: its requests are compared with one another.
    """
    found = [Task(cell)]
    for level in recipe.levels:
        found += [Task(cell, level, contender) for contender in recipe.contenders]
        if not level.in_a_row:
            seeds = [seed for seed in recipe.oracle_seeds if seed != cell.seed]
            found += [Task(cell, level, oracle=seed) for seed in seeds]
    return found


@dataclass
class Bench:
    """Carries out the tasks of a recipe in one folder.

    Attributes:
        recipe: What to do.
        out: Where results are kept.
        data_dir: Folder of the published data sets.
        device: Where clients compute.
        jobs: Cells that run side by side, for the record: they slow each other down.
        any_code: Whether results of other code than today's, or another device, count as finished.
    """

    recipe: Recipe
    out: Path
    data_dir: str = ""
    device: str = "auto"
    jobs: int = 1
    any_code: bool = False

    # ---- what is finished ------------------------------------------------------------------------

    def path(self, task: Task) -> Path:
        """Return where a task's result is kept."""
        return self.out / "cells" / task.cell.name / f"{task.name}.json"

    def kept(self, task: Task) -> dict[str, Any] | None:
        """Return a task's result if it is there and nothing that it depends on has changed."""
        try:
            kept = json.loads(self.path(task).read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(kept, dict):
            return None
        depends = self.depends(task)
        if self.any_code:
            same = digest(of_recipe(kept.get("depends"))) == digest(of_recipe(depends))
        else:
            same = kept.get("key") == digest(depends)
        return kept if same else None

    def finished(self, task: Task) -> bool:
        """Return whether a task needs no more work; what a defect broke is tried again."""
        kept = self.kept(task)
        return kept is not None and all(s["state"] != "broken" for s in kept.get("steps", ()))

    def depends(self, task: Task) -> dict[str, Any]:
        """Return everything that a task's result depends on."""
        trained = {
            "format": FORMAT,
            "settings": dict(task.cell.settings),
            "device": self.device.split(":")[0],
            "code": code("strategies.methods.retraining"),
        }
        if task.level is None:
            return trained
        name = task.contender.name if task.contender else "retraining"
        return {
            "training": trained,
            "level": asdict(task.level),
            "contender": task.contender and {**asdict(task.contender), "label": ""},
            "oracle": task.oracle,
            "relearn": self.recipe.relearn,
            "evaluate_every": self.recipe.evaluate_every,
            "code": code(METHODS[name].__module__),
        }

    # ---- work ------------------------------------------------------------------------------------

    def run(self, cell: Cell, report: Report) -> None:
        """Do what a cell has not finished yet.

        Raises:
            KeyboardInterrupt: If it was stopped; what was finished is kept.
        """
        missing = [task for task in tasks(self.recipe, cell) if not self.finished(task)]
        if not missing:
            return
        with _surroundings():
            home = self._trained(cell, report)
            for task in missing:
                if task.level is not None:
                    report("now", task.name)
                    self._keep(task, self._result(task, task.level, home, report))
                    report("done", task.name)

    def _trained(self, cell: Cell, report: Report) -> Path:
        """Return the home that holds the cell's trained version; train it if it is not there."""
        task = Task(cell)
        key = digest(self.depends(task))
        folder = self.path(task).parent
        home = folder / f"home-{key[:12]}"
        if self.finished(task) and home.exists():
            return home
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("home-*"):
            if old.name != home.name:  # of other settings or code
                shutil.rmtree(old)
        report("now", "train")
        told = {**self._common(cell, home), "evaluate_every": 0}
        record = self._ask("train", told, report)
        sizes = {"synthetic": _size(home / "clients"), "updates": _size(home / "updates")}
        self._keep(task, {"state": "done", "record": _slim(record), "storage": sizes})
        report("done", "train")
        return home

    def _common(self, cell: Cell, home: Path) -> dict[str, Any]:
        return {
            **cell.settings,
            **JUDGE_ALL,
            "home": str(home),
            "data_dir": self.data_dir,
            "device": self.device,
            "engine": "inline",
            "evaluate_every": self.recipe.evaluate_every,
        }

    def _ask(self, mode: str, told: Mapping[str, Any], report: Report) -> Record:
        return run(RunSettings(**{**told, "mode": mode}).check(), _Listener(report))

    def _forget(self, told: Mapping[str, Any], report: Report) -> dict[str, Any]:
        return _measured(self._ask("forget", told, report))

    def _keep(self, task: Task, result: Mapping[str, Any]) -> None:
        depends = self.depends(task)
        path = self.path(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "key": digest(depends),
            "task": task.name,
            "partition": task.cell.partition,
            "partition_seed": task.cell.settings["partition_seed"],
            "sweep": task.cell.swept,
            "seed": task.cell.seed,
            "jobs": self.jobs,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "commit": commit(),
            "hardware": hardware(),
            "depends": depends,
        }
        write_json(path, {**about, **result})

    def _result(self, task: Task, level: Level, home: Path, report: Report) -> dict[str, Any]:
        """Return what came of a task; a refusal or a failure is a result, too."""
        self._share(task.cell, home, bring=True)
        try:
            if task.contender is None:
                return {"steps": [self._oracle(task, level, report)]}
            if level.in_a_row:
                return {"steps": self._in_a_row(task, level, task.contender, home, report)}
            return {"steps": [self._trial(task, level, task.contender, home, report)]}
        finally:
            self._share(task.cell, home, bring=False)

    def _trial(
        self, task: Task, level: Level, contender: Contender, home: Path, report: Report
    ) -> dict[str, Any]:
        """Forget once, from the trained version and without changing it, against Retrained."""
        told = {**self._common(task.cell, home), **_contender(contender), "trial": True}
        target = _target(level.requests[0])

        def forgotten() -> dict[str, Any]:
            record = self._ask("forget", {**told, **target, "compare": "retrain"}, report)
            found = {**_measured(record), "attack": self._attack(told, home, record)}
            if self.recipe.relearn:
                version = {"version": str(record.model_version)}
                again = {**told, **target, **version}
                found["relearn"] = _tried(
                    lambda: {"record": _slim(self._ask("relearn", again, report))}
                )
            return found

        return _tried(forgotten)

    def _in_a_row(
        self, task: Task, level: Level, contender: Contender, home: Path, report: Report
    ) -> list[dict[str, Any]]:
        """Forget one thing after another, each from what the request before left, on a copy."""
        copy = home.with_name(f"{home.name}-{slug(contender.label)}")
        shutil.rmtree(copy, ignore_errors=True)  # of a stopped attempt
        shutil.copytree(home, copy)
        told = {**self._common(task.cell, copy), **_contender(contender)}
        steps: list[dict[str, Any]] = []
        for number, forget in enumerate(level.requests, start=1):
            compare = "retrain" if number in level.compare_at else "none"
            asked = {**told, **_target(forget), "compare": compare}
            if steps and (steps[-1]["state"] not in ("done", "refused") or _not_kept(steps[-1])):
                steps.append({"state": "failed", "reason": "the request before it failed"})
                continue
            steps.append(_tried(functools.partial(self._forget, asked, report)))
            # The next method is compared with the same; the home itself keeps none that knows
            # what a later request erases.
            _pass_on(copy / "cache", home / "cache")
        shutil.rmtree(copy)
        return steps

    # ---- Retrained -------------------------------------------------------------------------------

    def _oracle(self, task: Task, level: Level, report: Report) -> dict[str, Any]:
        """Retrain from another seed on the same clients: what a gap is to be read against."""
        seed = task.oracle
        home = self.path(task).with_suffix(".home")
        settings = {**task.cell.settings, "seed": seed, "scale": 0}
        told = {**self._common(task.cell, home), **settings, "mode": "train"}
        if not (home / "versions" / "v0001").exists():
            shutil.rmtree(home, ignore_errors=True)
            _enter_untrained(RunSettings(**told).check(), home)
        asked = {**told, **_target(level.requests[0]), "method": "retraining", "trial": True}
        found = _tried(lambda: self._forget(asked, report))
        shutil.rmtree(home)
        return found

    def _share(self, cell: Cell, home: Path, *, bring: bool) -> None:
        """Pass Retrained models on between a sweep's cells.

        A sweep over `scale` trains each Retrained once: it does not depend on it.
        """
        if not cell.sweep:
            return
        shared, own = (
            self.out / "cache" / code("strategies.methods.retraining")[:12],
            Home(home).cache,
        )
        shared.mkdir(parents=True, exist_ok=True)
        _pass_on(*((shared, own) if bring else (own, shared)))

    # ---- membership ------------------------------------------------------------------------------

    def _attack(
        self, told: Mapping[str, Any], home: Path, record: Record
    ) -> dict[str, dict[str, float | None]] | None:
        """Return the attacks' success on Original, on the method's version and on Retrained."""
        settings = RunSettings(**{"mode": "forget", **told}).check()
        dataset = server_data(settings)
        if settings.server_samples:  # taken out of the test part: the method has seen them
            _, dataset = own_samples(settings, dataset)
        if dataset is None:
            raise EffaceError(
                f"dataset must have test images to attack with, got {told['dataset']}"
            )
        wanted = record.forget or Target()
        forget = ForgetSpec(str(wanted.level), wanted.classes, wanted.clients)
        spec = settings.model_spec(dataset)
        found = membership.examples(settings, dataset, spec, forget)
        if found is None:
            return None
        registry = Service.open(Home(home)).registry
        weights = stock_weights(home, forget, settings)
        stock = [loaded(spec, tensors(from_numpy(arrays))) for arrays in weights]
        models = {"retrained": (spec, weights[0])}
        versions = {"original": record.base_version, "recovered": record.model_version}
        for name, version in versions.items():
            arrays, card = registry.load(str(version))
            models[name] = (ModelSpec.of_card(card["model"]), arrays)
        here = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(here if self.device == "auto" else self.device)
        return {
            name: membership.attack(
                loaded(of, tensors(from_numpy(arrays))),
                of.task,
                dataset,
                *found,
                device=device,
                # Retrained is the first of them: it is no reference for itself.
                references=stock[1:] if name == "retrained" else stock,
            )
            for name, (of, arrays) in models.items()
        }


# ---- parts --------------------------------------------------------------------------------------


def _pass_on(source: Path, target: Path) -> None:
    """Put the Retrained models of one cache into another, too; the service takes one that fits."""
    for path in source.glob("retrained-*.safetensors"):
        with contextlib.suppress(FileExistsError):
            os.link(path, target / path.name)  # whole: the service writes it under another name


def stock_weights(home: Path, forget: ForgetSpec, settings: RunSettings) -> list[dict[str, Any]]:
    """Return the weights of all retrained models that a home has, that of its own seed first.

    Raises:
        EffaceError: If it has none of its own seed.
    """
    own, others = list[dict[str, Any]](), list[dict[str, Any]]()
    for path in sorted((home / "cache").glob("retrained-*.safetensors")):
        arrays, note = unpack(path.read_bytes(), path)
        inputs = note["inputs"]
        same = inputs["forget"] == json.loads(json.dumps(asdict(forget)))
        trained = settings.training()
        same &= all(
            trained[key] == value for key, value in inputs["training"].items() if key != "seed"
        )
        same &= inputs["code"] == provenance.code("strategies.methods.retraining")
        if same and not any(inputs["erased"]):
            (own if inputs["training"]["seed"] == trained["seed"] else others).append(arrays)
    if own:
        return [*own[:1], *others]
    raise EffaceError(f"cache must hold Retrained without {forget}, got none in {home / 'cache'}")


def _enter_untrained(settings: RunSettings, home: Path) -> None:
    """Put the seed's initial weights in service: retraining starts from them, whatever was."""
    service = Service.open(Home(home))
    request = service.prepare(settings)
    row, spec = request.row, request.spec
    service.ledger.start(row.id)
    card = version_card(
        settings.rooted(),
        spec,
        row,
        lineage=row.id,
        erased={"classes": [], "clients": []},
        scores=None,
        training={},
    )
    service.registry.commit(
        row.id,
        to_numpy(initial_weights(spec, settings.seed)),
        card,
        parent=None,
        federation=federation_name(settings),
        state="in-service",
        outcome=Outcome(seconds={}, bytes={}, before=None, after=None),
    )


def _tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what work gives, or how it ended: refused, failed, or broken by a defect of ours."""
    try:
        return {"state": "done", "reason": "", **work()}
    except HomeBusy:
        raise  # no result: it can be had another time
    except BadSetting as error:
        return {"state": "refused", "reason": str(error)}
    except VerificationFailed as error:
        # It ran and was measured, which is what a benchmark asks for; only no version came of it.
        if error.record is None:
            return {"state": "failed", "reason": str(error)}
        return {"state": "done", **_measured(error.record)}
    except EffaceError as error:
        return {"state": "failed", "reason": str(error)}
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        return {"state": "broken", "reason": f"{type(error).__name__}: {error}", "trace": trace}


def _measured(record: Record) -> dict[str, Any]:
    """Return a result, and what the verdict says where it failed for all the width of the limits.

    As where recovery brought the forget set back: a row with numbers, which a reader must be told.
    """
    said, forget = "", record.forget or Target()
    if record.verdict is not None and record.verdict.state == "failed":
        named = (forget.clients, record.class_names)
        said = wording.refusal(record.verdict, str(forget.level), *named)
    return {"record": _slim(record), "reason": said}


def _not_kept(step: Mapping[str, Any]) -> bool:
    """Return whether a step's result was measured and turned away: none can go on from it."""
    return step["state"] == "done" and bool(step["record"]["refused"])


def _contender(contender: Contender) -> dict[str, Any]:
    return {
        "method": contender.name,
        "method_options": contender.options,
        "server_samples": contender.server_samples,
    }


def _target(forget: ForgetSpec) -> dict[str, str]:
    return {
        "forget_classes": ",".join(map(str, forget.classes)),
        "forget_clients": ",".join(forget.clients),
    }


def _slim(record: Record) -> dict[str, Any]:
    """Return a record's JSON without what no table shows."""
    return {key: value for key, value in to_json(record).items() if key not in _DROPPED}


def _size(folder: Path) -> int:
    """Return the bytes of all files below a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """Keep what the environment says of a home away from the cells, and what they say from it."""
    names = ("EFFACE_HOME", "EFFACE_STORE", "EFFACE_DATABASE_URL")
    before = {name: os.environ.pop(name, None) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class _Listener:
    """Tells which round a request is at."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        self.report("round", f"{done.phase} {done.number}/{done.of}")

    def note(self, text: str) -> None:
        """Notes are for a request that somebody watches."""
