"""`efface site` allow, forbid, allowed, diff, and the options of run."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.operator.folder import bundles_of
from server.cli import app
from server.cli.site_run import installed_bundle

NODE = 'superlink = "127.0.0.1:9092"\nkey = "node.key"\nstore = "store"\n'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "node.toml").write_text(NODE)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("notes.txt", "no app of ours")
    return tmp_path


def efface(*words: str | Path, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_installed_bundle_is_allowed_looked_at_and_forbidden(site: Path) -> None:
    told = efface("site", "allow", site, "--installed", "--note", "read on Monday")
    name = told["hash"]
    assert told == {"format": 1, "hash": name, "bytes_known": True}
    assert name == installed_bundle().hash  # packing is the same each time

    [line] = efface("site", "allowed", site)["allowed"]
    assert (line["hash"], line["note"]) == (name, "read on Monday")
    shown = efface("site", "diff", site, name)
    assert shown["against"] is None
    assert "+++ b/client/app.py" in shown["diff"]
    assert "server/app.py" in shown["elsewhere"]

    assert efface("site", "forbid", site, name) == {"format": 1, "hash": name}
    assert efface("site", "allowed", site)["allowed"] == []


def test_a_bundle_is_allowed_from_its_file(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "ours.fab"
    file.write_bytes(installed_bundle().content)

    told = efface("site", "allow", site, "--file", file)

    assert told["hash"] == installed_bundle().hash
    assert bundles_of(site).find(told["hash"]) is not None


def test_a_hash_that_nobody_has_seen_is_allowed_with_a_word_of_it(site: Path) -> None:
    done = CliRunner().invoke(app, ["site", "allow", str(site), "0" * 64])
    assert done.exit_code == 0
    assert "nobody has looked at what it would run" in done.stdout
    assert efface("site", "diff", site, "0" * 64, code=2)["code"] == "bad-setting"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["allow", "{site}"], "must be given once"),
        (["allow", "{site}", "0" * 64, "--installed"], "must be given once"),
        (["allow", "{site}", "12ab"], "64 hexadecimal digits, got '12ab'"),
        (["allow", "{site}", "--file", "{site}/node.toml"], "must be a zip file"),
        (["allow", "{site}", "--file", "{site}/none.fab"], "file must be readable"),
        (["allow", "{site}", "--file", "{site}/other.zip"], "bundle must hold client/app.py"),
        (["allowed", "{site}/elsewhere"], "holds no node.toml"),
        (["run", "{site}", "--only", "both"], "only must be one of node, executor, got 'both'"),
        (["run", "{site}/elsewhere"], "holds no node.toml"),
    ],
)
def test_what_is_wrong_is_refused(site: Path, words: list[str], message: str) -> None:
    told = efface("site", *(word.format(site=site) for word in words), code=2)
    assert message in told["message"]
    assert bundles_of(site).allowed() == []
