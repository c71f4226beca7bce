"""The columns of a comparison, from what a cell measured: pure arithmetic on finished results.

It is long because each column is named, headed and computed in this one place.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from server.evidence.costs import AMORTISED, speed_up
from server.evidence.features.scores import FEATURES
from server.evidence.phases import OF_THE_REQUEST

SMOOTHING: Final = 0.1  # percentage points

Row = dict[str, Any]

RETRAINED: Final = "Retrained"  # a row's `method`
FURTHER: Final = f"{RETRAINED}, seed "  # and the seed


@dataclass(frozen=True)
class Column:
    """How a number of a row is shown: heading, digits, and what it is divided by."""

    heading: str
    digits: int = 1
    unit: float = 1.0


COLUMNS: Final[Mapping[str, Column]] = {
    "forget_accuracy": Column("F %"),
    "retain_accuracy": Column("R %"),
    "unlearned_forget_accuracy": Column("F % before recovery"),
    "unlearned_retain_accuracy": Column("R % before recovery"),
    "forget_gap": Column("gap F"),
    "retain_gap": Column("gap R"),
    "forget_gap_in_spreads": Column("gap F / Retrained's spread"),
    "retain_gap_in_spreads": Column("gap R / Retrained's spread"),
    "worst_erased_accuracy": Column("worst erased class %"),
    "class_gap": Column("largest class gap"),
    "kl": Column("KL", 4),
    "total_variation": Column("TV", 3),
    "auc_confidence": Column("attack AUC, confidence", 3),
    "auc_entropy": Column("attack AUC, entropy", 3),
    "auc_modified_entropy": Column("attack AUC, modified entropy", 3),
    "auc_confidence_low": Column("attack AUC, confidence, from", 3),
    "auc_confidence_high": Column("to", 3),
    "member_accuracy": Column("members right %"),
    "auc_rmia": Column("attack AUC, RMIA", 3),
    "attack_tpr": Column("members found at 1 % false alarms, %", 1, 0.01),
    "attack_advantage": Column("loss threshold, advantage", 3),
    "relearning": Column("relearning"),
    "relearning_gap": Column("relearning against Retrained"),
    "blank_head": Column("blank head"),
    "head_back": Column("head back %"),
    "matched_head": Column("matched head %"),
    "turned_head": Column("turned head %"),
    "class_means": Column("class means %"),
    "probe": Column("probe %"),
    "cka_forget": Column("CKA on F", 2),
    "cka_retain": Column("CKA on R", 2),
    "neighbours_forget": Column("neighbours on F", 2),
    "neighbours_retain": Column("neighbours on R", 2),
    "relearned_forget_accuracy": Column("F % relearned"),
    "relearned_retain_accuracy": Column("R % relearned"),
    "relearn_seconds": Column("relearn s", 2),
    "epsilon": Column("epsilon", 2),
    "rounds": Column("rounds", 0),
    "retrained_rounds": Column("Retrained's rounds to that R", 0),
    "samples": Column("samples", 0),
    "seconds": Column("time s", 2),
    "guard_seconds": Column("its checks s", 2),
    "client_seconds": Column("client s", 2),
    "bytes_up": Column("up MB", 2, 1e6),
    "bytes_down": Column("down MB", 2, 1e6),
    "up_percent": Column("up a round and client, % of the model"),
    "storage_bytes": Column("storage MB", 2, 1e6),
    "train_seconds": Column("training s"),
    "overhead_seconds": Column("training overhead s"),
    "overhead_percent": Column("overhead % of training"),
    "speed_up": Column("speed-up"),
    "speed_up_checked": Column("with its checks"),
    **{f"speed_up_{q}": Column(f"over {q}") for q in AMORTISED},
}
FORGETTING: Final = (
    *("forget_accuracy", "retain_accuracy", "forget_gap", "retain_gap", "retain_gap_in_spreads"),
    *("kl", "total_variation", "auc_confidence", "auc_entropy", "relearning"),
    *("blank_head", "head_back", "matched_head", "turned_head", "class_means", "probe"),
)
COSTS: Final = (
    *("rounds", "samples", "seconds", "guard_seconds", "client_seconds", "bytes_up", "bytes_down"),
    *("storage_bytes", "overhead_seconds", "speed_up", "speed_up_checked"),
    *(f"speed_up_{q}" for q in AMORTISED),
)
USUAL: Final = (*FORGETTING, *COSTS)
# Shown in the second part of a wide table, if a recipe asks for them.
OF_COSTS: Final = frozenset(
    {*COSTS, "retrained_rounds", "up_percent", "relearn_seconds", "train_seconds"}
    | {"overhead_percent"}
)
WHERE: Final = ("partition", "partition_seed", "sweep", "seed", "level", "step")
KEYS: Final = (*WHERE, "method", "state", "reason")
NOTES: Final = ("jobs", "peak_bytes", "commit", "hardware")


# ---- arithmetic ---------------------------------------------------------------------------------


def distribution(accuracies: Sequence[float]) -> list[float]:
    """Return class-wise accuracies as shares of their sum, each raised by `SMOOTHING` before.

    Without that, a class at 0 % in one model alone would be infinitely far.
    """
    raised = [accuracy + SMOOTHING for accuracy in accuracies]
    return [value / sum(raised) for value in raised]


def kl_divergence(method: Sequence[float], retrained: Sequence[float]) -> float:
    """Return KL(method || Retrained) in nats, of their class-wise accuracy distributions.

    Wang et al. 2022 (https://arxiv.org/abs/2110.11794, table 5) report it without its direction;
    this one grows where the method still knows a class that Retrained does not.
    """
    pairs = zip(distribution(method), distribution(retrained), strict=True)
    return max(0.0, sum(p * math.log(p / q) for p, q in pairs))


def total_variation(method: Sequence[float], retrained: Sequence[float]) -> float:
    """Return the total-variation distance of those distributions, 0 to 1."""
    pairs = zip(distribution(method), distribution(retrained), strict=True)
    return 0.5 * sum(abs(p - q) for p, q in pairs)


def speed_ups(retrain: float, request: float, overhead: float) -> dict[str, float]:
    """Return the columns of a speed-up (`server.evidence.costs.speed_up`)."""
    found = speed_up(retrain, request, overhead)
    amortised = {f"speed_up_{count}": factor for count, factor in found.amortised.items()}
    return {"speed_up": retrain / request, **amortised}


def spread(groups: Iterable[Sequence[float]]) -> float | None:
    """Return the standard deviation within groups, pooled.

    None below two degrees of freedom: of two values alone it says next to nothing.
    """
    groups = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if freedom < 2:
        return None
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in groups)
    return math.sqrt(squares / freedom)


# ---- rows ---------------------------------------------------------------------------------------


def rows(results: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return the tidy table: Original, Retrained and every method, of each cell and level.

    Args:
        results: What cells kept (see `server.bench.cells`), in the order of the table.
    """
    found: list[Row] = []
    opened = set()
    for result in results:
        place = tuple(result[key] for key in WHERE)
        record = result.get("record") or {}
        if place not in opened and record.get("original") and result["oracle"] is None:
            opened.add(place)
            if result["step"] == 1:  # later requests start from what the method left
                found.append(_original(result))
            if record["retrained"]:
                found.append(_retrained(result))
        found.append(_oracle(result) if result["oracle"] is not None else _method(result))
    _compare_with_spread(found)
    return found


def _head(result: Mapping[str, Any], name: str) -> Row:
    row: Row = dict.fromkeys((*KEYS, *COLUMNS, *NOTES))
    return row | {key: result.get(key) for key in (*KEYS, *NOTES)} | {"method": name}


def _scores(row: Row, scores: Mapping[str, Any], against: Mapping[str, Any] | None) -> None:
    """Put a model's accuracies into its row, and how far they are from Retrained's."""
    for side in ("forget", "retain"):
        row[f"{side}_accuracy"] = mine = scores[f"{side}_accuracy"]
        theirs = against and against[f"{side}_accuracy"]
        row[f"{side}_gap"] = None if mine is None or theirs is None else mine - theirs
    row["relearning"] = curve_mean(scores)
    if against is None:
        return
    theirs = curve_mean(against)
    if row["relearning"] is not None and theirs is not None:
        row["relearning_gap"] = row["relearning"] - theirs
    pairs = [
        (mine, other)
        for mine, other in zip(
            scores["per_class_accuracy"], against["per_class_accuracy"], strict=True
        )
        if mine is not None and other is not None
    ]
    if pairs:
        mine, other = zip(*pairs, strict=True)
        row["class_gap"] = max(abs(m - o) for m, o in pairs)
        row["kl"], row["total_variation"] = kl_divergence(mine, other), total_variation(mine, other)


def _original(result: Mapping[str, Any]) -> Row:
    row = _head(result, "Original")
    record = result["record"]
    _scores(row, record["original"], record["retrained"])
    _attack(row, result, "original")
    _below(row, record, "original")
    row |= {"train_seconds": result["train_seconds"], "epsilon": result.get("train_epsilon")}
    return row


def further_retrained(seed: int) -> str:
    """Return what a Retrained that was trained from another seed is called, in `method`."""
    return f"{FURTHER}{seed}"


def is_further_retrained(method: str) -> bool:
    """Return whether a row's `method` is a Retrained of another seed, which serves the spread."""
    return method.startswith(FURTHER)


def is_retrained(method: str) -> bool:
    """Return whether a row's `method` is Retrained, of the cell's own seed or of another."""
    return method == RETRAINED or is_further_retrained(method)


def _retrained(result: Mapping[str, Any]) -> Row:
    row = _head(result, RETRAINED)
    record = result["record"]
    _scores(row, record["retrained"], None)
    _attack(row, result, "retrained")
    _below(row, record, "retrained")
    _costs(row, record, ("retrain",))
    row |= {"storage_bytes": 0, "overhead_seconds": 0.0, "guard_seconds": 0.0}
    speed_ups = ("speed_up", "speed_up_checked", *(f"speed_up_{q}" for q in AMORTISED))
    row |= dict.fromkeys(speed_ups, 1.0)
    return row


def _oracle(result: Mapping[str, Any]) -> Row:
    """Return the row of a Retrained that was trained from another seed."""
    row = _head(result, further_retrained(result["oracle"]))
    if result["state"] == "done":
        _scores(row, result["record"]["recovered"], None)
        _costs(row, result["record"], OF_THE_REQUEST)
    return row


def _method(result: Mapping[str, Any]) -> Row:
    row = _head(result, result["method"])
    row |= {"storage_bytes": result["storage_bytes"], "train_seconds": result["train_seconds"]}
    row["overhead_seconds"] = overhead = result["overhead_seconds"]
    row["overhead_percent"] = 100.0 * overhead / result["plain_seconds"]
    if result["state"] != "done":
        return row
    record = result["record"]
    row["epsilon"] = highest_epsilon(record)
    _scores(row, record["recovered"], record["retrained"])
    _attack(row, result, "recovered")
    _below(row, record, "result")
    _costs(row, record, OF_THE_REQUEST)
    classes = record["recovered"]["per_class_accuracy"]
    erased = [*record["erased_before"], *record["forget"]["classes"]]
    row["worst_erased_accuracy"] = max((classes[c] or 0.0 for c in erased), default=None)
    if record["unlearned"]:
        for side in ("forget", "retain"):
            row[f"unlearned_{side}_accuracy"] = record["unlearned"][f"{side}_accuracy"]
    if record["retrained"]:
        row["retrained_rounds"] = rounds_to(
            record["retrained"]["timeline"], record["recovered"]["retain_accuracy"]
        )
        if row["seconds"] > 0:
            retrain = record["seconds"]["retrain"]
            row |= speed_ups(retrain, row["seconds"], overhead)
            row["speed_up_checked"] = retrain / (row["seconds"] + row["guard_seconds"])
    relearned = result.get("relearn") or {}
    if "record" in relearned:
        for side in ("forget", "retain"):
            row[f"relearned_{side}_accuracy"] = relearned["record"]["relearned"][f"{side}_accuracy"]
        row["relearn_seconds"] = relearned["record"]["seconds"]["relearn"]
    return row


def _attack(row: Row, result: Mapping[str, Any], model: str) -> None:
    found = (result.get("attack") or {}).get(model) or {}
    kinds = ("confidence", "entropy", "modified-entropy", "confidence-low", "confidence-high")
    for kind in (*kinds, "rmia"):
        row[f"auc_{kind.replace('-', '_')}"] = found.get(kind)
    row["attack_tpr"], row["attack_advantage"] = found.get("tpr"), found.get("advantage")
    row["member_accuracy"] = found.get("member-accuracy")


_BELOW: Final = (
    *("head_back", "matched_head", "turned_head", "class_means", "probe"),
    *("neighbours_forget", "neighbours_retain"),
)


def _below(row: Row, record: Mapping[str, Any], model: str) -> None:
    """Put what a model knows below its last layer into its row, where it was measured."""
    found = (record.get("features") or {}).get(model)
    if not found:
        return
    row["blank_head"] = found["blank_head"] and found["blank_head"]["mean"]
    for key in _BELOW:
        row[key] = found.get(key)
    for layer in found["layers"]:
        if layer["name"] == FEATURES:
            row["cka_forget"], row["cka_retain"] = layer["forget"], layer["retain"]


def _costs(row: Row, record: Mapping[str, Any], phases: Sequence[str]) -> None:
    def total(costs: Mapping[str, float]) -> float:
        return sum(costs.get(phase, 0) for phase in phases)

    row["rounds"] = total({**record["rounds"], "score": 0})  # scoring trains nothing
    row["guard_seconds"] = record["seconds_measuring"].get("guard", 0.0)
    for key in ("samples", "seconds", "client_seconds"):
        row[key] = total(record[key])
    for way in ("up", "down"):
        row[f"bytes_{way}"] = total({p: sizes[way] for p, sizes in record["bytes"].items()})
    # Of the rounds alone: asking for scores sends no parameters.
    trains = [phase for phase in phases if phase != "score"]
    up = sum(record["bytes"].get(phase, {"up": 0})["up"] for phase in trains)
    rounds = sum(record["rounds"].get(phase, 0) for phase in trains)
    if record["model_bytes"] and record["num_clients"]:
        row["up_percent"] = (
            100 * up / max(1, rounds) / record["num_clients"] / record["model_bytes"]
        )


def highest_epsilon(record: Mapping[str, Any]) -> float | None:
    """Return the epsilon of the client that told most by then; None where nothing was noised."""
    return max((spent["epsilon"] for spent in record.get("privacy", {}).values()), default=None)


def curve_mean(scores: Mapping[str, Any]) -> float | None:
    """Return a relearning curve's mean over its 30 steps, None if it was not measured."""
    curve = scores.get("relearning_curve")
    return None if curve is None else float(curve["mean"])


def rounds_to(timeline: Sequence[Mapping[str, Any]], accuracy: float | None) -> int | None:
    """Return after how many rounds the retain accuracy was first that high, None for never."""
    if accuracy is None:
        return None
    return min((n["round"] for n in timeline if n["retain_accuracy"] >= accuracy), default=None)


def _compare_with_spread(found: list[Row]) -> None:
    """Read every gap against the spread of Retrained models that differ in their seed alone.

    Seeds that share the partition are such; so are a cell's Retrained and its oracles. Where no
    two differ in the seed alone, the spread is taken over all seeds, partitions included.
    """
    for side in ("forget", "retain"):
        groups: dict[tuple[Any, ...], dict[Any, list[float]]] = {}
        for row in found:
            value = row[f"{side}_accuracy"]
            if is_retrained(row["method"]) and row["state"] == "done":
                group = groups.setdefault(_alike(row), {})
                if value is not None:
                    group.setdefault(row["partition_seed"], []).append(value)
        for row in found:
            by_seed = groups.get(_alike(row), {})
            known = spread(by_seed.values()) or spread(
                [[v for group in by_seed.values() for v in group]]
            )
            if known and row[f"{side}_gap"] is not None and row["method"] != "Original":
                row[f"{side}_gap_in_spreads"] = row[f"{side}_gap"] / known


def _alike(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("partition", "sweep", "level", "step"))
