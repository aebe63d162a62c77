"""Startup: measure the time from the start of a process to the end of the first training step.

Compares the stage `train@baseline-0` on the handwritten digits with a plain script that imports
Keras and builds the same network, and with one that also trains the first step. All are whole
processes.
"""

import shutil
from functools import partial

from benchmarks.harness import OURS, REPOSITORY, Plan, alternate, process, python, summarize

# exits at once, since the time that a process takes to end does not count
EXIT = """
import os

class Exit(keras.callbacks.Callback):
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
model.fit(images, labels, batch_size=32, callbacks=[Exit()], verbose=0)
"""
STAGE = """
from pipeline import train
from pipeline.config.params import load

load()  # as the stage does, before it imports Keras
from pipeline.runtime import backend
from pipeline.training import loop
import keras
"""
STEP = """
class LearningRate(Exit, loop.LearningRateLogger):
    pass

loop.LearningRateLogger = LearningRate
train.main(
    "baseline 0 --arrays data/arrays --split data/split/0.npz --out 0.keras --history history.csv "
    "--metrics metrics.json --run run.json".split()
)
"""
VARIANTS = {
    OURS: STAGE + EXIT + STEP,
    "import keras, build": BUILD + "import os; os._exit(0)",
    "import keras, build, first step": BUILD + EXIT + FIT,
}
DATA = (
    "pipeline.download --raw data/raw",
    "pipeline.preprocess --raw data/raw --arrays data/arrays",
    "pipeline.split --arrays data/arrays --split data/split --metrics split.json",
)


def measure(plan: Plan) -> list[dict]:
    """Prepare the digits and measure each variant."""
    folder = plan.folder / "digits"
    folder.mkdir()
    shutil.copy(REPOSITORY / "params.yaml", folder)
    for stage in DATA:
        process(python("-m", *stage.split()), folder)
    runs = {name: partial(process, python("-c", code), folder) for name, code in VARIANTS.items()}
    for run in runs.values():  # writes bytecode and fills the file cache
        run()
    return [summarize("start to first training step", "s", alternate(runs, plan.runs))]
