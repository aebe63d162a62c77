"""Grad-CAM: where a network looks when it decides for a class.

Reference: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization" (2017), https://arxiv.org/abs/1610.02391
"""

from collections import Counter

import keras
import numpy as np

from pipeline.analysis.network import InUse, nodes, unnested, values_of
from pipeline.training.gradients import gradients


class Held(keras.Layer):
    """From row numbers `(b,)` int32 to rows of a weight, whose gradient can so be asked for."""

    def __init__(self, values: np.ndarray):
        super().__init__()
        self.values = self.add_weight(
            shape=values.shape, initializer=lambda shape, dtype: keras.ops.convert_to_tensor(values)
        )

    def call(self, rows):
        return keras.ops.take(self.values, rows, axis=0)


def last_map(model: keras.Model) -> keras.KerasTensor | None:
    """Return the last feature map `(None, h, w, c)` of a network of one level, if it has one.

    Of those that all paths from input to output go through: past one inside of a branch, the
    image has another way. Of more than one place: a single one looks everywhere.
    """
    uses = Counter(id(x) for node in nodes(model) for x in node.input_tensors)
    found, wanted = None, set()  # what later layers still take
    for node in nodes(model):
        for x in node.input_tensors:
            uses[id(x)] -= 1
            if not uses[id(x)]:
                wanted.discard(id(x))
        wanted.update(id(x) for x in node.output_tensors if uses[id(x)])
        output = node.output_tensors[0]
        is_map = len(output.shape) == 4 and max(output.shape[1:3]) > 1
        if node.input_tensors and wanted == {id(output)} and is_map:
            found = output
    return found


def grad_cam(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
    """Return how much each place of an image speaks for a class.

    The last feature map, its channels weighted by what they add to the class's logit, where the
    sum is positive.

    Args:
        model: From images to logits; left as it is.
        images: `(n, h, w, c)` as the model takes them.
        classes: `(n,)` int, one for each image.

    Returns:
        `(n, h, w)` in [0, 1], 1 at each image's strongest place; 0 all over where nothing speaks
        for the class. None for a network without a feature map.
    """
    model = unnested(model)
    target = last_map(model)
    if target is None:
        return None
    (values,) = values_of(model, [target], images)  # (n, h', w', f)
    held = Held(values)
    rows = keras.Input((), dtype="int32")
    logits = InUse(keras.Model(target, model.outputs[0]))(held(rows))
    whole = keras.Model(rows, logits)
    chosen = np.eye(model.output_shape[-1], dtype=np.float32)[classes]
    count = len(images)
    found = gradients(whole, np.arange(count, dtype=np.int32), chosen, _logit)
    index = [variable is held.values for variable in whole.trainable_variables].index(True)
    gradient = found[index].astype(np.float32)  # (n, h', w', f)
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    maps = np.maximum((values * weights).sum(axis=-1, keepdims=True), 0)  # (n, h', w', 1)
    peaks = maps.max(axis=(1, 2, 3), keepdims=True)
    maps = np.divide(maps, peaks, out=np.zeros_like(maps), where=peaks > 0)
    large = keras.ops.image.resize(maps, images.shape[1:3], data_format="channels_last")
    return keras.ops.convert_to_numpy(large)[..., 0]


def _logit(chosen, logits):
    return keras.ops.sum(chosen * logits, axis=-1)
