"""The commands that read what the home holds: requests, show, models, report, methods, evaluate."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from client.errors import BadSetting, DataError, EffaceError
from server.cli.command import FORMAT, Answer, Call, command
from server.report import display
from server.report.display import number, table

if TYPE_CHECKING:
    from server.storage.home import Home
    from server.storage.ledger import Ledger, RequestRow, VersionRow

GROUP: Final = "Look"
GONE: Final = "the process that ran it ended without a word"

Identifier = Annotated[
    str, typer.Argument(metavar="ID", help="A request such as r0002, or a version such as v0002.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(app, "requests", group=GROUP, epilog="Example: efface requests --state failed")(
        requests
    )
    command(app, "show", group=GROUP, epilog="Example: efface show v0002")(show)
    command(app, "models", group=GROUP)(models)
    command(app, "report", group=GROUP, epilog="Example: efface report r0002 --output r.html")(
        report
    )
    command(app, "methods", group=GROUP, epilog="Example: efface methods sga")(methods)
    command(app, "evaluate", group=GROUP, epilog="Example: efface evaluate v0001 --relearning 9")(
        evaluate
    )


def requests(
    call: Call,
    state: Annotated[
        str,
        typer.Option(
            "--state",
            help="Only those in this state: received, running, done, failed, interrupted, aborted.",
            show_default=False,
        ),
    ] = "",
    abort: Annotated[
        str,
        typer.Option(
            "--abort",
            metavar="ID",
            help="Give up a request that was interrupted or never began; the version it "
            "started from stays.",
            show_default=False,
        ),
    ] = "",
) -> Answer:
    """List all requests: who asked for what, and what came of it."""
    from server.storage.ledger import TRANSITIONS

    if state and state not in TRANSITIONS:
        raise BadSetting(f"state must be one of {', '.join(TRANSITIONS)}, got {state!r}")
    home, ledger = opened(call)
    if abort:
        from server.storage.home import Home
        from server.storage.ledger import Ledger, database_url

        home = Home(home.path)
        with home.lock():
            ledger = Ledger.open(database_url(home))
            ledger.interrupt_running(GONE)
            given_up = ledger.abort(abort, "given up by the operator")
        text = (
            f"{given_up.id} is given up; version {given_up.base_version or 'none'} stays as it was."
        )
        return Answer({"format": FORMAT, "requests": [request_document(given_up)]}, [text])
    rows = ledger.requests(state=state or None)  # type: ignore[arg-type]
    cells = [
        [
            row.id,
            row.kind,
            request_target(row),
            row.state,
            row.result_version or display.NOTHING,
            row.asked_by or display.NOTHING,
            f"{row.created:%Y-%m-%d %H:%M}",
        ]
        for row in rows
    ]
    head = ["Request", "Kind", "Of", "State", "Result", "Asked by", "Created (UTC)"]
    found = table(head, cells, text=len(head))
    none = f"No {state} request." if state else "No request yet. Start with: efface train"
    shown = [found] if rows else [none]
    return Answer({"format": FORMAT, "requests": [request_document(r) for r in rows]}, shown)


def show(call: Call, identifier: Identifier) -> Answer:
    """Show one request or version: what, who asked, when, why, numbers, lineage."""
    home, ledger = opened(call)
    if identifier.startswith("r"):
        return _show_request(home, ledger.request(identifier))
    if identifier.startswith("v"):
        return _show_version(ledger, ledger.version(identifier))
    raise BadSetting(f"id must be of a request (r0002) or a version (v0002), got {identifier!r}")


def _show_request(home: "Home", row: "RequestRow") -> Answer:
    from server.requests import records

    record = records.read(home, row)
    facts = [
        ("Request", row.id),
        ("What", f"{row.kind} {request_target(row)}".strip()),
        ("Method", row.method),
        ("State", row.state + (f": {row.reason}" if row.reason else "")),
        ("Asked by", row.asked_by),
        ("Why", row.why),
        ("Created", _time(row.created)),
        ("Started", _time(row.started)),
        ("Finished", _time(row.finished)),
        ("Federation", row.federation),
        ("Started from", row.base_version),
        ("Result", row.result_version),
    ]
    shown: list[Any] = [_facts(facts)]
    if record is not None:
        shown += display.result(record)
    return Answer({"format": FORMAT, "request": request_document(row), "record": record}, shown)


def _show_version(ledger: "Ledger", row: "VersionRow") -> Answer:
    line = _lineage(ledger, row)
    document = {
        "format": FORMAT,
        "version": version_document(row),
        "lineage": [
            {
                "version": version.id,
                "request": request.id,
                "kind": request.kind,
                "classes": list(request.classes),
                "clients": list(request.clients),
                "created": version.created.isoformat(),
            }
            for version, request in line
        ],
    }
    scores = row.card.get("scores") or {}
    facts = [
        ("Version", row.id),
        ("State", row.state),
        ("Federation", row.federation),
        ("Model", _model_text(row)),
        ("Has forgotten", display.target_text(row.card.get("erased")) or "nothing"),
        ("Accuracy", display.accuracies(scores)),
        ("Created", _time(row.created)),
        ("SHA-256", row.sha256),
    ]
    cells = [
        [v.id, r.id, f"{r.kind} {request_target(r)}".strip(), _time(v.created)] for v, r in line
    ]
    lineage = table(["Lineage", "Request", "What", "Created"], cells, text=4)
    return Answer(document, [_facts(facts), lineage])


def models(call: Call) -> Answer:
    """List all versions: state, where they come from, accuracy."""
    _, ledger = opened(call)
    rows = ledger.versions()
    cells = [
        [
            row.id,
            row.state,
            row.parent or display.NOTHING,
            row.request,
            display.target_text(row.card.get("erased")) or display.NOTHING,
            f"{row.created:%Y-%m-%d %H:%M}",
            row.federation,
            number((row.card.get("scores") or {}).get("retain_accuracy")),
        ]
        for row in rows
    ]
    head = ["Version", "State", "From", "Request", "Forgot", "Created (UTC)", "Federation"]
    found = table([*head, "Retain %"], cells, text=len(head))
    shown = [found] if rows else ["No version yet. Start with: efface train"]
    return Answer({"format": FORMAT, "versions": [version_document(r) for r in rows]}, shown)


def report(
    call: Call,
    identifier: Identifier,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write; the home's own if not given.", show_default=False
        ),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> Answer:
    """Write a request's HTML report again from its record, and say where it is."""
    home, ledger = opened(call)
    if identifier.startswith("v"):
        identifier = ledger.version(identifier).request
    row = ledger.request(identifier)
    from server.report.write import write_report
    from server.requests import records

    record = records.read(home, row)
    if record is None:
        raise EffaceError(
            f"request {row.id} must have a record, got none in {home.runs / row.id}: "
            f"it is {row.state}" + (f" ({row.reason})" if row.reason else "")
        )
    path = (output or home.reports / f"{row.id}.html").expanduser().absolute()
    if not path.parent.is_dir():
        raise BadSetting(f"output must lie in a folder that exists, got {path}")
    if home.writable:
        records.publish_left(home, ledger)
    if output or home.writable:
        write_report(record, path)
    elif not path.is_file():
        raise BadSetting(
            f"output must be named where the home cannot be written, got none for {home.path}; "
            "name a file by --output"
        )
    if open_it:
        typer.launch(path.as_uri())
    return Answer({"format": FORMAT, "request": row.id, "report": str(path)}, [str(path)])


