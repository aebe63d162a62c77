"""Load params.yaml and validate it as a whole before any stage runs."""

import difflib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pydantic

from pipeline.config.schema import Model, Params, Train
from pipeline.config.search_space import search_space
from pipeline.config.signature import (
    build_arguments,
    build_settings,
    may_freeze,
    required_normalization,
)
from pipeline.config.yaml_reader import explain, invalid, read_raw, reading, validate
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
    raw = read_raw(path)
    problems: list[str] = []
    try:
        params = validate(Params, raw, ())
    except PipelineError as error:
        if not isinstance(raw, dict):
            raise
        params, problems = _valid_part(raw), [*error.args]
    checks = (
        _check_dataset,
        _check_paths,
        _check_compare,
        _check_champion,
        _check_analyze,
        _check_names,
        _check_folds,
        _check_models,
        _check_search,
    )
    _run_all((partial(check, params) for check in checks), problems)
    return params


def _run_all(checks: Iterable[Callable[[], object]], problems: Sequence[str] = ()) -> None:
    """Run all checks, and raise what they report together with other problems."""
    for check in checks:
        try:
            check()
        except PipelineError as error:
            problems = [*problems, *error.args]
    if problems:
        raise PipelineError(*problems)


class _Invalid:
    """Settings that are reported already: a check that reads one of them reports nothing."""

    def __getattr__(self, name: str) -> NoReturn:
        raise PipelineError


class _ValidParams(_Invalid, Params):
    """Params of which some settings are invalid."""


def _valid_part(raw: dict[Any, Any]) -> Params:
    """Return the valid settings of an invalid file, so that the other checks can read them."""

    def valid(kinds: dict[str, Any], raw: dict[Any, Any]) -> dict[str, Any]:
        values = {}
        for key in [key for key in kinds if key in raw]:
            with suppress(pydantic.ValidationError):
                kind = pydantic.TypeAdapter(kinds[key])
                values[key] = kind.validate_python(raw[key], strict=True)
        return values

    fields = Params.model_fields.items()
    values = valid({name: field.rebuild_annotation() for name, field in fields}, raw)
    if isinstance(models := raw.get("models"), dict):
        names = [name for name in models if isinstance(name, str)]
        values["models"] = {
            **{name: _Invalid() for name in names},
            **valid(dict.fromkeys(names, Model), models),
        }
    return _ValidParams.model_construct(**values)


def _check_paths(params: Params) -> None:
    _check_path(("folder",), params.folder)
    for setting in ("exclude", "relabel"):
        if path := getattr(params.preprocess, setting):
            _check_in_folder(("preprocess", setting), path, CORRECTIONS)


def _check_compare(params: Params) -> None:
    _run_all(partial(_check_is_model, params, ("compare",), name) for name in params.compare)


def _check_is_model(params: Params, at: tuple[str, ...], name: str) -> None:
    if name not in params.models:
        near = ", ".join(difflib.get_close_matches(name, params.models, cutoff=0))
        raise invalid(at, f"must contain names from `models:` (nearest: {near})", name)


def _check_champion(params: Params) -> None:
    compared = ", ".join(params.compare)
    if params.champion not in ("auto", *params.compare):
        raise invalid(("champion",), f"must be auto or one of {compared}", params.champion)
    if params.champion == "auto" and len(params.compare) > 1 and not params.split.holds_out:
        expected = f"must be one of {compared}, because split.validation is 0"
        raise invalid(("champion",), expected, params.champion)


def _check_analyze(params: Params) -> None:
    for name in params.analyze.models or []:
        if name not in params.compare:
            expected = f"must be one of {', '.join(params.compare)}"
            raise invalid(("analyze", "models"), expected, name)


def _check_names(params: Params) -> None:
    """Check that no two models, and nothing else in models/, would have the same files."""
    names = list(params.models)
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


def _check_models(params: Params) -> None:
    _run_all(partial(check_model, params, name) for name in params.models)


def check_model(params: Params, name: str) -> None:
    """Check a model against its architecture and the common settings.

    Whether the file that it starts from exists is checked by the stage `inputs`.

    Raises:
        PipelineError: A setting of the model is invalid. Lists every problem found.
    """
    at = ("models", name)
    model = params.models[name]
    build = build_settings(model.architecture, at)
    checks = (_check_training, _check_from_model, _check_normalization)
    _run_all((
        partial(validate, build, model.build, (*at, "build")),
        *(partial(check, params, name) for check in checks),
    ))  # fmt: skip


def _check_training(params: Params, name: str) -> None:
    """Check the training settings of a model: the common ones with its overrides."""
    at = ("models", name, "train")
    try:
        train = params.train_of(name)
    except pydantic.ValidationError as error:
        raise explain(Train, error, at) from None
    if train.early_stopping and name in params.compare and not params.split.holds_out:
        expected = "must be null, because split.validation is 0"
        raise invalid((*at, "early_stopping"), expected, train.early_stopping)
    fine_tune = train.fine_tune
    if fine_tune and name in params.compare and not may_freeze(params.models[name]):
        expected = "must be null for a model without frozen layers (build.freeze)"
        raise invalid((*at, "fine_tune"), expected, fine_tune.model_dump())


def _check_from_model(params: Params, name: str) -> None:
    """Check the file that a model starts from."""
    model = params.models[name]
    if model.from_model is not None:
        _check_in_folder(("models", name, "from_model"), model.from_model, PRETRAINED)
    parameter = build_arguments(model.architecture).get("from_model")
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
    """Check that images are normalized as the architecture of a compared model requires."""
    architecture = params.models[name].architecture
    required = required_normalization(architecture)
    if name in params.compare and required not in (None, params.preprocess.normalize):
        raise invalid(
            ("preprocess", "normalize"),
            f"must be {required} for {architecture} (models.{name})",
            params.preprocess.normalize,
        )


def _check_search(params: Params) -> None:
    _run_all(partial(_check_search_of, params, name) for name in params.search)


def _check_search_of(params: Params, name: str) -> None:
    """Check what a search tries of a model."""
    _check_is_model(params, ("search",), name)
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


def _check_dataset(params: Params) -> None:
    name = params.dataset
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
