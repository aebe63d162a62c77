"""Schema of params.yaml: one class per section, one documented field per setting."""

import inspect
import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import (
    AfterValidator,
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
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Section(BaseModel):
    # strict: `epochs: "20"` and `threads: true` are mistakes, not numbers
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def partial_section(section: type[Section]) -> type[Section]:
    """Return a copy of a section in which every key, at every depth, is optional."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        nested = inspect.isclass(kind) and issubclass(kind, Section)
        kind = partial_section(kind) if nested else field.rebuild_annotation()
        fields[name] = (kind, Field(None, description=field.description))
    return pydantic.create_model(f"Partial{section.__name__}", __base__=Section, **fields)


def _text_keys(weights: dict[Any, Any]) -> dict[str, Any]:
    return {str(name): weight for name, weight in weights.items()}


# The type of the value selects the member of the union, so that an error message is about the
# intended member. Tags in brackets are removed from error messages.
ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("[word]")]
    # YAML reads a class named 7 as a number
    | Annotated[dict[str, Positive], BeforeValidator(_text_keys), Tag("[weights]")],
    Discriminator(lambda value: "[weights]" if isinstance(value, dict) else "[word]"),
]


# an int is a number of images, a float a share of them, as in scikit-learn
TrainSize = Annotated[
    Annotated[int, Field(ge=1), Tag("[images]")]
    | Annotated[float, Field(gt=0, le=1), Tag("[share]")],
    Discriminator(lambda value: "[images]" if isinstance(value, int) else "[share]"),
]


class Augment(Section):
    """Random changes of the training images, sampled again each time an image is shown."""

    flip: Literal["horizontal", "vertical", "both", "alternating"] | None
    """Flip half of the images horizontally, vertically or both; alternating: flip each image
    horizontally in every other epoch"""
    shift: Share
    """Shift by up to this share of height and width; new pixels repeat the edge"""
    resized_crop: Annotated[float, Field(gt=0, lt=1)] | None
    """Smallest share of the area of a random crop, which is resized to the original size; null:
    off"""
    crop: Annotated[int, Field(ge=0)]
    """Pad each side by this many pixels, then crop to the original size at random"""
    crop_fill: Literal["zeros", "reflect"]
    """Padding of crop"""
    rotation: Annotated[float, Field(ge=0, le=180)]
    """Rotate by up to this many degrees in either direction"""
    brightness: Share
    """Add up to this share of white, or subtract it"""
    contrast: Share
    """Change the contrast by up to this share"""
    saturation: Share
    """Change the saturation by up to this share"""
    hue: Annotated[float, Field(ge=0, le=0.5)]
    """Change the hue by up to this share of the color circle, in either direction"""
    rand_augment: Annotated[float, Field(ge=0, le=1)]
    """Strength of two random operations on each image; 0: off"""
    cutout: Share
    """Erase a rectangle of this share of the area"""

    @property
    def alternates(self) -> bool:
        """Whether batches must mark the images to mirror."""
        return self.flip == "alternating"

    @property
    def changes_images(self) -> bool:
        """Whether any change is on."""
        return any(value for name, value in self if name != "crop_fill")


class FineTune(Section):
    """A second phase of training, in which frozen layers are trained too."""

    freeze: Annotated[str, Field(min_length=1)]
    """The last layer or block that stays frozen, or none; batch normalization always does"""
    epochs: Annotated[int, Field(ge=1)]
    """Passes over the training images, after those of the first phase"""
    learning_rate: Positive
    """Learning rate of the second phase, at the peak of the schedule"""


class Train(Section):
    train_size: TrainSize | None
    """Number (an int) or share (a float, 1.0: all) of the training images to train on; null: all"""
    epochs: Annotated[int, Field(ge=1)]
    """Passes over the training images"""
    batch_size: Annotated[int, Field(ge=1)]
    """Images per step"""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"]
    """Optimizer"""
    learning_rate: Positive
    """Learning rate, at the peak of the schedule"""
    momentum: Share
    """Momentum of sgd and rmsprop"""
    nesterov: bool
    """Nesterov momentum, for sgd"""
    weight_decay: NotNegative | None
    """Decoupled weight decay; null: the optimizer's default"""
    weight_decay_exclude: list[Literal["bias", "beta", "gamma"]]
    """Weights without weight decay: biases, and shift and scale of batch normalization"""
    muon_learning_rate: Positive | None
    """Learning rate of convolutions with Muon, at the peak of the schedule; null: off"""
    batch_norm_beta_learning_rate: Positive
    """Factor on the learning rate of batch normalization's shift (beta)"""
    lookahead: Annotated[int, Field(ge=1)] | None
    """Steps after which the weights are averaged with those that were averaged before; null: off"""
    schedule: Literal["constant", "cosine", "linear", "one_cycle", "triangular"]
    """Learning-rate schedule"""
    warmup_epochs: NotNegative
    """Epochs of linear warm-up from 0"""
    gradient_clip: Literal["norm", "global_norm", "value"] | None
    """Gradient clipping: by each norm, by the norm of all together, or by value; null: off"""
    gradient_clip_at: Positive
    """Limit for gradient_clip: the largest norm or value"""
    loss: Literal["cross_entropy", "focal"]
    """Loss that training minimizes; focal: well-classified images weigh less"""
    label_smoothing: Share
    """Share of the target probability spread evenly over all classes"""
    class_weights: ClassWeights | None
    """balanced, or one weight per class name; null: all images weigh the same"""
    precision: Precision
    """Numeric precision; auto: bfloat16, float16 or float32, the first that the device supports"""
    ema_momentum: Annotated[float, Field(gt=0, lt=1)] | None
    """Momentum of the moving average of the weights; null: no average"""
    whiten: bool
    """Initialize the first convolution with whitening filters of the images, and freeze it"""
    whiten_bias_epochs: Annotated[int, Field(ge=0)]
    """Epochs in which the biases of the whitening filters are trained"""
    early_stopping: Annotated[int, Field(ge=1)] | None
    """Stop after this many epochs without a better validation accuracy; null: off"""
    fine_tune: FineTune | None
    """Train frozen layers too, in a second phase; null: off"""
    augment: Augment
    """Data augmentation"""

    def of_second_phase(self, fine_tune: FineTune) -> "Train":
        """Return the settings of the second phase: these, without what starts a training."""
        changes: dict[str, Any] = {
            "epochs": fine_tune.epochs,
            "learning_rate": fine_tune.learning_rate,
        }
        changes |= {"warmup_epochs": 0.0, "whiten": False, "whiten_bias_epochs": 0}
        return self.model_copy(update=changes)

    def overridden_by(self, overrides: Section) -> "Train":
        """Return these settings, overridden by those that a partial section sets."""
        common, changes = self.model_dump(), overrides.model_dump(exclude_unset=True)
        augment = {**common["augment"], **changes.pop("augment", {})}
        return Train.model_validate({**common, **changes, "augment": augment})

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "Train":
        if self.momentum and self.optimizer not in ("sgd", "rmsprop"):
            raise ValueError(
                f"has a momentum, which {self.optimizer} does not support: set it to 0"
            )
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum):
            raise ValueError("has nesterov, which needs sgd with a momentum: set it to false")
        if self.muon_learning_rate and not (self.optimizer == "sgd" and self.momentum):
            raise ValueError(
                "has muon_learning_rate, which needs sgd with a momentum: set it to null"
            )
        if self.whiten_bias_epochs and not self.whiten:
            raise ValueError("has whiten_bias_epochs, which needs whiten: set it to 0")
        if self.warmup_epochs and self.schedule in ("one_cycle", "triangular"):
            raise ValueError(
                f"has warmup_epochs, but {self.schedule} has its own warm-up: set it to 0"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError("must have fewer warmup_epochs than epochs")
        return self


PartialTrain: Any = partial_section(Train)


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
    """Overrides under `build:` that every architecture takes; None changes nothing."""

    downscale: Annotated[int, Field(ge=1)] | None = None
    """Average squares of this many by this many pixels before the network"""
    padding: Literal["valid", "same"] | None = None
    """Padding of convolutions"""
    pooling: Literal["max", "average"] | None = None
    """Kind of the pooling layers"""
    activation: Activation | None = None
    """Activation of hidden layers"""
    kernel_initializer: Literal[Initializer, "dirac"] | None = None
    """Initial weights of convolutions and dense layers; dirac: of convolutions only"""
    kernel_stddev: Positive | None = None
    """Standard deviation of random_normal and truncated_normal; Keras's default: 0.05"""
    bias_initializer: Initializer | None = None
    """Initial biases of convolutions and dense layers; Keras's default: zeros"""
    kernel_regularizer: Literal["l1", "l2", "l1_l2"] | None = None
    """Penalty on the weights, added to the loss"""
    kernel_regularizer_factor: NotNegative | None = None
    """Factor of the penalty; null: 0.01, as in Keras"""
    max_norm: Positive | None = None
    """Largest norm of the weights of one filter or unit"""
    batch_norm: bool | None = None
    """true: batch normalization at each hidden activation; false: none"""
    batch_norm_position: Literal["before", "after"] | None = None
    """Position relative to the activation; null: before"""
    batch_norm_momentum: Share | None = None
    """Momentum of the moving averages; Keras's default: 0.99"""
    batch_norm_epsilon: Positive | None = None
    """Added to the variance; Keras's default: 0.001"""
    batch_norm_beta_initializer: Initializer | None = None
    """Initial shift after normalization; Keras's default: zeros"""
    batch_norm_gamma_initializer: Initializer | None = None
    """Initial scale after normalization; Keras's default: ones"""

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
    # Any key is allowed here; params.check_model checks the keys against the architecture's file.
    build: Annotated[
        dict[str, Any],
        WithJsonSchema({**LayerOverrides.model_json_schema(), "additionalProperties": True}),
    ] = {}
    """Settings of the architecture, and overrides that every architecture takes"""
    train: PartialTrain = PartialTrain()
    """Training settings that differ from the common ones"""
    from_model: Annotated[str, Field(min_length=1)] | None = None
    """File in pretrained/ to start from: a saved model (transfer) or weights (pretrained)"""


# NAME or NAME/CONFIGURATION, such as emnist/letters
DatasetName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?$")
]
Pixels = Annotated[int, Field(ge=1)]


