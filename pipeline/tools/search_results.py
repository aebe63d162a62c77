"""Search results: the table, the picture, the record and the change of params.yaml."""

import difflib
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from pipeline.config.params import PARAMS
from pipeline.config.search_space import Values
from pipeline.core.console import Column, print_table
from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_path, read_json, write_json
from pipeline.core.text import counted, percent
from pipeline.reporting.chart_style import COLOURS
from pipeline.reporting.drawing import Figure, MaxNLocator, PercentFormatter, plt, save
from pipeline.tools.edit_params import dump, edited
from pipeline.tools.search_study import PROBLEM, finished_trials, settings_of
from pipeline.tools.search_workers import Result

RECORDS = Path("search")
PICTURES = Path("plots/search")
BEST = 10  # trials in the table
MIN_TRIALS = 5  # with fewer complete trainings, no importance is estimated


class Search(NamedTuple):
    """A search, which may not have finished."""

    model: str
    study: optuna.Study
    space: dict[str, Values]
    current: dict[str, Any]
    """The value of each setting in params.yaml"""
    data: str
    """Name of the data set"""
    seed: int
    validation_images: int


def ranked(search: Search) -> list[tuple[int, FrozenTrial]]:
    """Return the trials that trained to the end with their numbers, from 1; the best first."""
    complete = [
        (number, trial)
        for number, trial in enumerate(finished_trials(search.study), 1)
        if trial.state == TrialState.COMPLETE
    ]
    return sorted(complete, key=lambda pair: -(pair[1].value or 0))  # the first on a tie


def counts(search: Search) -> dict[str, int]:
    """Return the number of trials, of those that were ended early, and of those that failed."""
    trials = finished_trials(search.study)
    failed = sum(PROBLEM in trial.user_attrs for trial in trials)
    early = sum(trial.state == TrialState.PRUNED for trial in trials) - failed
    return {"trials": len(trials), "ended_early": early, "failed": failed}


def record(search: Search) -> None:
    """Write how many trials there were, for the report, and the best settings.

    The file also keeps the searches before, with another space or other images. It is in Git and
    the journal is not, so a search is recorded with the largest number of trials that it had.
    """
    path = RECORDS / f"{search.model}.json"
    name = search.study.study_name
    entry = {"search": name, "data": search.data, "seed": search.seed, **counts(search)}
    entry |= {"validation_images": search.validation_images, "best": None}
    if best := ranked(search):
        settings = settings_of(best[0][1], search.space)
        entry["best"] = {"val_accuracy": best[0][1].value, "settings": settings}
    entries = read_json(path)["searches"] if path.is_file() else []
    same = [other for other in entries if other["search"] == name]
    if entry["trials"] and not any(other["trials"] >= entry["trials"] for other in same):
        others = [other for other in entries if other["search"] != name]
        write_json(path, {"model": search.model, "searches": [*others, entry]})


def describe(result: Result, settings: dict[str, Any]) -> str:
    """Describe a finished trial on one line."""
    outcome = "ended early"
    if result.val_accuracy is not None:
        outcome = percent(result.val_accuracy, 2).replace("\N{NO-BREAK SPACE}", " ")
    elif result.problem:
        outcome = f"failed ({result.problem})"
    names = short_names(list(settings))
    values = ", ".join(f"{names[setting]} {dump(value)}" for setting, value in settings.items())
    return f"{outcome}, {values}"


def short_names(settings: list[str]) -> dict[str, str]:
    """Return the last part of each setting's name, or all of it if two settings share the part."""
    last = [setting.rpartition(".")[2] for setting in settings]
    return {
        setting: name if last.count(name) == 1 else setting
        for setting, name in zip(settings, last, strict=True)
    }


def print_trials(search: Search) -> None:
    """Print the best trials as a table."""
    names = short_names(list(search.space))
    columns = [Column("trial", numeric=True), Column("validation", numeric=True)]
    columns += [Column(name.replace("_", " "), numeric=True) for name in names.values()]
    columns.append(Column("", drop=1))
    rows = []
    for number, trial in ranked(search)[:BEST]:
        settings = settings_of(trial, search.space)
        values = [dump(settings[setting]) for setting in search.space]
        note = "params.yaml" if settings == search.current else ""
        rows.append([str(number), f"{100 * (trial.value or 0):.2f}", *values, note])
    total = counts(search)
    title = f"{search.model}: validation accuracy in %, the best of {total['trials']} trials"
    print_table(
        columns, rows,
        f"{title} ({total['ended_early']} ended early, {total['failed']} failed)",
    )  # fmt: skip


