"""The command `efface`. Nothing heavy is imported before a command needs it."""

from typing import Annotated

import typer

from server.cli import (
    bench,
    certificate,
    coordinator,
    process,
    reading,
    running,
    setup,
    site,
    site_budget,
    site_policy,
    site_run,
    trust,
    verify,
    versions,
    yardstick,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"efface {version('efface')}")
        raise typer.Exit


def _application() -> typer.Typer:
    made = typer.Typer(
        name="efface",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_shared)
    setup.add_to(made)
    running.add_to(made)
    yardstick.add_to(made)
    bench.add_to(made)
    of_models = typer.Typer()
    reading.add_to(made, of_models)
    versions.add_to(made, of_models)
    verify.add_to(made)
    trust.add_to(made)
    certificate.add_to(made)
    site.add_to(made)
    coordinator.add_to(made)
    at_site = typer.Typer(
        help="Run this site's node, and decide what may run in it.", no_args_is_help=True
    )
    site_policy.add_to(at_site)
    site_run.add_to(at_site)
    site_budget.add_to(at_site)
    made.add_typer(at_site, name="site", rich_help_panel=site.GROUP)
    return made


def _shared(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Federated unlearning: train one model, make it forget, and show the evidence."""


app = _application()


def main() -> None:
    """Run the command line."""
    with process.guarded():
        app(prog_name="efface")
