"""`efface site` init, check and log."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.keys import public_text
from client.logbook import Logbook
from client.policy import Policy
from client.steps.measuring import Describe
from client.steps.training import Fit
from server.cli import app
from tests.attacks.site import Hospital, hospital


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


def test_a_site_is_made_and_its_public_key_printed(tmp_path: Path) -> None:
    told = json.loads(run("site", "init", tmp_path / "site", "--name", "site-a", "--json").stdout)
    policy = Policy.load(Path(told["policy"]))
    assert (policy.name, told["name"]) == ("site-a", "site-a")
    assert told["public_key"] == public_text(policy.key())
    again = run("site", "init", tmp_path / "site", "--name", "site-a")
    assert again.exit_code == 1
    assert "must not exist yet, got one" in again.stderr
    nameless = run("site", "init", tmp_path / "other", "--name", "a/b")
    assert nameless.exit_code == 2
    shown = run("site", "init", tmp_path / "b", "--name", "site-b").stdout
    assert "Public key of site-b: " in shown
    assert "node.toml" in shown


def test_a_site_is_not_made_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "site"):
        done = run("site", "init", folder, "--name", "site-a")
        assert done.exit_code == 2
        assert f"folder must be one, got the file {tmp_path / 'file'}" in done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Hospital:
    made = hospital(tmp_path)
    told = {"superlink": "127.0.0.1:1", "key": "node.key", "store": str(made.store)}
    told["data"] = made.config["data"]
    text = "".join(f'{key} = "{value}"\n' for key, value in told.items())
    (made.policy.parent / "node.toml").write_text(text)
    return made


def test_a_check_says_what_to_mend(site: Hospital) -> None:
    done = run("site", "check", site.policy.parent, "--offline", "--json")
    assert done.exit_code == 1
    checks = {one["check"]: one for one in json.loads(done.stdout)["checks"]}
    assert checks["node key"]["state"] == "mend"
    assert checks["trial message"]["state"] == "ok"
    assert "connection" not in checks
    shown = run("site", "check", site.policy.parent)
    assert shown.exit_code == 1
    assert "2 to mend." in shown.stdout
    assert "add it to [keys] coordinators" in " ".join(shown.stdout.split())


def test_the_log_is_shown_and_verified(site: Hospital) -> None:
    folder = site.policy.parent
    assert run("site", "log", folder).exit_code == 2  # no message came
    site.ask(Describe)
    site.ask(Fit, steps=1, batch_size=64, lr=0.1, scale=0)
    site.refusal(Fit, steps=1, batch_size=1, lr=0.1, request="\x1b[31mred")

    told = json.loads(run("site", "log", folder, "--json").stdout)
    assert [e["outcome"] for e in told["entries"]] == ["answered", "answered", "refused"]
    few = json.loads(run("site", "log", folder, "--json", "--last", "1").stdout)
    assert [e["number"] for e in few["entries"]] == [3]
    refused = json.loads(run("site", "log", folder, "--json", "--refused").stdout)
    assert [e["number"] for e in refused["entries"]] == [3]
    shown = run("site", "log", folder).stdout
    assert "\x1b[31m" not in shown
    assert "batch-size must be at least 5" in " ".join(shown.split())

    sound = run("site", "log", folder, "--verify", "--json")
    assert (sound.exit_code, json.loads(sound.stdout)["lines"]) == (0, 3)
    (path,) = Logbook(site.store).files()
    path.write_bytes(path.read_bytes().replace(b"answered", b"refused_", 1))
    broken = run("site", "log", folder, "--verify", "--json")
    assert broken.exit_code == 3
    assert "line 2 must follow line 1" in json.loads(broken.stdout)["problems"][0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"number": 2', b'"number": null'),
        (b'"num-examples": 7', b'"num-examples": "x"'),
        (b'{"num-examples": 7}', b"7"),
        (b'"time": "', b'"time": ["'),
    ],
)
def test_a_log_of_which_a_line_was_altered_is_shown_and_does_not_verify(
    site: Hospital, old: bytes, new: bytes
) -> None:
    book = Logbook(site.store)
    for _ in range(3):
        book.write({"message": "m", "outcome": "answered", "numbers": {"num-examples": 7}})
    (path,) = book.files()
    path.write_bytes(path.read_bytes().replace(old, new))
    (path.parent / "notes.jsonl").touch()
    assert run("site", "log", site.policy.parent).exit_code == 0
    assert run("site", "log", site.policy.parent, "--verify").exit_code == 3
