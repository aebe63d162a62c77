"""Versions: record the package versions that each stage depends on, in one file per stage.

uv.lock changes with every package. A stage that depends on its own file reruns only if one of its
packages changes: a new matplotlib redraws plots and retrains nothing.

As the first stage, it also checks `folder`, because DVC's own message would only be "No such file
or directory". It also lists the pictures that analyze draws of each model: they depend on the names
of all models, while the other stages of a model must not rerun when settings of another one change.

Reads   uv.lock
Writes  data/versions/STAGE.json    locked version, or versions, of each package
        data/analysis/MODEL.json    names of pictures; empty if the model is not analyzed
Params  backend, folder; for analyze: analyze, finetune, models, reference
"""

import argparse
import tomllib
from pathlib import Path

from pipeline.config.params import check_folder, load
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import atomic_path, write_json

# Packages that each stage imports, and those that write or compute for them: h5py writes the
# weights in a .keras file, SciPy computes for scikit-learn, Pillow writes the PNGs of matplotlib.
# Packages that only validate, print or show progress are left out.
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
# Additional packages of the stages that use Keras with the backend of params.yaml.
BACKENDS = {"tensorflow": ("tensorflow",), "jax": ("jax", "jaxlib")}
WITH_KERAS = ("train", "evaluate", "analyze")


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
    if missing := {name for names in packages.values() for name in names} - set(locked):
        raise PipelineError(
            f"uv.lock: must lock {', '.join(sorted(missing))}. Got no such package. Run `uv lock`"
        )
    return {stage: {name: locked[name] for name in names} for stage, names in packages.items()}


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
    pictures = {model: params.pictures_of(model) for model in params.all_models}
    with atomic_path(args.analysis) as folder:
        for model, names in pictures.items():
            write_json(folder / f"{model}.json", names)
    analyzed = ", ".join(model for model, names in pictures.items() if names) or "none"
    print(f"versions: {len(stages)} stages -> {args.versions}; analyzed models: {analyzed}")


if __name__ == "__main__":
    run(main)
