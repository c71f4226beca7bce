"""A bundle of the installed client/ runs what was imported before; one with another byte not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
HEAD = """
import importlib, io, json, os, sys, zipfile
from pathlib import Path
from client.operator import gate, preloaded
from client.operator.bundles import Bundle

def packed(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as bundle:
        for name, data in files.items():
            bundle.writestr(name, data)
    return Bundle(content.getvalue())
"""
SMALL = {
    "client/__init__.py": "",
    "client/wire.py": "def fingerprint(): return 'it'\n",
    "client/app.py": "from flwr.clientapp import ClientApp\nfrom client import wire\n"
    "app = ClientApp()\nTOLD = 'source'\n",
    "client/later.py": "NAME = 'later'\n",
}


def run(folder: Path, code: str) -> Any:
    """Return the JSON that code prints in a process of its own, whose scratch is `folder`."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", HEAD + code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def small(folder: Path, **changed: str) -> Path:
    for name, text in {**SMALL, **changed}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_bundle_that_a_coordinator_of_this_release_sends_is_at_hand(tmp_path: Path) -> None:
    code = """
import client.errors
before = sys.modules["client.errors"]
preloaded.load()
own = sys.modules["client.errors"] is before
from server.cli.site_run import installed_bundle
bundle = installed_bundle()
app = gate._app(bundle)
wire = importlib.import_module("client.wire")
print(json.dumps({
    "own": own,
    "unpacked": [p.name for p in Path.cwd().glob("bundle-*")],
    "another": sys.modules["client.errors"] is not before,
    "same": app is sys.modules["client.app"].app,
    "names": sorted(importlib.import_module("client.app").handlers()),
    "number": wire.fingerprint(),
}))
"""
    found = run(tmp_path, code)

    assert found["own"]  # the executor goes on with its own modules
    assert found["another"]
    assert found["same"]
    assert found["unpacked"] == []
    assert "train.fit" in found["names"]
    from client import wire

    assert found["number"] == wire.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        "files['client/wire.py'] += b'#'",
        "del files['client/later.py']",
        "files['client/own/' + 64 * 'a' + '/chest.py'] = b'pass'",
    ],
)
def test_a_bundle_with_one_byte_more_or_less_is_imported_from_itself(
    tmp_path: Path, change: str
) -> None:
    small(tmp_path / "installed")
    code = f"""
preloaded._found = preloaded._loaded(Path("installed").absolute())
files = dict(preloaded._found.files)
same = gate._app(packed({{**files, "server/app.py": b"x"}}))  # what lies elsewhere never runs
places = [sys.modules["client.wire"].__file__]
importlib.import_module("client.later")
places.append(sys.modules["client.later"].__file__)
{change}
gate._app(packed(files))
places.append(sys.modules["client.wire"].__file__)
print(json.dumps(places))
"""
    wire, later, other = run(tmp_path, code)

    assert wire == str(tmp_path / "installed" / "client" / "wire.py")
    assert later == str(tmp_path / "installed" / "client" / "later.py")
    assert Path(other).is_relative_to(next(tmp_path.glob("bundle-*")))


def test_what_was_compiled_of_another_source_does_not_run(tmp_path: Path) -> None:
    folder = small(tmp_path / "installed")
    code = """
import py_compile
file = Path("installed/client/app.py").absolute()
right, times = file.read_bytes(), file.stat()
file.write_bytes(right.replace(b"'source'", b"'forged'"))  # of the same length
os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
py_compile.compile(str(file))
file.write_bytes(right)
os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
found = preloaded._loaded(Path("installed").absolute())
forged = gate.load(Path("installed").absolute()) and sys.modules["client.app"].TOLD
print(json.dumps([forged, found.modules["client.app"].TOLD]))
"""
    assert (folder / "client" / "app.py").exists()

    # Python itself goes by size and time.
    assert run(tmp_path, code) == ["forged", "source"]


def test_files_that_change_meanwhile_are_not_taken(tmp_path: Path) -> None:
    small(
        tmp_path / "installed",
        **{"client/app.py": SMALL["client/app.py"] + "open(wire.__file__, 'a').write('#')\n"},
    )
    code = "print(json.dumps(preloaded._loaded(Path('installed').absolute()) is None))"

    assert run(tmp_path, code) is True


def test_without_an_app_nothing_is_loaded(tmp_path: Path) -> None:
    (small(tmp_path / "installed") / "client" / "app.py").unlink()
    code = "print(json.dumps(preloaded._loaded(Path('installed').absolute()) is None))"

    assert run(tmp_path, code) is True


def test_what_cannot_be_imported_is_left_to_each_message(tmp_path: Path) -> None:
    small(tmp_path / "installed", **{"client/app.py": "import a_package_that_is_missing\n"})
    code = """
import client.errors
before = sys.modules["client.errors"]
preloaded.load(Path("installed").absolute())
bundle = packed({name: Path("installed", name).read_bytes() for name in %r})
print(json.dumps([preloaded.app_of(bundle), sys.modules["client.errors"] is before]))
"""

    assert run(tmp_path, code % sorted(SMALL)) == [None, True]
