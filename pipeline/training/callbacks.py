"""Callbacks: what happens between the steps and the epochs of a training."""

import math
import time
from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from tqdm import tqdm

from pipeline.core.errors import PipelineError
from pipeline.runtime import distributed
from pipeline.training.checkpoints import Checkpoints, State

COLUMNS = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


class Diverged(PipelineError):
    """The loss is not finite: an error of a training, a result of a study."""


class FirstNotFinite(keras.layers.Layer):
    """Pass logits on, and remember the first training step in which they were not finite.

    Callbacks see many steps at a time (acceleration.STEPS_PER_EXECUTION), this layer each.
    """

    def build(self, input_shape: Any) -> None:
        whole: dict[str, Any] = {"shape": (), "dtype": "int32", "trainable": False}
        self.steps = self.add_weight(name="steps", initializer="zeros", **whole)
        self.first = self.add_weight(name="first", initializer=_minus_one, **whole)

    def compute_output_shape(self, logits_shape):
        return logits_shape  # not found out by tracing `call`, as in acceleration.Lookup

    def call(self, logits, training=None):
        if training:
            first, steps = ops.convert_to_tensor(self.first), ops.convert_to_tensor(self.steps)
            found = ops.logical_and(first < 0, ~ops.all(ops.isfinite(logits)))
            self.first.assign(ops.where(found, steps, first))
            self.steps.assign_add(1)
        return logits


def _minus_one(shape: Any, dtype: Any) -> Any:
    return ops.full(shape, -1, dtype)


class StopWhenNotFinite(keras.callbacks.Callback):
    def __init__(self, first: FirstNotFinite, num_steps: int, rate: Callable[[int], float]):
        """Args:
        first: The layer that watches.
        num_steps: Of an epoch.
        rate: The learning rate of each step, counted from 0 through all epochs.
        """
        super().__init__()
        self.first, self.num_steps, self.rate = first, num_steps, rate

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        if math.isfinite(logs["loss"]):
            return
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()  # until then it holds the weights, not their variables
        step = int(self.first.first)
        if step < 0:  # the logits are finite, a penalty on the weights is not
            step = self.epoch * self.num_steps + batch
        self._stop(step, f"batch {step % self.num_steps + 1} of {self.num_steps}", logs["loss"])

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["val_loss"]):
            self._stop((epoch + 1) * self.num_steps - 1, "validation", logs["val_loss"])

    def _stop(self, step: int, where: str, loss: float) -> None:
        raise Diverged(
            f"{self.model.name}: epoch {self.epoch + 1}, {where}: loss must be finite. Got {loss} "
            f"at learning rate {self.rate(step):.3g}. Lower train.learning_rate, or set "
            "train.gradient_clip"
        )


