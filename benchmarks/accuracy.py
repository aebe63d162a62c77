"""Accuracy: how long airnet trains on CIFAR-10, and what share of the test images it gets right.

The train and evaluate stages as they are, with the models of accuracy.yaml and a seed a run:
40,000 images to train with, the weights of the last epoch. On the backend of params.yaml.
Takes an hour or more on two cores, so only by its name: `python -m benchmarks accuracy`.
"""

import os
import statistics
from pathlib import Path

import yaml

from benchmarks import data
from benchmarks.harness import OURS, Plan, Sample, process, python, summarize
from pipeline.files import read_json

MODELS = Path(__file__).with_suffix(".yaml")
RUNS = 3
TRAIN = (
    "-m pipeline.train {name} --arrays data/arrays --split data/split.npz "
    "--out models/{name}.keras --history history.csv --metrics train.json --run run.json"
)
EVALUATE = (
    "-m pipeline.evaluate --model models/{name}.keras --arrays data/arrays --metrics test.json "
    "--predictions predictions.csv"
)
SPLIT = "-m pipeline.split --arrays data/arrays --split data/split.npz --metrics split.json"


def measure(plan: Plan) -> list[dict]:
    if "TFDS_DATA_DIR" not in os.environ:
        print("  left out: TFDS_DATA_DIR must name a folder with CIFAR-10 prepared by TFDS")
        return []
    data.prepare(plan.folder)
    process(python(*SPLIT.split()), plan.folder)
    given = yaml.safe_load(MODELS.read_text("utf-8"))["models"]
    return [_measure(name, given, plan.folder) for name in given]


def _measure(name: str, models: dict, folder: Path) -> dict:
    samples = []
    for seed in range(RUNS):
        path = folder / "params.yaml"
        params = yaml.safe_load(path.read_text("utf-8"))
        params |= {"models": models, "reference": name, "seed": seed}
        path.write_text(yaml.safe_dump(params), "utf-8")
        for stage in (TRAIN, EVALUATE):
            process(python(*stage.format(name=name).split()), folder)
        took = read_json(folder / "run.json")
        sample: Sample = {
            "s": took["train_seconds"],
            "accuracy": read_json(folder / "test.json")["accuracy"],
        }
        print(f"  {name}, seed {seed}: {sample['s']:.0f} s, {sample['accuracy']:.2%}", flush=True)
        samples.append(sample)
    accuracy = statistics.median(sample["accuracy"] for sample in samples)
    about = {OURS: {"precision": took["precision"]}}
    return summarize(f"train {name} to {accuracy:.1%}", "s", {OURS: samples}, about)
