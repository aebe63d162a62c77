"""Keras callbacks of the training loop."""

import math
import time
from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from tqdm import tqdm

from pipeline.core.errors import PipelineError
from pipeline.core.progress import Estimate
from pipeline.runtime import distributed
from pipeline.training.checkpoints import Checkpoints, State

COLUMNS = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


class Diverged(PipelineError):
    """The loss is not finite: an error in train, a recorded result in a study."""


class FirstNonFiniteStep(keras.layers.Layer):
    """Return logits unchanged, and record the first training step in which they are not finite.

    Callbacks run once per acceleration.STEPS_PER_EXECUTION steps; this layer sees each step.
    """

    def build(self, input_shape: Any) -> None:
        scalar: dict[str, Any] = {"shape": (), "dtype": "int32", "trainable": False}
        self.steps = self.add_weight(name="steps", initializer="zeros", **scalar)
        self.first_step = self.add_weight(name="first", initializer=_minus_one, **scalar)

    def compute_output_shape(self, logits_shape):
        return logits_shape  # declared, as in acceleration.Lookup

    def call(self, logits, training=None):
        if training:
            steps = ops.convert_to_tensor(self.steps)
            first_step = ops.convert_to_tensor(self.first_step)
            is_first = ops.logical_and(first_step < 0, ~ops.all(ops.isfinite(logits)))
            self.first_step.assign(ops.where(is_first, steps, first_step))
            self.steps.assign_add(1)
        return logits


def _minus_one(shape: Any, dtype: Any) -> Any:
    return ops.full(shape, -1, dtype)


class TerminateOnNonFinite(keras.callbacks.Callback):
    """Raise `Diverged` when the loss is not finite."""

    def __init__(
        self,
        recorder: FirstNonFiniteStep,
        num_steps: int,
        learning_rate_at: Callable[[int], float],
    ):
        """Args:
        recorder: Layer that records the first non-finite step.
        num_steps: Steps per epoch.
        learning_rate_at: Learning rate at a step, counted from 0 over all epochs.
        """
        super().__init__()
        self.recorder, self.num_steps = recorder, num_steps
        self.learning_rate_at = learning_rate_at

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        if math.isfinite(logs["loss"]):
            return
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()  # copies JAX's state back into the variables
        step = int(self.recorder.first_step)
        if step < 0:  # the logits are finite, but a regularization penalty is not
            step = self.epoch * self.num_steps + batch
        self._stop(step, f"batch {step % self.num_steps + 1} of {self.num_steps}", logs["loss"])

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        loss = logs.get("val_loss", 0.0)  # absent without validation images
        if not math.isfinite(loss):
            self._stop((epoch + 1) * self.num_steps - 1, "validation", loss)

    def _stop(self, step: int, where: str, loss: float) -> None:
        raise Diverged(
            f"{self.model.name}: epoch {self.epoch + 1}, {where}: loss must be finite. Got {loss} "
            f"at learning rate {self.learning_rate_at(step):.3g}. Lower train.learning_rate, or "
            "set train.gradient_clip"
        )


class ProgressBar(keras.callbacks.Callback):
    """Show a progress bar of the epoch's steps on a terminal.

    Keras's bar counts whole executions: at 36 steps per epoch and 32 per execution it would end at
    64/36.
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
        self.bar.refresh()  # shows a full bar while validation runs

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar, so that an error message starts on its own line."""
        if self.bar is not None:
            self.bar.close()


class EpochLogger(keras.callbacks.Callback):
    """Print one line per epoch, and once how long the training will take, if that is long."""

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.estimate = Estimate("train", self.params["epochs"])

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        steps = self.params["steps"]
        self.estimate.update(self.epoch + min(batch + 1, steps) / steps)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        # no learning rate, so that the line fits into 80 columns
        values = "  ".join(f"{name} {logs[name]:.4f}" for name in COLUMNS[:4] if name in logs)
        # tools/run_progress.py recognizes this line and the estimate
        print(f"epoch {epoch + 1}/{self.params['epochs']}: {values}", flush=True)


