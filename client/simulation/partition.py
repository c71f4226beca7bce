"""Divide a data set's samples over simulated clients.

Every scheme gives each sample to exactly one client and, except "natural", at least `MIN_SAMPLES`
to each client: one to train on and one to hold out.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.errors import BadSetting

SPECS = ("iid", "dirichlet:ALPHA", "bias:Q", "one-class", "shards:K", "natural")
MIN_SAMPLES = 2
MAX_DRAWS = 1000  # of a Dirichlet partition that leaves some client too few samples

_Indices = NDArray[np.int64]


def partition(
    spec: str,
    labels: Tensor,
    num_clients: int,
    generator: torch.Generator,
    ids: Tensor | None = None,
) -> list[Tensor]:
    """Return the samples of each client, as `spec` says.

    iid: shuffled, then dealt into parts whose sizes differ by at most one.
    dirichlet:ALPHA: for each class, the clients' shares are drawn from a symmetric Dirichlet
        distribution; the smaller ALPHA > 0, the more skewed. Redrawn, up to `MAX_DRAWS` times,
        while a client has fewer than `MIN_SAMPLES`. (Yurochkin et al. 2019,
        https://arxiv.org/abs/1905.12022; Hsu et al. 2019, https://arxiv.org/abs/1909.06335, draw
        the classes' shares for each client instead.)
    bias:Q: clients are split at random into one group a class; a sample of class m goes to group m
        with probability Q in (0, 1], else to one of the others, each as likely; a group deals
        its samples evenly. Q = 1 / classes is IID. (Fang et al. 2020,
        https://arxiv.org/abs/1911.11815)
    one-class: client i has only the class at position i modulo the number of classes, sorted;
        clients of one class share it evenly.
    shards:K: sorted by label, cut into K shards a client, K drawn shards to each client.
        (McMahan et al. 2017, https://arxiv.org/abs/1602.05629, K = 2)
    natural: by `ids`. With as many clients as ids, client i has the i-th smallest id; with fewer
        clients the ids are dealt, most samples first, each to the client with the fewest
        samples so far. Nothing is drawn.

    Args:
        spec: One of `SPECS`.
        labels: int64, (N,). The classes are the distinct values that occur.
        num_clients: Positive.
        generator: On the CPU. One number is drawn from it (none for "natural"): the seed of the
            NumPy generator for all that follows, since torch's Dirichlet takes no generator.
        ids: int64, (N,): needed by "natural" only.

    Returns:
        One sorted int64 tensor of sample indices a client; disjoint, together all of range(N).

    Raises:
        BadSetting: If the spec is unknown or out of range, or cannot serve so many clients.
    """
    name, value = parse(spec)
    if num_clients < 1:
        raise BadSetting(f"num-clients must be at least 1, got {num_clients}")
    if name == "natural":
        return _as_tensors(_natural(_ids_of(ids, labels), num_clients))
    if len(labels) < MIN_SAMPLES * num_clients:
        raise BadSetting(
            f"num-clients must leave at least {MIN_SAMPLES} samples a client, "
            f"got {num_clients} clients for {len(labels)} samples"
        )
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    random = np.random.Generator(np.random.PCG64(seed))
    # classes are numbered by position among the labels that occur
    classes, positions = np.unique(labels.cpu().numpy(), return_inverse=True)
    members = [np.flatnonzero(positions == m) for m in range(len(classes))]
    if name == "iid":
        parts = _deal(random.permutation(len(labels)), num_clients)
    elif name == "dirichlet":
        parts = _dirichlet(members, num_clients, value, random)
    elif name == "bias":
        parts = _bias(members, num_clients, value, random)
    elif name == "one-class":
        parts = _one_class(members, num_clients, random)
    else:
        parts = _shards(members, num_clients, int(value), random)
    smallest = min(range(num_clients), key=lambda client: len(parts[client]))
    if len(parts[smallest]) < MIN_SAMPLES:
        raise BadSetting(
            f"partition '{spec}' must leave at least {MIN_SAMPLES} samples a client, got "
            f"{len(parts[smallest])} at client {smallest} of {num_clients}; use fewer clients"
        )
    return _as_tensors(parts)


def parse(spec: str) -> tuple[str, float]:
    """Return a partition's name and number (0 where it takes none), checked without any data.

    Raises:
        BadSetting: If the spec is unknown or its number is missing or out of range.
    """
    name, colon, text = spec.partition(":")
    if name in ("iid", "one-class", "natural") and not colon:
        return name, 0.0
    if name not in ("dirichlet", "bias", "shards") or not text:
        raise BadSetting(f"partition must be one of {', '.join(SPECS)}, got '{spec}'")
    try:
        value = int(text) if name == "shards" else float(text)
    except ValueError:
        value = math.nan
    rules = {
        "dirichlet": (0 < value < math.inf, "alpha of dirichlet must be a positive number"),
        "bias": (0 < value <= 1, "probability of bias must be above 0 and at most 1"),
        "shards": (value >= 1, "number of shards must be a whole number of at least 1"),
    }
    kept, rule = rules[name]
    if not kept:
        raise BadSetting(f"{rule}, got '{text}' in '{spec}'")
    return name, value


def _dirichlet(
    members: list[_Indices], num_clients: int, alpha: float, random: np.random.Generator
) -> list[_Indices]:
    sizes = np.array([len(indices) for indices in members])
    most = 0
    for _ in range(MAX_DRAWS):
        # shares (classes, clients); cuts are where a class's list is divided between clients
        shares = random.dirichlet(np.full(num_clients, alpha), size=len(members))
        cuts = np.rint(np.cumsum(shares, axis=1) * sizes[:, None]).astype(np.int64)
        cuts[:, -1] = sizes
        counts = np.diff(cuts, axis=1, prepend=0).sum(axis=0)
        if counts.min() >= MIN_SAMPLES:
            return _join(
                [
                    np.split(random.permutation(indices), cut[:-1])
                    for indices, cut in zip(members, cuts, strict=True)
                ]
            )
        most = max(most, int(counts.min()))
    raise BadSetting(
        f"partition 'dirichlet:{alpha:g}' must leave at least {MIN_SAMPLES} samples a client, got "
        f"at most {most} at the smallest of {num_clients} clients in {MAX_DRAWS} draws; "
        "use fewer clients, a larger alpha or more samples"
    )


def _bias(
    members: list[_Indices], num_clients: int, q: float, random: np.random.Generator
) -> list[_Indices]:
    num_classes = len(members)
    _require_client_per_class("bias", num_clients, num_classes)
    pools: list[list[_Indices]] = [[] for _ in members]
    for m, indices in enumerate(members):
        # 1 to num_classes - 1 places after m: every other group, each as likely
        away = random.integers(1, num_classes, size=len(indices)) if num_classes > 1 else 0
        group = (m + np.where(random.random(len(indices)) < q, 0, away)) % num_classes
        for g, pool in enumerate(pools):
            pool.append(indices[group == g])
    parts: list[_Indices] = [np.empty(0, np.int64)] * num_clients
    clients_of = _deal(random.permutation(num_clients), num_classes)
    for clients, pool in zip(clients_of, pools, strict=True):
        shuffled = random.permutation(np.concatenate(pool))
        for client, indices in zip(clients, _deal(shuffled, len(clients)), strict=True):
            parts[client] = indices
    return parts


def _one_class(
    members: list[_Indices], num_clients: int, random: np.random.Generator
) -> list[_Indices]:
    num_classes = len(members)
    _require_client_per_class("one-class", num_clients, num_classes)
    parts: list[_Indices] = [np.empty(0, np.int64)] * num_clients
    for m, indices in enumerate(members):
        clients = range(m, num_clients, num_classes)
        for client, own in zip(
            clients, _deal(random.permutation(indices), len(clients)), strict=True
        ):
            parts[client] = own
    return parts


def _shards(
    members: list[_Indices], num_clients: int, k: int, random: np.random.Generator
) -> list[_Indices]:
    num_samples = sum(len(indices) for indices in members)
    if num_clients * k > num_samples:
        raise BadSetting(
            f"shards:{k} must cut at most one shard a sample, got {num_clients} x {k} shards "
            f"for {num_samples} samples"
        )
    shards = _deal(np.concatenate([random.permutation(i) for i in members]), num_clients * k)
    owners = random.permutation(num_clients * k).reshape(num_clients, k)
    return [np.concatenate([shards[shard] for shard in own]) for own in owners]


def _natural(ids: _Indices, num_clients: int) -> list[_Indices]:
    distinct, counts = np.unique(ids, return_counts=True)
    if num_clients > len(distinct):
        raise BadSetting(
            f"num-clients must be at most the number of ids for partition 'natural', "
            f"got {num_clients} clients for {len(distinct)} ids"
        )
    if num_clients == len(distinct):
        return [np.flatnonzero(ids == own) for own in distinct]
    loads = np.zeros(num_clients, dtype=np.int64)
    owner_of = np.empty(len(distinct), dtype=np.int64)
    for position in np.argsort(-counts, kind="stable"):
        owner_of[position] = loads.argmin()
        loads[owner_of[position]] += counts[position]
    owners = owner_of[np.searchsorted(distinct, ids)]
    return [np.flatnonzero(owners == client) for client in range(num_clients)]


def _ids_of(ids: Tensor | None, labels: Tensor) -> _Indices:
    if ids is None:
        raise BadSetting(
            "partition 'natural' must have a column of ids, got a data set without; "
            "store train_ids in its npz file or choose another partition"
        )
    if ids.shape != labels.shape:
        raise BadSetting(
            f"ids must have the labels' shape {tuple(labels.shape)}, got {tuple(ids.shape)}"
        )
    return ids.cpu().numpy().astype(np.int64)


def _require_client_per_class(name: str, num_clients: int, num_classes: int) -> None:
    if num_clients < num_classes:
        raise BadSetting(
            f"num-clients must be at least the number of classes for partition '{name}', "
            f"got {num_clients} clients for {num_classes} classes"
        )


def _deal(indices: _Indices, num_parts: int) -> list[_Indices]:
    """Return consecutive parts whose sizes differ by at most one."""
    return np.array_split(indices, num_parts)


def _join(pieces: list[list[_Indices]]) -> list[_Indices]:
    """Return each client's pieces (one a class) as one array."""
    return [np.concatenate(own) for own in zip(*pieces, strict=True)]


def _as_tensors(parts: list[_Indices]) -> list[Tensor]:
    return [torch.from_numpy(np.sort(part).astype(np.int64)) for part in parts]
