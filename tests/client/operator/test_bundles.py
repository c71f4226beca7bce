"""Which bundles a site lets in, what it keeps of them, and what it shows of a change."""

import io
import zipfile
from pathlib import Path

import pytest

from client.errors import BadSetting, ForeignBundle
from client.operator import bundles as room
from client.operator.bundles import Bundle, Bundles, difference


def made(**files: str) -> Bundle:
    """Return a bundle with these files: `client__app` stands for client/app.py."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in files.items():
            packed.writestr(name.replace("__", "/") + ".py", text)
    return Bundle(out.getvalue())


def packed(*members: tuple[str, bytes]) -> Bundle:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return Bundle(out.getvalue())


FIRST = made(client__app="one = 1\n", server__app="x = 1\n")
SECOND = made(client__app="one = 2\n", client__new="two\n", server__app="x = 2\n")


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    (tmp_path / "site").mkdir()
    return Bundles(tmp_path / "site", tmp_path / "state")


def test_nothing_is_allowed_at_first(bundles: Bundles) -> None:
    assert bundles.allowed() == []
    with pytest.raises(ForeignBundle, match=FIRST.hash):
        bundles.check(FIRST)


def test_the_operator_allows_one_by_its_hash_and_no_other(bundles: Bundles) -> None:
    assert bundles.allow(FIRST.hash, "read it\nmyself") is False  # its bytes are not here

    bundles.check(FIRST)
    with pytest.raises(ForeignBundle, match=SECOND.hash):
        bundles.check(SECOND)
    [line] = bundles.allowed()
    assert (line.hash, line.note) == (FIRST.hash, "read it myself")
    assert bundles.list.stat().st_mode & 0o777 == 0o644  # the executor reads it


def test_one_bit_more_is_another_bundle(bundles: Bundles) -> None:
    bundles.allow(FIRST.hash, "", FIRST)
    with pytest.raises(ForeignBundle):
        bundles.check(Bundle(FIRST.content + b"\0"))


def test_what_was_forbidden_no_longer_runs(bundles: Bundles) -> None:
    bundles.allow(FIRST.hash, "")
    bundles.allow(SECOND.hash, "")
    bundles.forbid(FIRST.hash)

    bundles.check(SECOND)
    with pytest.raises(ForeignBundle):
        bundles.check(FIRST)
    with pytest.raises(BadSetting, match="hash must be of an allowed bundle"):
        bundles.forbid(FIRST.hash)


def test_a_forbidden_bundle_that_comes_again_is_named_among_those_refused(
    bundles: Bundles,
) -> None:
    bundles.allow(FIRST.hash, "", FIRST)
    bundles.forbid(FIRST.hash)
    assert bundles.waiting() == []  # it has not come
    bundles.note(FIRST)
    assert bundles.waiting() == [FIRST.hash]


def test_a_damaged_list_lets_nothing_in(bundles: Bundles) -> None:
    bundles.allow(FIRST.hash, "")
    bundles.list.write_text(bundles.list.read_text() + "all\n")
    with pytest.raises(BadSetting, match=r"64 hexadecimal digits .* got 'all' on line 3"):
        bundles.check(FIRST)


@pytest.mark.parametrize("name", ["", "12ab", "G" * 64, "a" * 63, "A" * 64])
def test_a_hash_is_given_in_full(bundles: Bundles, name: str) -> None:
    with pytest.raises(BadSetting, match="hash must be"):
        bundles.allow(name, "")
    assert bundles.allowed() == []


def test_a_hash_that_is_not_the_files_is_refused(bundles: Bundles) -> None:
    with pytest.raises(BadSetting, match="must be that of the bundle"):
        bundles.allow(FIRST.hash, "", SECOND)


def test_what_came_is_kept_for_the_operator_to_look_at(bundles: Bundles) -> None:
    bundles.allow(FIRST.hash, "", FIRST)
    bundles.note(FIRST)
    bundles.note(SECOND)

    assert bundles.waiting() == [SECOND.hash]
    found = bundles.difference(SECOND.hash)
    assert (found.old, found.new) == (FIRST.hash, SECOND.hash)
    assert "-one = 1\n+one = 2" in found.code
    assert "+++ b/client/new.py" in found.code
    assert "server" not in found.code  # a node runs none of it
    assert found.elsewhere == {"server/app.py": "changed"}
    assert bundles.allow(SECOND.hash, "") is True  # the bytes that came stand beside the list
    assert bundles.waiting() == []


def test_of_a_users_task_its_change_is_shown_though_its_folder_is_another() -> None:
    old, new, other = (f"client__own__{digit * 64}__" for digit in "abc")
    before = made(**{f"{old}wine": "size = 16\nrows = 3\n", f"{old}same": "x\n"})
    after = made(**{f"{new}wine": "size = 20\nrows = 3\n", f"{new}same": "x\n"})
    shown = difference(before, after).code
    assert shown.splitlines() == [
        f"--- a/client/own/{'a' * 64}/wine.py",
        f"+++ b/client/own/{'b' * 64}/wine.py",
        "@@ -1,3 +1,3 @@",
        "-size = 16",
        "+size = 20",
        " rows = 3",
        " ",
    ]
    # Which of two tasks became which, nobody knows: all of them is shown.
    two = made(**{f"{new}wine": "size = 20\n", f"{other}wine": "size = 16\nrows = 3\n"})
    assert "-rows = 3" in difference(before, two).code
    assert "+rows = 3" in difference(before, two).code


def test_a_difference_is_against_the_last_one_allowed_before(bundles: Bundles) -> None:
    third = made(client__app="one = 3\n")
    for one in (FIRST, SECOND, third):
        bundles.allow(one.hash, "", one)
    assert bundles.difference(third.hash).old == SECOND.hash
    assert bundles.difference(SECOND.hash).old == FIRST.hash
    assert bundles.difference(FIRST.hash).old is None
    with pytest.raises(BadSetting, match="whose bytes are here"):
        bundles.difference("0" * 64)


def test_a_coordinator_cannot_fill_the_disk_with_bundles(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(room.KEPT + 5):
        bundles.note(made(client__app=f"x = {number}\n"))
    assert len(list(bundles.came.iterdir())) == room.KEPT
    monkeypatch.setattr(room, "LARGEST", 10)
    bundles.note(made(client__app="large\n"))
    assert len(list(bundles.came.iterdir())) == room.KEPT


def test_bytes_that_were_changed_in_the_executors_folder_are_not_taken(bundles: Bundles) -> None:
    bundles.note(FIRST)
    (bundles.came / f"{FIRST.hash}.fab").write_bytes(SECOND.content)
    assert bundles.find(FIRST.hash) is None
    assert bundles.waiting() == []


@pytest.mark.parametrize(
    "bundle",
    [
        Bundle(b"no zip"),
        Bundle(b""),
        packed(("../../etc/cron.d/x", b"")),
        packed(("/etc/passwd", b"")),
        packed(("client/../../x.py", b"")),
        packed(("client\\..\\x.py", b"")),
        packed(("client/a.py\x1b[2J", b"")),
    ],
)
def test_what_is_no_plain_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"bundle .* must"):
        bundle.unpack(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "UNPACKED", 10**6)
    bomb = packed_flat(b"\0" * (10**6 + 1))
    assert len(bomb.content) < 10_000
    with pytest.raises(BadSetting, match="at most"):
        _ = bomb.files


def packed_flat(data: bytes) -> Bundle:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("client/a.py", data)
    return Bundle(out.getvalue())


def test_only_client_is_unpacked(tmp_path: Path) -> None:
    made(client__app="1", client__a__b="2", server__app="3", numpy="4").unpack(tmp_path)
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.py"))
    assert found == ["client/a/b.py", "client/app.py"]


def test_a_diff_cannot_deceive_the_terminal_that_shows_it() -> None:
    sly = "x = 1  # \x1b[8m hidden \u202e reversed \r y = 2\x85z = 3\n"
    shown = difference(None, made(client__app=sly)).code

    assert all(char.isprintable() or char == "\n" for char in shown)
    assert r"\x1b[8m hidden \u202e reversed \r y = 2\x85z = 3" in shown
    assert shown.count("\n+x") == 1
