"""What a request's messages say, from its settings."""

from collections.abc import Mapping
from typing import Any

from client import wire
from client.learning.models import ModelSpec
from client.wire import ForgetSpec
from server.settings import RunSettings
from strategies.federation import Plan
from strategies.parts.schedule import Cosine


def common(
    settings: RunSettings,
    spec: ModelSpec,
    erased: Mapping[str, Any],
    *,
    forget: ForgetSpec,
    request: str,
    lineage: str,
) -> dict[str, Any]:
    """Return the values that every message of a request carries (`client.wire.Common`).

    Args:
        settings: Of the request: data, model and machine.
        spec: The model that it starts from.
        erased: "classes" and "clients" that earlier requests removed.
        forget: What the nodes leave out or forget.
        request: Its unique name.
        lineage: Of the version that it starts from.
    """
    removes = settings.mode in ("forget", "yardstick", "verify") and forget.level != "none"
    return {
        "fingerprint": wire.fingerprint(),
        "request": request,
        "lineage": lineage,
        "method": settings.method if removes else "",
        **settings.common(spec),
        "scale": settings.scale,
        "sums_only": settings.secure_aggregation,
        "forget_level": forget.level,
        "forget_classes": list(forget.classes),
        "forget_clients": list(forget.clients),
        "erased_classes": list(erased["classes"]),
        "erased_clients": list(erased["clients"]),
    }


def plan_of(settings: RunSettings) -> Plan:
    """Return how a version of these settings is trained."""
    s = settings
    rates = Cosine(s.lr, s.final_lr, s.rounds) if s.final_lr else None
    return Plan(s.rounds, s.fraction, s.min_share, s.over_select, rates)


def ordinary(settings: RunSettings) -> dict[str, Any]:
    """Return the settings of an ordinary round of training (`client.steps.training.Fit`).

    Where the learning rate falls in training, an ordinary round is one as at its end: the rounds
    that a method takes after it go on from there.
    """
    return {
        "steps": settings.local_steps,
        "epochs": settings.local_epochs,
        "batch_size": settings.batch_size,
        "lr": settings.ordinary_lr,
        "momentum": settings.momentum,
        "weight_decay": settings.weight_decay,
        "proximal": settings.proximal,
        "scale": 0,  # synthetic sets are made in the first training only
    }
