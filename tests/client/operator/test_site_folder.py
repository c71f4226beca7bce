"""node.toml: what a site's operator writes, and what is refused."""

from pathlib import Path

import pytest

from client.errors import BadSetting
from client.operator.folder import SiteFolder, bundles_of

GOOD = """
superlink = "fl.example.org:9092"
root-certificates = "ca.crt"
key = "/etc/efface/node.key"
data = "npz:/srv/efface/site.npz"
store = "store"
device = "cpu"
"""


def folder(tmp_path: Path, text: str | None) -> Path:
    if text is not None:
        (tmp_path / "node.toml").write_text(text)
    return tmp_path


def test_paths_are_those_beside_it(tmp_path: Path) -> None:
    site = SiteFolder.load(folder(tmp_path, GOOD + "[config]\npartition-id = 3\n"))

    assert site.root_certificates == tmp_path / "ca.crt"
    assert site.key == Path("/etc/efface/node.key")
    assert site.socket == tmp_path / "run" / "node.sock"
    assert site.node_config == {
        "partition-id": 3,
        "data": "npz:/srv/efface/site.npz",
        "device": "cpu",
        "store": str(tmp_path / "store"),
        "policy": str(tmp_path / "policy.toml"),
    }
    assert bundles_of(tmp_path).came == tmp_path / "state" / "came"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no node.toml"),
        ("superlink =", "must be valid TOML"),
        (GOOD.replace("superlink", "super-link"), "must have only .* got 'super-link'"),
        (GOOD.replace('key = "/etc/efface/node.key"', ""), "must say key"),
        (GOOD.replace('"cpu"', "1"), "device must be text in quotes, got 1"),
        (GOOD + "[config]\nx = [1]\n", r"\[config\] must hold"),
        (GOOD + f'socket = "/tmp/{"x" * 120}"', "socket must have a path of at most"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        SiteFolder.load(folder(tmp_path, text))


def test_the_config_cannot_name_another_policy(tmp_path: Path) -> None:
    text = GOOD + '[config]\npolicy = "/tmp/other.toml"\nstore = "/tmp/other"\n'
    site = SiteFolder.load(folder(tmp_path, text))
    assert site.node_config["policy"] == str(tmp_path / "policy.toml")
    assert site.node_config["store"] == str(tmp_path / "store")