def _reject_one_number(size: Any) -> Any:
    if type(size) is int:
        raise ValueError(f"must be [height, width]. Got {size}. Write [{size}, {size}]")
    return size


FileName = Annotated[str, Field(min_length=1)]


class Preprocess(Section):
    normalize: Literal["unit", "standardize"]
    """unit: pixels / 255; standardize: per channel, with statistics of the training images"""
    image_size: Annotated[
        Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None,
        BeforeValidator(_reject_one_number),
    ]
    """[height, width] in pixels to resize to; null: no resizing"""
    resize: Literal["stretch", "crop", "pad"]
    """stretch: change the aspect ratio; crop: keep it, and cut off what extends beyond image_size;
    pad: keep it, and fill the rest with black"""
    dtype: Literal["float32", "uint8"]
    """Type in which arrays are stored; stages read the same float32 values from both"""
    on_bad_image: Literal["error", "skip"]
    """error: stop and list them; skip: leave them out and report their number"""
    intensity_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    """[low, high]: pixel values mapped to 0 and 255 in grayscale images of more than 8 bits; null:
    the lowest and highest pixel value of the training images"""
    max_megapixels: Positive
    """Larger images count as bad"""
    exclude: FileName | None
    """File in corrections/ with the ids of images to leave out"""
    relabel: FileName | None
    """CSV file in corrections/ with the correct label (a class name) of images, by id"""

    @pydantic.field_validator("intensity_range")
    @classmethod
    def _check_ascending(cls, value: list[float] | None) -> list[float] | None:
        if value and value[0] >= value[1]:
            raise ValueError(f"must be [low, high] with low < high. Got {value}")
        return value


