"""How a data set of one's own is read: options of commands that name one, and what it holds."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from client.errors import BadSetting
from server.cli.command import FORMAT, Answer, Call, command
from server.cli.options import DATA
from server.report.display import table

ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        help="Make images of one's own squares of so many pixels a side; ?size= in --dataset.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
Color = Annotated[
    str | None,
    typer.Option(
        "--color",
        metavar="grey|rgb",
        help="Read images of one's own as grey or RGB, whatever they are; ?color= in --dataset.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
Fit = Annotated[
    str | None,
    typer.Option(
        "--fit",
        metavar="pad|stretch",
        help="What becomes of images that are not square: pad with black, which is the default, "
        "or stretch; ?fit= in --dataset.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
SkipBroken = Annotated[
    bool,
    typer.Option(
        "--skip-broken",
        help="Leave out images that cannot be read, and list them; ?skip-broken=1 in --dataset.",
        rich_help_panel=DATA,
    ),
]
TOML: Final = ".toml"


def add_to(data: typer.Typer) -> None:
    """Register the commands in the group `data`."""
    command(data, "show", epilog="Example: efface data show 'folder:photos?size=64'")(show)
    command(
        data,
        "columns",
        epilog="Example: efface data columns 'table:heart.csv?label=sick' -o heart.toml",
    )(columns)


def as_read(
    dataset: str, size: int | None, color: str | None, fit: str | None, skip_broken: bool
) -> str:
    """Return the text of a data set with what these options say added.

    Raises:
        BadSetting: If it is none of one's own images, or an option breaks its rule.
    """
    from client.data.source import with_options

    asked = {"size": size, "color": color, "fit": fit, "skip-broken": "1" if skip_broken else None}
    return with_options(dataset, {key: str(v) for key, v in asked.items() if v is not None})


def show(
    call: Call,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A data set such as npz:PATH, folder:PATH, table:PATH?label=COLUMN or digits.",
            show_default=False,
        ),
    ],
    image_size: ImageSize = None,
    color: Color = None,
    fit: Fit = None,
    skip_broken: SkipBroken = False,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Folder of a published set's files.", show_default=False),
    ] = None,
) -> Answer:
    """Read a data set and say what it holds, and how it was read."""
    from client.data import datasets

    name = as_read(source, image_size, color, fit, skip_broken)
    data = datasets.load(name, data_dir)
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    counts = {
        part: [0] * data.num_classes
        if split is None
        else split.labels.bincount(minlength=data.num_classes).tolist()
        for part, split in parts.items()
    }
    document: dict[str, Any] = {
        "format": FORMAT,
        "dataset": data.name,
        "shape": [int(n) for n in data.train.input_shape],
        "num_ids": None if data.train.ids is None else len(data.train.ids.unique()),
        "classes": [
            {"name": one, **{f"num_{part}": counts[part][label] for part in parts}}
            for label, one in enumerate(data.class_names)
        ],
        "notes": list(data.notes),
    }
    cells = [
        [str(label), one, *(f"{counts[part][label]:,}" for part in parts)]
        for label, one in enumerate(data.class_names)
    ]
    shape = "x".join(map(str, document["shape"]))
    return Answer(
        document,
        [
            f"{data.name}: examples of {shape}, {data.num_classes} classes",
            table(["Class", "Name", "Train", "Validation", "Test"], cells, text=2),
            *(f"note: {note}" for note in data.notes),
        ],
    )


def columns(
    call: Call,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="This site's table, table:PATH?label=COLUMN, or the columns files of several "
            "sites, to be merged.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Columns file to write.", show_default=False)
    ],
) -> Answer:
    """Write the columns file of a table, or merge those of several sites into one for all.

    It holds sums and names of categories, no rows, and nothing that fewer than five rows stand
    behind.
    """
    from client.data import columns as files
    from client.data.source import TABLE, parse, table_reading
    from client.data.tables import own_columns, read_rows
    from client.files import write_atomic

    where = output.expanduser().absolute()
    if where.suffix != TOML or not where.parent.is_dir():
        raise BadSetting(f"output must be a {TOML} file in a folder that exists, got {output}")
    notes: list[str] = []
    if all(source.endswith(TOML) for source in sources) and len(sources) > 1:
        if len(set(sources)) < len(sources):
            raise BadSetting(f"columns files must differ, got {', '.join(sources)}")
        found = files.merge({name: files.load(Path(name).expanduser()) for name in sources})
    elif len(sources) == 1 and sources[0].startswith(f"{TABLE}:"):
        source = parse(sources[0]).rooted()
        reading, path = table_reading(source), Path(source.path)
        rows = read_rows(path, reading)
        found, notes = files.to_give_away(
            own_columns(rows, path, reading), rows.training(), where=str(path)
        )
    else:
        raise BadSetting(
            "sources must be one table:PATH?label=COLUMN, or two columns files (.toml) or more, "
            f"got {', '.join(sources)}"
        )
    write_atomic(where, files.to_toml(found).encode())
    listed = [
        {"name": name, "kind": "number" if isinstance(c, files.Number) else "category"}
        for name, c in found.inputs.items()
    ]
    document = {
        "format": FORMAT,
        "output": str(where),
        "label": found.label,
        "rows": found.rows,
        "classes": list(found.classes),
        "num_inputs": found.num_inputs,
        "columns": listed,
        "notes": notes,
    }
    return Answer(
        document,
        [
            f"{where}: {len(listed)} columns of {found.rows} rows, {found.num_inputs} inputs, "
            f"classes {', '.join(found.classes)}",
            *(f"note: {note}" for note in notes),
        ],
    )
