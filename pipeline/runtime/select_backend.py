"""Select the Keras backend before Keras is imported."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pipeline.core.errors import PipelineError

# Prefixes of environment variables that change how libraries compute: TensorFlow, XLA, JAX,
# oneDNN, OpenMP, linear algebra libraries, NumPy and NVIDIA's libraries. Not TF_ alone: Terraform
# uses it too, and its variables may be secret.
NUMERIC_PREFIXES = (
    "TF_AUTO_MIXED_PRECISION", "TF_CONV", "TF_CUBLAS", "TF_CUDNN", "TF_DETERMINISTIC_",
    "TF_DISABLE_", "TF_ENABLE_", "TF_FORCE_", "TF_FP16_", "TF_GPU_", "TF_MATMUL_", "TF_MKL_",
    "TF_NUM_", "TF_ONEDNN_", "TF_OVERRIDE_", "TF_SET_ONEDNN_", "TF_USE_", "TF_XLA_",
    "XLA_", "JAX_", "ONEDNN_", "DNNL_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "BLIS_",
    "VECLIB_", "NPY_", "CUDA_", "CUDNN_", "CUBLAS", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip
# exceptions: the choice of the GPU, whose name is recorded, and what scikit-learn itself sets
HARMLESS = ("CUDA_VISIBLE_DEVICES", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
# variables with which Keras shortens training, or uses Flax's variables
KERAS_SETTINGS = ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED")


def environment() -> dict[str, str]:
    """Return the environment variables that can change numerical results, sorted by name.

    Call it before `use`, which sets some of them.
    """
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(NUMERIC_PREFIXES) and name not in HARMLESS
    }


def keras_home() -> str:
    """Return the folder where Keras caches downloads, and create it if possible, as Keras does."""
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    with suppress(OSError):  # Keras then uses a temporary folder
        home.mkdir(parents=True, exist_ok=True)
    return str(home)


@contextmanager
def without_user_settings() -> Iterator[None]:
    """Hide the user's keras.json and KERAS_SETTINGS while Keras is imported.

    The file applies to all projects of a user, and its floatx, epsilon and image_data_format would
    change results.
    """
    names = ("KERAS_HOME", *KERAS_SETTINGS)
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ["KERAS_HOME"] = os.devnull  # not a folder: nothing is read or written
    try:
        yield
    finally:
        del os.environ["KERAS_HOME"]
        os.environ.update(saved)


def use_default() -> None:
    """Select the backend for commands that need no params.yaml: KERAS_BACKEND, else TensorFlow.

    Raises:
        PipelineError: The backend is not installed.
    """
    chosen = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if find_spec(chosen) is None:
        raise PipelineError(
            f"KERAS_BACKEND: must be tensorflow or another installed backend. Got {chosen}. "
            "Unset it"
        )
    use(chosen)


def check(backend: str) -> None:
    """Check the backend that params.yaml selects.

    Raises:
        PipelineError: KERAS_BACKEND names another backend, or it is not installed.
    """
    chosen = os.environ.get("KERAS_BACKEND") or backend
    if chosen != backend:
        raise PipelineError(
            f"KERAS_BACKEND must be {backend}, as in params.yaml. Got {chosen}. Unset it, or set "
            f"`backend: {chosen}` there, which retrains all models"
        )
    if find_spec(backend) is None:
        raise PipelineError(
            f"params.yaml: backend: {backend} is not installed. "
            f"Run `uv sync --inexact --group {backend}`"
        )


def use(backend: str, threads: int | None = None) -> None:
    """Select the Keras backend and the number of CPU threads, and import Keras.

    TensorFlow splits sums over the threads of its intra-op pool, so another number of threads
    rounds differently. The threads that run whole operations at once (inter-op) and those of
    tf.data change no result, so their number is left to TensorFlow. JAX has no such setting.

    Args:
        backend: tensorflow or jax.
        threads: Of TensorFlow on a CPU; None: as many as there are cores.

    Raises:
        PipelineError: KERAS_BACKEND names another backend, or it is not installed.
    """
    check(backend)
    os.environ["KERAS_BACKEND"] = backend
    # take a GPU's memory as needed, not all of it (JAX: three quarters) at the start
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if backend == "tensorflow":
        # TensorFlow enables oneDNN by default only on processors with AVX-512 or AMX. On one
        # without (Zen 3), oneDNN makes convolutions 1.6 to 2.4 times as fast.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        if threads:
            os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)
    if backend == "jax":
        # the equivalent of TensorFlow's enable_op_determinism
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
        # Keras would import TensorFlow only to seed it, which takes seconds and 0.7 GB in each
        # process
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
    # must be the first import of Keras, since it silences logs and hides user settings
    import_module("pipeline.runtime.backend")
    if backend == "jax":
        # Keras now remembers that it has no TensorFlow. It takes any entry in sys.modules for
        # TensorFlow itself, which Rescaling and the Random... layers would then use.
        module_utils = import_module("keras.src.utils.module_utils")
        module_utils.tensorflow.available  # noqa: B018
        del sys.modules["tensorflow"]
