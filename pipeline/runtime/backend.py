"""Import Keras, and make its results and model files reproducible.

Architectures and stages use only Keras 3. All code that depends on the backend is in
pipeline/runtime.
"""

import json
import os
import platform
import re
import zipfile
from importlib.metadata import version
from pathlib import Path

from pipeline.core import cpu, native_log
from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_path
from pipeline.runtime import lean, select_backend

with native_log.silenced(), lean.imports(), select_backend.without_user_settings():
    import keras
    from keras.src.backend import config

config._KERAS_DIR = select_backend.keras_home()  # where Keras caches downloaded weights


def make_deterministic(seed: int) -> None:
    """Seed Python, NumPy and the backend, and select deterministic kernels.

    Args:
        seed: In [0, 2**32).
    """
    keras.utils.set_random_seed(seed)
    _enable_determinism()


def _enable_determinism() -> None:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def save(model: keras.Model, path: Path) -> None:
    """Save a model so that equal weights give equal bytes.

    Keras itself writes dates into metadata.json and the archive's entries, and memory addresses
    into config.json.
    """
    with atomic_path(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        metadata = json.loads(contents["metadata.json"])
        del metadata["date_saved"]
        contents["metadata.json"] = json.dumps(metadata).encode()
        contents["config.json"] = _number_objects(contents["config.json"])
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, content in contents.items():
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def load(path: Path) -> keras.Model:
    """Load a saved model, uncompiled, with deterministic kernels, and without running its code.

    Raises:
        PipelineError: The file is damaged, or contains a Lambda layer or custom object.
    """
    _enable_determinism()
    if not zipfile.is_zipfile(path):  # Keras would say that the file is missing
        raise PipelineError(f"{path}: cannot be loaded: not a complete archive. Run `dvc repro`")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError, zipfile.BadZipFile) as error:
        # Keras puts the reason last, after a full description of the model.
        reason = str(error).split("Exception encountered: ")[-1].strip().split("\n")[0]
        raise PipelineError(f"{path}: cannot be loaded: {reason}. Run `dvc repro`") from None


def _number_objects(config: bytes) -> bytes:
    """Replace the ids of shared objects with 1, 2, … in order of appearance."""
    numbers: dict[bytes, int] = {}
    return re.sub(
        rb'(?<="shared_object_id": )\d+',
        lambda match: b"%d" % numbers.setdefault(match[0], len(numbers) + 1),
        config,
    )


def describe() -> dict[str, str]:
    """Return the software versions, device and number of threads that results depend on."""
    backend = keras.backend.backend()
    return {
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": f"{backend} {version(backend)}",
        "numpy": version("numpy"),
        "device": device(),
        # sums are split over threads, so another number of threads rounds differently
        "threads": os.environ.get("TF_NUM_INTRAOP_THREADS") or str(len(cpu.available_cores())),
    }


def device() -> str:
    """Return the names of the GPUs, or of the processor if there are none."""
    if gpus := _gpus():
        return ", ".join(gpus)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if keras.backend.backend() == "jax":
        import jax

        return [device.device_kind for device in jax.devices() if device.platform == "gpu"]
    import tensorflow as tf

    details = tf.config.experimental.get_device_details
    return [details(gpu)["device_name"] for gpu in tf.config.list_physical_devices("GPU")]
