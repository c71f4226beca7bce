"""Texts to token ids: the encoder's own WordPiece, or words by a hash, without a vocabulary."""

import re
import unicodedata
import zlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Tokenizer(Protocol):
    """Makes token ids of texts."""

    def ids(self, texts: list[str], length: int) -> Tensor:
        """Return token ids int64 (B, length), cut off or padded with 0."""


def words(text: str) -> list[str]:
    """Return the words and signs of a text in lower case, without accents."""
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(sign for sign in plain if unicodedata.category(sign) != "Mn")
    return re.findall(r"[^\W_]+|[^\w\s]|_", plain)


def padded(rows: list[list[int]], length: int) -> Tensor:
    return torch.tensor([(row + [0] * length)[:length] for row in rows], dtype=torch.int64)


class WordPiece:
    """BERT's: of each word the longest pieces that the vocabulary holds, from the left."""

    def __init__(self, vocabulary: Path) -> None:
        pieces = vocabulary.read_text(encoding="utf-8").splitlines()
        self.number = {piece: number for number, piece in enumerate(pieces)}

    def ids(self, texts: list[str], length: int) -> Tensor:
        first, last = self.number["[CLS]"], self.number["[SEP]"]
        rows = [[i for word in words(text) for i in self._pieces(word)] for text in texts]
        return padded([[first, *row[: length - 2], last] for row in rows], length)

    def _pieces(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self.number.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    break
            else:
                return [self.number["[UNK]"]]
            found.append(piece)
            start = end
        return found


class Hashed:
    """Each word's number is its CRC-32, so that no site need know the others' words."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def ids(self, texts: list[str], length: int) -> Tensor:
        def number(word: str) -> int:
            return 1 + zlib.crc32(word.encode()) % (self.vocabulary - 1)

        return padded([[number(word) for word in words(text)] for text in texts], length)
