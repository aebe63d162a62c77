"""Compute the gradients of one training step without changing the weights."""

import keras
import numpy as np


class _RecordGradients(keras.optimizers.Optimizer):
    """Record the gradient of each weight, and leave the weights unchanged."""

    def build(self, variables: list) -> None:
        super().build(variables)
        self.gradients = self.add_optimizer_variables(variables, "gradient")

    def update_step(self, gradient, variable, learning_rate) -> None:
        self.assign(self.gradients[self._get_variable_index(variable)], gradient)


def gradients(
    model: keras.Model, inputs: np.ndarray, targets: np.ndarray, loss
) -> list[np.ndarray]:
    """Return the gradient of a loss with respect to each trainable weight.

    An optimizer records the gradients. Deriving them from changed weights would lose a step of
    1e-12 to rounding in float32.

    Args:
        model: Uncompiled. It is compiled here, and its moving averages are updated once.
        inputs: One batch of the model's inputs. Dropout is active, and batch normalization uses
            the statistics of the batch.
        targets: `(b, k)`.
        loss: Between targets and logits: a function, or a `keras.Loss`.

    Returns:
        One array for each of `model.trainable_variables`, in float64, since the square of 1e-25
        would be 0 in float32.
    """
    optimizer = _RecordGradients(learning_rate=1.0)
    model.compile(optimizer, loss, run_eagerly=True)  # tracing a graph takes longer than one step
    model.train_on_batch(inputs, targets)
    arrays = map(keras.ops.convert_to_numpy, optimizer.gradients)
    return [gradient.astype(np.float64) for gradient in arrays]


def l2_norm(values: np.ndarray) -> float:
    """Return the L2 norm of an array of any shape.

    Not np.linalg.norm: its sum is split over all CPU cores, so the last digits depend on them.
    """
    return float(np.sqrt(np.square(values).sum()))
