"""Search: trials that continue after a kill, their results, and the change that is proposed."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from optuna.trial import TrialState

from pipeline.config import params
from pipeline.config.search_space import Interval, Values, search_space
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, write_json
from pipeline.reporting import results
from pipeline.reporting.drawing import plt
from pipeline.tools import search, search_results
from pipeline.tools.search_results import Search
from pipeline.tools.search_study import (
    ask,
    enqueue,
    finished_trials,
    open_study,
    run_trials,
    settings_of,
)
from pipeline.tools.search_workers import Epoch, Result
from tests.conftest import REPOSITORY, task, write_arrays
from tests.core.test_console import cells

SPACE: dict[str, Values] = {
    "train.learning_rate": Interval(0.001, 0.1, True),
    "train.batch_size": Interval(8, 64, False),
    "build.dropout": [None, 0.5, [0.1, 0.2]],
}


def accuracy(settings: dict[str, Any]) -> float:
    """Return a made-up accuracy that is best at a learning rate of 0.01."""
    return 0.9 - 0.1 * abs(np.log10(settings["train.learning_rate"]) + 2)


def run_until(study, total: int) -> None:
    """Finish trials one after another with made-up accuracies."""
    while len(finished_trials(study)) < total:
        trial, settings = ask(study, SPACE)
        study.tell(trial, accuracy(settings))


def settings_tried(study) -> list[dict[str, Any]]:
    return [settings_of(trial, SPACE) for trial in finished_trials(study)]


def test_a_killed_search_tries_what_it_would_have_tried_without_the_kill(tmp_path):
    whole = open_study(tmp_path / "whole.log", {}, 0)
    run_until(whole, 14)  # the first ten are random
    path = tmp_path / "killed.log"
    for done in (4, 12):
        killed = open_study(path, {}, 0)
        run_until(killed, done)
        _, running = ask(killed, SPACE)
        # a kill leaves Optuna's lock, and can leave a part of a line
        path.with_name("killed.log.lock").touch()
        with path.open("ab") as file:
            file.write(b'{"op_code":4,"worker_')
    resumed = open_study(path, {}, 0)
    run_until(resumed, 14)
    assert running in settings_tried(resumed)
    assert settings_tried(resumed) == settings_tried(whole)
    assert len({json.dumps(settings) for settings in settings_tried(resumed)}) == 14
    interrupted = resumed.get_trials(states=(TrialState.FAIL,))
    assert len(interrupted) == 2
    for settings in settings_tried(resumed):
        rate = settings["train.learning_rate"]
        assert 0.001 <= rate <= 0.1
        assert rate == float(f"{rate:.3g}")
        assert type(settings["train.batch_size"]) is int
        assert settings["build.dropout"] in [None, 0.5, [0.1, 0.2]]


def test_a_change_starts_a_new_search_that_says_what_has_changed(tmp_path, capsys):
    path = tmp_path / "model.log"
    run_until(open_study(path, {"images": 1, "split": 2}, 0), 2)
    assert len(finished_trials(open_study(path, {"images": 1, "split": 2}, 0))) == 2
    assert capsys.readouterr().out == ""
    assert finished_trials(open_study(path, {"images": 1, "split": 3}, 0)) == []
    assert capsys.readouterr().out == (
        "search: a new search starts, because this has changed: split. Earlier trials still count "
        "in the report\n"
    )


def test_a_damaged_journal_is_one_error_line(tmp_path):
    path = tmp_path / "model.log"
    run_until(open_study(path, {}, 0), 1)
    path.write_bytes(b"x" + path.read_bytes())
    with pytest.raises(PipelineError, match=r"model\.log: must be a journal of Optuna\. Got .*Del"):
        open_study(path, {}, 0)


def test_the_current_settings_come_first_if_the_space_has_them(tmp_path):
    current = {"train.learning_rate": 0.02, "train.batch_size": 32, "build.dropout": [0.1, 0.2]}
    study = open_study(tmp_path / "model.log", {}, 0)
    enqueue(study, {**current, "train.batch_size": 128}, SPACE)
    enqueue(study, {**current, "build.dropout": 0.1}, SPACE)
    enqueue(study, current, SPACE)
    run_until(study, 2)
    assert settings_tried(study)[0] == current


def test_settings_that_cannot_be_trained_count_as_trials(tmp_path):
    def refuse(settings: dict[str, Any]) -> Any:
        raise PipelineError("models.x.train has a momentum")

    study, ended = open_study(tmp_path / "model.log", {}, 0), []
    run_trials(study, SPACE, 3, refuse, lambda: pytest.fail("no process is needed"), 2,
               lambda *arguments: ended.append(arguments))  # fmt: skip
    assert [result.problem for _, result in ended] == ["models.x.train has a momentum"] * 3
    found = Search("x", study, SPACE, {}, "digits", 0, 288)
    assert search_results.counts(found) == {"trials": 3, "ended_early": 0, "failed": 3}
    with pytest.raises(PipelineError, match=r"search\.x: at least one .*momentum$"):
        search_results.show(found)


class ScriptedWorker:
    """Stands in for a process that trains: reports given accuracies, one per epoch."""

    def __init__(self, curves: Iterator[list[float]]):
        self.connection, other = multiprocessing.Pipe()
        self.process = None
        threading.Thread(target=self.work, args=(other, curves), daemon=True).start()

    def start(self, params: Any) -> None:
        self.connection.send(params)

    def stop(self) -> None:
        self.connection.close()

    def work(self, connection: Connection, curves: Iterator[list[float]]) -> None:
        with suppress(EOFError):
            while connection.recv():
                result = Result(None)
                for number, value in enumerate(accuracies := next(curves), 1):
                    connection.send(Epoch(number, value))
                    if not connection.recv():
                        break
                else:
                    result = Result(accuracies[-1])
                connection.send(result)


def test_a_trial_below_the_median_is_ended_after_the_warm_up(tmp_path):
    study = open_study(tmp_path / "model.log", {}, warm_up=2)
    curves = iter([*[[0.5, 0.6, 0.7]] * 5, [0.1, 0.2, 0.9], [0.1, 0.8, 0.9]])
    settings: Any = dict  # stands in for the params of a trial
    worker: Any = ScriptedWorker
    run_trials(study, SPACE, 7, settings, lambda: worker(curves), 1, lambda *_: None)
    *first, ended, last = study.get_trials()
    assert {trial.state for trial in [*first, last]} == {TrialState.COMPLETE}
    # not in the first epoch, nor in the third
    assert (ended.state, ended.intermediate_values) == (TrialState.PRUNED, {1: 0.1, 2: 0.2})
    found = Search("x", study, SPACE, {}, "digits", 0, 288)
    assert search_results.counts(found) == {"trials": 7, "ended_early": 1, "failed": 0}


def test_what_has_been_searched_does_not_change_the_search(project, edit):
    for name in ("data/arrays/train/SHA256SUMS", "data/arrays/info.json", "data/split/0.npz"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    loaded = params.load()
    space = search_space(loaded, "batchnorm")
    before = search.identity(loaded, "batchnorm", space)

    def changed(after: params.Params) -> list[str]:
        now = search.identity(after, "batchnorm", search_space(after, "batchnorm"))
        return [name for name in before if before[name] != now[name]]

    settings = {"train.learning_rate": 0.002, "build.batch_norm_momentum": 0.95}
    applied = search.with_settings(loaded, "batchnorm", settings)
    assert search.current_settings(applied, "batchnorm", space) == {
        "build.batch_norm_momentum": 0.95, "train.learning_rate": 0.002,
        "train.batch_size": 32, "train.label_smoothing": 0.0,
    }  # fmt: skip
    assert changed(applied) == []
    other = search.with_settings(loaded, "batchnorm", {"train.augment.shift": 0.1})
    assert changed(other) == ["other settings"]
    (project / "data/split/0.npz").write_text("y")
    assert changed(loaded) == ["split"]
    with pytest.raises(
        PipelineError, match=r"^models\.batchnorm\.train has a momentum, which adam"
    ):
        search.with_settings(loaded, "batchnorm", {"train.momentum": 0.9})


def finding(
    path: Path, model: str, current: dict[str, Any], trials: int, images: str = "digits"
) -> Search:
    """Return a search with made-up accuracies, of which one trial was ended early."""
    study = open_study(path, {"images": images}, 0)
    trial, _ = ask(study, SPACE)
    trial.report(0.1, 1)
    study.tell(trial, state=TrialState.PRUNED)
    run_until(study, trials)
    return Search(model, study, SPACE, current, images, 0, 288)


def test_a_record_keeps_the_largest_number_of_trials_of_each_search(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = finding(tmp_path / "a.log", "net", {}, 6)
    search_results.record(made)
    # the journal is lost, and the same search starts again
    search_results.record(finding(tmp_path / "b.log", "net", {}, 2))
    (entry,) = read_json(Path("search/net.json"))["searches"]
    assert (entry["trials"], entry["ended_early"], entry["failed"]) == (6, 1, 0)
    best = max(settings_tried(made.study)[1:], key=accuracy)
    assert entry["best"] == {"val_accuracy": accuracy(best), "settings": best}

    search_results.record(finding(tmp_path / "c.log", "net", {}, 3, "other digits"))
    search_results.record(finding(tmp_path / "c.log", "net", {}, 4, "cifar10"))
    entries = read_json(Path("search/net.json"))["searches"]
    assert [(entry["data"], entry["trials"]) for entry in entries] == [
        ("digits", 6), ("other digits", 3), ("cifar10", 4),
    ]  # fmt: skip
    entries[1]["data"] = "digits"  # the same images with other settings, for example
    write_json(Path("search/net.json"), {"model": "net", "searches": entries})
    rows = results.searches(Path("search"), ["base", "net"], "digits")
    assert rows == [{"model": "net", "trials": 9}]


def test_the_change_is_applied_by_git_and_gives_the_best_settings(project, capsys):
    (project / "params.yaml").write_text(
        (project / "params.yaml").read_text("utf-8").partition("\nsearch:\n")[0]
        + "\nsearch: {airnet_narrow: {train: {weight_decay: {low: 0.001, high: 0.1, log: true}}}}\n"
    )
    loaded = params.load()
    space = search_space(loaded, "airnet_narrow")
    study = open_study(project / "model.log", {}, 0)
    enqueue(study, {"train.weight_decay": 0.02}, space)
    trial, _ = ask(study, space)
    study.tell(trial, 0.9)
    current = search.current_settings(loaded, "airnet_narrow", space)
    found = Search("airnet_narrow", study, space, current, "digits", 0, 288)
    search_results.show(found)
    printed = capsys.readouterr().out
    proposal = project / "plots/search/airnet_narrow.diff"
    assert proposal.read_text() in printed
    assert printed.endswith(f"run `git apply {proposal.relative_to(project)}`\n")
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "apply", proposal], check=True)
    applied = params.load()
    assert applied.train_of("airnet_narrow").weight_decay == 0.02
    # other models take this setting from airnet_narrow (YAML's <<), and keep its old value
    for name in ("airnet_3", "airnet_5", "airnet_15"):
        assert applied.train_of(name) == loaded.train_of(name)

    current = search.current_settings(applied, "airnet_narrow", space)
    search_results.show(found._replace(current=current))
    assert "params.yaml has the settings of the best trial, 1\n" in capsys.readouterr().out
    assert not proposal.exists()


def test_the_picture_shows_importances_that_follow_from_the_trials(tmp_path):
    made = finding(tmp_path / "a.log", "net", {}, 30)
    shares = search_results.importances(made)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["train.learning_rate"] > 0.8  # the only one that the accuracy depends on
    figure = search_results.draw(made)
    left, right = figure.axes
    assert [np.size(line.get_xdata()) for line in left.lines] == [29, 30, 1]  # one was ended early
    assert [label.get_text() for label in right.get_yticklabels()][-1] == "learning_rate"
    plt.close(figure)
    few = search_results.draw(finding(tmp_path / "b.log", "net", {}, 4))
    assert [text.get_text() for text in few.axes[1].texts] == ["too few trials"]
    plt.close(few)


def test_the_table_fits_80_columns_and_has_the_ten_best_trials(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    space = {**SPACE, "train.label_smoothing": [0.0, 0.1]}
    study = open_study(tmp_path / "net.log", {}, 0)
    while len(finished_trials(study)) < 12:
        trial, settings = ask(study, space)
        study.tell(trial, accuracy(settings))
    best = max((settings_of(trial, space) for trial in finished_trials(study)), key=accuracy)
    search_results.print_trials(Search("net", study, space, best, "digits", 0, 288))
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80
    title = "net: validation accuracy in %, the best of 12 trials (0 ended early, 0 failed)"
    assert title in " ".join(" ".join(lines).split())
    rows = [row for row in cells(lines) if row[0].isdigit()]
    assert len(rows) == 10
    accuracies = [float(row[1]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert [row[-1] for row in rows] == ["params.yaml", *[""] * 9]


def test_a_model_without_a_space_and_no_trials_are_refused(project):
    with pytest.raises(PipelineError, match=r"MODEL must be one of baseline, .*Got tutorial$"):
        search.main(["tutorial"])
    with pytest.raises(PipelineError, match=r"TRIALS must be at least 1\. Got 0"):
        search.main(["baseline", "--trials", "0"])
    (project / "data/folder").mkdir(parents=True)
    search.main(["baseline", "--check"])  # needs no images
    with pytest.raises(PipelineError, match=r"data/arrays/train/images\.npy: no such file"):
        search.main(["baseline"])
    write_arrays(project / "data/arrays/train", *task())
    (project / "data/split").mkdir()
    np.savez(project / "data/split/0.npz", train=np.arange(64), validation=np.arange(0))
    with pytest.raises(PipelineError, match=r"split\.validation must be greater than 0, because a"):
        search.main(["baseline"])


def test_make_search_checks_its_arguments_before_it_prints_or_runs_anything():
    installed = ["-o", ".venv/ready", "-o", ".venv/ready-search"]
    command = ["make", "--dry-run", *installed, "search", "MODEL=a", "TRIALS=7", "JOBS=2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    check, *_, search_line = [line for line in done.stdout.splitlines() if line[:1] != "#"]
    assert check.startswith("python -m pipeline search a --trials 7 --jobs 2 --check")
    assert search_line == "python -m pipeline search a --trials 7 --jobs 2"


SPACE_OF_PLAIN = """
search:
  net: {build: {filters: [1, 2, 3]}, train: {learning_rate: [0.01, 1.0e-4, 1.0e+30]}}
