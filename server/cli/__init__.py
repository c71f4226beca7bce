"""The command `efface`. Nothing heavy is imported before a command needs it."""

import typer

from server.cli import bench, process, reading, running, site


def _application() -> typer.Typer:
    made = typer.Typer(
        name="efface",
        help="Federated unlearning: train one model over organisations, make it forget, and "
        "show the evidence.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    running.add_to(made)
    bench.add_to(made)
    reading.add_to(made)
    site.add_to(made)
    return made


app = _application()


def main() -> None:
    """Run the command line."""
    with process.guarded():
        app(prog_name="efface")
