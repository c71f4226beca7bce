"""The commands that read what the home holds: requests, show, models, report, methods, evaluate.

What does not verify is marked, and the exit code is 3; no report is made of it.

It is long because its commands share how rows, times and targets are shown.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from client.errors import BadSetting
from server.cli.command import FORMAT, NOT_VERIFIED, Answer, Call, command
from server.format import number_and_name, target_text
from server.report import display
from server.report.display import number, table

if TYPE_CHECKING:
    from server.evidence.features.scores import FeatureMeasures
    from server.requests.derived import Derived
    from server.storage.home import Home
    from server.storage.ledger import Ledger, RequestRow, VersionRow
    from server.storage.seal_check import Checked, Problem

NOT_SHOWN: Final = "not-shown"  # code of a request that ran, of which too little was measured
GROUP: Final = "Look"

Identifier = Annotated[
    str, typer.Argument(metavar="ID", help="A request such as r0002, or a version such as v0002.")
]


def add_to(app: typer.Typer, of_models: typer.Typer) -> None:
    """Register the commands; `of_models` holds those under `models`."""
    of_requests = typer.Typer()
    command(
        app,
        "requests",
        group=GROUP,
        epilog="Example: efface requests --state failed",
        over=of_requests,
    )(requests)
    command(of_requests, "abort", epilog="Example: efface requests abort r0002")(abort)
    command(app, "show", group=GROUP, epilog="Example: efface show v0002")(show)
    command(app, "models", group=GROUP, over=of_models)(models)
    command(app, "forgotten", group=GROUP)(forgotten)
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
            help="Only those in this state: received, running, done, failed (and not-shown, of "
            "which too little was measured), interrupted, aborted.",
            show_default=False,
        ),
    ] = "",
    given_up: Annotated[
        str,
        typer.Option(
            "--abort",
            metavar="ID",
            help="The same as `efface requests abort ID`.",
            show_default=False,
        ),
    ] = "",
) -> Answer:
    """List all requests: who asked for what, and what came of it."""
    from server.storage.ledger import TRANSITIONS

    known = (*TRANSITIONS, NOT_SHOWN)
    if state and state not in known:
        raise BadSetting(f"state must be one of {', '.join(known)}, got {state!r}")
    if given_up:
        return abort(call, given_up)
    home, ledger = opened(call)
    seals = ledger.checked(home)
    held = "failed" if state == NOT_SHOWN else state
    rows = ledger.requests(state=held or None)  # type: ignore[arg-type]
    if state == NOT_SHOWN:
        rows = [row for row in rows if row.reason_code == NOT_SHOWN]
    cells = [
        [
            row.id,
            row.kind,
            request_target(row, ledger),
            state_text(row) + (" (edited)" if _seal_of(row, seals) == "edited" else ""),
            row.result_version or display.NOTHING,
            row.asked_by or display.NOTHING,
            f"{row.created:%Y-%m-%d %H:%M}",
        ]
        for row in rows
    ]
    head = ["Request", "Kind", "Of", "State", "Result", "Asked by", "Created (UTC)"]
    listing = table(head, cells, text=len(head))
    none = f"No {state} request." if state else "No request yet. Start with: efface train"
    shown: list[Any] = [listing if rows else none]
    if old := [row.id for row in rows if _seal_of(row, seals) == "unsigned"]:
        some = ", ".join(old if len(old) <= 6 else [*old[:3], "...", *old[-2:]])
        shown += ["", f"Unsigned, for they ended before this home had a key: {some}"]
    document = {
        "format": FORMAT,
        "requests": [request_document(row, seals) for row in rows],
        "problems": _documents(seals.problems),
    }
    return _marked(Answer(document, shown), seals.problems)


def abort(
    call: Call,
    identifier: Annotated[str, typer.Argument(metavar="ID", help="A request such as r0002.")],
) -> Answer:
    """Give up a request that was interrupted or never began; its version stays as it was."""
    home, _ = opened(call)
    from server.storage.opened import give_up

    home, ledger, row = give_up(home.path, identifier)
    found = ledger.checked(home)
    document = {
        "format": FORMAT,
        "requests": [request_document(row, found)],
        "problems": _documents(found.of(row.id)),
    }
    text = f"{row.id} is given up; version {row.base_version or 'none'} stays as it was."
    return Answer(document, [text])


def show(call: Call, identifier: Identifier) -> Answer:
    """Show one request or version: what, who asked, when, why, numbers, lineage."""
    home, ledger = opened(call)
    if identifier.startswith("r"):
        return _show_request(home, ledger, ledger.request(identifier))
    if identifier.startswith("v"):
        return _show_version(home, ledger, ledger.version(identifier))
    raise BadSetting(f"id must be of a request (r0002) or a version (v0002), got {identifier!r}")


def _show_request(home: "Home", ledger: "Ledger", row: "RequestRow") -> Answer:
    from server.evidence.record import to_json
    from server.evidence.wording import STATES
    from server.requests import derived, records

    seals = ledger.checked(home)
    problems = [*seals.of(row.id), *records.problems_of(home, row)]
    record = None if any(p.file for p in problems) else records.read(home, row)
    waiting = _waiting(ledger, [row.id])
    facts = [
        ("Request", row.id),
        ("What", f"{row.kind} {request_target(row, ledger)}".strip()),
        ("Method", row.method),
        ("State", state_text(row) + (f": {row.reason}" if row.reason else "")),
        ("Signed", _SIGNED[_seal_of(row, seals)]),
        ("Asked by", row.asked_by),
        ("Why", row.why),
        ("Created", _time(row.created)),
        ("Started", _time(row.started)),
        ("Finished", _time(row.finished)),
        ("Federation", row.federation),
        ("Started from", row.base_version),
        ("Result", row.result_version),
        ("Waits at", ", ".join(one["client"] for one in waiting)),
    ]
    shown: list[Any] = [_facts(facts)]
    if record is not None:
        shown += display.result(record)
    later = records.later(home, ledger, row)
    if later:
        head = ["Judged again by", "Finished (UTC)", "Verdict", "Retrained models", "Asked by"]
        cells = [
            [
                one.request,
                (one.finished or "")[:16].replace("T", " "),
                "does not verify" if one.state is None else STATES[one.state],
                str(one.retrainings or 0),
                one.asked_by or display.NOTHING,
            ]
            for one in later
        ]
        shown += ["", table(head, cells, text=len(head))]
    left = derived.of_request(home, ledger, row)
    if left:
        head = ["Derived from it", "Of", "State", "Since (UTC)", "Where"]
        cells = [[one.kind, one.name, one.state, *_when_and_where(one)] for one in left]
        shown += ["", table(head, cells, text=len(head))]
    document = {
        "format": FORMAT,
        "request": request_document(row, seals),
        "record": None if record is None else to_json(record),
        "verifications": [asdict(one) for one in later],
        "derived": [
            asdict(one) | {"path": None if one.path is None else str(one.path)} for one in left
        ],
        "pending": waiting,
        "problems": _documents(problems),
    }
    return _marked(Answer(document, shown), problems)


def _when_and_where(one: "Derived") -> tuple[str, str]:
    when = (one.at or "")[:16].replace("T", " ")
    return when or display.NOTHING, display.NOTHING if one.path is None else str(one.path)


def _show_version(home: "Home", ledger: "Ledger", row: "VersionRow") -> Answer:
    line = _lineage(ledger, row)
    seals = ledger.checked(home)
    ids = {version.id for version, _ in line} | {request.id for _, request in line} | {None}
    problems = [p for p in seals.problems if p.version in ids and p.request in ids]
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": version_document(row, ledger.pruned()),
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
        "pending": _waiting(ledger, [request.id for _, request in line]),
        "problems": _documents(problems),
    }
    facts = [
        ("Version", row.id),
        ("State", row.state),
        ("Weights", _pruned_text(document["version"]["pruned"])),
        ("Federation", row.federation),
        ("Model", _model_text(row)),
        ("Has forgotten", _forgotten(row) or "nothing"),
        ("Learned again", str(line[-1][1].settings.get("allow-forgotten") or "")),
        ("Classes", ", ".join(names_of(row) or ())),
        ("Accuracy", _accuracy_text(row, line[0][1], ledger)),
        ("Created", _time(row.created)),
        ("SHA-256", row.sha256),
        ("Data", row.card.get("data_sha256")),
        ("Waits at", ", ".join(f"{p['client']} ({p['request']})" for p in document["pending"])),
    ]
    cells = [
        [v.id, r.id, f"{r.kind} {request_target(r, ledger)}".strip(), _time(v.created)]
        for v, r in line
    ]
    lineage = table(["Lineage", "Request", "What", "Created"], cells, text=4)
    return _marked(Answer(document, [_facts(facts), lineage]), problems)


def models(call: Call) -> Answer:
    """List all versions: state, where they come from, accuracy."""
    home, ledger = opened(call)
    rows, pruned = ledger.versions(), ledger.pruned()
    cells = [
        [
            row.id,
            row.state + (", pruned" if row.id in pruned else ""),
            row.parent or display.NOTHING,
            row.request,
            _forgotten(row) or display.NOTHING,
            f"{row.created:%Y-%m-%d %H:%M}",
            row.federation,
            number((row.card.get("scores") or {}).get("retain_accuracy")),
        ]
        for row in rows
    ]
    head = ["Version", "State", "From", "Request", "Forgot", "Created (UTC)", "Federation"]
    found = table([*head, "Retain %"], cells, text=len(head))
    shown = [found] if rows else ["No version yet. Start with: efface train"]
    problems = [p for p in ledger.checked(home).problems if p.version or not p.request]
    document = {
        "format": FORMAT,
        "versions": [version_document(row, pruned) for row in rows],
        "problems": _documents(problems),
    }
    return _marked(Answer(document, shown), problems)


def forgotten(call: Call) -> Answer:
    """List all that is forgotten now: since when, by which request, and what waits where."""
    home, ledger = opened(call)
    from server.requests.forgotten import listed, pending_text

    found, pending, problems = listed(ledger), ledger.pending(), ledger.checked(home).problems
    document = {
        "format": FORMAT,
        "forgotten": found,
        "pending": [
            {"request": p.request, "client": p.client, "since": p.since.isoformat()}
            for p in pending
        ],
        "problems": _documents(problems),
    }
    cells = [
        [
            target_text(one, one["class_names"]),
            one["federation"],
            one["version"] or display.NOTHING,
            (one["since"] or "")[:16].replace("T", " "),
            one["request"],
            one["method"],
            ", ".join(one["pending"]) or display.NOTHING,
            ", ".join(one["known_by"]) or display.NOTHING,
        ]
        for one in found
    ]
    head = [
        *("Forgotten", "Federation", "In service", "Since (UTC)", "Request", "Method"),
        *("Waits at", "Still known by"),
    ]
    shown: list[Any] = [table(head, cells, text=len(head)) if found else "Nothing is forgotten."]
    return _marked(Answer(document, [*shown, *pending_text(pending, ledger)]), problems)


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
    from server.requests import records

    row = ledger.request(identifier)
    path = records.page(home, ledger, row, output)
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
    """List the methods; of one that is named, what it needs and its hyper-parameters."""
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
            "yes" if one["sums"] == one["levels"] else ", ".join(one["sums"]) or "no",
            "yes" if one["relearning"] else "no",
        ]
        for one in found
    ]
    if not name:
        lines = [
            [str(one["name"]), _levels(one["levels"]), str(one["summary"]).partition(": ")[2]]
            for one in found
        ]
        each = "`efface methods NAME` shows what a method needs, and its hyper-parameters."
        listed = table(["Method", "Forgets", "How"], lines, text=3)
        return Answer({"format": FORMAT, "methods": found}, [listed, "", each])
    head = ["Method", "Forgets", "Needs", "Holders online", "Secure aggregation", "Relearns"]
    shown: list[Any] = [table(head, cells, text=len(head))]
    for one in found:
        rows = [
            [f"  {key}", f"{default}", f"{one['meanings'][key]}; must {one['rules'][key]}"]
            for key, default in one["options"].items()
        ]
        shown += ["", f"{one['name']}: {str(one['summary']).partition(': ')[2]}"]
        if rows:
            shown.append(table(["  --set", "Default", "Meaning"], rows, text=3))
    return Answer({"format": FORMAT, "methods": found}, shown)


def _levels(levels: Sequence[str]) -> str:
    """Return the levels in a word, for a narrow terminal to have room for how a method works."""
    return "both" if len(levels) > 1 else levels[0]


_NEEDS: Final = (
    ("synthetic_data", "synthetic sets made in training"),
    ("history", "updates stored in training"),
    ("server_data", "examples of the coordinator's own"),
)


def _method(name: str) -> dict[str, Any]:
    """Return a method as JSON holds it."""
    import sys

    from server.requests.known_to_forget import KNOWN_TO_FORGET
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
        "secure_aggregation": bool(needs.sums),
        "sums": sorted(needs.sums),
        "relearning": needs.relearning,
        "shown_to_forget": sorted(
            level for level, names in KNOWN_TO_FORGET.items() if name in names
        ),
        "options": {f.name.replace("_", "-"): f.default for f in options},
        "rules": {f.name.replace("_", "-"): f.metadata["rule"].words for f in options},
        "meanings": {f.name.replace("_", "-"): f.metadata["words"] for f in options},
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
        list[str] | None,
        typer.Option(
            "--relearning",
            metavar="NAME|NUMBER",
            help="Also measure how fast the class comes back; may be repeated.",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--features",
            metavar="NAME|NUMBER",
            help="Also measure what is known of the class below the last layer, beside the version "
            "before and Retrained; may be repeated.",
            show_default=False,
        ),
    ] = None,
    data_now: Annotated[
        str,
        typer.Option(
            "--data",
            "--data-dir",
            help="Where the version's data lie now, if they have moved: the file or folder, or for "
            "a published data set the folder of its files.",
            show_default=False,
        ),
    ] = "",
) -> Answer:
    """Measure a version on its data set's test part, class by class."""
    home, ledger = opened(call)
    from server.evidence.serial import plain
    from server.requests.evaluation import evaluated

    found = evaluated(
        home,
        ledger,
        version,
        relearning or (),
        data_now or call.project.value("data") or "",
        features or (),
    )
    names, scores = found.class_names, found.scores
    document = {
        "format": FORMAT,
        "version": found.version,
        "dataset": found.dataset,
        "num_images": sum(found.counts),
        "erased": found.erased,
        "class_names": list(names or ()),
        **scores,
        "relearning_curve": found.curve,
        "features": None if found.features is None else plain(found.features),
        "features_from": found.features_from,
    }
    cells = [
        [
            number_and_name(c, names),
            "forgotten" if c in found.erased["classes"] else "",
            str(found.counts[c]),
            number(percent),
        ]
        for c, percent in enumerate(scores["per_class_accuracy"])
    ]
    shown: list[Any] = [
        f"{found.version} on {sum(found.counts):,} test examples of {found.data_text}: "
        f"{display.accuracies(scores)}",
        *found.notes,
        table(["Class", "", "Examples", "Accuracy %"], cells, text=2),
    ]
    if found.asked:
        shown += _curve_lines(target_text({"classes": found.asked}, names), found.curve)
    if found.features is not None:
        of = target_text({"classes": found.features_of}, names)
        shown += _feature_lines(of, found.version, str(found.features_from), found.features)
    shown += [f"note: {note}" for note in found.cautions]
    return Answer(document, shown)


