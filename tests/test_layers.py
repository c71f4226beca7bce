"""Layers point down: efface -> server -> strategies -> client."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("client", "strategies", "server", "efface")


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} must import by full names"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(package: str, wanted: str) -> list[str]:
    """Return the files of a package that import `wanted` or something in it."""
    return [
        str(path.relative_to(ROOT))
        for path in sources(package)
        if any(name == wanted or name.startswith(wanted + ".") for name in imports(path))
    ]


@pytest.mark.parametrize(
    ("package", "above"),
    [
        *(("client", above) for above in ("strategies", "server", "efface")),
        *(("strategies", above) for above in ("server", "efface")),
        ("server", "efface"),
    ],
)
def test_no_layer_imports_one_above_it(package: str, above: str) -> None:
    assert importers(package, above) == []


def test_a_violation_would_be_seen(tmp_path: Path) -> None:
    offender = tmp_path / "offender.py"
    offender.write_text(
        "def late():\n    from server.storage import ledger\n    import server.storage.home as h\n"
    )
    found = {"server.storage", "server.storage.ledger", "server.storage.home"}
    assert set(imports(offender)) == found


@pytest.mark.parametrize(
    ("room", "above"),
    [
        ("server/evidence", "server.requests"),
        ("server/evidence", "server.report"),
        ("server/report", "server.requests"),
    ],
)
def test_evidence_and_report_know_nothing_of_who_uses_them(room: str, above: str) -> None:
    assert importers(room, above) == []


def test_the_metrics_module_alone_knows_prometheus() -> None:
    found = [file for package in OURS for file in importers(package, "prometheus_client")]
    assert found == ["server/nodes/metrics.py"]


def test_only_the_ray_engine_knows_ray() -> None:
    found = [file for package in OURS for file in importers(package, "ray")]
    assert found in ([], ["server/nodes/engines/ray.py"])


def test_the_product_does_not_import_its_tests() -> None:
    assert [file for package in OURS for file in importers(package, "tests")] == []


def test_nothing_is_read_with_pickle() -> None:
    assert [file for package in OURS for file in importers(package, "pickle")] == []
    loads = [
        str(path)
        for package in OURS
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) == ("torch", "load")
    ]
    assert loads == []


def test_the_registry_reads_cards_without_torch() -> None:
    code = "import sys; import server.storage.registry; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_every_package_is_installed() -> None:
    from setuptools import find_packages

    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in OURS
        for path in (ROOT / package).rglob("*.py")
    }
    assert set(find_packages(str(ROOT), include=told["find"]["include"])) == there


def test_a_node_needs_the_client_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "client").symlink_to(ROOT / "client")
    code = (
        "import sys; import client.app; "
        "print([n for n in sys.modules if n.split('.')[0] in ('server', 'strategies')])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"sys_path = {str(tmp_path)!r}; import sys; "
         f"sys.path = [sys_path] + [p for p in sys.path if p != {str(ROOT)!r}]; {code}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr
