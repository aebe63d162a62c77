"""Train: fit one model of params.yaml and keep its weights.

Reads   data/arrays/train/{images,labels}.npy, data/arrays/info.json, data/split.npz
Writes  models/MODEL.keras          stock Keras layers, from images to logits
        plots/history/MODEL.csv     loss and accuracy of each epoch
        metrics/train/MODEL.json    parameters, epochs, final and best epoch
        metrics/run/MODEL.json      seconds, versions, device: varies, nothing depends on it
Params  models.MODEL or finetune.MODEL, train, seed, backend
"""

import argparse
import csv
import math
import os
import shlex
import sys
import time
from operator import itemgetter
from pathlib import Path

from pipeline import arrays, engine
from pipeline.errors import PipelineError, run
from pipeline.files import read_json, replacing, write_json
from pipeline.params import load


def summarize(history: list[dict[str, float]], early_stopping: bool) -> dict:
    """Return final and best epoch of a history, and which of them the weights are of."""
    best = max(history, key=itemgetter("val_accuracy"))  # the first of equals
    columns = ["loss", "accuracy", "val_loss", "val_accuracy"]
    return {
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "kept": "best" if early_stopping else "final",
        "final": {column: history[-1][column] for column in columns},
        "best": {column: best[column] for column in columns},
    }


def launch(argv: list[str]) -> None:
    """Run this stage by the command in $LAUNCHER, which starts it in several processes.

    In place of this one, so that DVC runs and records a stage as ever.
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
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument(
        "--distributed", action="store_true", help="this is one of several processes"
    )
    args = parser.parse_args(argv)
    params = load()

    if args.model not in params.all_models:
        raise PipelineError(
            f"train: {args.model} must be one of {', '.join(params.all_models)} in params.yaml"
        )
    settings = params.train_of(args.model)
    info = read_json(args.arrays / "info.json")
    images, labels = arrays.load(args.arrays / "train")
    train, validation = arrays.read_split(args.split, len(labels))
    launch(argv or sys.argv[1:])

    # Keras takes seconds to import: not before all of this is known to be right
    engine.use(params.backend)
    from pipeline import backend, building, fitting, hosts, speed
    from pipeline.batches import Part

    classes = info["classes"]
    with hosts.joined(args.distributed, settings.batch_size):
        model = building.build(
            params.all_models[args.model], info["image_shape"], len(classes), params.seed
        )
        parts = Part(images, labels, train), Part(images, labels, validation)
        start = time.perf_counter()
        history = fitting.fit(model, *parts, settings, classes, params.seed)
        seconds = time.perf_counter() - start
    if not hosts.first():
        return

    backend.save(model, args.out)
    with replacing(args.history) as path, path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, history[0], lineterminator="\n")
        table.writeheader()
        table.writerows(history)
    parameters = {
        "parameters": model.count_params(),
        "trainable_parameters": sum(math.prod(w.shape) for w in model.trainable_weights),
    }
    metrics = {**parameters, **summarize(history, settings.early_stopping is not None)}
    write_json(args.metrics, metrics)
    seen = len(train) * len(history)
    rate = {"train_seconds": round(seconds, 2), "images_per_second": round(seen / seconds, 1)}
    precision = {"precision": speed.resolve(settings.precision)}
    write_json(args.run, {**rate, **backend.describe(), **precision})
    kept = metrics[metrics["kept"]]
    print(
        f"train: {args.model}: {len(history)} epochs in {seconds:.0f} s, "
        f"validation accuracy {kept['val_accuracy']:.4f} -> {args.out}"
    )


if __name__ == "__main__":
    run(main)
