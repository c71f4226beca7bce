"""Records, ledger rows and weights changed by hand: every command that shows them says so."""

import base64
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.logbook import Logbook
from server.cli import app
from server.cli.command import NOT_VERIFIED, USAGE

TINY = [
    *("--num-clients", "2", "--partition", "iid", "--rounds", "1", "--local-steps", "4"),
    *("--batch-size", "32", "--scale", "0", "--model-width", "8", "--model-depth", "2"),
]
EASY = ["--accept", "not-shown", "--max-forget-accuracy", "100", "--method", "retraining"]


class Efface:
    """The command on one home, and hands that change what is in it."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *words: str) -> Any:
        return CliRunner().invoke(app, [*words, "--home", str(self.home)])

    def json(self, *words: str, code: int = 0) -> Any:
        done = self(*words, "--json")
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    def sql(self, *lines: str) -> None:
        with sqlite3.connect(self.home / "ledger.db") as database:
            for line in lines:
                database.execute(line)
        database.close()

    @property
    def record(self) -> Path:
        return self.home / "runs" / "r0002" / "record.json"

    def edit(self, path: Path, **values: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


pytestmark = pytest.mark.usefixtures("shared_surroundings")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained, and class 3 forgotten."""
    home = tmp_path_factory.mktemp("shared") / "home"
    efface = Efface(home)
    efface.json("train", *TINY, "--by", "Ada")
    efface.json("forget", "--class", "3", *EASY, "--by", "Data protection")
    return home


@pytest.fixture
def efface(shared: Path, tmp_path: Path) -> Efface:
    return Efface(Path(shutil.copytree(shared, tmp_path / "home")))


READING = (
    ["requests"],
    ["show", "r0002"],
    ["show", "v0002"],
    ["models"],
    ["forgotten"],
    ["report", "r0002"],
    ["audit"],
)


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_what_nobody_touched_verifies(efface: Efface, words: list[str]) -> None:
    document = efface.json(*words)
    assert document.get("problems", []) == []
    assert "edited" not in efface(*words).stdout


def test_an_audit_counts_what_it_looked_at(efface: Efface) -> None:
    found = efface.json("audit")
    assert found["verified"] is True
    assert found["checked"] == {
        "seals": 3,
        "requests": 2,
        "records": 2,
        "orders": 1,
        "attestations": 2,
        "versions": 2,
        "pruned": 0,
        "retrained": 0,
        "site_lines": 0,
        "unrecorded": 0,
    }
    assert found["keys"] == [efface.json("key")["public_key"]]
    assert {row["seal"] for row in efface.json("requests")["requests"]} == {"sealed"}
    assert efface.json("audit", "--head", found["head"])["verified"] is True


@pytest.mark.parametrize(
    "edit",
    [
        lambda e: e.edit(e.record, verdict=None),
        lambda e: e.edit(e.record, asked_by="Eve"),
        lambda e: e.edit(e.record, model_version="v0001"),
        lambda e: e.edit(e.record, finished="2020-01-01T00:00:00+00:00"),
        lambda e: e.edit(e.record, note="one more field"),
        lambda e: e.record.write_text("{}"),
        lambda e: e.record.write_text("not JSON"),
        lambda e: e.record.unlink(),
        lambda e: shutil.copy(e.home / "runs" / "r0001" / "record.json", e.record),
        # In the place of the published one: a record that has yet to be published.
        lambda e: e.record.with_name("record.pending.json").write_text(
            json.dumps({**json.loads(e.record.read_text()), "asked_by": "Eve"})
        ),
    ],
)
def test_a_record_that_was_edited(efface: Efface, edit: Callable[[Efface], Any]) -> None:
    before = (efface.home / "reports" / "r0002.html").read_bytes()
    edit(efface)

    refused = efface("report", "r0002")
    assert refused.exit_code == NOT_VERIFIED
    assert "r0002" in refused.stderr
    assert str(efface.home / "runs" / "r0002") in refused.stderr
    assert (efface.home / "reports" / "r0002.html").read_bytes() == before
    shown = efface.json("show", "r0002", code=NOT_VERIFIED)
    assert shown["record"] is None
    assert shown["problems"][0]["request"] == "r0002"
    assert "Does not verify" in efface("show", "r0002").stdout
    audited = efface.json("audit", code=NOT_VERIFIED)
    assert [problem["request"] for problem in audited["problems"]] == ["r0002"]
    assert efface("show", "r0001").exit_code == 0


