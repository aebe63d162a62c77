"""Inputs: record what each stage and each model depends on, in one small file each.

A stage that depends on its own file reruns only if that file changes. uv.lock changes with every
package, but a new matplotlib only redraws plots. DVC cannot look up the architecture of a model in
a matrix, so the hash of its file is recorded here.

This is the first stage. It also checks `folder` and the files and packages that models start from,
since DVC only says that they are missing, and it removes the outputs of models and seeds that are
no longer in params.yaml: stages that read a folder must not see them. Git ignores
data/trainings.json, so it still names the trainings of the last run if Git takes the other inputs
of this stage back to an older state. Then it differs from dvc.lock, and this stage runs.

Reads   uv.lock, pipeline/architectures/*.py, pretrained/*
Writes  data/inputs/versions/STAGE.json    locked versions of the packages that a stage uses
        data/inputs/models/MODEL.json      SHA-256 of the files that a model is built from, and the
                                           locked version of the package with its weights
        data/inputs/features/MODEL.json    what the output of frozen layers depends on; null: it is
                                           not computed in advance
        data/inputs/pictures/MODEL.json    what analyze draws of a model; an empty list: nothing
        data/trainings.json                the seeds of each model
        plots/vega.js                      Vega, Vega-Lite and vega-embed, for the report and for
                                           `dvc plots show`, also while models train
Params  analyze, backend, compare, folder, models, seeds, train
"""

import argparse
import shutil
import tomllib
from collections.abc import Collection
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.config.params import check_folder, load
from pipeline.config.schema import Model, Train
from pipeline.config.signature import may_freeze, weights_package
from pipeline.core import live_curves
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import atomic_path, require_file, sha256, write_json
from pipeline.core.text import counted

ARCHITECTURES = Path(__file__).with_name("architectures")
# Outputs of one training (model, seed) and of one model in dvc.yaml.
TRAINING_OUTPUTS = (
    "models/{}/{}.keras", "plots/history/{}/{}.csv", "metrics/train/{}/{}.json",
    "metrics/run/{}/{}.json",
)  # fmt: skip
MODEL_OUTPUTS = (
    "data/features/{}", "data/predictions/{}", "metrics/test/{}.json", "plots/predictions/{}.csv",
    "plots/analysis/{}",
)  # fmt: skip

