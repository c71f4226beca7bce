"""What a person sees in a terminal: progress while a request runs, and its result in tables."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:  # it brings torch and Flower along
    from server.nodes.federation import Round
    from server.requests.progress import Listener

MODELS: Final = ("original", "retrained", "unlearned", "recovered", "relearned")
PHASES: Final = ("train", "score", "unlearn", "recover", "relearn", "retrain")
NOTHING: Final = "–"
BETWEEN: Final = "preparing and measuring"
# Points below Retrained that accuracy on the rest may have; nothing is decided by it.
RETAIN_TOLERANCE: Final = 2.0


class PlainLines:
    """Prints one line a round: for log files and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def round(self, done: "Round", scores: dict[str, Any] | None) -> None:
        parts = [f"{done.phase} {done.number}/{done.of}"]
        if scores:
            parts.append(accuracies(scores))
        parts.append(f"{done.cost.seconds:.1f} s")
        self.console.print(", ".join(part for part in parts if part), markup=False)
        for failure in done.failures:
            self.note(f"{failure.client} did not take part: {failure.reason}")

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)


class Bars:
    """Shows a bar a phase: round, accuracy, time left."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}
        self.between = self._add(BETWEEN, total=None)

    def round(self, done: "Round", scores: dict[str, Any] | None) -> None:
        if done.phase not in self.tasks:
            self.tasks[done.phase] = self._add(done.phase, total=done.of)
        changed: dict[str, Any] = {"completed": done.number, "total": done.of}
        changed["rounds"] = f"round {done.number}/{done.of}"
        changed["left"] = "left" if done.number < done.of else ""
        if scores:
            changed["accuracy"] = accuracies(scores)
        self.progress.update(self.tasks[done.phase], **changed)
        # It stands last, whatever phases there are, and counts from the latest round.
        self.progress.remove_task(self.between)
        self.between = self._add(BETWEEN, total=None)
        for failure in done.failures:
            self.note(f"{failure.client} did not take part: {failure.reason}")

    def note(self, text: str) -> None:
        self.progress.console.print(text, markup=False)

    def _add(self, name: str, *, total: int | None) -> TaskID:
        return self.progress.add_task(name, total=total, rounds="", accuracy="", left="")


@contextmanager
def watching(console: Console) -> Iterator["Listener"]:
    """Give a listener that shows progress on `console`, as bars where it is a terminal."""
    if not console.is_terminal:
        yield PlainLines(console)
        return
    progress = Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rounds]}"),
        TextColumn("{task.fields[accuracy]}", style="cyan"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with progress:
        bars = Bars(progress)
        yield bars
        progress.remove_task(bars.between)


def accuracies(scores: Mapping[str, Any]) -> str:
    """Return `forget 3.1 %, retain 95.0 %`, without what was not measured."""
    named = (("forget", scores.get("forget_accuracy")), ("retain", scores.get("retain_accuracy")))
    return ", ".join(f"{name} {value:.1f} %" for name, value in named if value is not None)


def result(record: Mapping[str, Any]) -> list[RenderableType]:
    """Return what is shown of a finished request: accuracies, costs, verdict, report."""
    shown: list[RenderableType] = [headline(record), *choice(record), accuracy_table(record)]
    costs = cost_table(record)
    if costs.row_count:
        shown.append(costs)
    stored = (record.get("storage") or {}).get("updates")
    # What a request has no use for it destroys right after.
    if stored and (record.get("kind") == "train" or _uses(record)[1]):
        shown.append(f"{stored_updates(record)}: {size(stored)}")
    speed = speed_up_line(record)
    if speed:
        shown.append(speed)
    verdict = record.get("verdict")
    if verdict:
        words = {True: "passed", False: "failed", None: "open, nothing tells"}
        shown.append(f"Verdict: {words[verdict['passed']]}")
        shown += [f"  {reason}" for reason in verdict["reasons"]]
        shown += [f"  not measured: {name}" for name in verdict["not_measured"]]
    if record.get("report"):
        shown.append(f"Report: {record['report']}")
    return shown


def stored_updates(record: Mapping[str, Any]) -> str:
    """Return what the bytes of stored updates are called: training left them, others found them."""
    return "Stored updates" + ("" if record.get("kind") == "train" else " before the request")


def original_knows_no_better(forget: Mapping[str, Any]) -> str:
    """Return why accuracy cannot tell whether clients are forgotten: for verdict and report."""
    whose = "these clients'" if len(forget.get("clients") or ()) > 1 else "this client's"
    return f"Original knows {whose} data no better than Retrained: accuracy cannot tell"


def choice(record: Mapping[str, Any]) -> list[RenderableType]:
    """Return which method was chosen and why, or nothing where the request named it."""
    chosen = record.get("chosen")
    return [f"Method: {chosen['method']}, for {chosen['why']}"] if chosen else []


def plan(found: Mapping[str, Any]) -> list[RenderableType]:
    """Return what is shown of a request that has not begun: what it will take."""
    target, version = target_text(found["forget"]), found["base_version"]
    head = f"{version} would forget {target} by {found['method']}; nothing was written down"
    if found["takes_up"]:
        head = f"{found['takes_up']} was interrupted and would go on: {head}"
    cells = []
    for phase in found["phases"]:
        least, most = phase["rounds"], phase["rounds_at_most"]
        rounds = f"{least} to {most}" if most > least else f"{least}"
        cells.append(
            [
                phase["phase"].capitalize(),
                f"at most {most}" if phase["ends_early"] else rounds,
                number(phase["clients"], 0) if phase["clients"] else "here",
                number(phase["samples"], 0),
                size(phase["bytes"]["up"]),
                size(phase["bytes"]["down"]),
                number(phase["seconds"], 2),
            ]
        )
    head_cells = ["Phase", "Rounds", "Clients", "Images seen", "Up", "Down", "Seconds, about"]
    shown: list[RenderableType] = [head, *choice(found), table(head_cells, cells)]
    if found["seconds"] is not None:
        shown.append(
            f"The request takes about {found['seconds']:,.2f} s, with all the rounds that may be "
            f"added {found['seconds_at_most']:,.2f} s; retraining about "
            f"{found['retraining_seconds']:,.2f} s."
        )
    shown += [f"  warning: {text}" for text in found["warnings"]]
    shown += [f"  not known: {text}" for text in found["not_known"]]
    refused = (found["chosen"] or {}).get("refused") or {}
    shown += [f"  {name} cannot: {reason}" for name, reason in refused.items()]
    return shown


def headline(record: Mapping[str, Any]) -> str:
    """Return one line: which request, what it did, and the version that came of it."""
    target = target_text(record.get("forget"))
    if record.get("kind") == "demo":
        return (
            f"Trained {record.get('trained_version')}, forgot {target} in "
            f"{record.get('model_version')}, relearned it in {record.get('relearned_version')}"
        )
    what = {"train": "trained", "forget": "forgot", "relearn": "relearned"}
    done = what.get(str(record.get("kind")), str(record.get("kind")))
    version = record.get("model_version")
    end = f", now version {version}" if version else ", no new version"
    return f"{record.get('request') or 'Request'} {done}{' ' + target if target else ''}{end}"


def target_text(forget: Mapping[str, Any] | None) -> str:
    """Return `class 9`, or `classes 3, 5 and client client-0`; nothing is an empty text."""
    found = []
    for name, plural in (("class", "classes"), ("client", "clients")):
        members = (forget or {}).get(plural) or ()
        if members:
            found.append(f"{name if len(members) == 1 else plural} {', '.join(map(str, members))}")
    return " and ".join(found)


def accuracy_table(record: Mapping[str, Any]) -> Table:
    """Return the models' accuracies on test data; Original and Retrained come first."""
    rows = [(name, record[name]) for name in MODELS if record.get(name)]
    columns = ["Model"]
    forgets = any(scores.get("forget_accuracy") is not None for _, scores in rows)
    curves = any(scores.get("relearning_curve") for _, scores in rows)
    columns += ["Forget %"] if forgets else []
    columns += ["Retain %"]
    columns += ["Relearning %"] if curves else []
    cells = []
    for name, scores in rows:
        row = [name.capitalize()]
        row += [number(scores.get("forget_accuracy"))] if forgets else []
        row += [number(scores.get("retain_accuracy"))]
        curve = scores.get("relearning_curve") or {}
        row += [number(curve.get("mean"))] if curves else []
        cells.append(row)
    return table(columns, cells)


