"""The command that trains the stock of retrained models: yardstick."""

from typing import Any

import typer

from server.cli.command import Answer, Call, command
from server.cli.options import OF_COMMAND
from server.cli.running import (
    GROUP,
    AskedBy,
    Classes,
    Clients,
    DryRun,
    MetricsPort,
    Why,
    carry_out,
    planned,
    settings_for,
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "yardstick",
        group=GROUP,
        settings=OF_COMMAND["yardstick"],
        epilog="Example: efface yardstick --class 9 --count 5; then efface forget --class 9 "
        "--compare retrain",
    )(yardstick)


def yardstick(
    call: Call,
    values: dict[str, Any],
    classes: Classes = None,
    named: Clients = None,
    dry_run: DryRun = False,
    metrics_port: MetricsPort = None,
    asked_by: AskedBy = "",
    why: Why = "",
) -> Answer:
    """Train models without classes or clients, for verdicts to be compared with; none serves."""
    settings = settings_for(
        call,
        values,
        mode="yardstick",
        classes=classes,
        clients=named,
        asked_by=asked_by,
        why=why,
    )
    if dry_run:
        return planned(call, settings)
    return carry_out(call, settings, metrics_port)
