"""Study: measurements, comparisons, and the sentence that reports them."""

import json
import math
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

from pipeline import study
from pipeline.config import params
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.data.preprocessor import Preprocessor
from pipeline.reporting.drawing import plt
from pipeline.runtime import backend
from pipeline.stats import correctness, crossed
from pipeline.trials import figure
from pipeline.trials.measure import gradient_norms
from pipeline.trials.summary import sentence, summarize
from tests.conftest import REPOSITORY, write_arrays

GRAPH = yaml.safe_load((REPOSITORY / "studies/dvc.yaml").read_text())["stages"]["study"]
NAMES = sorted(GRAPH["foreach"])


def network() -> keras.Model:
    """Return one dense layer of two units whose kernel is 0."""
    backend.make_deterministic(0)
    images = keras.Input((1, 1, 2))
    x = keras.layers.Flatten()(images)
    return keras.Model(images, keras.layers.Dense(2, kernel_initializer="zeros")(x))


LOSS = keras.losses.CategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-25])
def test_gradient_norms_are_exact_even_if_tiny(scale):
    model = network()
    images = scale * np.array([[[[3.0, 4.0]]]], np.float32)
    # p - y = (-0.5, 0.5); the gradient is its outer product with (3, 4): sqrt(2 * (1.5² + 2²))
    assert gradient_norms(model, images, np.array([[1.0, 0.0]]), LOSS) == [
        pytest.approx(scale * math.sqrt(12.5), rel=1e-5)
    ]
    assert not keras.ops.convert_to_numpy(model.layers[-1].kernel).any()


def test_frozen_layers_have_no_gradient_norm():
    images = keras.Input((2, 2, 1))
    frozen = keras.layers.Conv2D(3, 1, trainable=False)
    x = keras.layers.Flatten()(frozen(images))
    model = keras.Model(images, keras.layers.Dense(2)(x))
    norms = gradient_norms(model, np.ones((1, 2, 2, 1)), np.array([[1.0, 0.0]]), LOSS)
    assert len(norms) == 1


# Accuracies 1/2 and 1/4 on twelve images, and 1 and 1
HALF_AND_QUARTER = np.tile([[True, True, False, False], [True, False, False, False]], 3)
ALL = np.ones((2, 12), bool)


def runs(table: np.ndarray, seconds: float = 1.0, gradient: float = 1.0) -> list[dict]:
    """Return a run for each row of a table of correct images."""
    return [
        {"seed": seed, "gradients": [gradient, 2.0], "accuracy": 1.0,
         "val_accuracy": correct.mean(), "gap": 1.0 - correct.mean(), "seconds_per_epoch": seconds,
         "correct": correctness.pack(correct, np.array(["7"] * len(correct)))}
        for seed, correct in enumerate(table)
    ]  # fmt: skip


def summary_rows(runs_of: dict[str, list], over_x: bool = False) -> list[dict]:
    positions: dict[str, tuple] = {name: (name, None) for name in runs_of}
    if over_x:
        positions = {name: (name.split("_")[0], int(name.split("_")[1])) for name in runs_of}
    return summarize(positions, dict.fromkeys(runs_of, 20), runs_of, margin=0.01)


def test_the_interval_counts_seeds_and_images():
    none, one = summary_rows({"none": runs(HALF_AND_QUARTER), "one": runs(ALL)})
    assert "verdict" not in none
    assert none["val_accuracy"] == 3 / 8
    assert one["against"] == "none"
    assert one["difference"] == 5 / 8
    # Variance 1/64 of the seeds, and 1/88 of the images (tests/stats/test_crossed.py): 19/704,
    # with (19/704 / (1/64))**2 = 2.98 degrees of freedom, of which t is 3.192.
    margin = 3.192 * math.sqrt(19 / 704)
    assert one["difference_low"] == pytest.approx(5 / 8 - margin, abs=1e-3)
    assert one["difference_high"] == 1  # less than 5/8 + 0.52


def test_p_is_adjusted_for_the_number_of_comparisons():
    # t = 5/8 / sqrt(19/704) = 3.80 with 2.98 degrees of freedom: p = 0.032
    runs_of = {"none": runs(HALF_AND_QUARTER), "one": runs(ALL)}
    assert summary_rows(runs_of)[1]["verdict"] == "better"
    rows = summary_rows({**runs_of, "two": runs(ALL)})
    assert [row["p_holm"] for row in rows[1:]] == pytest.approx([0.064, 0.064], abs=5e-4)
    assert [row["verdict"] for row in rows[1:]] == ["cannot tell", "cannot tell"]


