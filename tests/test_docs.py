"""What the project says about itself is true: help, README, JSON contract, defaults."""

import importlib
import json
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from typer.testing import CliRunner

import client
import server
import strategies
from benchmarks.quote import QUOTE, RESULTS, quoted
from client.errors import INTERRUPTED, EffaceError
from server.cli import app
from server.cli.options import NAMED_DIFFERENTLY, OPTIONS
from server.settings import RunSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
JSON = (ROOT / "docs" / "json.md").read_text()


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command by its full name, groups left out."""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    for name, command in root.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", one) for inner, one in command.commands.items())
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield name, command


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]

    assert command.help
    silent = [p.name for p in command.params if p.name != "help" and not getattr(p, "help", None)]
    assert silent == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json_home_and_config(name: str) -> None:
    assert {"--json", "--home", "--config"} <= {o for p in COMMANDS[name].params for o in p.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_names_every_command(name: str) -> None:
    assert f"efface {name}" in README


def test_the_readme_says_how_a_request_is_given_up() -> None:
    assert "efface requests --abort" in README


@pytest.mark.parametrize("name", ["README.md", "benchmarks/README.md", "benchmarks/RESULTS.md"])
def test_the_files_that_a_page_links_to_exist(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())

    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_results_are_quoted_as_the_harness_wrote_them() -> None:
    text = RESULTS.read_text()

    # Every mark is one that is filled.
    assert len(QUOTE.findall(text)) == text.count("<!-- results") == text.count("<!-- end -->") > 0
    assert quoted(text) == text


def test_options_are_the_settings_with_their_defaults() -> None:
    by_key = {option.key: option.default for option in OPTIONS}
    settings = {f.name.replace("_", "-"): f.default for f in fields(RunSettings)}

    expected = {key: v for key, v in settings.items() if key not in NAMED_DIFFERENTLY}
    assert by_key == expected
    assert {key: type(v) for key, v in by_key.items()} == {
        key: type(v) for key, v in expected.items()
    }
    assert set(settings) >= NAMED_DIFFERENTLY


def test_the_flower_app_has_the_settings_defaults() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    # Which data set it is by default, the task says.
    assert project["tool"]["flwr"]["app"]["config"] == {**RunSettings().plain(), "dataset": ""}


def test_options_of_all_tasks_say_no_images() -> None:
    assert [option.key for option in OPTIONS if "image" in option.help.lower()] == []


# ---- docs/json.md -------------------------------------------------------------------------------


def rows(heading: str) -> list[tuple[set[str], str]]:
    """Return a section's table: the keys of each row, and its last cell."""
    section = JSON.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if "|" in line]
    return [(set(re.findall(r"`(\w+)`", row[0])), row[-1]) for row in cells[2:]]