def test_a_record_with_another_signature(efface: Efface) -> None:
    beside = efface.record.with_name("record.signature.json")
    shutil.copy(efface.home / "runs" / "r0001" / beside.name, beside)
    (problem,) = efface.json("audit", code=NOT_VERIFIED)["problems"]
    assert (problem["request"], problem["file"]) == ("r0002", str(beside))


@pytest.mark.parametrize("key", ["format", "request", "sha256", "key", "signature"])
def test_a_signature_beside_a_record_that_says_something_else(efface: Efface, key: str) -> None:
    # Whoever has the record and not the ledger goes by all of it.
    beside = efface.record.with_name("record.signature.json")
    other = json.loads((efface.home / "runs" / "r0001" / beside.name).read_text())
    elsewhere = {"format": 2, "key": base64.b64encode(bytes(32)).decode()}
    efface.edit(beside, **{key: elsewhere.get(key, other[key])})
    (problem,) = efface.json("audit", code=NOT_VERIFIED)["problems"]
    assert (problem["request"], problem["file"]) == ("r0002", str(beside))


@pytest.mark.parametrize(("table", "name"), [("requests", "r0002"), ("versions", "v0002")])
def test_a_row_that_was_moved(efface: Efface, table: str, name: str) -> None:
    efface.sql(f"UPDATE {table} SET number = 0 WHERE id = '{name}'")
    (problem,) = efface.json("audit", code=NOT_VERIFIED)["problems"]
    assert name in problem["text"]
    assert "moved" in problem["text"]


@pytest.mark.parametrize(
    "change",
    ["state = 'failed'", "reason = 'another'", "asked_by = 'Eve'", "classes = '[4]'"],
)
def test_a_row_that_was_edited(efface: Efface, change: str) -> None:
    efface.sql(f"UPDATE requests SET {change} WHERE id = 'r0002'")

    for words in (["requests"], ["show", "r0002"], ["forgotten"], ["report", "r0002"], ["audit"]):
        done = efface(*words)
        assert done.exit_code == NOT_VERIFIED, words
        assert "row of r0002 was changed after it ended" in done.output
    listed = efface.json("requests", code=NOT_VERIFIED)["requests"]
    assert [row["seal"] for row in listed] == ["sealed", "edited"]
    assert "(edited)" in efface("requests").stdout


def test_a_row_that_was_deleted(efface: Efface) -> None:
    efface.sql("DELETE FROM requests WHERE id = 'r0002'")

    for words in (["requests"], ["forgotten"], ["audit"]):
        done = efface(*words)
        assert done.exit_code == NOT_VERIFIED, words
        assert "request r0002 has ended, got no row of it" in done.output
    # It is a class to be kept out of every model: a training says that the ledger lacks it.
    record = efface.json("train", *TINY)
    assert any("does not verify" in text for text in record["warnings"])


def test_a_row_with_no_json_in_it(efface: Efface) -> None:
    efface.sql("UPDATE requests SET settings = '{' WHERE id = 'r0002'")
    for words in READING:
        done = efface(*words)
        assert done.exit_code == NOT_VERIFIED, words
        assert "ledger rows must be as they were written" in done.stderr


def test_weights_that_changed_places(efface: Efface) -> None:
    paths = [efface.home / "versions" / name / "model.safetensors" for name in ("v0001", "v0002")]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)

    found = efface.json("audit", code=NOT_VERIFIED)["problems"]
    assert [(p["version"], p["file"]) for p in found] == [
        ("v0001", str(paths[0])),
        ("v0002", str(paths[1])),
    ]
    assert "altered" in efface("evaluate", "v0001").stderr


