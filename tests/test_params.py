"""Params: what params.yaml may hold, and what a person reads when it does not."""

import json
import subprocess
import sys
import time

import pytest
import yaml

from pipeline import params
from pipeline.errors import PipelineError
from tests.conftest import REPOSITORY


def test_default_is_valid(project):
    loaded = params.load()
    assert list(loaded.models) == ["baseline", "batchnorm"]
    assert loaded.split.validation == 0.2


WRONG = [
    ("validation: 0.2", "validation: 1.5", r"split\.validation must be less than 1\. Got 1\.5"),
    ("validation: 0.2", "validation: 0", r"split\.validation must be greater than 0\. Got 0"),
    ("validation: 0.2", "validation: .nan", r"split\.validation must be a finite number\. Got nan"),
    ("validation: 0.2", "validaton: 0.2", r"validaton is no known key\. Did you mean validation\?"),
    ("seed: 0", "seed: true", r"seed must be a valid integer\. Got True"),
    ("seed: 0", "seed: -1", r"seed must be greater than or equal to 0\. Got -1"),
    ("seed: 0", "colour: red", r"colour is no known key\. Keys: seed, dataset.*\(and 1 more\)"),
    ("seed: 0", "# none", r"seed is missing"),
    ("seed: 0", "seed: [", r"not valid YAML"),
    ("epochs: 20", 'epochs: "20"', r"train\.epochs must be a valid integer\. Got '20'"),
    ("epochs: 20", "epochs: 2.5", r"train\.epochs must be a valid integer.*Got 2\.5"),
    ("epochs: 20", "epochs: 0", r"train\.epochs must be greater than or equal to 1\. Got 0"),
    ("early_stopping: null", "early_stopping: 0", r"early_stopping must be greater than or equal"),
    ("optimizer: adam", "optimizer: adm", r"optimizer must be 'adam', .* or 'sgd'\. Got 'adm'"),
    ("learning_rate: 0.001", "learning_rate: fast", r"learning_rate must be a valid number"),
    ("learning_rate: 0.001", "learning_rate: .inf", r"learning_rate must be a finite number"),
    ("normalize: unit", "normalize: none", r"normalize must be 'unit' or 'standardize'"),
    ("image_size: null", "image_size: 32", r"image_size must be a valid list\. Got 32"),
    ("image_size: null", "image_size: [32]", r"image_size .* at least 2 items"),
    ("image_size: null", "image_size: [32, 0]", r"image_size\.1 must be greater than or equal"),
    ("dataset: digits", "dataset: cifar11", r"dataset must be digits.*cifar10.*'cifar11'"),
    ("dataset: digits", "dataset: ../x", r"dataset must match"),
    ("architecture: baseline", "architecture: vgg", r"models\.baseline: no file .*vgg\.py\. Arch"),
    ("architecture: baseline", "architecture: ../params", r"baseline\.architecture must match"),
    ("architecture: baseline", "arch: baseline", r"baseline\.arch is no known key\. Keys: archi"),
    ("  baseline:", "  base line:", r"models\.base line must match"),
    ("  batchnorm:", "  baseline:", r"line \d+: baseline stands twice"),
    ("  baseline:", "  auto:", r"reference must be one of auto, batchnorm\. Got 'baseline'"),
    ("  batchnorm:", "  auto:", r"models\.auto: the name is taken"),
    ("  batchnorm:", "  champion:", r"models\.champion: the name is taken"),
    ("seed: 0", "seed: 2024-13-45", r"not valid YAML"),
    ("seed: 0", "? [a]\n: 3", r"not valid YAML"),
    ("champion: auto", "champion: vgg", r"champion must be auto or one of baseline, batchnorm"),
    ("split:\n", "split: 3\nother:\n", r"other is no known key"),
    ("preprocess:\n", "preprocess: 3\npre:\n", r"pre is no known key"),
]  # fmt: skip
OWN = [
    ("build: {dropout: 1.0}", r"models\.own\.build\.dropout must be less than 1\. Got 1\.0"),
    (
        "build: {droput: 0.1}",
        r"models\.own\.build\.droput is no known key\. Did you mean dropout",
    ),
    ("build: 3", r"models\.own\.build must be a mapping"),
    ("train: {epochs: 0}", r"models\.own\.train\.epochs must be greater than or equal to 1"),
    ("train: {epoch: 3}", r"models\.own\.train\.epoch is no known key\. Did you mean epochs"),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
def test_wrong_params_are_refused(edit, old, new, message):
    edit(old, new)
    with pytest.raises(PipelineError, match=rf"params\.yaml: .*{message}"):
        params.load()


@pytest.mark.parametrize(("line", "message"), OWN)
def test_wrong_settings_of_a_model_are_refused(edit, line, message):
    edit("models:\n", f"models:\n  own:\n    architecture: baseline\n    {line}\n")
    with pytest.raises(PipelineError, match=message):
        params.load()


def test_wrong_settings_of_batchnorm_are_refused(edit):
    edit("architecture: batchnorm", "architecture: batchnorm\n    build: {dropout: [0.1, 0.2]}")
    with pytest.raises(PipelineError, match=r"batchnorm\.build\.dropout .*at least 3 items"):
        params.load()


def test_empty_and_missing_files_are_refused(project):
    (project / "params.yaml").write_text("")
    with pytest.raises(PipelineError, match=r"the file must be a mapping of keys.*Got None"):
        params.load()
    (project / "params.yaml").unlink()
    with pytest.raises(PipelineError, match=r"no such file in .*Run from the repository's top"):
        params.load()


def test_numbers_are_read_as_dvc_reads_them(edit):
    edit("learning_rate: 0.001", "learning_rate: 1e-3")
    assert params.load().train.learning_rate == 0.001


def test_a_model_overrides_training(edit):
    edit("train: {batch_size: 32}", "train: {batch_size: 128}")
    loaded = params.load()
    assert loaded.train_of("batchnorm").batch_size == 128
    assert loaded.train_of("batchnorm").epochs == 20
    assert loaded.train_of("baseline").batch_size == 32


def test_every_stage_refuses_before_it_does_anything(project, stage, edit):
    edit("seed: 0", "seed: zero")
    options = {
        "download": ["--raw", "raw"],
        "preprocess": ["--raw", "raw", "--arrays", "arrays"],
        "split": ["--arrays", "arrays", "--split", "split.npz", "--metrics", "split.json"],
        "train": ["baseline"]
        + [f"--{x}=x" for x in "arrays split out history metrics run".split()],
        "evaluate": [f"--{x}=x" for x in ("model", "arrays", "metrics", "predictions")],
        "compare": [
            f"--{x}=x"
            for x in "test train predictions models comparison champion champion-model".split()
        ],
        "plot": [
            f"--{x}=x"
            for x in "arrays history predictions samples learning-curves class-accuracy".split()
        ]
        + ["--confusion=x", "--examples=x"],
    }
    graph = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
    again = {"finetune", "evaluate_finetuned"}  # run the scripts of train and evaluate
    assert set(options) == set(graph["stages"]) - again
    for name, argv in options.items():
        done = stage(f"pipeline.{name}", *argv)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "error: params.yaml: seed must be a valid integer. Got 'zero'\n"
    assert [path.name for path in project.iterdir()] == ["params.yaml"]


def test_reading_params_imports_neither_keras_nor_tensorflow(project):
    code = "import sys; from pipeline import params; params.load(); print('keras' in sys.modules)"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.stdout == "False\n", done.stderr
    assert time.perf_counter() - start < 10


def test_anchors_and_merge_keys_are_read(edit):
    edit("architecture: baseline", "<<: &same {architecture: baseline}")
    edit("architecture: batchnorm", "<<: *same")
    assert params.load().models["batchnorm"].architecture == "baseline"


@pytest.mark.parametrize(("source", "message"), [
    ("def make(): pass", "StopIteration"),
    ("def build(:", "SyntaxError"),
    ("def build(shape, classes, *, x: keras.Layer = 1): pass", "NameError.*keras"),
    ("def build(shape, classes, *, x: float = 1 / 255): pass", "ValueError: malformed"),
])  # fmt: skip
def test_a_mistake_in_an_architecture_file_is_one_line(tmp_path, monkeypatch, source, message):
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.setattr(params, "ARCHITECTURES", tmp_path)
    with pytest.raises(PipelineError, match=rf"mine\.py: must be Python with.*{message}"):
        params.settings("mine")


def test_schema_is_current():
    committed = (REPOSITORY / "params.schema.json").read_text()
    assert committed == params.schema(), "run `make schema`"
    assert json.loads(committed)["additionalProperties"] is False


def test_params_yaml_names_its_schema_and_explains_every_key():
    lines = (REPOSITORY / "params.yaml").read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=params.schema.json"
    for before, line in zip(lines, lines[1:], strict=False):
        key = line.split(":")[0].strip()
        if (
            line
            and not line.lstrip().startswith("#")
            and key not in ("preprocess", "split", "architecture", "build", "train")
        ):
            assert before.lstrip().startswith("#"), f"{key} has no comment"
