"""Benchmark: CIFAR-10 to float32 arrays, against the way notebooks do it.

    TFDS_DATA_DIR=/path/to/tfds python benchmarks/preprocess.py [runs]

Both as whole processes, alternated, in one run: wall time, and the peak of the resident
memory of all processes together, sampled every 20 ms. The notebook's way starts from the
prepared TFDS copy, ours from data/raw, which `download` wrote once before.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[1]
NOTEBOOK = """
import numpy as np
import tensorflow_datasets as tfds

builder = tfds.builder("cifar10")
for split in ("train", "test"):
    images, labels = [], []
    for example in builder.as_dataset(split=split):
        images.append(example["image"].numpy())
        labels.append(example["label"].numpy())
    images = np.array(images)
    images = images.astype("float32") / 255
    labels = np.array(labels)
"""
OURS = ["-m", "pipeline.preprocess", "--raw", "data/raw", "--arrays", "data/arrays"]


def measure(argv: list[str], folder: Path) -> tuple[float, float]:
    """Return wall seconds and peak MiB of a Python process and its children."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
    start = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, *argv],
        cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    peak = 0
    while process.poll() is None:
        total = 0
        for each in [process, *children(process)]:
            try:
                total += each.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, total)
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"error: {' '.join(argv)[:60]} failed with status {process.returncode}")
    return time.perf_counter() - start, peak / 2**20


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    if "TFDS_DATA_DIR" not in os.environ:
        sys.exit("error: TFDS_DATA_DIR must name a folder with cifar10/3.0.2 prepared by TFDS")
    os.environ["TFDS_DATA_DIR"] = str(Path(os.environ["TFDS_DATA_DIR"]).expanduser().resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = (REPOSITORY / "params.yaml").read_text()
        (folder / "params.yaml").write_text(params.replace("dataset: digits", "dataset: cifar10"))
        measure(["-m", "pipeline.download", "--raw", "data/raw"], folder)
        ways = {"notebook": ["-c", NOTEBOOK], "preprocess": OURS}
        results: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for run in range(runs):
            for way, argv in ways.items():
                shutil.rmtree(folder / "data/arrays", ignore_errors=True)
                results[way].append(measure(argv, folder))
                seconds, peak = results[way][-1]
                print(f"run {run + 1}  {way:10}  {seconds:6.1f} s  {peak:6.0f} MiB", flush=True)
    medians = {
        way: [statistics.median(column) for column in zip(*rows, strict=True)]
        for way, rows in results.items()
    }
    (slow, large), (fast, small) = medians["notebook"], medians["preprocess"]
    print(
        f"median of {runs}: {slow:.1f} s and {large:.0f} MiB against "
        f"{fast:.1f} s and {small:.0f} MiB: "
        f"{slow / fast:.1f} times as fast, {small / large:.2f} of the memory"
    )


if __name__ == "__main__":
    main()