def test_weights_that_changed_places_with_their_rows(efface: Efface) -> None:
    folder = efface.home / "versions"
    (folder / "v0001").rename(folder / "x")
    (folder / "v0002").rename(folder / "v0001")
    (folder / "x").rename(folder / "v0002")
    efface.sql(
        "UPDATE versions SET sha256 = 'x' || sha256",
        "UPDATE versions SET sha256 = (SELECT substr(o.sha256, 2) FROM versions o "
        "WHERE o.id != versions.id AND substr(o.sha256, 1, 1) = 'x') WHERE id = 'v0002'",
    )
    done = efface("evaluate", "v0002")
    assert done.exit_code == NOT_VERIFIED
    assert "row of v0002 was changed after it entered" in done.stderr
    assert efface("models").exit_code == NOT_VERIFIED
    assert efface("show", "v0002").exit_code == NOT_VERIFIED


def test_an_order_that_was_edited(efface: Efface) -> None:
    path = efface.home / "runs" / "r0002" / "order.json"
    efface.edit(path, destroy=True)
    (problem,) = efface.json("audit", code=NOT_VERIFIED)["problems"]
    assert (problem["request"], problem["file"]) == ("r0002", str(path))


def test_an_order_that_was_removed(efface: Efface, tmp_path: Path) -> None:
    path = efface.home / "runs" / "r0002" / "order.json"
    path.unlink()
    (problem,) = efface.json("audit", code=NOT_VERIFIED)["problems"]
    assert (problem["request"], problem["file"]) == ("r0002", str(path))
    for words in (["verify", "r0002"], ["certificate", "r0002", "-o", str(tmp_path / "c.json")]):
        done = efface(*words)
        assert done.exit_code == NOT_VERIFIED, words
        assert "order of r0002, which its sites were given, must be there" in done.output


def test_a_chain_is_not_begun_again_over_what_was_edited(efface: Efface, tmp_path: Path) -> None:
    """Whoever can write the ledger alone: the coordinator would sign the forgery itself."""
    efface.sql("UPDATE requests SET asked_by = 'Eve' WHERE id = 'r0002'", "DELETE FROM seals")
    done = efface("export", "v0002", "-o", str(tmp_path / "m.safetensors"))
    assert done.exit_code == NOT_VERIFIED
    assert "ledger must hold the seals of this home, got none" in done.stderr
    assert efface("audit").exit_code == NOT_VERIFIED


def test_a_home_made_to_look_older_than_its_key(efface: Efface) -> None:
    efface.sql("DELETE FROM seals", "UPDATE requests SET asked_by = 'Eve', record_sha256 = NULL")
    (efface.home / "keys" / "head.json").unlink()
    found = efface.json("audit", code=NOT_VERIFIED)["problems"]
    assert [one["text"] for one in found] == [
        f"{name} must have a seal, for its record was signed, got none: removed"
        for name in ("r0001", "r0002")
    ]
    for path in (efface.home / "runs").glob("r*/record.signature.json"):
        path.unlink()
    found = efface.json("audit", code=NOT_VERIFIED)["problems"]
    assert [one["text"] for one in found] == [
        "r0002 must have a seal, for sites attested it, got none: removed"
    ]


def test_an_end_that_was_cut_off_with_its_note(efface: Efface) -> None:
    with sqlite3.connect(efface.home / "ledger.db") as database:
        number, told = database.execute(
            "SELECT number, before FROM seals ORDER BY number DESC LIMIT 1"
        ).fetchone()
    efface.sql(
        "DELETE FROM seals WHERE subject = 'r0002'",
        "DELETE FROM versions WHERE id = 'v0002'",
        "DELETE FROM pending WHERE request = 'r0002'",
        "DELETE FROM requests WHERE id = 'r0002'",
        "UPDATE versions SET state = 'in-service' WHERE id = 'v0001'",
    )
    note = {"number": number - 1, "hash": told}
    (efface.home / "keys" / "head.json").write_text(json.dumps(note))
    (problem,) = efface.json("audit", code=NOT_VERIFIED)["problems"]
    assert problem["text"] == "what r0002 left must have a row of it, got none: removed"


