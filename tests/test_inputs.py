"""Versions: which stages a new version of a package reruns."""

import json
from importlib.metadata import packages_distributions

import grimp
import pytest

from pipeline import versions
from pipeline.core.errors import PipelineError
from tests.conftest import REPOSITORY

IMPORTS = grimp.build_graph("pipeline", include_external_packages=True)

# packages that do not affect outputs: they validate, print or show progress. TensorFlow Datasets
# only supplies the names of data sets here
NO_EFFECT = {"annotated-types", "filelock", "psutil", "pydantic", "pyyaml", "requests", "rich",
             "tensorflow-datasets", "tqdm"}  # fmt: skip
# packages that are imported but not used by these stages: scikit-learn in splitting.py, Pillow in
# preprocessor.py, JAX in backend.py
UNUSED = {
    "preprocess": {"scikit-learn"},
    "split": {"pillow"},
    "train": {"pillow"},
    "evaluate": {"pillow"},
    "export": {"pillow", "jax"},
}
# packages that are not imported here, but write or compute for those that are
INDIRECT = {"h5py", "jaxlib", "ml-dtypes", "pyarrow", "scipy"}


def imported(stage: str) -> set[str]:
    """Return the packages that a stage's modules import, as uv.lock names them."""
    modules = {f"pipeline.{stage}"}
    if stage == "download":  # imports data sets by name at run time
        modules |= IMPORTS.find_children("pipeline.ingest.datasets")
    names = set().union(*(IMPORTS.find_upstream_modules(module) for module in modules))
    owners = packages_distributions()
    packages = {owner for name in names - {"pipeline"} for owner in owners.get(name, [])}
    return {package.lower().replace("_", "-") for package in packages}


@pytest.mark.parametrize("stage", versions.PACKAGES)
def test_a_stage_depends_on_the_packages_that_it_imports(stage):
    recorded = set(versions.PACKAGES[stage])
    if stage == "download":
        recorded |= {"tensorflow"}  # reads the records of TFDS without changing them
    if stage in versions.WITH_KERAS:
        recorded |= {name for names in versions.BACKENDS.values() for name in names}
    packages = imported(stage)
    assert packages - NO_EFFECT - UNUSED.get(stage, set()) <= recorded
    assert recorded - packages <= INDIRECT


ARGUMENTS = "pipeline.versions --lock uv.lock --versions versions --analysis analysis"
LOCK = "".join(
    f'[[package]]\nname = "{name}"\nversion = "1.0"\n'
    for name in sorted({name for names in versions.PACKAGES.values() for name in names}
                       | {"tensorflow", "jax", "jaxlib", "rich"})
)  # fmt: skip


@pytest.mark.parametrize(("package", "stages"), [
    ("matplotlib", {"analyze", "plot"}),
    ("tensorflow", {"train", "evaluate", "export", "analyze"}),
    ("pillow", {"download", "preprocess", "analyze", "plot", "report"}),
    ("jax", set()),
    ("rich", set()),
])  # fmt: skip
def test_a_new_version_reruns_the_stages_that_use_the_package(project, stage, package, stages):
    (project / "data/folder").mkdir(parents=True)
    argv = ARGUMENTS.split()
    outputs = []
    old, new = (f'"{package}"\nversion = "{version}"' for version in ("1.0", "2.0"))
    for text in (LOCK, LOCK.replace(old, new)):
        (project / "uv.lock").write_text(text)
        assert stage(*argv).returncode == 0
        outputs.append({p.stem: p.read_bytes() for p in (project / "versions").iterdir()})
    before, after = outputs
    assert {name for name in before if before[name] != after[name]} == stages


def test_the_pictures_of_a_model_do_not_depend_on_settings_of_others(project, stage, edit):
    (project / "data/folder").mkdir(parents=True)
    argv = ARGUMENTS.split()
    (project / "uv.lock").write_text(LOCK)
    outputs = []
    for old, new in (
        ("seed: 0", "seed: 0"),
        ("train: {batch_size: 32}", "train: {batch_size: 64}"),
        ("finetune: {}", "finetune: {last: {architecture: transfer, from_model: x.keras}}"),
    ):
        edit(old, new)
        done = stage(*argv)
        assert done.returncode == 0
        outputs.append(
            {p.stem: json.loads(p.read_text()) for p in (project / "analysis").iterdir()}
        )
    first, second, third = outputs
    assert first == second
    assert first["baseline"] == first["batchnorm"] != []
    # of three models, the reference and the last are analyzed
    assert third == first | {"batchnorm": [], "last": first["baseline"]}
    assert done.stdout.endswith("; analyzed models: baseline, last\n")


def test_all_versions_of_a_package_are_recorded(tmp_path):
    """uv.lock may have several versions of NumPy, each for other versions of Python."""
    path = tmp_path / "uv.lock"
    numpy = '[[package]]\nname = "numpy"\nversion = "{}"\n'
    path.write_text(numpy.format("2.5.5") + numpy.format("2.4.6"))
    assert versions.locked_versions(path) == {"numpy": "2.4.6, 2.5.5"}


def test_an_unused_backend_is_not_recorded():
    lock = versions.locked_versions(REPOSITORY / "uv.lock")
    train = {
        backend: versions.versions_by_stage(lock, backend)["train"] for backend in versions.BACKENDS
    }
    assert "tensorflow" not in train["jax"]
    assert "jax" not in train["tensorflow"]
    assert train["tensorflow"]["keras"] == lock["keras"]


@pytest.mark.parametrize(("text", "message"), [
    ("[[package]", "must be uv's lock file"),
    ("", "must be uv's lock file"),
    ('[[package]]\nname = "keras"\nversion = "3"\n', "uv.lock: must lock .*altair, h5py, "),
])  # fmt: skip
def test_an_invalid_lock_file_is_refused(tmp_path, text, message):
    path = tmp_path / "uv.lock"
    path.write_text(text)
    with pytest.raises(PipelineError, match=message):
        versions.versions_by_stage(versions.locked_versions(path), "tensorflow")