def methods(
    call: Call,
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]", help="Method to list; all if not given.", show_default=False
        ),
    ] = "",
) -> Answer:
    """List the methods: which requests they serve, what they need, their hyper-parameters."""
    from strategies.table import METHODS

    if name and name not in METHODS:
        raise BadSetting(
            f"method must be one of {', '.join(METHODS)}, got {name!r}", see="efface methods"
        )
    found = [_method(one) for one in METHODS if name in ("", one)]
    cells = [
        [
            str(one["name"]),
            ", ".join(one["levels"]),
            ", ".join(text for key, text in _NEEDS if one[key]) or display.NOTHING,
            "yes" if one["target_online"] else "no",
            "yes" if one["secure_aggregation"] else "no",
            "yes" if one["relearning"] else "no",
        ]
        for one in found
    ]
    head = ["Method", "Forgets", "Needs", "Holders online", "Secure aggregation", "Relearns"]
    shown: list[Any] = [table(head, cells, text=len(head))]
    for one in found:
        rows = [
            [f"  {key}", f"{default}", f"must {one['rules'][key]}"]
            for key, default in one["options"].items()
        ]
        shown += ["", f"{one['name']}: {str(one['summary']).partition(': ')[2]}"]
        if rows:
            shown.append(table(["  --set", "Default", "Rule"], rows, text=3))
    return Answer({"format": FORMAT, "methods": found}, shown)


