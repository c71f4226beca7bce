"""What an operator looks at before a node is started: each thing once, with what mends it.

Nothing is written at the site but in a temporary folder, and nothing is sent to the coordinator but
a TLS handshake.
"""

import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from client.errors import EffaceError
from client.files import check_private
from client.keys import public_text
from client.operator.folder import POLICY, SiteFolder
from client.policy import SUMS, Policy

OK: Final = "ok"
NOTE: Final = "note"  # worth reading; the node works
MEND: Final = "mend"
SECONDS: Final = 10.0
SPARE_MB: Final = 512  # beside the synthetic images: models, the log
EXPIRES_SOON: Final = 14  # days


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    state: str
    text: str


class _Mend(Exception):
    """What is wrong, and what mends it."""


def preflight(folder: Path, *, connect: bool = True) -> list[Finding]:
    """Return what every check of a site found, in an order in which one would mend things.

    Args:
        folder: The site's.
        connect: Whether to try the connection to the coordinator.
    """
    try:
        site = SiteFolder.load(folder)
    except EffaceError as error:
        return [Finding("folder", MEND, str(error))]
    found = [Finding("folder", OK, f"{site.folder} says how the node is connected")]
    try:
        policy = Policy.load(site.folder / POLICY)
    except (EffaceError, OSError) as error:
        return [*found, Finding("policy", MEND, _said(error))]
    steps: dict[str, Callable[[], Iterator[str | Finding]]] = {
        "policy": lambda: _policy(policy),
        "site key": lambda: _site_key(policy),
        "user": lambda: _user(site),
        "node key": lambda: _node_key(site),
        "bundles": lambda: _bundles(site),
        "store": lambda: _store(site),
        "disk": lambda: _disk(site, policy),
        "clock": lambda: _clock(site),
        "data": lambda: _data(site, policy),
        "trial message": lambda: _trial(site, policy),
    }
    if connect:
        steps["connection"] = lambda: _connection(site)
    for check, step in steps.items():
        found += _findings(check, step)
    return found


