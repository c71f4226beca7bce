"""Users' tasks of other kinds: token ids, a target that is no class, a body that stays frozen."""

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from client.task import Data, Examples, Task


class Encoder(nn.Module):
    """Token ids (B, T) to three logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.last = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.last(self.layer(self.embed(tokens)).mean(dim=1))
        return found


class Words(Task):
    """Token ids: half of a text's are its class's own."""

    input_shape = (12,)
    input_dtype = torch.int64
    class_names = ("a", "b", "c")

    def network(self) -> nn.Module:
        return Encoder()

    def data(self, source: str) -> Data:
        draws = torch.Generator().manual_seed(0)
        labels = torch.randint(3, (300,), generator=draws)
        any_token = torch.randint(20, (300, 12), generator=draws)
        own = torch.rand(300, 12, generator=draws) < 0.5
        tokens = torch.where(own, labels[:, None] * 5, any_token)
        return Data(Examples(tokens[:240], labels[:240]), Examples(tokens[240:], labels[240:]))


class Sugar(Task):
    """A number to foretell: a loss and a score of its own, no classes."""

    input_shape = (10,)

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).square()

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs[:, 0] - targets).abs() < 0.5).float()

    def data(self, source: str) -> Data:
        inputs, targets = load_diabetes(return_X_y=True)
        inputs = (20 * inputs).astype("float32")
        targets = ((targets - targets.mean()) / targets.std()).astype("float32")
        nothing = [0] * len(targets)
        return Data(Examples(inputs, nothing, targets=targets))


class Texts(Task):
    """An option's default has a comma."""

    input_shape = (2,)
    class_names = ("a", "b")
    columns: str = "age,sex"
    hidden: int = 4


class Reduced(Sugar):
    """Its loss is one number a batch."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).square().mean()


class Broadcast(Sugar):
    """Its score compares each output with every target."""

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() < 0.5).float()


class Mismatched(Sugar):
    """Its network has too few outputs for its targets."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([outputs[:, 0], outputs[:, 0]], dim=1).sub(targets).square().mean(dim=1)

    def data(self, source: str) -> Data:
        return Data(Examples(torch.zeros(30, 10), [0] * 30, targets=torch.zeros(30, 3)))


class Adapter(nn.Module):
    """A frozen body with BatchNorm, and a small trained part behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 100), nn.BatchNorm1d(100), nn.ReLU())
        self.body.requires_grad_(False)
        self.last = nn.Linear(100, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.last(self.body(inputs))
        return found


class Adapted(Task):
    """Only what is trained travels."""

    input_shape = (10,)
    class_names = ("low", "high")

    def network(self) -> nn.Module:
        return Adapter()

    def data(self, source: str) -> Data:
        inputs, targets = load_diabetes(return_X_y=True)
        return Data(Examples((20 * inputs).astype("float32"), (targets > 150).astype("int64")))


class Bottleneck(nn.Module):
    """An adapter: what it adds to its input has a low rank, and is nothing at first."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, found: Tensor) -> Tensor:
        changed: Tensor = found + self.up(self.down(found))
        return changed


class AdaptedEncoder(nn.Module):
    """A frozen transformer of 164,000 parameters with an adapter behind each of its layers."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.embed.requires_grad_(False)
        self.layers.requires_grad_(False)
        self.adapters = nn.ModuleList(Bottleneck(64, rank) for _ in self.layers)
        self.last = nn.Linear(64, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.embed(tokens)
        for layer, adapter in zip(self.layers, self.adapters, strict=True):
            found = adapter(layer(found))
        logits: Tensor = self.last(found.mean(dim=1))
        return logits


class AdaptedWords(Words):
    """The same texts: adapters and the last layer are trained, and they alone travel."""

    rank: int = 2

    def network(self) -> nn.Module:
        return AdaptedEncoder(self.rank)
