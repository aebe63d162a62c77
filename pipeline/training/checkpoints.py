"""Checkpoints: the state of a training after each epoch, kept outside what DVC tracks.

DVC deletes the outputs of a stage before it runs; what a killed training has done lies here:

    .checkpoints/MODEL/KEY/000007.npz    after the seventh epoch, and the one before it
    .checkpoints/MODEL/KEY/finished      MD5 of the model, once the outputs are written
    .checkpoints/MODEL/lock              held by the process that trains

KEY stands for all that the result depends on, so that no other training goes on from it.
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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from pipeline.core.files import atomic_path

FOLDER = Path(".checkpoints")
FINISHED = "finished"
# what reading an archive raises that has been cut off or changed
DAMAGE = (ValueError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
KEPT = 2  # so that one may be damaged
DAYS = 7  # after which an interrupted training counts as given up


class State(NamedTuple):
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    """What JSON can hold"""


class Checkpoints:
    """Those of one training."""

    def __init__(self, model: str, inputs: Any):
        """Args:
        model: Its name in params.yaml.
        inputs: All that the result depends on, as JSON can hold it.
        """
        text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.model, self.folder = model, FOLDER / model / key

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training the model; wait for one that is at it.

        As one that goes on after the `dvc repro` that started it was killed: whatever it trains
        from, it would write the same files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(FOLDER / self.model / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"train: {self.model}: waits for another process that trains it", flush=True)
            lock.acquire()
        try:
            _clean(self.folder)
            yield
        finally:
            lock.release()

    def save(self, epoch: int, state: State) -> None:
        """Keep the state after an epoch, counted from 1."""
        with atomic_path(self._path(epoch)) as path, path.open("wb") as file:
            np.savez(file, **state.arrays, facts=np.array(json.dumps(state.facts)))  # type: ignore[arg-type]
        for old in self._files()[KEPT:]:
            old.unlink()

    def newest(self) -> int | None:
        """Return the last epoch whose state is whole; say of which it is not."""
        for path in self._files():
            try:
                self.read(int(path.stem))
            except DAMAGE as error:
                what = f"{path} is damaged and passed over: {error}"
                print(f"train: {self.model}: {what}", flush=True)
            else:
                return int(path.stem)
        return None

    def read(self, epoch: int) -> State:
        """Return the state after an epoch, counted from 1."""
        # the archive holds a checksum of each array, which reading checks
        path = self._path(epoch)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return State(arrays, json.loads(arrays.pop("facts").item()))

    def finish(self, model: Path) -> None:
        """Let go of it all, now that the outputs are written.

        Under DVC the last state stays until the next training: DVC may be killed before it
        records the outputs, or find no space in its cache.
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


def _recorded(md5: str) -> bool:
    """Return whether DVC knows a file by its contents."""
    lock = Path("dvc.lock")
    return lock.is_file() and md5 in lock.read_text("utf-8")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _clean(current: Path) -> None:
    """Remove the finished trainings that DVC has recorded, and those given up, of every model.

    The current one too if it is recorded: `dvc repro -f` asks for all of it once more.
    """
    oldest = time.time() - DAYS * 24 * 3600
    for folder in FOLDER.glob("*/*/"):
        finished = folder / FINISHED
        with suppress(FileNotFoundError):  # another process has been at it too
            # of a folder: when a checkpoint was last put there
            given_up = folder != current and folder.stat().st_mtime < oldest
            if given_up or (finished.exists() and _recorded(finished.read_text())):
                shutil.rmtree(folder)
