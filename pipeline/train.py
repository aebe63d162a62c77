"""Train: fit one model of params.yaml with one seed and save it.

The seed determines the initial weights, the order of the images, augmentation, dropout, which
images are held out for validation, and the sample of `train_size`.

Reads   data/arrays/train/{images,labels}.npy, data/arrays/info.json, data/split/SEED.npz
        data/features/MODEL/             the output of the model's frozen layers for each image, if
                                         it has any; the other layers are trained on it
Writes  models/MODEL/SEED.keras          stock Keras layers, from images to logits, with the
                                         preprocessing of the images, and the temperature of
                                         the logits, fitted on the validation images; 1 without
        plots/history/MODEL/SEED.csv     loss and accuracy of each epoch
        metrics/train/MODEL/SEED.json    parameters, epochs, final and best epoch, temperature
        metrics/run/MODEL/SEED.json      seconds, versions, device, environment variables:
                                         varies, and nothing depends on it
Keeps   .checkpoints/MODEL-SEED/         the state after each epoch, to resume an interrupted
                                         training
        plots/live/                      the finished epochs of all trainings, drawn while they
                                         train
Params  models.MODEL, train, backend, threads
"""

import argparse
import csv
import math
import os
import shlex
import sys
from contextlib import ExitStack
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.params import PARAMS, load
from pipeline.config.schema import Train
from pipeline.config.yaml_reader import reading
from pipeline.core import live_curves
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import atomic_path, read_json, sha256, write_json
from pipeline.core.splitting import stratified_sample
from pipeline.core.text import counted
from pipeline.data import arrays, calibration, features
from pipeline.data.calibration import Calibration
from pipeline.data.preprocessor import Preprocessor, store
from pipeline.runtime import select_backend

if TYPE_CHECKING:
    import keras

    from pipeline.training.callbacks import History


def summarize(history: list[dict[str, float]], early_stopping: bool, first_phase: int = 0) -> dict:
    """Summarize a history: its final and best epoch, and which of them the weights are from.

    Without validation images, the last epoch counts as the best.

    Args:
        history: One row per epoch.
        early_stopping: Whether the weights are those of the best epoch.
        first_phase: Number of epochs before fine-tuning, none of which can be the best.
    """
    best = history[-1]
    if "val_accuracy" in best:
        best = max(history[first_phase:], key=itemgetter("val_accuracy"))  # the first on a tie
    columns = [c for c in ("loss", "accuracy", "val_loss", "val_accuracy") if c in best]
    return {
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "kept": "best" if early_stopping else "final",
        "final": {column: history[-1][column] for column in columns},
        "best": {column: best[column] for column in columns},
    }


