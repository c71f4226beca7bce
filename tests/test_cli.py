"""The command line on real components: a tiny federation on digits, in this process."""

import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from server import display
from server.cli import app
from server.cli.command import FAILED, NOT_VERIFIED, STOPPED, USAGE
from server.home import Home

TINY = [
    *("--num-clients", "3", "--partition", "iid", "--rounds", "2", "--local-steps", "8"),
    *("--batch-size", "32", "--scale", "10", "--distill-every", "4", "--lr", "0.1"),
    *("--model-width", "8", "--model-depth", "2"),
]
    assert trained.json("requests")["requests"][-1]["state"] == "failed"
    assert (trained.home / "reports" / "r0002.html").is_file()


def test_a_record_that_cannot_be_read_is_named(forgotten: Efface) -> None:
    path = Home(forgotten.home).runs / "r0002" / "record.json"
    path.write_text("{")

    done = forgotten("report", "r0002")

    assert done.exit_code == FAILED
    assert str(path) in done.stderr
