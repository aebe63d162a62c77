"""Preprocess: compare the stage with the usual notebook loop from CIFAR-10 to float32 arrays.

Both are whole processes. The notebook loop reads the prepared TFDS copy; the stage reads data/raw,
which `download` wrote beforehand.
"""

import os
import shutil

from benchmarks import data
from benchmarks.harness import OURS, Plan, Sample, alternate, process, python, summarize

NOTEBOOK = """
import numpy as np
import tensorflow_datasets as tfds

builder = tfds.builder("cifar10")
for split in ("{train}", "test"):
    images, labels = [], []
    for example in builder.as_dataset(split=split):
        images.append(example["image"].numpy())
        labels.append(example["label"].numpy())
    images = np.array(images)
    images = images.astype("float32") / 255
    labels = np.array(labels)
"""
STAGE = "-m", "pipeline.preprocess"


def measure(plan: Plan) -> list[dict]:
    """Measure duration and peak memory of both."""
    if "TFDS_DATA_DIR" not in os.environ:
        print("  skipped: TFDS_DATA_DIR must name a folder with CIFAR-10 prepared by TFDS")
        return []
    data.download(plan.folder)
    raw, train = plan.folder / "data/raw", "train"
    if plan.quick:  # only the test images, as both splits
        few, train = plan.folder / "data/few", "test"
        few.mkdir()
        for split in data.SPLITS:
            shutil.copy(raw / "test.parquet", few / f"{split}.parquet")
        raw = few
    loop = python("-c", NOTEBOOK.format(train=train))
    stage = python(*STAGE, "--raw", str(raw), "--arrays", "data/again")

    def ours() -> Sample:
        shutil.rmtree(plan.folder / "data/again", ignore_errors=True)
        return process(stage, plan.folder)

    variants = {OURS: ours, "notebook's loop": lambda: process(loop, plan.folder)}
    samples = alternate(variants, plan.runs)
    return [
        summarize("preprocess CIFAR-10", "s", samples),
        summarize("preprocess CIFAR-10, peak memory", "MiB", samples),
    ]
