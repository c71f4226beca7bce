"""Recovery that does not let the forgotten data creep back.

Published QuickDrop runs show a forgotten class at 7 % again after five recovery rounds that never
saw it: the retained classes pull its features back. So every recovery round is checked on the
holders' held-out forget data before it counts.
"""

from flwr.app import ArrayRecord

from client.errors import EffaceError
from strategies.federation import Federation
from strategies.rounds import AscentRounds, RecoveryRounds

MAX_ROLLBACKS = 3


class CreptBack(EffaceError):
    """Recovery brought the forgotten data back, whatever was tried."""


def guarded_recovery(
    federation: Federation,
    model: ArrayRecord,
    ascent: AscentRounds,
    recovery: RecoveryRounds,
    *,
    num_rounds: int,
    threshold: float,
) -> ArrayRecord:
    """Return the model after `num_rounds` recovery rounds of which none let it creep back.

    A round after which the forget accuracy exceeds `threshold` is rolled back; the holders climb
    once more from the model before it, and the round is tried again.

    Args:
        federation: Runs the rounds and measures.
        model: The model after unlearning.
        ascent: How the holders climb.
        recovery: How the nodes recover.
        num_rounds: Recovery rounds that must hold.
        threshold: Forget accuracy in percent that is still accepted; 100 switches the guard off.

    Raises:
        CreptBack: If a round had to be rolled back more than `MAX_ROLLBACKS` times.
    """
    rollbacks = 0
    completed = 0
    while completed < num_rounds:
        candidate = federation.run("recover", recovery, model, num_rounds=1)
        accuracy = None if threshold >= 100 else federation.forget_accuracy(candidate)
        if accuracy is None or accuracy <= threshold:
            model = candidate
            completed += 1
            continue
        rollbacks += 1
        if rollbacks > MAX_ROLLBACKS:
            raise CreptBack(
                f"forget accuracy after recovery must be at most {threshold:g} %, got "
                f"{accuracy:.1f} % after {MAX_ROLLBACKS} rollbacks; climb longer (unlearn-epochs) "
                "or recover less (recover-epochs)"
            )
        model = federation.run("unlearn", ascent, model, num_rounds=1)
    return model
