"""A copy of an example, and the commands that its README shows, typed one after the other."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
WRITTEN = (".efface", "__pycache__", "*.npz", "*.csv")


class Walk:
    """A copy of one example in a folder of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.readme = (EXAMPLES / name / "README.md").read_text()
        self.folder = folder / name
        shutil.copytree(EXAMPLES / name, self.folder, ignore=shutil.ignore_patterns(*WRITTEN))

    def commands(self) -> list[list[str]]:
        """Return the commands of README's first block of them, each as a shell splits it."""
        block = re.findall(r"^```bash\n(.*?)^```", self.readme, re.MULTILINE | re.DOTALL)[0]
        lines = block.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def output(self) -> str:
        """Return what README says that the commands print."""
        found = re.search(r"<!-- output: begin -->\n```text\n(.*?)```", self.readme, re.DOTALL)
        assert found
        return found[1]

    def type(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one command in the folder, and return what came of it."""
        program = {"python": [], "efface": ["-c", "from server.cli import main; main()"]}[words[0]]
        own = {key: value for key, value in os.environ.items() if not key.startswith("EFFACE_")}
        return subprocess.run(
            [sys.executable, *program, *words[1:]],
            cwd=self.folder,
            env=own | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=600,
        )


def shape(text: str) -> list[str]:
    """Return the heads and first words of tables, and the verdict: no number, no path."""
    words = [line.split() for line in text.splitlines()]
    tables = ("Model", "Original", "Retrained", "Unlearned", "Recovered", "Phase", "Verdict:")
    return [" ".join(w) if w[0] == "Verdict:" else w[0] for w in words if w and w[0] in tables]
