"""Versions: what a new version of a package makes run again, and what it does not."""

import json
from importlib.metadata import packages_distributions

import grimp
import pytest

from pipeline import versions
from pipeline.core.errors import PipelineError
from tests.conftest import REPOSITORY

IMPORTS = grimp.build_graph("pipeline", include_external_packages=True)

# decide nothing of what is written: they check, print, or show progress; TFDS, where it only knows
# the names of data sets; scikit-learn in splitting.py, with which download holds a test split out;
# Pillow in preprocessing.py, which these stages have for its numbers; JAX in backend.py, which
# export does without
WITHOUT_INFLUENCE = {"annotated-types", "filelock", "psutil", "pydantic", "pyyaml", "requests",
                     "rich", "tensorflow-datasets", "tqdm"}  # fmt: skip
UNUSED = {
    "preprocess": {"scikit-learn"},
    "split": {"pillow"},
    "train": {"pillow"},
    "evaluate": {"pillow"},
    "export": {"pillow", "jax"},
}
# no file of ours imports them: they write or compute for those that are imported
BEHIND = {"h5py", "jaxlib", "ml-dtypes", "pyarrow", "scipy"}


def imported(stage: str) -> set[str]:
    """Return the packages that a stage's modules import, as uv.lock names them."""
    modules = {f"pipeline.{stage}"}
    if stage == "download":  # by their names, when it runs
        modules |= IMPORTS.find_children("pipeline.ingest.datasets")
    names = set().union(*(IMPORTS.find_upstream_modules(module) for module in modules))
    owners = packages_distributions()
    found = {owner for name in names - {"pipeline"} for owner in owners.get(name, [])}
    return {owner.lower().replace("_", "-") for owner in found}


@pytest.mark.parametrize("stage", versions.PACKAGES)
def test_every_package_that_a_stage_imports_counts_and_no_other(stage):
    counted = set(versions.PACKAGES[stage])
    if stage == "download":
        counted |= {"tensorflow"}  # reads TFDS's records, and changes nothing in them
    if stage in versions.WITH_KERAS:
        counted |= {name for names in versions.BACKENDS.values() for name in names}
    found = imported(stage)
    assert found - WITHOUT_INFLUENCE - UNUSED.get(stage, set()) <= counted
    assert counted - found <= BEHIND


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
def test_a_new_version_concerns_the_stages_that_use_it(project, stage, package, stages):
    (project / "data/folder").mkdir(parents=True)
    argv = ARGUMENTS.split()
    found = []
    old, new = (f'"{package}"\nversion = "{version}"' for version in ("1.0", "2.0"))
    for text in (LOCK, LOCK.replace(old, new)):
        (project / "uv.lock").write_text(text)
        assert stage(*argv).returncode == 0
        found.append({p.stem: p.read_bytes() for p in (project / "versions").iterdir()})
    assert {name for name in found[0] if found[0][name] != found[1][name]} == stages


def test_the_pictures_of_a_model_are_no_matter_of_another_ones_settings(project, stage, edit):
    (project / "data/folder").mkdir(parents=True)
    argv = ARGUMENTS.split()
    (project / "uv.lock").write_text(LOCK)
    found = []
    for old, new in (
        ("seed: 0", "seed: 0"),
        ("train: {batch_size: 32}", "train: {batch_size: 64}"),
        ("finetune: {}", "finetune: {last: {architecture: transfer, from_model: x.keras}}"),
    ):
        edit(old, new)
        done = stage(*argv)
        assert done.returncode == 0
        found.append({p.stem: json.loads(p.read_text()) for p in (project / "analysis").iterdir()})
    assert found[0] == found[1]
    assert found[0]["baseline"] == found[0]["batchnorm"] != []
    # of three the reference and the last
    assert found[2] == found[0] | {"batchnorm": [], "last": found[0]["baseline"]}
    assert done.stdout.endswith("analyze draws baseline, last\n")


def test_of_a_package_locked_for_two_pythons_both_versions_count(tmp_path):
    """As numpy is: a newer one for 3.13 alone must not hide a newer one for 3.11."""
    path = tmp_path / "uv.lock"
    numpy = '[[package]]\nname = "numpy"\nversion = "{}"\n'
    path.write_text(numpy.format("2.5.5") + numpy.format("2.4.6"))
    assert versions.locked_versions(path) == {"numpy": "2.4.6, 2.5.5"}


def test_the_backend_that_is_not_used_does_not_count():
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
def test_what_is_no_lock_file_is_refused(tmp_path, text, message):
    path = tmp_path / "uv.lock"
    path.write_text(text)
    with pytest.raises(PipelineError, match=message):
        versions.versions_by_stage(versions.locked_versions(path), "tensorflow")
