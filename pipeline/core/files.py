"""Files: JSON and outputs that are whole or not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipeline.core.errors import PipelineError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; rename it to `path` only if the block succeeds.

    The block makes a file of it, or a folder. The path ends as `path` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".*.part.{path.name}"):
        if not psutil.pid_exists(int(leftover.name.split(".")[1])):  # of a run that was killed
            _remove(leftover)
    # of this process alone: the one whose `dvc repro` was killed may still be writing its own
    temporary = path.with_name(f".{os.getpid()}.part.{path.name}")
    _remove(temporary)  # in a container, of a run with the same number
    try:
        yield temporary
        if path.is_dir():
            _remove(path)
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # a write, unlike opening, does not know its file
        raise
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with atomic_path(path) as beside:
        beside.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
        )


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, which need not fit in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    if not path.is_file():
        raise PipelineError(f"{path}: no such file. Run `dvc repro`")
    return json.loads(path.read_text("utf-8"))
