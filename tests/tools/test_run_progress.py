"""Run progress: the line at the bottom of a terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.tools.run_progress import RunProgress, Training

TRAININGS = [f"train@{model}-{seed}" for model in ("baseline", "batchnorm") for seed in range(3)]


@pytest.fixture
def progress() -> RunProgress:
    """Two of six trainings run, and three have not started."""
    progress = RunProgress(jobs=2)
    progress.plan([*TRAININGS, "evaluate@baseline", "report"])
    for stage in TRAININGS[:3]:
        progress.start(stage)
    progress.finish("train@baseline-0")
    # 5 s until the end of the first epoch, then 1 s each
    progress.trainings |= {
        "train@baseline-0": Training("baseline", "0", 0.0, [5.0, 6.0, 7.0], 3, 3),
        "train@baseline-1": Training("baseline", "1", 7.0, [12.0, 13.0], 2, 3),
        "train@baseline-2": Training("baseline", "2", 10.0),
    }
    return progress


def test_the_time_left_is_that_of_all_trainings(progress):
    # baseline 1: an epoch of 1 s; baseline 2: 7 s as baseline 1; 3 batchnorm: 7 s, the mean
    assert progress.seconds_left() == pytest.approx((1 + 7 + 3 * 7) / 2)
    progress.start("train@batchnorm-0")
    batchnorm = Training("batchnorm", "0", 13.0, [33.0], 1, 4)
    progress.trainings["train@batchnorm-0"] = batchnorm
    # its first epoch includes the start, so it is not measured yet
    assert progress.seconds_left() == pytest.approx((1 + 7 + 3 * 7) / 2)
    progress.trainings["train@batchnorm-0"] = replace(batchnorm, ends=[33.0, 48.0], epoch=2)
    # epochs of 15 s: 30 s are left, and 20 + 3 * 15 s for each of the two others
    assert progress.seconds_left() == pytest.approx((1 + 7 + 30 + 2 * 65) / 2)
    progress.plan(TRAININGS[:4])  # nothing waits; the last training takes as long as it takes
    assert progress.seconds_left() == pytest.approx(30)


def test_the_line_names_the_trainings_that_run_if_it_has_room(progress):
    expected = "training 3 of 6, baseline seed 1, epoch 2/3, baseline seed 2, about 15 s left"
    assert progress.text(80) == expected
    assert (
        progress.text(76)
        == "training 3 of 6, baseline seed 1, epoch 2/3, and 1 more, about 15 s left"
    )
    progress.finish("train@baseline-2")
    line = "training 3 of 6, baseline seed 1, epoch 2/3, about 10 s left"
    assert progress.text(80) == progress.text(20) == line
    progress.finish("train@baseline-1")
    for stage in ("evaluate@baseline", "train@batchnorm-0"):
        progress.start(stage)
    assert progress.text(80) == "training 4 of 6, batchnorm seed 0, about 10 s left"
    progress.finish("train@batchnorm-0")
    assert progress.text(80) == "running evaluate@baseline"


def test_a_terminal_shows_one_line_instead_of_the_epochs(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, color_system=None)
    with RunProgress(jobs=1, console=console) as progress:
        progress.plan(["train@a_network_with_a_long_name_[bold]-0"])
        progress.start("train@a_network_with_a_long_name_[bold]-0")
        for line in ("train: [red]x\n", "train: about 13 min left\n", "epoch 1/9: loss 0.1\n",
                     "train: about 12 min left\n"):  # fmt: skip
            progress.show("train@a_network_with_a_long_name_[bold]-0", line)
    printed = file.getvalue()
    assert "train@a_network_with_a_long_name_[bold]-0 | train: [red]x\n" in printed
    assert "training 1 of 1, a_network_with_a_long_name_[bold] seed 0, …" in printed
    assert "loss" not in printed
    assert "13 min" in printed  # before its first epoch ends, the line does not have the time left
    assert "12 min" not in printed
    assert "\n\n" not in printed


def test_a_pipe_gets_every_line(capsys):
    with RunProgress(jobs=1) as progress:
        progress.start("train@a-0")
        progress.show("train@a-0", "epoch 1/9: loss 0.1\n")
        progress.finish("train@a-0")
    assert capsys.readouterr().out == "train@a-0 | epoch 1/9: loss 0.1\n"
