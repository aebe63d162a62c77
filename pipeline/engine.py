"""Engine: what Keras computes with, chosen before it is imported."""

import os
import sys
from importlib.util import find_spec

from pipeline.errors import PipelineError


def choose() -> None:
    """Choose TensorFlow, or what KERAS_BACKEND names: for what reads no params.yaml.

    Raises:
        PipelineError: It is not installed.
    """
    chosen = os.environ.get("KERAS_BACKEND", "tensorflow")
    if find_spec(chosen) is None:
        raise PipelineError(
            f"KERAS_BACKEND: must be tensorflow, or another that is installed. Got {chosen}. "
            "Unset it"
        )
    use(chosen)


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
    if backend == "tensorflow":
        # TensorFlow does so by itself only where AVX-512 or AMX is; convolutions on other
        # processors are 1.6 to 2.4 times as fast with it (Zen 3)
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if backend == "jax":
        # Keras would import it too, only to seed it: seconds, and 0.7 GB in each process
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
        # as enable_op_determinism for TensorFlow
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
