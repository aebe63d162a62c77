"""Schema: the classes that params.yaml must fit. What each value means stands there."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from pipeline.schema_model import Finetuned, Model
from pipeline.schema_section import Name, Positive, Precision, Section
from pipeline.schema_train import Train

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
    dtype: Literal["float32", "float16"]
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


class Inspect(Section):
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
    inspect: Inspect
    """What is drawn of the inside of the models"""
    gate: Gate
    """What the gate asks of the champion"""

    @property
    def all_models(self) -> dict[str, Model]:
        return {**self.models, **self.finetune}

    def pictures_of(self, model: str) -> list[str]:
        """What is drawn of the inside of one model."""
        names = list(self.all_models)
        chosen = self.inspect.models
        if chosen is None:
            chosen = names if len(names) <= 2 else [self.reference, names[-1]]
        return list(self.inspect.pictures) if model in chosen else []

    def train_of(self, model: str) -> Train:
        """The training settings of one model: the common ones with its own on top."""
        return self.train.under(self.all_models[model].train)
