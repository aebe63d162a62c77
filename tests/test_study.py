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
from pipeline.reporting.drawing import plt
from pipeline.runtime import backend
from pipeline.trials import figure
from pipeline.trials.measure import gradient_norms
from pipeline.trials.summary import paired, sentence, summarize
from tests.conftest import REPOSITORY, write_arrays

GRAPH = yaml.safe_load((REPOSITORY / "studies/dvc.yaml").read_text())["stages"]["study"]
NAMES = sorted(GRAPH["foreach"])


def test_the_interval_of_paired_differences_is_that_of_the_t_test():
    comparison = paired([0.59, 0.70, 0.81], [0.5, 0.6, 0.7], 10**6)
    # differences 0.09, 0.10, 0.11: standard error 0.01 / sqrt(3); t(0.975, 2) = 4.302653
    margin = 4.302653 * 0.01 / math.sqrt(3)
    assert comparison == {
        "difference": pytest.approx(0.1),
        "difference_low": pytest.approx(0.1 - margin),
        "difference_high": pytest.approx(0.1 + margin),
        "verdict": "better",
    }


@pytest.mark.parametrize(("values", "verdict"), [
    ([0.5, 0.6, 0.7], "not distinguishable"),  # no difference
    ([0.5001, 0.6001, 0.7001], "not distinguishable"),  # equal for all seeds, but too small
    ([0.6, 0.6, 0.8], "not distinguishable"),  # 0.067 ± 0.143
    ([0.41, 0.5, 0.59], "worse"),
])  # fmt: skip
def test_the_verdict_follows_from_the_interval(values, verdict):
    assert paired(values, [0.5, 0.6, 0.7], 1000)["verdict"] == verdict


@pytest.mark.parametrize(("images", "margin"), [(4, 0.462), (360, 0.00766)])
def test_equal_accuracies_have_a_wide_interval_if_images_are_few(images, margin):
    # No variance between seeds. The two pseudo-images contribute 2 / (n + 2)**2, so the margin is
    # 1.96 * sqrt(2) / (n + 2).
    comparison = paired([0.5, 0.75], [0.5, 0.75], images)
    assert comparison["difference_high"] == pytest.approx(margin, rel=1e-3)
    assert comparison["difference_low"] == pytest.approx(-margin, rel=1e-3)


def test_seeds_and_images_both_widen_the_interval():
    # Differences 0 and 0.02: variance of the mean 0.0001. 98 images add 2 / 100**2 = 0.0002. The
    # sum 0.0003 has 1 * (0.0003 / 0.0001)**2 = 9 degrees of freedom; t(0.975, 9) = 2.262157.
    comparison = paired([0.50, 0.52], [0.5, 0.5], 98)
    assert comparison["difference_high"] == pytest.approx(0.01 + 2.262157 * math.sqrt(0.0003))


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


def test_a_sample_of_the_images_is_stratified():
    labels = np.array([0, 1] * 10 + [0] * 20)
    rows = np.arange(2, 40)  # 9 of class 1
    samples = [study.sample_rows(rows, labels, 8, seed) for seed in (0, 0, 1)]
    assert [labels[sample].sum() for sample in samples] == [2, 2, 2]
    assert set(samples[0]) <= set(rows)
    assert (samples[0] == samples[1]).all()
    assert set(samples[0]) != set(samples[2])
    assert study.sample_rows(rows, labels, None, 0) is rows
    for count in (1, 38):
        with pytest.raises(PipelineError, match=rf"train_images must fit 38 .*Got {count}"):
            study.sample_rows(rows, labels, count, 0)


def runs(accuracies: list[float | None], seconds: float = 1.0, gradient: float = 1.0) -> list:
    return [
        {"seed": seed, "gradients": [gradient, 2.0], "accuracy": value, "val_accuracy": value,
         "gap": value and 0.0, "val_loss": value, "seconds_per_epoch": value and seconds}
        for seed, value in enumerate(accuracies)
    ]  # fmt: skip


def summary_rows(runs_of: dict[str, list], over_x: bool = False) -> list[dict]:
    positions: dict[str, tuple] = {name: (name, None) for name in runs_of}
    if over_x:
        positions = {name: (name.split("_")[0], int(name.split("_")[1])) for name in runs_of}
    return summarize(positions, dict.fromkeys(runs_of, 20), runs_of, images=1000)


def test_the_sentence_agrees_with_the_numbers():
    runs_of = {
        "none": runs([0.8, 0.9], seconds=2),
        "one": runs([0.7, 0.8], seconds=1),
        "two": runs([0.8, 0.9], seconds=4),
        "three": runs([0.9, 0.8], seconds=3),
    }
    # one and two have no variance between seeds: 1.96 * sqrt(2) / 1002 = 0.3 points. Differences
    # of three are 0.1 and -0.1: standard error 0.1, 1.0004 degrees of freedom, t = 12.70.
    assert sentence(summary_rows(runs_of), "seconds_per_epoch", None) == (
        "After 20 epochs, over 2 seeds, in validation accuracy "
        "one (75.0 %, -10.0 points [-10.3, -9.7]) is worse than none (85.0 %); "
        "two (85.0 %, +0.0 points [-0.3, +0.3]) and three (85.0 %, +0.0 points [-127.0, +127.0]) "
        "are not distinguishable from none (85.0 %); "
        "an epoch takes between 1.000 s (one) and 4.000 s (two)."
    )
    runs_of["one"] = runs([0.9, 1.0], seconds=5)
    changed = sentence(summary_rows(runs_of), "seconds_per_epoch", None)
    assert "one (95.0 %, +10.0 points [+9.7, +10.3]) is better than none" in changed
    assert changed.endswith("an epoch takes between 2.000 s (none) and 5.000 s (one).")


