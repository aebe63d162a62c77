"""Make training and prediction faster than in plain Keras.

Saved models contain none of this: the trained weights are copied back into the original network of
stock layers.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil

from pipeline.core import native_log
from pipeline.core.errors import PipelineError
from pipeline.runtime import backend, gpu

# Batches per call into the backend. Callbacks, such as the progress bar, run once per call.
STEPS_PER_EXECUTION = 32
# Size of the groups in which small batches, such as row numbers, are handed to TensorFlow: each
# transfer from Python takes about 0.4 ms of a processor, a third of a step of a linear head.
TRANSFER_BYTES = 2**16
MAX_MEMORY_SHARE = 0.25  # of the free memory, that images may take


def resolve_precision(precision: str) -> str:
    """Return the precision to compute in: float32, bfloat16 or float16.

    Weights and sums are always float32.

    Args:
        precision: auto, float32, bfloat16 or float16; auto is the first of these that the device
            computes in hardware: bfloat16 (GPUs from compute capability 8.0, Intel from Sapphire
            Rapids, AMD from Zen 4), float16 (GPUs from 7.0), float32.

    Raises:
        PipelineError: The device would only emulate it, slowly.
    """
    supported = _supported_precisions()
    if precision == "auto":
        return supported[0]
    if precision not in supported:
        raise PipelineError(
            f"params.yaml: precision must be auto or one that {backend.device()} computes in "
            f"hardware: {', '.join(supported)}. Got {precision}. Set it to auto"
        )
    return precision


def _supported_precisions() -> list[str]:
    """Return the precisions that the device computes in hardware, the preferred one first."""
    if (capability := _compute_capability()) is not None:
        if capability >= (8, 0):
            return ["bfloat16", "float16", "float32"]
        return ["float16", "float32"] if capability >= (7, 0) else ["float32"]
    if keras.backend.backend() == "jax":
        # it supports bfloat16 on every processor, but its convolutions are no faster in it
        return ["float32", "bfloat16"]
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    fast = not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
    return ["bfloat16", "float32"] if fast else ["float32"]


def _compute_capability() -> tuple[int, ...] | None:
    """Return the lowest compute capability of the GPUs, such as (7, 5); None: there is no GPU."""
    if not _has_gpu():
        return None
    if keras.backend.backend() == "jax":
        import jax

        # "7.5"; other makers' have letters, and count as the lowest
        versions = [device.compute_capability.split(".") for device in jax.devices()]
        return min(tuple(int(part) for part in parts if part.isdigit()) for parts in versions)
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return min(device.get("compute_capability", (0, 0)) for device in details)


def _has_gpu() -> bool:
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "gpu"
    import tensorflow as tf

    with native_log.silenced():  # logs a line about a missing driver
        return bool(tf.config.list_physical_devices("GPU"))


def accelerate(model: keras.Model, precision: str) -> keras.Model:
    """Return a model with the same weights that trains and predicts faster, deterministically.

    Keras computes batch normalization from generic sums, which TensorFlow splits over threads
    differently in each run, even with op determinism. TensorFlow's fused kernel is deterministic
    and faster. On processors, oneDNN chooses the operations to run in bfloat16; elsewhere Keras's
    mixed_bfloat16 or mixed_float16 policy is used for all layers but the last.

    Args:
        model: Built and uncompiled, with any stock layers.
        precision: float32, bfloat16 or float16.

    Returns:
        The accelerated copy, or `model` itself if there is nothing to replace.
    """
    tensorflow = keras.backend.backend() == "tensorflow"
    by_onednn = tensorflow and not _has_gpu()
    if by_onednn:
        import tensorflow as tf

        option = {"auto_mixed_precision_onednn_bfloat16": precision == "bfloat16"}
        tf.config.optimizer.set_experimental_options(option)
    stock = keras.layers.BatchNormalization
    fused = _fused_batch_normalization() if tensorflow else stock
    mixed = precision != "float32" and not by_onednn
    if not mixed and not any(type(layer) is stock for layer in model._flatten_layers()):
        return model
    last = {id(output._keras_history.operation) for output in model.outputs}

    def replace(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if mixed and id(layer) not in last and not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = f"mixed_{precision}"
        return (fused if type(layer) is stock else type(layer)).from_config(config)

    clone = keras.models.clone_model(model, clone_function=replace, recursive=True)
    clone.set_weights(model.get_weights())
    return clone


def _fused_batch_normalization() -> type[keras.layers.BatchNormalization]:
    import tensorflow as tf

    class FusedBatchNormalization(keras.layers.BatchNormalization):
        """Keras's BatchNormalization, with TensorFlow's fused kernel in training."""

        def call(self, inputs, training=None, mask=None):
            supported = self.axis in (-1, len(inputs.shape) - 1) and self.scale and self.center
            if not (training and self.trainable and supported) or mask is not None or self.renorm:
                return super().call(inputs, training=training, mask=mask)
            shape = tf.shape(inputs)
            x = tf.reshape(inputs, [-1, 1, 1, shape[-1]]) if len(inputs.shape) != 4 else inputs
            y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=x,
                scale=self.gamma,
                offset=self.beta,
                mean=tf.zeros([0]),
                variance=tf.zeros([0]),
                epsilon=self.epsilon,
                is_training=True,
            )
            # the kernel returns the unbiased variance; Keras averages the biased one
            n = tf.cast(tf.size(x) / shape[-1], tf.float32)
            variance *= (n - 1.0) / n
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
            return tf.reshape(y, shape) if len(inputs.shape) != 4 else y

    return FusedBatchNormalization


def check_batch_memory(model: keras.Model, batch_size: int) -> None:
    """Check that no layer's output for one batch exceeds the memory of the machine.

    On processors, oneDNN's convolution does not check whether its allocation succeeded, and
    TensorFlow 2.21 dies of SIGSEGV without a message. Smaller outputs may still fail: the system
    can promise more memory than it has.

    Raises:
        PipelineError: An output exceeds this memory.
    """
    if _has_gpu():
        return
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    for layer in model._flatten_layers():
        outputs = [output for node in layer._inbound_nodes for output in node.output_tensors]
        size = 4 * batch_size * max((_values(output.shape) for output in outputs), default=0)
        if size > memory:
            raise PipelineError(
                f"not enough memory: {layer.name} of {model.name} needs {size / 1e9:.3g} GB for a "
                f"batch of {batch_size}, but the machine has {memory / 1e9:.3g} GB. Lower "
                "train.batch_size (or batch_size under the model's own `train:`) or "
                "preprocess.image_size"
            )


def _values(shape: tuple[int | None, ...]) -> int:
    """Return the number of values of an output for one image."""
    return math.prod(side or 1 for side in shape[1:])


def fits_in_memory(images: Any) -> bool:
    """Return whether all images fit into MAX_MEMORY_SHARE of the device's memory."""
    free = psutil.virtual_memory().available
    if keras.backend.backend() == "jax":
        import jax

        if jax.process_count() > 1:  # each process reads only its shard
            return False
    if _has_gpu():
        free = min(free, gpu.smallest_memory() or free)
    return 4 * images.size <= MAX_MEMORY_SHARE * free


