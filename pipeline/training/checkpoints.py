"""Checkpoints: the state of training after each epoch, saved outside the files that DVC tracks.

DVC deletes the outputs of a stage before it runs, so the state is saved elsewhere:

    .checkpoints/MODEL-SEED/KEY/000007.npz    state after the seventh epoch; the sixth's is kept too
    .checkpoints/MODEL-SEED/KEY/fine_tune/    the same for the epochs of a second phase
    .checkpoints/MODEL-SEED/KEY/finished      MD5 of the model, once the outputs are written
    .checkpoints/MODEL-SEED/lock              held by the process that trains

KEY is a hash of everything that the result depends on, so no other training resumes from it.
"""

import hashlib
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from pipeline.core.files import atomic_path

FOLDER = Path(".checkpoints")
FINISHED = "finished"
# exceptions raised by reading a truncated or corrupt archive
DAMAGE = (ValueError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
MAX_TO_KEEP = 2  # in case the latest is damaged
MAX_AGE = 7 * 24 * 3600  # seconds, after which an interrupted training counts as abandoned


class State(NamedTuple):
    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]
    """JSON-serializable values"""


class Checkpoints:
    """Checkpoints of one training."""

    def __init__(self, name: str, inputs: Any):
        """Args:
        name: Of the training: MODEL-SEED.
        inputs: Everything that the result depends on, JSON-serializable.
        """
        text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.name, self.folder = name, FOLDER / name / key

    def second_phase(self) -> "Checkpoints":
        """Return the checkpoints of a second phase, in a folder inside that of the first."""
        phase = copy(self)
        phase.name, phase.folder = f"{self.name}: fine-tuning", self.folder / "fine_tune"
        return phase

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the training, so that no other process runs it at the same time.

        A process can outlive the `dvc repro` that started it, and would write the same files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(FOLDER / self.name / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"train: {self.name}: waiting for another process that trains it", flush=True)
            lock.acquire()
        try:
            _clean(self.folder)
            yield
        finally:
            lock.release()

    def save(self, epoch: int, state: State) -> None:
        """Save the state after an epoch, counted from 1."""
        with atomic_path(self._path(epoch)) as path, path.open("wb") as file:
            np.savez(file, **state.arrays, metadata=np.array(json.dumps(state.metadata)))  # type: ignore[arg-type]
        for old in self._files()[MAX_TO_KEEP:]:
            old.unlink()

    def latest_epoch(self) -> int | None:
        """Return the latest epoch with an intact checkpoint; report damaged ones."""
        for path in self._files():
            try:
                self.read(int(path.stem))
            except DAMAGE as error:
                message = f"{path} is damaged, so the previous one is used: {error}"
                print(f"train: {self.name}: {message}", flush=True)
            else:
                return int(path.stem)
        return None

    def read(self, epoch: int) -> State:
        """Return the state after an epoch, counted from 1."""
        path = self._path(epoch)
        # reading verifies the checksum of each array
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return State(arrays, json.loads(arrays.pop("metadata").item()))

    def finish(self, model: Path) -> None:
        """Discard the checkpoints once the outputs are written.

        Under DVC the last checkpoint stays until the next training, because DVC may be killed
        before it records the outputs, or its cache may be full.
        """
        if "DVC_STAGE" in os.environ:
            for old in self._files()[1:]:
                old.unlink()
            with atomic_path(self.folder / FINISHED) as path:
                path.write_text(_md5(model))
        else:
            shutil.rmtree(self.folder)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"{epoch:06}.npz"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.npz"), reverse=True)


def _is_recorded(md5: str) -> bool:
    """Return whether dvc.lock contains a hash."""
    lock = Path("dvc.lock")
    return lock.is_file() and md5 in lock.read_text("utf-8")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _clean(current: Path) -> None:
    """Remove the checkpoints of all recorded and abandoned trainings.

    Those in `current` are removed too if DVC has recorded that training, so that `dvc repro -f`
    trains from the start.
    """
    oldest = time.time() - MAX_AGE
    for folder in FOLDER.glob("*/*/"):
        finished = folder / FINISHED
        with suppress(FileNotFoundError):  # another process may have removed it
            # a folder's modification time is that of its last checkpoint
            abandoned = folder != current and folder.stat().st_mtime < oldest
            if abandoned or (finished.exists() and _is_recorded(finished.read_text())):
                shutil.rmtree(folder)