def test_all_made_anew_with_another_key(efface: Efface) -> None:
    """Whoever may write to the home can forge it whole, but not what is known outside it."""
    pinned, head = efface.json("key")["public_key"], efface.json("audit")["head"]
    efface.sql(
        "DELETE FROM seals",
        "UPDATE requests SET record_sha256 = NULL",
        "UPDATE requests SET asked_by = 'Eve' WHERE id = 'r0002'",
    )
    shutil.rmtree(efface.home / "keys")
    for path in (efface.home / "runs").glob("r*/record.signature.json"):
        path.unlink()
    efface("key")
    efface.json("train", *TINY)  # begins a chain of its own

    assert efface("audit", "--key", pinned).exit_code == NOT_VERIFIED
    assert efface("audit", "--head", head).exit_code == NOT_VERIFIED
    listed = efface.json("requests")["requests"]
    assert [row["seal"] for row in listed] == ["unsigned", "unsigned", "sealed"]
    assert "Unsigned, for they ended before this home had a key: r0001, r0002" in (
        efface("requests").stdout
    )


def test_a_key_that_is_none_is_refused(efface: Efface) -> None:
    assert "head must be a SHA-256" in efface("audit", "--head", "abc").stderr
    done = efface("audit", "--key", "nonsense")
    assert done.exit_code == USAGE
    assert "public key must be base64 of a 32-byte Ed25519 public key" in done.stderr


def test_a_sites_log_must_have_what_the_site_attested(efface: Efface, tmp_path: Path) -> None:
    """As a real site writes it; simulated clients keep none."""
    record = json.loads(efface.record.read_text())
    (token,) = {one["statement"]["request"] for one in record["attestations"]}
    book = Logbook(tmp_path / "store")
    line = {"message": "query.settle", "request": token, "outcome": "answered"}
    line["client"] = "client-1"
    book.write({**line, "message": "train.fit"})
    site = f"--site=client-1={tmp_path / 'store'}"

    (problem,) = efface.json("audit", site, code=NOT_VERIFIED)["problems"]
    assert "log of client-1 must have that it made r0002 last, as it attested" in problem["text"]
    book.write(line)
    found = efface.json("audit", site)
    assert (found["verified"], found["checked"]["site_lines"]) == (True, 2)
    # It is that site's and no other's, and nobody else attested anything.
    other = f"--site=client-0={tmp_path / 'store'}"
    (problem,) = efface.json("audit", other, code=NOT_VERIFIED)["problems"]
    assert "log of client-0 must be that site's own, got one of client-1" in problem["text"]
    assert efface("audit", f"--site=client-7={tmp_path / 'store'}").exit_code == USAGE
    # A request that this home does not know of: its row was removed here.
    book.write({**line, "request": "r0003-0123456789ab"})
    (problem,) = efface.json("audit", site, code=NOT_VERIFIED)["problems"]
    assert "r0003-0123456789ab last, got no such request in this home" in problem["text"]
    (file,) = book.files()
    file.write_bytes(file.read_bytes().replace(b"answered", b"refused!", 1))
    found = efface.json("audit", site, code=NOT_VERIFIED)["problems"]
    assert any("lines were altered" in one["text"] for one in found)
    assert efface("audit", "--site", "client-1").exit_code == USAGE
    assert efface("audit", f"--site=client-1={tmp_path}").exit_code == USAGE


def test_a_site_s_log_whose_oldest_lines_have_gone_speaks_of_nothing_before_it(
    efface: Efface, tmp_path: Path
) -> None:
    book = Logbook(tmp_path / "store")
    for _ in range(2):
        book.write({"message": "train.fit", "client": "client-1", "outcome": "answered"})
    site = f"--site=client-1={tmp_path / 'store'}"
    assert efface("audit", site).exit_code == NOT_VERIFIED
    (file,) = book.files()
    file.write_bytes(file.read_bytes().partition(b"\n")[2])
    assert efface.json("audit", site)["verified"] is True


def test_looking_changes_nothing(efface: Efface) -> None:
    def state() -> dict[str, bytes]:
        # SQLite's own files beside the database come and go with readers.
        found = (p for p in efface.home.rglob("*") if p.is_file() and "ledger.db-" not in p.name)
        return {str(p): p.read_bytes() for p in found}

    before = state()
    for words in READING:
        if words[0] != "report":
            efface(*words)
    assert state() == before