def _feature_lines(named: str, version: str, before: str, found: "FeatureMeasures") -> list[Any]:
    from server.report.features import SHORT, WHY_NOT, feature_rows

    if found.why_not is not None:
        return [f"Below the last layer, {named}: {WHY_NOT[found.why_not]}"]
    lines: list[Any] = [
        f"Below the last layer, {named} (percent; then how like Retrained, 0 to 1):",
        table(["Model", *SHORT], feature_rows(found, version, f"Original ({before})"), text=1),
    ]
    if found.retrained is None:
        lines.append(
            "note: no Retrained was kept to compare with: efface forget --compare retrain trains "
            "one; any model knows some of a class that it never saw"
        )
    return lines


def _curve_lines(named: str, curve: Mapping[str, Any] | None) -> list[Any]:
    if curve is None:
        return [f"Relearning of {named}: not measured, there are too few test examples"]
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
    """Return the home and its ledger, to be looked at: nothing is written or created."""
    from server.storage.opened import opened as looked_at

    return looked_at(call.home)


_SIGNED: Final = {
    "sealed": "yes",
    "unsigned": "no: it ended before this home had a key",
    "edited": "it does not verify",
    "open": "",
}


def _seal_of(row: "RequestRow", seals: "Checked") -> str:
    """Return whether a row is sealed, unsigned for its age, edited, or open still."""
    if any(p.request == row.id for p in seals.problems):
        return "edited"
    if row.id in seals.sealed:
        return "sealed"
    return "unsigned" if row.id in seals.unsigned else "open"


