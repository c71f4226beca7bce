"""Membership inference: can a model's confidence tell forgotten training examples from unseen ones?

Song and Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX
Security 2021, https://arxiv.org/abs/2003.10595: the attacks by confidence, entropy and modified
entropy (`server.evidence.attacks`), without a threshold, as the area under the ROC curve: 0.5 tells
nothing, and Retrained's own value is what a method should have. Beside them the loss threshold of
Yeom et al. 2018, how many members confidence finds at 1 % of false alarms, and RMIA
(`server.evidence.attacks.rmia`), whose references are retrained models: nothing more is trained.

A benchmark can compute it because it simulates the clients and so holds their examples. In a real
federation nobody can: the coordinator has no training example, and a client none of the others'.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from client import wire
from client.data.datasets import Data, Examples
from client.data.site import forget_mask, open_site
from client.learning.models import ModelSpec
from client.seeds import generator
from client.steps.measuring import Describe
from client.task import Task
from client.wire import ForgetSpec
from server.evidence.attacks import signals
from server.evidence.attacks.rmia import rmia
from server.evidence.attacks.success import area, success
from server.evidence.attacks.threshold import loss_threshold
from server.settings import RunSettings

MOST: Final = 500  # examples of a class, on either side
_BATCH: Final = 200


def examples(
    settings: RunSettings, data: Data, spec: ModelSpec, forget: ForgetSpec
) -> tuple[Tensor, Examples] | None:
    """Return the positions of members in `data.train`, and as many unseen examples of each class.

    Members are what the request names in the training parts of the simulated clients, which their
    held-out parts are not. Of every class equally many of both are drawn, so that a class that is
    easier than another does not look like membership.

    Args:
        settings: Of the training.
        data: The coordinator's; what its test part holds was never trained on.
        spec: The model.
        forget: What the request names.

    Returns:
        Positions int64 `(n,)` and a split of n examples, or None where either has none.
    """
    folder = {"data-dir": str(Path(settings.data_dir).absolute())} if settings.data_dir else {}
    parts = []
    for position in range(settings.num_clients):
        name = f"client-{position}"
        if forget.level == "client" and name not in forget.clients:
            continue
        site = open_site(_describe(settings, spec, name), {"partition-id": position, **folder})
        parts.append(site.train.index[forget_mask(site.train.labels, forget, name)])
    members: list[Tensor] = []
    unseen: list[Tensor] = []
    named = torch.cat(parts).sort().values
    for label in range(spec.num_classes):
        inside = named[data.train.labels[named] == label]
        outside = (data.test.labels == label).nonzero().flatten()
        count = min(len(inside), len(outside), MOST)
        for pool, chosen in ((inside, members), (outside, unseen)):
            draws = generator(0, "membership", label, str(forget))
            chosen.append(pool[torch.randperm(len(pool), generator=draws)[:count]])
    if not sum(len(chosen) for chosen in members):
        return None
    taken = torch.cat(unseen)
    return torch.cat(members), data.test.subset(taken)


def _describe(settings: RunSettings, spec: ModelSpec, client: str) -> Describe:
    """Return the message that makes a simulated node open its share of the data."""
    return Describe(
        client=client,
        fingerprint=wire.fingerprint(),
        request="bench",
        lineage="bench",
        phase="describe",
        **settings.common(spec),
    ).check()


@torch.no_grad()
def attack(
    model: nn.Module,
    task: Task,
    data: Data,
    members: Tensor,
    unseen: Examples,
    device: torch.device,
    references: Sequence[nn.Module] = (),
) -> dict[str, float | None]:
    """Return how well the attacks do.

    The area under the ROC curve by signal ("confidence", "entropy", "modified-entropy"); of
    confidence also the ends of its 95 % interval ("confidence-low", "confidence-high") and the
    share of members found at 1 % of false alarms ("tpr"; None with fewer than 100 unseen examples);
    the loss threshold's "advantage", from -1 to 1; and the area of RMIA ("rmia"; None without a
    reference, or with fewer than two unseen examples: half of them are what others are compared
    with). Beside them the percent of members that the model gets right ("member-accuracy"): 100 is
    a model that may know them by heart.

    Args:
        model: Classifier; left in evaluation mode on `device`.
        task: What is learned.
        data: For the members, and how inputs are prepared.
        members: Positions in `data.train`, int64 `(n,)`.
        unseen: Examples never trained on.
        device: Where to compute.
        references: Models that were trained without members and unseen examples; used as `model`.
    """
    inside = data.train.subset(members)

    def asked(one: nn.Module) -> tuple[Tensor, Tensor]:
        return (
            _log_probabilities(one, task, inside, data, device),
            _log_probabilities(one, task, unseen, data, device),
        )

    def confidences(one: nn.Module) -> tuple[Tensor, Tensor]:
        mine, theirs = asked(one)
        return signals.confidence(mine, inside.labels), signals.confidence(theirs, unseen.labels)

    logs, outside = asked(model)
    inner, outer = _signals(logs, inside.labels), _signals(outside, unseen.labels)
    others = [confidences(one) for one in references]
    by_confidence = success(inner["confidence"], outer["confidence"])
    rate = by_confidence.tpr_at_1_percent
    return {
        **{kind: auc(inner[kind], outer[kind]) for kind in inner},
        "confidence-low": by_confidence.auc.low,
        "confidence-high": by_confidence.auc.high,
        "tpr": None if rate is None else rate.value,
        "member-accuracy": 100.0 * float((logs.argmax(dim=1) == inside.labels).double().mean()),
        # Cross-entropy is the negative confidence.
        "advantage": loss_threshold(-inner["confidence"], -outer["confidence"]),
        "rmia": _rmia(inner["confidence"], outer["confidence"], others),
    }


def _rmia(
    members: Tensor, unseen: Tensor, references: Sequence[tuple[Tensor, Tensor]]
) -> float | None:
    """Return the area of RMIA from log-probabilities of the true class, None if it cannot be.

    Every other unseen example is what the rest are compared with: they are in order of class.
    """
    if not references or len(unseen) < 2:
        return None
    own = torch.cat([members, unseen[1::2]]).exp()
    of_references = torch.stack([torch.cat([one, other[1::2]]) for one, other in references]).exp()
    compared = torch.stack([other[::2] for _, other in references]).exp()
    found = rmia(own, of_references, unseen[::2].exp(), compared)
    return auc(found[: len(members)], found[len(members) :])


def _log_probabilities(
    model: nn.Module, task: Task, split: Examples, data: Data, device: torch.device
) -> Tensor:
    """Return what the model says of examples, float64 `(n, K)`, on the CPU."""
    model.eval().to(device)
    logs = []
    for batch in torch.arange(len(split)).split(_BATCH):
        logits = model(task.prepare(split.take(batch).to(device), data))
        logs.append(logits.double().log_softmax(dim=1).cpu())
    return torch.cat(logs)


def _signals(logs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
    """Return what the attacks look at, higher for members: `(n,)` each."""
    return {
        "confidence": signals.confidence(logs, labels),
        "entropy": signals.negative_entropy(logs),
        "modified-entropy": signals.negative_modified_entropy(logs, labels),
    }


def auc(members: Tensor, unseen: Tensor) -> float:
    """Return how likely a member's signal is above an unseen example's, ties counting half."""
    return area(members, unseen).value
