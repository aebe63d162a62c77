"""Accuracy: how long airnet trains on CIFAR-10, and what share of the test images it gets right.

The train and evaluate stages as they are, with the models of accuracy.yaml and a seed a run:
40,000 images to train with, the weights of the last epoch, on the backend of params.yaml. Minutes
to hours a model, so only by name: `python -m benchmarks accuracy`, or with MODELS="airnet_3
airnet_5" in the environment for some of them.
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

RECIPES = Path(__file__).with_suffix(".yaml")
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
    if "TFDS_DATA_DIR" not in os.environ:
        print("  left out: TFDS_DATA_DIR must name a folder with CIFAR-10 prepared by TFDS")
        return []
    models = yaml_reader.parse(RECIPES.read_text("utf-8"))["models"]
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
        took = read_json(folder / "run.json")
        samples.append({"s": took["train_seconds"]})
        for kind, mirror in (("accuracy", False), ("mirrored", True)):
            stage(EVALUATE, seed, mirror)
            samples[-1][kind] = read_json(folder / "test.json")["accuracy"]
        print(f"  {name}, seed {seed}: {samples[-1]}", flush=True)
    plain, mirrored = (
        statistics.median(sample[kind] for sample in samples) for kind in ("accuracy", "mirrored")
    )
    title = f"train {name} to {plain:.1%} of the test images, mirrored {mirrored:.1%}"
    found = summarize(title, "s", {OURS: samples}, {OURS: {"precision": took["precision"]}})
    return {"model": name, **found}
