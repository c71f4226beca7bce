"""README's table of methods and kinds of task is what the methods declare."""

from pathlib import Path

from strategies.kinds import KINDS, serves, table
from strategies.method import Needs
from strategies.table import METHODS

README = Path(__file__).parents[2] / "README.md"
BOTH = frozenset({"class", "client"})


def test_the_readme_has_the_table() -> None:
    shown = README.read_text().split("<!-- kinds: begin -->\n")[1].split("<!-- kinds: end -->")[0]
    assert shown.splitlines() == table()
    assert len(table()) == 2 + len(METHODS)


def test_each_need_leaves_out_its_kinds() -> None:
    def kinds(needs: Needs) -> list[bool]:
        return [serves(needs, kind) for kind in KINDS]

    assert kinds(Needs(levels=BOTH)) == [True, True, True, True, False]
    assert kinds(Needs(levels=BOTH, own_loss=True)) == [True] * 5
    assert kinds(Needs(levels=frozenset({"class"}), own_loss=True)) == [True] * 4 + [False]
    assert kinds(Needs(levels=BOTH, float_inputs=True)) == [True, True, True, False, False]
    assert kinds(Needs(levels=BOTH, channels=True)) == [True, False, False, False, False]
