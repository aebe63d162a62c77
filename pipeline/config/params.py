"""Params: params.yaml, validated as a whole against schema.py."""

import difflib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pydantic

from pipeline.config.schema import Finetuned, Params, Train
from pipeline.config.signature import arguments, settings, wanted_normalization
from pipeline.config.yaml_reader import explain, read, reading, unfit, validate
from pipeline.core.errors import CONTROL, PipelineError

PARAMS = Path("params.yaml")
DATASETS = Path(__file__).parents[1] / "ingest/datasets"


def load() -> Params:
    """Read params.yaml from the working directory and validate all of it.

    Raises:
        PipelineError: Names the key, what was expected and what was received.
    """
    with reading(PARAMS):
        return _load()


def _load() -> Params:
    params = read(PARAMS, Params)
    checks: list[Callable[[], None]] = [
        partial(_check_dataset, params.dataset),
        partial(_check_path, ("folder",), params.folder),
        partial(_check_names, params),
        *(partial(check_model, params, ("models", name)) for name in params.models),
        *(partial(check_model, params, ("finetune", name)) for name in params.finetune),
    ]
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except PipelineError as error:
            problems.append(str(error))
    if problems:
        raise PipelineError("; ".join(problems))
    return params


def _check_names(params: Params) -> None:
    """Check the names of the models, and what refers to them."""
    names = list(params.all_models)
    if params.champion not in ("auto", *names):
        raise unfit(("champion",), f"must be auto or one of {', '.join(names)}", params.champion)
    if params.reference not in names:
        raise unfit(("reference",), f"must be one of {', '.join(names)}", params.reference)
    for name in params.analyze.models or []:
        if name not in names:
            raise unfit(("analyze", "models"), f"must be one of {', '.join(names)}", name)
    for taken in {"auto", "champion"} & set(names):
        raise PipelineError(
            f"models.{taken}: the name is taken by `champion: auto` and "
            "models/champion.keras. Choose another"
        )
    if twice := set(params.models) & set(params.finetune):
        raise PipelineError(f"{min(twice)} stands under models and under finetune. Rename one")
    for name in names:
        alike = [other for other in names if other.lower() == name.lower()]
        if len(alike) > 1:
            raise PipelineError(
                f"models {' and '.join(alike)}: would share their files where capitals do not "
                "count, as on macOS. Rename one"
            )


def check_model(params: Params, at: tuple[str, str]) -> None:
    """Check what needs more than the model's own section: its architecture, the common train."""
    group, name = at
    model = params.all_models[name]
    validate(settings(model.architecture, at), model.build, (*at, "build"))
    try:
        params.train_of(name)
    except pydantic.ValidationError as error:
        raise explain(Train, error, (*at, "train")) from None
    if isinstance(model, Finetuned):
        _check_path((*at, "from_model"), model.from_model)
    file = arguments(model.architecture, at).get("from_model")
    if group == "finetune" and not file:
        raise PipelineError(
            f"{'.'.join(at)}: {model.architecture} starts from no file. "
            "Move it under `models:`, without from_model"
        )
    if group == "models" and file and file[1] is ...:
        raise PipelineError(
            f"{'.'.join(at)}: {model.architecture} starts from a file. "
            "Move it under `finetune:` and name the file as from_model"
        )
    wanted = wanted_normalization(model.architecture)
    if wanted not in (None, params.preprocess.normalize):
        raise unfit(
            ("preprocess", "normalize"),
            f"must be {wanted} for {model.architecture} ({'.'.join(at)})",
            params.preprocess.normalize,
        )


def _check_path(at: tuple[str, ...], path: str) -> None:
    """Check that a path is the same file in every copy of the repository, and printable."""
    if CONTROL.search(path):
        raise unfit(at, "must hold no control characters", path)
    if Path(os.path.normpath(path)).parts[:1] == (os.pardir,):
        # an experiment in the queue runs in a copy elsewhere
        raise unfit(at, "must lie in the repository, or be written in full, from / on", path)
    if path.startswith("~"):
        # DVC, which reads it too, takes it for a name
        raise unfit(at, "must be written in full, from / on: `~` is not expanded", path)


def check_folder(path: str) -> None:
    """Check that the folder is there, and that no experiment commits its files to Git.

    DVC depends on it whatever `dataset` is. `dvc exp run` adds such files to the experiment's
    commit, unless Git ignores them, DVC tracks them, or the path is written in full.

    Raises:
        PipelineError: There is no such folder, or it holds files of that kind.
    """
    with reading(PARAMS):
        if not Path(path).is_dir():
            raise unfit(
                ("folder",),
                "must be an existing folder, written in full, from / on, unless Git or DVC tracks "
                "it: a queued experiment sees no other",
                path,
            )
        if untracked := _untracked(path):
            raise unfit(
                ("folder",),
                f"must not hold files that `dvc exp run` would commit to Git, and holds {untracked}"
                f". Write it in full, {Path(path).absolute()}, or run `dvc add {path}`",
                path,
            )


def _untracked(path: str) -> int:
    """Count the files below a relative path that Git neither tracks nor ignores."""
    if Path(path).is_absolute() or not shutil.which("git"):
        return 0
    ask = ["git", "ls-files", "--others", "--exclude-standard", "-z", "--", path]
    return subprocess.run(ask, capture_output=True).stdout.count(b"\0")  # none outside of Git


def _check_dataset(name: str) -> None:
    if (DATASETS / f"{name}.py").is_file() and name != "tfds":
        return
    import tensorflow_datasets as tfds  # 0.4 s, without TensorFlow; only where it is needed

    known = tfds.list_builders(with_community_datasets=False)
    builder, _, config = name.partition("/")
    if builder not in known:
        near = difflib.get_close_matches(name, ["digits", "folder", *known], n=3)
        raise unfit(
            ("dataset",),
            "must be digits, folder or a data set of TensorFlow Datasets"
            + (f" (nearest: {', '.join(near)})" if near else ""),
            name,
        )
    if config and config not in (configs := list(tfds.builder_cls(builder).builder_configs)):
        near = difflib.get_close_matches(config, configs, n=3, cutoff=0)
        raise unfit(
            ("dataset",),
            f"must name a configuration of {builder} (nearest: {', '.join(near)})"
            if configs
            else f"must be {builder}, which has no configurations",
            name,
        )


def schema() -> str:
    """Return the JSON Schema of params.yaml."""
    return json.dumps(Params.model_json_schema(), indent=2) + "\n"
