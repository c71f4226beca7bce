"""What a person sees in a terminal: progress while a request runs, and its result in tables.

It is long because every table that more than one command shows is here, with how it narrows.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
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
from rich.text import Text

from server.evidence import wording
from server.evidence.participation import remarks, standing_out
from server.evidence.phases import PHASES
from server.evidence.record import Record, Target, remedy
from server.format import target_text

if TYPE_CHECKING:  # it brings torch and Flower along
    from server.nodes.federation import Round

MODELS: Final = ("original", "retrained", "unlearned", "recovered", "relearned")
# The request's own first, then what it is compared with.
ROWS: Final = (*(phase for phase in PHASES if phase != "retrain"), "retrain")
NOTHING: Final = "–"
UNBROKEN: Final = 12  # characters of a cell that stay on one line: ids, states, numbers
LONGEST_NAME: Final = 28  # and of one word, as methods' names are
# Columns that a narrow terminal does without, in this order.
LEAST_IMPORTANT: Final = (
    *("Federation", "Created (UTC)", "Since (UTC)", "Still known by", "Asked by", "From"),
    *("Secure aggregation", "Holders online", "Needs", "Request", "Method"),
)
BETWEEN: Final = "preparing and measuring"
WAITING_SECONDS: Final = 60.0


class PlainLines:
    """Prints one line a round: for log files and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._said = time.monotonic()

    def round(self, done: "Round", scores: dict[str, Any] | None) -> None:
        self._said = time.monotonic()
        parts = [f"{done.phase} {done.number}/{done.of}"]
        if scores:
            parts.append(accuracies(scores))
        if done.norms:
            least, most = min(done.norms.values()), max(done.norms.values())
            parts.append(f"updates {least:.3g} to {most:.3g} long")
        parts.append(f"{done.cost.seconds:.1f} s")
        self.console.print(", ".join(part for part in parts if part), markup=False)
        for line in who_differs(done):
            self.note(line)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)

    def answers(self, come: int, of: int) -> None:
        """Say it once a minute: these lines stay."""
        if time.monotonic() - self._said > WAITING_SECONDS:
            self._said = time.monotonic()
            self.note(f"{come} of {of} clients have answered")


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
        for line in who_differs(done):
            self.note(line)

    def note(self, text: str) -> None:
        self.progress.console.print(text, markup=False)

    def answers(self, come: int, of: int) -> None:
        """Show it beside the last bar, until the next round is over."""
        self.progress.update(self.between, rounds=f"{come} of {of} clients")

    def _add(self, name: str, *, total: int | None) -> TaskID:
        return self.progress.add_task(name, total=total, rounds="", accuracy="", left="")


def who_differs(done: "Round") -> list[str]:
    """Return a line for each client that took no part in a round, or whose update sticks out."""
    lines = [f"{one.client} did not take part: {one.reason}" for one in done.failures]
    return lines + [
        f"{client}'s update in {done.phase} {done.number} is {times:.1f} times as long as the "
        "others'"
        for client, times in standing_out(done.norms).items()
    ]


@contextmanager
def watching(console: Console) -> Iterator[PlainLines | Bars]:
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


def result(record: Record) -> list[RenderableType]:
    """Return what is shown of a finished request: accuracies, costs, verdict, report."""
    shown: list[RenderableType] = [headline(record), *choice(record.chosen)]
    if record.kind == "yardstick":
        shown.append(stock_table(record))
    else:
        shown.append(accuracy_table(record))
    costs = cost_table(record)
    if costs.row_count:
        shown.append(costs)
        if len(record.stock) > 1 and record.kind == "yardstick":
            shown.append("The cost is that of one model, Retrained 0.")
    stored = None if record.storage is None else record.storage.updates
    # What a request has no use for it destroys right after.
    if stored and (record.kind == "train" or _uses(record)[1]):
        shown.append(f"{stored_updates(record)}: {size(stored)}")
    speed = speed_up_line(record)
    if speed:
        shown.append(speed)
    shown += privacy_lines(record)
    shown += verdict_lines(record)
    if record.verifies is not None:
        shown += [f"note: {note}" for note in record.verifies.notes]
    shown += remarks(record.participation, record.absences)
    if record.report:
        shown.append(f"Report: {record.report}")
    return shown


