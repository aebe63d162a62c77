"""Distributed training on several devices, in one process or on many hosts (JAX only).

Every process runs the same program and reads its own shard of each batch. JAX's runtime connects
the processes and sums their gradients.
"""

import atexit
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np

from pipeline.core.errors import PipelineError

JOIN_TIMEOUT = 120  # seconds
HEARTBEAT_TIMEOUT = 30  # seconds, after which a process counts as dead
CONNECTION_LOST = re.compile("gloo|nccl|connection|heartbeat|unavailable", re.IGNORECASE)


@contextmanager
def data_parallel(distributed: bool, batch_size: int) -> Iterator[None]:
    """Split each batch over all devices while the block runs, if there are several.

    Args:
        distributed: Whether this is one of several processes. JAX's runtime finds the others
            through Slurm, Open MPI, Kubernetes, or Keras's KERAS_DISTRIBUTION_* variables.
        batch_size: Batch size of all devices together.

    Raises:
        PipelineError: Other processes cannot be reached or have died, or the batch cannot be
            divided evenly.
    """
    if keras.backend.backend() != "jax":
        if distributed:
            raise PipelineError("params.yaml: backend must be jax for several processes")
        yield
        return
    if distributed:
        _initialize()
        # If this process fails, JAX's exit handler would wait for the others, which wait for it.
        atexit.register(os._exit, 1)
    _set_distribution(batch_size)
    try:
        yield
    except (ValueError, RuntimeError) as error:  # JAX raises these for any failure
        if distributed and CONNECTION_LOST.search(str(error)):
            raise PipelineError(
                f"another process has died: {error}. See its message for the cause, then run again"
            ) from None
        raise
    atexit.unregister(os._exit)


def _initialize() -> None:
    import jax

    names = ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
    address, count, process_id = (os.environ.get(f"KERAS_DISTRIBUTION_{name}") for name in names)
    try:
        jax.distributed.initialize(
            address,
            int(count) if count else None,
            int(process_id) if process_id else None,
            initialization_timeout=JOIN_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        raise PipelineError(f"--distributed: cannot reach the other processes: {error}") from None


def _set_distribution(batch_size: int) -> None:
    import jax

    devices = jax.device_count()
    if devices == 1:
        return
    if batch_size % devices:
        raise PipelineError(
            f"params.yaml: batch_size must be a multiple of the {devices} devices. Got {batch_size}"
        )
    parallel = keras.distribution.DataParallel(auto_shard_dataset=False)  # Batches shards
    keras.distribution.set_distribution(parallel)


def is_main_process() -> bool:
    """Return whether this is the process that prints and writes files."""
    distribution = keras.distribution.distribution()
    return distribution is None or distribution.data_shard_id == 0


@contextmanager
def local_copy(model: keras.Model) -> Iterator[keras.Model]:
    """Provide a copy of a model on one device of this process, which computes without the others.

    Without a distribution, it is the model itself.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        yield model
        return
    keras.distribution.set_distribution(None)
    try:
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        yield copy
    finally:
        keras.distribution.set_distribution(distribution)


def broadcast(value: Any) -> Any:
    """Return the main process's value, JSON-serializable, in all processes."""
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.num_processes == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    text = json.dumps(value, sort_keys=True).encode()
    size = int(broadcast_one_to_all(np.int32(len(text))))
    padded = np.frombuffer(text.ljust(size)[:size], np.uint8)
    return json.loads(bytes(np.asarray(broadcast_one_to_all(padded), np.uint8)))


def local_shard(rows: np.ndarray, batch_size: int) -> np.ndarray:
    """Return the rows of a batch that this process reads.

    All devices get the same number of rows, so a smaller last batch is padded with rows that
    `drop_padding` removes again. Its padded size always differs from `batch_size`.

    Args:
        rows: `(b,)` row numbers of the batch.
        batch_size: Batch size of all devices together.

    Returns:
        `(b / processes,)` row numbers.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return rows
    if len(rows) < batch_size:
        devices = distribution.num_model_replicas
        padded = -(-len(rows) // devices) * devices
        rows = np.resize(rows, padded + devices if padded == batch_size else padded)
    per_process = len(rows) // distribution.num_processes
    return rows[distribution.data_shard_id * per_process :][:per_process]


def drop_padding(model: keras.Model, rows: dict[str, int], batch_size: int) -> None:
    """Remove the padding that `local_shard` adds, inside the steps of a model.

    Inside a step the batch of all devices is complete again, so loss, metrics and batch
    statistics are the same as on one device.

    Args:
        model: Compiled.
        rows: Number of rows that each step processes, by its name: train_step, test_step.
        batch_size: Batch size of all devices together.
    """
    if keras.distribution.distribution() is not None:
        for name, count in rows.items():
            step = getattr(model, name)
            setattr(
                model, name, partial(_step_without_padding, step, batch_size, count % batch_size)
            )


def _step_without_padding(step: Callable, batch_size: int, rest: int, state: Any, data: Any) -> Any:
    if keras.tree.flatten(data)[0].shape[0] != batch_size:
        data = keras.tree.map_structure(lambda array: array[:rest], data)
    return step(state, data)
