"""The commands of a site's operator: what a node's store holds, and data files.

It is long because each command declares its options with their help, beside what it prints.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from client.errors import BadSetting, EffaceError, StoreError
from server.cli import sources
from server.cli.command import FORMAT, NOT_VERIFIED, Answer, Call, command
from server.report import display
from server.report.display import table

if TYPE_CHECKING:
    from client.store import Generation, Store

GROUP: Final = "At a site"

Folder = Annotated[
    Path, typer.Argument(metavar="STORE", help="The node's store folder.", show_default=False)
]


def add_to(app: typer.Typer) -> None:
    """Register the groups `store` and `data`."""
    store = typer.Typer(
        help="See, check and destroy what a node's private store holds.", no_args_is_help=True
    )
    command(store, "ls", epilog="Example: efface store ls /srv/efface/store")(ls)
    command(store, "verify")(verify)
    command(store, "destroy", epilog="Example: efface store destroy /srv/efface/store --class 9")(
        destroy
    )
    command(store, "report")(site_report)
    app.add_typer(store, name="store", rich_help_panel=GROUP)
    data = typer.Typer(help="Unpack, list and look at data sets.", no_args_is_help=True)
    command(data, "unpack", epilog="Example: efface data unpack downloads data")(unpack)
    command(data, "list")(list_data)
    sources.add_to(data)
    app.add_typer(data, name="data", rich_help_panel=GROUP)


def ls(call: Call, folder: Folder) -> Answer:
    """List the synthetic sets, tombstones and applied requests of a store."""
    store = opened(folder)
    state, generations = store.state(), store.generations()
    document = {
        "format": FORMAT,
        "store": str(folder),
        "generations": [_generation_document(g) for g in generations],
        "tombstones": {
            request: {"level": t.level, "classes": list(t.classes), "clients": list(t.clients)}
            for request, t in state.tombstones.items()
        },
        "applied": state.applied,
    }
    sets = table(
        ["Lineage", "Generation", "Images", "Size", "By class"],
        [
            [
                g.lineage,
                str(g.number),
                str(sum(g.counts.values())),
                display.size(g.num_bytes),
                ", ".join(f"{c}: {n}" for c, n in g.counts.items()),
            ]
            for g in generations
        ],
    )
    settled = table(
        ["Request", "Applied", "Tombstone"],
        [
            [request, action, str(state.tombstones.get(request, display.NOTHING))]
            for request, action in state.applied.items()
        ],
        text=3,
    )
    shown: list[Any] = [sets if generations else "No synthetic examples."]
    shown.append(settled if state.applied else "No request was applied here.")
    return Answer(document, shown)


def verify(call: Call, folder: Folder) -> Answer:
    """Check files, checksums, tombstones and modes; the exit code is 3 if something is wrong."""
    store = opened(folder)
    problems = store.verify()
    notes = store.unchecked()
    document = {"format": FORMAT, "store": str(folder), "problems": problems, "notes": notes}
    shown = [f"note: {note}" for note in notes]
    if problems:
        return Answer(document, [*problems, *shown], NOT_VERIFIED)
    return Answer(document, [f"{folder}: all is well", *shown])


def destroy(
    call: Call,
    folder: Folder,
    lineage: Annotated[
        str,
        typer.Option(
            "--lineage",
            help="Only the examples made in this training, by the name that `efface store ls` "
            "shows, such as r0001-20261121T101500000000.",
            show_default=False,
        ),
    ] = "",
    classes: Annotated[
        list[int] | None,
        typer.Option(
            "--class",
            "-c",
            help="Only examples of this class; may be repeated.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be destroyed, and do nothing.")
    ] = False,
) -> Answer:
    """Destroy synthetic examples for good; tombstones stay."""
    store = opened(folder)
    images = _matching(store, lineage, classes)
    what = f"{'all' if images is None else images} synthetic examples in {folder}"
    document = {"format": FORMAT, "store": str(folder), "destroyed": 0, "would_destroy": images}
    if dry_run:
        return Answer(document, [f"Would destroy {what}."])
    if not yes:
        if call.json:
            raise BadSetting("destroying with --json must be confirmed with --yes, got no --yes")
        typer.confirm(f"Destroy {what}? They cannot be restored.", abort=True, err=True)
    chosen = None if classes is None else tuple(classes)
    destroyed = store.destroy(lineage or None, chosen)
    document["destroyed"] = destroyed
    return Answer(document, [f"Destroyed {destroyed} synthetic examples in {folder}."])


def site_report(
    call: Call,
    folder: Folder,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write; site-report.html in the store if not given.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(
            "--data",
            help="The node's data set, such as npz:scans.npz: true colours, and its counts beside "
            "the synthetic ones.",
            show_default=False,
        ),
    ] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Folder of a published set's files.", show_default=False),
    ] = None,
) -> Answer:
    """Write the private page that shows a node's synthetic examples; keep it at the site."""
    from client.store import REPORT

    store = opened(folder)
    path = (output or folder / REPORT).expanduser().absolute()
    if not path.parent.is_dir():
        raise BadSetting(f"output must lie in a folder that exists, got {path}")
    import torch

    from client.data import datasets
    from client.site_report import are_images, write_site_report

    newest = {g.lineage: g for g in store.generations()}
    sets = [store.load(g.lineage, model=g.model, before=g.number + 1) for g in newest.values()]
    found = [s for s in sets if s is not None]
    shapes = {tuple(s.images.shape[1:]) for s in found}
    if len(shapes) > 1:
        raise StoreError(
            f"synthetic examples must have one shape to stand on one page, got {sorted(shapes)} in "
            f"{folder}; destroy the lineage that is no longer used: efface store ls {folder}"
        )
    images = torch.cat([s.images for s in found]) if found else torch.zeros(0, 1, 8, 8)
    labels = torch.cat([s.labels for s in found]) if found else torch.zeros(0, dtype=torch.int64)
    counts: dict[int, int] = {}
    names: tuple[str, ...] | None = None
    if dataset:
        data = datasets.load(dataset, data_dir)
        if not are_images(images):
            raise BadSetting(
                f"dataset must be named for a store of images, got {dataset} for examples of shape "
                f"{tuple(images.shape[1:])}"
            )
        if len(data.mean) != images.shape[1]:
            raise BadSetting(
                f"data must have {images.shape[1]} channels like the store's images, got "
                f"{len(data.mean)} in {dataset}"
            )
        mean = torch.tensor(data.mean).view(-1, 1, 1)
        std = torch.tensor(data.std).view(-1, 1, 1)
        images = images * std + mean
        names = data.class_names
        counts = dict(enumerate(data.train.labels.bincount().tolist()))
    elif len(images) and are_images(images):
        # Normalised pixels of unknown mean: stretch what is there over black to white.
        low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp(min=1e-6)
    state = store.state()
    write_site_report(
        path,
        images,
        labels,
        node=folder.resolve().name,
        class_names=names,
        real_counts=counts,
        tombstones=[
            {"request": request, "forgotten": str(spec)}
            for request, spec in state.tombstones.items()
        ],
        requests=[
            {"request": request, "action": action} for request, action in state.applied.items()
        ],
    )
    document = {
        "format": FORMAT,
        "store": str(folder),
        "report": str(path),
        "num_images": len(labels),
    }
    return Answer(document, [str(path), "For this site only: treat it as personal data."])


