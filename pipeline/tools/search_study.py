"""Search study: ask Optuna for the settings of each trial, and tell it the result."""

import hashlib
import json
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from pipeline.config.schema import Params
from pipeline.config.search_space import Interval, Values
from pipeline.core.errors import PipelineError, one_line
from pipeline.tools.edit_params import dump
from pipeline.tools.search_workers import Epoch, Result, Worker

optuna.logging.set_verbosity(optuna.logging.WARNING)

DIGITS = 3  # significant digits of a sampled value
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# attributes: of a study, what its trials depend on; of a trial, why it could not be trained
IDENTITY, PROBLEM = "identity", "problem"


def open_study(path: Path, identity: dict[str, Any], warm_up: int) -> optuna.Study:
    """Open the study of a search in its journal, and create it if it does not exist.

    Trials that were running when the search was killed will run again with the same settings.

    Args:
        path: The journal. The caller holds the lock of the search.
        identity: What the trials depend on. If it changes, a new study starts.
        warm_up: Epochs in which no trial is ended.

    Raises:
        PipelineError: The journal is damaged.
    """
    _repair(path)
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    try:
        backend = JournalFileBackend(str(path), JournalFileOpenLock(str(path)))
        storage = optuna.storages.JournalStorage(backend)
        studies = optuna.get_all_study_summaries(storage)
    except (ValueError, KeyError) as error:
        raise PipelineError(
            f"{path}: must be a journal of Optuna. Got {error}. Delete it, and the search starts "
            "again"
        ) from None
    study = optuna.create_study(
        storage=storage, study_name=key, direction="maximize", load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=warm_up),
    )  # fmt: skip
    if key not in [other.study_name for other in studies]:
        study.set_user_attr(IDENTITY, identity)
        if studies:
            before = studies[-1].user_attrs.get(IDENTITY, {})
            changed = [name for name in identity if identity[name] != before.get(name)]
            print(
                f"search: a new search starts, because this has changed: {', '.join(changed)}. "
                "Earlier trials still count in the report"
            )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _repair(path: Path) -> None:
    """Remove what a killed search left: the lock of Optuna, and a line that is not complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the finished trials in the order of their start, without interrupted ones."""
    return study.get_trials(deepcopy=False, states=FINISHED)


def ask(study: optuna.Study, space: dict[str, Values]) -> tuple[optuna.Trial, dict[str, Any]]:
    """Start a trial, and return it with its settings.

    Each trial has a sampler of its own, with a seed: a search that is killed and continued would
    otherwise sample its first values again.
    """
    started = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
    study.sampler = optuna.samplers.TPESampler(seed=len(started))
    trial = study.ask()
    for setting, tried in space.items():
        if not isinstance(tried, Interval):
            # as text, since Optuna's choices have simple types
            trial.suggest_categorical(setting, list(dict.fromkeys(map(dump, tried))))
        elif isinstance(tried.low, int) and isinstance(tried.high, int):
            trial.suggest_int(setting, tried.low, tried.high, log=tried.log)
        else:
            trial.suggest_float(setting, tried.low, tried.high, log=tried.log)
    return trial, settings_of(trial, space)


def settings_of(trial: optuna.Trial | FrozenTrial, space: dict[str, Values]) -> dict[str, Any]:
    """Return the settings that a trial is trained with."""
    settings = {}
    for setting, value in trial.params.items():
        tried = space[setting]
        if isinstance(tried, list):
            settings[setting] = next(other for other in tried if dump(other) == value)
        elif isinstance(value, int):
            settings[setting] = value
        else:
            settings[setting] = min(max(float(f"{value:.{DIGITS}g}"), tried.low), tried.high)
    return settings


def enqueue(study: optuna.Study, settings: dict[str, Any], space: dict[str, Values]) -> None:
    """Let the next trial have these settings, unless the space does not have one of them."""
    parameters: dict[str, Any] = {}
    for setting, value in settings.items():
        tried = space[setting]
        if isinstance(tried, list):
            if value not in tried:
                return
            parameters[setting] = dump(value)
        else:
            if not isinstance(value, int | float) or not tried.low <= value <= tried.high:
                return
            parameters[setting] = value
    study.enqueue_trial(parameters)


def run_trials(
    study: optuna.Study,
    space: dict[str, Values],
    total: int,
    params_with: Callable[[dict[str, Any]], Params],
    new_worker: Callable[[], Worker],
    jobs: int,
    on_end: Callable[[dict[str, Any], Result], None],
) -> None:
    """Run trials, several at once, until a number of them is finished.

    Args:
        study: Of this search.
        space: What is tried of each setting.
        total: Number of trials, including those that are finished already.
        params_with: Returns params with the settings of a trial.
        new_worker: Starts a process.
        jobs: Trials to run at once.
        on_end: Called when a trial is finished, with its settings.

    Raises:
        PipelineError: A process ended.
    """

    def tell(trial: optuna.Trial, settings: dict[str, Any], result: Result) -> None:
        if result.problem:
            trial.set_user_attr(PROBLEM, one_line(result.problem))
        if result.val_accuracy is None:
            # pruned rather than failed, so that the sampler avoids settings like these
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, result.val_accuracy)
        on_end(settings, result)

    workers: list[Worker] = []
    idle: list[Worker] = []
    running: dict[Connection, tuple[Worker, optuna.Trial, dict[str, Any]]] = {}
    try:
        while True:
            while len(running) < jobs and len(finished_trials(study)) + len(running) < total:
                trial, settings = ask(study, space)
                try:
                    params = params_with(settings)
                except PipelineError as error:
                    tell(trial, settings, Result(None, str(error)))
                    continue
                if not idle:
                    idle = [new_worker()]
                    workers += idle
                worker = idle.pop()
                worker.start(params)
                running[worker.connection] = worker, trial, settings
            if not running:
                return
            for connection in wait(list(running)):
                worker, trial, settings = running[connection]  # type: ignore[index]
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionError):
                    worker.process.join()
                    raise PipelineError(
                        "search: a process that trained a trial ended with exit status "
                        f"{worker.process.exitcode}. Finished trials are kept: run the same "
                        "command to continue, with fewer JOBS if there is not enough memory"
                    ) from None
                if isinstance(message, Epoch):
                    trial.report(message.val_accuracy, message.number)
                    worker.connection.send(not trial.should_prune())
                else:
                    del running[worker.connection]
                    idle.append(worker)
                    tell(trial, settings, message)
    finally:
        for worker in workers:
            worker.stop()