def _marked(answer: Answer, problems: "Sequence[Problem]") -> Answer:
    """Return an answer that says what does not verify, with the exit code for it."""
    if not problems:
        return answer
    lines = [
        "",
        "Does not verify (`efface audit` checks all):",
        *(problem.sentence for problem in problems),
    ]
    return Answer(answer.document, [*answer.shown, *lines], NOT_VERIFIED)


def _documents(problems: "Sequence[Problem]") -> list[dict[str, Any]]:
    return [asdict(problem) for problem in problems]


def request_document(row: "RequestRow", seals: "Checked") -> dict[str, Any]:
    """Return a request as JSON holds it."""
    document = asdict(row) | {"seal": _seal_of(row, seals)}
    for key in ("created", "started", "finished"):
        document[key] = None if document[key] is None else document[key].isoformat()
    return document


def state_text(row: "RequestRow") -> str:
    """Return a request's state; a result of which too little was measured has not failed."""
    return "not shown" if row.reason_code == NOT_SHOWN else row.state


def version_document(row: "VersionRow", pruned: Mapping[str, str]) -> dict[str, Any]:
    """Return a version as JSON holds it; `pruned` says when weights were, by version."""
    return asdict(row) | {"created": row.created.isoformat(), "pruned": pruned.get(row.id)}


