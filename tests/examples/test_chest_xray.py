"""The example of chest X-rays runs in a small form, on its generated stand-in."""

import json
from pathlib import Path

from tests.examples.walking import Walk

SMALL = ("--rounds", "1", "--local-steps", "2", "--batch-size", "8")


def test_the_commands_run_and_the_verdict_is_of_the_client_that_left(tmp_path: Path) -> None:
    walk = Walk("chest-xray", tmp_path)
    prepare, train, forget, *_ = walk.commands()

    done = walk.type(*prepare, "--images", "60", "--sites")
    assert done.returncode == 0, done.stderr
    assert "a generated stand-in" in done.stdout
    assert (walk.folder / "hospital-c.npz").is_file()
    done = walk.type(*train, *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["model"], record["class_names"]) == ("ChestXray", ["normal", "pneumonia"])

    # Two steps teach nothing that could be shown to be forgotten: the code says so.
    done = walk.type(*forget, "--set", "rounds=1", "--set", "batch-size=8", "--json")
    assert done.returncode == 3, done.stderr
    told = json.loads(done.stdout)
    assert told["code"] in ("verification-failed", "not-shown"), told
    assert "report:" in told["message"]


def test_readme_shows_a_run_that_passed(tmp_path: Path) -> None:
    walk = Walk("chest-xray", tmp_path)

    assert "Verdict: passed" in walk.output()
    assert [words[:2] for words in walk.commands()] == [
        ["python", "prepare.py"],
        ["efface", "train"],
        ["efface", "forget"],
        ["efface", "report"],
    ]
