"""A site's policy: what its file may say, what is refused, and the keys beside it."""

import os
import stat
from dataclasses import fields
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature

from client.errors import BadSetting, NotPrivate
from client.keys import public_key, public_text, simulated_key
from client.policy import (
    FILE,
    KEY,
    SINGLE,
    SUMS,
    Policy,
    PolicyError,
    PolicyRefused,
    make_site,
)

SEED = 'split-seed = "' + "ab" * 32 + '"'
LEAST = f'name = "site-a"\n[data]\n{SEED}\n'


def written(folder: Path, text: str) -> Path:
    path = folder / FILE
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_new_site_has_safe_defaults_a_secret_seed_and_private_files(tmp_path: Path) -> None:
    made = make_site(tmp_path / "site", "site-a")

    assert Policy.load(tmp_path / "site" / FILE) == made
    assert (made.name, made.answers.updates, made.answers.min_examples) == ("site-a", SUMS, 5)
    assert made.is_real
    assert made.answers.levels == ["class", "client"]
    assert (made.keys.coordinators, made.peers) == ([], {})
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "site").iterdir()}
    assert modes == {FILE: 0o600, KEY: 0o600}
    assert stat.S_IMODE((tmp_path / "site").stat().st_mode) == 0o700

    other = make_site(tmp_path / "other", "site-b")
    assert other.data.split_seed != made.data.split_seed
    assert public_text(other.key()) != public_text(made.key())


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    make_site(tmp_path, "site-a")
    before = (tmp_path / KEY).read_bytes()
    (tmp_path / FILE).unlink()
    with pytest.raises(PolicyError, match=r"site\.key must not exist yet, got one"):
        make_site(tmp_path, "site-a")
    assert (tmp_path / KEY).read_bytes() == before
    assert not (tmp_path / FILE).exists()


def test_the_text_of_a_policy_says_it_all(tmp_path: Path) -> None:
    made = make_site(tmp_path / "a", "site-a")
    peer = public_text(simulated_key("site-b", ""))
    text = made.text() + f'"hospital b" = "{peer}"\n'
    for before, after in (
        ("coordinators = []", f'coordinators = ["{peer}"]'),
        ("serve = []", 'serve = ["train.fit"]'),
        ("required = false", "required = true"),
        ("epsilon = 8.0", "epsilon = 3"),
        ('updates = "sums"', 'updates = "single"'),
    ):
        assert before in text
        text = text.replace(before, after)

    found = Policy.load(written(tmp_path, text))

    assert found.keys.coordinators == [peer]
    assert found.answers.serve == ["train.fit"]
    assert (found.privacy.required, found.privacy.epsilon) == (True, 3.0)
    assert found.answers.updates == SINGLE
    assert found.peers == {"hospital b": peer}
    assert Policy.load(written(tmp_path, found.text())) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", r"policy\.toml must be TOML, got"),
        (f"[data]\n{SEED}", r"name must be given, got nothing; make one: efface site init"),
        (f'name = "../a"\n[data]\n{SEED}', r"name must be 1 to 64 letters, .*, got '\.\./a'"),
        ('name = "site-a"', r"data\.split-seed must be given and secret"),
        ('name = "site-a"\n[data]\nsplit-seed = "abc"', r"data\.split-seed must be 64 hexadecimal"),
        (LEAST + "bogus = 1", r"\[data\] must hold holdout, split-seed alone, got bogus"),
        (LEAST + "holdout = 0.6", r"data\.holdout must lie in \[0, 0\.5\], got 0\.6"),
        (LEAST + "[answers]\nmin-examples = 0", r"answers\.min-examples must lie in \[1, 1e\+06\]"),
        (LEAST + "[answers]\nmin-examples = true", r"answers\.min-examples must be int, got True"),
        (LEAST + '[answers]\nupdates = "all"', r"answers\.updates must be one of sums, single"),
        (
            LEAST + '[answers]\nlevels = ["record"]',
            r"answers\.levels must be a list of levels: class, client",
        ),
        (LEAST + "[limits]\nlr = inf", r"limits\.lr must be finite, got inf"),
        (LEAST + "[limits]\nsteps = 0", r"limits\.steps must be at least 1, got 0"),
        (LEAST + '[keys]\ncoordinators = ["abc"]', r"keys\.coordinators must be a list of keys"),
        (LEAST + '[peers]\nb = "abc"', "peers.b must be base64 of .* got 'abc'"),
        ("peers = 5\n" + LEAST, r"\[peers\] must be a table, got 5"),
        (LEAST + "[other]\n", r"policy must hold known entries, got other"),
        ("data = 1\n" + LEAST.replace("[data]\n", ""), r"\[data\] must be a table, got 1"),
    ],
)
def test_a_policy_that_breaks_a_rule_is_refused(tmp_path: Path, text: str, message: str) -> None:
    if text.startswith("data = 1"):
        text = 'name = "a"\ndata = 1\n'
    with pytest.raises(PolicyError, match=message):
        Policy.load(written(tmp_path, text))