class Progress(keras.callbacks.Callback):
    """On a terminal, show a bar of the epoch's steps until the epoch is done.

    Keras's own bar counts whole executions: with 36 steps an epoch and 32 an execution it ends
    at 64/36.
    """

    bar: Any = None

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        title = f"epoch {epoch + 1}/{self.params['epochs']}"
        self.bar = tqdm(
            total=self.params["steps"], desc=title, unit="step", leave=False, disable=None
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        self.bar.set_postfix(logs, refresh=False)
        self.bar.update(min(batch + 1, self.params["steps"]) - self.bar.n)

    def on_test_begin(self, logs: dict | None = None) -> None:
        self.bar.refresh()  # full, while validation runs

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar. Where training fails, the error then has a line of its own."""
        if self.bar is not None:
            self.bar.close()


class LineAnEpoch(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        # four numbers: with the learning rate it would not fit into 80 columns
        values = "  ".join(f"{name} {logs[name]:.4f}" for name in COLUMNS[:4])
        print(f"epoch {epoch + 1}/{self.params['epochs']}: {values}", flush=True)


class LearningRate(keras.callbacks.Callback):
    """Keep the learning rate that an epoch ends with among the epoch's numbers."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)


class KeepAverage(keras.callbacks.Callback):
    """Put the moving average of the weights in their place from validation to the next epoch.

    So what is measured, what early stopping restores and what is kept are the same weights.
    Keras's own SwapEMAWeights swaps by adding and subtracting, which rounds both, and where
    training stops early it leaves the wrong ones.
    """

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.own: list[Any] = []

    def on_test_begin(self, logs: dict | None = None) -> None:
        weights = self.model.trainable_variables
        self.own = [ops.copy(weight) for weight in weights]
        self.model.optimizer.finalize_variable_values(weights)
        for weight in weights:
            # JAX shares the average's memory, and evaluation gives away that of the weights
            weight.assign(ops.copy(weight))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        for weight, own in zip(self.model.trainable_variables, self.own, strict=bool(self.own)):
            weight.assign(own)


class KeepBest(keras.callbacks.EarlyStopping):
    """Keras's early stopping by validation accuracy, of one network among a model's layers.

    Of that alone it keeps the best weights, and not of what stands around it.
    """

    def __init__(self, network: keras.Model, patience: int):
        super().__init__("val_accuracy", patience=patience, mode="max")
        self.network = network
        self.best_weights: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        super().on_epoch_end(epoch, logs)
        if self.best_epoch == epoch:
            self.best_weights = self.network.get_weights()

    def on_train_end(self, logs: dict | None = None) -> None:
        self.network.set_weights(self.best_weights)


class History(keras.callbacks.Callback):
    """Keep each epoch's numbers, and with `checkpoints` all that is needed to go on from there.

    The last of the callbacks, so that it sees what the others have changed.
    """

    def __init__(
        self,
        variables: list[keras.Variable],
        checkpoints: Checkpoints | None,
        average: KeepAverage | None,
        best: KeepBest | None,
    ):
        """Args:
        variables: That training changes: of weights, random seeds and optimizer.
        checkpoints: Where to keep the state, and where to look for one.
        average, best: The callbacks that have a state, where they are used.
        """
        super().__init__()
        self.variables, self.checkpoints = variables, checkpoints
        self.average, self.best = average, best
        self.found = _latest(checkpoints) if checkpoints else None
        facts = self.found.facts if self.found else {}
        self.rows: list[dict[str, float]] = facts.get("rows", [])
        self.seconds: float = facts.get("seconds", 0.0)
        self.stopped: bool = facts.get("stopped", False)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.start = time.perf_counter() - self.seconds
        if self.found:
            self._restore(self.found)
            self.found = None  # its memory

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.rows.append({"epoch": epoch + 1, **{name: logs[name] for name in COLUMNS}})
        self.seconds = time.perf_counter() - self.start
        if self.checkpoints and distributed.is_main_process():
            self.checkpoints.save(epoch + 1, self._state())

    def _lists(self) -> dict[str, list[Any]]:
        lists = {"variable": self.variables}
        if self.average:
            lists["own"] = self.average.own
        if self.best:
            lists["best"] = self.best.best_weights
        return lists

    def _state(self) -> State:
        arrays = {
            f"{name}_{index}": ops.convert_to_numpy(value)
            for name, values in self._lists().items()
            for index, value in enumerate(values)
        }
        facts = {"rows": self.rows, "seconds": self.seconds, "stopped": self.model.stop_training}
        if self.best:
            facts |= {name: getattr(self.best, name) for name in ("wait", "best", "best_epoch")}
        return State(arrays, facts)

    def _restore(self, state: State) -> None:
        def read(name: str, count: int) -> list[Any]:
            return [state.arrays[f"{name}_{index}"] for index in range(count)]

        values = read("variable", len(self.variables))
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)
        if self.average:
            self.average.own = read("own", len(self.model.trainable_variables))
        if self.best:
            self.best.best_weights = read("best", len(self.best.network.weights))
            for name in ("wait", "best", "best_epoch"):
                setattr(self.best, name, state.facts[name])


def _latest(checkpoints: Checkpoints) -> State | None:
    """Return the newest state. Of several processes, the first says which: all read the same."""
    epoch = distributed.broadcast(checkpoints.newest() if distributed.is_main_process() else None)
    return None if epoch is None else checkpoints.read(epoch)
