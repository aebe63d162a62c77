"""Write outputs atomically, and read and write JSON."""

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
    """Yield a temporary path next to `path`; rename it to `path` only if the block succeeds.

    The block writes a file or a folder there. The temporary path has the suffix of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".*.part.{path.name}"):
        if not psutil.pid_exists(int(leftover.name.split(".")[1])):  # left by a killed run
            _remove(leftover)
    # The name contains the process id: a process whose `dvc repro` was killed may still be writing.
    temporary = path.with_name(f".{os.getpid()}.part.{path.name}")
    _remove(temporary)  # in containers, an earlier run may have had the same process id
    try:
        yield temporary
        if path.is_dir():
            _remove(path)
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # an error from writing names no file
        raise
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
        )


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file without loading it into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_file(path: Path, remedy: str = "Run `dvc repro`") -> Path:
    """Return the path of a file that must exist.

    Raises:
        PipelineError: The file does not exist.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file. {remedy}")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file that must exist."""
    return json.loads(require_file(path).read_text("utf-8"))
