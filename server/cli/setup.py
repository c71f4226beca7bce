"""The commands of a project's folder: init, config."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from client.errors import BadSetting
from server.cli import options, project
from server.cli.command import FORMAT, Answer, Call, command
from server.report.display import table

if TYPE_CHECKING:
    from server.cli.project import Project

GROUP: Final = "Begin"
STARTER: Final = Path(__file__).parent / "starter"
TASK: Final = "task.py"
HOME: Final = "~/.efface"


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(app, "init", group=GROUP, epilog="Example: efface init hearts", reads_file=False)(init)
    command(app, "config", group=GROUP, epilog="Example: efface config --json")(config)


def init(
    call: Call,
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Made if missing.", show_default=False)
    ] = Path(),
) -> Answer:
    """Write a commented efface.toml and a task file to start from; never over one that is there."""
    where = folder.expanduser().absolute()
    files = [where / project.FILE, where / TASK]
    if there := [str(path) for path in files if path.exists()]:
        raise BadSetting(
            f"folder must have no {project.FILE} and no {TASK} yet, got {' and '.join(there)}; "
            "name another folder, or move them away"
        )
    where.mkdir(parents=True, exist_ok=True)
    for path in files:
        with path.open("x", encoding="utf-8") as file:
            file.write(starter(path.name))
    document = {"format": FORMAT, "folder": str(where), "files": [str(path) for path in files]}
    shown = [
        f"{files[0]}: settings; `efface config` shows what holds.",
        f"{files[1]}: a network and its data, to be made your own.",
        "Next, in that folder: efface train",
    ]
    return Answer(document, shown)


def starter(name: str) -> str:
    """Return the content of a file that `efface init` writes."""
    if name == TASK:
        return (STARTER / f"{TASK}.txt").read_text(encoding="utf-8")
    text = (STARTER / name).read_text(encoding="utf-8")
    if any(option.key == "task" for option in options.OPTIONS):
        text = text.replace("# task = ", "task = ").replace("\ndataset = ", "\n# dataset = ")
    return text


def config(call: Call) -> Answer:
    """Show each setting, its value here, and where it comes from; all are checked."""
    found = call.project
    _check(found)
    rows = [*_common(found), *_of_tables(found)]
    document = {
        "format": FORMAT,
        "file": None if found.path is None else str(found.path),
        "settings": rows,
    }
    cells = [
        [
            f"{row['command']}: {row['key']}" if row["command"] else row["key"],
            _shown(row["value"]),
            str(row["where"] or row["source"]),
        ]
        for row in rows
    ]
    where = found.path or f"none: no {project.FILE} in this folder; `efface init` writes one"
    return Answer(document, [f"File: {where}", table(["Setting", "Value", "From"], cells, text=3)])


def _common(found: "Project") -> list[dict[str, Any]]:
    """Return what holds for every command, setting by setting."""
    defaults = {
        "home": HOME,
        **{o.key: o.default_here or o.default for o in options.OPTIONS},
        project.METHOD_OPTIONS: "",
        "asked-by": "",
    }
    rows = []
    for key, default in defaults.items():
        if key in project.OF_ONE_REQUEST:
            continue
        if told := project.from_environment(key):
            rows.append(_row(key, told, "environment", project.ENVIRONMENT[key]))
        elif key in found.common:
            rows.append(_row(key, found.common[key], "file", str(found.path)))
        else:
            rows.append(_row(key, default, "default"))
    return rows


def _of_tables(found: "Project") -> list[dict[str, Any]]:
    """Return what holds for one command alone."""
    return [
        _row(key, value, "file", str(found.path), command)
        for command, values in found.tables.items()
        for key, value in values.items()
        if not project.from_environment(key)
    ]


def _row(
    key: str, value: Any, source: str, where: str | None = None, command: str | None = None
) -> dict[str, Any]:
    return {"key": key, "value": value, "source": source, "where": where, "command": command}


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check(found: "Project") -> None:
    """Refuse a value that breaks its setting's rule, whichever command would meet it.

    Raises:
        BadSetting: Naming setting, rule, value and file.
    """
    from server.settings import parse

    for table_ in (found.common, *found.tables.values()):
        try:
            parse(table_)
        except BadSetting as error:
            raise BadSetting(f"{error}, in {found.path}") from error
