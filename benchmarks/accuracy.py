"""Accuracy: measure training time and test accuracy of airnet on CIFAR-10.

Runs the train and evaluate stages with the models of accuracy.yaml, one seed per run: 40,000
training images, the weights of the last epoch, on the backend of params.yaml. A model takes minutes
to hours, so this runs by name only: `python -m benchmarks accuracy`. MODELS="airnet_3 airnet_5" in
the environment selects some of the models.
"""

import os
import statistics
from pathlib import Path

import yaml

from benchmarks import data
from benchmarks.harness import OURS, Plan, Sample, process, python, summarize
from pipeline.config import yaml_reader
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json

MODELS = Path(__file__).with_suffix(".yaml")
RUNS = 3
SPLIT = "-m pipeline.split --arrays data/arrays --split data/split.npz --metrics split.json"
TRAIN = (
    "-m pipeline.train {name} --arrays data/arrays --split data/split.npz --out {name}.keras "
    "--history history.csv --metrics train.json --run run.json"
)
EVALUATE = (
    "-m pipeline.evaluate --model {name}.keras --arrays data/arrays --metrics test.json "
    "--predictions predictions.csv"
)


def measure(plan: Plan) -> list[dict]:
    """Train and evaluate each model with several seeds."""
    if "TFDS_DATA_DIR" not in os.environ:
        print("  skipped: TFDS_DATA_DIR must name a folder with CIFAR-10 prepared by TFDS")
        return []
    models = yaml_reader.parse(MODELS.read_text("utf-8"))["models"]
    chosen = os.environ.get("MODELS", "").split() or list(models)
    if unknown := set(chosen) - set(models):
        raise PipelineError(f"MODELS must be of {', '.join(models)}. Got {min(unknown)}")
    data.prepare(plan.folder)
    process(python(*SPLIT.split()), plan.folder)
    return [_measure(name, models, plan.folder) for name in chosen]


def _measure(name: str, models: dict, folder: Path) -> dict:
    path = folder / "params.yaml"
    params = yaml_reader.parse(path.read_text("utf-8")) | {"models": models, "reference": name}

    def stage(command: str, seed: int, mirror: bool) -> None:
        evaluate = params["evaluate"] | {"mirror": mirror}
        path.write_text(yaml.safe_dump(params | {"seed": seed, "evaluate": evaluate}), "utf-8")
        process(python(*command.format(name=name).split()), folder)

    samples: list[Sample] = []
    for seed in range(RUNS):
        stage(TRAIN, seed, False)
        run = read_json(folder / "run.json")
        samples.append({"s": run["train_seconds"]})
        for kind, mirror in (("accuracy", False), ("mirrored", True)):
            stage(EVALUATE, seed, mirror)
            samples[-1][kind] = read_json(folder / "test.json")["accuracy"]
        print(f"  {name}, seed {seed}: {samples[-1]}", flush=True)
    plain, mirrored = (
        statistics.median(sample[kind] for sample in samples) for kind in ("accuracy", "mirrored")
    )
    title = f"train {name} to {plain:.1%} of the test images, mirrored {mirrored:.1%}"
    summary = summarize(title, "s", {OURS: samples}, {OURS: {"precision": run["precision"]}})
    return {"model": name, **summary}