def _check_pattern(pattern: str) -> str:
    try:
        count = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"must be a regular expression. Got {pattern!r}: {error}") from None
    if count != 1:
        raise ValueError(
            f"must have one group in parentheses, (…), and others as (?:…). Got {count}"
        )
    return pattern


class Split(Section):
    method: Literal["holdout", "folds"]
    """holdout: each seed holds out its own random images; folds: each seed holds out another fold
    of the training images, so that each image is held out once"""
    validation: Share
    """Share of the training images held out for validation by holdout, unless the data set has the
    split; 0: none"""
    group: Annotated[str, Field(min_length=1)] | None
    """Column of metadata.csv: images with the same value are never divided between splits; null:
    off"""
    group_pattern: Annotated[str, AfterValidator(_check_pattern)] | None
    """Regular expression with one group in parentheses: as group, for the text that it finds in an
    image's id; null: off"""

    @property
    def holds_out(self) -> bool:
        """Whether images are held out of a data set without a validation split."""
        return self.method == "folds" or self.validation > 0

    @pydantic.model_validator(mode="after")
    def _has_one_grouping(self) -> "Split":
        if self.group is not None and self.group_pattern is not None:
            raise ValueError("has group and group_pattern: set one of them to null")
        return self


class Evaluate(Section):
    mirror: bool
    """Average the logits of each image and its horizontal mirror image"""
    shift: Annotated[int, Field(ge=0)]
    """Average the logits of each image and of the image shifted by this many pixels"""
    precision: Precision
    """Numeric precision; auto: bfloat16, float16 or float32, the first that the device supports"""


