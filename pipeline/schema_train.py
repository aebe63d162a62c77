"""Schema train: the settings of training, and which of them go together."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Discriminator, Field, Tag

from pipeline.schema_section import NotNegative, Positive, Precision, Section, Share, partial


def _text_keys(weights: dict[Any, Any]) -> dict[str, Any]:
    return {str(name): weight for name, weight in weights.items()}


# told apart by the kind of value, so that an error is about the one that was meant; tags in
# brackets do not show in it
ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("[word]")]
    # a class called 7 is a number to YAML
    | Annotated[dict[str, Positive], BeforeValidator(_text_keys), Tag("[weights]")],
    Discriminator(lambda value: "[weights]" if isinstance(value, dict) else "[word]"),
]


class Augment(Section):
    """Random changes of the training images, drawn anew each time an image is shown."""

    flip: Literal["horizontal", "vertical", "both", "alternating"] | None
    """Mirror half of the images left to right, upside down, or either way; alternating: each
    left to right in every other epoch"""
    shift: Share
    """Move by up to this share of height and width; what comes in repeats the edge"""
    crop: Annotated[int, Field(ge=0)]
    """Pad by this many pixels a side and cut the old size out at random"""
    crop_fill: Literal["zeros", "reflect"]
    """What crop pads with"""
    rotation: Annotated[float, Field(ge=0, le=180)]
    """Turn by up to this many degrees either way"""
    cutout: Share
    """Erase a rectangle of this share of the area"""

    @property
    def alternates(self) -> bool:
        """Whether batches must say which images to mirror."""
        return self.flip == "alternating"


class Train(Section):
    epochs: Annotated[int, Field(ge=1)]
    """Passes over the training images"""
    batch_size: Annotated[int, Field(ge=1)]
    """Images per step"""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"]
    """How gradients change the weights"""
    learning_rate: Positive
    """Step size, at the peak of the schedule"""
    momentum: Share
    """Of sgd and rmsprop"""
    nesterov: bool
    """Of sgd: the gradient where momentum leads to, and not where it comes from"""
    weight_decay: NotNegative | None
    """Decoupled, of kernels alone; null: the optimizer's own"""
    schedule: Literal["constant", "cosine", "one_cycle", "triangular"]
    """How the learning rate changes during training"""
    warmup_epochs: NotNegative
    """Epochs in which the learning rate climbs from 0"""
    gradient_clip: Literal["norm", "global_norm", "value"] | None
    """Limit each gradient's norm, the norm of all together, or each value; null: off"""
    gradient_clip_at: Positive
    """The largest norm or value"""
    loss: Literal["cross_entropy", "focal"]
    """What training minimizes; focal: images that are already right count less"""
    label_smoothing: Share
    """Share of the target spread evenly over the classes"""
    class_weights: ClassWeights | None
    """balanced, or a weight by class name; null: every image counts alike"""
    precision: Precision
    """What to compute in; auto: bfloat16 where GPU or processor do it well"""
    ema_momentum: Annotated[float, Field(gt=0, lt=1)] | None
    """Share kept at each step of the moving average of the weights; null: the weights alone"""
    whiten: bool
    """Set the first convolution to whitening filters of the training images, and freeze it"""
    early_stopping: Annotated[int, Field(ge=1)] | None
    """Epochs without a better validation accuracy before stopping; null: off"""
    augment: Augment
    """Random changes of the training images"""

    def under(self, own: Section) -> "Train":
        """Return these settings with those on top that a partial section has set."""
        common, on_top = self.model_dump(), own.model_dump(exclude_unset=True)
        augment = {**common["augment"], **on_top.pop("augment", {})}
        return Train.model_validate({**common, **on_top, "augment": augment})

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "Train":
        if self.momentum and self.optimizer not in ("sgd", "rmsprop"):
            raise ValueError(f"has a momentum, which {self.optimizer} does not take: set it to 0")
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum):
            raise ValueError("has nesterov, which needs sgd with a momentum: set it to false")
        if self.warmup_epochs and self.schedule in ("one_cycle", "triangular"):
            raise ValueError(f"has warmup_epochs, and {self.schedule} its own: set it to 0")
        if self.warmup_epochs >= self.epochs:
            raise ValueError("must have fewer warmup_epochs than epochs")
        return self


PartialTrain: Any = partial(Train)
