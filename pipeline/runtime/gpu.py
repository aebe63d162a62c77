"""GPU: find NVIDIA GPUs, and check that a backend can use them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import distributions
from typing import NamedTuple

from pipeline.core.errors import PipelineError

# The dependency group in pyproject.toml with which a backend uses NVIDIA GPUs, and the beginning of
# the name of a package that the group for the other backend does not contain.
GROUPS = {"tensorflow": "cuda", "jax": "jax-cuda"}
PACKAGES = {"tensorflow": "nvidia-curand-cu12", "jax": "jax-cuda"}
# of CUDA 12, https://docs.nvidia.com/deeplearning/cudnn/backend/v9.10.2/reference/support-matrix.html
MIN_DRIVER = "525.60.13"
FIELDS = "index,uuid,name,driver_version,memory.used,memory.total"
BUSY = 0.25  # share of a GPU's memory that other programs use


class Gpu(NamedTuple):
    """A GPU as nvidia-smi describes it."""

    number: str
    uuid: str
    name: str
    driver: str
    used: str
    """MiB, or [N/A] for a GPU that shares the memory of the CPU"""
    total: str

    def __str__(self) -> str:
        used = f"{self.used} of {self.total} MiB in use"
        return f"GPU {self.number}: {self.name}, driver {self.driver}, {used}"

    def problem(self) -> str | None:
        """Return why training cannot use it, and how to fix that."""
        if _numbers(self.driver) < _numbers(MIN_DRIVER):
            groups = " and ".join(GROUPS.values())
            return f"The groups {groups} need driver {MIN_DRIVER} or later. Update the driver"
        if self.used.isdigit() and self.total.isdigit() and int(self.used) > BUSY * int(self.total):
            remedy = "set CUDA_VISIBLE_DEVICES to another"
            return f"End the processes that `nvidia-smi` lists, or {remedy}"
        return None


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def find_gpus() -> list[Gpu]:
    """Return all NVIDIA GPUs of this machine; none if nvidia-smi is not installed.

    Raises:
        PipelineError: nvidia-smi fails.
    """
    command = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3, check=True)
    except FileNotFoundError:
        return []
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise PipelineError(
            f"nvidia-smi: {str(error.output or error).strip().rstrip('.')}. "
            "Reboot after a driver update, or reinstall the driver"
        ) from None
    return [Gpu(*row.split(", ")) for row in done.stdout.splitlines()]


def usable_gpus() -> list[str]:
    """Return the indices or UUIDs of the NVIDIA GPUs that this process may use."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    with suppress(PipelineError):
        return [gpu.number for gpu in find_gpus()]
    return []


def visible_gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs that this process may use, as nvidia-smi describes them.

    Raises:
        PipelineError: nvidia-smi fails.
    """
    chosen = set(usable_gpus())
    return [gpu for gpu in find_gpus() if chosen & {gpu.number, gpu.uuid}]


def smallest_memory() -> int | None:
    """Return the memory in bytes of the smallest GPU that this process may use; None: unknown."""
    with suppress(PipelineError):
        totals = [gpu.total for gpu in visible_gpus()]
        return min((int(total) * 2**20 for total in totals if total.isdigit()), default=None)
    return None


def supports_gpu(backend: str) -> bool:
    """Return whether the packages are installed that a backend needs to use NVIDIA GPUs.

    Args:
        backend: tensorflow or jax.
    """
    names = [str(package.name).lower() for package in distributions()]
    return any(name.startswith(PACKAGES[backend]) for name in names)


def explain_missing_group(backend: str) -> str:
    """Return why a backend without GPU support does not use the GPUs, and how to install it."""
    group = GROUPS[backend]
    return (
        f"GPU: not used, since {backend} needs the group {group} for it (driver {MIN_DRIVER} or "
        f"later). `make repro GPU=1` or `uv sync --inexact --group {group}` installs it"
    )


def findings(backend: str) -> Iterator[tuple[str, str]]:
    """Describe the GPUs that training with a backend can use, and what keeps it from using them.

    Yields:
        A level, which is `fix` or `note`, and a message with the remedy.

    Raises:
        PipelineError: nvidia-smi fails.
    """
    if not find_gpus():
        yield "note", "GPU: none, so training runs on the CPU"
        return
    if not (gpus := visible_gpus()):
        yield "note", "GPU: hidden by CUDA_VISIBLE_DEVICES, so training runs on the CPU"
        return
    for gpu in gpus:
        yield ("fix", f"{gpu}. {problem}") if (problem := gpu.problem()) else ("note", str(gpu))
    if not supports_gpu(backend):
        yield "note", explain_missing_group(backend)
