"""Select backend: what Keras computes with, chosen before it is imported."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pipeline.core.errors import PipelineError

# Beginnings of the names of variables by which libraries compute otherwise: TensorFlow, XLA, JAX,
# oneDNN, OpenMP, the libraries of linear algebra, NumPy and NVIDIA's. Not all of TF_, by which
# Terraform's begin, too, and these may be secret.
NUMERIC_PREFIXES = (
    "TF_AUTO_MIXED_PRECISION", "TF_CONV", "TF_CUBLAS", "TF_CUDNN", "TF_DETERMINISTIC_",
    "TF_DISABLE_", "TF_ENABLE_", "TF_FORCE_", "TF_FP16_", "TF_GPU_", "TF_MATMUL_", "TF_MKL_",
    "TF_NUM_", "TF_ONEDNN_", "TF_OVERRIDE_", "TF_SET_ONEDNN_", "TF_USE_", "TF_XLA_",
    "XLA_", "JAX_", "ONEDNN_", "DNNL_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "BLIS_",
    "VECLIB_", "NPY_", "CUDA_", "CUDNN_", "CUBLAS", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip
# of these: which GPU it is, whose name is recorded; and what scikit-learn sets itself
HARMLESS = ("CUDA_VISIBLE_DEVICES", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
# Keras cuts a training short by them, or computes with other variables
KERAS_SETTINGS = ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED")


def environment() -> dict[str, str]:
    """Return the variables that are set and can change a number, sorted by name.

    Call it before `use`, which sets some itself.
    """
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(NUMERIC_PREFIXES) and name not in HARMLESS
    }


def keras_home() -> str:
    """Return the folder where Keras keeps what it downloads; made where it can be, as by Keras."""
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    with suppress(OSError):  # Keras then takes a temporary one
        home.mkdir(parents=True, exist_ok=True)
    return str(home)


@contextmanager
def without_user_settings() -> Iterator[None]:
    """Import Keras in the block without keras.json, which belongs to all of a user's projects.

    It holds floatx, epsilon and image_data_format, which decide results. Variables that Keras
    reads for the same purpose are not seen either.
    """
    names = ("KERAS_HOME", *KERAS_SETTINGS)
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ["KERAS_HOME"] = os.devnull  # no folder: nothing is read or written there
    try:
        yield
    finally:
        del os.environ["KERAS_HOME"]
        os.environ.update(saved)


def use_default() -> None:
    """Choose TensorFlow, or what KERAS_BACKEND names: for what reads no params.yaml.

    Raises:
        PipelineError: It is not installed.
    """
    chosen = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if find_spec(chosen) is None:
        raise PipelineError(
            f"KERAS_BACKEND: must be tensorflow, or another that is installed. Got {chosen}. "
            "Unset it"
        )
    use(chosen)


def check(backend: str) -> None:
    """Check the backend that params.yaml names.

    Raises:
        PipelineError: KERAS_BACKEND names another one, or it is not installed.
    """
    chosen = os.environ.get("KERAS_BACKEND") or backend
    if chosen != backend:
        raise PipelineError(
            f"KERAS_BACKEND must be as params.yaml says, {backend}. Got {chosen}. Set `backend: "
            f"{chosen}` there: a change of it trains anew"
        )
    if find_spec(backend) is None:
        raise PipelineError(
            f"params.yaml: backend: {backend} is not installed. "
            f"Run `uv sync --inexact --group {backend}`"
        )


def use(backend: str) -> None:
    """Choose what Keras computes with, and import it.

    Raises:
        PipelineError: KERAS_BACKEND names another one, or it is not installed.
    """
    check(backend)
    os.environ["KERAS_BACKEND"] = backend
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
    # first of all that import Keras: quietly, and without a user's settings
    import_module("pipeline.runtime.backend")
