"""The example of tables runs as its README says, and comes to what it says."""

import json
from pathlib import Path

from tests.examples.walking import Walk, shape


def test_the_commands_run_as_they_stand_and_end_as_readme_shows(tmp_path: Path) -> None:
    walk = Walk("heart-tables", tmp_path)
    told = []
    for words in walk.commands():
        if "--trial" in words:  # `make examples` walks it, too
            continue
        done = walk.type(*words)
        assert done.returncode == 0, (words, done.stderr)
        told.append(done.stdout)

    trained, rest = walk.output().split("r0002 ")
    _, left = rest.split("r0003 ")
    assert shape("".join(told)) == shape(trained + left)
    assert "".join(told).count("Verdict: passed") == 1
    done = walk.type("efface", "show", "v0001", "--json")
    card = json.loads(done.stdout)["version"]["card"]
    assert "heart:Table" in json.dumps(card["model"])
    # The pages talk of a table, not of images.
    for page in (walk.folder / ".efface" / "reports").glob("*.html"):
        text = page.read_text().split("<body")[1].lower().replace("data:image/", "")
        assert "image" not in text
