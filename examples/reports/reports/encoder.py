"""A BERT encoder in plain modules, its pre-trained weights, and low-rank adapters for it.

Devlin et al., "BERT", 2019, https://arxiv.org/abs/1810.04805; the weights are all-MiniLM-L6-v2's,
read from the safetensors file of the package. Hu et al., "LoRA", 2021,
https://arxiv.org/abs/2106.09685, equation 3: W x + B A x, B zero at first.

Shapes: B texts, T tokens, D width, K classes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

PAD = 0


@dataclass(frozen=True)
class Form:
    """Sizes of an encoder."""

    vocabulary: int
    width: int
    heads: int
    inner: int
    layers: int
    positions: int


class Adapted(nn.Linear):
    """A linear layer that may have a low-rank adapter beside it, which alone is trained."""

    down: Tensor | None  # A
    up: Tensor | None  # B

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_parameter("down", None)
        self.register_parameter("up", None)

    def adapt(self, rank: int) -> None:
        """Add an adapter that changes nothing yet."""
        self.down = nn.Parameter(torch.empty(rank, self.in_features))
        nn.init.normal_(self.down, std=self.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(self.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        if self.down is None or self.up is None:
            return found
        return found + linear(linear(x, self.down), self.up)


class Layer(nn.Module):
    """Self-attention and two linear layers, each with a residual and a norm behind it."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        width = form.width
        self.heads = form.heads
        self.query, self.value = Adapted(width, width), Adapted(width, width)
        self.key, self.attended = nn.Linear(width, width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, form.inner), nn.Linear(form.inner, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:  # (B, T, D), (B, T)
        split = [
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        ]
        seen = scaled_dot_product_attention(*split, attn_mask=there[:, None, None, :])
        x = self.norms[0](x + self.attended(seen.transpose(1, 2).flatten(2)))
        found: Tensor = self.norms[1](x + self.outer(gelu(self.inner(x))))
        return found


class Encoder(nn.Module):
    """Token ids (B, T), padded with 0, to one vector a text, (B, D): the mean of its tokens'."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.words = nn.Embedding(form.vocabulary, form.width)
        self.places = nn.Embedding(form.positions, form.width)
        self.norm = nn.LayerNorm(form.width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(form) for _ in range(form.layers))

    def adapt(self, *, rank: int, last: int) -> None:
        """Give the last layers' queries and values adapters, which are trained."""
        for layer in list(self.layers)[len(self.layers) - last :] if rank else ():
            layer.query.adapt(rank)
            layer.value.adapt(rank)

    def forward(self, tokens: Tensor) -> Tensor:
        there = tokens != PAD
        there[:, 0] = True  # so that a text of nothing has a mean, too
        x = self.norm(self.words(tokens) + self.places.weight[: tokens.shape[1]])
        for layer in self.layers:
            x = layer(x, there)
        weights = there[:, :, None].to(x.dtype)
        return (x * weights).sum(1) / weights.sum(1)


class Classifier(nn.Module):
    """An encoder, and a linear layer on its vectors, which have length sqrt(D)."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.words.embedding_dim
        self.scaled = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.scaled(self.encoder(tokens)))
        return found


OURS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "norms.0",
    "intermediate.dense": "inner",
    "output.dense": "outer",
    "output.LayerNorm": "norms.1",
}


def pretrained(folder: Path) -> Encoder:
    """Return the encoder whose config.json and model.safetensors lie in a folder."""
    told = json.loads((folder / "config.json").read_text())
    form = Form(
        vocabulary=told["vocab_size"],
        width=told["hidden_size"],
        heads=told["num_attention_heads"],
        inner=told["intermediate_size"],
        layers=told["num_hidden_layers"],
        positions=told["max_position_embeddings"],
    )
    theirs = load_file(folder / "model.safetensors")
    # All tokens are of the first text of a pair that has no second one.
    first = theirs["embeddings.token_type_embeddings.weight"][0]
    ours = {
        "words.weight": theirs["embeddings.word_embeddings.weight"],
        "places.weight": theirs["embeddings.position_embeddings.weight"] + first,
        "norm.weight": theirs["embeddings.LayerNorm.weight"],
        "norm.bias": theirs["embeddings.LayerNorm.bias"],
    }
    for number in range(form.layers):
        for old, new in OURS.items():
            for kind in ("weight", "bias"):
                value = theirs[f"encoder.layer.{number}.{old}.{kind}"]
                ours[f"layers.{number}.{new}.{kind}"] = value
    with torch.device("meta"):  # no weights are drawn that are not used
        encoder = Encoder(form)
    encoder.load_state_dict(ours, assign=True)
    return encoder
