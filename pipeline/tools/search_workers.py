"""Search workers: processes that each train one trial of a search after another."""

import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config.schema import Params
from pipeline.core.errors import PipelineError
from pipeline.runtime import select_backend

if TYPE_CHECKING:
    from pipeline.tools.search_trial import Trainer


class Setup(NamedTuple):
    """What is the same in all trials."""

    model: str
    backend: str
    threads: int
    arrays: Path
    split: Path
    features: Path | None


class Epoch(NamedTuple):
    """Message of a worker: an epoch is finished. The answer is whether to continue."""

    number: int
    """Counted from 1"""
    val_accuracy: float


class Result(NamedTuple):
    """Message of a worker: a trial is finished."""

    val_accuracy: float | None
    """None: its training did not reach the last epoch"""
    problem: str = ""
    """Why the settings cannot be trained with; empty: they can"""


class Worker:
    """A process that trains one trial at a time, with its own Keras backend."""

    def __init__(self, setup: Setup, gpu: str | None):
        """Args:
        setup: Of all trials.
        gpu: The only GPU that it may use; None: no restriction.
        """
        context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, setup, gpu), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process closes the connection

    def start(self, params: Params) -> None:
        """Start a trial with its settings."""
        self.connection.send(params.model_dump_json(exclude_unset=True))

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


def work(connection: Connection, setup: Setup, gpu: str | None) -> None:
    """Train trials until the search ends this process, or is killed itself."""
    # Ctrl-C reaches all processes of a terminal; the search ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    select_backend.use(setup.backend, setup.threads)
    from pipeline.tools.search_trial import Trainer

    trainer = Trainer(setup.model, setup.arrays, setup.split, setup.features)
    with suppress(EOFError, ConnectionError):
        while True:
            connection.send(_train(trainer, connection.recv(), connection))


def _train(trainer: "Trainer", params: str, connection: Connection) -> Result:
    """Train a trial, whose settings are those of params.yaml as JSON."""
    from pipeline.tools.search_trial import Pruned

    def is_promising(epoch: int, val_accuracy: float) -> bool:
        connection.send(Epoch(epoch, val_accuracy))
        return connection.recv()

    try:
        return Result(trainer.train(Params.model_validate_json(params), is_promising))
    except Pruned:
        return Result(None)
    except PipelineError as error:
        return Result(None, str(error))
