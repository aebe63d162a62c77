"""Search: try settings of a model, and propose the most accurate.

    python -m pipeline search batchnorm                 20 trials in all
    python -m pipeline search batchnorm --trials 50     continues to 50

Not a stage. `make search MODEL=batchnorm TRIALS=50` prepares the data first. Each trial trains the
model with other values from `search:` in params.yaml, on the training images of the first seed, and
is measured on its validation images. Trials that are worse than the median of the earlier ones are
ended early. Test images are never read.

Reads   data/arrays/train/…, data/arrays/info.json, data/split/SEED.npz of the first seed;
        data/features/MODEL/… if the model is in `compare`
Writes  data/search/MODEL.log       the journal of Optuna, with every trial: a search that is
                                    interrupted, or given more trials, continues
        search/MODEL.json           number of trials, for the report; best settings
        plots/search/MODEL.png      importance of each setting, and accuracy of each trial
        plots/search/MODEL.diff     the best settings as a change of params.yaml, if it has others
"""

import argparse
import hashlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from pipeline.config.params import PARAMS, check_folder, check_model, load
from pipeline.config.schema import Model, Params
from pipeline.config.search_space import Interval, Values, search_space
from pipeline.config.signature import build_settings, weights_package
from pipeline.config.yaml_reader import reading, validate
from pipeline.core import cpu
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import require_file, sha256
from pipeline.core.text import counted, duration
from pipeline.data import arrays
from pipeline.inputs import model_files
from pipeline.reporting.results import source
from pipeline.runtime.gpu import explain_missing_group, supports_gpu, usable_gpus
from pipeline.tools.edit_params import dump, lookup
from pipeline.tools.parallel import number_of_jobs
from pipeline.tools.search_workers import Result, Setup, Worker

if TYPE_CHECKING:
    from pipeline.tools.search_results import Search

# outputs of stages, as in dvc.yaml
ARRAYS = Path("data/arrays")
SPLIT = Path("data/split")
FEATURES = Path("data/features")
LOGS = Path("data/search")
TRIALS = 20
WARM_UP = 0.25  # share of the epochs in which no trial is ended
CODE = ("config", "core", "data", "runtime", "training")  # packages that a training depends on


def current_settings(params: Params, model: str, space: dict[str, Values]) -> dict[str, Any]:
    """Return the value of each searched setting in params.yaml, or its default."""
    config = params.models[model]
    build = build_settings(config.architecture).model_validate(config.build)
    sections = {
        "build": build.model_dump(mode="json"),
        "train": params.train_of(model).model_dump(mode="json"),
    }
    return {setting: lookup(sections, setting) for setting in space}


def with_settings(params: Params, model: str, settings: dict[str, Any]) -> Params:
    """Return params with other settings of one model.

    Raises:
        PipelineError: The settings do not fit together.
    """
    config = params.models[model].model_dump(exclude_unset=True)
    for setting, value in settings.items():
        *sections, key = setting.split(".")
        section = config
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    changed = validate(Model, config, ("models", model))
    params = params.model_copy(update={"models": {**params.models, model: changed}})
    check_model(params, model)
    return params


def identity(params: Params, model: str, space: dict[str, Values]) -> dict[str, Any]:
    """Return what the trials of a search depend on: if it changes, a new search starts.

    The settings that are searched are left out, so that the search goes on after its result is
    written to params.yaml.
    """
    config, seed = params.models[model], params.seeds[0]
    settings = {
        "architecture": config.architecture,
        "build": config.build,
        "train": params.train_of(model).model_dump(mode="json"),
        "backend": params.backend,
        "threads": params.threads,
        "seed": seed,
    }
    code = Path(__file__).parents[1]
    files = sorted(path for package in CODE for path in (code / package).rglob("*.py"))
    packages = filter(None, ("keras", "numpy", params.backend, weights_package(config)))
    return {
        "search space": {setting: dump(_plain(values)) for setting, values in space.items()},
        "other settings": _without(settings, [setting.split(".") for setting in space]),
        "images": {
            str(path): sha256(path)
            for path in (ARRAYS / "train" / arrays.SUMS, ARRAYS / "info.json")
        },
        "split": sha256(SPLIT / f"{seed}.npz"),
        "architecture": model_files(model, config),
        "code": hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest(),
        "packages": {package: version(package) for package in packages},
    }


def _plain(values: Values) -> Any:
    """Return what a search tries of a setting as in params.yaml."""
    return dict(values._asdict()) if isinstance(values, Interval) else values