def test_lines_are_compared_at_the_same_x():
    rows = summary_rows(dict.fromkeys(("relu_2", "relu_6", "tanh_2", "tanh_6"), runs(ALL)), True)
    assert [row.get("against") for row in rows] == [None, None, "relu_2", "relu_6"]


def test_a_model_that_diverged_is_counted_and_not_compared():
    diverged = [{"seed": 1, "gradients": [None, 2.0]}]
    runs_of = {"none": runs(ALL), "one": diverged + runs(ALL[:1]), "two": diverged * 2}
    rows = summary_rows(runs_of)
    assert [row["diverged"] for row in rows] == [0, 1, 2]
    assert [row["val_accuracy"] for row in rows] == [1, 1, None]
    assert sentence(rows, None, None, 0.01) == (
        "After 20 epochs, 2 trainings each: 1 of 2 trainings of one diverged; "
        "2 of 2 trainings of two diverged."
    )
    runs_of = {"none": diverged * 2, "one": runs(ALL)}
    assert not [row for row in summary_rows(runs_of) if "verdict" in row]


def row(name: str, points: float, verdict: str | None, **values: object) -> dict:
    """Return a row of a study whose reference has a validation accuracy of 85 %."""
    difference = points / 100
    comparison = {
        "verdict": verdict,
        "difference": difference,
        "difference_low": difference - 0.003,
        "difference_high": difference + 0.003,
        "p_holm": 0.0616,
    }
    return {
        "model": name, "line": name, "x": None, "epochs": 20, "diverged": 0, "runs": [{}, {}],
        "val_accuracy": 0.85 + difference, **(comparison if verdict else {}), **values,
    }  # fmt: skip


def test_the_sentence_agrees_with_the_numbers():
    rows = [
        row("none", 0, None, seconds_per_epoch=2),
        row("one", -10, "worse", seconds_per_epoch=1),
        row("two", 0, "as good as", seconds_per_epoch=4),
        row("three", 0.8, "cannot tell", seconds_per_epoch=3),
        row("four", -0.2, "cannot tell", seconds_per_epoch=3),
        row("five", 10, "better", seconds_per_epoch=3),
    ]
    assert sentence(rows, "seconds_per_epoch", None, 0.01) == (
        "After 20 epochs, 2 trainings each: in validation accuracy, "
        "one (75.0 %, −10.0 points [−10.3, −9.7]) is worse than none (85.0 %); "
        "two (85.0 %, +0.0 points [−0.3, +0.3]) is as good as none (85.0 %), within 1 point; "
        "this study cannot tell three (85.8 %, +0.8 points [+0.5, +1.1], adjusted p 0.062) and "
        "four (84.8 %, −0.2 points [−0.5, +0.1]) from none (85.0 %); "
        "five (95.0 %, +10.0 points [+9.7, +10.3]) is better than none (85.0 %); "
        "an epoch takes between 1.000 s (one) and 4.000 s (two)."
    )


@pytest.mark.parametrize(("epochs", "expected"), [
    ((1, 1, 1), "After 1 epoch, "), ((20, 1, 1), "After 1 or 20 epochs, "),
    ((20, 9, 40), "After 9 to 40 epochs, "),
])  # fmt: skip
def test_the_sentence_starts_with_the_numbers_of_epochs(epochs, expected):
    rows = [row(f"model_{n}", 10, "better", epochs=n) for n in epochs]
    assert sentence(rows, None, None, 0.01).startswith(expected)


def test_the_sentence_groups_a_line_by_its_verdicts():
    rows = [
        row("relu_2", 0, None, line="relu", x=2, gradients=[1.0]),
        row("relu_6", 0, None, line="relu", x=6, gradients=[0.1]),
        row("tanh_2", 5, "better", line="tanh", x=2, gradients=[1e-9]),
        row("tanh_6", 6, "better", line="tanh", x=6, gradients=[3.0]),
        row("elu_2", 0.8, "cannot tell", line="elu", x=2, gradients=[0.1]),
        row("elu_6", 0, "as good as", line="elu", x=6, gradients=[0.1]),
    ]
    assert sentence(rows, "gradients", "build.depth", 0.005) == (
        "After 20 epochs, 2 trainings each: in validation accuracy, "
        "tanh is better than relu at depth 2 (+5.0 points [+4.7, +5.3]) and "
        "6 (+6.0 points [+5.7, +6.3]); "
        "this study cannot tell elu from relu at depth 2 "
        "(+0.8 points [+0.5, +1.1], adjusted p 0.062); "
        "elu is as good as relu at depth 6 (+0.0 points [−0.3, +0.3]), within 0.5 points; "
        "before training, the gradient in the first layer "
        "has a norm between 1e-09 (tanh_2) and 3 (tanh_6)."
    )


