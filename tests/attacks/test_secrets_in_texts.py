"""Passwords and tokens do not reach a person, a file or a log, in whatever form they stand.

The attack: reading the lock file, the ledger, an error, a traceback, or what was exported.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from server.cli import app
from server.format import masked
from server.storage.home import Home
from server.storage.ledger import Ledger, LedgerError

ROOT = Path(__file__).parents[2]
SECRET = 's3cr/t & "it\'s" 100% @home'
TINY = [
    *("--num-clients", "2", "--partition", "iid", "--rounds", "1", "--local-steps", "2"),
    *("--batch-size", "32", "--scale", "0", "--model-width", "8", "--model-depth", "2"),
]

EASY = [
    *("--set", "threshold=100", "--max-forget-accuracy", "100", "--accept", "not-shown"),
    *("--compare", "retrain", "--max-relearning-gap", "100"),
]

# Long enough that it does not stand in the rest of a text by chance.
passwords = st.text(min_size=6, max_size=30).filter(
    lambda text: text.encode("utf-8", "ignore").decode() == text and text.strip() == text
)
safe = st.text("abcXYZ0189-._~!$*+", min_size=6, max_size=30)
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)


def url_of(password: str, **query: str) -> str:
    url = URL.create("postgresql+psycopg", "efface", password, "db.example.org", 5432, "efface")
    return url.update_query_dict(query).render_as_string(hide_password=False)


@given(password=passwords)
@example(password="0000 0")  # begins as a port does
@relaxed
def test_no_url_shows_its_password(password: str) -> None:
    url, shown = url_of(password), url_of("***").replace("%2A", "*")
    for text in ("{}", "cannot connect to {} (timeout)", "{{'url': '{}'}}"):
        assert masked(text.format(url)) == text.format(shown)
    whole = masked(f"see {quote(url, safe='')}")
    assert whole == f"see {quote(shown, safe='*')}"


@given(password=passwords, key=st.sampled_from(["password", "sslpassword", "PASSWORD", "token"]))
@relaxed
def test_no_query_shows_its_password(password: str, key: str) -> None:
    for encoded in (quote(password, safe=""), quote_plus(password)):
        url = f"postgresql+psycopg://efface@db.example.org/efface?connect_timeout=3&{key}={encoded}"
        found = masked(f"got {url}&sslmode=require (no route)")
        assert found == f"got {url.removesuffix(encoded)}***&sslmode=require (no route)"


@given(password=passwords)
@relaxed
def test_no_connection_text_and_no_mapping_shows_its_password(password: str) -> None:
    assume("\n" not in repr(password))
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    assume("\n" not in quoted)
    rest = "host=db.example.org dbname=efface"
    assert masked(f"host=x password='{quoted}' {rest}") == f"host=x password=*** {rest}"
    shown = masked(f"connect({ {'password': password, 'host': 'db'} })")
    assert shown == "connect({'password': ***, 'host': 'db'})"


@given(password=safe)
@relaxed
def test_no_command_line_shows_it(password: str) -> None:
    word = shlex.quote(password)
    for line in (f"run --token {word} --app 1", f"run --db-password {word} --app 1"):
        assert masked(line) == f"{line.partition(word)[0]}*** --app 1"
    assert masked(f"run --token={word} --app 1") == "run --token=*** --app 1"


@given(password=passwords)
@relaxed
def test_the_ledgers_own_password_is_shown_nowhere(
    password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (url_of(password), f"postgresql://u@h/d?password={quote(password, safe='')}"):
        monkeypatch.setenv("EFFACE_DATABASE_URL", url)
        for form in (
            password,
            quote(password, safe=""),
            quote_plus(password),
            quote(quote(password, safe=""), safe=""),
            json.dumps(password)[1:-1],
            repr(password)[1:-1],
        ):
            assert masked(f"FATAL: <{form}> is not right") == "FATAL: <***> is not right"


def test_a_url_that_cannot_be_read_is_not_shown_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_DATABASE_URL", "postgresql:/efface:hunter22@host")
    assert masked("could not parse 'postgresql:/efface:hunter22@host'") == "could not parse '***'"


@pytest.mark.parametrize(
    "text",
    [
        "metrics: http://127.0.0.1:9090/metrics",
        "sqlite:////srv/efface/ledger.db",
        "postgresql+psycopg://efface@db.example.org:5432/efface?sslmode=require",
        "client must be site-a, got 'site-b' (ask ada@example.org)",
        "http://127.0.0.1:9090/metrics is asked by ada@example.org",
        "a token is 48 bits; pass: 3 of 4; secrets stay",
        "password must be given by EFFACE_DATABASE_URL",
        '{"passed": true, "by": "token"}',
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_masking_twice_is_masking_once() -> None:
    text = f"{url_of('hunter22')} and postgresql://h/d?password=x%20y --token abc"
    assert masked(masked(text)) == masked(text)


# ---- where texts go ------------------------------------------------------------------------------


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> str:
    """A database that does not answer, with the password before the host and in the query."""
    made = URL.create("postgresql+psycopg2fake", "efface", SECRET, "db.invalid", 1, "efface")
    text = made.update_query_dict({"password": SECRET}).render_as_string(hide_password=False)
    monkeypatch.setenv("EFFACE_DATABASE_URL", text)
    return text


def told(text: str) -> list[str]:
    """Return which forms of the secret a text tells."""
    forms = (SECRET, quote(SECRET, safe=""), quote_plus(SECRET), repr(SECRET)[1:-1], "s3cr")
    return [form for form in forms if form in text]


def test_an_error_and_its_traceback(url: str, tmp_path: Path) -> None:
    for more in ([], ["--json"], ["--debug"], ["--debug", "--json"]):
        Home(tmp_path)
        done = CliRunner().invoke(app, ["requests", "--home", str(tmp_path), *more])
        assert done.exit_code == 1
        assert told(done.output) == []
        assert "efface:***@db.invalid" in done.output
        assert ("Traceback" in done.output) == ("--debug" in more)


def test_an_error_of_the_database_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_DATABASE_URL", url_of(SECRET))
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        cause = Exception(f"could not connect: host=db password='{SECRET[:6]}' ({SECRET!r})")
        with pytest.raises(LedgerError) as caught, ledger._clear_errors():
            raise OperationalError("SELECT 1", {}, cause)
    assert told(str(caught.value)) == []


def test_the_ledger_and_the_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.requests.progress import EventFile

    reason = f"OperationalError: {url_of(SECRET)}"
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        for end in (ledger.fail, ledger.interrupt, ledger.abort):
            row = ledger.new_request(kind="train", method="fedavg", federation="f")
            if end != ledger.abort:
                ledger.start(row.id)
            assert told(str(end(row.id, reason).reason)) == []
    EventFile(tmp_path / "events.jsonl").note(reason)
    kept = [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert [told(text) for text in kept] == [[]] * len(kept)


@pytest.mark.parametrize(
    "words",
    [
        ["efface", "train", "--data", f"postgresql://efface:{quote(SECRET, safe='')}@h/d"],
        ["efface", "train", "--data", f"postgresql://h/d?password={quote(SECRET, safe='')}"],
        ["flwr-serverapp", "--token", SECRET, "--run-id", "3"],
        ["flwr-serverapp", "--auth-token=s3cr8"],
        ["x", "--db-password", SECRET],
    ],
)
def test_the_lock_file(tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    home = Home(tmp_path)
    with home.lock():
        text = (tmp_path / "lock").read_text()
        assert told(text) == []
        assert words[0] in text
        assert told(str(home.holder())) == []


def test_a_recorded_command() -> None:
    from server.provenance import command
    from server.settings import RunSettings

    asked = RunSettings(dataset=f"npz:postgresql://efface:{quote(SECRET, safe='')}@h/d")
    found = command(asked, "train")
    assert told(found) == []
    assert "efface:***@h/d" in found


def test_whatever_is_exported_is_for_its_owner_alone(tmp_path: Path) -> None:
    """With the umask wide open, as some services have it."""
    home, out = tmp_path / "home", tmp_path / "out"
    out.mkdir()
    line = [
        ["train", *TINY, "--scale", "20"],
        ["forget", "--class", "3", "--trial", "--method", "quickdrop", *EASY],
        ["report", "r0002", "--output", str(out / "r.html")],
        ["audit"],
        ["key"],
    ]
    code = "import os, sys; os.umask(0); from server.cli import main; main()"
    environment = {key: v for key, v in os.environ.items() if not key.startswith("EFFACE_")}
    for words in line:
        done = subprocess.run(
            [sys.executable, "-c", code, *words, "--home", str(home)],
            cwd=ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    store = next((home / "clients").glob("*/client-0"))
    words = ["store", "report", str(store), "--output", str(out / "store.html")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr

    files = [path for path in [*home.rglob("*"), *out.rglob("*")] if path.is_file()]
    names = {path.name for path in files}
    assert {"r.html", "store.html", "events.jsonl", "record.json", "lock"} <= names
    open_to_others = [str(path) for path in files if path.stat().st_mode & 0o077]
    assert open_to_others == []


def test_plots_are_for_their_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    from server.bench import plots
    from server.bench.recipe import Cell, Level

    recipe: Any = type("R", (), {})()
    level, cell = object.__new__(Level), object.__new__(Cell)
    object.__setattr__(level, "label", "class")
    object.__setattr__(cell, "partition", "iid")
    object.__setattr__(cell, "sweep", ())
    recipe.cells, recipe.levels = [cell], [level]
    monkeypatch.setattr(plots, "_figures", lambda *_, **__: [("time", Figure())])
    row: Any = {"partition": "iid", "level": "class", "state": "done", "oracle": None}
    before = os.umask(0)
    try:
        (made,) = plots.draw(recipe, [row], [], tmp_path / "plots")
    finally:
        os.umask(before)
    assert made.read_bytes().startswith(b"\x89PNG")
    assert made.stat().st_mode & 0o777 == 0o600
