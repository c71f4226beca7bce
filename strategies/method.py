"""What a method declares, and what it must be able to do."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, Self

from flwr.app import ArrayRecord

from client.errors import BadSetting
from strategies.federation import Federation


@dataclass(frozen=True)
class Needs:
    """What a method asks of the federation, and what it can serve.

    Attributes:
        levels: Levels of request that it serves.
        synthetic_data: Whether nodes need synthetic sets made during training.
        target_online: Whether the nodes that hold the forget data must take part.
        individual_updates: Whether the server must see single nodes' updates, which rules out
            secure aggregation.
        relearning: Whether what was forgotten can be brought back.
    """

    levels: frozenset[str]
    synthetic_data: bool = False
    target_online: bool = True
    individual_updates: bool = False
    relearning: bool = True


class Method(Protocol):
    """One paper's protocol: a frozen dataclass of its hyper-parameters with two functions."""

    needs: ClassVar[Needs]

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names."""

    def relearn(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` with what the request names put back."""


class Hyperparameters:
    """Gives a method's dataclass its `with_values`: options by their kebab-case names."""

    def with_values(self, values: dict[str, str]) -> Self:
        """Return the method with some hyper-parameters changed.

        Args:
            values: Text by name in kebab-case, as the command line gives them.

        Raises:
            BadSetting: If a name is unknown or a value is no number of its kind.
        """
        known = {f.name.replace("_", "-"): f for f in fields(self)}  # type: ignore[arg-type]
        changed: dict[str, Any] = {}
        for name, text in values.items():
            if name not in known:
                raise BadSetting(
                    f"option must be one of {', '.join(known) or 'none'}, got {name!r}"
                )
            kind = type(getattr(self, known[name].name))
            try:
                changed[known[name].name] = kind(text)
            except ValueError as error:
                raise BadSetting(f"{name} must be a {kind.__name__}, got {text!r}") from error
        return replace(self, **changed)  # type: ignore[type-var]
