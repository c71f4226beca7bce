"""The command that compares methods: bench."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from client.errors import BadSetting
from server.cli.command import FAILED, FORMAT, Answer, Call, command
from server.report.display import table

GROUP: Final = "Compare"
OUT: Final = Path("benchmarks") / "results"
SHOWN: Final = (
    *("forget_accuracy", "retain_accuracy", "retain_gap", "auc_confidence", "relearning"),
    *("seconds", "speed_up", "speed_up_10"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "bench",
        group=GROUP,
        epilog="Example: efface bench benchmarks/recipes/smoke.toml",
    )(bench)


def bench(
    call: Call,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="TOML file (benchmarks/README.md).")
    ],
    data_dir: Annotated[
        str,
        typer.Option(
            "--data-dir",
            help="Folder of the published data sets; EFFACE_DATA_DIR if not given.",
            show_default=False,
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of results; benchmarks/results/NAME if not given. What is finished there "
            "is not done again.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Cells to run side by side, memory allowing.")
    ] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    tables: Annotated[
        bool,
        typer.Option(
            "--tables",
            help="Do no work: write tables and plots again from what is there, whatever code made "
            "it.",
        ),
    ] = False,
) -> Answer:
    """Compare methods as a recipe says; each cell keeps homes of its own in the results' folder."""
    from server.bench.cells import Bench
    from server.bench.harness import bench as run_bench
    from server.bench.recipe import check_data, load
    from server.bench.table import cells, ended

    if jobs < 1:
        raise BadSetting(f"jobs must be at least 1, got {jobs}")
    checked = load(recipe)
    data_dir = data_dir or call.project.value("data-dir") or ""
    if not tables:
        check_data(checked, data_dir, device)
    folder = (out or OUT / checked.name).absolute()
    run = Bench(checked, folder, data_dir, device, jobs, any_code=tables)
    done = run_bench(run, call.errors, work=not tables)
    document = {
        "format": FORMAT,
        "recipe": checked.name,
        "out": str(folder),
        "made": done.made,
        "kept": done.kept,
        "states": done.states,
        "files": {kind: [str(path) for path in paths] for kind, paths in done.files.items()},
        "rows": done.rows,
    }
    shown: list[Any] = []
    for level in checked.levels:
        for partition in dict.fromkeys(cell.partition for cell in checked.cells):
            here = [
                row
                for row in done.rows
                if (row["level"], row["partition"]) == (level.label, partition)
            ]
            headings, lines = cells(here, SHOWN, steps=level.in_a_row, reasons=False)
            shown += [f"{level.label}, {partition}", table(headings, lines)]
            lost = [f"  {r['method']} {ended(r)}" for r in here if r["state"] != "done"]
            shown += [*dict.fromkeys(lost), ""]
    counted = ", ".join(f"{number} {state}" for state, number in done.states.items())
    shown.append(f"Rows: {counted}. All columns and plots: {done.files['tables'][0]}")
    return Answer(document, shown, FAILED if done.states.get("broken") else 0)
