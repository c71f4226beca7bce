"""What runs is the bundle's client/ alone: not the installed one, nor what lies beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
APP = """
import json, sys
import numpy
from flwr.clientapp import ClientApp
from client import part
app = ClientApp()
told = {"part": part.NAME, "numpy": numpy.__file__, "client": sys.modules["client"].__file__}
"""


def load(folder: Path) -> subprocess.CompletedProcess[str]:
    code = """
import json, sys
from pathlib import Path
from client.operator import gate
app = gate.load(Path(sys.argv[1]))
import client.app
told = client.app.told
for name in ("client.operator", "client.errors", "server"):
    try:
        __import__(name)
        told[name] = sys.modules[name].__file__
    except ModuleNotFoundError:
        told[name] = None
print(json.dumps(told))
"""
    return subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "client").mkdir(parents=True)
    (folder / "client" / "__init__.py").write_text("")
    (folder / "client" / "part.py").write_text("NAME = 'the bundle'\n")
    (folder / "client" / "app.py").write_text(APP)
    return folder


def test_client_is_the_bundles_and_its_neighbours_are_not_imported(bundle: Path) -> None:
    (bundle / "numpy.py").write_text("raise SystemExit('a neighbour of client/ was imported')\n")

    done = load(bundle)

    told = json.loads(done.stdout)
    assert told["part"] == "the bundle"
    assert told["client"] == str(bundle / "client" / "__init__.py")
    assert "site-packages" in told["numpy"]
    # The bundle has no such modules, and the installed ones do not stand in for them.
    assert told["client.operator"] is None
    assert told["client.errors"] is None


@pytest.mark.parametrize("text", [None, "app = 1\n"])
def test_a_bundle_without_our_app_is_refused(bundle: Path, text: str | None) -> None:
    file = bundle / "client" / "app.py"
    file.unlink()
    if text is not None:
        file.write_text(text)

    done = load(bundle)

    assert done.returncode == 1
    assert "ForeignBundle" in done.stderr
