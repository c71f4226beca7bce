"""What a site's policy says to one message, before any work is done for it."""

from dataclasses import fields
from pathlib import Path
from typing import Final

from client.budget import NoiseRequired
from client.data.site import NodeConfig
from client.learning.sizes import Size, size_of
from client.messages import Common, ForgetSpec
from client.orders import order_bytes, verify
from client.policy import MAKE_ONE, SUMS, Limits, Policy, PolicyRefused
from client.simulation.settings import Simulation

# Settings of these names count work; `Limits` has the most of each.
COUNTED: Final = frozenset(spec.name for spec in fields(Limits)) - {"parameters", "memory_mb"}
STEPS: Final = "num-steps"  # the metric of all messages that take steps on a site's examples
# Arrays that no example is behind: the classes' names, what the site signs of an order, and steps
# of a sum's own protocol.
WITHOUT_EXAMPLES: Final = frozenset({"class-names", "attestation", "sealed"})


def policy_of(settings: Common, node: NodeConfig) -> Policy:
    """Return the policy of the node that `settings` is addressed to.

    Raises:
        PolicyError, NotPrivate: If the operator's file cannot be used.
        PolicyRefused: If the node has data of its own and no policy.
    """
    if node.get("policy"):
        return Policy.load(Path(str(node["policy"])))
    if node.get("data"):
        raise PolicyRefused(
            f"node config must name a policy beside data, got none; its operator has to {MAKE_ONE}"
        )
    simulation = settings.simulation or Simulation.of_node(node)
    population = "" if simulation is None else simulation.population
    return Policy.simulated(settings.client, population)


def check(policy: Policy, kind: type[Common], settings: Common) -> None:
    """Let a message pass that the policy allows; nothing is loaded, built or drawn for it yet.

    Args:
        policy: Of the node.
        kind: The message's settings class, and with it its declaration.
        settings: What it says.

    Raises:
        PolicyRefused: Naming the rule. A coordinator may read it: it holds no path.
    """
    if not policy.is_real:
        return
    message, answers = kind.message.name, policy.answers
    if settings.client != policy.name:
        raise PolicyRefused(
            f"client must be {policy.name}, as this node's own policy calls it, got "
            f"{settings.client!r}; register the node under that name"
        )
    if answers.serve and message not in answers.serve:
        raise PolicyRefused(
            f"message must be one that {policy.name} serves ({', '.join(answers.serve)}), got "
            f"{message}"
        )
    if settings.forget_level not in ("none", *answers.levels):
        raise PolicyRefused(
            f"forget-level must be one that {policy.name} serves "
            f"({', '.join(answers.levels) or 'none of them'}), got {settings.forget_level}"
        )
    asked = settings.method or ("" if _needs_no_method(settings) else "no method's name")
    if answers.methods and asked and settings.method not in answers.methods:
        raise PolicyRefused(
            f"method must be one that {policy.name} serves ({', '.join(answers.methods)}), got "
            f"{asked}"
        )
    if not in_sums(settings) and answers.updates == SUMS and tells_of_one_site(kind):
        raise PolicyRefused(
            "this site answers in sums only: run with --secure-aggregation, or its operator sets "
            'updates = "single"'
        )
    _check_work(policy, kind, settings)
    _check_size(policy, kind, settings)


def noise_multiplier(policy: Policy, settings: Common) -> float:
    """Return z of what goes up: the message's or the policy's, whichever is more; 0 for none."""
    own = policy.privacy.noise_multiplier if policy.privacy.required else 0.0
    return max(settings.noise_multiplier, own)


def check_noise(policy: Policy, settings: Common) -> None:
    """Let a message pass that needs no noise, or that can be answered under it.

    Raises:
        NoiseRequired: Saying why it cannot.
    """
    if not noise_multiplier(policy, settings):
        return
    if (why := settings.why_not_noised()) is not None:
        whose = "this site's policy requires noise" if policy.privacy.required else "noise is on"
        raise NoiseRequired(f"{why}; {whose}")


