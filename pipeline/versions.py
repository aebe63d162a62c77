"""Versions: record the package versions that each stage depends on, in one file per stage.

uv.lock changes with every package. A stage that depends on its own file reruns only if one of its
packages changes: a new matplotlib redraws plots and retrains nothing.

The first stage of all, it also checks `folder`, since DVC only says "No such file or directory".
And it lists which pictures analyze draws of each model: that takes the names of all, and a model's
own stages must not run again with another's settings.

Reads   uv.lock
Writes  data/versions/STAGE.json    package to locked version, or versions
        data/analysis/MODEL.json     names of pictures; none where the model is not chosen
Params  backend, folder; for analyze: analyze, finetune, models, reference
"""

import argparse
import tomllib
from pathlib import Path

from pipeline.config.params import check_folder, load
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import atomic_path, write_json

# What each stage imports, and what writes or computes for that: h5py the weights in a .keras
# file, SciPy for scikit-learn, Pillow the PNGs of matplotlib. Not what only checks, prints or
# shows progress.
PACKAGES = {
    "download": ("numpy", "pillow", "pyarrow", "scikit-learn", "tensorflow-datasets"),
    "preprocess": ("numpy", "pillow", "pyarrow"),
    "split": ("numpy", "scikit-learn"),
    "train": ("h5py", "keras", "ml-dtypes", "numpy"),
    "evaluate": ("keras", "numpy", "pandas", "scikit-learn", "scipy"),
    "analyze": ("h5py", "keras", "matplotlib", "ml-dtypes", "numpy", "pandas", "pillow"),
    "compare": ("numpy", "scipy"),
    "export": (
        "ai-edge-litert",
        "keras",
        "numpy",
        "onnx",
        "onnxruntime",
        "tensorflow",
        "tf2onnx",
    ),
    "plot": ("matplotlib", "numpy", "pandas", "pillow"),
    "report": ("altair", "jinja2", "numpy", "pandas", "pillow", "vl-convert-python"),
}
# Of the stages that compute with Keras on the backend of params.yaml.
BACKENDS = {"tensorflow": ("tensorflow",), "jax": ("jax", "jaxlib")}
WITH_KERAS = ("train", "evaluate", "analyze")


def locked_versions(path: Path) -> dict[str, str]:
    """Return the version of each package in uv.lock; all of them if it depends on Python."""
    try:
        packages = tomllib.loads(path.read_text("utf-8"))["package"]
        found: dict[str, set[str]] = {}
        for package in packages:
            found.setdefault(package["name"], set()).add(package["version"])
        return {name: ", ".join(sorted(versions)) for name, versions in found.items()}
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise PipelineError(
            f"{path}: must be uv's lock file. Got {error}. Run `git checkout {path}`"
        ) from None


def versions_by_stage(found: dict[str, str], backend: str) -> dict[str, dict[str, str]]:
    """Return the locked versions that each stage depends on.

    Raises:
        PipelineError: A package is not locked.
    """
    wanted = {
        stage: names + (BACKENDS[backend] if stage in WITH_KERAS else ())
        for stage, names in PACKAGES.items()
    }
    if missing := {name for names in wanted.values() for name in names} - set(found):
        raise PipelineError(
            f"uv.lock: must lock {', '.join(sorted(missing))}. Got no such package. Run `uv lock`"
        )
    return {stage: {name: found[name] for name in names} for stage, names in wanted.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--versions", type=Path, required=True)
    parser.add_argument("--analysis", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()
    check_folder(params.folder)

    stages = versions_by_stage(locked_versions(args.lock), params.backend)
    with atomic_path(args.versions) as folder:
        for stage, versions in stages.items():
            write_json(folder / f"{stage}.json", versions)
    pictures = {name: params.pictures_of(name) for name in params.all_models}
    with atomic_path(args.analysis) as folder:
        for name, chosen in pictures.items():
            write_json(folder / f"{name}.json", chosen)
    drawn = ", ".join(name for name, chosen in pictures.items() if chosen) or "none"
    print(f"versions: of {len(stages)} stages -> {args.versions}; analyze draws {drawn}")


if __name__ == "__main__":
    run(main)
