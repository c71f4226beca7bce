"""A method that nobody knew is its own files and a line in the table: no other file is touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a paper's method may need of a node, in a file of its own under client/steps.
STEP = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from client.messages import CLASS_3, WORK, Common, Declaration
from client.node import answers
from client.settings import between, setting


@dataclass(frozen=True, kw_only=True)
class Fade(Common):
    """The last layer's row of every class that is to be forgotten, made weaker."""

    message: ClassVar = Declaration(
        "train.fade", example={"by": 0.5, **CLASS_3}, arrays="model", metrics=WORK
    )

    by: float = setting(between(0.0, 1.0))


@answers(Fade)
def fade(node, settings):
    model, rows = node.model(), settings.forget_classes
    held = node.count(node.site.train.where(node.side("forget", node.site.train.labels)))
    with torch.no_grad():
        model.classifier.weight[rows] *= 1 - settings.by
        model.classifier.bias[rows] -= 100 * settings.by
    return {"num-examples": held, "num-steps": 0, "samples": 0, "loss": 0.0}, model
'''
# And the method, in a file of its own under strategies/methods.
METHOD = '''
"""Fade: the rows of what is to be forgotten are made weaker."""

from dataclasses import dataclass
from typing import ClassVar

from client.settings import between
from client.steps.fade import Fade
from strategies.method import Hyperparameters, Needs, option
from strategies.parts.effort import Effort, effort
from strategies.parts.relearning import OrdinaryRelearning
from strategies.rounds.base import AscentRounds


@dataclass(frozen=True)
class Fading(OrdinaryRelearning, Hyperparameters):
    """The paper's protocol."""

    by: float = option(0.5, between(0.0, 1.0), "share of a row's weights that goes")

    needs: ClassVar[Needs] = Needs(levels=frozenset({"class"}))

    def forget(self, federation, model):
        asked = federation.settings(Fade, by=self.by)
        rounds = AscentRounds(asked, participants=federation.holders(synthetic=False))
        return federation.run("unlearn", rounds, model, num_rounds=1)


@effort.register
def _(told: Fade, holding, network):
    return Effort(sum(holding.forget), network.nbytes, network.nbytes)
'''
SCRIPT = """
import json, sys
from client import steps
from strategies import methods

steps.__path__.append(sys.argv[1] + "/steps")
methods.__path__.append(sys.argv[1] + "/methods")
from strategies.methods.fading import Fading
from strategies.table import METHODS

METHODS["fading"] = Fading  # the line in the table

from typer.testing import CliRunner
from server.cli import app

def efface(*words, home=("--home", sys.argv[1] + "/home")):
    done = CliRunner().invoke(app, [*words, *home, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)

efface("train", *sys.argv[2:])
asked = ["forget", "--class", "9", "--method", "fading", "--set", "by=1"]
print(json.dumps({
    "listed": efface("methods", "fading", home=())["methods"][0],
    "plan": efface(*asked, "--dry-run"),
    "record": efface(*asked, "--accept", "not-shown"),
}))
"""
TINY = [
    *("--num-clients", "3", "--partition", "iid", "--rounds", "2", "--local-steps", "8"),
    *("--batch-size", "32", "--scale", "0", "--lr", "0.1", "--model-width", "8"),
    *("--model-depth", "2"),
]


def test_a_new_method_is_its_files_and_a_line_in_the_table(tmp_path: Path) -> None:
    for name, text in (("steps/fade.py", STEP), ("methods/fading.py", METHOD)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)

    command = [sys.executable, "-c", SCRIPT, str(tmp_path), *TINY]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["listed"]["summary"] == (
        "Fade: the rows of what is to be forgotten are made weaker."
    )
    assert found["listed"]["options"] == {"by": 0.5}
    assert found["listed"]["meanings"] == {"by": "share of a row's weights that goes"}
    (phase,) = [p for p in found["plan"]["phases"] if p["phase"] == "unlearn"]
    assert (phase["rounds"], phase["clients"]) == (1, 3)
    record = found["record"]
    assert (record["method"], record["model_version"]) == ("fading", "v0002")
    assert record["recovered"]["forget_accuracy"] == 0.0 < record["original"]["forget_accuracy"]
    # What a message holds beside arrays is estimated from training's.
    assert record["bytes"]["unlearn"]["up"] == pytest.approx(phase["bytes"]["up"], rel=0.02)
