"""The command that shows what a site's answers have told of its examples, and what is left."""

from pathlib import Path
from typing import Annotated, Any

import typer

from client.errors import BadSetting
from server.cli.command import FORMAT, Answer, Call, command
from server.report.display import table

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        help="The site's folder, made by `efface site init`; or a node's store, of which no policy "
        "is known.",
        show_default=False,
    ),
]


def add_to(site: typer.Typer) -> None:
    """Register the command in the group `site`."""
    command(site, "budget", epilog="Example: efface site budget /etc/efface/site")(budget)


def budget(
    call: Call,
    folder: Folder,
    delta: Annotated[
        float | None,
        typer.Option(
            "--delta", help="At this delta; that of the policy if not given.", show_default=False
        ),
    ] = None,
) -> Answer:
    """Show what answers under noise have told of any one example: epsilon spent, and left."""
    from client.budget import Budget, epsilon
    from client.operator.folder import CONNECTION, POLICY, SiteFolder
    from client.policy import Policy, Privacy

    if not folder.is_dir():
        raise BadSetting(f"folder must be one, got {folder}, which does not exist")
    if delta is not None and not 0 < delta < 1:
        raise BadSetting(f"delta must lie between 0 and 1, got {delta:g}")
    is_site = any((folder / name).exists() for name in (CONNECTION, POLICY))
    store = SiteFolder.load(folder).store if is_site else folder
    law = Policy.load(folder / POLICY).privacy if is_site else Privacy()
    at = law.delta if delta is None else delta
    spent = Budget(store).spent()
    whole = epsilon([one.mechanism for one in spent], at)
    limit = law.epsilon if is_site and law.required else None
    lineages = {
        name: epsilon([one.mechanism for one in spent if one.lineage == name], at)
        for name in dict.fromkeys(one.lineage for one in spent)
    }
    document: dict[str, Any] = {
        "format": FORMAT,
        "store": str(store),
        "required": limit is not None,
        "delta": at,
        "epsilon": whole,
        "limit": limit,
        "left": None if limit is None else max(0.0, limit - whole),
        "lineages": lineages,
        "spent": [
            {
                "lineage": one.lineage,
                "message": one.message,
                "messages": one.messages,
                "noise": one.mechanism.noise,
                "rate": one.mechanism.rate,
                "steps": one.mechanism.steps,
            }
            for one in spent
        ],
    }
    if not spent:
        shown: list[Any] = ["No answer under noise has been given."]
    else:
        rows = [
            [
                one.lineage,
                one.message,
                str(one.messages),
                f"{one.mechanism.noise:g}",
                f"{one.mechanism.rate:.4g}",
                f"{one.mechanism.steps:,}",
            ]
            for one in spent
        ]
        headings = ["Lineage", "Message", "Messages", "Noise", "Sampled", "Steps"]
        shown = [table(headings, rows, text=2)]
        shown += [f"{name}: epsilon {value:.3f}" for name, value in lineages.items()]
    allowed = "" if limit is None else f" of {limit:g}; {max(0.0, limit - whole):.3f} is left"
    shown.append(f"Together: epsilon {whole:.3f} at delta {at:g}{allowed}")
    if limit is None:
        shown.append("No policy requires noise here: other answers may have told more.")
    return Answer(document, shown)