class Analyze(Section):
    models: list[str] | None
    """Models to draw, names in `compare`; null: the first and the last"""
    pictures: list[Literal["layers", "feature_maps", "grad_cam", "flow", "kernels", "filters"]]
    """Pictures to draw of each model"""


class Gate(Section):
    floor: Annotated[float, Field(ge=0, le=1)] | None
    """Lowest accepted test accuracy of the champion; null: off"""


class Range(Section):
    """A range of numbers that a search samples."""

    low: float
    """Smallest value"""
    high: float
    """Largest value"""
    log: bool = False
    """Sample evenly on a logarithmic scale"""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"must have low < high. Got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"must have low > 0, because of log: true. Got {self.low:g}")
        return self


def _searched(section: type[Section]) -> WithJsonSchema:
    """Return the JSON Schema of a mapping of settings to the values that a search tries."""
    return WithJsonSchema({
        "type": "object",
        "properties": {
            name: {"description": field.description} for name, field in section.model_fields.items()
        },
        "patternProperties": {"": {"type": ["array", "object"]}},
    })  # fmt: skip


class SearchSpace(Section):
    # search_space.py checks the keys and values against the settings of the model.
    build: Annotated[dict[str, Any], _searched(LayerOverrides)] = {}
    """Settings of the architecture to search: a list of values, or {low, high}"""
    train: Annotated[dict[str, Any], _searched(Train)] = {}
    """Training settings to search: a list of values, or {low, high}"""


def _distinct(values: list[Any]) -> list[Any]:
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"must not repeat a value. Got {repeated[0]} twice")
    return values


Distinct = AfterValidator(_distinct)
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[list[Seed], Field(min_length=1), Distinct]


class Params(Section):
    seeds: Seeds
    """Seeds of the trainings of each model"""
    compare: Annotated[list[Name], Field(min_length=1), Distinct]
    """The models to train and compare, names in `models`; the first is the reference"""
    margin: Annotated[float, Field(gt=0, lt=100)]
    """Largest difference in test accuracy, in percentage points, that counts as equally good"""
    backend: Literal["tensorflow", "jax"]
    """Keras backend"""
    threads: Annotated[int, Field(ge=1)]
    """CPU threads of each training"""
    dataset: DatasetName
    """digits, folder, or an image-classification data set of TFDS: NAME or NAME/CONFIGURATION"""
    folder: Annotated[str, Field(min_length=1)]
    """For `dataset: folder`: a folder with train/<class>/* and test/<class>/*, or only <class>/*"""
    test_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the images held out as test split if the data set has none"""
    test_seed: Seed
    """Seed of the choice of these test images"""
    preprocess: Preprocess
    """How images are converted to arrays"""
    split: Split
    """How validation images are held out"""
    train: Train
    """Training settings of all models; a model can override any of them"""
    evaluate: Evaluate
    """Evaluation of all models on the test images"""
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    """All models that `compare` can name"""
    champion: str
    """auto (best mean validation accuracy), or a name in `compare`"""
    analyze: Analyze
    """Pictures that show the inside of the models"""
    gate: Gate
    """Requirements of the gate on the champion"""
    search: dict[Name, SearchSpace] = {}
    """Values that `make search` tries, for each model in `models` that has some"""

    def pictures_of(self, model: str) -> list[str]:
        """Return the pictures to draw of one model."""
        chosen = self.analyze.models
        if chosen is None:
            chosen = [self.compare[0], self.compare[-1]]
        return list(self.analyze.pictures) if model in chosen else []

    def train_of(self, model: str) -> Train:
        """Return the training settings of one model: the common ones with its overrides."""
        return self.train.overridden_by(self.models[model].train)
