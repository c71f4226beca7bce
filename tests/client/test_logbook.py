"""The site's log: every message has its line, and no line can be changed unseen."""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from client import logbook
from client.errors import StoreError
from client.logbook import FOLDER, HEAD, Logbook
from client.steps.measuring import Describe, Heldout
from client.steps.training import Fit
from tests.attacks.site import Hospital, hospital


@pytest.fixture
def book(tmp_path: Path) -> Logbook:
    return Logbook(tmp_path / "store")


def written(book: Logbook, count: int = 5) -> list[bytes]:
    """Write some lines and return them."""
    for number in range(count):
        book.write({"message": f"m{number}", "outcome": "answered"})
    return [line for path in book.files() for line in path.read_bytes().splitlines(keepends=True)]


def test_a_chain_as_it_was_written_is_sound_and_private(book: Logbook) -> None:
    assert book.verify() == []
    lines = [json.loads(line) for line in written(book)]
    assert book.verify() == []
    assert [line["number"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0]["before"] == logbook.START
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in book.folder.iterdir()}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(book.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda lines: [lines[0], lines[1].replace(b"m1", b"mX"), *lines[2:]],
            "line 3 must follow",
        ),
        (lambda lines: [*lines[:2], *lines[3:]], "line 4 must follow line 2"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "line 2 must follow line 2"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "must follow"),
        (
            lambda lines: lines[:-1],
            "the last line must be number 5 as it was written, got number 4",
        ),
        (lambda lines: [*lines[:-1], lines[-1].replace(b"m4", b"mX")], "the last line must be"),
        (
            lambda lines: [*lines[:2], b"no entry\n", *lines[3:]],
            "a line after number 2 is no entry",
        ),
        (lambda lines: [], "the last line must be number 5 as it was written, got number 0"),
    ],
)
def test_a_change_is_seen(book: Logbook, change, found: str) -> None:  # type: ignore[no-untyped-def]
    lines = written(book)
    (path,) = book.files()
    path.write_bytes(b"".join(change(lines)))
    assert any(found in problem for problem in book.verify()), book.verify()


def test_a_log_that_was_removed_is_missed(book: Logbook) -> None:
    written(book)
    (book.folder / HEAD).unlink()
    assert "must exist beside the log's files" in book.verify()[0]
    with pytest.raises(StoreError, match="lines may be missing"):
        book.write({"message": "m"})


def test_rotation_keeps_the_chain_and_bounds_the_size(
    book: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logbook, "FILE_BYTES", 600)
    monkeypatch.setattr(logbook, "KEPT_FILES", 3)
    written(book, 40)
    files = book.files()
    assert len(files) == 3
    first = int(files[0].stem)
    assert first > 1
    assert book.verify() == []
    assert [e["number"] for e in book.entries()] == list(range(first, 41))
    files[1].unlink()
    assert "must follow" in book.verify()[0]


def test_a_line_that_a_power_cut_cut_short_is_taken_out(book: Logbook) -> None:
    written(book, 2)
    (path,) = book.files()
    with path.open("ab") as file:
        file.write(b'{"number": 3, "bef')
    book.write({"message": "m"})
    assert book.verify() == []
    assert [e["number"] for e in book.entries()] == [1, 2, 3]


def test_a_line_that_a_stop_left_without_its_head_is_taken_up(book: Logbook) -> None:
    written(book, 2)
    before = (book.folder / HEAD).read_bytes()
    book.write({"message": "last"})
    (book.folder / HEAD).write_bytes(before)
    book.write({"message": "after"})
    assert book.verify() == []
    assert [e["message"] for e in book.entries()][-2:] == ["last", "after"]


def _write(folder: Path) -> None:
    for _ in range(20):
        Logbook(folder).write({"message": f"m{os.getpid()}"})


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    workers = [
        multiprocessing.get_context("fork").Process(target=_write, args=(tmp_path,))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    book = Logbook(tmp_path)
    assert book.verify() == []
    assert len(list(book.entries())) == 40


# ---- what a node writes --------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Hospital:
    return hospital(tmp_path)


def test_a_node_writes_what_was_asked_answered_refused_and_failed(site: Hospital) -> None:
    site.ask(Fit, steps=2, batch_size=64, lr=0.1, scale=0, request="r0001-x", method="")
    site.refusal(Fit, steps=2, batch_size=1, lr=0.1, scale=0)
    site.refusal(Fit, bogus=1)
    site.refusal(Heldout, holdout=0.1, client="\x1b[2Jx")
    (site.folder / "data.npz").rename(site.folder / "gone.npz")
    site.refusal(Describe)

    book = Logbook(site.store)
    assert book.verify() == []
    fit, small, odd, named, failed = book.entries()
    assert (fit["message"], fit["outcome"], fit["request"]) == ("train.fit", "answered", "r0001-x")
    assert (fit["asked"]["steps"], fit["asked"]["lr"]) == (2, 0.1)
    assert (fit["arrays"], fit["numbers"]["num-examples"]) == (6, 1618)
    assert fit["bytes"] > 10_000
    assert (small["outcome"], small["code"]) == ("refused", "policy-refused")
    assert "batch-size must be at least 5" in small["why"]
    assert (odd["outcome"], odd["code"]) == ("refused", "bad-setting")
    assert named["outcome"] == "refused"
    assert "\x1b" not in (site.store / FOLDER / "000000000001.jsonl").read_text()
    assert (failed["outcome"], failed["code"]) == ("failed", "data-missing")
    assert "data.npz" in failed["why"]  # the operator's own log may name its own paths


def test_nothing_goes_up_that_cannot_be_logged(
    site: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.ask(Describe)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Logbook, "write", full)
    assert "the node's own log says why" in site.refusal(Describe)


def test_long_values_are_cut(site: Hospital) -> None:
    site.refusal(Fit, client="x" * 64, steps=1, lr=0.1, model_pruned=["body.0:1"] * 10_000)
    (entry,) = Logbook(site.store).entries()
    assert len(json.dumps(entry)) < 5_000


def test_a_simulated_node_keeps_no_log(tmp_path: Path) -> None:
    from client.logbook import Visit, visit_of
    from tests.messages import message, told

    asked = message("query.describe", told(Describe).config())
    assert type(visit_of(asked, {"partition-id": 0, "store": str(tmp_path)})) is Visit
    assert list(tmp_path.iterdir()) == []
