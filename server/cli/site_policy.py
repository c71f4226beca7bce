"""The commands with which a site's operator makes a policy, checks the node, and reads its log."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from client.errors import BadSetting
from server.cli.command import FAILED, FORMAT, NOT_VERIFIED, Answer, Call, command
from server.report.display import table

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER", help="The site's folder, made by `efface site init`.", show_default=False
    ),
]
SHOWN: Final = 50


def add_to(site: typer.Typer) -> None:
    """Register the commands in the group `site`."""
    command(site, "init", epilog="Example: efface site init /etc/efface/site --name site-a")(init)
    command(site, "check", epilog="Example: efface site check /etc/efface/site")(check)
    command(site, "log", epilog="Example: efface site log /etc/efface/site --verify")(log)


def init(
    call: Call,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Made if missing.", show_default=False)
    ],
    name: Annotated[
        str,
        typer.Option(
            "--name", help="The name under which the node is registered.", show_default=False
        ),
    ],
) -> Answer:
    """Make a site's policy, with safe defaults, and its key; print the public key."""
    from client.keys import public_text
    from client.operator.folder import CONNECTION
    from client.policy import FILE, KEY, make_site

    where = folder.expanduser().absolute()
    public = public_text(make_site(where, name).key())
    document = {
        "format": FORMAT,
        "folder": str(where),
        "name": name,
        "policy": str(where / FILE),
        "key": str(where / KEY),
        "public_key": public,
    }
    return Answer(
        document,
        [
            f"{where / FILE}: read it, and set what this site allows.",
            f"Public key of {name}: {public}",
            "Give it to the other sites ([peers] of their policies), and put theirs into yours.",
            "Pin the coordinator's key, too ([keys] coordinators): it signs orders.",
            f"Then write {where / CONNECTION}, which says how the node is connected "
            "(deploy/DEPLOY.md shows one), and try: efface site check",
        ],
    )


def check(
    call: Call,
    folder: Folder,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not try the connection to the coordinator.")
    ] = False,
) -> Answer:
    """Check a site before its node is started, and say what to mend; the exit code is then 1."""
    from client.operator.preflight import MEND, preflight

    found = preflight(folder, connect=not offline)
    document = {
        "format": FORMAT,
        "folder": str(folder.expanduser().absolute()),
        "checks": [vars(one) for one in found],
    }
    shown: list[Any] = [
        table(["Check", "State", "Found"], [[o.check, o.state, o.text] for o in found], text=3)
    ]
    wrong = sum(one.state == MEND for one in found)
    shown.append(f"{wrong} to mend." if wrong else "All is well.")
    return Answer(document, shown, FAILED if wrong else 0)


def log(
    call: Call,
    folder: Folder,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Check that no line was altered, put in or taken out; exit code 3."
        ),
    ] = False,
    last: Annotated[
        int, typer.Option("--last", help="So many lines, the newest; 0 for all.", min=0)
    ] = SHOWN,
    refused: Annotated[
        bool, typer.Option("--refused", help="Only messages that got no answer.")
    ] = False,
) -> Answer:
    """Show every message that came to this site, what was asked, and what became of it."""
    from client.logbook import Logbook
    from client.operator.folder import SiteFolder

    store = SiteFolder.load(folder).store
    if not store.is_dir():
        raise BadSetting(f"store must be a folder that holds a log, got {store}: no message came")
    book = Logbook(store)
    document: dict[str, Any] = {"format": FORMAT, "store": str(store)}
    if verify:
        problems = book.verify()
        head = book.head() if not problems else None
        document |= {"problems": problems, "lines": None if head is None else head.number}
        if problems:
            return Answer(document, problems, NOT_VERIFIED)
        return Answer(document, [f"{store}: all {head.number if head else 0} lines are as written"])
    entries = [e for e in book.entries() if not refused or e.get("outcome") != "answered"]
    entries = entries[-last:] if last else entries
    document["entries"] = entries
    rows = [
        [
            str(e["number"]),
            _plain(e.get("time", ""))[:19],
            _plain(e.get("message", "")),
            _plain(e.get("request", "")),
            _plain(e.get("forget", "")),
            _plain(e.get("outcome", "")),
            _plain(e["why"]) if "why" in e else _told(e),
        ]
        for e in entries
    ]
    heads = ["Line", "Time (UTC)", "Message", "Request", "Names", "Outcome", "Told"]
    return Answer(document, [table(heads, rows, text=7) if rows else "No message came here."])


def _told(entry: dict[str, Any]) -> str:
    # Whatever stands there: a line that was altered is shown, and `--verify` finds it.
    numbers, arrays = _mapping(entry.get("numbers")), entry.get("arrays")
    parts = [f"{_number(numbers.get('num-examples', 0))} examples"]
    if arrays:
        parts.append(f"{_number(arrays)} arrays of {_number(entry.get('bytes', 0))} bytes")
    notes = _mapping(entry.get("notes"))
    return ", ".join([*parts, *(f"{_plain(key)} {_plain(value)}" for key, value in notes.items())])


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else _plain(value)


def _plain(value: Any) -> str:
    """Return a text from a coordinator so that it moves no cursor of the terminal that shows it."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))
