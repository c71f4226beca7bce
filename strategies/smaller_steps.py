"""What to change where a method's steps went so far that loss or weights are no numbers."""

from dataclasses import asdict, is_dataclass
from typing import Any

from strategies.method import Method


def smaller_steps(
    method: Method, phase: str, level: str, *, lr: float, final_lr: float = 0.0
) -> str:
    """Return the option that makes the steps of a phase smaller, and its value now.

    Args:
        method: With the request's options.
        phase: In which it happened: "unlearn", "recover", "relearn", ...
        level: Of the request.
        lr: Of the version's training, which is that of ordinary rounds.
        final_lr: To which it fell; ordinary rounds then have this one. 0 where it stayed.
    """
    known: dict[str, Any] = asdict(method) if is_dataclass(method) else {}
    names = [*_of(phase, level)]
    if phase in ("unlearn", "recover"):  # recovery by ordinary rounds, from where that led
        names += [*_of("unlearn", level), "lr", "eta_u"]
    for name in names:
        if name in known:
            return _said(f"--set {name.replace('_', '-')}=", known[name], final_lr or lr, name)
    if final_lr:
        return (
            f"these rounds take the version's own rates, {lr:g} falling to {final_lr:g}: train "
            "again with a lower --lr and --final-lr"
        )
    return f"these rounds take the version's own lr, {lr:g}: train again with a lower --lr"


def _of(phase: str, level: str) -> list[str]:
    """Return what a phase's learning rate may be called, at a level first."""
    return [*([f"client_{phase}_lr"] if level == "client" else []), f"{phase}_lr"]


def _said(option: str, now: float, lr: float, name: str) -> str:
    # Where training itself had to go in smaller steps still, a tenth would be finite and no better.
    less = min(now / 10, lr) if name.endswith("lr") else now / 10
    return f"try smaller steps, such as {option}{less:g} (now {now:g})"
