"""Schema model: an architecture, how it is built, and what differs in its training."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, WithJsonSchema

from pipeline.schema_section import Name, NotNegative, Positive, Section, Share
from pipeline.schema_train import PartialTrain

Initializer = Literal[
    "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform",
    "lecun_normal", "random_uniform", "random_normal", "truncated_normal", "orthogonal",
    "zeros", "ones",
]  # fmt: skip
WITH_STDDEV = ("random_normal", "truncated_normal")
Activation = Literal[
    "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid"
]


class Knobs(Section):
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
    def _fits_together(self) -> "Knobs":
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
        WithJsonSchema({**Knobs.model_json_schema(), "additionalProperties": True}),
    ] = {}
    """The architecture's own settings, and those that every architecture takes"""
    train: PartialTrain = PartialTrain()
    """Training settings that differ from the common ones"""


class Finetuned(Model):
    from_model: Annotated[str, Field(min_length=1)]
    """A file of weights, or a saved model, to start from"""
