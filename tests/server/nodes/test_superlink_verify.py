"""A class and a client judged again by two real sites, which alone have data, and one that left."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from client.operator.folder import bundles_of
from server.cli.site_run import installed_bundle
from server.evidence import certificate
from server.evidence.record import to_json
from server.nodes.grid import ClientsMissing
from server.requests import site_logs
from server.requests.audit import audit
from server.requests.certificates import issue
from server.requests.verification import Verified
from server.runner import run, verify
from server.settings import RunSettings
from server.storage import keys
from server.storage.home import Home
from server.storage.ledger import Ledger
from tests.small_job import Silent
from tests.superlink_harness import (
    RunningFederation,
    make_federation,
    running_federation,
    wait_until,
)

NAMES = ["site-a", "site-b"]
JOB: dict[str, Any] = {
    **{"dataset": "none", "model_classes": 10, "model_channels": 1, "model_image_size": 8},
    **{"engine": "superlink", "num_clients": 2, "rounds": 1, "scale": 0, "model_width": 8},
    **{"evaluate_every": 0, "local_steps": 20, "device": "cpu"},
}
FORGET = {"mode": "forget", "method": "retraining"}
EASY = {"max_forget_accuracy": 100.0, "accept": "not-shown"}


@pytest.mark.processes
def test_two_sites_judge_a_class_and_a_client_again_and_one_that_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    with running_federation(tmp_path / "federation", []) as running:
        monkeypatch.setenv("FLWR_HOME", str(running.home))
        start(running, tmp_path, keys.signer(Home(home).keys).public)

        def ask(**told: Any) -> dict[str, Any]:
            settings = {**JOB, "home": str(home), "connection": running.connection, **told}
            return to_json(run(RunSettings(**settings).check(), Silent()))

        def again(request: str, **told: Any) -> Verified:
            return verify(str(home), request, {"asked-by": "Auditor", **told}, Silent())

        # 1. A class: two retrained models, read by the request and by its verification.
        ask(mode="train")
        stock = ask(mode="yardstick", forget_classes="3", count=2)
        of_class = ask(**FORGET, forget_classes="3", compare="retrain", trial=True)
        class_again = again("r0003")
        # 2. A client, forgotten in service, without any.
        of_client = ask(**FORGET, **EASY, forget_clients="site-b")
        client_again = again("r0005")
        assert not any("Traceback" in running.log(name) for name in NAMES)
        # 3. Gone: it cannot be asked.
        running.processes.pop("site-b").terminate()
        wait_until(lambda: running.online() == {"site-a"}, running, time.monotonic() + 300)
        with pytest.raises(ClientsMissing, match="site-b must be online for r0005 to be judged"):
            again("r0005", **{"join-timeout": 1.0})
    assert not running.left_over()

    assert [one["number"] for one in stock["stock"]] == [0, 1]
    assert of_class["retrain_cached"]
    for found, kept, name in (
        (class_again, of_class, "r0004"),
        (client_again, of_client, "r0006"),
    ):
        assert (found.verification, found.asked_clients) == (name, True)
        assert found.again is not None
        mine = to_json(found.again)
        for model in ("original", "recovered"):
            assert mine[model]["heldout"] == kept[model]["heldout"]
            assert mine[model]["heldout"]["decides"]
        assert (mine["stock"], mine["features"]) == (kept["stock"], kept["features"])
        assert mine["engine"] == "superlink"
    assert class_again.again is not None
    assert to_json(class_again.again)["verdict"] == of_class["verdict"]
    # Retraining passed as its own yardstick; whoever verifies has not seen it run.
    assert client_again.again is not None
    states = of_client["verdict"]["state"], to_json(client_again.again)["verdict"]["state"]
    assert states == ("passed", "not-shown")
    assert class_again.again.features is not None
    opened = Home(home)
    with Ledger.of(opened) as ledger:
        rows = [(row.id, row.kind, row.state) for row in ledger.requests()]
        assert audit(opened, ledger).problems == []
        for name in NAMES:  # what each attested stands in its own log, and nothing else
            store = running.folder / "sites" / name / "store"
            wrong, lines = site_logs.problems(opened, ledger, name, store)
            assert (wrong, lines > 0) == ([], True)
        late = ledger.request("r0007")
        public = keys.public_keys(opened.keys)[0]
        told = certificate.read(issue(opened, ledger, ledger.request("r0005")), public)
    # Both sites signed the order, and the certificate says what was found since.
    sites = [one["statement"]["site"] for one in told["predicate"]["attestations"]]
    assert sites == NAMES
    (found_since,) = told["predicate"]["verifications"]
    assert (found_since["request"], found_since["asked_by"]) == ("r0006", "Auditor")
    assert found_since["asked_clients"]
    assert [kind for _, kind, _ in rows[1:]] == [
        *("yardstick", "forget", "verify", "forget", "verify", "verify"),
    ]
    assert (late.state, late.reason_code) == ("failed", "clients-missing")
    assert not (home / "runs" / late.id / "journal").exists()


def start(running: RunningFederation, folder: Path, coordinator: str) -> None:
    """Start two sites with digits of their own that pin the coordinator's key."""
    for name in NAMES:
        make_federation(running.folder, "node-key", name)
    running.register(*NAMES)
    digits, mine = load_digits(), installed_bundle()
    images = (digits.images * 15).astype(np.uint8)
    for i, name in enumerate(NAMES):
        held, data = slice(300 * i, 300 * (i + 1)), folder / f"{name}.npz"
        np.savez(data, train_images=images[held], train_labels=digits.target[held])
        policy = {"updates": '"single"', "coordinators": f'["{coordinator}"]'}
        site = running.start_site(name, {"data": f"npz:{data}"}, policy=policy)
        bundles_of(site).allow(mine.hash, "the installed one", mine)
    wait_until(lambda: running.online() >= set(NAMES), running, time.monotonic() + 300)
