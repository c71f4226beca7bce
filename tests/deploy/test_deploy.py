"""Keys are sound, a real federation runs over gRPC, and the deployment files agree with flwr."""

import json
import os
import re
import runpy
import shlex
import shutil
import ssl
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_disk

from client.errors import BadSetting, EffaceError
from client.operator.bundles import Bundle
from client.operator.folder import bundles_of
from server.nodes.engines import superlink
from tests.superlink_harness import (
    DEPLOY_SCRIPT,
    PROGRAMS,
    REPOSITORY,
    RunningFederation,
    free_ports,
    make_federation,
    prepare_federation,
    running_federation,
    superlink_is_healthy,
    wait_until,
)

TINY_APP = REPOSITORY / "tests" / "apps" / "tiny"
COMPOSE = REPOSITORY / "docker" / "compose.yaml"
UNITS = REPOSITORY / "deploy" / "systemd"


def refused(folder: Path, *arguments: str) -> str:
    """Run the deploy script, which must refuse; return its message."""
    done = subprocess.run(
        [sys.executable, str(DEPLOY_SCRIPT), "--folder", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout
    return done.stderr


# Certificates and keys


def test_private_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    make_federation(tmp_path, "all", "site-a")

    modes = {
        file.relative_to(tmp_path).as_posix(): stat.S_IMODE(file.stat().st_mode)
        for file in tmp_path.rglob("*")
        if file.is_file()
    }

    assert modes == {
        "ca/ca.key": 0o600,
        "ca/ca.crt": 0o644,
        "server/server.key": 0o600,
        "server/server.pem": 0o644,
        "keys/site-a": 0o600,
        "keys/site-a.pub": 0o644,
        "home/config.toml": 0o644,
    }


def test_server_certificate_is_signed_by_the_authority_for_all_names(tmp_path: Path) -> None:
    make_federation(tmp_path, "ca")
    make_federation(tmp_path, "server-cert", "--san", "DNS:fl.example.org,IP:10.0.0.5")

    authority = x509.load_pem_x509_certificate((tmp_path / "ca" / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((tmp_path / "server" / "server.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    server.verify_directly_issued_by(authority)  # raises if not
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "10.0.0.5",
        "127.0.0.1",
        "::1",
    ]


def test_node_key_is_a_p384_pair_in_openssh_form(tmp_path: Path) -> None:
    make_federation(tmp_path, "node-key", "site-a")

    private = serialization.load_ssh_private_key((tmp_path / "keys/site-a").read_bytes(), None)
    public = serialization.load_ssh_public_key((tmp_path / "keys/site-a.pub").read_bytes())

    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public


@pytest.mark.parametrize(
    "arguments",
    [
        ["ca"],
        ["server-cert", "--san", "DNS:localhost"],
        ["node-key", "site-a"],
        ["connection", "efface"],
        ["all", "site-a"],
    ],
)
def test_nothing_is_overwritten_and_the_remedy_is_named(
    tmp_path: Path, arguments: list[str]
) -> None:
    make_federation(tmp_path, "all", "site-a")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    message = refused(tmp_path, *arguments)

    assert "must not exist yet" in message
    assert "mv " in message
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["server-cert", "--san", "DNS:a"], "Make the authority first"),
        (["node-key", "../site"], "name must be 1 to 64 letters"),
        (["register", "site-a"], "must exist before site-a can be registered"),
        (["connection", "lab", "--address", "nowhere"], "address must be HOST:PORT"),
        (["connection", "default"], "not 'default'"),
    ],
)
def test_a_bad_step_is_refused_with_its_rule(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert message in refused(tmp_path, *arguments)


@pytest.mark.parametrize("san", ["fl.example.org", "IP:10.0.0.500", "DNS:a b", "URI:x"])
def test_a_malformed_name_for_the_certificate_is_refused(tmp_path: Path, san: str) -> None:
    make_federation(tmp_path, "ca")

    assert "san must be a list like" in refused(tmp_path, "server-cert", "--san", san)
    assert not (tmp_path / "server").exists()


# The superlink engine, without a SuperLink


def test_staged_app_holds_the_three_packages_and_every_default(tmp_path: Path) -> None:
    defaults = {"rounds": 3, "lr": 0.05, "note": 'say "hi"\n\x7f \\ é 🙂', "deep": True}

    app = superlink.stage_app(tmp_path / "app", defaults)

    project = tomllib.loads((app / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"]["config"] == defaults
    assert (app / "client" / "errors.py").is_file()
    assert (app / "server" / "nodes" / "engines" / "superlink.py").is_file()
    assert {path.suffix for path in app.rglob("*") if path.is_file()} == {".py", ".toml"}


def test_staged_app_agrees_with_the_projects_own_flower_table(tmp_path: Path) -> None:
    own = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())

    staged = tomllib.loads((superlink.stage_app(tmp_path) / "pyproject.toml").read_text())

    assert staged["project"]["name"] == own["project"]["name"]
    assert staged["project"]["version"] == own["project"]["version"]
    assert staged["tool"]["flwr"]["app"]["components"] == own["tool"]["flwr"]["app"]["components"]
    assert staged["tool"]["flwr"]["app"]["config"] == own["tool"]["flwr"]["app"]["config"]
    assert sorted(staged["tool"]["flwr"]["app"]["fab-include"]) == sorted(
        own["tool"]["flwr"]["app"]["fab-include"]
    )


def test_staging_into_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")

    with pytest.raises(BadSetting, match="destination must be an empty folder"):
        superlink.stage_app(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "deploy/make_federation.py connection lab"),
        ("[superlink", "must be valid TOML"),
        ('[superlink.other]\naddress = "a:1"', "connection must be one of other"),
        ('[superlink.lab]\naddress = ":local:"', "for a simulation use --engine ray"),
        ("[superlink.lab]\ninsecure = true", "HOST:PORT of a running SuperLink"),
    ],
)
def test_an_unusable_connection_is_refused_before_work_starts(
    tmp_path: Path, config: str | None, message: str
) -> None:
    if config is not None:
        (tmp_path / "config.toml").write_text(config)

    with pytest.raises(BadSetting, match=re.escape(message)):
        superlink.submit(TINY_APP, "lab", {}, flwr_home=tmp_path)


@pytest.mark.parametrize(
    ("run_config", "message"),
    [
        ({"colour": "red"}, "run_config must use the keys of .*got 'colour'"),
        ({"num-nodes": "two"}, "num-nodes must be a int, got 'two'"),
        ({"num-nodes": True}, "num-nodes must be a int, got True"),
    ],
)
def test_unknown_run_config_is_refused_before_work_starts(
    tmp_path: Path, run_config: dict[str, superlink.Scalar], message: str
) -> None:
    make_federation(tmp_path, "connection", "lab")

    with pytest.raises(BadSetting, match=message):
        superlink.submit(TINY_APP, "lab", run_config, flwr_home=tmp_path / "home")


@pytest.mark.processes
def test_a_silent_address_is_reported_with_what_to_check(tmp_path: Path) -> None:
    make_federation(tmp_path, "ca")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    make_federation(tmp_path, "connection", "lab", "--address", address)

    with pytest.raises(superlink.UnreachableError, match=f"must answer at {address}"):
        superlink.submit(TINY_APP, "lab", {}, flwr_home=tmp_path / "home")


# A real federation: one for all tests of this part


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFederation]:
    configs = {"site-a": {"data": "npz:/srv/my data.npz"}, "site-b": {"data": "digits"}}
    with running_federation(tmp_path_factory.mktemp("lab"), list(configs), configs) as running:
        yield running


@pytest.mark.processes
def test_nodes_answer_over_grpc_under_their_registered_names(
    federation: RunningFederation, tmp_path: Path
) -> None:
    polls = []

    run_id = superlink.submit(
        TINY_APP,
        federation.connection,
        {"note": 'it\'s "quoted" = é', "result": str(tmp_path / "answers.json")},
        flwr_home=federation.home,
    )
    result = superlink.wait(
        run_id,
        federation.connection,
        on_poll=lambda: polls.append(1),
        deadline=300,
        ask_seconds=0.5,
        flwr_home=federation.home,
    )

    answers = json.loads((tmp_path / "answers.json").read_text())
    assert {name: answer["data"] for name, answer in answers.items()} == {
        "site-a": "npz:/srv/my data.npz",
        "site-b": "digits",
    }
    assert {answer["note"] for answer in answers.values()} == {'it\'s "quoted" = é'}
    assert len({answer["pid"] for answer in answers.values()}) == 2
    assert result.status == "finished:completed"
    assert result.bytes_up > 0
    assert result.bytes_down > 0
    assert polls
    assert "[Fleet.PushMessages]" in federation.log("superlink")  # the gRPC servicer's own line


@pytest.mark.processes
def test_a_failed_run_is_reported_with_its_last_log_lines(federation: RunningFederation) -> None:
    home, connection = federation.home, federation.connection
    run_id = superlink.submit(TINY_APP, connection, {"mode": "fail"}, flwr_home=home)

    with pytest.raises(superlink.RunFailedError, match="failed on purpose") as caught:
        superlink.wait(run_id, connection, deadline=300, ask_seconds=0.5, flwr_home=home)

    assert "finished:failed" in str(caught.value)
    assert 'raise RuntimeError("the tiny app failed on purpose")' in str(caught.value)
    superlink.stop(run_id, connection, flwr_home=home)  # an ended run: nothing to do, no error


@pytest.mark.processes
def test_ctrl_c_stops_the_run(federation: RunningFederation) -> None:
    home, connection = federation.home, federation.connection
    run_id = superlink.submit(TINY_APP, connection, {"mode": "idle"}, flwr_home=home)

    def press_ctrl_c() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        superlink.wait(run_id, connection, on_poll=press_ctrl_c, flwr_home=home)

    assert superlink.status(run_id, connection, flwr_home=home).status == "finished:stopped"


@pytest.mark.processes
def test_an_unknown_run_is_refused(federation: RunningFederation) -> None:
    with pytest.raises(EffaceError, match="refused"):
        superlink.status(1, federation.connection, flwr_home=federation.home)


@pytest.mark.processes
def test_an_unregistered_key_is_refused(federation: RunningFederation) -> None:
    make_federation(federation.folder, "node-key", "stranger")

    stranger = federation.start_supernode("stranger")

    assert stranger.wait(60) != 0
    assert "Failed to activate SuperNode" in federation.log("stranger")
    del federation.processes["stranger"]


@pytest.mark.processes
def test_a_server_of_another_authority_is_refused(
    federation: RunningFederation, tmp_path: Path
) -> None:
    make_federation(tmp_path, "ca")
    other = tmp_path / "ca" / "ca.crt"
    make_federation(federation.folder, "node-key", "careful")

    careful = federation.start_supernode("careful", authority=other)

    with pytest.raises(ssl.SSLCertVerificationError):
        superlink_is_healthy(federation, authority=other)
    assert careful.wait(60) != 0
    assert "CERTIFICATE_VERIFY_FAILED" in federation.log("careful")
    del federation.processes["careful"]


@pytest.mark.processes
def test_a_key_is_registered_once_only(federation: RunningFederation) -> None:
    assert "Public key already in use" in refused(federation.folder, "register", "site-a")


@pytest.mark.processes
def test_the_container_health_check_reads_the_superlink(federation: RunningFederation) -> None:
    address = f"https://127.0.0.1:{federation.control_port}/health"
    check = [sys.executable, str(REPOSITORY / "docker" / "healthcheck.py"), "http", address]

    with_authority = [*check, "--ca", str(federation.folder / "ca" / "ca.crt")]
    assert subprocess.run(with_authority, timeout=30).returncode == 0
    assert subprocess.run(check, timeout=30, capture_output=True).returncode == 1


@pytest.mark.processes
def test_everything_stops_even_when_the_test_fails(tmp_path: Path) -> None:
    started = []

    def failing_test() -> None:
        with running_federation(tmp_path, [], deadline=60) as running:
            started.append(running)
            assert running.left_over()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing_test()

    (running,) = started
    assert running.left_over() == []
    assert all(process.poll() is not None for process in running.processes.values())


# Files for containers and systemd


def compose_services() -> dict[str, dict]:
    """Return compose.yaml's services with the defaults of its variables filled in."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE.read_text())
    return yaml.safe_load(text)["services"]


def unit_commands() -> dict[str, list[str]]:
    """Return each systemd unit's command line."""
    commands = {}
    for unit in sorted(UNITS.glob("*.service")):
        text = unit.read_text().replace("\\\n", " ")
        commands[unit.name] = shlex.split(re.findall(r"^ExecStart=(.*)$", text, re.M)[0])
    return commands


def program_of(command: list[str]) -> str:
    """Return whose options a command has: our SuperExec takes those of Flower's."""
    ours = "server.nodes.engines.superexec" in command
    return "flower-superexec" if ours else Path(command[0]).name


@pytest.mark.processes
@pytest.mark.parametrize("program", ["flower-superlink", "flower-superexec", "efface"])
def test_every_flag_in_the_deployment_files_exists_in_flwr(program: str) -> None:
    words = {"efface": ["efface", "site", "run", "--help"]}.get(program, [program, "--help"])
    done = subprocess.run(
        [str(PROGRAMS / words[0]), *words[1:]],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200"},
    )
    known = set(re.findall(r"--[a-z][a-z-]+", done.stdout))
    commands = [service.get("command", []) for service in compose_services().values()]
    commands += unit_commands().values()

    used = {
        word.split("=", maxsplit=1)[0]
        for command in commands
        if command and program_of(command) == program
        for word in command
        if word.startswith("--")
    }

    assert used
    assert used <= known


def test_compose_publishes_the_fleet_port_alone() -> None:
    published = {
        name: service["ports"] for name, service in compose_services().items() if "ports" in service
    }

    assert published == {"superlink": ["9092:9092"]}


def test_every_container_is_confined() -> None:
    for name, service in compose_services().items():
        assert service["user"] == "10001:10001", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_code_from_the_coordinator_runs_without_a_network_and_without_the_key() -> None:
    services = compose_services()
    for site in "ab":
        executor, node = services[f"executor-{site}"], services[f"supernode-{site}"]
        assert executor["network_mode"] == "none"
        assert "--strict" in executor["command"]
        assert not any("keys/" in volume for volume in executor["volumes"])
        assert any(volume.endswith(":/site:ro") for volume in executor["volumes"])
        assert not any(volume.endswith((":/data:ro", ":/store")) for volume in node["volumes"])
        assert not any(volume.endswith(":/site:ro") for volume in node["volumes"])


def test_dockerfile_is_pinned_and_runs_as_an_ordinary_user() -> None:
    text = (REPOSITORY / "docker" / "Dockerfile").read_text()

    assert re.search(r"^ARG PYTHON_IMAGE$", text, re.M)  # no default: a tag's meaning changes
    assert set(re.findall(r"^FROM (\S+)", text, re.M)) == {"${PYTHON_IMAGE}"}
    assert "*@sha256:*) ;; *)" in text
    assert re.search(r"^RUN pip install --require-hashes --no-deps -r", text, re.M)
    assert re.search(r"^USER 10001:10001$", text, re.M)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("*.service")))