def as_dataset(batches: keras.utils.PyDataset) -> Any:
    """Wrap batches for fit and predict so that epochs end without a delay.

    TensorFlow's autotuning thread sleeps for 10 ms, then twice as long each time, and an epoch ends
    only when it wakes up (TensorFlow 2.21): an epoch of 2.6 s takes 5.1 s. Keras has no setting
    for this, so the data set returned here turns autotuning off. It also takes several small
    batches from Python at once. On other backends the batches are returned as they are.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    first_epoch = True
    first = batches[0]
    arrays = keras.tree.flatten(first)
    at_once = max(1, TRANSFER_BYTES // sum(array.nbytes for array in arrays))

    def epoch() -> Iterator[Any]:
        nonlocal first_epoch
        if not first_epoch:
            batches.on_epoch_end()
        first_epoch = False
        indices = range(len(batches))
        for start in indices[::at_once]:
            group = [batches[index] for index in indices[start : start + at_once]]
            joined = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *group)
            yield joined if len(group) > 1 else group[0]

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), first
    )
    data = tf.data.Dataset.from_generator(epoch, output_signature=signature)
    if at_once > 1:
        data = data.rebatch(len(arrays[0]))
    data = data.prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    cardinality = tf.data.experimental.assert_cardinality(len(batches))
    return data.apply(cardinality).with_options(options)


class Lookup(keras.layers.Layer):
    """Look up images `(b, h, w, c)`, kept on the device, by row numbers `(b,)` int32.

    Training then copies no images from Python, neither through a queue nor to a GPU.
    """

    def __init__(self, images: Any):
        """Args:
        images: `(n, h, w, c)` float32, indexed by slices.
        """
        super().__init__()
        if keras.backend.backend() == "jax":
            # a weight, since JAX would compile a constant into the step
            self.images = self.add_weight(
                shape=images.shape, initializer=lambda shape, dtype: images[:], trainable=False
            )
        else:
            # a constant, since TensorFlow would copy a variable at each step
            self.images = keras.ops.convert_to_tensor(images[:])
            if not _has_gpu():
                # The same bits as integers. Of floats, oneDNN's mixed precision would convert all
                # images to bfloat16 in every call, instead of those of the batch
                self.images = keras.ops.view(self.images, "int32")

    def compute_output_shape(self, rows_shape):
        # declared, since TensorFlow takes a second to infer it by tracing `call`
        return (*rows_shape, *self.images.shape[1:])

    def call(self, rows):
        return keras.ops.view(keras.ops.take(self.images, rows, axis=0), "float32")
