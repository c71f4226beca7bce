"""What a method declares, and what it must be able to do."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, Self

from flwr.app import ArrayRecord

from client.errors import BadSetting
from client.wire import Rule, at_least, between, positive
from strategies.federation import Federation


@dataclass(frozen=True)
class Needs:
    """What a method asks of the federation, and what it can serve.

    Attributes:
        levels: Levels of request that it serves.
        synthetic_data: Whether nodes need synthetic sets made during training.
        target_online: Whether the nodes that hold the forget data must take part.
        individual_updates: Whether the server must see single nodes' updates.
        sums: Levels at which the sums of all nodes' answers serve: those of secure aggregation.
        server_data: Whether the coordinator needs examples of its own.
        history: Whether updates that clients sent in training must have been kept.
        relearning: Whether what was forgotten can be brought back.
        own_loss: Whether it serves a task with a loss of its own: it asks for gradients alone.
        float_inputs: Whether a gradient must flow to the inputs, as distillation needs.
        head: Whether the network must end in one linear layer.
        channels: Whether the network must be convolutions and linear layers with their norms.
        plain_mean: Whether its rounds weigh the nodes' updates in a way of their own, which no
            other aggregation of a training can stand in for.
    """

    levels: frozenset[str]
    synthetic_data: bool = False
    target_online: bool = True
    individual_updates: bool = False
    sums: frozenset[str] = frozenset()
    server_data: bool = False
    history: bool = False
    relearning: bool = True
    plain_mean: bool = False
    own_loss: bool = False
    float_inputs: bool = False
    head: bool = False
    channels: bool = False


class Method(Protocol):
    """One paper's protocol: a frozen dataclass of its hyper-parameters with two functions."""

    needs: ClassVar[Needs]

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names.

        It is also run on a federation that only writes down what is asked
        (`strategies.rehearsal`), to know beforehand what it takes.

        Raises:
            BadSetting: If it cannot serve such a version at all.
        """

    def relearn(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` with what the request names put back."""


COUNT = at_least(1)
RATE = positive()
PERCENT = between(0.0, 100.0)


def option(default: Any, rule: Rule, words: str) -> Any:
    """Declare a hyper-parameter that must fulfil `rule`.

    Args:
        default: Its value where none is given.
        rule: What any value must fulfil.
        words: What it means, in a line without a full stop; with its unit and the paper's symbol.
    """
    return field(default=default, metadata={"rule": rule, "words": words})


class Hyperparameters:
    """Gives a method's dataclass its `with_values`: options by their kebab-case names."""

    def __post_init__(self) -> None:
        """Check every hyper-parameter, so that a wrong one is refused before any work.

        Raises:
            BadSetting: If one breaks its rule. The message names it, the rule and the value.
        """
        for known in fields(self):  # type: ignore[arg-type]
            rule, value = known.metadata["rule"], getattr(self, known.name)
            if not rule.holds(value):
                shown = f"{value:g}" if isinstance(value, float) else repr(value)
                raise BadSetting(f"{known.name.replace('_', '-')} must {rule.words}, got {shown}")

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
                    f"option must be one of {', '.join(known) or 'none'}, got {name!r}",
                    see="efface methods",
                )
            kind = type(getattr(self, known[name].name))
            try:
                changed[known[name].name] = kind(text)
            except ValueError as error:
                wanted = {int: "a whole number", float: "a number"}.get(kind, "a text")
                raise BadSetting(f"{name} must be {wanted}, got {text!r}") from error
        return replace(self, **changed)  # type: ignore[type-var]
