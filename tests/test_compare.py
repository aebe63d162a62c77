"""Compare: each model against the reference, and the choice of the champion."""

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline import compare
from pipeline.compare import Candidate, choose_champion
from pipeline.core.text import signed
from pipeline.stats import correctness
from pipeline.stats.comparison_table import print_comparison

IMAGES = 100


def test_auto_chooses_the_best_validation_accuracy():
    candidates = {"a": Candidate(0.5, 1), "b": Candidate(0.7, 9), "c": Candidate(0.6, 1)}
    assert choose_champion("auto", candidates) == "b"
    assert choose_champion("a", candidates) == "a"


def test_a_tie_goes_to_the_model_with_fewer_parameters_and_then_to_the_first():
    candidates = {"a": Candidate(0.7, 9), "b": Candidate(0.7, 5), "c": Candidate(0.7, 5)}
    assert choose_champion("auto", candidates) == "b"


ARGUMENTS = (
    "--test test --train train --models models --split split.json "
    "--comparison comparison.json --champion champion.json --champion-model models/champion.keras"
).split()


def model_bytes(name: str, seed: int) -> bytes:
    return f"{name} {seed}".encode()


def write_model(
    folder: Path, name: str, wrong: dict[int, int], validation: Sequence[float], parameters: int = 7
) -> None:
    """Write what train and evaluate write of a model.

    Args:
        folder: The working directory.
        name: Of the model.
        wrong: How many of the first of `IMAGES` test images each seed's training misclassifies.
        validation: Validation accuracy of each training.
        parameters: Of the model.
    """
    trainings = []
    for (seed, count), val_accuracy in zip(wrong.items(), validation, strict=True):
        content = model_bytes(name, seed)
        for path in (f"models/{name}", f"train/{name}", "test"):
            (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / f"models/{name}/{seed}.keras").write_bytes(content)
        train = {"parameters": parameters, "kept": "final", "final": {"val_accuracy": val_accuracy}}
        (folder / f"train/{name}/{seed}.json").write_text(json.dumps(train))
        correct = correctness.pack(np.arange(IMAGES) >= count, np.full(IMAGES, "7"))
        sha256 = hashlib.sha256(content).hexdigest()
        accuracy = 1 - count / IMAGES
        trainings.append({"seed": seed, "accuracy": accuracy, "correct": correct, "sha256": sha256})
    test = {
        "accuracy": float(np.mean([training["accuracy"] for training in trainings])),
        "accuracy_low": 0.5,
        "accuracy_high": 0.9,
        "trainings": len(trainings),
        "classes": [],
        "seeds": trainings,
    }
    if len(trainings) > 1:
        test["accuracy_sd"] = 0.01
    (folder / f"test/{name}.json").write_text(json.dumps(test))


@pytest.fixture
def evaluated(project, edit):
    """Three models: batchnorm is better than baseline in testing and worse in validation.

    The third is not in `compare`.
    """
    edit("seeds: [0]", "seeds: [0, 1, 2]")
    (project / "split.json").write_text('{"leaked_test_rows": []}')
    write_model(project, "baseline", {0: 29, 1: 30, 2: 31}, [0.8, 0.9, 1.0])
    write_model(project, "batchnorm", {0: 10, 1: 10, 2: 10}, [0.8, 0.8, 0.8])
    write_model(project, "removed", {0: 0, 1: 0, 2: 0}, [1.0, 1.0, 1.0])
    return project


def run_main(capsys) -> str:
    compare.main(ARGUMENTS)
    return capsys.readouterr().out


def comparison() -> list[dict]:
    return json.loads(Path("comparison.json").read_text())["models"]


def table(capsys) -> str:
    """Return the table that `make repro` prints after the stages."""
    print_comparison(comparison(), compare.LEVEL)
    return capsys.readouterr().out