def _without(nested: dict[str, Any], paths: list[list[str]]) -> dict[str, Any]:
    """Return nested settings without those at the given paths."""
    kept = {}
    for name, value in nested.items():
        inner = [path[1:] for path in paths if path[0] == name]
        if [] not in inner:
            kept[name] = _without(value, inner) if inner else value
    return kept


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a search, so that no other process runs it at the same time.

    Raises:
        PipelineError: Another process runs it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise PipelineError(
            f"{path}: another search of this model is running. Wait for it, or interrupt it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_model_name(params: Params, model: str) -> None:
    """Check that params.yaml has a search space for a model.

    Raises:
        PipelineError: It has none.
    """
    if model not in params.search:
        raise PipelineError(
            f"search: MODEL must be one of {', '.join(params.search) or '(none)'}, which have "
            f"values to try below `search:` in {PARAMS}. Got {model}"
        )


def remaining(seconds: float, done: int, left: int) -> str:
    """Return the time that is left, estimated from the trials that are done."""
    if not left or not done:
        return ""
    return f", about {duration(seconds / done * left)} left"


def prepare(params: Params, model: str) -> tuple[Setup, int]:
    """Check the images and the split, and return what all trials share and the validation images.

    Raises:
        PipelineError: A file is missing or is not the one that its stage wrote, or there are no
            validation images.
    """
    _, labels = arrays.load(ARRAYS / "train")
    split = require_file(SPLIT / f"{params.seeds[0]}.npz", "Run `dvc repro split`")
    _, validation_rows = arrays.read_split(split, len(labels))
    if not len(validation_rows):
        raise PipelineError(
            f"{PARAMS}: split.validation must be greater than 0, because a search measures "
            "validation accuracy. Got 0"
        )
    has_features = model in params.compare and (FEATURES / model).is_dir()
    features = FEATURES / model if has_features else None
    setup = Setup(model, params.backend, params.threads, ARRAYS, split, features)
    return setup, len(validation_rows)


def run_search(
    search: "Search", params: Params, setup: Setup, total: int, gpus: Sequence[str | None]
) -> None:
    """Run trials until a number of them is finished, and print each.

    Args:
        search: The search.
        params: The settings of params.yaml.
        setup: What all trials share.
        total: Number of trials, including those that are finished already.
        gpus: For each trial that runs at once, the only GPU that it may use; None: no restriction.
    """
    from pipeline.tools.search_results import describe, record
    from pipeline.tools.search_study import finished_trials, run_trials

    before, started = len(finished_trials(search.study)), time.monotonic()
    print(
        f"search: {search.model}: {counted(before, 'trial')} finished, {max(0, total - before)} to "
        f"run, {len(gpus)} at once, on {counted(search.validation_images, 'validation image')}",
        flush=True,
    )
    bar = tqdm(
        total=total, initial=before, leave=False, disable=None,
        bar_format="{bar}{n}/{total} trials, {elapsed}",
    )  # fmt: skip
    free = iter(gpus)

    def on_end(settings: dict[str, Any], result: Result) -> None:
        done = len(finished_trials(search.study))
        left = remaining(time.monotonic() - started, done - before, total - done)
        with bar.external_write_mode():
            print(f"{done} of {total}: {describe(result, settings)}{left}", flush=True)
        bar.update()
        record(search)

    try:
        run_trials(
            search.study, search.space, total,
            lambda settings: with_settings(params, search.model, settings),
            lambda: Worker(setup, next(free)), len(gpus), on_end,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        bar.close()
        finished = f"{len(finished_trials(search.study))} of {counted(total, 'trial')}"
        print(
            f"interrupted. {finished} are finished and kept. Run the same command to continue",
            file=sys.stderr,
        )
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    finally:
        bar.close()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name below `search:` in params.yaml")
    parser.add_argument(
        "--trials", type=int, default=TRIALS, help=f"trials in all; default: {TRIALS}"
    )
    parser.add_argument(
        "--jobs", type=int,
        help="trials to run at once; default: as many as GPUs, or as cores have threads for",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="check the settings and run nothing")
    args = parser.parse_args(argv)
    params, model = load(), args.model
    check_model_name(params, model)
    if args.trials < 1:
        raise PipelineError(f"search: TRIALS must be at least 1. Got {args.trials}")
    if find_spec("optuna") is None:
        raise PipelineError("optuna is not installed. Run `uv sync --inexact --group search`")
    if args.check:
        check_folder(params.folder)
        return
    gpus = usable_gpus()
    if gpus and not supports_gpu(params.backend):
        print(explain_missing_group(params.backend))
        gpus = []
    jobs = number_of_jobs(args.jobs, len(cpu.available_cores()), params.threads, len(gpus))
    setup, validation_images = prepare(params, model)

    from pipeline.tools.search_results import Search, record, show
    from pipeline.tools.search_study import enqueue, open_study

    space = search_space(params, model)
    current = current_settings(params, model, space)
    warm_up = int(WARM_UP * params.train_of(model).epochs)
    data = source(params.dataset, params.folder)
    with locked(LOGS / f"{model}.lock"):
        study = open_study(LOGS / f"{model}.log", identity(params, model, space), warm_up)
        if not study.get_trials(deepcopy=False):
            enqueue(study, current, space)  # first, since it is what the others must exceed
        search = Search(model, study, space, current, data, params.seeds[0], validation_images)
        record(search)
        run_search(search, params, setup, args.trials, gpus[:jobs] or [None] * jobs)
        with reading(PARAMS):
            show(search)


if __name__ == "__main__":
    run(main)
