"""Progress: a bar on a terminal, and elsewhere one line if a task takes long."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from pipeline.core.text import duration

MIN_MEASURED = 10  # seconds on which an estimate is based
MIN_LEFT = 60  # seconds; shorter tasks print no estimate

Item = TypeVar("Item")


class Estimate:
    """Prints once how long a task will still take, if that is more than a minute."""

    def __init__(self, title: str, total: float):
        """Args:
        title: What the line starts with.
        total: How much there is to do.
        """
        self.title, self.total = title, total
        self.first: tuple[float, float] | None = None
        self.is_printed = False

    def update(self, done: float) -> None:
        """Set how much is done. The first call starts the clock, so start-up does not count."""
        now = time.monotonic()
        self.first = self.first or (now, done)
        seconds, measured = now - self.first[0], done - self.first[1]
        if self.is_printed or seconds < MIN_MEASURED or not measured:
            return
        left = (self.total - done) * seconds / measured
        if left > MIN_LEFT:
            self.is_printed = True
            with tqdm.external_write_mode():  # on a terminal, above a bar
                print(f"{self.title}: about {duration(left)} left", flush=True)


class Progress:
    """Shows how much of a task is done: a bar on a terminal, otherwise an estimate."""

    def __init__(self, title: str, total: int, unit: str):
        """Args:
        title: What is done.
        total: Number of items.
        unit: Name of an item, in the singular.
        """
        self.bar = tqdm(desc=title, total=total, leave=False, unit=unit, disable=None)
        self.estimate = Estimate(title, total)
        self.done = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, done: int) -> None:
        """Set how many items are done."""
        self.bar.update(done - self.done)
        self.done = done
        if self.bar.disable:
            self.estimate.update(done)

    def advance(self, count: int = 1) -> None:
        """Set how many more items are done."""
        self.update(self.done + count)


def progress(items: Iterable[Item], total: int, title: str, unit: str) -> Iterator[Item]:
    """Yield items, and show how many are done, as `Progress` does.

    Args:
        items: The items.
        total: Their number.
        title: What is done with them.
        unit: Name of an item, in the singular.
    """
    with Progress(title, total, unit) as shown:
        for number, item in enumerate(items):
            shown.update(number)
            yield item
