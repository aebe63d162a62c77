"""GPU: GPUs are found and described, and `make repro GPU=1` installs what they need."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.runtime import gpu, select_backend
from tests.conftest import REPOSITORY

UV = shutil.which("uv") or ""


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_usable_gpus_are_those_of_cuda_visible_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert gpu.usable_gpus() == ["1", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.usable_gpus() == []


@pytest.mark.parametrize(
    ("packages", "supported"),
    [
        (["jax", "jaxlib", "tensorflow", "nvidia-cudnn-cu13", None], []),  # the last: damaged
        (["jax", "JAX-cuda13-plugin", "nvidia-cudnn-cu12"], ["jax"]),
        (["tensorflow", "nvidia-cudnn-cu12", "nvidia-curand-cu12"], ["tensorflow"]),
    ],
)
def test_a_backend_supports_gpus_if_its_packages_for_them_are_installed(
    packages, supported, monkeypatch
):
    installed = [SimpleNamespace(name=name) for name in packages]
    monkeypatch.setattr(gpu, "distributions", lambda: installed)
    assert [backend for backend in gpu.GROUPS if gpu.supports_gpu(backend)] == sorted(supported)


@pytest.mark.parametrize(
    ("driver", "supported"),
    [("470.256.02", False), ("525.60.12", False), ("525.60.13", True), ("550.54", True)],
)
def test_a_driver_older_than_cuda_12_is_a_problem(driver, supported):
    found = gpu.Gpu("0", "GPU-a", "Tesla T4", driver, "4", "15360")
    remedy = "The groups cuda and jax-cuda need driver 525.60.13 or later. Update the driver"
    assert found.problem() == (None if supported else remedy)


def test_the_smallest_visible_gpu_limits_the_memory(tmp_path, monkeypatch):
    script(
        tmp_path / "nvidia-smi",
        """
echo "0, GPU-a, Tesla T4, 550.54.15, 4, 15360"
echo "1, GPU-b, NVIDIA T400, 550.54.15, 4, 2048"
echo "2, GPU-c, NVIDIA GB10, 580.95, [N/A], [N/A]\"""",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for visible, expected in (("0,1", 2048), ("GPU-a", 15360), ("2,0", 15360)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpu.smallest_memory() == expected * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert gpu.smallest_memory() is None  # it shares the memory of the CPU


def test_backends_take_the_memory_of_a_gpu_as_needed_unless_a_user_sets_it(monkeypatch):
    names = ("TF_FORCE_GPU_ALLOW_GROWTH", "XLA_PYTHON_CLIENT_PREALLOCATE")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    select_backend.use("tensorflow")
    assert [os.environ[name] for name in names] == ["true", "false"]
    monkeypatch.setenv(names[0], "false")
    select_backend.use("tensorflow")
    assert os.environ[names[0]] == "false"


@pytest.mark.skipif(not UV, reason="no uv")
@pytest.mark.parametrize("backend", gpu.GROUPS)
def test_the_group_of_a_backend_is_locked_with_the_package_that_tells_it_apart(backend, tmp_path):
    for name in ("pyproject.toml", "uv.lock"):
        shutil.copy(REPOSITORY / name, tmp_path)
    installed = {}
    for name, group in gpu.GROUPS.items():
        done = subprocess.run(
            [UV, "sync", "--dry-run", "--locked", "--offline", "--group", group],
            cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "UV_PYTHON": sys.executable,
                 "UV_PROJECT_ENVIRONMENT": str(tmp_path / "new")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        installed[name] = f"\n + {gpu.PACKAGES[backend]}" in done.stderr
    assert [name for name in installed if installed[name]] == [backend]


@pytest.fixture
def make(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `make` in a folder where uv and the pipeline only record how they were called."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in ("pyproject.toml", "uv.lock", ".venv/ready"):  # the last: installed after the lock
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("uv", "python"):
        script(tmp_path / f".venv/bin/{name}", f'echo {name} "$@" >> called')

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        path = f"{tmp_path}/bin{os.pathsep}/usr/bin{os.pathsep}/bin"
        env = {**os.environ, "PATH": path}
        return subprocess.run(
            ["make", *argv], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    return run


@pytest.mark.parametrize(("backend", "group"), gpu.GROUPS.items())
def test_gpu_1_installs_the_group_of_the_backend_before_the_run(backend, group, make, tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text().replace("backend: tensorflow", f"backend: {backend}"))
    script(tmp_path / "bin/nvidia-smi", "echo GPU 0: Tesla T4")
    done = make("repro", "GPU=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("GPU 0: Tesla T4\n")
    assert (tmp_path / "called").read_text().splitlines() == [
        f"uv sync --locked --inexact --quiet --system-certs --group {group}",
        "python -m pipeline repro",
    ]


def test_gpu_1_without_a_gpu_downloads_nothing(make, tmp_path):
    script(tmp_path / "bin/nvidia-smi", "echo No devices were found; exit 6")
    done = make("repro", "GPU=1")
    assert done.returncode == 2
    assert "error: GPU=1 needs an NVIDIA GPU with its driver. nvidia-smi finds none" in done.stderr
    assert not (tmp_path / "called").exists()