def launch(argv: list[str]) -> None:
    """Replace this process with the command in $LAUNCHER, if set, which starts several processes.

    DVC still runs and records a single command.
    """
    if launcher := os.environ.pop("LAUNCHER", ""):
        command = [*shlex.split(launcher), sys.executable, "-m", "pipeline.train", *argv]
        try:
            os.execvp(command[0], [*command, "--distributed"])
        except OSError as error:
            raise PipelineError(f"LAUNCHER: {command[0]}: {error.strerror}") from None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name under `models:` in params.yaml")
    parser.add_argument("seed", type=int, help="seed of this training")
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--features", type=Path, help="without it, all layers run in every epoch")
    parser.add_argument(
        "--distributed", action="store_true", help="this is one of several processes"
    )
    args = parser.parse_args(argv)
    params = load()

    if args.model not in params.models:
        raise PipelineError(
            f"train: {args.model} must be one of {', '.join(params.models)} in params.yaml"
        )
    settings = params.train_of(args.model)
    info = read_json(args.arrays / "info.json")
    preprocessor = Preprocessor.of(info)
    # In distributed training only the main process verifies the checksums, below.
    images, labels = arrays.load(args.arrays / "train", check=not args.distributed)
    train_rows, validation_rows = arrays.read_split(args.split, len(labels))
    with reading(PARAMS):
        train_rows = stratified_sample(train_rows, labels, settings.train_size, args.seed)
    stored = features.load(args.features, check=not args.distributed) if args.features else None
    launch(argv or sys.argv[1:])

    # Importing Keras takes seconds, so all inputs are checked first.
    environment = select_backend.environment()
    select_backend.use(params.backend, params.threads)
    from pipeline.runtime import acceleration, backend, distributed
    from pipeline.runtime.input_pipeline import Subset
    from pipeline.training import building, frozen, loop, temperature
    from pipeline.training.checkpoints import Checkpoints

    model_config, classes = params.models[args.model], info["classes"]
    with ExitStack() as stack:
        stack.enter_context(distributed.data_parallel(args.distributed, settings.batch_size))
        if args.distributed and distributed.is_main_process():
            arrays.check_sums(args.arrays / "train")
            if stored:
                features.load(args.features)
        model = building.build(model_config, info["image_shape"], len(classes), args.seed)
        environment_record = backend.describe() | {
            "precision": acceleration.resolve_precision(settings.precision)
        }
        environment_record |= environment
        inputs = [
            model_config.model_dump(),
            settings.model_dump(),
            args.seed,
            info,
            environment_record,
        ]
        files = [args.arrays / "train" / arrays.SUMS, args.split, *loaded_code()]
        if stored and not frozen.has_body(model, stored.weights):
            print(f"train: {args.model}: trained on images, since its frozen weights are random")
            stored = None
        if stored:
            files.append(args.features / arrays.SUMS)
        if model_config.from_model:
            files.append(Path(model_config.from_model))
        state = distributed.broadcast([inputs, [sha256(path) for path in files]])
        checkpoints = Checkpoints(f"{args.model}-{args.seed}", state)
        if distributed.is_main_process():
            stack.enter_context(checkpoints.locked())
        train = Subset(images, labels, train_rows)
        validation = Subset(images, labels, validation_rows)
        frozen_features = stored.values if stored else None
        history = loop.fit(
            model, train, validation, settings, classes, args.seed, checkpoints=checkpoints,
            features=frozen_features, preprocessor=preprocessor,
            show=partial(live_curves.show, args.model, args.seed),
        )  # fmt: skip
        if distributed.is_main_process():
            calibrated = Calibration()
            if len(validation_rows):
                logits = loop.predict(model, validation, settings, frozen_features)
                calibrated = temperature.calibrate(logits, labels[validation_rows])
            write(
                args, model, preprocessor, calibrated, history, settings, len(train_rows),
                environment_record,
            )  # fmt: skip
            checkpoints.finish(args.out)


def loaded_code() -> list[Path]:
    """Return the source files of all imported modules of this project, sorted."""
    modules = [module for name, module in sys.modules.items() if name.startswith("pipeline.")]
    # this module is named __main__ when it runs as a script
    return sorted({Path(__file__), *(Path(m.__file__) for m in modules if m.__file__)})


def write(
    args: argparse.Namespace,
    model: "keras.Model",
    preprocessor: Preprocessor,
    calibrated: Calibration,
    history: "History",
    settings: Train,
    num_images: int,
    environment_record: dict[str, str],
) -> None:
    """Write the outputs, and print a summary."""
    from pipeline.runtime import backend

    rows, seconds = history.rows, history.seconds
    with atomic_path(args.out) as path:
        backend.save(model, path)
        store(path, preprocessor)
        calibration.store(path, calibrated)
    with atomic_path(args.history) as path, path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    parameters = {
        "parameters": model.count_params(),
        "trainable_parameters": sum(math.prod(w.shape) for w in model.trainable_weights),
    }
    metrics = {
        **parameters,
        **summarize(rows, settings.early_stopping is not None, history.first_phase),
        "temperature": calibrated.temperature,
    }
    write_json(args.metrics, metrics)
    rate = round(num_images * len(rows) / seconds, 1)
    run = {"train_seconds": round(seconds, 2), "images_per_second": rate}
    write_json(args.run, run | environment_record)
    saved_epoch, accuracy = metrics[metrics["kept"]], "no validation images"
    if "val_accuracy" in saved_epoch:
        accuracy = f"validation accuracy {saved_epoch['val_accuracy']:.4f}"
    print(
        f"train: {args.model}, seed {args.seed}: {counted(len(rows), 'epoch')} in {seconds:.0f} s, "
        f"{accuracy} -> {args.out}"
    )


if __name__ == "__main__":
    run(main)
