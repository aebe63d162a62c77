"""Train: fit one model of params.yaml and keep its weights.

Reads   data/arrays/train/{images,labels}.npy, data/arrays/info.json, data/split.npz
Writes  models/MODEL.keras          stock Keras layers, from images to logits
        plots/history/MODEL.csv     loss and accuracy of each epoch
        metrics/train/MODEL.json    parameters, epochs, final and best epoch
        metrics/run/MODEL.json      seconds, versions, device: varies, nothing depends on it
Params  models.MODEL, train, seed
"""

import argparse
import importlib
import math
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline import arrays
from pipeline.errors import PipelineError, run
from pipeline.files import read_json, replacing, write_json
from pipeline.params import Model, Train, load

if TYPE_CHECKING:  # Keras takes seconds to import: not before params.yaml is known to be right
    import keras

Examples = tuple[np.ndarray, np.ndarray]


def build(model: Model, image_shape: list[int], num_classes: int) -> "keras.Model":
    """Build the architecture of a model, uncompiled.

    Raises:
        PipelineError: Keras refuses, as for images too small for the poolings.
    """
    module = importlib.import_module(f"pipeline.architectures.{model.architecture}")
    try:
        return module.build(tuple(image_shape), num_classes, **model.build)
    except ValueError as error:
        shape = " × ".join(map(str, image_shape))
        # Keras sets its reason in bold, between the layer and a dump of the layer's arguments
        bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)
        raise PipelineError(
            f"{model.architecture}: cannot be built for {shape} images: "
            f"{bold[1] if bold else error} Enlarge preprocess.image_size"
        ) from error


def fit(
    model: "keras.Model", train: Examples, validation: Examples, settings: Train
) -> pd.DataFrame:
    """Train a model in place.

    Args:
        model: Uncompiled, ends in logits.
        train: Images `(n, h, w, c)` float32 and labels `(n,)` int64.
        validation: The same, held out.
        settings: Epochs, batch size, optimizer, learning rate, early stopping.

    Returns:
        One row an epoch: epoch (from 1), loss, accuracy, val_loss, val_accuracy.

    Raises:
        PipelineError: The loss is not finite.
    """
    import keras

    class StopWhenNotFinite(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            if not math.isfinite(logs["loss"] + logs["val_loss"]):
                raise PipelineError(
                    f"{self.model.name}: epoch {epoch + 1}: loss must be finite. "
                    f"Got {logs['loss']}, {logs['val_loss']} in validation. "
                    f"Lower train.learning_rate ({settings.learning_rate})"
                )

    class LineAnEpoch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            values = "  ".join(f"{name} {value:.4f}" for name, value in logs.items())
            print(f"epoch {epoch + 1}/{settings.epochs}: {values}", flush=True)

    terminal = sys.stdout.isatty()
    callbacks: list[keras.callbacks.Callback] = [StopWhenNotFinite()]
    if not terminal:
        callbacks.append(LineAnEpoch())
    if settings.early_stopping is not None:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                "val_accuracy",
                patience=settings.early_stopping,
                mode="max",
                restore_best_weights=True,
            )
        )
    model.compile(
        optimizer=keras.optimizers.get(
            {"class_name": settings.optimizer, "config": {"learning_rate": settings.learning_rate}}
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        *train,
        validation_data=validation,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        callbacks=callbacks,
        verbose=int(terminal),  # a progress bar
    )
    table = pd.DataFrame(history.history)[["loss", "accuracy", "val_loss", "val_accuracy"]]
    table.insert(0, "epoch", range(1, len(table) + 1))
    return table


def summarize(history: pd.DataFrame, early_stopping: bool) -> dict:
    """Return final and best epoch of a history, and which of them the weights are of."""
    best = int(history["val_accuracy"].to_numpy().argmax())
    columns = ["loss", "accuracy", "val_loss", "val_accuracy"]
    return {
        "epochs": len(history),
        "best_epoch": best + 1,
        "kept": "best" if early_stopping else "final",
        "final": history[columns].iloc[-1].to_dict(),
        "best": history[columns].iloc[best].to_dict(),
    }


def read_split(path: Path, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of the training and the validation part.

    Raises:
        PipelineError: They are not the rows of these arrays.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file. Run `dvc repro split`")
    with np.load(path, allow_pickle=False) as split:
        train, validation = split["train"], split["validation"]
    if not np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(num_rows)):
        raise PipelineError(
            f"{path}: must name each of {num_rows} rows once. Run `dvc repro -f split`"
        )
    return train, validation


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name under `models:` in params.yaml")
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    if args.model not in params.models:
        raise PipelineError(
            f"train: {args.model} must be one of {', '.join(params.models)} in params.yaml"
        )
    settings = params.train_of(args.model)
    info = read_json(args.arrays / "info.json")
    images, labels = arrays.load(args.arrays / "train")
    train, validation = read_split(args.split, len(labels))

    from pipeline import backend

    backend.make_repeatable(params.seed)
    model = build(params.models[args.model], info["image_shape"], len(info["classes"]))
    trained = backend.repeatable(model)
    start = time.perf_counter()
    history = fit(
        trained, (images[train], labels[train]), (images[validation], labels[validation]), settings
    )
    seconds = time.perf_counter() - start
    model.set_weights(trained.get_weights())

    backend.save(model, args.out)
    with replacing(args.history) as path:
        history.to_csv(path, index=False)
    parameters = {
        "parameters": model.count_params(),
        "trainable_parameters": sum(math.prod(w.shape) for w in model.trainable_weights),
    }
    metrics = {**parameters, **summarize(history, settings.early_stopping is not None)}
    write_json(args.metrics, metrics)
    seen = len(train) * len(history)
    speed = {"train_seconds": round(seconds, 2), "images_per_second": round(seen / seconds, 1)}
    write_json(args.run, {**speed, **backend.describe()})
    kept = metrics[metrics["kept"]]
    print(
        f"train: {args.model}: {len(history)} epochs in {seconds:.0f} s, "
        f"validation accuracy {kept['val_accuracy']:.4f} -> {args.out}"
    )


if __name__ == "__main__":
    run(main)
