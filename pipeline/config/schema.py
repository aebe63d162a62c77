"""Schema: the classes that params.yaml must fit; each setting says what it means."""

import inspect
from typing import Annotated, Any, Literal

import pydantic
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    # strict: `epochs: "20"` and `seed: true` are mistakes, not numbers
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def partial(section: type[Section]) -> type[Section]:
    """Return a section of the same keys, each of which may be left out, at every depth."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        nested = inspect.isclass(kind) and issubclass(kind, Section)
        kind = partial(kind) if nested else field.rebuild_annotation()
        fields[name] = (kind, Field(None, description=field.description))
    return pydantic.create_model(f"Partial{section.__name__}", __base__=Section, **fields)


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


Initializer = Literal[
    "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform",
    "lecun_normal", "random_uniform", "random_normal", "truncated_normal", "orthogonal",
    "zeros", "ones",
]  # fmt: skip
WITH_STDDEV = ("random_normal", "truncated_normal")
Activation = Literal[
    "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid"
]


class LayerOverrides(Section):
    """Settings under `build:` that every architecture takes; None: as its file has it."""

    padding: Literal["valid", "same"] | None = None
    """Of convolutions"""
    pooling: Literal["max", "average"] | None = None
    """What pooling layers take of a window"""
    activation: Activation | None = None
    """Of hidden layers"""
    kernel_initializer: Literal[Initializer, "dirac"] | None = None
    """Of convolutions and dense layers; dirac: of convolutions"""
    kernel_stddev: Positive | None = None
    """Of random_normal and truncated_normal; Keras's is 0.05"""
    bias_initializer: Initializer | None = None
    """Of convolutions and dense layers; Keras's default: zeros"""
    kernel_regularizer: Literal["l1", "l2", "l1_l2"] | None = None
    """A penalty on the weights, added to the loss"""
    kernel_regularizer_factor: NotNegative | None = None
    """null: 0.01, as in Keras"""
    max_norm: Positive | None = None
    """Largest norm of the weights into one filter or unit"""
    batch_norm: bool | None = None
    """true: one beside each hidden activation; false: none"""
    batch_norm_position: Literal["before", "after"] | None = None
    """Of the activation; null: before"""
    batch_norm_momentum: Share | None = None
    """Share of the old moving average kept at each step; Keras's default: 0.99"""
    batch_norm_epsilon: Positive | None = None
    """Added to the variance; Keras's default: 0.001"""
    batch_norm_beta_initializer: Initializer | None = None
    """Of the shift after normalization; Keras's default: zeros"""
    batch_norm_gamma_initializer: Initializer | None = None
    """Of the scale after normalization; Keras's default: ones"""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "LayerOverrides":
        if self.kernel_stddev and self.kernel_initializer not in WITH_STDDEV:
            raise ValueError(
                f"has kernel_stddev, which needs kernel_initializer {' or '.join(WITH_STDDEV)}"
            )
        if self.kernel_regularizer_factor is not None and not self.kernel_regularizer:
            raise ValueError("has kernel_regularizer_factor, which needs kernel_regularizer")
        if self.batch_norm_position and not self.batch_norm:
            raise ValueError("has batch_norm_position, which needs batch_norm: true")
        return self


class Model(Section):
    architecture: Name
    """A file of pipeline/architectures/, without .py"""
    # any key: the architecture's own settings are checked when its file is known
    build: Annotated[
        dict[str, Any],
        WithJsonSchema({**LayerOverrides.model_json_schema(), "additionalProperties": True}),
    ] = {}
    """The architecture's own settings, and those that every architecture takes"""
    train: PartialTrain = PartialTrain()
    """Training settings that differ from the common ones"""


class Finetuned(Model):
    from_model: Annotated[str, Field(min_length=1)]
    """A file of weights, or a saved model, to start from"""


# with the name of a configuration, or without: emnist/letters
DatasetName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?$")
]
Pixels = Annotated[int, Field(ge=1)]


def _not_one_side(size: Any) -> Any:
    if type(size) is int:
        raise ValueError(f"must be [height, width]. Got {size}. Write [{size}, {size}]")
    return size


class Preprocess(Section):
    normalize: Literal["unit", "standardize"]
    """unit: pixels / 255; standardize: per channel, with the training images' statistics"""
    image_size: Annotated[
        Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None,
        BeforeValidator(_not_one_side),
    ]
    """[height, width] in pixels, or null: as they are"""
    dtype: Literal["float32", "uint8"]
    """How arrays are stored; stages read the same float32 from both"""
    on_bad_image: Literal["error", "skip"]
    """error: stop and name them; skip: leave them out and count them"""
    intensity_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    """[low, high] that become 0 and 255 of grey images of more than 8 bits; null: lowest and
    highest pixel of these training images"""
    max_megapixels: Positive
    """Images with more are bad"""

    @pydantic.field_validator("intensity_range")
    @classmethod
    def _ascends(cls, value: list[float] | None) -> list[float] | None:
        if value and value[0] >= value[1]:
            raise ValueError(f"must be [low, high] with low < high. Got {value}")
        return value


class Split(Section):
    validation: Annotated[float, Field(gt=0, lt=1)]
    """Share of the training images held out for validation, if the data set brings no such split"""


class Evaluate(Section):
    mirror: bool
    """Average the logits of each image and of its mirror image, left to right"""
    precision: Precision
    """What to predict in; auto: bfloat16 where GPU or processor do it well"""


class Analyze(Section):
    models: list[str] | None
    """Of which models; null: all of two, of more the reference and the last"""
    pictures: list[Literal["layers", "feature_maps", "grad_cam", "flow", "kernels", "filters"]]
    """What is drawn of each"""


class Gate(Section):
    floor: Annotated[float, Field(ge=0, le=1)] | None
    """Least accuracy of the champion on the test images; null: off"""


class Params(Section):
    backend: Literal["tensorflow", "jax"]
    """What Keras computes with"""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Every random choice follows from it"""
    dataset: DatasetName
    """digits, folder, or an image-classification data set of TFDS: NAME or NAME/CONFIGURATION"""
    folder: Annotated[str, Field(min_length=1)]
    """For dataset: folder, where train/<class>/*, validation and test lie, or <class>/*"""
    test_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the images held out as test split where the data set brings none"""
    test_seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Which images these are"""
    preprocess: Preprocess
    """How images become arrays"""
    split: Split
    """How validation images are held out"""
    train: Train
    """How every model is trained; a model may override any of it"""
    evaluate: Evaluate
    """How every model is measured on the test images"""
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    """The models to compare"""
    finetune: dict[Name, Finetuned]
    """More of them, which start from a file of weights"""
    reference: str
    """The name of the model that the others are compared with"""
    champion: str
    """auto (best validation accuracy), or the name of a model"""
    analyze: Analyze
    """What is drawn of the inside of the models"""
    gate: Gate
    """What the gate asks of the champion"""

    @property
    def all_models(self) -> dict[str, Model]:
        return {**self.models, **self.finetune}

    def pictures_of(self, model: str) -> list[str]:
        """What is drawn of the inside of one model."""
        names = list(self.all_models)
        chosen = self.analyze.models
        if chosen is None:
            chosen = names if len(names) <= 2 else [self.reference, names[-1]]
        return list(self.analyze.pictures) if model in chosen else []

    def train_of(self, model: str) -> Train:
        """The training settings of one model: the common ones with its own on top."""
        return self.train.under(self.all_models[model].train)