_NEEDS: Final = (
    ("synthetic_data", "synthetic sets made in training"),
    ("history", "updates stored in training"),
    ("server_data", "examples of the coordinator's own"),
)


def _method(name: str) -> dict[str, Any]:
    """Return a method as JSON holds it."""
    import sys

    from server.requests.planning import SHOWN
    from strategies.table import METHODS

    kind = METHODS[name]
    alone = [other.__module__ for other in METHODS.values()].count(kind.__module__) == 1
    about = sys.modules[kind.__module__].__doc__ if alone else kind.__doc__
    needs = kind.needs
    options = [f for f in fields(kind) if f.default is not MISSING]
    summary = (about or "").strip().partition("\n")[0]
    return {
        "name": name,
        "summary": summary,
        "levels": sorted(needs.levels),
        "synthetic_data": needs.synthetic_data,
        "history": needs.history,
        "server_data": needs.server_data,
        "target_online": needs.target_online,
        "individual_updates": needs.individual_updates,
        "secure_aggregation": not needs.individual_updates,
        "relearning": needs.relearning,
        "shown_to_forget": sorted(level for level, names in SHOWN.items() if name in names),
        "options": {f.name.replace("_", "-"): f.default for f in options},
        "rules": {f.name.replace("_", "-"): f.metadata["rule"].words for f in options},
    }