def _findings(check: str, step: Callable[[], Iterator[str | Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        for one in step():
            found.append(one if isinstance(one, Finding) else Finding(check, OK, one))
    except (_Mend, EffaceError, OSError) as error:
        found.append(Finding(check, MEND, _said(error)))
    return found


def _said(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{error.filename} must be open to this user, got: {error.strerror}; chown it"
    return str(error)


def _note(check: str, text: str) -> Finding:
    return Finding(check, NOTE, text)


# ---- what lies at the site -----------------------------------------------------------------------


def _policy(policy: Policy) -> Iterator[str | Finding]:
    from client.app import handlers

    if unknown := sorted(set(policy.answers.serve) - set(handlers())):
        raise _Mend(
            f"answers.serve must name messages that a node knows, got {', '.join(unknown)}; they "
            f"are {', '.join(sorted(handlers()))}"
        )
    alone = "in sums only" if policy.answers.updates == SUMS else "by itself, too"
    yield (
        f"{policy.name} answers {alone}, of at least {policy.answers.min_examples} examples; the "
        f"coordinator must have registered the node as {policy.name}"
    )
    if not policy.keys.coordinators:
        yield _note(
            "policy",
            "no coordinator's key is pinned: orders to bring back or to destroy are refused; add "
            "it to [keys] coordinators",
        )
    if policy.answers.updates == SUMS and not policy.peers:
        yield _note(
            "policy",
            "no other site's key is pinned: this site takes part in no sum, and answers nothing "
            'but questions; add them to [peers], or set updates = "single"',
        )


def _site_key(policy: Policy) -> Iterator[str | Finding]:
    yield f"public key {public_text(policy.key())}"


def _user(site: SiteFolder) -> Iterator[str | Finding]:
    owner = (site.folder / POLICY).stat().st_uid
    if os.geteuid() not in (0, owner):
        raise _Mend(
            f"{POLICY} must belong to the user that runs the executor, got user {owner} while this "
            f"is user {os.geteuid()}; run the check as that user, or chown the file"
        )
    if os.geteuid() == 0 and owner != 0:
        yield _note("user", "checked as root: run it as the executor's user to see what it sees")
        return
    yield "the policy belongs to this user"


def _node_key(site: SiteFolder) -> Iterator[str | Finding]:
    if site.key.exists():
        check_private(site.key)
        if not os.access(site.key, os.R_OK):
            yield "not readable by this user, as it should be for the executor's"
            return
    yield f"{site.node_key().curve.name}"


def _bundles(site: SiteFolder) -> Iterator[str | Finding]:
    allowed = len(site.bundles.allowed())
    if not allowed:
        yield _note(
            "bundles",
            "none may run here: whatever the coordinator sends is refused until one is allowed "
            f"(efface site allow {site.folder} --installed)",
        )
        return
    yield f"{allowed} bundle{'s' * (allowed > 1)} may run here"


def _store(site: SiteFolder) -> Iterator[str | Finding]:
    from client.logbook import Logbook
    from client.store import Store

    folder = site.store
    if not folder.exists():
        above = next(parent for parent in folder.parents if parent.exists())
        if not os.access(above, os.W_OK):
            raise _Mend(f"store must be made in a folder open to this user, got {above}")
        yield f"{folder} is made with the first message"
        return
    check_private(folder)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise _Mend(f"{folder} must be open to this user; chown it")
    wrong = [*Store(folder).verify(), *Logbook(folder).verify()]
    if wrong:
        raise _Mend("; ".join(wrong))
    state = Store(folder).state()
    yield f"{len(state.applied)} requests applied, {len(state.tombstones)} tombstones"


def _disk(site: SiteFolder, policy: Policy) -> Iterator[str | Finding]:
    there = next(p for p in (site.store, *site.store.parents) if p.exists())
    free = shutil.disk_usage(there).free // 2**20
    held = sum(p.stat().st_size for p in site.store.glob("*/*.safetensors")) // 2**20
    needed = max(0, policy.synthetic.quota_mb - held) + SPARE_MB
    if free < needed:
        raise _Mend(
            f"disk of {there} must have {needed} MB free ([synthetic] quota-mb and {SPARE_MB}), "
            f"got {free}"
        )
    yield f"{free} MB free, {needed} may be needed"


def _clock(site: SiteFolder) -> Iterator[str | Finding]:
    from client.logbook import Logbook

    now, latest = datetime.now(UTC), ""
    for entry in Logbook(site.store).entries():
        latest = str(entry.get("time", ""))
    if latest and datetime.fromisoformat(latest) > now:
        raise _Mend(
            f"clock must not be behind the log's last line ({latest}), got {now.isoformat()}; let "
            "a time service set it (timedatectl set-ntp true)"
        )
    yield now.isoformat(timespec="seconds")


def _data(site: SiteFolder, policy: Policy) -> Iterator[str | Finding]:
    from client.data import class_names, datasets
    from client.data.site import rare_classes
    from client.data.source import check_site

    name = site.node_config.get("data")
    if not name:
        raise _Mend("node.toml must name data, got none")
    if not datasets.is_known(str(name)):
        yield _note("data", f"{name} is for a task of the coordinator's, which alone can read it")
        return
    directory = site.node_config.get("data-dir")
    check_site(str(name))
    data = datasets.load(str(name), Path(str(directory)) if directory else None)
    shape = data.train.input_shape
    if len(shape) == 3:
        what = "images of " + "x".join(map(str, shape))
    else:
        what = f"rows of {shape[0]} numbers"
    yield f"{len(data.train)} {what} in {data.num_classes} classes"
    for note in data.notes:
        yield _note("data", note)
    if data.class_names == class_names.numbers(data.num_classes):
        yield _note("data", "classes have no names: sites that number them otherwise go unnoticed")
    least = policy.answers.min_examples
    if rare := rare_classes(data.train.labels, least):
        names = ", ".join(data.class_names[label] for label in rare[:10])
        yield _note(
            "data", f"left out, for there are fewer than {least} examples of each: class {names}"
        )
    if len(data.train) < least:
        raise _Mend(f"data must hold at least {least} examples, got {len(data.train)}")


def _trial(site: SiteFolder, policy: Policy) -> Iterator[str | Finding]:
    """Ask the node's own handler what it holds, with a store that is thrown away."""
    from flwr.app import ArrayRecord, Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from client import wire
    from client.app import handlers
    from client.data import datasets
    from client.data.source import TABLE
    from client.learning.spec import image_model
    from client.steps.measuring import Describe

    name, directory = site.node_config.get("data"), site.node_config.get("data-dir")
    if name and (not datasets.is_known(str(name)) or str(name).startswith(f"{TABLE}:")):
        yield _note("trial message", "not tried: the data are for a task of the coordinator's")
        return
    try:
        data = datasets.load(str(name), Path(str(directory)) if directory else None)
    except EffaceError as error:
        raise _Mend("not tried: the data cannot be read") from error
    if len(data.train.input_shape) != 3:
        yield _note("trial message", "not tried: the data are for a task of the coordinator's")
        return
    channels, size = data.train.input_shape[:2]
    spec = image_model("convnet", data.num_classes, channels, size, width=8, depth=1)
    told = Describe(
        client=policy.name,
        fingerprint=wire.fingerprint(),
        request="preflight",
        lineage="preflight",
        phase="describe",
        seed=0,
        holdout=policy.data.holdout,
        **Describe.of_model(spec),
    )
    with tempfile.TemporaryDirectory() as folder:
        config: dict[str, Any] = {**site.node_config, "store": str(Path(folder) / "store")}
        content = RecordDict({"arrays": ArrayRecord(), "config": told.config()})
        # flwr makes no message outside of a task.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        message = Message(content, dst_node_id=1, message_type=Describe.message.name)
        answer = handlers()[Describe.message.name](message, Context(1, 1, config, RecordDict(), {}))
    metrics = dict(next(iter(answer.content.metric_records.values())))
    if not metrics["num-examples"]:
        raise _Mend("the node must have enough examples to answer, got too few")
    yield f"answered in {float(str(metrics['seconds'])):.2f} s"


# ---- the way to the coordinator ------------------------------------------------------------------


def _connection(site: SiteFolder) -> Iterator[str | Finding]:
    host, _, port = site.superlink.rpartition(":")
    if not host or not port.isdigit():
        raise _Mend(f"superlink must be HOST:PORT, got {site.superlink!r}")
    host = host.strip("[]")
    roots = site.root_certificates
    if roots is not None and not roots.is_file():
        raise _Mend(f"root-certificates must be a file, got no {roots}: the coordinator sends it")
    try:
        context = ssl.create_default_context(cafile=None if roots is None else str(roots))
    except ssl.SSLError as error:
        raise _Mend(f"{roots} must hold certificates in PEM, got {error}") from error
    context.set_alpn_protocols(["h2"])  # gRPC
    try:
        with (
            socket.create_connection((host, int(port)), SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            certificate = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        raise _Mend(
            f"{site.superlink} must show a certificate made for {host} and signed by "
            f"{roots or 'a known authority'}, got: {error.verify_message}; ask the coordinator for "
            "its ca.crt, and look at this machine's clock"
        ) from error
    except ssl.SSLError as error:
        raise _Mend(
            f"{site.superlink} must speak TLS, got {error.reason or error}; the port of the Fleet "
            "API is wanted"
        ) from error
    except OSError as error:
        raise _Mend(
            f"{site.superlink} must answer within {SECONDS:g} s, got {error}; look at the address, "
            "the firewall, and whether the SuperLink runs"
        ) from error
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (ends - datetime.now(UTC).timestamp()) / 86_400
    if days < EXPIRES_SOON:
        yield _note("connection", f"the coordinator's certificate ends in {days:.0f} days")
    yield f"{site.superlink} answers over TLS; its certificate holds {days:.0f} days"
