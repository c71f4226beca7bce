"""Fill the tables that RESULTS.md quotes from the pages of `efface bench`.

    python benchmarks/quote.py

Between `<!-- results/NAME: HEADING -->` and `<!-- end -->` go the tables that stand under that
heading in `results/NAME/results.md`. A test says that nothing there was changed by hand.
"""

import re
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
QUOTE = re.compile(r"(<!-- results/([\w-]+): ([^>]+?) -->)\n.*?<!-- end -->", re.DOTALL)


def quoted(text: str) -> str:
    """Return a text with its quoted tables as the pages have them now.

    Raises:
        FileNotFoundError: A quoted page is not there.
        ValueError: A page has no such heading.
    """
    return QUOTE.sub(lambda m: f"{m[1]}\n\n{tables(m[2], m[3])}\n\n<!-- end -->", text)


def tables(name: str, heading: str) -> str:
    """Return the tables under a heading of a page, without the words between them."""
    page = (HERE / "results" / name / "results.md").read_text()
    _, found, behind = page.partition(f"\n## {heading}\n")
    if not found:
        raise ValueError(f"heading must stand in results/{name}/results.md, got {heading!r}")
    lines = behind.partition("\n## ")[0].splitlines()
    kept = "\n".join(line for line in lines if line.startswith("|") or not line)
    return re.sub(r"\n{3,}", "\n\n", kept).strip()


if __name__ == "__main__":
    RESULTS.write_text(quoted(RESULTS.read_text()))
