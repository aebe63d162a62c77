"""Whitening: filters that decorrelate neighboring pixels.

Reference: Page, "How to Train Your ResNet" (2018),
    https://myrtle.ai/learn/how-to-train-your-resnet/; both signs and the frozen layer: Jordan,
    "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024), https://arxiv.org/abs/2404.00498
"""

import keras
import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.runtime.input_pipeline import Subset

# Number of training images, evenly spaced, from which the covariance is estimated. Each has about
# as many patches as pixels, and a patch has only tens of values.
SAMPLE_SIZE = 1000
# Added to the variances, as a share of their mean, so that noise is not amplified to the scale of
# the signal (Jordan 2024: 5e-4 for pixels of variance 1).
EPSILON = 5e-4


def whiten(model: keras.Model, train: Subset) -> None:
    """Set a model's first convolution to whitening filters and freeze it.

    Its first filters are the eigenvectors v of the covariance of the patches, each divided by
    sqrt(variance along v + epsilon), then the negatives of these, because the ReLU after the
    convolution drops negative values. Any further filters keep their initial values. Biases
    subtract the mean patch. `unfreeze_bias` lets them be trained.

    Args:
        model: Model whose first layer is a convolution of kh × kw pixels with at least
            2 * kh * kw * c filters.
        train: Training images `(h, w, c)`.

    Raises:
        PipelineError: The first layer is not such a convolution.
    """
    first = first_layer(model)
    if not isinstance(first, keras.layers.Conv2D):
        raise PipelineError(
            f"{model.name}: train.whiten needs a convolution as first layer. "
            f"Got {type(first).__name__}. Set whiten: false"
        )
    kernel, *bias = first.get_weights()  # (kh, kw, c, filters)
    size = kernel[..., 0].size
    if kernel.shape[-1] < 2 * size:
        raise PipelineError(
            f"{model.name}: train.whiten needs {2 * size} filters in the first layer, two for "
            f"each of {' × '.join(map(str, kernel.shape[:3]))} numbers. "
            f"Got {kernel.shape[-1]}. Set whiten: false"
        )
    rows = train.rows[:: -(-len(train.rows) // SAMPLE_SIZE)]
    mean, filters = whitening_filters((train.images[row] for row in rows), kernel.shape[:2])
    filters = np.concatenate([filters, -filters], axis=1)  # (kh * kw * c, 2 * kh * kw * c)
    kernel[..., : 2 * size] = filters.reshape(*kernel.shape[:3], -1)
    for values in bias:
        values[: 2 * size] = -mean @ filters
    first.set_weights([kernel, *bias])
    first.trainable = False


def first_layer(model: keras.Model) -> keras.layers.Layer:
    """Return the first layer of a model that is not an input."""
    return next(x for x in model.layers if not isinstance(x, keras.layers.InputLayer))


def unfreeze_bias(model: keras.Model) -> keras.Variable:
    """Make the biases of the whitening filters trainable, and return them."""
    first = first_layer(model)
    first.trainable = True
    first.kernel.trainable = False
    return first.bias


def whitening_filters(images, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean patch `(d,)`, and d filters as columns `(d, d)`, smallest variance first.

    Args:
        images: Any number of images `(h, w, c)`, read one at a time.
        size: kh and kw of a patch; d is kh * kw * c.
    """
    # the sums take their shapes from the first patches
    count, total, products = 0, np.zeros(1), np.zeros(1)
    for image in images:
        windows = np.lib.stride_tricks.sliding_window_view(image, size, axis=(0, 1))
        # (h - kh + 1, w - kw + 1, c, kh, kw), transposed to the order of a kernel's axes
        patches = windows.transpose(0, 1, 3, 4, 2).reshape(-1, windows[0, 0].size)
        patches = patches.astype(np.float64)
        count, total = count + len(patches), total + patches.sum(axis=0)
        products = products + patches.T @ patches
    mean = total / count
    variances, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    return mean, directions / np.sqrt(variances + EPSILON * variances.mean())