def cost_table(record: Mapping[str, Any]) -> Table:
    """Return what each phase cost: wall seconds without evaluation, rounds, samples, bytes."""
    seconds = record.get("seconds") or {}
    cells = []
    for phase in PHASES:
        if phase not in seconds:
            continue
        traffic = (record.get("bytes") or {}).get(phase) or {}
        cells.append(
            [
                phase.capitalize(),
                number(seconds[phase], 2),
                _count(record, "rounds", phase),
                _count(record, "samples", phase),
                size(traffic.get("up")),
                size(traffic.get("down")),
            ]
        )
    return table(["Phase", "Seconds", "Rounds", "Images seen", "Up", "Down"], cells)


def speed_up_line(record: Mapping[str, Any]) -> str:
    """Return how much shorter the request was than retraining, or an empty text."""
    speed = record.get("speed_up")
    if not speed:
        return ""
    amortised = ", ".join(
        f"{value:.1f} over {count}" for count, value in (speed.get("amortised") or {}).items()
    )
    factor = speed["request"]
    line = (
        f"The request was {factor:.1f} times shorter than retraining"
        if factor >= 1
        else f"The request took {1 / factor:.1f} times as long as retraining"
    )
    if not amortised or not speed.get("overhead_seconds"):
        return f"{line}."
    names = ("distillation", "keeping updates")
    paid = " and ".join(name for name, used in zip(names, _uses(record), strict=True) if used)
    # A method that this Efface does not know has paid for something all the same.
    counted = paid or "its overhead in training"
    return f"{line} (times shorter with {counted} counted: {amortised} requests)."


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1) -> Table:
    """Return a plain table; columns after the first `text` hold numbers and stand right."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for position, name in enumerate(columns):
        made.add_column(name, justify="left" if position < text else "right", overflow="fold")
    for row in rows:
        made.add_row(*(_literal(cell) for cell in row))
    return made


def number(value: float | None, digits: int = 1) -> str:
    """Return a number, or a dash for what was not measured."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def size(num_bytes: float | None) -> str:
    """Return bytes in a readable unit, decimal prefixes."""
    if num_bytes is None:
        return NOTHING
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def _uses(record: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether the record's method uses synthetic sets, and updates stored in training."""
    from strategies.table import METHODS  # brings torch along, and few records need to know

    kind = METHODS.get(str(record.get("method")))
    return (False, False) if kind is None else (kind.needs.synthetic_data, kind.needs.history)


def _count(record: Mapping[str, Any], key: str, phase: str) -> str:
    return number((record.get(key) or {}).get(phase), 0)


def _literal(cell: str) -> str:
    from rich.markup import escape

    return escape(cell)
