"""Extended optimizer: Keras's, with lookahead, Muon, and a learning rate of its own for beta.

Reference: Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back" (2019),
    https://arxiv.org/abs/1907.08610; as used here, like the rate of beta: Jordan, "94% on CIFAR-10
    in 3.29 Seconds on a Single GPU" (2024), https://arxiv.org/abs/2404.00498
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024),
    https://kellerjordan.github.io/posts/muon
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras
from keras import ops

# Share of the slow weights that a lookahead step keeps at the end of training. Before, it grows
# with the cube of the share of the training that is over (Jordan 2024, with lookahead 5).
LOOKAHEAD_SHARE = 0.95**5
# Of Muon (Jordan 2024): coefficients of the polynomial a s + b s³ + c s⁵, which applied ITERATIONS
# times maps singular values s in (0, 1] to about 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 3


def extended(base: type[keras.Optimizer]) -> type[keras.Optimizer]:
    """Return a class of optimizers that also takes the arguments below."""

    class Extended(base):
        def __init__(
            self,
            *,
            beta_factor: float,
            lookahead: int | None,
            steps: int,
            muon_factor: float | None = None,
            frozen_from: Mapping[str, int] = MappingProxyType({}),
            **config: Any,
        ):
            """Args:
            beta_factor: Factor on the learning rate of batch normalization's shift, beta.
            lookahead: Number of steps after which the weights and the slow weights are both set to
                their weighted mean; None: off. The last step of the training is one of these.
            steps: Number of steps of the whole training.
            muon_factor: Factor on the learning rate of Muon, which trains the kernels of
                convolutions; the base class must be SGD with a momentum. None: off.
            frozen_from: Path of variables, and the step from which each is not trained.
            config: Of the base class.
            """
            super().__init__(**config)
            self.beta_factor, self.lookahead, self.steps = beta_factor, lookahead, steps
            self.muon_factor, self.frozen_from = muon_factor, frozen_from

        def build(self, variables: list[keras.Variable]) -> None:
            if self.built:
                return
            super().build(variables)
            self._factors = [self.beta_factor if v.name == "beta" else 1.0 for v in variables]
            self._limits = [self.frozen_from.get(v.path) for v in variables]
            if self.lookahead:
                self._slow = self.add_optimizer_variables(variables, "slow")
                for slow, variable in zip(self._slow, variables, strict=True):
                    slow.assign(ops.copy(variable))  # in JAX, both would share their memory

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            index = self._get_variable_index(variable)
            if self.muon_factor and len(variable.shape) == 4:
                self._muon_step(gradient, variable, learning_rate * self.muon_factor)
                return
            if self._factors[index] != 1:
                learning_rate *= self._factors[index]
            if (limit := self._limits[index]) is None:
                super().update_step(gradient, variable, learning_rate)
                return
            before = ops.copy(variable)
            super().update_step(gradient, variable, learning_rate)
            trained = self.iterations < limit
            self.assign(variable, ops.where(trained, ops.copy(variable), before))

        def _muon_step(self, gradient: Any, kernel: Any, learning_rate: Any) -> None:
            """Scale a kernel to the norm of an orthogonal one, and add an orthogonal update."""
            momentum = self.momentums[self._get_variable_index(kernel)]
            velocity = self.momentum * momentum + gradient
            self.assign(momentum, velocity)
            update = gradient + self.momentum * velocity if self.nesterov else velocity
            step = orthogonalize(ops.reshape(update, (-1, kernel.shape[-1])))
            norm = math.sqrt(min(step.shape))
            scaled = ops.copy(kernel) * norm / (ops.norm(ops.reshape(kernel, -1)) + 1e-7)
            self.assign(kernel, scaled - learning_rate * ops.reshape(step, kernel.shape))

        def apply(self, grads: Any, trainable_variables: Any = None) -> None:
            super().apply(grads, trainable_variables)
            if not self.lookahead:
                return
            due = (self.steps - self.iterations) % self.lookahead == 0
            progress = ops.cast(self.iterations, "float32") / self.steps
            share = ops.where(due, 1 - LOOKAHEAD_SHARE * progress**3, 0.0)
            for slow, variable in zip(self._slow, self._trainable_variables, strict=True):
                average = slow + share * (variable - slow)
                slow.assign(average)
                variable.assign(ops.where(due, average, ops.copy(variable)))

    return Extended


def orthogonalize(matrix: Any) -> Any:
    """Return a matrix `(m, n)` with the same singular vectors, and singular values of about 1."""
    if matrix.shape[0] < matrix.shape[1]:
        return ops.transpose(orthogonalize(ops.transpose(matrix)))
    a, b, c = COEFFICIENTS
    x = matrix / (ops.norm(matrix) + 1e-7)
    for _ in range(ITERATIONS):
        square = ops.matmul(ops.transpose(x), x)
        x = a * x + ops.matmul(x, b * square + c * ops.matmul(square, square))
    return x
