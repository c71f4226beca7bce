"""Certificates: made of a sealed request alone, and verified with the file and the key alone."""

import base64
import hashlib
import json
import shutil
import sqlite3
import stat
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from typer.testing import CliRunner

from client import attestation
from client.keys import public_text
from server.cli import app
from server.cli.command import NOT_VERIFIED, USAGE
from server.evidence import certificate, envelope
from server.evidence.envelope import InvalidCertificate
from server.storage import keys
from server.storage.keys import Signer
from server.storage.seals import canonical

TINY = [
    *("--num-clients", "2", "--partition", "iid", "--rounds", "1", "--local-steps", "4"),
    *("--batch-size", "32", "--scale", "0", "--model-width", "8", "--model-depth", "2"),
]
EASY = ["--accept", "not-shown", "--max-forget-accuracy", "100", "--method", "retraining"]
GONE = "DELETE FROM requests WHERE id = 'r0002'"
WHO, WHY = "Data protection", "Article 17"


def run(home: Path, *words: str) -> Any:
    return CliRunner().invoke(app, [*words, "--home", str(home)])


def sql(home: Path, line: str) -> None:
    with sqlite3.connect(home / "ledger.db") as database:
        database.execute(line)
    database.close()


pytestmark = pytest.mark.usefixtures("shared_surroundings")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained, class 3 forgotten, client-1 forgotten, and the certificate of the first."""
    home = tmp_path_factory.mktemp("shared") / "home"
    client = ["--client", "client-1", *EASY]
    for words in (["train", *TINY], ["forget", "--class", "3", *EASY], ["forget", *client]):
        done = run(home, *words, "--by", WHO, "--why", WHY)
        assert done.exit_code == 0, done.output
    done = run(home, "certificate", "r0002", "-o", str(home.parent / "c.json"))
    assert done.exit_code == 0, done.output
    return home


@pytest.fixture
def home(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared, tmp_path / "home"))


@pytest.fixture(scope="module")
def data(shared: Path) -> bytes:
    return (shared.parent / "c.json").read_bytes()


@pytest.fixture(scope="module")
def public(shared: Path) -> str:
    return (shared / "keys" / "coordinator.pub").read_text().strip()


def signer_of(private: Ed25519PrivateKey) -> Signer:
    public = public_text(private)
    return Signer(public, keys.fingerprint(public), private)


# ---- what it says --------------------------------------------------------------------------------


def test_the_subject_is_both_versions_by_the_hash_of_their_weights(
    shared: Path, data: bytes, public: str
) -> None:
    found = certificate.read(data, public)
    rows = [
        {"name": f"{role}/{name}", "digest": {"sha256": sha256_of(shared, name)}}
        for role, name in (("before", "v0001"), ("after", "v0002"))
    ]
    assert found["subject"] == rows
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "urn:efface:unlearning/v1"


def sha256_of(home: Path, version: str) -> str:
    return hashlib.sha256(
        (home / "versions" / version / "model.safetensors").read_bytes()
    ).hexdigest()


def test_it_says_what_was_asked_and_what_ran(data: bytes, public: str) -> None:
    told = certificate.read(data, public)["predicate"]
    asked = told["request"]
    assert (asked["id"], asked["asked_by"], asked["why"]) == ("r0002", WHO, WHY)
    assert (asked["level"], asked["classes"]) == ("class", [{"number": 3, "name": "3"}])
    assert told["run"]["method"] == "retraining"
    assert certificate.SHA256.fullmatch(told["run"]["code_sha256"])
    assert {one["client"] for one in told["participants"]} == {"client-0", "client-1"}
    assert told["absences"] == told["waiting"] == []
    assert told["costs"]["seconds"]["unlearn"] > 0
    assert told["verdict"]["findings"]
    assert (told["order"]["action"], told["seal"]["subject"]) == ("forget", "r0002")
    assert any("empirical" in text for text in told["limits"])
    assert any("still know" in text for text in told["limits"])


def test_it_holds_no_path_and_no_number_of_one_client(
    shared: Path, data: bytes, public: str
) -> None:
    text = json.dumps(certificate.read(data, public))
    assert str(shared) not in text
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    record = json.loads((shared / "runs" / "r0002" / "record.json").read_text())
    for one in record["participation"]:
        assert str(one["update_norm"]) not in text
    heldout = record["recovered"]["heldout"]
    for one in heldout["sites"]:
        assert str(one["retain_accuracy"]) not in text
    # The median of three clients is one client's own number, and all of one is that client's.
    for one in certificate.read(data, public)["predicate"]["measures"].values():
        assert one is None or one["heldout"] is None or "retain_median" not in one["heldout"]
    assert certificate._scores({**record["recovered"], "heldout": heldout})["heldout"] is not None
    alone = {**heldout, "sites": heldout["sites"][:1]}
    assert certificate._scores({**record["recovered"], "heldout": alone})["heldout"] is None


def test_of_a_client(home: Path, tmp_path: Path, public: str) -> None:
    path = tmp_path / "client.json"
    assert run(home, "certificate", "-o", str(path), "r0003").exit_code == 0
    told = certificate.read(path.read_bytes(), public)["predicate"]
    assert (told["request"]["level"], told["request"]["clients"]) == ("client", ["client-1"])
    assert told["order"]["destroy"] is True


def test_the_file_is_its_owners_alone_and_the_answer_is_one_document(
    home: Path, tmp_path: Path, public: str
) -> None:
    path, page = tmp_path / "c.json", tmp_path / "c.html"
    words = ["certificate", "r0002", "-o", str(path), "--html", str(page), "--json"]
    done = run(home, *words)
    document = json.loads(done.stdout)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, page)] == [0o600, 0o600]
    assert (document["certificate"], document["page"]) == (str(path), str(page))
    assert document["key"] == public


def test_no_file_is_written_over_unless_it_is_said(home: Path, tmp_path: Path) -> None:
    path, page = tmp_path / "c.json", tmp_path / "c.html"
    path.write_text("another one")
    words = ["certificate", "r0002", "-o", str(path), "--html", str(page)]
    done = run(home, *words)
    assert done.exit_code == USAGE
    assert f"output must not be there yet, got {path}; --force writes over a file" in done.stderr
    assert (path.read_text(), page.exists()) == ("another one", False)
    assert run(home, *words, "--force").exit_code == 0
    assert json.loads(path.read_text())["payloadType"]
    # One file cannot hold both.
    (tmp_path / "sub").mkdir()
    for other in (path, tmp_path / "sub" / ".." / path.name):
        same = ["certificate", "r0002", "-o", str(path), "--html", str(other), "--force"]
        assert run(home, *same).exit_code == USAGE
    done = run(home, "certificate", "r0002", "--html", str(page))
    assert f"html must not be there yet, got {page}" in done.stderr


def test_the_page_has_no_script_and_loads_nothing(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run(home, "certificate", "r0002", "--html", str(page)).exit_code == 0
    text = page.read_text()
    assert WHO in text
    assert "v0002" in text
    for word in ("<script", "href=", "src=", 'http-equiv="refresh', "url("):
        assert word not in text


# ---- what the sites signed -----------------------------------------------------------------------


def site_key_of(told: dict[str, Any], name: str) -> str:
    (key,) = [one["key"] for one in told["attestations"] if one["statement"]["site"] == name]
    return str(key)


def test_it_lists_what_each_site_signed_of_the_order(home: Path, data: bytes, public: str) -> None:
    told = certificate.read(data, public)["predicate"]
    record = json.loads((home / "runs" / "r0002" / "record.json").read_text())
    assert told["attestations"] == record["attestations"]
    said = [one["statement"] for one in told["attestations"]]
    assert [one["site"] for one in said] == ["client-0", "client-1"]
    signed = told["order"]["signed"].encode()
    assert {one["order_sha256"] for one in said} == {hashlib.sha256(signed).hexdigest()}
    assert {one["code_sha256"] for one in said} == {told["run"]["code_sha256"]}
    assert {(one["tombstone"], one["destroyed"]) for one in said} == {("kept", "none")}
    text = " ".join(certificate.sentences(certificate.read(data, public)))
    assert "last there: client-0, client-1." in text
    assert "No site stands behind client-0, client-1" in text


def test_of_a_client_that_leaves_it_says_what_was_destroyed(
    home: Path, tmp_path: Path, public: str
) -> None:
    path = tmp_path / "client.json"
    assert run(home, "certificate", "-o", str(path), "r0003").exit_code == 0
    told = certificate.read(path.read_bytes(), public)["predicate"]
    said = {one["statement"]["site"]: one["statement"] for one in told["attestations"]}
    assert (said["client-0"]["destroyed"], said["client-1"]["destroyed"]) == ("none", "all")


def test_a_site_s_key_can_be_given(shared: Path, data: bytes, public: str) -> None:
    path = str(shared.parent / "c.json")
    told = certificate.read(data, public)["predicate"]
    right = [f"--site-key={name}={site_key_of(told, name)}" for name in ("client-0", "client-1")]
    done = run(shared, "certificate", "verify", path, "--key", public, *right)
    assert done.exit_code == 0, done.output
    swapped = f"--site-key=client-0={site_key_of(told, 'client-1')}"
    done = run(shared, "certificate", "verify", path, "--key", public, swapped)
    assert done.exit_code == NOT_VERIFIED
    assert "signed by the key given for it" in done.output
    absent = f"--site-key=client-7={site_key_of(told, 'client-1')}"
    done = run(shared, "certificate", "verify", path, "--key", public, absent)
    assert done.exit_code == NOT_VERIFIED
    for wrong in ("client-0", f"={public}", "client-0=none"):
        words = ["--key", public, f"--site-key={wrong}"]
        assert run(shared, "certificate", "verify", path, *words).exit_code == USAGE


@pytest.mark.parametrize(
    "fault", ["statement", "signature", "swapped", "twice", "replayed", "form", "made up"]
)
def test_whoever_has_the_coordinators_key_cannot_sign_for_a_site(
    home: Path, tmp_path: Path, data: bytes, public: str, fault: str
) -> None:
    signer = signer_of(Ed25519PrivateKey.generate())
    content = certificate.read(data, public)
    attested = content["predicate"]["attestations"]
    if fault == "statement":
        attested[0]["statement"]["destroyed"] = "all"
    elif fault == "signature":
        attested[0]["signature"] = attested[1]["signature"]
    elif fault == "swapped":
        attested[0]["key"] = attested[1]["key"]
    elif fault == "twice":
        attested.append(attested[0])
    elif fault == "replayed":
        record = json.loads((home / "runs" / "r0003" / "record.json").read_text())
        attested[0] = record["attestations"][0]
    elif fault == "made up":  # and signed by a key of its own: more than the order had it do
        private = Ed25519PrivateKey.generate()
        told = {**attested[0]["statement"], "destroyed": "all", "sets": 7, "simulated": False}
        attested[0] = json.loads(attestation.made(told, private))
    else:
        attested[0] = "client-0"
    with pytest.raises(InvalidCertificate):
        certificate.read(certificate.written(content, signer), signer.public)


def test_whose_keys_were_not_checked_is_said(data: bytes, tmp_path: Path, public: str) -> None:
    private, signer = Ed25519PrivateKey.generate(), signer_of(Ed25519PrivateKey.generate())
    content = certificate.read(data, public)
    attested = content["predicate"]["attestations"]
    told = {**attested[0]["statement"], "simulated": False, "code_sha256": "0" * 64}
    attested[0] = json.loads(attestation.made(told, private))
    path = tmp_path / "made-up.json"
    path.write_bytes(certificate.written(content, signer))
    words = ["certificate", "verify", str(path), "--key", signer.public]
    said = run(tmp_path, *words).stdout
    assert "whether the keys that sign for client-0 are theirs" in said
    assert "Made to last by other code than the request ran: client-0." in said
    known = run(tmp_path, *words, f"--site-key=client-0={public_text(private)}").stdout
    assert "whether the keys" not in known


def test_one_that_is_left_out_is_said(data: bytes, public: str) -> None:
    signer = signer_of(Ed25519PrivateKey.generate())
    content = certificate.read(data, public)
    gone = content["predicate"]["attestations"].pop()
    made = certificate.written(content, signer)
    text = " ".join(certificate.sentences(certificate.read(made, signer.public)))
    assert "Took part and attested nothing: client-1." in text
    with pytest.raises(InvalidCertificate, match="'client-1' must have attested"):
        certificate.read(made, signer.public, {"client-1": gone["key"]})


def test_a_key_pinned_later_shows_that_a_site_had_another(home: Path, tmp_path: Path) -> None:
    pins = home / "keys" / "sites"
    pins.mkdir()
    (pins / "client-1.pub").write_text(public_text(Ed25519PrivateKey.generate()) + "\n")
    audited = run(home, "audit", "--json")
    assert audited.exit_code == NOT_VERIFIED
    found = json.loads(audited.stdout)["problems"]
    assert [one["request"] for one in found] == ["r0002", "r0003"]
    assert all("attestation of 'client-1'" in one["text"] for one in found)
    done = run(home, "certificate", "r0002", "-o", str(tmp_path / "c.json"))
    assert done.exit_code == NOT_VERIFIED


# ---- when there is none --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "DELETE FROM requests WHERE id = 'r0001'",
        GONE,
        "DELETE FROM requests WHERE id = 'r0003'",
        "DELETE FROM seals WHERE number = 2",
        "DELETE FROM seals WHERE number = (SELECT max(number) FROM seals)",
        "DELETE FROM versions WHERE id = 'v0002'",
        "DELETE FROM versions WHERE id = 'v0003'",
        "UPDATE requests SET asked_by = 'Eve' WHERE id = 'r0002'",
        "UPDATE versions SET sha256 = 'x' WHERE id = 'v0001'",
    ],
)
def test_a_ledger_that_was_edited_gives_none(home: Path, tmp_path: Path, line: str) -> None:
    sql(home, line)
    path = tmp_path / "c.json"
    done = run(home, "certificate", "r0002", "-o", str(path))
    # A request that is gone is not known at all.
    assert done.exit_code == (USAGE if line == GONE else NOT_VERIFIED)
    assert not path.exists()


@pytest.mark.parametrize(
    "name", ["runs/r0002/record.json", "runs/r0002/order.json", "versions/v0002/model.safetensors"]
)
def test_a_file_that_was_edited_gives_none(home: Path, tmp_path: Path, name: str) -> None:
    path = home / name
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    done = run(home, "certificate", "r0002", "-o", str(tmp_path / "c.json"))
    assert done.exit_code == NOT_VERIFIED
    assert "efface audit" in done.stderr
    assert not (tmp_path / "c.json").exists()


def test_only_of_a_request_to_forget_that_is_there(home: Path, tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "c.json")]
    for words in (["r0001", *out], ["r0009", *out], ["r0002"], out):
        assert run(home, "certificate", *words).exit_code == USAGE, words
    # A file may be called as the command under this one is.
    odd = run(home, "certificate", "-o", "verify", "r0001").output
    assert "request must be one to forget that is done, got r0001" in odd
    assert run(home, "certificate", "r0002", "-o", "/nowhere/c.json").exit_code == USAGE


# ---- verifying -----------------------------------------------------------------------------------


def test_any_other_byte_is_found(data: bytes, public: str) -> None:
    """Each byte with one bit flipped."""
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        with pytest.raises(InvalidCertificate):
            certificate.read(bytes(changed), public)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d + b"{}",
        lambda d: d + b"x",
        lambda d: d + b"\0",
        lambda d: d[:-3],
        lambda d: b"",
        lambda d: b"\xef\xbb\xbf" + d,
        lambda d: d.decode().encode("utf-16"),
        lambda d: d.replace(b'"payloadType"', b'"payloadType": "x", "payloadType"', 1),
        lambda d: d.replace(b'"payload":', b'"payload": "", "payload":', 1),
        lambda d: d.replace(b"{", b'{"more": 1, ', 1),
        lambda d: d.replace(b"{", b'{"more": NaN, ', 1),
        lambda d: d.replace(b"vnd.in-toto", b"vnd.other", 1),
        lambda d: b"[" * 100_000,
        lambda d: b"[1]",
        lambda d: b"null",
    ],
)
def test_what_is_no_certificate_as_it_was_signed(change: Any, data: bytes, public: str) -> None:
    with pytest.raises(InvalidCertificate):
        certificate.read(change(data), public)


@pytest.mark.parametrize(
    "change",
    [
        {"signatures": []},
        {"signatures": None},
        {"payload": 3},
        {"payload": ""},
        {"payloadType": ["application/vnd.in-toto+json"]},
        {"signatures": [{"keyid": "", "sig": ""}]},
        {"signatures": [[]]},
    ],
)
def test_an_envelope_of_another_form(change: Any, data: bytes, public: str) -> None:
    text = json.dumps({**json.loads(data), **change}).encode()
    with pytest.raises(InvalidCertificate):
        certificate.read(text, public)


def test_two_signatures_are_refused(data: bytes, public: str) -> None:
    found = json.loads(data)
    found["signatures"] *= 2
    with pytest.raises(InvalidCertificate, match="one signature"):
        certificate.read(json.dumps(found).encode(), public)


def test_base64_has_one_form(data: bytes, public: str) -> None:
    found = json.loads(data)
    sig = found["signatures"][0]["sig"]
    assert sig.endswith("==")
    letters = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    other = f"{sig[:-3]}{letters[letters.index(sig[-3]) ^ 1]}=="  # a bit that stands for nothing
    assert base64.b64decode(other) == base64.b64decode(sig)
    found["signatures"][0]["sig"] = other
    with pytest.raises(InvalidCertificate, match="base64"):
        certificate.read(json.dumps(found).encode(), public)


def test_another_key(data: bytes, public: str) -> None:
    other = signer_of(Ed25519PrivateKey.generate())
    with pytest.raises(InvalidCertificate, match="signature must be by the key"):
        certificate.read(data, other.public)
    # The same content under another signature, with the name of the right key.
    forged = json.loads(certificate.written(certificate.read(data, public), other))
    forged["signatures"][0]["keyid"] = keys.fingerprint(public)
    with pytest.raises(InvalidCertificate, match="signature must be of this content"):
        certificate.read(json.dumps(forged).encode(), public)


@pytest.mark.parametrize(
    "path",
    [
        ("_type",),
        ("predicateType",),
        ("subject",),
        ("predicate",),
        ("predicate", "versions", "after", "sha256"),
        ("predicate", "request", "id"),
        ("predicate", "request", "classes"),
        ("predicate", "seal", "signature"),
        ("predicate", "seal", "sha256"),
        ("predicate", "order", "signature"),
        ("predicate", "order", "destroy"),
        ("predicate", "verdict"),
        ("predicate", "limits"),
    ],
)
@pytest.mark.parametrize("value", ["other", None, 3, [], {}])
def test_signed_content_that_does_not_hang_together(
    path: tuple[str, ...], value: Any, data: bytes, public: str
) -> None:
    """Whoever has the key can sign anything; it is no certificate for that."""
    signer = signer_of(Ed25519PrivateKey.generate())
    content = certificate.read(data, public)
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    if path[-1] == "limits" and value == []:  # a list of sentences, if an empty one
        assert certificate.read(certificate.written(content, signer), signer.public) == content
        return
    with pytest.raises(InvalidCertificate):
        certificate.read(certificate.written(content, signer), signer.public)


def test_words_in_it_cannot_steer_a_terminal(data: bytes, public: str) -> None:
    signer = signer_of(Ed25519PrivateKey.generate())
    content = certificate.read(data, public)
    content["predicate"]["request"]["asked_by"] = "Eve\x1b[2J\rValid"
    content["predicate"]["limits"][0] = "none\x1b]0;x\x07"
    found = certificate.read(certificate.written(content, signer), signer.public)
    text = " ".join(certificate.sentences(found))
    assert "Eve" in text
    assert text.isprintable()


def test_a_payload_with_a_key_twice(data: bytes, public: str) -> None:
    signer = signer_of(Ed25519PrivateKey.generate())
    text = canonical(certificate.read(data, public)).replace(b"{", b'{"_type":"x",', 1)
    with pytest.raises(InvalidCertificate, match="twice"):
        certificate.read(envelope.sealed(certificate.PAYLOAD_TYPE, text, signer), signer.public)


def test_another_implementation_verifies_it(data: bytes, public: str) -> None:
    """By the words of DSSE alone: the encoding before the signature, and Ed25519."""
    found = json.loads(data)
    kind, payload = found["payloadType"], base64.b64decode(found["payload"])
    signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public))
    key.verify(base64.b64decode(found["signatures"][0]["sig"]), signed)


def test_the_encoding_of_the_dsse_specification() -> None:
    # The example of the protocol's text: this, and nothing else, is what is signed.
    signer = signer_of(Ed25519PrivateKey.generate())
    made = json.loads(envelope.sealed("http://example.com/HelloWorld", b"hello world", signer))
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signer.public))
    signed = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    key.verify(base64.b64decode(made["signatures"][0]["sig"]), signed)


# ---- the command ---------------------------------------------------------------------------------


def test_verify_in_a_folder_with_the_file_and_the_key_alone(
    shared: Path, data: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / "c.json").write_bytes(data)
    shutil.copy(shared / "keys" / "coordinator.pub", folder / "key")
    efface = [sys.executable, "-c", "from server.cli import main; main()"]
    done = subprocess.run(
        [*efface, "certificate", "verify", "c.json", "--key", "key"],
        cwd=folder,
        env={"PATH": "", "HOME": str(folder), "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Valid" in done.stdout
    assert "forget class 3" in done.stdout
    assert sorted(p.name for p in folder.iterdir()) == ["c.json", "key"]


@pytest.mark.parametrize("form", ["word", "pub", "printed", "json"])
def test_the_key_in_every_form(
    form: str, shared: Path, data: bytes, public: str, tmp_path: Path
) -> None:
    (tmp_path / "c.json").write_bytes(data)
    told = public
    if form != "word":
        printed = {
            "pub": public + "\n",
            "printed": run(shared, "key").stdout,
            "json": run(shared, "key", "--json").stdout,
        }
        (tmp_path / "key").write_text(printed[form])
        told = str(tmp_path / "key")
    done = CliRunner().invoke(
        app, ["certificate", "verify", str(tmp_path / "c.json"), "--key", told]
    )
    assert done.exit_code == 0, done.output


def test_what_is_not_valid_is_told_and_the_exit_code_is_3(
    data: bytes, public: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(data + b"x")
    words = ["certificate", "verify", str(path), "--key", public]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == NOT_VERIFIED
    assert "Not valid" in done.stdout
    done = CliRunner().invoke(app, ["certificate", "--json", *words[1:]])
    document = json.loads(done.stdout)
    assert (document["valid"], document["statement"], document["says"]) == (False, None, [])
    assert document["problem"]


def test_usage(data: bytes, public: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(data)
    file = str(tmp_path / "c.json")
    for words in (
        [file],
        [file, "--key", "nonsense"],
        [file, "--key", file],
        [str(tmp_path / "none"), "--key", public],
        [str(tmp_path), "--key", public],
        ["--key", public],
    ):
        assert CliRunner().invoke(app, ["certificate", "verify", *words]).exit_code == USAGE, words
