"""Make life.ipynb from life.py and execute it; its outputs are kept.

`make notebook` does so. life.py holds the cells, each after a line `# %%` or `# %% [markdown]`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPT, NOTEBOOK = HERE / "life.py", HERE / "life.ipynb"
LIMIT = 600  # seconds a cell may take on a busy machine


def cells(text: str) -> list[tuple[str, str]]:
    """Return the cells of a script: ("markdown" or "code", source) each."""
    found = []
    for part in text.split("# %%")[1:]:
        head, _, body = part.partition("\n")
        body = body.strip("\n")
        if head.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.splitlines()]
            found.append(("markdown", "\n".join(lines)))
        else:
            found.append(("code", body))
    return found


def executed(text: str) -> dict[str, Any]:
    """Return a script as an executed notebook, without what differs from machine to machine."""
    import nbformat
    from nbclient import NotebookClient

    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook = nbformat.v4.new_notebook(
        cells=[make[kind](source) for kind, source in cells(text)],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    NotebookClient(notebook, timeout=LIMIT, kernel_name="python3").execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {}
    notebook.metadata.pop("language_info", None)
    found: dict[str, Any] = json.loads(nbformat.writes(notebook))
    return found


def main() -> None:
    """Build the notebook."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    notebook = executed(SCRIPT.read_text())
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    print(f"{NOTEBOOK.name}: {len(notebook['cells'])} cells")


if __name__ == "__main__":
    main()
