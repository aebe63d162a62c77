"""Quiet: TensorFlow imported without its lines about drivers that are not there."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import PipelineError


@contextmanager
def imports() -> Iterator[None]:
    """Drop what native code writes to stderr in the block; Python's errors still reach it.

    TensorFlow 2.21 logs several lines while it is imported, whatever
    TF_CPP_MIN_LOG_LEVEL says; the variable silences those that come later.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        # it takes the models that a study trains one after the other for one, traced anew
        logging.getLogger("tensorflow").setLevel(logging.ERROR)


def use(backend: str) -> None:
    """Choose what Keras computes with, before it is imported.

    Raises:
        PipelineError: KERAS_BACKEND names another one, or it is not installed.
    """
    chosen = os.environ.setdefault("KERAS_BACKEND", backend)
    if chosen != backend:
        raise PipelineError(
            f"KERAS_BACKEND must be as params.yaml says, {backend}. Got {chosen}. Set `backend: "
            f"{chosen}` there: a change of it trains anew"
        )
    if find_spec(backend) is None:
        raise PipelineError(
            f"params.yaml: backend: {backend} is not installed. Run `uv sync --group {backend}`"
        )
    if backend == "jax":
        # Keras would import it too, only to seed it: seconds, and 0.7 GB in each process
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
        # as enable_op_determinism for TensorFlow
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