def _needs_no_method(settings: Common) -> bool:
    """Return whether a message may name none: it forgets nothing, or brings an order to relearn."""
    return settings.forget_level == "none" or bool(settings.order_signature)


def trains(kind: type[Common]) -> bool:
    """Return whether a message's answer is made by steps on a site's examples, and counts them."""
    return STEPS in kind.message.metrics


def in_sums(settings: Common) -> bool:
    """Return whether the answer goes into a secure aggregation."""
    return getattr(settings, "secure", None) is not None


def tells_of_one_site(kind: type[Common]) -> bool:
    """Return whether an answer holds arrays or per-class numbers of this site alone.

    A description is cut down to what may be told of one instead (see `client.gate`).
    """
    declared = kind.message
    if declared.arrays in WITHOUT_EXAMPLES:
        return False
    return declared.arrays != "none" or "per-class" in declared.metrics.values()


def _check_work(policy: Policy, kind: type[Common], settings: Common) -> None:
    for name in sorted(COUNTED):
        most, value = getattr(policy.limits, name), getattr(settings, name, 0)
        if value > most:
            raise PolicyRefused(
                f"{name.replace('_', '-')} must be at most {most:g} at {policy.name}, got {value:g}"
            )
    least = policy.answers.min_batch
    if trains(kind) and getattr(settings, "batch_size", least) < least:
        raise PolicyRefused(
            f"batch-size must be at least {least} at {policy.name}, got {settings.batch_size}"  # type: ignore[attr-defined]
        )
    if 0 < settings.scale < policy.synthetic.min_scale:
        raise PolicyRefused(
            f"scale must be 0 or at least {policy.synthetic.min_scale} at {policy.name}, got "
            f"{settings.scale}"
        )
    if settings.holdout > policy.data.holdout:
        # A split by the coordinator's choice would tell of the examples that two of them differ by.
        raise PolicyRefused(
            f"holdout must be at most {policy.data.holdout:g} at {policy.name}, got "
            f"{settings.holdout:g}: a site is split once, as its policy says"
        )


def _check_size(policy: Policy, kind: type[Common], settings: Common) -> None:
    size = size_of(settings.model_spec)
    if size.parameters > policy.limits.parameters:
        raise PolicyRefused(
            f"model must have at most {policy.limits.parameters} parameters at {policy.name}, got "
            f"{size.parameters}"
        )
    if not hasattr(settings, "batch_size"):
        return
    needed = megabytes(size, settings.batch_size)
    if needed > policy.limits.memory_mb:
        raise PolicyRefused(
            f"memory must be at most {policy.limits.memory_mb} MB at {policy.name}, got about "
            f"{needed} for batches of {settings.batch_size}; take smaller ones, or a smaller model"
        )


def megabytes(size: Size, batch: int) -> int:
    """Return what a step of training takes, roughly: float32, every layer's map and its gradient.

    The model stands there four times: as it came, as it is trained, its gradient, its momentum.
    """
    return 4 * (4 * size.parameters + 2 * batch * size.activations) // 2**20


def check_order(
    policy: Policy, settings: Common, *, action: str, destroy: bool, target: ForgetSpec
) -> None:
    """Let an order pass that a coordinator signed whose key is pinned here.

    Without pinned keys a site still takes orders to forget, which only ever take data away from
    training: all that lifts or destroys needs a signature.

    Raises:
        PolicyRefused: If it is not signed, or by another.
    """
    if not policy.is_real:
        return
    if not policy.keys.coordinators:
        if action == "forget" and not destroy:
            return
        raise PolicyRefused(
            f"an order to {'destroy' if destroy else action} must be signed, and {policy.name} "
            "pinned no coordinator's key; its operator adds one to [keys] coordinators"
        )
    if not settings.order_signature:
        raise PolicyRefused(
            f"order must be signed by a coordinator that {policy.name} pinned, got no signature"
        )
    content = order_bytes(
        request=settings.request,
        action=action,
        target=target,
        destroy=destroy,
        lineage=settings.lineage,
        time=settings.order_time,
    )
    verify(content, settings.order_signature, policy.keys.coordinators)
