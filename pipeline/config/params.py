"""Load params.yaml and validate it as a whole before any stage runs."""

import difflib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pydantic

from pipeline.config.schema import Params, Train
from pipeline.config.search_space import search_space
from pipeline.config.signature import (
    build_arguments,
    build_settings,
    may_freeze,
    required_normalization,
)
from pipeline.config.yaml_reader import explain, invalid, read, reading, validate
from pipeline.core.errors import CONTROL, PipelineError

PARAMS = Path("params.yaml")
DATASETS = Path(__file__).parents[1] / "ingest/datasets"
PRETRAINED = "pretrained"
CORRECTIONS = "corrections"
# `champion: auto`, and the names in models/ that are not those of models
RESERVED = {"auto", "champion", "export"}


def load(path: Path = PARAMS) -> Params:
    """Read params.yaml from the working directory and validate all of it.

    Args:
        path: Another file, such as one that will replace it.

    Raises:
        PipelineError: A setting is invalid. Lists every problem found.
    """
    with reading(path):
        return _load(path)


def _load(path: Path) -> Params:
    params = read(path, Params)
    checks: list[Callable[[], None]] = [
        partial(_check_dataset, params.dataset),
        partial(_check_path, ("folder",), params.folder),
        *(
            partial(_check_in_folder, ("preprocess", setting), path, CORRECTIONS)
            for setting in ("exclude", "relabel")
            if (path := getattr(params.preprocess, setting))
        ),
        partial(_check_names, params),
        partial(_check_folds, params),
        *(partial(check_model, params, name) for name in params.models),
        *(partial(_check_normalization, params, name) for name in params.compare),
        *(partial(_check_search, params, name) for name in params.search),
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
    """Check the names of the models and every setting that refers to them."""
    names = list(params.models)
    for name in params.compare:
        if name not in names:
            near = ", ".join(difflib.get_close_matches(name, names, cutoff=0))
            raise invalid(
                ("compare",), f"must contain names from `models:` (nearest: {near})", name
            )
    compared = ", ".join(params.compare)
    if params.champion not in ("auto", *params.compare):
        raise invalid(("champion",), f"must be auto or one of {compared}", params.champion)
    if params.champion == "auto" and len(params.compare) > 1 and not params.split.holds_out:
        expected = f"must be one of {compared}, because split.validation is 0"
        raise invalid(("champion",), expected, params.champion)
    for name in params.analyze.models or []:
        if name not in params.compare:
            raise invalid(("analyze", "models"), f"must be one of {compared}", name)
    for reserved in RESERVED & set(names):
        raise PipelineError(f"models.{reserved}: the name is reserved. Choose another")
    for name in names:
        same_letters = [other for other in names if other.lower() == name.lower()]
        if len(same_letters) > 1:
            raise PipelineError(
                f"models {' and '.join(same_letters)}: would share their files where file names "
                "ignore case, as on macOS. Rename one"
            )


def _check_folds(params: Params) -> None:
    if params.split.method == "folds" and len(params.seeds) < 2:
        raise invalid(
            ("split", "method"),
            "must be holdout with one seed, or seeds must be 2 or more",
            "folds",
        )


def check_model(params: Params, name: str) -> None:
    """Check a model against its architecture and the common training settings.

    Whether the file that it starts from exists is checked by the stage `inputs`.

    Raises:
        PipelineError: A setting of the model is invalid.
    """
    at = ("models", name)
    model = params.models[name]
    validate(build_settings(model.architecture, at), model.build, (*at, "build"))
    try:
        train = params.train_of(name)
    except pydantic.ValidationError as error:
        raise explain(Train, error, (*at, "train")) from None
    if train.early_stopping and name in params.compare and not params.split.holds_out:
        expected = "must be null, because split.validation is 0"
        raise invalid((*at, "train", "early_stopping"), expected, train.early_stopping)
    fine_tune = train.fine_tune
    if fine_tune and name in params.compare and not may_freeze(model):
        expected = "must be null for a model without frozen layers (build.freeze)"
        raise invalid((*at, "train", "fine_tune"), expected, fine_tune.model_dump())
    if model.from_model is not None:
        _check_in_folder((*at, "from_model"), model.from_model, PRETRAINED)
    parameter = build_arguments(model.architecture, at).get("from_model")
    if model.from_model and not parameter:
        raise PipelineError(
            f"models.{name}: {model.architecture} does not start from a file. Remove from_model"
        )
    if parameter and parameter[1] is ... and not model.from_model:
        raise PipelineError(
            f"models.{name}: {model.architecture} starts from a file. Name it, as in "
            "from_model: pretrained/FILE"
        )


def _check_normalization(params: Params, name: str) -> None:
    """Check that images are normalized as the architecture of a model requires."""
    if name not in params.models:  # reported by _check_names
        return
    architecture = params.models[name].architecture
    required = required_normalization(architecture)
    if required not in (None, params.preprocess.normalize):
        raise invalid(
            ("preprocess", "normalize"),
            f"must be {required} for {architecture} (models.{name})",
            params.preprocess.normalize,
        )


def _check_search(params: Params, name: str) -> None:
    """Check what a search tries of a model."""
    if name not in params.models:
        near = ", ".join(difflib.get_close_matches(name, params.models, cutoff=0))
        raise invalid(("search",), f"must contain names from `models:` (nearest: {near})", name)
    try:
        check_model(params, name)
    except PipelineError:
        return  # reported already
    search_space(params, name)


def _check_path(at: tuple[str, ...], path: str) -> None:
    """Check that a path is printable and means the same file in every copy of the repository."""
    if CONTROL.search(path):
        raise invalid(at, "must not contain control characters", path)
    if Path(os.path.normpath(path)).parts[:1] == (os.pardir,):
        # A queued experiment runs in a copy of the repository elsewhere.
        raise invalid(at, "must be inside the repository or an absolute path", path)
    if path.startswith("~"):
        # DVC reads the path too, and does not expand ~.
        raise invalid(at, "must be an absolute path: `~` is not expanded", path)


def _check_in_folder(at: tuple[str, ...], path: str, folder: str) -> None:
    """Check that a path is that of a file in a folder of the repository."""
    _check_path(at, path)
    if Path(path).parts[:-1] != (folder,):
        raise invalid(at, f"must be a file in {folder}/", path)


def check_folder(path: str) -> None:
    """Check that the folder exists and that no experiment would commit its files to Git.

    The folder is a dependency of the graph whatever `dataset` is. `dvc exp run` adds its files to
    the experiment's commit, unless Git ignores them, DVC tracks them, or the path is absolute.

    Raises:
        PipelineError: The folder does not exist, or contains such files.
    """
    with reading(PARAMS):
        if not Path(path).is_dir():
            raise invalid(
                ("folder",),
                "must be an existing folder: an absolute path, or a folder that Git or DVC tracks "
                "(a queued experiment sees no other)",
                path,
            )
        if untracked := _count_untracked(path):
            raise invalid(
                ("folder",),
                f"must not contain files that `dvc exp run` would commit to Git, but contains "
                f"{untracked}. Use the absolute path {Path(path).absolute()}, or run "
                f"`dvc add {path}`",
                path,
            )


def _count_untracked(path: str) -> int:
    """Count the files below a relative path that Git neither tracks nor ignores."""
    if Path(path).is_absolute() or not shutil.which("git"):
        return 0
    command = ["git", "ls-files", "--others", "--exclude-standard", "-z", "--", path]
    return subprocess.run(command, capture_output=True).stdout.count(b"\0")  # 0 outside of Git


def _check_dataset(name: str) -> None:
    if (DATASETS / f"{name}.py").is_file() and name != "tfds":
        return
    import tensorflow_datasets as tfds  # takes 0.4 s, so only when needed

    known = tfds.list_builders(with_community_datasets=False)
    builder, _, config = name.partition("/")
    if builder not in known:
        near = difflib.get_close_matches(name, ["digits", "folder", *known], n=3)
        raise invalid(
            ("dataset",),
            "must be digits, folder or a data set of TensorFlow Datasets"
            + (f" (nearest: {', '.join(near)})" if near else ""),
            name,
        )
    if config and config not in (configs := list(tfds.builder_cls(builder).builder_configs)):
        near = difflib.get_close_matches(config, configs, n=3, cutoff=0)
        raise invalid(
            ("dataset",),
            f"must name a configuration of {builder} (nearest: {', '.join(near)})"
            if configs
            else f"must be {builder}, which has no configurations",
            name,
        )


def schema() -> str:
    """Return the JSON Schema of params.yaml."""
    return json.dumps(Params.model_json_schema(), indent=2) + "\n"
