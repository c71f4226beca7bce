"""The commands with which a site's operator runs the node, and says which bundles may run in it."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from client.errors import BadSetting
from server.cli.command import FORMAT, Answer, Call, command
from server.report.display import table

if TYPE_CHECKING:
    from client.operator.bundles import Bundle, Bundles

INSTALLED: Final = "installed"

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER", help="The site's folder, made by `efface site init`.", show_default=False
    ),
]
Hash = Annotated[
    str,
    typer.Argument(metavar="HASH", help="The bundle's SHA-256, in full.", show_default=False),
]


def add_to(site: typer.Typer) -> None:
    """Register the commands in the group `site`."""
    command(site, "run", epilog="Example: efface site run /etc/efface/site --user efface-run")(run)
    command(site, "allow", epilog="Example: efface site allow /etc/efface/site --installed")(allow)
    command(site, "forbid")(forbid)
    command(site, "allowed")(allowed)
    command(site, "diff")(diff)


def run(
    call: Call,
    folder: Folder,
    user: Annotated[
        str,
        typer.Option(
            "--user",
            help="User of the executor, which must not be able to read the node's key. Needs root; "
            "the SuperNode then runs as the key's owner.",
            show_default=False,
        ),
    ] = "",
    only: Annotated[
        str,
        typer.Option(
            "--only",
            help="Run one part: node (the connection) or executor; for a unit or container of "
            "each. Both if not given.",
            show_default=False,
        ),
    ] = "",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="End, instead of warning, where the executor could reach the network, the key or "
            "the list of bundles.",
        ),
    ] = False,
    cold: Annotated[
        bool,
        typer.Option(
            "--cold",
            help="Start a new process for each message, instead of copying the executor, which has "
            "everything loaded. Slower by seconds; the answers are the same.",
        ),
    ] = False,
) -> Answer:
    """Run this site's node: the connection to the coordinator, and apart from it the executor.

    Only bundles that the operator allowed start in the executor. It ends with Ctrl-C or SIGTERM.
    """
    from client.operator import launcher

    if only and only not in launcher.PARTS:
        raise BadSetting(f"only must be one of {', '.join(launcher.PARTS)}, got {only!r}")
    parts = (only,) if only else launcher.PARTS
    with suppress(KeyboardInterrupt):  # how it is meant to end
        launcher.run(
            folder,
            parts=parts,
            user=user,
            strict=strict,
            cold=cold,
            say=lambda line: call.errors.print(line, markup=False, highlight=False, soft_wrap=True),
        )
    return Answer({"format": FORMAT, "ended": list(parts)}, [f"Ended: {' and '.join(parts)}."])


def allow(
    call: Call,
    folder: Folder,
    name: Annotated[
        str,
        typer.Argument(
            metavar="[HASH]",
            help="The bundle's SHA-256, in full; with --file, what the file's must be.",
            show_default=False,
        ),
    ] = "",
    file: Annotated[
        Path | None,
        typer.Option("--file", help="The bundle itself, a .fab file.", show_default=False),
    ] = None,
    installed: Annotated[
        bool,
        typer.Option(
            "--installed",
            help="The bundle of the Efface that is installed here: what a coordinator with the "
            "same version sends.",
        ),
    ] = False,
    note: Annotated[
        str, typer.Option("--note", help="Why, for those who read the list.", show_default=False)
    ] = "",
) -> Answer:
    """Allow a bundle to run at this site, by its SHA-256."""
    from client.operator.bundles import APP, Bundle

    bundles = _bundles(folder)
    bundle: Bundle | None = None
    if sum((bool(name) and file is None, file is not None, installed)) != 1:
        raise BadSetting("bundle must be given once: as HASH, with --file, or with --installed")
    if file is not None:
        try:
            bundle = Bundle(file.read_bytes())
        except OSError as error:
            raise BadSetting(f"file must be readable, got {error}") from None
    elif installed:
        bundle = installed_bundle()
    if bundle is not None and APP not in bundle.files:
        raise BadSetting(f"bundle must hold {APP}, got none; --file takes a Flower app, a .fab")
    digest = name or (bundle.hash if bundle else "")
    here = bundles.allow(digest, note or (INSTALLED if installed else ""), bundle)
    shown = [f"Allowed {digest}."]
    if not here:
        shown.append(
            "Its bytes have not come here: nobody has looked at what it would run. `efface site "
            "diff` can show it once it has come."
        )
    return Answer({"format": FORMAT, "hash": digest, "bytes_known": here}, shown)


def forbid(call: Call, folder: Folder, name: Hash) -> Answer:
    """Take a bundle off the list: from the next message on it does not run here."""
    _bundles(folder).forbid(name)
    return Answer({"format": FORMAT, "hash": name}, [f"No longer allowed: {name}."])


def allowed(call: Call, folder: Folder) -> Answer:
    """List the bundles that may run at this site, and those that came and may not."""
    bundles = _bundles(folder)
    listed, waiting = bundles.allowed(), bundles.waiting()
    document = {
        "format": FORMAT,
        "allowed": [{"hash": b.hash, "time": b.time, "note": b.note} for b in listed],
        "waiting": waiting,
    }
    shown: list[Any] = [
        table(["Bundle", "Allowed", "Note"], [[b.hash, b.time, b.note] for b in listed], text=2)
        if listed
        else "No bundle is allowed: nothing that a coordinator sends runs here."
    ]
    shown += [f"Came and was refused: {name}" for name in waiting]
    return Answer(document, shown)


def diff(call: Call, folder: Folder, name: Hash) -> Answer:
    """Show what a bundle changes in client/ against the last one allowed."""
    found = _bundles(folder).difference(name)
    document = {
        "format": FORMAT,
        "hash": found.new,
        "against": found.old,
        "diff": found.code,
        "elsewhere": found.elsewhere,
    }
    against = found.old or "nothing: no bundle that was allowed is kept here"
    shown = [found.code or "client/ is the same.", f"Compared with {against}."]
    if found.elsewhere:
        shown.append(
            f"{len(found.elsewhere)} files outside client/ differ; a node never loads those."
        )
    return Answer(document, shown)


def installed_bundle() -> "Bundle":
    """Return the bundle that this installation of Efface would send to the nodes."""
    from flwr.cli.build import build_fab_from_disk

    from client.operator.bundles import Bundle
    from server.nodes.engines.superlink import stage_app
    from server.runner import defaults

    with tempfile.TemporaryDirectory() as folder:
        return Bundle(build_fab_from_disk(stage_app(Path(folder) / "app", defaults())))


def _bundles(folder: Path) -> "Bundles":
    from client.operator.folder import bundles_of

    return bundles_of(folder)