def test_lines_are_compared_at_the_same_x():
    runs_of = {
        "relu_2": runs([0.5, 0.5]),
        "relu_6": runs([0.9, 0.9], gradient=0.1),
        "tanh_2": runs([0.6, 0.6], gradient=1e-9),
        "tanh_6": runs([0.6, 0.6], gradient=3.0),
    }
    assert sentence(summary_rows(runs_of, over_x=True), "gradients", "build.depth") == (
        "After 20 epochs, over 2 seeds, in validation accuracy "
        "tanh is better than relu at depth 2 (+10.0 points); tanh is worse than relu at "
        "depth 6 (-30.0 points); before training, the gradient in the first layer "
        "has a norm between 1e-09 (tanh_2) and 3 (tanh_6)."
    )


def test_a_logarithmic_axis_has_plain_numbers():
    runs_of = {"relu_2": runs([0.5, 0.5]), "relu_6": runs([0.9, 0.9], gradient=1e-6)}
    drawn = figure.draw("How deep?", summary_rows(runs_of, over_x=True), "gradients", "build.depth")
    drawn.canvas.draw()
    labels = [label.get_text() for label in drawn.axes[1].get_yticklabels()]
    assert "0.01" in labels
    assert not any("$" in label for label in labels)
    plt.close(drawn)


def test_a_model_that_diverged_is_counted_and_not_compared():
    runs_of = {"none": runs([0.8, 0.8]), "one": runs([None, 0.9]), "two": runs([None, None])}
    rows = summary_rows(runs_of)
    assert [row["diverged"] for row in rows] == [0, 1, 2]
    assert [row["val_accuracy"] for row in rows] == [0.8, 0.9, None]
    assert sentence(rows, None, None) == (
        "After 20 epochs, over 2 seeds, 1 of 2 trainings of one diverged; "
        "2 of 2 trainings of two diverged."
    )


STUDY = """
question: Does it learn?
seeds: 2
train: {epochs: 2, batch_size: 8}
models:
  one: {architecture: plain, build: {depth: 1, filters: 2}}
  two:
    architecture: plain
    build: {depth: 2, filters: 2, batch_norm: true}
    train: {optimizer: sgd, learning_rate: 1e+30}
"""


@pytest.fixture
def prepared(project) -> Path:
    """Write a study, and arrays of 64 small images without a test split."""
    labels = np.arange(64) % 2
    noise = np.random.default_rng(0).random((64, 4, 4, 1), dtype=np.float32)
    images = noise * 0.2 + labels[:, None, None, None].astype(np.float32) * 0.8
    write_arrays(project / "arrays/train", images, labels)
    info = {"classes": ["dark", "bright"], "image_shape": [4, 4, 1]}
    (project / "arrays/info.json").write_text(json.dumps(info))
    np.savez(project / "split.npz", train=np.arange(48), validation=np.arange(48, 64))
    (project / "mine.yaml").write_text(STUDY)
    return project


ARGUMENTS = "--arrays arrays --split split.npz --table out/mine.json --picture out/mine.png".split()


@pytest.mark.slow
def test_a_study_needs_no_test_images_and_continues_after_a_divergence(prepared, stage):
    done = stage("pipeline.study", "mine.yaml", *ARGUMENTS)
    assert (done.returncode, done.stderr) == (0, "")
    result = read_json(prepared / "out/mine.json")
    one, two = result["models"]
    assert [run["seed"] for run in one["runs"]] == [0, 1]
    assert [len(run["gradients"]) for run in one["runs"]] == [2, 2]
    for run in one["runs"]:
        assert run["gap"] == pytest.approx(run["accuracy"] - run["val_accuracy"])
        assert run["seconds_per_epoch"] > 0
    assert (one["diverged"], two["diverged"]) == (0, 2)
    assert result["sentence"] == "After 2 epochs, over 2 seeds, 2 of 2 trainings of two diverged."
    assert result["sentence"] in done.stdout
    assert "2 of 2 diverged" in done.stdout
    assert (prepared / "out/mine.png").read_bytes().startswith(b"\x89PNG")


WRONG = [
    ("seeds: 2", "seeds: 1", "seeds must be greater than or equal to 2. Got 1"),
    ("seeds: 2", "seed: 2", "seed is an unknown key. Did you mean seeds?; seeds is missing"),
    ("depth: 1", "deph: 1", "models.one.build.deph is an unknown key. Did you mean depth?"),
    ("depth: 1", "depth: 0", "models.one.build.depth must be greater than or equal to 1. Got 0"),
    ("epochs: 2", "epochs: 0", "train.epochs must be greater than or equal to 1. Got 0"),
    (
        "epochs: 2", "momentum: 0.9",
        "train has a momentum, which adam does not support: set it to 0",
    ),
    ("seeds: 2", "seeds: 2\nx: filters", "x must match pattern '^(build|train)\\.\\w+$'"),
    (
        "seeds: 2", "seeds: 2\nx: build.dropout",
        "models.one: build.dropout must be a number, because it is x. Got None",
    ),
    ("seeds: 2", "seeds: 2\ntrain_images: 48", "train_images must fit 48 training images: "),
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
    assert loaded.seeds >= 4
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