def documented(heading: str) -> set[str]:
    return set().union(*(keys for keys, _ in rows(heading)))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run every command once, on a home that a demonstration has filled."""
    home = tmp_path_factory.mktemp("documents") / "home"
    patch = pytest.MonkeyPatch()
    patch.setenv("EFFACE_HOME", str(home))
    patch.setenv("EFFACE_STORE", "")  # undone together with what a run puts there
    patch.delenv("EFFACE_DATA_DIR", raising=False)
    tiny = (
        "--num-clients 2 --partition iid --rounds 1 --local-steps 4 --scale 10 --distill-every 2 "
        "--model-width 8 --model-depth 1"
    )

    def run(command: str) -> Any:
        done = CliRunner().invoke(app, [*command.split(), "--json"])
        assert done.stdout, done.output
        return json.loads(done.stdout)

    heart = home.parent / "heart.csv"
    heart.write_text("age,sick\n" + "".join(f"{40 + i},{i % 2}\n" for i in range(10)))
    found = {"demo": run(f"demo {tiny} --accept not-shown --max-relearning-gap 100")}
    store = next((home / "clients").rglob("client-0"))
    for name, command in {
        "init": f"init {home.parent / 'project'}",
        "config": "config",
        "error": "forget --class 99",
        "plan": "forget --class 3 --method auto --dry-run",
        "requests": "requests",
        "show request": "show r0002",
        "show version": "show v0002",
        "models": "models",
        "export": f"export v0002 -o {home.parent / 'model.pt'}",
        "predict": "predict v0002 digits",
        "prune": "models prune --keep 0 --dry-run",
        "forgotten": "forgotten",
        "audit": "audit",
        "key": "key",
        "certificate": f"certificate r0002 -o {home.parent / 'certificate.json'}",
        "certificate verify": (
            f"certificate verify {home.parent / 'certificate.json'} "
            f"--key {home / 'keys' / 'coordinator.pub'}"
        ),
        "report": "report r0002",
        "methods": "methods",
        "evaluate": "evaluate v0001 --relearning 9",
        "verify": "verify r0002",
        "store ls": f"store ls {store}",
        "store verify": f"store verify {store}",
        "store destroy": f"store destroy {store} --dry-run",
        "store report": f"store report {store}",
        "site budget": f"site budget {store}",
        "data list": "data list",
        "data show": "data show digits",
        "data columns": f"data columns table:{heart}?label=sick -o {home.parent / 'heart.toml'}",
    }.items():
        found[name] = run(command)
    for number, kind in enumerate(("train", "forget", "relearn"), start=1):
        record = json.loads((home / "runs" / f"r000{number}" / "record.json").read_text())
        found[kind] = record | {"changed": True}
    patch.undo()
    return found


@pytest.mark.parametrize("kind", ["train", "forget", "relearn", "demo"])
def test_the_record_holds_the_documented_keys(documents: dict[str, Any], kind: str) -> None:
    table = rows("`efface train`, `forget`, `relearn`, `demo`")

    promised = set().union(
        *(keys for keys, who in table if who == "all" or re.search(rf"\b{kind}\b", who))
    )
    assert set(documents[kind]) == promised


SECTIONS = {
    "`efface init`": "init",
    "`efface config`": "config",
    "Errors": "error",
    "`efface requests`": "requests",
    "`efface show` of a request": "show request",
    "`efface show` of a version": "show version",
    "`efface models`": "models",
    "`efface models prune`": "prune",
    "`efface export`": "export",
    "`efface predict`": "predict",
    "`efface forgotten`": "forgotten",
    "`efface audit`": "audit",
    "`efface certificate`": "certificate",
    "`efface certificate verify`": "certificate verify",
    "`efface key`": "key",
    "`efface report`": "report",
    "`efface forget --dry-run`": "plan",
    "`efface methods`": "methods",
    "`efface evaluate`": "evaluate",
    "`efface verify`": "verify",
    "`efface store ls`": "store ls",
    "`efface store verify`": "store verify",
    "`efface store destroy`": "store destroy",
    "`efface store report`": "store report",
    "`efface site budget`": "site budget",
    "`efface data list`": "data list",
    "`efface data show`": "data show",
    "`efface data columns`": "data columns",
}


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_document_holds_the_documented_keys(documents: dict[str, Any], heading: str) -> None:
    assert set(documents[SECTIONS[heading]]) == documented(heading)


@pytest.mark.parametrize(
    ("heading", "key", "name"),
    [
        ("`efface config`", "settings", "config"),
        ("`efface show` of a request", "request", "show request"),
        ("`efface show` of a version", "version", "show version"),
        ("`efface show` of a version", "lineage", "show version"),
        ("`efface forget --dry-run`", "phases", "plan"),
        ("`efface methods`", "methods", "methods"),
        ("`efface store ls`", "generations", "store ls"),
        ("`efface data show`", "classes", "data show"),
        ("`efface data columns`", "columns", "data columns"),
    ],
)
def test_the_parts_of_a_document_hold_the_documented_keys(
    documents: dict[str, Any], heading: str, key: str, name: str
) -> None:
    words = next(text for keys, text in rows(heading) if keys == {key})
    part = documents[name][key]

    assert set(part[0] if isinstance(part, list) else part) == set(re.findall(r"`(\w+)`", words))


def test_every_error_has_a_code_of_its_own_and_all_are_documented() -> None:
    for package in (client, strategies, server):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    ours = ("client", "strategies", "server")
    kinds = {k for k in _below(EffaceError) if k.__module__.partition(".")[0] in ours}
    codes = [vars(kind)["code"] for kind in kinds]
    assert len(set(codes)) == len(codes)
    section = JSON.split("\n## Codes\n")[1].split("\n## ")[0]
    told = re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)
    assert sorted(told) == sorted([*codes, INTERRUPTED, "unexpected"])


def _below(kind: type) -> Iterator[type]:
    yield kind
    for below in kind.__subclasses__():
        yield from _below(below)
