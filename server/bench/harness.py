"""Carries out a recipe: cells side by side, one progress display, then tables and plots.

It is long because what a stop, a failed cell and a second run mean must be read together.
"""

import contextlib
import csv
import io
import logging
import multiprocessing
import os
import queue
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from client.errors import BadSetting, EffaceError
from client.files import write_atomic
from server.bench import plots, table
from server.bench.cells import Bench, Task, tasks
from server.bench.columns import Row, highest_epsilon, rows
from server.bench.recipe import Cell
from server.evidence.costs import overhead
from strategies.table import METHODS

RESULTS: Final = Path("benchmarks") / "results"  # where a folder of each recipe's name is usual
USUAL_PEAK: Final = 1.5e9  # bytes that a cell takes, before one has told
_POLL: Final = 0.2  # seconds

Tell = Callable[[str, str, str], None]  # cell, kind ("now", "round", "done"), text


class CellFailed(EffaceError):
    """A cell could not be trained; the others are done."""

    code = "cell-failed"


@dataclass
class Outcome:
    """What a benchmark came to.

    Attributes:
        rows: The tidy table.
        files: What was written, by its kind.
        made: Tasks carried out now.
        kept: Tasks that were finished already.
    """

    rows: list[Row]
    files: dict[str, list[Path]]
    made: int
    kept: int
    states: dict[str, int] = field(default_factory=dict)


def bench(run: Bench, console: Console, *, work: bool = True) -> Outcome:
    """Do what is missing of a recipe, and write its tables and plots.

    Args:
        run: The recipe and its folder.
        console: Where progress is shown.
        work: Whether to do what is missing; without it, the tables are of what is there.

    Raises:
        BadSetting: If nothing is finished, and nothing is to be done.
        CellFailed: If cells could not be trained.
        KeyboardInterrupt: If it was stopped; what was finished is kept.
    """
    everything = [task for cell in run.recipe.cells for task in tasks(run.recipe, cell)]
    kept = sum(run.finished(task) for task in everything)
    failed: list[str] = []
    if work:
        run.out.mkdir(parents=True, exist_ok=True)
        with _watching(console, len(everything), kept) as tell:
            failed = _all_cells(run, tell)
    found = results(run, everything)
    if not work and not found:
        raise BadSetting(
            f"results must be there for tables, got none in {run.out}; run the same command "
            "without --tables"
        )
    made = len(everything) - kept if work else 0
    outcome = Outcome(rows(found), {}, made=made, kept=kept)
    for row in outcome.rows:
        outcome.states[row["state"]] = outcome.states.get(row["state"], 0) + 1
    outcome.files = _write(run, found, outcome.rows)
    if failed:
        raise CellFailed(
            f"cells must end, got {', '.join(failed)} that did not; the others are in "
            f"{run.out / 'results.md'}. See {run.out / 'bench.log'}, and run the same command again"
        )
    return outcome


def command_line(run: Bench) -> str:
    """Return the command that makes a benchmark, for a shell in the present folder."""
    here = Path.cwd()
    said = ["efface", "bench", str(run.recipe.path)]
    said += ["--data-dir", run.data_dir] if run.data_dir else []
    if run.out.absolute() != here / RESULTS / run.recipe.name:
        below = run.out.is_relative_to(here)
        said += ["--out", str(run.out.relative_to(here) if below else run.out)]
    said += ["--jobs", str(run.jobs)] if run.jobs > 1 else []
    said += ["--device", run.device] if run.device != "auto" else []
    return shlex.join(said)


# ---- cells --------------------------------------------------------------------------------------


def _all_cells(run: Bench, tell: Tell) -> list[str]:
    """Run the cells that are not finished, `run.jobs` at a time; return those that did not end.

    Raises:
        KeyboardInterrupt: If it was stopped.
    """
    waiting = [
        cell
        for cell in run.recipe.cells
        if not all(run.finished(task) for task in tasks(run.recipe, cell))
    ]
    failed: list[str] = []
    if run.jobs == 1 or len(waiting) < 2:
        with _logged(run.out):
            for cell in waiting:
                try:
                    run.run(cell, lambda kind, text, name=cell.name: tell(name, kind, text))  # type: ignore[misc]
                except Exception:
                    _log_failure(cell)
                    failed.append(cell.name)
        return failed
    # A process for each: it gives its memory back, and cells do not wait for one another's lock.
    context = multiprocessing.get_context("spawn")
    told: multiprocessing.Queue[tuple[str, str, str]] = context.Queue()
    working: dict[str, Any] = {}
    try:
        while waiting or working:
            while waiting and len(working) < run.jobs and (not working or _room(run.out)):
                cell = waiting.pop(0)
                process = context.Process(target=_in_process, args=(run, cell, told))
                process.start()
                working[cell.name] = process
            ended = [name for name, process in working.items() if not process.is_alive()]
            with contextlib.suppress(queue.Empty):  # the last words of those that ended, too
                while True:
                    tell(*told.get(timeout=_POLL))
            for name in ended:
                if working.pop(name).exitcode:
                    failed.append(name)
    finally:
        for process in working.values():
            os.kill(process.pid, signal.SIGINT)
        for process in working.values():
            process.join()
    return failed


def _in_process(run: Bench, cell: Cell, told: Any) -> None:
    """Run one cell; Ctrl-C reaches the parent alone, which passes it on once."""
    os.setsid()
    with _logged(run.out):
        try:
            run.run(cell, lambda kind, text: told.put((cell.name, kind, text)))
        except KeyboardInterrupt:
            raise SystemExit(1) from None
        except Exception:
            _log_failure(cell)
            raise SystemExit(1) from None


