"""Small networks of the kinds that users bring, each with a batch that it takes.

Shapes: B examples, F features, K = 3 classes, T places, V = 20 tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

NUM_CLASSES = 3
NUM_TOKENS = 20
NUM_PLACES = 6


def mlp() -> nn.Module:
    """Return a network on rows of a table, (B, 5)."""
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


class Reports(nn.Module):
    """A transformer's encoder on token ids (B, T) int64; 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(NUM_TOKENS, 8, padding_idx=0)
        self.places = nn.Parameter(0.1 * torch.randn(1, NUM_PLACES, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.answer = nn.Linear(8, NUM_CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        words = self.encoder(self.words(tokens) + self.places, src_key_padding_mask=padding)
        # What torch gives at padding depends on its way through the layers.
        words = words.masked_fill(padding[:, :, None], 0.0)
        return self.answer(words.sum(dim=1) / (~padding).sum(dim=1, keepdim=True))


class Patches(nn.Module):
    """A vision transformer on images (B, 1, 8, 8): four patches, and a place for the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.first = nn.Parameter(0.1 * torch.randn(1, 1, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.answer = nn.Linear(8, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        places = torch.cat([self.first.expand(len(images), -1, -1), patches], dim=1)
        return self.answer(self.encoder(places)[:, 0])


class Attention(nn.Module):
    """One attention of linear layers on a series (B, T, 4): only ordinary layers have weights."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 6) for _ in range(3))
        self.answer = nn.Linear(6, NUM_CLASSES)

    def forward(self, series: Tensor) -> Tensor:
        found = functional.scaled_dot_product_attention(
            self.query(series), self.key(series), self.value(series)
        )
        return self.answer(found.mean(dim=1))


def series() -> nn.Module:
    """Return a network of 1-d convolutions on series (B, 2, 12)."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv1d(4, 5, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(5, NUM_CLASSES),
    )


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, convolution, added to the channels that are there."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_inputs)
        self.conv = nn.Conv2d(num_inputs, 3, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps, self.conv(self.norm(maps).relu())], dim=1)


class Dense(nn.Module):
    """A dense block as in torchvision's DenseNet, on images (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            DenseLayer(4),
            DenseLayer(7),
            nn.BatchNorm2d(10),
        )
        self.classifier = nn.Linear(10, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images).relu()
        return self.classifier(functional.adaptive_avg_pool2d(maps, 1).flatten(1))


class Adapter(nn.Module):
    """LoRA: a frozen linear layer, and a product of two small matrices beside it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(0.3 * torch.randn(rank, base.in_features))
        self.up = nn.Parameter(0.3 * torch.randn(base.out_features, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + inputs @ self.down.t() @ self.up.t()


class Adapted(nn.Module):
    """Adapters of rank 2 over a frozen body with a norm, on rows (B, 5), and a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Adapter(nn.Linear(5, 8), 2)
        self.norm = nn.BatchNorm1d(8).requires_grad_(False)
        self.second = Adapter(nn.Linear(8, 6), 2)
        self.score = nn.Linear(6, NUM_CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        return self.score(self.second(self.norm(self.first(rows)).relu()).relu())


class Tied(nn.Module):
    """The next token of (B, T) ids: the scores of tokens are their embeddings' products."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(NUM_TOKENS, 8)
        self.body = nn.Linear(8, 8)
        self.answer = nn.Linear(8, NUM_TOKENS, bias=False)
        self.answer.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.answer(self.body(self.words(tokens).mean(dim=1)).tanh())


class Twice(nn.Module):
    """A layer that is called twice, on rows (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(5, 5)
        self.answer = nn.Linear(5, NUM_CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        return self.answer(self.again(self.again(rows).tanh()).tanh())


class Besides(nn.Module):
    """A layer that is called once, and whose weight is used beside the call, on rows (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 5)
        self.answer = nn.Linear(5, NUM_CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        return self.answer(functional.linear(self.body(rows).tanh(), self.body.weight.t()))


class TwoHeads(nn.Module):
    """Two answers by name, on rows (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 6)
        self.kind, self.place = nn.Linear(6, NUM_CLASSES), nn.Linear(6, 2)

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        features = self.body(rows).relu()
        return {"kind": self.kind(features), "place": self.place(features)}


class Recurrent(nn.Module):
    """An LSTM on series (B, T, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.answer = nn.Linear(6, NUM_CLASSES)

    def forward(self, series: Tensor) -> Tensor:
        return self.answer(self.lstm(series)[0][:, -1])


class PlacesFirst(nn.Module):
    """Linear layers on a series turned to (T, B, 4), so that rows are places, not examples."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.answer = nn.Linear(6, NUM_CLASSES)

    def forward(self, series: Tensor) -> Tensor:
        return self.answer(self.body(series.transpose(0, 1)).tanh().mean(dim=0))


def in_place() -> nn.Module:
    """Return convolutions whose outputs are overwritten behind them, as in torchvision's VGG."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, NUM_CLASSES),
    )


def normed() -> nn.Module:
    """Return a network under weight norm, on rows (B, 5)."""
    return nn.Sequential(weight_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, NUM_CLASSES))


NETWORKS = {
    "mlp": (mlp, (5,)),
    "reports": (Reports, None),
    "patches": (Patches, (1, 8, 8)),
    "attention": (Attention, (NUM_PLACES, 4)),
    "series": (series, (2, 12)),
    "dense": (Dense, (1, 8, 8)),
    "adapted": (Adapted, (5,)),
    "tied": (Tied, None),
    "twice": (Twice, (5,)),
    "besides": (Besides, (5,)),
    "two-heads": (TwoHeads, (5,)),
    "recurrent": (Recurrent, (NUM_PLACES, 4)),
    "places-first": (PlacesFirst, (NUM_PLACES, 4)),
    "normed": (normed, (5,)),
    "in-place": (in_place, (1, 8, 8)),
}

LABELS = torch.tensor([0, 2, 2, 1, 0, 2, 0])


def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return the network `name`, the same at every call; norms have seen data before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = NETWORKS[name][0]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.to(dtype)


def batch(
    name: str, count: int = 7, dtype: torch.dtype = torch.float64, seed: int = 4
) -> tuple[Tensor, Tensor]:
    """Return inputs and labels that the network `name` takes, at most 7."""
    draws = torch.Generator().manual_seed(seed)
    shape = NETWORKS[name][1]
    if shape is None:
        inputs = torch.randint(1, NUM_TOKENS, (count, NUM_PLACES), generator=draws)
        inputs[0, 4:] = 0
    else:
        inputs = torch.randn(count, *shape, generator=draws, dtype=torch.float64).to(dtype)
    return inputs, LABELS[:count]
