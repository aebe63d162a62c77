"""Start-up: from the start of a process to the end of the first training step.

`train@baseline` on the handwritten digits, as the stage runs it, against a plain script that
imports Keras, builds the same network and fits it: to the built network, and to the end of the
first step. Whole processes.
"""

import shutil
from functools import partial

from benchmarks.harness import OURS, REPOSITORY, Plan, alternate, process, python, summarize

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
from pipeline.config.params import load

load()  # as the stage does, before it imports Keras
from pipeline.runtime import backend
from pipeline.training import loop
import keras
"""
STEP = """
class LearningRate(Leave, loop.LearningRateLogger):
    pass

loop.LearningRateLogger = LearningRate
train.main(
    "baseline --arrays data/arrays --split data/split.npz --out model.keras --history history.csv "
    "--metrics metrics.json --run run.json".split()
)
"""
WAYS = {
    OURS: STAGE + LEAVE + STEP,
    "import keras, build": BUILD + "import os; os._exit(0)",
    "import keras, build, first step": BUILD + LEAVE + FIT,
}
DATA = (
    "pipeline.download --raw data/raw",
    "pipeline.preprocess --raw data/raw --arrays data/arrays",
    "pipeline.split --arrays data/arrays --split data/split.npz --metrics split.json",
)


def measure(plan: Plan) -> list[dict]:
    folder = plan.folder / "digits"
    folder.mkdir()
    shutil.copy(REPOSITORY / "params.yaml", folder)
    for stage in DATA:
        process(python("-m", *stage.split()), folder)
    ways = {way: partial(process, python("-c", code), folder) for way, code in WAYS.items()}
    for way in ways.values():  # bytecode and files are then where they will be
        way()
    return [summarize("start to first training step", "s", alternate(ways, plan.runs))]