def evaluate(
    call: Call,
    version: Annotated[
        str,
        typer.Argument(
            metavar="[VERSION]",
            help="Version to evaluate; the one in service if not given.",
            show_default=False,
        ),
    ] = "",
    relearning: Annotated[
        list[int] | None,
        typer.Option(
            "--relearning",
            metavar="CLASS",
            help="Also measure how fast the class comes back; may be repeated.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        str,
        typer.Option(
            "--data-dir", help="Folder of the data set's files, if moved.", show_default=False
        ),
    ] = "",
) -> Answer:
    """Measure a version on its data set's test part, class by class."""
    home, ledger = opened(call)
    from dataclasses import replace

    from client.wire import ForgetSpec
    from server.evidence.measures import Judge
    from server.nodes.federation import from_numpy
    from server.requests.data import server_data
    from server.requests.intake import inherited
    from server.settings import RunSettings
    from server.storage.registry import Registry

    registry = Registry(home, ledger, sweep=False)
    row = registry.resolve(version or None)
    arrays, card = registry.load(row)
    settings = inherited(RunSettings(), row)
    if data_dir:
        settings = replace(settings, data_dir=data_dir)
    data = server_data(settings)
    if data is None or not len(data.test):
        raise DataError(
            f"version {row.id} must have test images here, got none: only the clients have data"
        )
    spec = settings.model_spec(data)
    asked = tuple(dict.fromkeys(relearning or ()))
    for number_ in asked:
        if not 0 <= number_ < spec.num_classes:
            raise BadSetting(f"class must lie in [0, {spec.num_classes}), got {number_}")
    erased = tuple(card["erased"]["classes"])
    forget = ForgetSpec("class", asked or erased) if asked or erased else ForgetSpec()
    judge = Judge(spec, data, forget, tuple(c for c in erased if c not in asked))
    model = from_numpy(arrays)
    scores = judge.quick(model)
    curve = judge.relearning(model) if asked else None
    document = {
        "format": FORMAT,
        "version": row.id,
        "dataset": settings.dataset,
        "num_images": len(data.test),
        "erased": card["erased"],
        **scores,
        "relearning_curve": curve,
    }
    counts = data.test.labels.bincount(minlength=spec.num_classes).tolist()
    cells = [
        [str(c), "forgotten" if c in erased else "", str(counts[c]), number(percent)]
        for c, percent in enumerate(scores["per_class_accuracy"])
    ]
    shown: list[Any] = [
        f"{row.id} on {len(data.test):,} test images of {settings.dataset}: "
        f"{display.accuracies(scores)}",
        table(["Class", "", "Images", "Accuracy %"], cells, text=2),
    ]
    if asked:
        shown += _curve_lines(asked, curve)
    return Answer(document, shown)


def _curve_lines(asked: tuple[int, ...], curve: dict[str, Any] | None) -> list[Any]:
    named = display.target_text({"classes": asked})
    if curve is None:
        return [f"Relearning of {named}: not measured, there are too few test images"]
    cells = [
        [str(steps), number(percent)]
        for steps, percent in zip(curve["steps"], curve["forget_accuracy"], strict=True)
    ]
    return [
        f"Relearning of {named}: mean {number(curve['mean'])} %",
        table(["SGD steps", "Accuracy %"], cells),
    ]


# ---- shared -------------------------------------------------------------------------------------


def opened(call: Call) -> tuple["Home", "Ledger"]:
    """Return the home and its ledger, to be looked at: nothing is written or created.

    A request whose process is gone is seen as interrupted.
    """
    from server.storage.home import Home
    from server.storage.ledger import Ledger, database_url

    home = Home(call.home or None, reading=True)
    url = database_url(home) if home.path.is_dir() else "sqlite://"
    ledger = Ledger.read(url)
    if not ledger.requests(state="running") or home.held():
        return home, ledger
    if not ledger.is_copy:
        with suppress(EffaceError), home.lock():
            ledger.interrupt_running(GONE)
        return home, ledger
    # In the copy alone. It is taken anew: the request may have ended in between.
    ledger = Ledger.read(url)
    ledger.interrupt_running(GONE)
    return home, ledger


def request_document(row: "RequestRow") -> dict[str, Any]:
    """Return a request as JSON holds it."""
    document = asdict(row)
    for key in ("created", "started", "finished"):
        document[key] = None if document[key] is None else document[key].isoformat()
    return document


def version_document(row: "VersionRow") -> dict[str, Any]:
    """Return a version as JSON holds it."""
    return asdict(row) | {"created": row.created.isoformat()}


def request_target(row: "RequestRow") -> str:
    """Return what a request names, such as `class 9`."""
    return display.target_text({"classes": row.classes, "clients": row.clients})


def _lineage(ledger: "Ledger", row: "VersionRow") -> "list[tuple[VersionRow, RequestRow]]":
    """Return a version with its request, then its parent with its own, to the root."""
    line = [(row, ledger.request(row.request))]
    while (parent := line[-1][0].parent) is not None:
        version = ledger.version(parent)
        line.append((version, ledger.request(version.request)))
    return line


def _facts(facts: Sequence[tuple[str, str | None]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in facts:
        if value:
            made.add_row(name, escape(value))
    return made


def _time(moment: Any) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _model_text(row: "VersionRow") -> str:
    spec = row.card.get("model") or {}
    size = spec.get("image_size")
    pruned = sum(len(line.partition(":")[2].split(",")) for line in spec.get("pruned", ()))
    left = "removed" if spec.get("compact") else "kept at zero"
    return (
        f"{spec.get('name')}, {spec.get('num_classes')} classes, "
        f"{spec.get('channels')}x{size}x{size} images"
        + (f"; {pruned} pruned channels, {left}" if pruned else "")
    )
