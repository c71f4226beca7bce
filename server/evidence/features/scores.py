"""What was measured below the last layer of a request's models."""

from dataclasses import dataclass
from typing import Final, Literal

from server.evidence.scores import Curve

FEATURES: Final = "features"  # the last layer's input, as a layer's name
Reason = Literal["no-last-layer", "too-few-images"]


@dataclass(frozen=True)
class Layer:
    """Linear CKA with Retrained of one layer's output, 0 to 1, on forget and on retain images."""

    name: str = ""
    forget: float | None = None
    retain: float | None = None


@dataclass(frozen=True)
class FeatureScores:
    """What one model knows below its last layer. None is what was not measured.

    Attributes:
        head_back: Forget accuracy in percent with Original's rows of the last layer.
        blank_head: Relearning curve from a last layer that says nothing of the forgotten classes.
        class_means: Forget accuracy in percent by the nearest class mean.
        probe: Forget accuracy in percent of a linear probe on few labelled images.
        matched_head: Forget accuracy in percent with Original's rows of the last layer, and its
            features found one by one.
        turned_head: Likewise, with the features turned onto Original's.
        layers: Likeness to Retrained from the first layer to the features; empty of Retrained.
        neighbours_forget: Share of the nearest neighbours at the features that are Retrained's,
            too, from 0 to 1, on forget images.
        neighbours_retain: On retain images.
        named: The classes that whoever holds Original and this model would name as forgotten, by
            their answers on retain images (`server.evidence.attacks.which_class`); empty of
            Original, and where it was not asked.
    """

    head_back: float | None = None
    blank_head: Curve | None = None
    class_means: float | None = None
    probe: float | None = None
    layers: tuple[Layer, ...] = ()
    neighbours_forget: float | None = None
    neighbours_retain: float | None = None
    matched_head: float | None = None
    turned_head: float | None = None
    named: tuple[int, ...] = ()

    @property
    def blank_mean(self) -> float | None:
        """Mean of the curve from a blank head, None where it was not measured."""
        return None if self.blank_head is None else self.blank_head.mean

    @property
    def at_features(self) -> Layer:
        """Likeness at the last layer's inputs."""
        return next((layer for layer in self.layers if layer.name == FEATURES), Layer())


@dataclass(frozen=True)
class FeatureMeasures:
    """The measures of three models, or why they do not apply.

    Attributes:
        original: The model before the request.
        retrained: The yardstick; None if there was none.
        result: What the request ended with.
        classes: Of a request for clients, the classes that only these held, of which the measures
            are; empty where the request names classes.
        why_not: "no-last-layer": the network does not end in one Linear; "too-few-images": a side
            has fewer than two test images. Then the three are None.
        examples: How many test images of what was forgotten the accuracies are on; 0 where clients
            measured, and in records of an earlier Efface.
    """

    original: FeatureScores | None = None
    retrained: FeatureScores | None = None
    result: FeatureScores | None = None
    why_not: Reason | None = None
    classes: tuple[int, ...] = ()
    examples: int = 0
