"""Grad-CAM: locate the regions of an image that support a class.

Reference: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization" (2017), https://arxiv.org/abs/1610.02391
"""

from collections import Counter

import keras
import numpy as np

from pipeline.analysis.network import InferenceMode, activations, nodes, unnested
from pipeline.training.gradients import gradients


class FeatureMaps(keras.Layer):
    """Map row numbers `(b,)` int32 to stored feature maps `(b, h, w, c)`.

    The feature maps are a weight, because `gradients` differentiates with respect to weights only.
    """

    def __init__(self, values: np.ndarray):
        super().__init__()
        self.values = self.add_weight(
            shape=values.shape, initializer=lambda shape, dtype: keras.ops.convert_to_tensor(values)
        )

    def call(self, rows):
        return keras.ops.take(self.values, rows, axis=0)


def last_feature_map(model: keras.Model) -> keras.KerasTensor | None:
    """Return the last feature map `(None, h, w, c)` through which all paths pass, or None.

    A feature map inside a branch does not qualify, because information also flows around it. Nor
    does one of 1×1 pixels, because it has no spatial resolution.

    Args:
        model: Without nested models.
    """
    uses = Counter(id(x) for node in nodes(model) for x in node.input_tensors)
    last, pending = None, set()  # pending: tensors that later layers still use
    for node in nodes(model):
        for x in node.input_tensors:
            uses[id(x)] -= 1
            if not uses[id(x)]:
                pending.discard(id(x))
        pending.update(id(x) for x in node.output_tensors if uses[id(x)])
        output = node.output_tensors[0]
        is_map = len(output.shape) == 4 and max(output.shape[1:3]) > 1
        if node.input_tensors and pending == {id(output)} and is_map:
            last = output
    return last


def grad_cam(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
    """Return how strongly each pixel of an image supports a class.

    The channels of the last feature map are summed, each weighted by the mean gradient of the
    class's logit; negative sums are set to 0.

    Args:
        model: From images to logits. It is not changed.
        images: `(n, h, w, c)`, preprocessed as for the model.
        classes: `(n,)` int, the class to explain for each image.

    Returns:
        Heat maps `(n, h, w)` in [0, 1], scaled to a maximum of 1 per image, or 0 everywhere if
        nothing supports the class. None if the model has no suitable feature map.
    """
    model = unnested(model)
    target = last_feature_map(model)
    if target is None:
        return None
    (values,) = activations(model, [target], images)  # (n, h', w', f)
    feature_maps = FeatureMaps(values)
    rows = keras.Input((), dtype="int32")
    logits = InferenceMode(keras.Model(target, model.outputs[0]))(feature_maps(rows))
    head = keras.Model(rows, logits)
    one_hot = np.eye(model.output_shape[-1], dtype=np.float32)[classes]
    all_rows = np.arange(len(images), dtype=np.int32)
    all_gradients = gradients(head, all_rows, one_hot, _logit)
    index = [variable is feature_maps.values for variable in head.trainable_variables].index(True)
    gradient = all_gradients[index].astype(np.float32)  # (n, h', w', f)
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    maps = np.maximum((values * weights).sum(axis=-1, keepdims=True), 0)  # (n, h', w', 1)
    peaks = maps.max(axis=(1, 2, 3), keepdims=True)
    maps = np.divide(maps, peaks, out=np.zeros_like(maps), where=peaks > 0)
    resized = keras.ops.image.resize(maps, images.shape[1:3], data_format="channels_last")
    return keras.ops.convert_to_numpy(resized)[..., 0]


def _logit(one_hot, logits):
    return keras.ops.sum(one_hot * logits, axis=-1)
