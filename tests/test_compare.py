"""Compare: every model against the reference, and the champion."""

import hashlib
import json
import re

import numpy as np
import pytest

from pipeline import compare
from pipeline.stats import correctness


@pytest.mark.parametrize(("champion", "expected"), [("auto", "b"), ("a", "a")])
def test_auto_takes_the_best_validation_accuracy_and_the_first_of_equals(champion, expected):
    assert compare.choose(champion, {"a": 0.5, "b": 0.7, "c": 0.7}) == expected


ARGUMENTS = (
    "--test test --train train --models models "
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
        for folder in ("test", "train", "models"):
            (project / folder).mkdir(exist_ok=True)
        model = name.encode()
        (project / f"models/{name}.keras").write_bytes(model)
        test: dict[str, object] = {
            "accuracy": 1 - wrong / 100,
            "accuracy_low": 0.5,
            "accuracy_high": 0.9,
        }
        test |= {"classes": [], "model": [{"sha256": hashlib.sha256(model).hexdigest()}]}
        test["answers"] = [correctness.pack(np.arange(100) >= wrong, np.array(["7"] * 100))]
        (project / f"test/{name}.json").write_text(json.dumps(test))
        train = {"parameters": 7, "kept": "final", "final": {"val_accuracy": validation}}
        (project / f"train/{name}.json").write_text(json.dumps(train))
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
        "error: models/baseline.keras: is not the file that was evaluated. Run `dvc repro`\n"
    )
    assert not (measured / "comparison.json").exists()


def test_a_missing_model_is_named(measured, stage):
    (measured / "test/batchnorm.json").unlink()
    done = stage("pipeline.compare", *ARGUMENTS)
    assert done.stderr == ("error: test/batchnorm.json: no such file. Run `dvc repro`\n")


def test_other_test_images_are_refused(measured, stage):
    path = measured / "test/batchnorm.json"
    test = json.loads(path.read_text())
    test["answers"] = [correctness.pack(np.full(100, True), np.array(["7"] * 99 + ["8"]))]
    path.write_text(json.dumps(test))
    done = stage("pipeline.compare", *ARGUMENTS)
    assert "batchnorm and baseline were not measured on the same images" in done.stderr


def test_readme_shows_what_the_committed_metrics_say(committed):
    readme = committed("README.md").read_text("utf-8")
    comparison = json.loads(committed("metrics/comparison.json").read_text("utf-8"))
    for row in comparison["models"]:
        cells = [row["model"], f"{row['val_accuracy']:.4f}", f"{row['accuracy']:.4f}"]
        if "verdict" in row:
            interval = f"[{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
            p = f"{row['mcnemar_p']:.2g}"
            cells += [f"{row['difference']:+.4f}", interval, p, row["verdict"]]
        line = " *│ *".join(map(re.escape, cells))
        assert re.search(rf"^│ {line} ", readme, re.M), row["model"]
