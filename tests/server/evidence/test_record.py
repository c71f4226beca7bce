"""Records to JSON and back, and those that older versions wrote."""

import json
from pathlib import Path
from typing import Any

import pytest

from client.errors import BadSetting
from server.evidence.record import FORMAT, Record, from_json, to_json
from server.report.write import render

DATA = Path(__file__).parents[2] / "data"
OLD = {"record-format-1-class.json": "passed", "record-format-1-client.json": "not-shown"}


def old(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / name).read_text())
    return found


def holds(mine: Any, theirs: Any) -> bool:
    """Return whether all that `theirs` says is in `mine`, too."""
    if isinstance(theirs, dict):
        return all(key in mine and holds(mine[key], value) for key, value in theirs.items())
    if isinstance(theirs, list):
        same = len(mine) == len(theirs)
        return same and all(holds(a, b) for a, b in zip(mine, theirs, strict=True))
    return bool(mine == theirs)


@pytest.mark.parametrize("name", OLD)
def test_a_record_of_format_1_is_read_whole_with_the_verdict_that_it_had(name: str) -> None:
    document = old(name)
    record = from_json(document)
    written = json.loads(json.dumps(to_json(record)))

    assert written.pop("format") == FORMAT == 2
    assert document.pop("format") == 1
    # What later versions remark besides comes after what was said then.
    said = document["verdict"]["reasons"]
    more = written["verdict"]["reasons"][len(said) :]
    del written["verdict"]["reasons"][len(said) :]
    assert all(reason.startswith("remark: ") for reason in more)
    assert holds(written, document)
    assert record.verdict is not None
    assert record.verdict.state == OLD[name]
    assert (record.in_service, record.refused) == (True, False)
    assert f"Verdict: {OLD[name].replace('-', ' ')}" in render(record)


@pytest.mark.parametrize("name", OLD)
def test_a_record_is_the_same_after_it_was_written_and_read(name: str) -> None:
    record = from_json(old(name))
    assert from_json(json.loads(json.dumps(to_json(record)))) == record


def test_what_a_later_version_adds_is_left_out_and_what_is_null_takes_its_default() -> None:
    document = {"format": 2, "request": "r0001", "moon": "full", "seconds": None}
    assert from_json(document) == Record(request="r0001")


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        ({"format": 3}, "record format must be 1 or 2, got 3"),
        ({}, "record format must be 1 or 2, got None"),
        ({"format": 2, "timeline": 3}, "record.timeline must be a list, got int"),
        ({"format": 2, "seconds": [1]}, "record.seconds must be a JSON object, got list"),
        ({"format": 2, "forget": "all"}, "record.forget must be a JSON object, got str"),
    ],
)
def test_a_record_of_another_format_or_form_is_refused(document: dict[str, Any], rule: str) -> None:
    with pytest.raises(BadSetting, match=rule):
        from_json(document)


def test_an_old_record_of_retraining_is_its_own_yardstick() -> None:
    document = old("record-format-1-class.json") | {"method": "retraining", "retrained": None}
    verdict = from_json(document).verdict
    assert verdict is not None
    assert (verdict.yardstick, verdict.missing) == ("itself", ())
