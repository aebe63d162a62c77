"""Benchmark: from the start of a process to the end of the first training step.

    python benchmarks/startup.py [runs]

`train@baseline` on the handwritten digits, as the stage runs it, against a plain script that
imports Keras, builds the same network and fits it: to the built network, and to the end of the
first step. Whole processes, alternated.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
# both leave at once: how a process ends is not how it starts
LEAVE = """
import os

class Leave(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        os._exit(0)
"""
BUILD = """
import keras
import numpy as np
from pipeline.architectures import baseline

images = np.load("data/arrays/train/images.npy")
labels = np.load("data/arrays/train/labels.npy")
model = baseline.build(images.shape[1:], 10)
"""
FIT = """
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
model.fit(images, labels, batch_size=32, callbacks=[Leave()], verbose=0)
"""
STAGE = """
from pipeline import train
from pipeline.params import load

load()  # as the stage does, before it imports Keras
from pipeline import backend, fitting
import keras
"""
STEP = """
class LearningRate(Leave, fitting.LearningRate):
    pass

fitting.LearningRate = LearningRate
train.main(
    "baseline --arrays data/arrays --split data/split.npz --out model.keras --history history.csv "
    "--metrics metrics.json --run run.json".split()
)
"""
WAYS = {
    "import keras, build": BUILD + "import os; os._exit(0)",
    "import keras, build, first step": BUILD + LEAVE + FIT,
    "stage to its first step": STAGE + LEAVE + STEP,
}
DATA = (
    "pipeline.download --raw data/raw",
    "pipeline.preprocess --raw data/raw --arrays data/arrays",
    "pipeline.split --arrays data/arrays --split data/split.npz --metrics split.json",
)


def run(argv: list[str], folder: Path) -> float:
    """Return the seconds that a Python process takes."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *argv], cwd=folder, env=env, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"error: status {done.returncode} of\n{argv[1]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def measure(runs: int) -> dict[str, list[float]]:
    """Return the seconds of each way, alternated."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(REPOSITORY / "params.yaml", folder)
        for stage in DATA:
            run(["-m", *stage.split()], folder)
        for code in WAYS.values():  # bytecode and files are then where they will be
            run(["-c", code], folder)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(runs):
            for way, code in WAYS.items():
                seconds[way].append(run(["-c", code], folder))
    return seconds


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    medians = {way: statistics.median(each) for way, each in measure(runs).items()}
    stage = medians["stage to its first step"]
    for way, median in medians.items():
        print(f"{median:6.2f} s  {way} (median of {runs}); the stage takes {stage / median:.2f}")


if __name__ == "__main__":
    main()