def importances(search: Search) -> dict[str, float]:
    """Return the share of the variance of the accuracy that each setting explains by itself.

    From trials that trained to the end, by a random forest. Empty if there are too few, or if all
    have the same accuracy.

    Reference: Hutter et al. (2014), https://proceedings.mlr.press/v32/hutter14.html
    """
    complete = ranked(search)
    if len(complete) < MIN_TRIALS or len({trial.value for _, trial in complete}) == 1:
        return {}
    return get_param_importances(search.study, evaluator=FanovaImportanceEvaluator(seed=0))


def draw(search: Search) -> Figure:
    """Draw the accuracy of each trial, and the importance of each setting."""
    shares = importances(search)
    total = len(finished_trials(search.study))
    accuracies = {number: trial.value or 0.0 for number, trial in sorted(ranked(search))}
    ended = [number for number in range(1, total + 1) if number not in accuracies]
    best = [max(list(accuracies.values())[:end]) for end in range(1, len(accuracies) + 1)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(3, 2))
    left.plot(list(accuracies), list(accuracies.values()), "o", color=COLOURS[0],
              label="trained to the end")  # fmt: skip
    left.step([*accuracies, total], [*best, best[-1]], where="post", color=COLOURS[1],
              label="best so far")  # fmt: skip
    if ended:  # at the edge, since accuracies of earlier epochs are lower
        left.plot(ended, [0.03] * len(ended), "x", color=COLOURS[5], label="ended early or failed",
                  transform=left.get_xaxis_transform())  # fmt: skip
    left.set(xlabel="trial", title="validation accuracy")
    left.margins(y=0.12)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.yaxis.set_major_formatter(PercentFormatter(1))
    left.grid(alpha=0.3)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)
    names = short_names(list(search.space))
    ordered = sorted(shares, key=lambda setting: shares[setting])
    right.barh([names[setting] for setting in ordered], [shares[setting] for setting in ordered],
               color=COLOURS[0])  # fmt: skip
    right.set(title="importance, share of the variance", xlim=(0, 1))
    right.xaxis.set_major_formatter(PercentFormatter(1))
    if not shares:
        right.text(0.5, 0.5, "too few trials", ha="center", transform=right.transAxes)
        right.set_yticks([])
    figure.suptitle(
        f"{search.model} on {search.data}: {counted(total, 'trial')}, "
        f"{counted(search.validation_images, 'validation image')}"
    )
    figure.tight_layout()
    return figure


def change(search: Search, text: str) -> str:
    """Return the best settings as a change of params.yaml, in the form that `git apply` takes.

    Args:
        search: With a trial that trained to the end.
        text: Of params.yaml.

    Returns:
        Empty if params.yaml has these settings.
    """
    settings = settings_of(ranked(search)[0][1], search.space)
    changes = {
        f"models.{search.model}.{setting}": value
        for setting, value in settings.items()
        if value != search.current[setting]
    }
    before, after = (version.splitlines(keepends=True) for version in (text, edited(text, changes)))
    return "".join(difflib.unified_diff(before, after, f"a/{PARAMS}", f"b/{PARAMS}"))


def show(search: Search) -> None:
    """Print the best trials, draw the picture, and propose a change of params.yaml.

    Raises:
        PipelineError: No trial trained to the end.
    """
    total = counts(search)["trials"]
    if not (best := ranked(search)):
        problems = [trial.user_attrs.get(PROBLEM, "") for trial in finished_trials(search.study)]
        raise PipelineError(
            f"search.{search.model}: at least one trial must train to the end. Got "
            f"{counted(total, 'trial')}, the last with: {problems[-1]}"
        )
    print_trials(search)
    picture = PICTURES / f"{search.model}.png"
    save(draw(search), picture)
    proposal = PICTURES / f"{search.model}.diff"
    proposal.unlink(missing_ok=True)
    difference = change(search, PARAMS.read_text("utf-8"))
    print(f"search: {counted(total, 'trial')} -> {picture}, {RECORDS / search.model}.json")
    if not difference:
        print(f"search: {PARAMS} has the settings of the best trial, {best[0][0]}")
        return
    with atomic_path(proposal) as path:
        path.write_text(difference, "utf-8")
    print(f"{difference}search: to use the settings of the best trial, run `git apply {proposal}`")