# Packages that each stage imports, and those that write or compute for them: h5py writes the
# weights in a .keras file, SciPy computes for scikit-learn, Pillow writes the PNGs of matplotlib.
# Packages that only validate, print or show progress are left out.
PACKAGES = {
    "download": ("numpy", "pillow", "pyarrow", "scikit-learn", "tensorflow-datasets"),
    "preprocess": ("numpy", "pi-heif", "pillow", "pyarrow"),
    "split": ("numpy", "pandas", "pyarrow", "scikit-learn", "scipy"),
    "features": ("h5py", "keras", "ml-dtypes", "numpy"),
    "train": ("h5py", "keras", "ml-dtypes", "numpy"),
    "evaluate": ("keras", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy"),
    "label_issues": ("numpy", "pandas", "pyarrow", "scipy"),
    "analyze": ("h5py", "keras", "matplotlib", "ml-dtypes", "numpy", "pandas", "pillow", "pyarrow"),
    "compare": ("numpy", "scipy"),
    "export": (
        "ai-edge-litert",
        "keras",
        "numpy",
        "onnx",
        "onnxruntime",
        "pillow",
        "tensorflow",
        "tf2onnx",
    ),
    "model_card": ("huggingface-hub", "jinja2", "pyyaml"),
    "plot": ("matplotlib", "numpy", "pandas", "pillow", "pyarrow"),
    "report": (
        "altair",
        "jinja2",
        "markupsafe",
        "numpy",
        "pandas",
        "pillow",
        "pyarrow",
    ),
}
# Additional packages of the stages that use Keras with the backend of params.yaml.
BACKENDS = {"tensorflow": ("tensorflow",), "jax": ("jax", "jaxlib")}
WITH_KERAS = ("features", "train", "evaluate", "analyze")


def locked_versions(path: Path) -> dict[str, str]:
    """Return the locked version of each package; all versions if they depend on Python."""
    try:
        packages = tomllib.loads(path.read_text("utf-8"))["package"]
        locked: dict[str, set[str]] = {}
        for package in packages:
            locked.setdefault(package["name"], set()).add(package["version"])
        return {name: ", ".join(sorted(versions)) for name, versions in locked.items()}
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise PipelineError(
            f"{path}: must be uv's lock file. Got {error}. Run `git checkout {path}`"
        ) from None


def versions_by_stage(locked: dict[str, str], backend: str) -> dict[str, dict[str, str]]:
    """Return the locked version of each package, for every stage.

    Args:
        locked: Version of each package, from `locked_versions`.
        backend: A key of BACKENDS.

    Raises:
        PipelineError: A package is not locked.
    """
    packages = {
        stage: names + (BACKENDS[backend] if stage in WITH_KERAS else ())
        for stage, names in PACKAGES.items()
    }
    _check_locked({name for names in packages.values() for name in names}, locked)
    return {stage: {name: locked[name] for name in names} for stage, names in packages.items()}


def _check_locked(packages: Collection[str], locked: Collection[str]) -> None:
    if missing := set(packages) - set(locked):
        raise PipelineError(
            f"uv.lock: must lock {', '.join(sorted(missing))}. Got no such package. Run `uv lock`"
        )


def model_files(name: str, model: Model) -> dict[str, str]:
    """Return the SHA-256 of each file that a model is built from.

    Raises:
        PipelineError: The file that it starts from does not exist.
    """
    files = [ARCHITECTURES / f"{model.architecture}.py"]
    if model.from_model:
        remedy = f"Put it there, or change models.{name}.from_model"
        files.append(require_file(Path(model.from_model), remedy))
    return {file.name: sha256(file) for file in files}


def model_packages(name: str, model: Model, locked: dict[str, str]) -> dict[str, str]:
    """Return the locked version of the package that a model takes its weights from, if any.

    Raises:
        PipelineError: The package is not installed or not locked.
    """
    package = weights_package(model)
    if package is None:
        return {}
    _check_locked([package], locked)
    try:
        version(package)
    except PackageNotFoundError:
        raise PipelineError(
            f"models.{name}: the package {package}, which contains its weights, is not installed. "
            "Run `uv sync --inexact --group pretrained`"
        ) from None
    return {package: locked[package]}


def feature_settings(model: Model, settings: Train) -> dict[str, Any] | None:
    """Return the settings that the output of a model's frozen layers depends on.

    So another learning rate does not compute it again. None if the model has no frozen layers, or
    if their inputs change: by augmentation, or because the first layer is set by whitening.
    """
    if not may_freeze(model) or settings.augment.changes_images or settings.whiten:
        return None
    return {"model": model.model_dump(exclude={"train"}), "precision": settings.precision}


def old_outputs(compare: list[str], seeds: list[int]) -> list[Path]:
    """Return the outputs of trainings and models that are no longer in params.yaml.

    A folder of models/ that is not named in `compare` may contain a user's copies of models. A file
    there is an output of the graph only if the training has other outputs, too.
    """
    folders = ["plots/history/*", "metrics/*/*", *(f"models/{name}" for name in compare)]
    trainings = {
        (path.parent.name, path.stem)
        for folder in folders
        for path in Path().glob(f"{folder}/*.*")
        if path.stem.isdecimal()
    }
    current = {(name, str(seed)) for name in compare for seed in seeds}
    models = {path.stem for output in MODEL_OUTPUTS for path in Path().glob(output.format("*"))}
    paths = [output.format(*old) for old in trainings - current for output in TRAINING_OUTPUTS]
    paths += [output.format(old) for old in models - set(compare) for output in MODEL_OUTPUTS]
    return [Path(path) for path in sorted(paths) if Path(path).exists()]


def remove_old_outputs(compare: list[str], seeds: list[int]) -> list[Path]:
    """Remove the old outputs and the folders that are empty then; return the outputs."""
    removed = old_outputs(compare, seeds)
    for path in removed:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        with suppress(OSError):
            path.parent.rmdir()
    return removed


def vega_script() -> str:
    """Return Vega, Vega-Lite and vega-embed as a script that defines `window.vegaEmbed`."""
    import vl_convert  # not above: trainings import this module

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"(() => {{{bundle}}})();\n"  # in a function, so that nothing else is global


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--trainings", type=Path, required=True)
    parser.add_argument("--vega", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()
    check_folder(params.folder)
    locked = locked_versions(args.lock)
    models = {name: params.models[name] for name in params.compare}

    records: dict[str, dict[str, Any]] = {
        "versions": versions_by_stage(locked, params.backend),
        "models": {
            name: {**model_files(name, model), **model_packages(name, model, locked)}
            for name, model in models.items()
        },
        "features": {
            name: feature_settings(model, params.train_of(name)) for name, model in models.items()
        },
        "pictures": {name: params.pictures_of(name) for name in params.compare},
    }
    with atomic_path(args.inputs) as folder:
        for kind, values in records.items():
            for name, value in values.items():
                write_json(folder / kind / f"{name}.json", value)
    old = remove_old_outputs(params.compare, params.seeds)
    live_curves.remove_others(params.compare, params.seeds)
    write_json(args.trainings, dict.fromkeys(params.compare, params.seeds))
    with atomic_path(args.vega) as path:
        path.write_text(vega_script(), "utf-8")
    removed = f"; {counted(len(old), 'output')} of other models and seeds removed" if old else ""
    seeds = ", ".join(map(str, params.seeds))
    print(f"inputs: {', '.join(models)}; seeds {seeds} -> {args.inputs}{removed}")


if __name__ == "__main__":
    run(main)
