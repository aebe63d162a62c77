"""Gradients: those of one step, which changes no weight."""

import keras
import numpy as np


class _KeepGradients(keras.optimizers.Optimizer):
    """Keep each weight's gradient beside it and leave the weight as it is."""

    def build(self, variables: list) -> None:
        super().build(variables)
        self.gradients = self.add_optimizer_variables(variables, "gradient")

    def update_step(self, gradient, variable, learning_rate) -> None:
        self.assign(self.gradients[self._get_variable_index(variable)], gradient)


def gradients(
    model: keras.Model, inputs: np.ndarray, targets: np.ndarray, loss
) -> list[np.ndarray]:
    """Return the gradient of a loss with respect to each weight that is trained.

    Taken from an optimizer, and not from what a step changes: in float32 a step of 1e-12
    would be lost in the weight.

    Args:
        model: Uncompiled; compiled here, and its moving averages take a step.
        inputs: One batch as the model takes it, with dropout, and batch normalization by the
            batch itself.
        targets: `(b, k)`.
        loss: Between targets and logits: a function, or a `keras.Loss`.

    Returns:
        An array for each of `model.trainable_variables`, float64: the square of 1e-25 is none
        in float32.
    """
    optimizer = _KeepGradients(learning_rate=1.0)
    model.compile(optimizer, loss, run_eagerly=True)  # one step: not worth a graph
    model.train_on_batch(inputs, targets)
    kept = map(keras.ops.convert_to_numpy, optimizer.gradients)
    return [gradient.astype(np.float64) for gradient in kept]
