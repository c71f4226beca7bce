"""The commands of whoever keeps the SuperLink."""

from pathlib import Path
from typing import Annotated, Final

import typer

from server.cli.command import FORMAT, Answer, Call, command
from server.report import display

GROUP: Final = "At the coordinator"


def add_to(app: typer.Typer) -> None:
    """Register the group `superlink`."""
    made = typer.Typer(help="Keep the SuperLink's own files clean.", no_args_is_help=True)
    command(
        made, "purge", epilog="Example: efface superlink purge /var/lib/efface-superlink/state.db"
    )(purge)
    app.add_typer(made, name="superlink", rich_help_panel=GROUP)


def purge(
    call: Call,
    database: Annotated[
        Path,
        typer.Argument(metavar="DATABASE", help="The SuperLink's --database.", show_default=False),
    ],
) -> Answer:
    """Delete what was exchanged in runs that are over from the SuperLink's database, for good.

    It may be done while the SuperLink runs. Registrations, runs and their logs stay.
    """
    from server.nodes.database import purge as purged

    found = purged(database)
    document = {
        "format": FORMAT,
        "database": str(database),
        "messages": found.messages,
        "objects": found.objects,
        "bytes_before": found.bytes_before,
        "bytes_after": found.bytes_after,
        "unfinished_runs": found.unfinished,
    }
    shown = [
        f"Purged {database}: {display.size(found.bytes_before)} before, "
        f"{display.size(found.bytes_after)} after."
    ]
    if found.unfinished:
        shown.append(f"{found.unfinished} runs are not over: what they exchange stays until then.")
    return Answer(document, shown)