def unpack(
    call: Call,
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder or one packed file.")],
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="Folder to unpack into; made if missing.")
    ],
) -> Answer:
    """Unpack every .gz and .xz file under SRC to the same place under DEST."""
    from client.data import datasets

    files = [str(path) for path in datasets.unpack(source, destination)]
    return Answer({"format": FORMAT, "files": files}, files)


def list_data(
    call: Call,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            help="Folder of the published sets' files; also EFFACE_DATA_DIR.",
            show_default=False,
        ),
    ] = None,
) -> Answer:
    """List the data sets by name, and which of them can be read here."""
    from client.data import datasets

    named = data_dir or os.environ.get("EFFACE_DATA_DIR") or call.project.value("data-dir")
    where = Path(named) if named else None
    found: list[dict[str, Any]] = []
    for name in datasets.NAMES:
        try:
            data = datasets.load(name, where)
        except EffaceError as error:
            found.append({"name": name, "ready": False, "reason": str(error)})
            continue
        shape = list(data.train.input_shape)
        found.append(
            {
                "name": name,
                "ready": True,
                "num_train": len(data.train),
                "num_test": len(data.test),
                "num_classes": data.num_classes,
                "shape": shape,
            }
        )
    cells = [
        [
            one["name"],
            f"{one['num_train']:,} + {one['num_test']:,} images, {one['num_classes']} classes, "
            + "x".join(map(str, one["shape"]))
            if one["ready"]
            else f"not ready: {one['reason']}",
        ]
        for one in found
    ]
    cells.append(["npz:PATH", "your own arrays in one .npz file"])
    cells.append(["folder:PATH", "your own images, one folder a class"])
    cells.append(["table:PATH?label=COLUMN", "your own rows, CSV or Parquet"])
    return Answer(
        {"format": FORMAT, "data_dir": None if where is None else str(where), "datasets": found},
        [table(["Data set", "Train + test"], cells, text=2)],
    )


def opened(folder: Path) -> "Store":
    """Return the store in `folder`, which must be one node's.

    Raises:
        StoreError: If there is no such folder.
        BadSetting: If it holds several stores: a command on it would see, and destroy, nothing.
    """
    if not folder.is_dir():
        raise StoreError(f"store must be a folder, got {folder}, which does not exist")
    below = [path.relative_to(folder) for path in folder.rglob("*")]
    inner = {
        str(path.parent)
        for path in below
        if path.name in ("state.json", "state.copy.json") and path.parent.name
    }
    inner |= {
        str(path.parent.parent)
        for path in below
        if path.suffix == ".safetensors" and path.parent.parent.name
    }
    if inner:
        raise BadSetting(
            f"store must be one node's folder, got {folder}, which holds those of "
            f"{', '.join(sorted(inner))}; name one of them"
        )
    from client.store import Store

    return Store(folder)


def _matching(store: "Store", lineage: str, classes: list[int] | None) -> int | None:
    """Return how many images of the newest generations lineage and classes pick.

    None where all go, and a damaged file hides how many there are.
    """
    try:
        newest = {g.lineage: g for g in store.generations()}
    except StoreError:
        if lineage or classes is not None:
            raise
        return None
    if lineage and lineage not in newest:
        known = ", ".join(newest) or "none"
        raise BadSetting(f"lineage must be one of those stored ({known}), got {lineage!r}")
    return sum(
        count
        for name, generation in newest.items()
        if not lineage or name == lineage
        for label, count in generation.counts.items()
        if classes is None or label in classes
    )


def _generation_document(generation: "Generation") -> dict[str, Any]:
    return {
        "lineage": generation.lineage,
        "generation": generation.number,
        "path": str(generation.path),
        "bytes": generation.num_bytes,
        "images_by_class": {str(c): n for c, n in generation.counts.items()},
        "model": generation.model,
    }