def test_units_are_hardened(unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNITS / unit)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze cannot read units offline: {done.stderr[-200:]}")
    assert float(found[1]) < 3.0


def test_the_executors_unit_has_no_network_and_is_another_user() -> None:
    executor = (UNITS / "efface-executor.service").read_text()
    node = (UNITS / "efface-supernode.service").read_text()

    assert "\nPrivateNetwork=true\n" in executor
    assert "\nRestrictAddressFamilies=AF_UNIX\n" in executor
    assert "--only executor --strict" in executor
    users = [re.findall(r"^User=(\S+)$", text, re.M) for text in (executor, node)]
    assert users == [["efface-run"], ["efface-node"]]


@pytest.mark.processes
def test_the_commands_of_compose_run_as_plain_processes(tmp_path: Path) -> None:
    """No container engine is needed to see whether the roles fit: names become loopback ports."""
    federation = prepare_federation(tmp_path, ["site-a", "site-b"])
    health = free_ports(1)[0]
    services = compose_services()
    bundle = Bundle(build_fab_from_disk(TINY_APP))
    sockets = {site: f"/tmp/efface-{federation.fleet_port}-{site}" for site in "ab"}
    for site, run in sockets.items():
        folder = tmp_path / f"site-{site}"
        folder.mkdir()
        (folder / "node.toml").write_text(
            f"""
            superlink = "localhost:{federation.fleet_port}"
            root-certificates = "{federation.folder / "ca" / "ca.crt"}"
            key = "{federation.folder / "keys" / f"site-{site}"}"
            socket = "{run}/node.sock"
            data = "digits"
            store = "store"
            """
        )
        (folder / "policy.toml").write_text(f'name = "site-{site}"\n')
        bundles_of(folder).allow(bundle.hash, "of the test", bundle)

    def on_loopback(name: str, command: list[str]) -> list[str]:
        state = federation.folder / "state" / name
        state.mkdir(parents=True, exist_ok=True)
        replacements = {
            "172.31.250.2:8000": f"127.0.0.1:{federation.control_port}",
            "0.0.0.0:9092": f"127.0.0.1:{federation.fleet_port}",
            "127.0.0.1:9095": f"127.0.0.1:{health}",
            "--host=172.31.250.2": "--host=127.0.0.1",
            "--port=8000": f"--port={federation.control_port}",
            "/state/state.db": str(state / "state.db"),
            "/run/efface/server.pem": str(federation.folder / "server" / "server.pem"),
            "/run/efface/server.key": str(federation.folder / "server" / "server.key"),
            "/run/efface/ca.crt": str(federation.folder / "ca" / "ca.crt"),
            "/run/node": sockets.get(name[-1], ""),
            "/site": str(tmp_path / f"site-{name[-1]}"),
            "/opt/efface/docker": str(REPOSITORY / "docker"),
        }
        pattern = re.compile("|".join(sorted(map(re.escape, replacements), key=len, reverse=True)))
        return [pattern.sub(lambda found: replacements[found[0]], word) for word in command]

    def start(name: str) -> None:
        program, *options = on_loopback(name, services[name]["command"])
        # The tests' user may be root, and then no executor is as far apart as a container is.
        options = [word for word in options if word != "--strict"]
        federation.start(name, [PROGRAMS / program, *options])

    def healthy(name: str) -> bool:
        _, _, *check = on_loopback(name, services[name]["healthcheck"]["test"])
        done = subprocess.run([sys.executable, *check], capture_output=True, timeout=30)
        return done.returncode == 0

    limit = time.monotonic() + 600
    try:
        start("superlink")
        wait_until(lambda: healthy("superlink"), federation, limit)
        federation.register("site-a", "site-b")
        for name in ("superexec", "supernode-a", "executor-a", "supernode-b", "executor-b"):
            start(name)
        wait_until(lambda: len(federation.online()) == 2, federation, limit)
        for name in ("superlink", "superexec", "supernode-a", "supernode-b"):
            wait_until(lambda name=name: healthy(name), federation, limit)
        run_id = superlink.submit(
            TINY_APP,
            federation.connection,
            {"result": str(tmp_path / "answers.json")},
            flwr_home=federation.home,
        )
        superlink.wait(
            run_id, federation.connection, deadline=300, ask_seconds=0.5, flwr_home=federation.home
        )
    finally:
        federation.stop()
        for run in sockets.values():
            shutil.rmtree(run, ignore_errors=True)

    answers = json.loads((tmp_path / "answers.json").read_text())
    assert {name: answer["data"] for name, answer in answers.items()} == {
        "site-a": "digits",
        "site-b": "digits",
    }
    assert federation.left_over() == []
    assert os.path.exists(federation.folder / "state" / "superlink" / "state.db")


def test_every_step_in_the_guide_is_one_the_script_knows() -> None:
    guide = (REPOSITORY / "deploy" / "DEPLOY.md").read_text()
    script = runpy.run_path(str(DEPLOY_SCRIPT))

    steps = re.findall(r"^ *(?:python \S*)?make_federation\.py (.+)$", guide, re.M)

    assert len(steps) >= 6
    for step in steps:
        script["build_parser"]().parse_args(shlex.split(step))  # exits on an unknown one


def test_every_file_that_the_guide_names_exists() -> None:
    guide = (REPOSITORY / "deploy" / "DEPLOY.md").read_text()

    for name in set(re.findall(r"`((?:docker|deploy)/[\w./-]+)`", guide)) - {"docker/.env"}:
        assert (REPOSITORY / name).exists(), name


@pytest.mark.processes
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_a_ray_cluster_of_two_nodes_gives_the_weights_of_one_process(tmp_path: Path) -> None:
    if subprocess.run(["ip", "netns", "list"], capture_output=True).returncode:
        pytest.skip("no iproute2, or no network namespaces here")
    script = REPOSITORY / "deploy" / "ray_two_nodes.sh"
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [script, tmp_path], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit for bit: 2" in done.stdout
