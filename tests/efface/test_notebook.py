"""The example notebook is what its script says, was executed whole, and still runs."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent.parent / "examples" / "notebook"
SCRIPT = (FOLDER / "life.py").read_text()
CELLS: list[dict[str, Any]] = json.loads((FOLDER / "life.ipynb").read_text())["cells"]


def test_the_notebook_holds_the_scripts_cells() -> None:
    cells = runpy.run_path(str(FOLDER / "build.py"))["cells"](SCRIPT)

    assert [(cell["cell_type"], "".join(cell["source"])) for cell in CELLS] == cells
    assert len(cells) > 10


def test_the_notebook_was_executed_from_its_first_cell_to_its_last() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]

    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    told = "".join(text for output in outputs for text in output.get("text", ()))
    assert "Verdict: passed" in told
    assert "Verdict: failed" in told
    # Nothing of the machine on which it was made.
    assert "/home/" not in told
    assert "/tmp/" not in told


def test_the_script_runs_in_a_small_form(tmp_path: Path) -> None:
    small = SCRIPT.replace('= 5, 15, "client-3"', '= 2, 2, "client-1"')
    assert small != SCRIPT
    # Two rounds teach nothing that could be shown to be forgotten.
    easy = 'accept="not-shown", max_forget_accuracy=100.0, max_relearning_gap=100.0'
    small = small.replace('compare="retrain", by=', f'compare="retrain", {easy}, by=')
    own = {key: value for key, value in os.environ.items() if not key.startswith("EFFACE_")}
    done = subprocess.run(
        [sys.executable, "-c", small],
        cwd=tmp_path,
        env=own | {"PYTHONPATH": str(FOLDER.parent.parent), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stderr
    assert "forgotten: (9,) by r0002" in done.stdout
