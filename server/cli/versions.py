"""The commands that take a version's weights out of the home, use them, or destroy old ones."""

import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from client.errors import BadSetting
from server.cli.command import FORMAT, Answer, Call, command
from server.cli.reading import opened
from server.cli.running import Force
from server.report import display
from server.report.display import table

GROUP: Final = "Use"

Version = Annotated[
    str,
    typer.Argument(
        metavar="VERSION",
        help="A version such as v0002, latest, or in-service.",
        show_default=False,
    ),
]
Allowed = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-forgotten",
        metavar="REQUEST",
        help="Take a version that knows what this request forgot; may be repeated.",
        show_default=False,
    ),
]


def add_to(app: typer.Typer, of_models: typer.Typer) -> None:
    """Register the commands; `of_models` holds those under `models`."""
    command(app, "export", group=GROUP, epilog="Example: efface export v0002 -o model.safetensors")(
        export
    )
    command(
        app, "predict", group=GROUP, epilog="Example: efface predict v0002 npz:new.npz -o new.csv"
    )(predict)
    command(of_models, "prune", epilog="Example: efface models prune --keep 2 --dry-run")(prune)


def export(
    call: Call,
    name: Version,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .safetensors, .pt (a state dict by torch.save) or .onnx (which "
            "needs the package's extra onnx).",
            show_default=False,
        ),
    ],
    force: Force = False,
    allowed: Allowed = None,
) -> Answer:
    """Write a version's weights to a file for other programs, readable by its owner alone.

    The ledger notes the file, so that it can be asked back when what it knows is forgotten.
    """
    home, ledger = opened(call)
    from server.requests import exporting, weights

    row = weights.version(home, ledger, name, allowed or ())
    done = exporting.export(home, ledger, row, output, force=force)
    facts = done.facts
    document = {
        "format": FORMAT,
        "file": str(done.path),
        "bytes": done.num_bytes,
        "sha256": done.sha256,
        "noted": done.noted,
        **facts,
    }
    if not done.noted:
        call.errors.print(
            "note: this home cannot be written: its ledger does not know of the file", markup=False
        )
    gone = "removed" if facts["compact"] else "kept at zero"
    shape = ", ".join(map(str, facts["input_shape"]))
    count = len(facts["class_names"])
    classes = "no classes" if count == 1 else f"{count} classes"
    shown = [
        str(done.path),
        f"{facts['version']}: {facts['model']}, inputs ({shape}) {facts['input_dtype']}, "
        f"{classes}, {display.size(done.num_bytes)}",
    ]
    if facts["channels_pruned"]:
        shown.append(f"{facts['channels_pruned']} channels pruned, {gone}")
    if weights.task(row).is_own:
        shown.append("Inputs are as the task's transform returns them.")
        return Answer(document, shown)
    shown.append(
        "Every site normalises images by its own mean and deviation."
        if facts["mean"] is None
        else f"Normalise pixels / 255 by mean {_numbers(facts['mean'])} and deviation "
        f"{_numbers(facts['std'])}."
    )
    return Answer(document, shown)


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def predict(
    call: Call,
    name: Version,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A data set, in the forms of --dataset; for a task of your own, what its `data` "
            "reads.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="CSV file to write; standard output if not given.",
            show_default=False,
        ),
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            "--part",
            help="test or train; the test part if not given, or train where there is no other.",
            show_default=False,
        ),
    ] = "",
    data_dir: Annotated[
        str,
        typer.Option(
            "--data-dir",
            help="Folder of the published data sets' files; also EFFACE_DATA_DIR.",
            show_default=False,
        ),
    ] = "",
    force: Force = False,
    allowed: Allowed = None,
) -> Answer:
    """Say which class a version takes each example for, and how sure it is: CSV, a line each."""
    home, ledger = opened(call)
    from client.files import write_atomic
    from server.requests import exporting, predicting, weights

    path = None if output is None else output.expanduser().absolute()
    if path is not None:
        exporting.check_output(path, force=force)
    row = weights.version(home, ledger, name, allowed or ())
    told = data_dir or os.environ.get("EFFACE_DATA_DIR") or call.project.value("data-dir")
    facts = weights.facts(row)
    found = predicting.predict(
        weights.network(home, ledger, row),
        weights.task(row),
        facts,
        source,
        Path(told) if told else None,
        part=part,
    )
    for note in found.notes:
        call.errors.print(f"note: {note}", markup=False)
    if path is not None:
        write_atomic(path, found.csv().encode())
    lines = zip(found.labels, found.names, found.probabilities, strict=True)
    document = {
        "format": FORMAT,
        "version": row.id,
        "source": source,
        "part": found.part,
        "num_images": len(found.labels),
        "class_names": facts["class_names"],
        "output": None if path is None else str(path),
        "predictions": [{"class": c, "name": n, "probability": p} for c, n, p in lines],
        "notes": list(found.notes),
    }
    if path is not None:
        return Answer(document, [f"{path}: {len(found.labels):,} examples"])
    return Answer(document, text=found.csv())


def prune(
    call: Call,
    keep: Annotated[
        int,
        typer.Option(
            "--keep",
            help="So many versions that served before the one in service keep their weights, of "
            "each federation.",
        ),
    ] = 1,
    trials: Annotated[bool, typer.Option("--trials", help="Prune trials, too.")] = False,
    forgotten_days: Annotated[
        int | None,
        typer.Option(
            "--forgotten-days",
            metavar="DAYS",
            help="Prune every version that knows what was forgotten so many days ago or earlier, "
            "those to go back to, trials and first ones too.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be destroyed, and do nothing.")
    ] = False,
) -> Answer:
    """Free disk space: destroy weights, yardsticks and stored updates that nothing needs.

    Records, seals, cards and reports stay, and `efface audit` still verifies all.
    """
    home, ledger = opened(call)
    from server.requests import pruning
    from server.storage.home import Home

    told: dict[str, Any] = {"keep": keep, "trials": trials, "forgotten_days": forgotten_days}
    found = pruning.plan(home, ledger, **told)
    size = display.size(found.num_bytes)
    if found.items and not dry_run:
        if call.json and not yes:
            raise BadSetting("pruning with --json must be confirmed with --yes, got no --yes")
        question = f"Destroy {len(found.items)} files or folders, {size}? They cannot be restored."
        if not yes:
            typer.confirm(question, abort=True, err=True)
        found = pruning.prune(Home(home.path), **told)
        size = display.size(found.num_bytes)
    document: dict[str, Any] = {
        "format": FORMAT,
        "changed": bool(found.items) and not dry_run,
        "bytes": found.num_bytes,
        "items": [
            {
                "kind": item.kind,
                "path": str(item.path),
                "bytes": item.num_bytes,
                "version": item.version,
            }
            for item in found.items
        ],
        "kept": [{"version": name, "why": why} for name, why in found.kept.items()],
    }
    if not found.items:
        return Answer(document, ["Nothing to prune: 0 B."])
    cells = [[i.kind, i.version or i.path.name, display.size(i.num_bytes)] for i in found.items]
    done = "Would free" if dry_run else "Freed"
    return Answer(document, [table(["What", "Of", "Size"], cells, text=2), f"{done} {size}."])
