"""`efface site budget`: what answers under noise have told, and what is left."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.budget import Budget, Mechanism, epsilon
from server.cli import app
from tests.policies import written_policy

FIT = Mechanism(1.0, 0.1, 10)


def spent(store: Path, lineage: str, times: int = 1) -> None:
    for _ in range(times):
        Budget(store).charge(lineage, "train.fit", FIT, limit=100.0, delta=1e-5)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    written_policy(folder, "site-a", required="true", epsilon="8.0", delta="1e-6")
    (folder / "node.toml").write_text(
        f'superlink = "localhost:9092"\nkey = "node.key"\nstore = "{tmp_path / "store"}"\n'
    )
    return folder


def shown(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["site", "budget", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_site_sees_what_is_spent_and_left_at_its_policys_delta(
    site: Path, tmp_path: Path
) -> None:
    spent(tmp_path / "store", "r0001", 2)
    spent(tmp_path / "store", "r0002")
    document = shown(site)
    whole, first = epsilon([FIT] * 3, 1e-6), epsilon([FIT] * 2, 1e-6)
    assert (document["required"], document["delta"], document["limit"]) == (True, 1e-6, 8.0)
    assert document["epsilon"] == whole
    assert document["left"] == pytest.approx(8.0 - whole)
    assert document["lineages"] == {"r0001": first, "r0002": epsilon([FIT], 1e-6)}
    assert [(s["lineage"], s["messages"], s["steps"]) for s in document["spent"]] == [
        ("r0001", 2, 20),
        ("r0002", 1, 10),
    ]
    text = CliRunner().invoke(app, ["site", "budget", str(site)]).stdout
    assert f"Together: epsilon {whole:.3f} at delta 1e-06 of 8; {8 - whole:.3f} is left" in text


def test_nothing_spent_leaves_all_of_it(site: Path, tmp_path: Path) -> None:
    document = shown(site)
    assert (document["epsilon"], document["left"], document["spent"]) == (0.0, 8.0, [])
    assert not (tmp_path / "store").exists()


def test_of_a_store_alone_no_limit_is_known(tmp_path: Path) -> None:
    spent(tmp_path / "store", "r0001")
    document = shown(tmp_path / "store", "--delta", "1e-3")
    assert document["epsilon"] == epsilon([FIT], 1e-3)
    assert (document["required"], document["limit"], document["left"]) == (False, None, None)


@pytest.mark.parametrize(("arguments", "said"), [
    (["missing"], "folder must be one, got missing, which does not exist"),
    ([".", "--delta", "2"], "delta must lie between 0 and 1, got 2"),
])  # fmt: skip
def test_what_is_wrong_is_said(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["site", "budget", *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_a_damaged_budget_is_an_error_and_found_by_verify(tmp_path: Path) -> None:
    spent(tmp_path / "store", "r0001")
    (tmp_path / "store" / "budget.json").unlink()
    done = CliRunner().invoke(app, ["site", "budget", str(tmp_path / "store")])
    assert done.exit_code == 1
    assert "must exist beside its copy" in " ".join(done.stderr.split())
    verified = CliRunner().invoke(app, ["store", "verify", str(tmp_path / "store"), "--json"])
    assert verified.exit_code == 3
    assert any("budget.json" in line for line in json.loads(verified.stdout)["problems"])


def test_a_site_whose_connection_is_not_written_yet_is_not_taken_for_a_store(site: Path) -> None:
    (site / "node.toml").unlink()
    done = CliRunner().invoke(app, ["site", "budget", str(site)])
    assert done.exit_code == 2
    assert "holds no node.toml" in done.stderr