"""


@pytest.fixture
def digits(project) -> Path:
    """A project with 64 small images and a split, but without test images."""
    images, labels = task()
    write_arrays(project / "data/arrays/train", images, labels)
    (project / "data/arrays/info.json").write_text(
        '{"classes": ["dark", "bright"], "image_shape": [8, 8, 1], "normalize": "unit", '
        '"mean": [0.5], "std": [0.5]}'
    )
    (project / "data/split").mkdir()
    np.savez(project / "data/split/0.npz", train=np.arange(48), validation=np.arange(48, 64))
    path = project / "params.yaml"
    text = path.read_text("utf-8").partition("\nsearch:\n")[0]
    net = "models:\n  net: {architecture: plain, build: {depth: 1, filters: 2}}\n"
    text = text.replace("\nmodels:\n", f"\n{net}").replace("epochs: 20", "epochs: 30")
    path.write_text(text + SPACE_OF_PLAIN, "utf-8")
    return project


def start(folder: Path, trials: int, jobs: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "search", "net", f"--trials={trials}", f"--jobs={jobs}"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


@pytest.mark.slow
def test_a_search_without_test_images_survives_a_kill_and_an_interrupt(digits, capsys):
    trials = 6
    for kill, done, jobs in ((signal.SIGKILL, 1, 2), (signal.SIGINT, 3, 1)):
        with start(digits, trials, jobs) as process:
            for line in process.stdout or ():
                if line.startswith(f"{done} of {trials}: "):
                    children = psutil.Process(process.pid).children(recursive=True)
                    process.send_signal(kill)
                    break
            stderr = process.stderr.read() if process.stderr else ""
        if kill == signal.SIGINT:
            assert process.returncode == 128 + signal.SIGINT, stderr
            assert re.fullmatch(
                r"interrupted\. [3-5] of 6 trials are finished and kept\. "
                r"Run the same command to continue\n", stderr,
            )  # fmt: skip
        _, alive = psutil.wait_procs(children, timeout=120)
        assert not alive  # processes that train end by themselves

    with start(digits, trials) as process:
        stdout, stderr = process.communicate(timeout=600)
    assert (process.returncode, stderr) == (0, "")
    search.main(["net", f"--trials={trials}", "--jobs=1"])
    first_line, _, table = capsys.readouterr().out.partition("\n")
    assert first_line.startswith("search: net: 6 trials finished, 0 to run, 1 at once, on 16 ")
    assert stdout.endswith(table)
    (entry,) = read_json(digits / "search/net.json")["searches"]
    assert entry["trials"] == trials
    assert entry["best"]["val_accuracy"] > 0.9
    # a learning rate of 1e30 diverges, which is a result
    log = (digits / "data/search/net.log").read_text()
    assert entry["failed"] == log.count("loss must be finite") > 0
    assert (digits / "plots/search/net.png").read_bytes().startswith(b"\x89PNG")
    assert not (digits / "data/arrays/test").exists()


@pytest.mark.slow
def test_a_trial_has_the_accuracy_that_the_stage_train_gets(digits, quick_stage):
    from pipeline.runtime import select_backend

    select_backend.use("tensorflow", 1)
    from pipeline.tools.search_trial import Pruned, Trainer

    done = quick_stage(
        "pipeline.train", "net", "0", "--arrays", "data/arrays", "--split", "data/split/0.npz",
        "--out", "0.keras", "--history", "0.csv", "--metrics", "0.json", "--run", "run.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    history = np.genfromtxt(digits / "0.csv", delimiter=",", names=True)["val_accuracy"]
    trainer = Trainer("net", digits / "data/arrays", digits / "data/split/0.npz", None)
    epochs: list[tuple[int, float]] = []

    def is_promising(epoch: int, val_accuracy: float) -> bool:
        epochs.append((epoch, val_accuracy))
        return len(epochs) < 35

    assert trainer.train(params.load(), is_promising) == history[-1]
    assert [accuracy for _, accuracy in epochs] == history.tolist()
    with pytest.raises(Pruned):
        trainer.train(params.load(), is_promising)
    assert epochs[30:] == list(enumerate(history[:5].tolist(), 1))


def test_a_finished_trial_is_described_on_one_line():
    settings = {"train.learning_rate": 0.00213, "build.dropout": None}
    described = [
        search_results.describe(result, settings)
        for result in (Result(0.98264), Result(None), Result(None, "loss must be finite"))
    ]
    assert described == [
        "98.26 %, learning_rate 0.00213, dropout null",
        "ended early, learning_rate 0.00213, dropout null",
        "failed (loss must be finite), learning_rate 0.00213, dropout null",
    ]