# Of 1,000 images, those that are correct after training on all instead of the first 500. With d
# images gained, the standard error is that of a share of d in 1,000, √(0.09 / 1000) for 100.
@pytest.mark.parametrize(("more", "margin", "expected"), [
    (range(600), 0.01, "; more images would probably help: from 50 % to 100 % of the training "
     "images, +10.0 points [+8.1, +11.9]."),
    (range(400), 0.01, "; more images did not help: from 50 % to 100 % of the training images, "
     "−10.0 points [−11.9, −8.1]."),
    (range(501), 0.01, "; more images would hardly help, within 1 point: from 50 % to 100 % of "
     "the training images, +0.1 points [−0.2, +0.4]."),
    (range(501), 0.001, "; this study cannot tell whether more images would help: from 50 % to "
     "100 % of the training images, +0.1 points [−0.2, +0.4]."),
])  # fmt: skip
def test_the_sentence_says_whether_more_images_would_help(more, margin, expected):
    correct = {0.1: range(100), 0.5: range(500), 1.0: more}
    runs_of = {f"share_{x}": runs(np.tile(np.isin(np.arange(1000), list(images)), (2, 1)))
               for x, images in correct.items()}  # fmt: skip
    positions: dict[str, tuple] = {f"share_{x}": ("share", x) for x in (1.0, 0.1, 0.5)}
    rows = summarize(positions, dict.fromkeys(runs_of, 20), runs_of, margin)
    assert sentence(rows, None, "train.train_size", margin).endswith(expected)
    assert "images" not in sentence(rows, None, "train.epochs", margin)


def test_a_logarithmic_axis_has_plain_numbers():
    runs_of = {"relu_2": runs(ALL), "relu_6": runs(ALL, gradient=1e-6)}
    drawn = figure.draw("How deep?", summary_rows(runs_of, over_x=True), "gradients", "build.depth")
    drawn.canvas.draw()
    labels = [label.get_text() for label in drawn.axes[1].get_yticklabels()]
    assert "0.01" in labels
    assert not any("$" in label for label in labels)
    plt.close(drawn)


STUDY = """
question: Does it learn?
seeds: [0, 7]
train: {epochs: 2, batch_size: 8}
models:
  one: {architecture: plain, build: {depth: 1, filters: 2}}
  two:
    architecture: plain
    build: {depth: 2, filters: 2, batch_norm: true}
    train: {optimizer: sgd, learning_rate: 1e+30}
  three: {architecture: plain, build: {depth: 1, filters: 3}}
"""


@pytest.fixture
def prepared(project) -> Path:
    """Write a study, and arrays of 64 small images without a test split."""
    labels = np.arange(64) % 2
    noise = np.random.default_rng(0).random((64, 4, 4, 1), dtype=np.float32)
    images = noise * 0.2 + labels[:, None, None, None].astype(np.float32) * 0.8
    write_arrays(project / "arrays/train", images, labels)
    info = vars(Preprocessor(["dark", "bright"], [4, 4, 1], "unit", [0.5], [0.5]))
    (project / "arrays/info.json").write_text(json.dumps(info))
    np.savez(project / "split.npz", train=np.arange(48), validation=np.arange(48, 64))
    (project / "mine.yaml").write_text(STUDY)
    return project


ARGUMENTS = "--arrays arrays --split split.npz --table out/mine.json --picture out/mine.png".split()


def test_a_study_without_validation_images_is_refused(prepared, quick_stage):
    np.savez(prepared / "split.npz", train=np.arange(64), validation=np.arange(0))
    done = quick_stage("pipeline.study", "mine.yaml", *ARGUMENTS)
    assert done.stderr == (
        "error: params.yaml: split.validation must be greater than 0, because studies measure "
        "validation accuracy. Got 0\n"
    )


