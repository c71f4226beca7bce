"""Three real sites on this machine train and forget in sums, refuse hostile coordinators, and one
turns hostile itself.

    python deploy/try_three_sites.py FOLDER

In a checkout, with Efface installed. A SuperLink with TLS and node authentication and three times
`efface site run`, each with data, policy (`updates = "sums"`), key and pinned peers of its own, as
DEPLOY.md sets them up; site-c's operator can have its gate send what it likes. Every message is a
new process at every site, and a sum takes five: on two cores that is a quarter of an hour.
tests/attacks/test_three_sites.py tries the same, and many more lies of a client, without processes.
FOLDER must not exist yet; all that was started is stopped at the end.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from flwr.cli.build import build_fab_from_disk
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from client.operator.bundles import Bundle
from client.operator.folder import POLICY, bundles_of
from server.nodes.engines import superlink
from tests.superlink_harness import (
    PROGRAMS,
    RunningFederation,
    make_federation,
    running_federation,
    wait_until,
)

NAMES = ("site-a", "site-b", "site-c")
TRAIN = [
    *("train", "--num-clients", "3", "--dataset", "none", "--model-classes", "10"),
    *("--model-channels", "1", "--model-image-size", "8", "--model-width", "8"),
    *("--model-depth", "1", "--rounds", "1", "--local-steps", "60", "--scale", "0", "--lr", "0.1"),
]
FORGET = [
    *("forget", "--class", "3", "--accept", "not-shown", "--method", "sga"),
    *("--set", "unlearn-rounds=1", "--set", "unlearn-lr=0.05", "--set", "rounds=1"),
]
AGAIN = [word if word != "3" else "5" for word in FORGET]
DEPLOYED = ["--engine", "superlink", "--evaluate-every", "0", "--round-timeout", "300"]
SUMS = "--secure-aggregation"
ALONE = ("query.describe", "query.settle")  # whether there is enough, and whether it was done
LIAR = NAMES[2]
# What site-c's operator puts on the path of its own node: once a file LIE is there, it sends random
# numbers of the right form in place of all arrays of the message type that stands in the file.
LYING = """
import sys
from pathlib import Path

LIE = Path({lie!r})
if {{"client.operator.executor", "client.operator.gate"}} & set(sys.orig_argv):
    from flwr.supernode.runtime import run_clientapp

    honest = run_clientapp.push_message

    def push_message(node, reply, context):
        if LIE.exists() and reply.metadata.message_type == LIE.read_text():
            import numpy as np
            from flwr.app import Array, ArrayRecord

            for key, record in list(reply.content.array_records.items()):
                drawn = ArrayRecord()
                for name, array in record.items():
                    size = int(np.dtype(array.dtype).itemsize * np.prod(array.shape))
                    draws = np.frombuffer(np.random.default_rng().bytes(size), array.dtype)
                    drawn[name] = Array(draws.reshape(array.shape).copy())
                reply.content[key] = drawn
        return honest(node, reply, context)

    run_clientapp.push_message = push_message
