"""Startup: measure the time from the start of a process to the end of the first training step.

Compares the stage `train@baseline-0` on the handwritten digits with a plain script that imports
Keras, builds the same network and trains it. Both are whole processes.
"""

import shutil

from benchmarks.harness import OURS, REPOSITORY, Command, Plan, Variant, process, python

# exits at once, since the time that a process takes to end does not count
EXIT = """
import os

class Exit(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        os._exit(0)
"""
PLAIN = f"""
import keras
import numpy as np
from pipeline.architectures import baseline
{EXIT}
images = np.load("data/arrays/train/images.npy")
labels = np.load("data/arrays/train/labels.npy")
model = baseline.build(images.shape[1:], 10)
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
DATA = (
    "pipeline.download --raw data/raw",
    "pipeline.preprocess --raw data/raw --arrays data/arrays",
    "pipeline.split --arrays data/arrays --split data/split --metrics split.json",
)


def variants(plan: Plan) -> dict[str, Variant]:
    """Prepare the digits, and return both ways to begin a training."""
    folder = plan.folder / "digits"
    folder.mkdir()
    shutil.copy(REPOSITORY / "params.yaml", folder)
    for stage in DATA:
        process(python("-m", *stage.split()), folder)
    codes = {OURS: STAGE + EXIT + STEP, "plain Keras": PLAIN}
    return {name: Command(folder, python("-c", code)) for name, code in codes.items()}
