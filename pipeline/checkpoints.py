"""Checkpoints: the state of a training after each epoch, kept outside what DVC tracks.

DVC deletes the outputs of a stage before it runs; what a killed training has done lies here:

    .checkpoints/MODEL/KEY/000007.npz    after the seventh epoch, and the one before it
    .checkpoints/MODEL/KEY/finished      MD5 of the model, once the outputs are written
    .checkpoints/MODEL/KEY/lock          held by the process that trains

KEY stands for all that the result depends on, so that no other training goes on from it.
"""

import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from pipeline.files import replacing

FOLDER = Path(".checkpoints")
FINISHED = "finished"
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
        """Keep other processes from the same training; wait for one that is at it.

        As one that goes on after the `dvc repro` that started it was killed.
        """
        _forget_old(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"train: {self.model}: waits for another process that trains it", flush=True)
            lock.acquire()
        try:
            finished = self.folder / FINISHED
            if finished.exists() and _recorded(finished.read_text()):
                finished.unlink()  # `dvc repro -f`: all of it, once more
                for path in self._files():
                    path.unlink()
            yield
        finally:
            lock.release()

    def save(self, epoch: int, state: State) -> None:
        """Keep the state after an epoch, counted from 1."""
        with replacing(self.folder / f"{epoch:06}.npz") as path, path.open("wb") as file:
            np.savez(file, **state.arrays, facts=np.array(json.dumps(state.facts)))  # type: ignore[arg-type]
        for old in self._files()[KEPT:]:
            old.unlink()

    def latest(self) -> State | None:
        """Return the newest state that is whole; say which ones are not."""
        for path in self._files():
            try:
                # the archive holds a checksum of each array, which reading checks
                with path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
                    arrays = {name: archive[name] for name in archive.files}
                return State(arrays, json.loads(arrays.pop("facts").item()))
            except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
                print(f"train: {self.model}: {path} is damaged and passed over: {error}")
        return None

    def finish(self, model: Path) -> None:
        """Let go of it all, now that the outputs are written, or rather once DVC has recorded them.

        It may still be killed, or find no space in its cache.
        """
        if "DVC_STAGE" in os.environ:
            with replacing(self.folder / FINISHED) as path:
                path.write_text(_md5(model))
        else:
            shutil.rmtree(self.folder)
            _remove_empty()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.npz"), reverse=True)


def clean(model: str) -> None:
    """Remove what finished trainings of a model have left, once DVC has recorded them."""
    for finished in FOLDER.glob(f"{model}/*/{FINISHED}"):
        shutil.rmtree(finished.parent)
    _remove_empty()


def _recorded(md5: str) -> bool:
    """Return whether DVC knows a file by its contents."""
    lock = Path("dvc.lock")
    return lock.is_file() and md5 in lock.read_text("utf-8")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _forget_old(current: Path) -> None:
    """Remove trainings that nobody has gone on with for DAYS."""
    oldest = time.time() - DAYS * 24 * 3600
    for folder in FOLDER.glob("*/*"):
        # of a folder: when a checkpoint was last put there
        if folder != current and folder.stat().st_mtime < oldest:
            shutil.rmtree(folder)
    _remove_empty()


def _remove_empty() -> None:
    for folder in (*FOLDER.glob("*"), FOLDER):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