def test_the_stage_compares_only_models_in_params(evaluated, stage):
    done = stage("pipeline.compare", *ARGUMENTS)
    assert (done.returncode, done.stderr) == (0, "")
    baseline, batchnorm = comparison()
    assert [baseline["model"], batchnorm["model"]] == ["baseline", "batchnorm"]
    assert batchnorm["difference"] == pytest.approx(0.2)
    assert batchnorm["verdict"] == "better"
    assert batchnorm["sentence"].startswith("better than baseline by 20.0 points [")
    assert f"compare: batchnorm: {batchnorm['sentence']}\n" in done.stdout
    assert "│" not in done.stdout  # the table, which would wrap behind the name of the stage
    assert "verdict" not in baseline


def test_on_a_terminal_the_stage_prints_a_table_that_fits(evaluated, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = [line for line in run_main(capsys).splitlines() if "│" in line]
    assert [line.split()[1] for line in lines] == ["baseline", "batchnorm"]
    assert max(map(len, lines)) <= 80


def test_rows_have_means_and_standard_deviations_over_the_trainings(evaluated, capsys):
    run_main(capsys)
    baseline, _ = comparison()
    assert baseline["val_accuracy"] == pytest.approx(0.9)
    assert baseline["val_accuracy_sd"] == pytest.approx(0.1)
    assert (baseline["trainings"], baseline["parameters"]) == (3, 7)
    assert baseline["accuracies"] == pytest.approx([0.71, 0.7, 0.69])
    assert "seeds" not in baseline
    assert "classes" not in baseline


def test_the_champion_has_the_best_mean_validation_accuracy_and_the_file_of_its_first_seed(
    evaluated, capsys, edit
):
    run_main(capsys)
    # although the other model is better on the test split
    assert Path("models/champion.keras").read_bytes() == model_bytes("baseline", 0)
    assert json.loads(Path("champion.json").read_text()) == {
        "model": "baseline", "val_accuracy": pytest.approx(0.9), "accuracy": pytest.approx(0.7),
        "accuracy_low": 0.5, "accuracy_high": 0.9, "trainings": 3, "accuracy_sd": 0.01,
    }  # fmt: skip
    edit("champion: auto", "champion: batchnorm")
    assert "champion batchnorm (named in params.yaml) -> models/champion.keras" in run_main(capsys)
    assert Path("models/champion.keras").read_bytes() == model_bytes("batchnorm", 0)


def test_the_first_seed_in_params_is_the_champions(evaluated, capsys, edit):
    edit("seeds: [0, 1, 2]", "seeds: [2, 0]")
    write_model(evaluated, "baseline", {2: 31, 0: 29}, [1.0, 0.8])
    write_model(evaluated, "batchnorm", {2: 10, 0: 10}, [0.8, 0.8])
    run_main(capsys)
    assert Path("models/champion.keras").read_bytes() == model_bytes("baseline", 2)
    assert comparison()[0]["accuracies"] == pytest.approx([0.69, 0.71])


def test_the_first_model_in_compare_is_the_reference(evaluated, capsys, edit):
    edit("compare: [baseline, batchnorm]", "compare: [batchnorm, baseline]")
    run_main(capsys)
    first, second = comparison()
    assert (first["model"], "verdict" in first) == ("batchnorm", False)
    assert (second["difference"], second["verdict"]) == (pytest.approx(-0.2), "worse")


def test_several_models_are_compared_with_holms_correction(evaluated, capsys, edit):
    edit("compare: [baseline, batchnorm]", "compare: [baseline, batchnorm, tutorial]")
    write_model(evaluated, "tutorial", {0: 30, 1: 30, 2: 30}, [0.8, 0.8, 0.8])
    out = run_main(capsys) + table(capsys)
    assert "95% intervals, p adjusted (Holm)" in " ".join(out.split())
    _, batchnorm, tutorial = comparison()
    assert batchnorm["p_holm"] == pytest.approx(2 * batchnorm["p"])
    assert tutorial["p_holm"] == tutorial["p"]
    assert (batchnorm["verdict"], tutorial["verdict"]) == ("better", "cannot tell")


def test_one_training_each_is_a_verdict_about_these_networks(evaluated, capsys, edit):
    edit("seeds: [0, 1, 2]", "seeds: [0]")
    write_model(evaluated, "baseline", {0: 30}, [0.9])
    write_model(evaluated, "batchnorm", {0: 20}, [0.8])
    out = run_main(capsys) + table(capsys)
    baseline, batchnorm = comparison()
    assert batchnorm["p"] == pytest.approx(2 / 2**10)  # McNemar's test
    assert batchnorm["sentence"].endswith(
        "one training each: about these two trained networks only"
    )
    assert "val_accuracy_sd" not in baseline
    assert "Accuracy in %, one training each, 95% intervals" in " ".join(out.split())
    assert "±" not in out


def test_a_single_model_is_the_champion(evaluated, capsys, edit):
    edit("compare: [baseline, batchnorm]", "compare: [batchnorm]")
    run_main(capsys)
    assert [row["model"] for row in comparison()] == ["batchnorm"]
    assert Path("models/champion.keras").read_bytes() == model_bytes("batchnorm", 0)


def assert_refused(quick_stage, message: str) -> None:
    done = quick_stage("pipeline.compare", *ARGUMENTS)
    assert done.stderr == f"error: {message}. Run `dvc repro`\n"
    assert not Path("comparison.json").exists()


def test_a_champion_that_has_changed_since_evaluation_is_refused(evaluated, quick_stage):
    Path("models/baseline/0.keras").write_bytes(b"another")
    assert_refused(quick_stage, "models/baseline/0.keras: not the file that was evaluated")


@pytest.mark.parametrize("path", [
    "test/batchnorm.json", "train/batchnorm/2.json", "models/baseline/0.keras"
])  # fmt: skip
def test_the_error_names_a_missing_file(evaluated, quick_stage, path):
    Path(path).unlink()
    assert_refused(quick_stage, f"{path}: no such file")


def test_models_that_were_evaluated_on_different_images_are_refused(evaluated, quick_stage):
    path = Path("test/batchnorm.json")
    text = path.read_text()
    other = correctness.pack(np.full(IMAGES, True), np.full(IMAGES, "8"))["classes_sha256"]
    same = correctness.pack(np.full(IMAGES, True), np.full(IMAGES, "7"))["classes_sha256"]
    path.write_text(text.replace(same, other))
    assert_refused(
        quick_stage, "test: batchnorm and baseline were not evaluated on the same images"
    )


def test_readme_agrees_with_the_committed_metrics(committed):
    readme = committed("README.md").read_text("utf-8")
    comparison = json.loads(committed("metrics/comparison.json").read_text("utf-8"))
    for row in comparison["models"]:
        test = f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_sd']:.2f}"
        cells = [row["model"], f"{100 * row['val_accuracy']:.2f}", test]
        if "verdict" in row:
            low, high = row["difference_low"], row["difference_high"]
            interval = f"[{signed(100 * low, 2)}, {signed(100 * high, 2)}]"
            difference = signed(100 * row["difference"], 2)
            cells += [difference, interval, f"{row['p_holm']:.2g}", row["verdict"]]
        line = " *│ *".join(map(re.escape, cells))
        assert re.search(rf"^│ {line} ", readme, re.M), row["model"]


def test_the_models_are_also_compared_without_leaked_test_images(evaluated, capsys):
    # baseline misclassifies the first 29, 30 and 31 images, and batchnorm the first 10
    (evaluated / "split.json").write_text(json.dumps({"leaked_test_rows": [*range(40, 100)]}))
    out = run_main(capsys)
    clean = json.loads(Path("comparison.json").read_text())["without_leaks"]
    assert clean["images"] == 40
    baseline, batchnorm = clean["models"]
    assert baseline["accuracy"] == pytest.approx(0.25)
    assert batchnorm["accuracy"] == pytest.approx(0.75)
    assert batchnorm["difference"] == pytest.approx(0.5)
    assert comparison()[1]["difference"] == pytest.approx(0.2)  # with all images
    assert (
        "compare: without 60 test images that have a duplicate in train or validation:\n"
        f"compare: batchnorm: {batchnorm['sentence']}\n"
    ) in out


@pytest.mark.parametrize("leaked", [[], [*range(99)]])
def test_no_second_comparison_without_leaks_or_without_other_images(evaluated, capsys, leaked):
    (evaluated / "split.json").write_text(json.dumps({"leaked_test_rows": leaked}))
    run_main(capsys)
    assert json.loads(Path("comparison.json").read_text())["without_leaks"] is None
