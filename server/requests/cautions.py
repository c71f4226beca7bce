"""What is said of a request before it starts, and in its dry run: what it would break."""

import torch

from client.errors import BadSetting
from client.learning.distillation import NOISE
from server.format import class_text, target_text
from server.requests.classes import card_names
from server.requests.forgotten import target
from server.requests.planning import Situation
from server.settings import RunSettings
from server.storage.ledger import Ledger, RequestRow

KNOWS_NOTHING = 5.0  # percent: a class below it was never learned


def check_left(situation: Situation) -> None:
    """Refuse to forget the last clients.

    Raises:
        BadSetting: If no client with data would be left.
    """
    forget = situation.settings.forget
    if forget.level != "client":
        return
    gone = {*forget.clients, *situation.base.card["erased"]["clients"]}
    counts = _counts(situation)
    if counts is None:
        left = situation.settings.num_participants - len(gone)
    else:
        left = sum(int(row.sum()) > 0 for name, row in counts.items() if name not in gone)
    if left < 1:
        raise BadSetting(
            f"request must leave at least one client with data, got none beside {forget}; what "
            "nobody may keep is a model to withdraw, not to unlearn"
        )


def cautions(situation: Situation, ledger: Ledger, same: RequestRow | None) -> list[str]:
    """Return what to know before a request starts.

    Args:
        situation: The request on its version.
        ledger: The home's.
        same: The interrupted request that it takes up, if there is one.
    """
    return [
        *_held_by_nobody_else(situation),
        *_nothing_to_show(situation),
        *_passed_by(situation, ledger, same),
    ]


def unmatched(settings: RunSettings) -> list[str]:
    """Return what to know before a training: sets that would stay the noise they start as."""
    s = settings
    at_most = RunSettings()
    moved = s.image_lr > at_most.image_lr or s.image_steps > at_most.image_steps
    if not s.scale or s.image_start != NOISE or moved:
        return []
    return [
        "synthetic sets that start as noise need a larger rate and more steps, or they stay noise: "
        f"got image-lr {s.image_lr:g} and image-steps {s.image_steps}; tried were --image-lr 1 "
        "--image-steps 10"
    ]


def _counts(situation: Situation) -> dict[str, torch.Tensor] | None:
    """Return how many examples of each class every simulated client has; None of real ones."""
    if situation.shares is None or situation.data is None:
        return None
    labels, classes = situation.data.train.labels, situation.spec.num_classes
    return {
        f"client-{position}": labels[share].bincount(minlength=classes)
        for position, share in enumerate(situation.shares)
        if situation.settings.takes_part(f"client-{position}")
    }


def _held_by_nobody_else(situation: Situation) -> list[str]:
    forget, erased = situation.settings.forget, situation.base.card["erased"]
    counts = _counts(situation)
    if counts is None or situation.settings.mode != "forget":
        return []
    there = {name: row for name, row in counts.items() if name not in erased["clients"]}
    nothing = torch.zeros(situation.spec.num_classes, dtype=torch.int64)
    before = sum(there.values(), nothing)
    after = sum((row for name, row in there.items() if name not in forget.clients), nothing)
    gone = {*erased["classes"], *forget.classes}
    alone = [c for c in range(len(nothing)) if before[c] and not after[c] and c not in gone]
    if not alone:
        return []
    names = card_names(situation.base.card)
    holds = "holds" if len(forget.clients) == 1 else "hold"
    return [
        f"{forget} alone {holds} all examples of {target_text({'classes': alone}, names)}: without "
        "them the model will lose what nobody else can teach it"
    ]


def _nothing_to_show(situation: Situation) -> list[str]:
    s = situation.settings
    each = (situation.base.card.get("scores") or {}).get("per_class_accuracy") or []
    limit = min(s.max_forget_accuracy, KNOWS_NOTHING)
    names = card_names(situation.base.card)
    return [
        f"nothing to show: {situation.base.id} never knew {class_text(c, names)}, its "
        f"accuracy on it is {each[c]:.1f} % already"
        for c in s.forget.classes
        if s.mode == "forget" and c < len(each) and each[c] is not None and each[c] <= limit
    ]


def _passed_by(situation: Situation, ledger: Ledger, same: RequestRow | None) -> list[str]:
    if situation.settings.trial or situation.settings.mode == "yardstick":
        return []  # nothing is superseded by it
    base, found = situation.base, []
    for row in ledger.requests(base.federation, state="interrupted"):
        if row.kind == "train" or row.settings["trial"] or (same and same.id == row.id):
            continue
        what = f"{row.id} ({row.kind} {target(row)}) was interrupted on {row.base_version}"
        if row.base_version == base.id:
            what += (
                " and is passed by: once this request is done it can go on no more. Finish it "
                "first with the same command"
            )
        else:
            what += ", which serves no more: it cannot go on. Ask for the same anew"
        found.append(f"{what}, or give it up: efface requests --abort {row.id}")
    return found