def privacy_lines(record: Record) -> list[str]:
    """Return what the clients' answers have told of any one example, where these were noised."""
    if not record.privacy:
        return []
    name, most = max(record.privacy.items(), key=lambda entry: entry[1].epsilon)
    least = min(spent.epsilon for spent in record.privacy.values())
    return [
        f"Privacy: epsilon {least:.2f} to {most.epsilon:.2f} ({name}) at delta {most.delta:g} for "
        f"each example of {len(record.privacy)} clients"
    ]


def verdict_lines(record: Record) -> list[str]:
    """Return the verdict, what it rests on, and what would be needed where it is not shown."""
    verdict, forget = record.verdict, record.forget or Target()
    if verdict is None:
        return []
    level = forget.level or ""
    lines = [f"Verdict: {wording.STATES[verdict.state]}"]
    lines += [
        f"  {text}" for text in wording.reasons(verdict, level, forget.clients, record.class_names)
    ]
    lines += [f"  not measured: {wording.not_measured(m, level)}" for m in verdict.missing]
    return [*lines, f"  {told}"] if (told := remedy(record)) else lines


def stored_updates(record: Record) -> str:
    """Return what the bytes of stored updates are called: training left them, others found them."""
    return "Stored updates" + ("" if record.kind == "train" else " before the request")


def choice(chosen: Mapping[str, Any] | None) -> list[RenderableType]:
    """Return which method was chosen and why, or nothing where the request named it."""
    return [f"Method: {chosen['method']}, for {chosen['why']}"] if chosen else []


def plan(found: Mapping[str, Any]) -> list[RenderableType]:
    """Return what is shown of a request that has not begun: what it will take."""
    target = target_text(found["forget"], found.get("class_names"))
    version = found["base_version"]
    head = f"{version} would forget {target} by {found['method']}; nothing was written down"
    if found["kind"] == "yardstick":
        models = _models(len(found["phases"]))
        head = f"{models} would be retrained without {target}; nothing was written down"
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
    head_cells = ["Phase", "Rounds", "Clients", "Examples seen", "Up", "Down", "Seconds, about"]
    shown: list[RenderableType] = [head, *choice(found["chosen"]), table(head_cells, cells)]
    if found["seconds"] is not None:
        shown.append(
            f"The request takes about {found['seconds']:,.2f} s, with all the rounds that may be "
            f"added {found['seconds_at_most']:,.2f} s; retraining about "
            f"{found['retraining_seconds']:,.2f} s."
            if found["kind"] == "forget"
            else f"The request takes about {found['seconds']:,.2f} s."
        )
    shown += [f"  warning: {text}" for text in found["warnings"]]
    shown += [f"  not known: {text}" for text in found["not_known"]]
    refused = (found["chosen"] or {}).get("refused") or {}
    shown += [f"  {name} cannot: {reason}" for name, reason in refused.items()]
    return shown


def _models(count: int) -> str:
    return "1 model" if count == 1 else f"{count} models"


def headline(record: Record) -> str:
    """Return one line: which request, what it did, and the version that came of it."""
    target = target_text(None if record.forget is None else vars(record.forget), record.class_names)
    if record.kind == "demo":
        return (
            f"Trained {record.trained_version}, forgot {target} in "
            f"{record.model_version}, relearned it in {record.relearned_version}"
        )
    what = {"train": "trained", "forget": "forgot", "relearn": "relearned"}
    done = what.get(str(record.kind), str(record.kind))
    version = record.model_version
    if record.verifies is not None:
        about = record.verifies
        return (
            f"{record.request} judged {about.request} again: {target} forgotten from "
            f"{record.base_version}, result {about.version}"
        )
    if record.kind == "yardstick":
        models = _models(len(record.stock))
        return f"{record.request or 'Request'} retrained {models} without {target}; none serves"
    end = f", now version {version}" if version else ", no new version"
    return f"{record.request or 'Request'} {done}{' ' + target if target else ''}{end}"


