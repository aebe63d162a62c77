"""Progress: the time that a long task takes, where there is no terminal."""

import pytest

from pipeline.core import progress


@pytest.fixture
def seconds(monkeypatch) -> list[float]:
    """Seconds that pass before each time that the clock is read."""
    steps: list[float] = []
    now = 1000.0

    def read() -> float:
        nonlocal now
        now += steps.pop(0)
        return now

    monkeypatch.setattr(progress.time, "monotonic", read)
    return steps


def test_a_task_of_more_than_a_minute_is_announced_once(seconds, capsys):
    seconds += [40, *[6] * 29]  # 40 s of start-up, then 6 s for each item
    printed = [capsys.readouterr().out for _ in progress.progress("x" * 30, 30, "decode", "group")]
    # two items have taken 12 s when the third comes, and the others will take 28 * 6 s
    assert printed == ["", "", "decode: about 3 min left\n", *[""] * 27]


def test_a_task_of_less_than_a_minute_prints_nothing(seconds, capsys):
    seconds += [0, *[6] * 9]
    assert list(progress.progress("abcdefghij", 10, "decode", "group")) == list("abcdefghij")
    assert capsys.readouterr().out == ""
