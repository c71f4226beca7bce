"""Recovery that brings back what is retained, and does not let the forgotten data creep back.

Published QuickDrop runs show a forgotten class at 7 % again after five recovery rounds that never
saw it: the retained classes pull its features back. And an ascent of fixed depth destroys more of
one model than of another. So every recovery round is checked on the nodes' held-out data: what
was forgotten must stay away, and recovery goes on while the rest is still coming back.
"""

import math
from collections.abc import Callable

from flwr.app import ArrayRecord

from client.errors import EffaceError
from strategies.federation import Federation
from strategies.rounds.base import AscentRounds, RecoveryRounds

MAX_ROLLBACKS = 6  # three are too few for a class of all of CIFAR-10
MAX_MORE_ROUNDS = 6
MAX_IN_VAIN = 2  # of those: few held-out examples make an accuracy jump from round to round


class CreptBack(EffaceError):
    """Recovery brought the forgotten data back, whatever was tried.

    Attributes:
        model: What it ended with: to be measured, not to be served.
        accuracy: Its forget accuracy in percent, on the nodes' held-out data.
        threshold: What was accepted at most.
    """

    def __init__(
        self, message: str, *, model: ArrayRecord, accuracy: float, threshold: float
    ) -> None:
        super().__init__(message)
        self.model, self.accuracy, self.threshold = model, accuracy, threshold

    code = "crept-back"


def guarded_recovery(
    federation: Federation,
    model: ArrayRecord,
    ascent: Callable[[int], AscentRounds],
    recovery: RecoveryRounds,
    *,
    num_rounds: int,
    threshold: float,
    wanted: float | None = None,
    remedy: str = "ascend longer (unlearn-epochs) or recover less (recover-epochs)",
) -> ArrayRecord:
    """Return the model after recovery rounds of which none let it creep back.

    A round after which the forget accuracy exceeds `threshold` is rolled back; the holders ascend
    once more from the model before it, and the round is tried again. Rounds beyond `num_rounds`
    are a bonus: the first that lets it creep back is left out, and recovery ends; it ends, too,
    after `MAX_IN_VAIN` in a row that brought nothing, with the best model by then.

    Args:
        federation: Runs the rounds and measures.
        model: The model after unlearning.
        ascent: How the holders ascend after the n-th rollback, n from 1.
        recovery: How the nodes recover.
        num_rounds: Recovery rounds that must hold.
        threshold: Forget accuracy in percent that is still accepted; 100 accepts any.
        wanted: Retain accuracy in percent for which at most `MAX_MORE_ROUNDS` rounds more are run;
            None for none.
        remedy: What to change if nothing helps.

    Raises:
        CreptBack: If a round had to be rolled back more than `MAX_ROLLBACKS` times.
    """
    rollbacks = completed = in_vain = 0
    back, crept = wanted is None, False
    best, most = model, -math.inf  # of the rounds that held, and its retain accuracy
    while completed < num_rounds or (completed < num_rounds + MAX_MORE_ROUNDS and not back):
        candidate = federation.run("recover", recovery, model, num_rounds=1)
        if threshold >= 100 and wanted is None:  # nothing to watch
            model = best = candidate
            completed += 1
            continue
        found = federation.accuracies(candidate)
        if found.forget is None or found.forget <= threshold:
            model, completed = candidate, completed + 1
            retain = math.inf if found.retain is None else found.retain
            back = wanted is None or retain >= wanted
            if completed <= num_rounds or retain > most:
                best, most, in_vain = model, retain, 0
            else:
                in_vain += 1
                if in_vain == MAX_IN_VAIN:
                    break
            continue
        if completed >= num_rounds:
            crept = True
            federation.say("recover: the last round brought the forgotten back: left out")
            break
        rollbacks += 1
        if rollbacks > MAX_ROLLBACKS:
            raise CreptBack(
                f"forget accuracy after recovery must be at most {threshold:g} %, got "
                f"{found.forget:.1f} % after {MAX_ROLLBACKS} rollbacks; {remedy}",
                model=candidate,
                accuracy=found.forget,
                threshold=threshold,
            )
        model = federation.run("unlearn", ascent(rollbacks), model, num_rounds=1)
    if in_vain:
        which = f"the last {in_vain} rounds" if in_vain > 1 else "the last round"
        if crept:  # after which there is but one
            which = "the round before it"
        federation.say(f"recover: {which} brought no more accuracy: left out")
    if wanted is not None and -math.inf < most < wanted:
        short = f"{most:.1f} % of held-out data, {wanted:.1f} was the aim"
        federation.say(f"recover: retain accuracy ends at {short}")
    return best


def retained(federation: Federation, model: ArrayRecord, tolerance: float) -> float | None:
    """Return the retain accuracy to recover: that of `model` less `tolerance` points."""
    accuracy = federation.accuracies(model).retain
    return None if accuracy is None else accuracy - tolerance
