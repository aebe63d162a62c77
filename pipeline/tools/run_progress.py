"""Run progress: one line at the bottom of a terminal for the whole run.

    training 4 of 6, batchnorm seed 1, epoch 12/20, about 40 s left

The time left is that of all trainings. A training takes the epochs that it still has to run times
the duration of those that it has run, without the first, which includes the start. Until two have
ended, it takes as long as the last training of its model, or as the mean over the models.
"""

import re
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from statistics import mean
from threading import RLock

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.core.text import duration

TRAINING = re.compile(r"train@(.+)-(\d+)")
# the lines of EpochLogger, which this line replaces on a terminal after the first epoch
EPOCH = re.compile(r"epoch (\d+)/(\d+): |train: about .+ left")


@dataclass
class Training:
    """A training that has started."""

    model: str
    seed: str
    start: float
    ends: list[float] = field(default_factory=list)  # of the epochs of this process
    epoch: int = 0
    epochs: int = 0

    @property
    def is_measured(self) -> bool:
        """Whether the duration of an epoch is known, or no epoch is left."""
        return len(self.ends) > 1 or (len(self.ends) == 1 and self.epoch == self.epochs)

    def seconds_left(self) -> float:
        """Return the time left of a training that is measured."""
        seconds = (self.ends[-1] - self.ends[0]) / max(len(self.ends) - 1, 1)
        return (self.epochs - self.epoch) * seconds

    def __str__(self) -> str:
        epoch = f", epoch {self.epoch}/{self.epochs}" if self.ends else ""
        return f"{self.model} seed {self.seed}{epoch}"


class RunProgress:
    """The progress of all stages of a run, and what they print."""

    def __init__(self, jobs: int, console: Console | None = None):
        """Args:
        jobs: How many stages run at once.
        console: A terminal; by default standard output, if it is one.
        """
        self.jobs, self.lock = jobs, RLock()
        self.planned: set[str] = set()
        self.running: list[str] = []
        self.trainings: dict[str, Training] = {}
        if console is None and sys.stdout.isatty():
            console = Console()
        self.console = console if console and console.is_interactive else None
        self.bottom = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> "RunProgress":
        if self.console:
            self.bottom.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bottom.stop()

    def plan(self, stages: Collection[str]) -> None:
        """Set which stages will run."""
        self.planned = set(filter(TRAINING.fullmatch, stages))

    def start(self, stage: str) -> None:
        with self.lock:
            self.running.append(stage)
            if match := TRAINING.fullmatch(stage):
                self.trainings[stage] = Training(match[1], match[2], time.monotonic())
            self._refresh()

    def finish(self, stage: str) -> None:
        with self.lock:
            self.running.remove(stage)
            self._refresh()

    def show(self, stage: str, line: str) -> None:
        """Print a line of a stage's output, or change the bottom line."""
        with self.lock:
            match, training = EPOCH.match(line), self.trainings.get(stage)
            if match and match[1] and training:
                training.epoch, training.epochs = int(match[1]), int(match[2])
                training.ends.append(time.monotonic())
            if not self.console:
                print(f"{stage} | {line}", end="", flush=True)
            elif match and training and training.ends:
                self._refresh()
            else:
                self.console.print(Text(f"{stage} | {line.rstrip()}"), soft_wrap=True)

    def _refresh(self) -> None:
        if self.console:
            text = self.text(self.console.width)
            self.bottom.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def text(self, width: int) -> str:
        """Return the bottom line; if it would be too long, with the first running training only."""
        running = [self.trainings[stage] for stage in self.running if stage in self.trainings]
        if not running:
            return f"running {', '.join(self.running)}" if self.running else ""
        total = len(self.planned | self.trainings.keys())
        seconds = self.seconds_left()
        parts = [f"training {len(self.trainings)} of {total}", *map(str, running)]
        parts += [f"about {duration(seconds)} left"] if seconds else []
        if len(", ".join(parts)) > width:
            parts[2 : len(running) + 1] = [f"and {len(running) - 1} more"] * (len(running) > 1)
        return ", ".join(parts)

    def seconds_left(self) -> float:
        """Return the time left of all trainings; 0 if none is measured yet."""
        seen = [training for training in self.trainings.values() if training.is_measured]
        models = {t.model: t.ends[-1] - t.start + t.seconds_left() for t in seen}
        if not models:
            return 0.0
        left = []
        for stage in self.planned - self.trainings.keys() | set(self.running):
            if match := TRAINING.fullmatch(stage):
                training = self.trainings.get(stage)
                unknown = models.get(match[1], mean(models.values()))
                measured = training if training and training.is_measured else None
                left.append(measured.seconds_left() if measured else unknown)
        return max(sum(left) / min(self.jobs, len(left)), *left) if left else 0.0
