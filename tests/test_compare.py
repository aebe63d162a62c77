"""Compare: each model against the reference, and the choice of the champion."""

import hashlib
import json
import re

import numpy as np
import pytest

from pipeline import compare
from pipeline.stats import correctness


@pytest.mark.parametrize(("champion", "expected"), [("auto", "b"), ("a", "a")])
def test_auto_chooses_the_best_validation_accuracy_and_the_first_in_a_tie(champion, expected):
    assert compare.choose_champion(champion, {"a": 0.5, "b": 0.7, "c": 0.7}) == expected


ARGUMENTS = (
    "--test test --train train --models models "
    "--comparison comparison.json --champion champion.json --champion-model models/champion.keras"
).split()


@pytest.fixture
def evaluated(project):
    """Three models: batchnorm is better than baseline in testing and worse in validation.

    The third is no longer in params.yaml.
    """
    for name, wrong, validation in (
        ("baseline", 30, 0.9),
        ("batchnorm", 10, 0.8),
        ("removed", 0, 1.0),
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


def test_the_stage_compares_only_models_in_params(evaluated, stage):
    done = stage("pipeline.compare", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    comparison = json.loads((evaluated / "comparison.json").read_text())
    assert [row["model"] for row in comparison["models"]] == ["baseline", "batchnorm"]
    better = comparison["models"][1]
    assert (better["difference"], better["verdict"]) == (pytest.approx(0.2), "better")
    assert "better" in done.stdout
    # chosen by validation accuracy, although the other model is better on the test split
    assert (evaluated / "models/champion.keras").read_bytes() == b"baseline"
    champion = json.loads((evaluated / "champion.json").read_text())
    assert (champion["model"], champion["accuracy"]) == ("baseline", 0.7)


def test_params_name_the_reference(evaluated, stage, edit):
    edit("reference: baseline", "reference: batchnorm")
    assert stage("pipeline.compare", *ARGUMENTS).returncode == 0
    first, second = json.loads((evaluated / "comparison.json").read_text())["models"]
    assert (first["model"], "verdict" in first) == ("batchnorm", False)
    assert (second["difference"], second["verdict"]) == (pytest.approx(-0.2), "worse")


def test_a_model_that_has_changed_since_evaluation_is_refused(evaluated, stage):
    (evaluated / "models/baseline.keras").write_bytes(b"another")
    done = stage("pipeline.compare", *ARGUMENTS)
    assert done.stderr == (
        "error: models/baseline.keras: not the file that was evaluated. Run `dvc repro`\n"
    )
    assert not (evaluated / "comparison.json").exists()


def test_the_error_names_a_missing_file(evaluated, stage):
    (evaluated / "test/batchnorm.json").unlink()
    done = stage("pipeline.compare", *ARGUMENTS)
    assert done.stderr == ("error: test/batchnorm.json: no such file. Run `dvc repro`\n")


def test_models_that_were_evaluated_on_different_images_are_refused(evaluated, stage):
    path = evaluated / "test/batchnorm.json"
    test = json.loads(path.read_text())
    test["answers"] = [correctness.pack(np.full(100, True), np.array(["7"] * 99 + ["8"]))]
    path.write_text(json.dumps(test))
    done = stage("pipeline.compare", *ARGUMENTS)
    assert "batchnorm and baseline were not evaluated on the same images" in done.stderr


def test_readme_agrees_with_the_committed_metrics(committed):
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