def _pruned_text(at: str | None) -> str:
    return "" if at is None else f"pruned {at[:19].replace('T', ' ')} UTC"


def request_target(row: "RequestRow", ledger: "Ledger") -> str:
    """Return what a request names, such as `class 9 (sneaker)`."""
    names = None
    if row.classes and row.base_version:
        names = names_of(ledger.version(row.base_version))
    target = target_text({"classes": row.classes, "clients": row.clients}, names)
    return f"{row.settings['verifies']}, {target}" if row.kind == "verify" else target


def names_of(row: "VersionRow") -> list[str] | None:
    """Return a version's class names, or None where its card has none but numbers."""
    names: list[str] = (row.card.get("data") or {}).get("class_names") or []
    return None if names == [str(number) for number in range(len(names))] else names


def _forgotten(row: "VersionRow") -> str:
    return target_text(row.card.get("erased"), names_of(row))


def _lineage(ledger: "Ledger", row: "VersionRow") -> "list[tuple[VersionRow, RequestRow]]":
    """Return a version with its request, then its parent with its own, to the root."""
    line = [(row, ledger.request(row.request))]
    while (parent := line[-1][0].parent) is not None:
        version = ledger.version(parent)
        line.append((version, ledger.request(version.request)))
    return line


def _waiting(ledger: "Ledger", requests: Sequence[str]) -> list[dict[str, str]]:
    """Return what requests still owe to clients that were offline, as JSON holds it."""
    return [
        {"request": p.request, "client": p.client, "since": p.since.isoformat()}
        for p in ledger.pending()
        if p.request in requests
    ]