class LearningRateLogger(keras.callbacks.Callback):
    """Add the learning rate at the end of an epoch to its logs."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)


class SwapAveragedWeights(keras.callbacks.Callback):
    """Replace the weights with their moving average from validation until the next epoch.

    Validation, early stopping and the saved model then all use the average. Keras's SwapEMAWeights
    swaps by adding and subtracting, which rounds both, and leaves the wrong weights when training
    stops early.
    """

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.weights: list[Any] = []

    def on_test_begin(self, logs: dict | None = None) -> None:
        weights = self.model.trainable_variables
        self.weights = [ops.copy(weight) for weight in weights]
        self.model.optimizer.finalize_variable_values(weights)
        for weight in weights:
            # a copy: JAX would share the average's memory, which evaluation then reuses
            weight.assign(ops.copy(weight))

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if "val_loss" not in logs:  # there are no validation images
            self.on_test_begin()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        pairs = zip(self.model.trainable_variables, self.weights, strict=bool(self.weights))
        for variable, value in pairs:
            variable.assign(value)


class RestoreBestWeights(keras.callbacks.EarlyStopping):
    """Stop early by validation accuracy, and restore the best weights of the network.

    Unlike Keras's EarlyStopping, it saves only the weights of `network`, which is a layer of the
    training model.
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
    """Record and show the metrics of each epoch, and save checkpoints to resume training from.

    Must be the last callback, so that it sees the changes that the others make.
    """

    def __init__(
        self,
        variables: list[keras.Variable],
        checkpoints: Checkpoints | None,
        average: SwapAveragedWeights | None,
        best: RestoreBestWeights | None,
        show: Callable[[list[dict[str, float]]], None] | None,
    ):
        """Args:
        variables: Variables that training changes: weights, random seeds and optimizer state.
        checkpoints: Where to save the state, and where to resume from.
        average: The moving-average callback, if used, whose state is saved too.
        best: The early-stopping callback, if used, whose state is saved too.
        show: Called with the rows of all finished epochs, at the start and after each epoch.
        """
        super().__init__()
        self.variables, self.checkpoints = variables, checkpoints
        self.average, self.best, self.show = average, best, show
        self.resumed = _load_latest(checkpoints) if checkpoints else None
        metadata = self.resumed.metadata if self.resumed else {}
        self.rows: list[dict[str, float]] = metadata.get("rows", [])
        self.seconds: float = metadata.get("seconds", 0.0)
        self.first_phase = 0  # epochs before the phase that the weights are from
        self.stopped: bool = metadata.get("stopped", False)

    def followed_by(self, rows: list[dict[str, float]]) -> list[dict[str, float]]:
        """Return all rows if those of a second phase of training follow."""
        return self.rows + [{**row, "epoch": len(self.rows) + row["epoch"]} for row in rows]

    def append(self, phase: "History") -> None:
        """Append the epochs of a second phase of training."""
        self.first_phase, self.rows = len(self.rows), self.followed_by(phase.rows)
        self.seconds += phase.seconds

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.start = time.perf_counter() - self.seconds
        if self.resumed:
            self._restore(self.resumed)
            self.resumed = None  # frees its memory
        self._show()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        values = {name: logs[name] for name in COLUMNS if name in logs}
        self.rows.append({"epoch": epoch + 1, **values})
        self.seconds = time.perf_counter() - self.start
        if self.checkpoints and distributed.is_main_process():
            self.checkpoints.save(epoch + 1, self._state())
        self._show()

    def _show(self) -> None:
        if self.show and distributed.is_main_process():
            self.show(self.rows)

    def _lists(self) -> dict[str, list[Any]]:
        lists = {"variable": self.variables}
        if self.average:
            lists["trained"] = self.average.weights
        if self.best:
            lists["best"] = self.best.best_weights
        return lists

    def _state(self) -> State:
        arrays = {
            f"{name}_{index}": ops.convert_to_numpy(value)
            for name, values in self._lists().items()
            for index, value in enumerate(values)
        }
        metadata = {"rows": self.rows, "seconds": self.seconds, "stopped": self.model.stop_training}
        if self.best:
            metadata |= {name: getattr(self.best, name) for name in ("wait", "best", "best_epoch")}
        return State(arrays, metadata)

    def _restore(self, state: State) -> None:
        def read(name: str, count: int) -> list[Any]:
            return [state.arrays[f"{name}_{index}"] for index in range(count)]

        values = read("variable", len(self.variables))
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)
        if self.average:
            self.average.weights = read("trained", len(self.model.trainable_variables))
        if self.best:
            self.best.best_weights = read("best", len(self.best.network.weights))
            for name in ("wait", "best", "best_epoch"):
                setattr(self.best, name, state.metadata[name])


def _load_latest(checkpoints: Checkpoints) -> State | None:
    """Return the latest state, the same in all processes of a distributed training."""
    epoch = distributed.broadcast(
        checkpoints.latest_epoch() if distributed.is_main_process() else None
    )
    return None if epoch is None else checkpoints.read(epoch)
