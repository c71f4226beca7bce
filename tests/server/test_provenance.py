"""The commit that a result names: that of the product's code, and whether it was changed."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import provenance
from server.settings import RunSettings


def git(where: Path, *told: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *who, *told], cwd=where, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for file in ("server/a.py", "client/b.py", "strategies/c.py", "pyproject.toml", "notes.md"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("one\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "server" / "provenance.py"))
    provenance.commit.cache_clear()
    yield tmp_path
    provenance.commit.cache_clear()


@pytest.mark.parametrize(
    ("changed", "ending"),
    [("", ""), ("notes.md", ""), ("new.py", ""), ("client/b.py", "-dirty")],
)
def test_code_that_was_changed_is_told_apart(checkout: Path, changed: str, ending: str) -> None:
    if changed:
        (checkout / changed).write_text("two\n")
    assert provenance.commit() == git(checkout, "rev-parse", "--short", "HEAD") + ending


def test_it_stays_that_of_the_start(checkout: Path) -> None:
    before = provenance.commit()
    (checkout / "client" / "b.py").write_text("two\n")
    git(checkout, "commit", "-q", "-a", "-m", "two")
    assert provenance.commit() == before


def test_the_command_of_a_verification_names_no_option_that_it_does_not_take() -> None:
    told = RunSettings(
        mode="verify",
        verifies="r-1",
        data_dir="images",
        data="moved",
        method="sga",
        forget_classes="9",
        engine="inline",
        destroy=True,
        rounds=3,
    )
    assert provenance.command(told, "verify") == "efface verify r-1 --data moved --engine inline"


def test_outside_a_checkout_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "server" / "provenance.py"))
    (tmp_path / "server").mkdir()
    provenance.commit.cache_clear()
    assert provenance.commit() is None
    provenance.commit.cache_clear()


def test_the_imports_of_a_module_are_found_in_subfolders_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "strategies"
    (folder / "rounds").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text("from strategies.rounds import base\nimport os\n")
    (folder / "rounds" / "__init__.py").write_text("")
    (folder / "rounds" / "base.py").write_text("import strategies.rounds.deep\n")
    (folder / "rounds" / "deep.py").write_text("")
    monkeypatch.setattr(provenance.strategies, "__file__", str(folder / "__init__.py"))
    found = {str(p.relative_to(folder)) for p in provenance.imported("strategies.one")}
    assert found == {"one.py", "rounds/__init__.py", "rounds/base.py", "rounds/deep.py"}


def test_a_module_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strategies\.nothing"):
        provenance.imported("strategies.nothing")