def _accuracy_text(row: "VersionRow", request: "RequestRow", ledger: "Ledger") -> str:
    """Return a version's accuracies on each class that it has forgotten and on what it retains."""
    scores, erased = row.card.get("scores") or {}, row.card.get("erased") or {}
    each = scores.get("per_class_accuracy") or []
    known = [(c, each[c]) for c in erased.get("classes", ()) if c < len(each)]
    found = [
        f"{target_text({'classes': [c]}, names_of(row))} {value:.1f} %"
        for c, value in known
        if value is not None
    ]
    of_client = (request.kind, request.level) == ("forget", "client")
    if of_client and scores.get("forget_accuracy") is not None:
        found.append(f"{request_target(request, ledger)} {scores['forget_accuracy']:.1f} %")
    retained = display.accuracies({"retain_accuracy": scores.get("retain_accuracy")})
    return ", ".join([*found, *filter(None, [retained])])


def _facts(facts: Sequence[tuple[str, str | None]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in facts:
        if value:
            made.add_row(name, Text(value))
    return made


def _time(moment: Any) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _model_text(row: "VersionRow") -> str:
    card, data = row.card.get("model") or {}, row.card.get("data") or {}
    options = json.loads(card.get("options", "{}"))
    title = options.get("net") or str(card.get("name")).rpartition(":")[2]
    shape = "x".join(map(str, data.get("image_shape") or ()))
    pruned = sum(len(line.partition(":")[2].split(",")) for line in card.get("pruned", ()))
    left = "removed" if card.get("compact") else "kept at zero"
    count, task = data.get("num_classes"), "task " if card.get("code") else ""
    classes = "no classes" if count == 1 else f"{count} classes"
    train, test = (data.get(f"num_{part}") for part in ("train", "test"))
    sizes = "" if train is None else f", {train:,} to train on, {test:,} to test on"
    return f"{task}{title}, {classes}, examples of {shape}{sizes}" + (
        f"; {pruned} pruned channels, {left}" if pruned else ""
    )