"""


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    with running_federation(folder, []) as running:
        home = folder / "home"
        key = efface(running, "key", "--home", str(home))["public_key"]
        make_sites(running, key)
        wait_until(lambda: running.online() >= set(NAMES), running, time.monotonic() + 300)
        print(f"Online: {', '.join(sorted(running.online()))}.", flush=True)
        there = ["--home", str(home), "--connection", running.connection]

        version = efface(running, *TRAIN, *DEPLOYED, *there, SUMS)["model_version"]
        print(f"Trained: {version}.", flush=True)
        record = efface(running, *FORGET, *DEPLOYED, *there, SUMS)
        expect(record["in_service"], "the version without class 3 must be in service")
        print(
            f"Forgot class 3: {record['model_version']}, {record['verdict']['state']}.", flush=True
        )
        for name in NAMES:
            check_site(running, name)
        print(
            "Every site's log is whole, has the order, and no update that went up alone.",
            flush=True,
        )

        print("A coordinator that asks each site alone:", flush=True)
        refused = efface(running, *TRAIN, *DEPLOYED, *there, fails=True)["message"]
        print(f"  {refused}", flush=True)
        expect("this site answers in sums only" in refused, "sites must refuse it")
        print("A coordinator with code of its own:", flush=True)
        refused = foreign_bundle(running, folder)
        print(f"  {refused}", flush=True)
        expect("that this site's operator allowed" in refused, "sites must refuse its bundle")
        print(f"{LIAR} sends random numbers in place of its keys:", flush=True)
        (running.folder / "lie").write_text("query.keys")
        named = efface(running, *AGAIN, *DEPLOYED, *there, SUMS, fails=True)["message"]
        print(f"  {named}", flush=True)
        accused = f"keys of {LIAR} must be signed by the key that this node pinned for it"
        expect(named.count(accused) == 2, f"both others must name {LIAR}")
        kept = in_service(running, home)
        expect(kept == record["model_version"], f"the old version must stay in service, got {kept}")
        print(f"{kept} is still in service.", flush=True)


def make_sites(running: RunningFederation, key: str) -> None:
    """Set the sites up as their operators do, and start them."""
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    lying = running.folder / "lying"
    lying.mkdir()
    (lying / "sitecustomize.py").write_text(LYING.format(lie=str(running.folder / "lie")))
    path = os.pathsep.join([str(lying), running.environment.get("PYTHONPATH", "")])
    for name in NAMES:
        make_federation(running.folder, "node-key", name)
    running.register(*NAMES)
    sites = {name: running.folder / "sites" / name for name in NAMES}
    keys = {}
    for name, site in sites.items():
        keys[name] = efface(running, "site", "init", str(site), "--name", name)["public_key"]
    for i, (name, site) in enumerate(sites.items()):
        rows = order[i::3]
        np.savez(site / "site.npz", train_images=images[rows], train_labels=digits.target[rows])
        text = (site / POLICY).read_text()
        pinned = text.replace("coordinators = []", f'coordinators = ["{key}"]')
        expect(pinned != text, "a new policy must pin no coordinator")
        peers = "".join(f'{peer} = "{keys[peer]}"\n' for peer in NAMES if peer != name)
        (site / POLICY).write_text(pinned + peers)  # [peers] is its last section
        node = {
            "superlink": f"127.0.0.1:{running.fleet_port}",
            "root-certificates": str(running.folder / "ca" / "ca.crt"),
            "key": str(running.folder / "keys" / name),
            "data": f"npz:{site / 'site.npz'}",
            "store": "store",
            "socket": f"/tmp/efface-{running.fleet_port}-{name}.sock",
            "device": "cpu",
        }
        table = "".join(f"{entry} = {json.dumps(value)}\n" for entry, value in node.items())
        (site / "node.toml").write_text(table)
        efface(running, "site", "allow", str(site), "--installed")
        own = ["env", f"PYTHONPATH={path.rstrip(os.pathsep)}"] if name == LIAR else []
        running.start(name, [*own, PROGRAMS / "efface", "site", "run", site])


def foreign_bundle(running: RunningFederation, folder: Path) -> str:
    """Send a bundle that differs in one line; return how its run ended."""
    app = superlink.stage_app(folder / "foreign")
    with (app / "client" / "__init__.py").open("a") as file:
        file.write("\nprint('somebody was here')\n")
    told: dict[str, superlink.Scalar] = {"mode": "train", "home": str(folder / "foreign-home")}
    told |= {"dataset": "none", "num-clients": 3, "rounds": 1, "scale": 0, "model-classes": 10}
    told |= {"model-channels": 1, "model-image-size": 8, "secure-aggregation": True}
    run = superlink.submit(app, running.connection, told, flwr_home=running.home)
    with suppress(superlink.RunFailedError):
        superlink.wait(run, running.connection, deadline=600, flwr_home=running.home)
    expect(not any("somebody" in running.log(name) for name in NAMES), "nothing of it may run")
    bundle = Bundle(build_fab_from_disk(app)).hash
    for name in NAMES:
        waiting = bundles_of(running.folder / "sites" / name).waiting()
        expect(waiting == [bundle], f"{name} must keep the bundle for its operator, unused")
    lines = running.log(NAMES[0]).splitlines()
    return next((line for line in lines if bundle in line), "no site said why")


def in_service(running: RunningFederation, home: Path) -> str:
    """Return the version that is in service."""
    listed = efface(running, "models", "--home", str(home))["versions"]
    return ", ".join(one["id"] for one in listed if one["state"] == "in-service")


def log(running: RunningFederation, name: str) -> list[dict[str, Any]]:
    """Return a site's log, which must be whole."""
    site = str(running.folder / "sites" / name)
    verified = [str(PROGRAMS / "efface"), "site", "log", site, "--verify"]
    expect(subprocess.run(verified, capture_output=True).returncode == 0, f"{name}'s log holds")
    entries: list[dict[str, Any]] = efface(running, "site", "log", site, "--last", "0")["entries"]
    return entries


def check_site(running: RunningFederation, name: str) -> None:
    lines = log(running, name)
    for line in lines:
        alone = line["message"] not in ALONE and not line.get("in_sum_of")
        expect(not alone, f"{name} must answer {line['message']} in a sum")
    messages = {line["message"] for line in lines}
    expect({"train.fit", "train.ascend", "query.settle"} <= messages, f"{name} must take part")


def efface(running: RunningFederation, *words: str, fails: bool = False) -> dict[str, Any]:
    """Run a command, which must succeed or, with `fails`, must not; return its JSON."""
    done = subprocess.run(
        [str(PROGRAMS / "efface"), *words, "--json"],
        capture_output=True,
        text=True,
        env={**running.environment, "FLWR_HOME": str(running.home)},
    )
    expect((done.returncode != 0) == fails, f"efface {words[0]}: {done.stdout}{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def expect(holds: bool, rule: str) -> None:
    if not holds:
        raise SystemExit(f"failed: {rule}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