def accuracy_table(record: Record) -> Table:
    """Return the models' accuracies on test data; Original and Retrained come first."""
    rows = [(name, scores) for name in MODELS if (scores := getattr(record, name)) is not None]
    columns = ["Model"]
    forgets = any(scores.forget_accuracy is not None for _, scores in rows)
    curves = any(scores.relearning_curve for _, scores in rows)
    columns += ["Forget %"] if forgets else []
    columns += ["Retain %"]
    columns += ["Relearning %"] if curves else []
    told = any(scores.membership is not None for _, scores in rows)
    columns += ["Surer of members"] if told else []
    again = any(scores.client_relearning is not None for _, scores in rows)
    columns += ["Client relearning"] if again else []
    cells = []
    for name, scores in rows:
        row = [name.capitalize()]
        row += [number(scores.forget_accuracy)] if forgets else []
        row += [number(scores.retain_accuracy)]
        row += [number(scores.curve_mean)] if curves else []
        row += [number(scores.membership)] if told else []
        row += [number(scores.client_relearning)] if again else []
        cells.append(row)
    return table(columns, cells)


def stock_table(record: Record) -> Table:
    """Return a row for every retrained model, in percent."""
    names = list(record.stock[0].numbers) if record.stock else []
    return table(
        ["Model", *map(str.capitalize, names)],
        [
            [f"Retrained {one.number}", *(number(value) for value in one.numbers.values())]
            for one in record.stock
        ],
    )


def cost_table(record: Record) -> Table:
    """Return what each phase cost: wall seconds without evaluation, rounds, samples, bytes."""
    cells = []
    for phase in ROWS:
        if phase not in record.seconds:
            continue
        traffic = record.bytes.get(phase)
        cells.append(
            [
                phase.capitalize(),
                number(record.seconds[phase], 2),
                number(record.rounds.get(phase), 0),
                number(record.samples.get(phase), 0),
                size(None if traffic is None else traffic.up),
                size(None if traffic is None else traffic.down),
            ]
        )
    return table(["Phase", "Seconds", "Rounds", "Examples seen", "Up", "Down"], cells)


def speed_up_line(record: Record) -> str:
    """Return how much shorter the request was than retraining, or an empty text."""
    speed = record.speed_up
    if speed is None or speed.request is None:
        return ""
    amortised = ", ".join(f"{value:.1f} over {count}" for count, value in speed.amortised.items())
    factor = speed.request
    line = (
        f"The request was {factor:.1f} times shorter than retraining"
        if factor >= 1
        else f"The request took {1 / factor:.1f} times as long as retraining"
    )
    if not amortised or not speed.overhead_seconds:
        return f"{line}."
    names = ("distillation", "keeping updates")
    paid = " and ".join(name for name, used in zip(names, _uses(record), strict=True) if used)
    # A method that this Efface does not know has paid for something all the same.
    counted = paid or "its overhead in training"
    return f"{line}. Speed-up with {counted} counted: {amortised} requests."


class FittingTable(Table):
    """A table whose ids and numbers are never broken: a narrow terminal gets fewer columns."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Leave out columns, the least important first, until the others have room."""
        for name in LEAST_IMPORTANT:
            if self._least() <= options.max_width:
                break
            self.columns = [column for column in self.columns if column.header != name]
            for position, column in enumerate(self.columns):
                column._index = position  # Rich measures by it, and would cut the last one short
        yield from super().__rich_console__(console, options)

    def _least(self) -> int:
        """Return the width below which a column that must not be broken would be."""
        widths = []
        for column in self.columns:
            longest = max(map(len, (str(column.header), *map(str, column.cells))))
            widths.append(longest if column.no_wrap else min(longest, UNBROKEN))
        return sum(widths) + 3 * (len(widths) - 1)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1) -> Table:
    """Return a plain table; columns after the first `text` hold numbers and stand right."""
    made = FittingTable(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for position, name in enumerate(columns):
        short = all(len(row[position]) <= _unbroken(row[position]) for row in rows)
        justify: Literal["left", "right"] = "left" if position < text else "right"
        made.add_column(name, justify=justify, overflow="fold", no_wrap=short)
    for row in rows:
        made.add_row(*map(Text, row))  # as it is: brackets in a cell are no markup
    return made


def _unbroken(cell: str) -> int:
    return UNBROKEN if " " in cell.strip() else LONGEST_NAME


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


def _uses(record: Record) -> tuple[bool, bool]:
    """Return whether the record's method uses synthetic sets, and updates stored in training."""
    from strategies.table import METHODS  # brings torch along, and few records need to know

    kind = METHODS.get(str(record.method))
    return (False, False) if kind is None else (kind.needs.synthetic_data, kind.needs.history)