def _log_failure(cell: Cell) -> None:
    logging.getLogger("efface").exception("cell %s", cell.name)


def _room(out: Path) -> bool:
    """Return whether the machine has memory for one cell more, as far as finished ones tell."""
    peaks = [USUAL_PEAK]
    for path in (out / "cells").glob("*/train.json"):
        with contextlib.suppress(OSError):
            found = path.read_text().partition('"peak_bytes":')[2].partition(",")[0].strip()
            peaks.append(float(found or 0))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return True
    free = next((line.split()[1] for line in lines if line.startswith("MemAvailable")), "0")
    return int(free) * 1024 > max(peaks)


@contextlib.contextmanager
def _logged(out: Path) -> Iterator[None]:
    """Write what nodes and server log to a file: the display is for progress."""
    log, handler = logging.getLogger("efface"), logging.FileHandler(out / "bench.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(message)s"))
    passed_on = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
        log.propagate = passed_on


# ---- progress -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _watching(console: Console, total: int, kept: int) -> Iterator[Tell]:
    """Show one bar for all, with what each running cell does; plain lines where no terminal is."""
    if not console.is_terminal:
        yield _lines(console, total, kept)
        return
    progress = Progress(
        SpinnerColumn(finished_text="✓"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}", style="cyan"),
        console=console,
    )
    with progress:
        bar = progress.add_task("bench", total=total, completed=kept, doing="")
        doing: dict[str, tuple[str, str]] = {}

        def tell(cell: str, kind: str, text: str) -> None:
            if kind == "done":
                progress.advance(bar)
                doing.pop(cell, None)
            elif kind == "now":
                doing[cell] = (text, "")
            else:
                doing[cell] = (doing.get(cell, ("", ""))[0], text)
            shown = (f"{name} {' '.join(filter(None, at))}" for name, at in doing.items())
            progress.update(bar, doing="; ".join(shown))

        yield tell


def _lines(console: Console, total: int, kept: int) -> Tell:
    done, began = kept, time.monotonic()
    if kept:
        console.print(f"{kept} of {total} were finished already", markup=False)

    def tell(cell: str, kind: str, text: str) -> None:
        nonlocal done
        if kind == "done":
            done += 1
            elapsed = time.monotonic() - began
            console.print(f"{done}/{total} {cell} {text}, {elapsed:.0f} s", markup=False)

    return tell


# ---- results ------------------------------------------------------------------------------------


def results(run: Bench, everything: Sequence[Task]) -> list[dict[str, Any]]:
    """Return what finished tasks kept, one entry a request."""
    found = []
    trained: dict[str, dict[str, Any]] = {}
    for task in everything:
        kept = run.kept(task)
        if task.level is None:
            trained[task.cell.name] = kept or {}
            continue
        training = trained[task.cell.name]
        if kept is None or not training:
            continue
        for number, step in enumerate(kept["steps"], start=1):
            found.append(
                {
                    **{
                        key: value for key, value in kept.items() if key not in ("steps", "depends")
                    },
                    **step,
                    "level": task.level.label,
                    "in_a_row": task.level.in_a_row,
                    "step": number,
                    "forget": str(task.level.requests[number - 1]),
                    "oracle": task.oracle,
                    "method": task.contender.label if task.contender else "",
                    **_price(task, training),
                }
            )
    return found


def _price(task: Task, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the training cost for the method's sake: seconds and stored bytes.

    The overhead is that of a record's speed-up. `plain_seconds` is the training
    without distilling and keeping updates, whichever of them the method needs.
    """
    record, storage = training["record"], training["storage"]
    seconds = record["seconds"]["train"]
    distilling = seconds * (record["distillation"] or {}).get("client_seconds_share", 0.0)
    keeping = record["storage"]["updates_seconds"]
    price = {
        "train_seconds": seconds,
        "train_epsilon": highest_epsilon(record),
        "plain_seconds": seconds - distilling - keeping,
        "overhead_seconds": 0.0,
        "storage_bytes": 0,
    }
    if task.contender is None:
        return price
    needs = METHODS[task.contender.name].needs
    price["overhead_seconds"] = overhead(needs, distilling=distilling, keeping=keeping)
    if needs.synthetic_data:
        price["storage_bytes"] += storage["synthetic"]
    if needs.history:
        price["storage_bytes"] += storage["updates"]
    return price


def _write(
    run: Bench, found: Sequence[Mapping[str, Any]], made: Sequence[Row]
) -> dict[str, list[Path]]:
    """Write the tidy tables, the Markdown page and the plots; return their paths."""
    csv_path, classes = run.out / "results.csv", run.out / "classes.csv"
    write_atomic(csv_path, _csv(made, list(made[0]) if made else []))
    by_class = list(table.by_class(found))
    write_atomic(classes, _csv(by_class, list(by_class[0]) if by_class else []))
    drawn = plots.draw(run.recipe, found, made, run.out / "plots")
    page = run.out / "results.md"
    text = table.page(
        run.recipe,
        made,
        command=command_line(run),
        drawn=[p.relative_to(run.out) for p in drawn],
    )
    write_atomic(page, text.encode())
    return {"tables": [page], "rows": [csv_path, classes], "plots": drawn}


def _csv(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()