def test_a_policy_that_is_missing_or_open_to_others_is_refused_with_the_remedy(
    tmp_path: Path,
) -> None:
    with pytest.raises(PolicyError, match=r"policy must be a file, got .*; make one: efface site"):
        Policy.load(tmp_path / FILE)
    path = written(tmp_path, LEAST)
    path.chmod(0o640)
    with pytest.raises(NotPrivate, match=rf"got mode 640; mend it: chmod 600 {path}"):
        Policy.load(path)


def test_the_key_must_be_there_private_and_ed25519(tmp_path: Path) -> None:
    policy = make_site(tmp_path, "site-a")
    key = tmp_path / KEY
    key.chmod(0o644)
    with pytest.raises(NotPrivate, match="chmod 600"):
        policy.key()
    key.chmod(0o600)
    key.write_text("no key")
    with pytest.raises(PolicyError, match=r"must be a private key in PEM"):
        policy.key()
    os.remove(key)
    with pytest.raises(PolicyError, match=r"keys\.sign must name the site's key"):
        policy.key()


def test_a_real_site_knows_the_peers_that_it_pinned(tmp_path: Path) -> None:
    peer = simulated_key("anything", "x")
    policy = Policy.load(written(tmp_path, LEAST + f'[peers]\nsite-b = "{public_text(peer)}"\n'))
    assert public_text(policy.peer("site-b")) == public_text(peer)
    with pytest.raises(PolicyRefused, match="peer site-c must be pinned at site-a"):
        policy.peer("site-c")


def test_simulated_nodes_of_one_population_know_each_other_and_no_one_else() -> None:
    a, b = Policy.simulated("client-0", "p"), Policy.simulated("client-1", "p")
    stranger = Policy.simulated("client-0", "q")
    assert not a.is_real
    signed = b.key().sign(b"text")
    a.peer("client-1").verify(signed, b"text")
    with pytest.raises(InvalidSignature):
        stranger.peer("client-1").verify(signed, b"text")


def test_a_simulated_node_limits_nothing() -> None:
    policy = Policy.simulated("client-0")
    assert policy.answers.updates == SINGLE
    assert (policy.answers.min_examples, policy.answers.min_batch) == (1, 1)
    assert all(getattr(policy.limits, spec.name) >= 2**63 - 1 for spec in fields(policy.limits))
    assert policy.synthetic.min_scale == 1


def test_a_name_that_is_none_makes_no_site(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="name must be 1 to 64 letters"):
        make_site(tmp_path / "s", "a/b")
    assert not (tmp_path / "s").exists()


def test_public_keys_travel_as_text() -> None:
    key = simulated_key("a", "p")
    assert public_text(public_key(public_text(key))) == public_text(key)
    with pytest.raises(ValueError, match="key must be base64"):
        public_key("no")
