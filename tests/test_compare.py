"""Compare: differences, whether they are luck, and the champion."""

import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest

from pipeline import compare
from tests.conftest import REPOSITORY


def answers(
    both: int, only_model: int, only_reference: int, neither: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    model = [True] * (both + only_model) + [False] * (only_reference + neither)
    reference = [True] * both + [False] * only_model + [True] * only_reference + [False] * neither
    return np.array(model), np.array(reference)


def test_ten_to_none_is_better():
    found = compare.paired(*answers(90, 10, 0), seed=0)
    assert found["difference"] == pytest.approx(0.1)
    assert found["mcnemar_p"] == pytest.approx(2 / 2**10)  # two sides of one in 2**10
    # a binomial share of 0.1 of 100: 1.96 * sqrt(0.1 * 0.9 / 100) = 0.059 to each side
    assert found["difference_low"] == pytest.approx(0.041, abs=0.015)
    assert found["difference_high"] == pytest.approx(0.159, abs=0.015)
    assert found["verdict"] == "better"


def test_none_to_ten_is_worse():
    found = compare.paired(*answers(90, 0, 10), seed=0)
    assert (found["verdict"], found["difference"]) == ("worse", pytest.approx(-0.1))


def test_five_to_none_may_be_luck():
    found = compare.paired(*answers(95, 5, 0), seed=0)
    assert found["mcnemar_p"] == pytest.approx(2 / 2**5)
    assert found["verdict"] == "not distinguishable"


def test_agreement_on_every_image_is_no_difference():
    found = compare.paired(*answers(50, 0, 0, 50), seed=0)
    assert (found["mcnemar_p"], found["verdict"]) == (1.0, "not distinguishable")
    assert found["difference_low"] == found["difference_high"] == 0


def test_the_interval_is_paired():
    # unpaired, two models at 50 % of 100 images differ by 0 ± 0.14; these agree on 98
    found = compare.paired(*answers(49, 1, 1, 49), seed=0)
    assert found["difference_high"] - found["difference_low"] < 0.07


@pytest.mark.parametrize(("champion", "expected"), [("auto", "b"), ("a", "a")])
def test_auto_takes_the_best_validation_accuracy_and_the_first_of_equals(champion, expected):
    assert compare.choose(champion, {"a": 0.5, "b": 0.7, "c": 0.7}) == expected


ARGUMENTS = (
    "--test test --train train --predictions predictions --models models "
    "--comparison comparison.json --champion champion.json --champion-model models/champion.keras"
).split()


@pytest.fixture
def measured(project):
    """Two models: batchnorm is better on the test set, baseline on validation."""
    for name, wrong, validation in (
        ("baseline", 30, 0.9),
        ("batchnorm", 10, 0.8),
        ("former", 0, 1.0),
    ):
        for folder in ("test", "train", "predictions", "models"):
            (project / folder).mkdir(exist_ok=True)
        model = name.encode()
        (project / f"models/{name}.keras").write_bytes(model)
        test: dict[str, object] = {
            "accuracy": 1 - wrong / 100,
            "accuracy_low": 0.5,
            "accuracy_high": 0.9,
        }
        test |= {"classes": [], "model": [{"sha256": hashlib.sha256(model).hexdigest()}]}
        (project / f"test/{name}.json").write_text(json.dumps(test))
        train = {"parameters": 7, "kept": "final", "final": {"val_accuracy": validation}}
        (project / f"train/{name}.json").write_text(json.dumps(train))
        table = pd.DataFrame(
            {"actual": ["NA"] * 100, "predicted": ["7"] * wrong + ["NA"] * (100 - wrong)}
        )
        table.to_csv(project / f"predictions/{name}.csv", index=False)
    return project


def test_stage_compares_the_models_of_params_and_no_former_ones(measured, stage):
    done = stage("pipeline.compare", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    comparison = json.loads((measured / "comparison.json").read_text())
    assert [row["model"] for row in comparison["models"]] == ["baseline", "batchnorm"]
    better = comparison["models"][1]
    assert (better["difference"], better["verdict"]) == (pytest.approx(0.2), "better")
    assert "better" in done.stdout
    # champion by validation, though the other is better on the test set
    assert (measured / "models/champion.keras").read_bytes() == b"baseline"
    champion = json.loads((measured / "champion.json").read_text())
    assert (champion["model"], champion["accuracy"]) == ("baseline", 0.7)


def test_the_reference_is_the_one_that_params_name(measured, stage, edit):
    edit("reference: baseline", "reference: batchnorm")
    assert stage("pipeline.compare", *ARGUMENTS).returncode == 0
    first, second = json.loads((measured / "comparison.json").read_text())["models"]
    assert (first["model"], "verdict" in first) == ("batchnorm", False)
    assert (second["difference"], second["verdict"]) == (pytest.approx(-0.2), "worse")


def test_a_model_that_was_not_evaluated_is_no_champion(measured, stage):
    (measured / "models/baseline.keras").write_bytes(b"another")
    done = stage("pipeline.compare", *ARGUMENTS)
    assert done.stderr == (
        "error: models/baseline.keras: is not the file that was evaluated. "
        "Run `dvc repro evaluate@baseline`\n"
    )
    assert not (measured / "comparison.json").exists()


def test_a_missing_model_is_named(measured, stage):
    (measured / "predictions/batchnorm.csv").unlink()
    done = stage("pipeline.compare", *ARGUMENTS)
    assert done.stderr == (
        "error: predictions/batchnorm.csv: no such file. Run `dvc repro evaluate@batchnorm`\n"
    )


def test_other_test_images_are_refused(measured, stage):
    path = measured / "predictions/batchnorm.csv"
    path.write_text(path.read_text().replace("NA,NA", "8,NA", 1))
    done = stage("pipeline.compare", *ARGUMENTS)
    assert "batchnorm and baseline were not measured on the same images" in done.stderr


def test_readme_shows_what_the_committed_metrics_say():
    readme = (REPOSITORY / "README.md").read_text()
    comparison = json.loads((REPOSITORY / "metrics/comparison.json").read_text())
    for row in comparison["models"]:
        accuracy = f"{row['accuracy']:.4f} [{row['accuracy_low']:.4f}, {row['accuracy_high']:.4f}]"
        cells = re.compile(
            rf"│ {row['model']} +│ +{row['parameters']:,} │ +{row['val_accuracy']:.4f} │ "
            + re.escape(accuracy)
        )
        assert cells.search(readme), row["model"]