@pytest.mark.slow
def test_a_study_needs_no_test_images_and_continues_after_a_divergence(prepared, stage):
    done = stage("pipeline.study", "mine.yaml", *ARGUMENTS)
    assert (done.returncode, done.stderr) == (0, "")
    result = read_json(prepared / "out/mine.json")
    one, two, three = result["models"]
    assert [run["seed"] for run in one["runs"]] == [0, 7]
    assert [len(run["gradients"]) for run in one["runs"]] == [2, 2]
    for run in one["runs"]:
        assert run["gap"] == pytest.approx(run["accuracy"] - run["val_accuracy"])
        assert run["seconds_per_epoch"] > 0
        assert correctness.unpack(run["correct"]).mean() == run["val_accuracy"]
    assert [row["diverged"] for row in (one, two, three)] == [0, 2, 0]
    assert "verdict" not in two
    tables = (correctness.correct_table(row["runs"]) for row in (one, three))
    assert three["p"] == pytest.approx(crossed.compare_models(*tables).p)
    assert result["sentence"].startswith("After 2 epochs, 2 trainings each: in validation accuracy")
    assert result["sentence"].endswith("; 2 of 2 trainings of two diverged.")
    assert result["sentence"] in done.stdout
    assert "2 of 2 diverged" in done.stdout
    assert (prepared / "out/mine.png").read_bytes().startswith(b"\x89PNG")


WRONG = [
    ("seeds: [0, 7]", "seeds: [0]", "seeds must have at least 2 items"),
    ("seeds: [0, 7]", "seed: 0", "seed is an unknown key. Did you mean seeds?"),
    ("depth: 1", "deph: 1", "models.one.build.deph is an unknown key. Did you mean depth?"),
    ("depth: 1", "depth: 0", "models.one.build.depth must be greater than or equal to 1. Got 0"),
    ("epochs: 2", "epochs: 0", "train.epochs must be greater than or equal to 1. Got 0"),
    (
        "epochs: 2", "momentum: 0.9",
        "train has a momentum, which adam does not support: set it to 0",
    ),
    ("seeds:", "x: filters\nseeds:", "x must match pattern '^(build|train)\\.\\w+$'"),
    (
        "seeds:", "x: build.dropout\nseeds:",
        "models.one: build.dropout must be a number, because it is x. Got None",
    ),
    (
        "batch_size: 8", "train_size: 49",
        "train.train_size must be at most all 48 training images, and enough to include each of "
        "2 classes. Got 49 (49 images)",
    ),
    ("architecture: plain", "architecture: vgg", "models.one: no file pipeline/architectures/vgg"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
def test_an_invalid_study_is_one_error_line(prepared, old, new, message):
    (prepared / "mine.yaml").write_text(STUDY.replace(old, new, 1))
    with pytest.raises(PipelineError) as refused:
        study.main(["mine.yaml", *ARGUMENTS])
    assert f"mine.yaml: {message}" in str(refused.value)
    assert not (prepared / "out").exists()


def test_a_missing_study_is_one_error_line(prepared):
    with pytest.raises(PipelineError, match=r"^none\.yaml: no such file in .*Run from the"):
        study.main(["none.yaml", *ARGUMENTS])


def test_dvc_yaml_lists_every_study():
    files = {path.stem for path in (REPOSITORY / "studies").glob("*.yaml")} - {"dvc"}
    assert files == set(NAMES)


def test_the_readme_quotes_the_sentence_of_every_committed_study(committed):
    studies = committed("studies")
    readme = (studies / "README.md").read_text("utf-8")
    for table in sorted(studies.glob("*.json")):
        assert f"]({table.stem}.png)" in readme
        assert read_json(table)["sentence"] in readme


@pytest.mark.parametrize("name", NAMES)
def test_every_study_is_valid_and_depends_on_its_architecture(name, project):
    loaded, study_params = study.load(REPOSITORY / f"studies/{name}.yaml", params.load())
    assert len(loaded.seeds) >= 4
    architectures = {model.architecture for model in study_params.models.values()}
    assert architectures == {GRAPH["foreach"][name]}


def test_make_study_with_an_unknown_name_lists_the_studies():
    done = subprocess.run(
        ["make", "-o", ".venv/ready", "study", "NAME=dvc"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    for name in NAMES:
        assert name in done.stderr
