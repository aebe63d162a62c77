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


def progress(items: Iterable[Item], total: int, title: str, unit: str) -> Iterator[Item]:
    """Yield items, and show how many are done: a bar on a terminal, otherwise an estimate.

    Args:
        items: The items.
        total: Their number.
        title: What is done with them.
        unit: Name of an item, in the singular.
    """
    bar = tqdm(items, title, total, leave=False, unit=unit, disable=None)
    estimate = Estimate(title, total)
    for number, item in enumerate(bar):
        if bar.disable:
            estimate.update(number)
        yield item
