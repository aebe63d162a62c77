"""Machine: installed packages against uv.lock, and the GPU."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline import graph, parallel
from pipeline.finding import Finding

QUERY = "index,uuid,name,driver_version,memory.used,memory.total"
BUSY = 0.25  # share of a GPU's memory; JAX takes the other three quarters when it starts
PATIENCE = 3  # seconds
# what a backend needs beside itself to use a GPU: how the names of these packages begin
FOR_GPU = {"jax": "jax-cuda", "tensorflow": "nvidia-cudnn"}
SYNC = "`uv sync --locked`"


def versions(top: Path) -> list[Finding]:
    """Compare Python and the packages that pyproject.toml names with uv.lock."""
    try:
        lock = tomllib.loads((top / "uv.lock").read_text("utf-8"))
    except FileNotFoundError:
        return [Finding("uv.lock", "not there", "`git checkout uv.lock`")]
    except tomllib.TOMLDecodeError as error:
        return [Finding("uv.lock", f"not valid TOML: {error}", "`git checkout uv.lock`")]
    found = []
    required = lock.get("requires-python", "")
    if not _fits(sys.version_info[:2], required):
        what = f"Python must be {required}. Got {sys.version_info.major}.{sys.version_info.minor}"
        found.append(Finding("uv.lock", what, "`rm -r .venv && PYTHON=python3.12 make repro`"))
    return found + _packages(lock.get("package", []))


def _packages(packages: list[dict[str, Any]]) -> list[Finding]:
    locked: dict[str, set[str]] = {}  # some in two versions, for two of Python
    for package in packages:
        locked.setdefault(package["name"], set()).add(_public(package.get("version", "")))
    own = next((p for p in packages if {"virtual", "editable"} & p["source"].keys()), {})
    needed = own.get("dependencies", [])
    groups = own.get("dev-dependencies", {})  # which may be left out; uv leaves out all but dev
    group_of = {each["name"]: name for name, group in groups.items() for each in group}
    group_of |= {each["name"]: "dev" for each in (*groups.get("dev", []), *needed)}
    found = []
    for name, group in sorted(group_of.items()):
        way = SYNC if group == "dev" else f"`uv sync --locked --group {group}`"
        expected = " or ".join(sorted(locked[name]))
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in {each["name"] for each in needed if "marker" not in each}:
                found.append(Finding("uv.lock", f"{name} {expected} is not installed", way))
            continue
        if _public(installed) not in locked[name]:
            found.append(Finding("uv.lock", f"{name} must be {expected}. Got {installed}", way))
    return found


def _public(version: str) -> str:
    """Leave out what a build adds: 2.13.0+cpu is 2.13.0."""
    return version.partition("+")[0]


def _fits(python: tuple[int, int], required: str) -> bool:
    """Tell whether a version is in a range as uv writes it, `>=3.11, <3.14`."""
    bounds = re.findall(r"(>=|<)\s*(\d+)\.(\d+)", required)
    return all((python >= (int(x), int(y))) == (sign == ">=") for sign, x, y in bounds)


def gpu(top: Path) -> list[Finding]:
    """Look at what trains: the backend of params.yaml, and the GPUs that it may use."""
    backend = str(graph.read_yaml(top / "params.yaml").get("backend"))
    found = []
    if find_spec(backend) is None:
        way = "`uv sync --group jax`" if backend == "jax" else SYNC
        found.append(Finding("params.yaml: backend", f"{backend} is not installed", way))
    if (chosen := os.environ.get("KERAS_BACKEND", backend)) != backend:
        what = f"must be as params.yaml says, {backend}. Got {chosen}"
        found.append(Finding("KERAS_BACKEND", what, "`unset KERAS_BACKEND`"))
    if not shutil.which("nvidia-smi"):
        return [*found, Finding("GPU", "none: the processor trains", mend=False)]
    ask = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    way = "Reboot after an update of the driver, or install it anew"
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return [*found, Finding("nvidia-smi", f"no answer in {PATIENCE} s", way)]
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())
        return [*found, Finding("nvidia-smi", said.rstrip(".") or "fails", way)]
    usable = set(parallel.usable_gpus())
    rows = [row.split(", ") for row in done.stdout.splitlines()]
    rows = [row for row in rows if usable & set(row[:2])]
    if not rows:
        what = "hidden by CUDA_VISIBLE_DEVICES: the processor trains"
        return [*found, Finding("GPU", what, mend=False)]
    return [*found, *(_state(row) for row in rows), *_support(backend)]


def _state(row: list[str]) -> Finding:
    index, _, name, driver, used, total = row
    what = f"{name}, driver {driver}, {used} of {total} MiB in use"
    # of a GPU that shares the processor's memory, nvidia-smi says [N/A]
    if used.isdigit() and total.isdigit() and int(used) > BUSY * int(total):
        way = "End what `nvidia-smi` lists, or name another in CUDA_VISIBLE_DEVICES"
        return Finding(f"GPU {index}", what, way)
    return Finding(f"GPU {index}", what, mend=False)


def _support(backend: str) -> list[Finding]:
    installed = {str(each.name).lower() for each in metadata.distributions()}
    if any(name.startswith(FOR_GPU.get(backend, "")) for name in installed):
        return []
    what = f"{backend} is installed without what it needs for a GPU: the processor trains"
    way = "`backend: jax` in params.yaml, and `uv pip install 'jax[cuda13]'`"
    return [Finding("params.yaml: backend", what, way, mend=backend == "jax")]
