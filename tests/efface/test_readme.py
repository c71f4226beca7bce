"""What README shows of Python runs as it stands there, and comes to what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def blocks(heading: str) -> list[str]:
    """Return the Python of a section of README, block by block."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def test_the_section_from_python_runs_as_it_stands(tmp_path: Path) -> None:
    (code,) = blocks("From Python")
    # Where a reader would be: an empty folder, and nothing of this project's in the surroundings.
    own = {key: value for key, value in os.environ.items() if not key.startswith("EFFACE_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=own | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Verdict: passed" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("passed {")
    assert "Data protection" in (tmp_path / "request-17.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits-home", "request-17.html"]
