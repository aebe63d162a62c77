"""Report: the content of the page, and how it behaves in a real browser without a network."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from axe_core_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    ViewportSize,
)

from pipeline.core import live_curves
from pipeline.core.errors import PipelineError
from pipeline.data.preprocessor import Preprocessor
from pipeline.inputs import vega_script
from pipeline.reporting import chart_style, charts, parts, results
from tests.conftest import (
    REPOSITORY,
    in_browser,
    png,
    write_arrays,
    write_params,
    write_predictions,
)

pytestmark = pytest.mark.xdist_group("report")  # all tests share one page and one browser

SCRIPT = "<script>alert(1)</script>"
CLASSES = [SCRIPT, "NA", '7 "$x$" & co']
PREPROCESSOR = Preprocessor(CLASSES, [4, 4, 1], "unit", [0.5], [0.5])
ACTUAL = [0, 0, 1, 1, 2, 2]
# of each model, the predicted class and the confidence of each of 6 images in 3 trainings
PREDICTED = {
    "baseline": ([[0, 1, 1, 2, 2, 0], [0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 2]],
                 [0.9, 0.8, 0.7, 0.95, 0.6, 0.5]),
    "batchnorm": ([[0, 0, 1, 1, 2, 0], [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]],
                  [0.9, 0.8, 0.7, 0.95, 0.6, 0.75]),
    "plain": ([[0, 0, 1, 1, 2, 2]] * 3, [0.9, 0.8, 0.7, 0.95, 0.6, 0.5]),
}  # fmt: skip
PARAMETERS = {"baseline": 32_906, "batchnorm": 9_000, "plain": 100_000}
ARGUMENTS = (
    "--arrays arrays --versions versions --split split.json --comparison comparison.json "
    "--champion champion.json --test test --curves curves.csv --predictions predictions "
    "--samples samples.png --analysis analysis --export export.json "
    "--label-issues label_issues --label-counts label_counts.json --searches search "
    "--vega plots/vega.js --report plots/report.html"
).split()


def model_row(name: str, accuracy: float, **difference: Any) -> dict:
    return {
        "model": name, "parameters": PARAMETERS[name], "val_accuracy": accuracy,
        "accuracy": accuracy, "accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1,
        "accuracy_sd": 0.012, "trainings": 3, "ensemble_accuracy": accuracy,
        "loss": 0.5, "f1": accuracy, "calibration_error": 0.1, **difference,
    }  # fmt: skip


def difference_to_reference(verdict: str, difference: float) -> dict:
    return {
        "difference": difference, "difference_low": difference - 0.01,
        "difference_high": difference + 0.01, "p_holm": 0.04, "verdict": verdict,
        "sentence": "cannot tell: between −1.0 and +2.0 points; one training each"
        if verdict == "cannot tell" else f"{verdict} than baseline by 3.0 points",
        "spread": {"seeds": 0.001, "reference_seeds": 0.002, "images": 0.003, "residual": 0.004},
    }  # fmt: skip


ROWS = [
    model_row("baseline", 0.5),
    model_row("batchnorm", 0.83, **difference_to_reference("cannot tell", 0.33)),
    model_row("plain", 0.8, **difference_to_reference("better", 0.3)),
]


def write_analysis(folder: Path) -> None:
    """Write the outputs of analyze: two pictures, not in alphabetical order, and two layers."""
    (folder / "filters").mkdir(parents=True)
    pictures = []
    for name, value in (("z", 0), ("a", 255)):
        (folder / f"filters/{name}.png").write_bytes(png(np.full((2, 3), value, np.uint8)))
        pictures.append(
            {"file": f"filters/{name}.png", "title": f"of {name}", "alt": f"alt {name}"}
        )
    (folder / "analysis.json").write_text(
        json.dumps({"pictures": pictures, "total": {"parameters": 14480}})
    )
    (folder / "layers.csv").write_text(
        "name,type,output_shape,parameters\nconv,Conv2D,8×8×16,14480\nNA,Dense,10,0\n", "utf-8"
    )


def predictions(name: str) -> pd.DataFrame:
    trainings, confidence = PREDICTED[name]
    return pd.concat(
        pd.DataFrame({
            "seed": seed,
            "id": [f"test/{number}.png" for number in range(6)],
            "actual": np.array(CLASSES)[ACTUAL],
            "predicted": np.array(CLASSES)[predicted],
            "confidence": confidence,
        })
        for seed, predicted in enumerate(trainings)
    )  # fmt: skip


def curves(name: str, seed: int, loss: np.ndarray) -> pd.DataFrame:
    """Return rows of learning_curves.csv, with a loss per epoch."""
    splits = [
        pd.DataFrame({
            "model": name, "seed": seed, "split": split, "epoch": np.arange(1, len(loss) + 1),
            "accuracy": 1 - loss * factor / 3, "loss": loss * factor,
        })
        for split, factor in (("train", 1), ("validation", 1.1))
    ]  # fmt: skip
    return pd.concat(splits)


def metrics_of(row: dict, classes: list[dict]) -> dict:
    """Return the content of metrics/test/MODEL.json."""
    selective = [
        {"required": 0.9, "threshold": 0.7, "coverage": 0.8, "accuracy": 0.85, "low": 0.8,
         "high": 0.89},
        {"required": 0.95, "threshold": 0.99, "coverage": 0.0, "accuracy": None, "low": 0.0,
         "high": 1.0},
        {"required": 0.99, "threshold": None},
    ]  # fmt: skip
    seeds = [
        {"seed": seed, "accuracy": row["accuracy"], "selective": selective}
        for seed in range(row["trainings"])
    ]
    more = {"balanced_accuracy": 0.6, "precision": 0.61, "kappa": 0.62, "brier_score": 0.63,
            "temperature": 1.5, "loss_uncalibrated": 0.6,
            "calibration_error_uncalibrated": 0.2}  # fmt: skip
    differences = {"A & <b>": 0.1, "": -0.1}
    slices = [
        {
            "column": "camera", "value": value, "images": 3,
            "accuracy": 0.5 + difference, "accuracy_low": 0.3, "accuracy_high": 0.9,
            "difference": difference, "difference_low": -0.3, "difference_high": 0.3,
            "p_holm": 0.04,
        }
        for value, difference in differences.items()
    ]  # fmt: skip
    metadata = [{"column": "camera", "values": 2}, {"column": "patient", "values": 1200}]
    return {
        **row, "top3_accuracy": 0.9, "more": [more], "classes": classes, "seeds": seeds,
        "slices": slices, "metadata": metadata,
    }  # fmt: skip


def write_tables(
    top: Path, histories: list[pd.DataFrame], tables: dict[str, pd.DataFrame], classes: list[str]
) -> None:
    pd.concat(histories).to_csv(top / "curves.csv", index=False)
    for name, table in tables.items():
        write_predictions(top / "predictions" / name, table, classes)


def write_label_issues(top: Path, train: list[int], test: list[int]) -> None:
    """Write label issues of some rows of the training and test images, with odd class names."""
    for split, rows in (("train", train), ("test", test)):
        lines = [f'{split}/{row}.png,NA,"{SCRIPT}",0.93,2,3' for row in rows]
        path = top / f"label_issues/{split}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["id,label,given,score,agree,trainings", *lines]) + "\n")
    counts = {
        "train": {"images": 4000, "held_out": 3000, "issues": len(train)},
        "test": {"images": 6, "held_out": 6, "issues": len(test)},
    }
    (top / "label_counts.json").write_text(json.dumps(counts))


def write_outputs(top: Path) -> None:
    """Write small inputs of the report."""
    write_params(top)
    images = np.arange(6 * 16, dtype=np.float32).reshape(6, 4, 4, 1) / 96
    for split in ("train", "test"):
        write_arrays(top / "arrays" / split, images, np.array(ACTUAL))
    write_label_issues(top, [1], [])
    files = {
        "arrays/corrections.json": {
            "excluded": {"train": 1200, "test": 0},
            "relabeled": {"train": 3, "test": 4},
        },
        "arrays/info.json": vars(PREPROCESSOR),
        "comparison.json": {
            "reference": "baseline",
            "level": 0.95,
            "margin": 0.01,
            "models": ROWS,
            "without_leaks": {
                "images": 5,
                "models": [
                    {"model": "baseline", "accuracy": 0.4},
                    {"model": "batchnorm", "accuracy": 0.6, "sentence": "better, without leaks"},
                ],
            },
        },
        "champion.json": {"model": "batchnorm"},
        "export.json": {
            "images": 6,
            "enlarged": 6,
            "onnx": {"largest_difference": 1.2e-06, "agreement": 1.0, "bytes": 4092119},
            "litert": {"not_written": ["no <words> for this"]},
        },
        "split.json": {
            "rows": {"train": 8, "validation": 3, "test": 6},
            "held_out": True,
            "skipped": {"train": 1, "test": 0},
            "multi_frame": {"train": 0, "test": 2},
            "duplicates": {
                "within": {"train": 1, "validation": 0, "test": 0},
                "across": {"train_validation": 0, "train_test": 1, "validation_test": 0},
                "groups": [["train a.png", "train b.png"], ["train c.png", "test d.png"]],
                "conflicts": [["train c.png (a)", "test d.png (b)"]],
            },
            "near_duplicates": {
                "within": {"train": 7, "validation": 0, "test": 0},
                "across": {"train_validation": 0, "train_test": 0, "validation_test": 1},
                "groups": [["validation train/2.png", "test test/5.png"]],
                "conflicts": [],
            },
            "leaked": {"validation": 0, "test": 1},
            "grouped": {"groups": 4, "across": {"train_test": 2}},
            "classes": [{"class": c, "train": 3, "validation": 1, "test": 2} for c in CLASSES],
        },
        "search/batchnorm.json": {
            "model": "batchnorm",
            "searches": [
                {"data": "digits", "trials": 1200},
                {"data": "digits", "trials": 34},
                {"data": "cifar10", "trials": 5},
            ],
        },
        "search/tutorial.json": {"searches": [{"data": "digits", "trials": 7}]},
        "versions/plot.json": {"matplotlib": "3.10", "numpy": "2.4"},
        "versions/report.json": {"numpy": "2.4"},
    }
    for row in ROWS:
        classes = [
            {"class": c, "recall": 0.5, "average_precision": 0.64, "images": 2} for c in CLASSES
        ]
        files[f"test/{row['model']}.json"] = metrics_of(row, classes)
        write_analysis(top / "analysis" / row["model"])
    losses = np.array([1.0, 0.5])
    histories = [curves(name, seed, losses) for name in PREDICTED for seed in range(3)]
    write_tables(top, histories, {name: predictions(name) for name in PREDICTED}, CLASSES)
    for path, content in files.items():
        (top / path).parent.mkdir(exist_ok=True)
        (top / path).write_text(json.dumps(content))
    (top / "samples.png").write_bytes(png(np.zeros((4, 4), np.uint8)))


def write_many(
    top: Path, models: int, classes: int, trainings: int = 2, epochs: int = 3, images: int = 400
) -> None:
    """Write inputs of the report of any size; the last of several models has a long name."""
    rng = np.random.default_rng(0)
    names = ["baseline", *(f"model{number}" for number in range(1, models - 1))]
    names = [*names, "a" * 70 + "-" + "b" * 29][:models]
    preprocessor = Preprocessor(
        [f"class {n:04}" for n in range(classes)], [8, 8, 3], "unit", [0] * 3, [1] * 3
    )
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text("utf-8"))
    params |= {"compare": names, "seeds": list(range(trainings))}
    params["models"] = {name: {"architecture": "baseline"} for name in names}
    del params["search"]  # of models that are not among these
    (top / "params.yaml").write_text(yaml.safe_dump(params))
    labels = np.arange(images) % classes
    for split in ("train", "test"):
        pixels = rng.random((images, 8, 8, 3)).astype(np.float32)
        write_arrays(top / "arrays" / split, pixels, labels)
    rows, files, histories, tables = [], {}, [], {}
    for number, name in enumerate(names):
        predicted = []
        for seed in range(trainings):
            correct = rng.random(images) < 0.95 - 0.05 * number
            guesses = np.where(correct, labels, rng.integers(classes, size=images))
            predicted.append(
                pd.DataFrame({
                    "seed": seed,
                    "id": [f"test/{'long name ' * 20}{number}.png" for number in range(images)],
                    "actual": np.array(preprocessor.classes)[labels],
                    "predicted": np.array(preprocessor.classes)[guesses],
                    "confidence": (1 - rng.random(images) ** 2 * 0.6).round(6),
                })
            )  # fmt: skip
            loss = 2 / np.arange(1, epochs + 1) + 0.02 * number + 0.01 * seed
            histories.append(curves(name, seed, loss))
        table = tables[name] = pd.concat(predicted)
        accuracy = float((table["actual"] == table["predicted"]).mean())
        row = {
            "model": name, "parameters": 1000 + number, "val_accuracy": accuracy,
            "accuracy": accuracy, "accuracy_low": accuracy - 0.01, "accuracy_high": accuracy + 0.01,
            "trainings": trainings, "ensemble_accuracy": accuracy,
            "loss": 0.5, "f1": accuracy, "calibration_error": 0.1,
        }  # fmt: skip
        if trainings > 1:
            row["accuracy_sd"] = 0.01
        rows.append(row | (difference_to_reference("worse", -0.05 * number) if number else {}))
        recall = (table["actual"] == table["predicted"]).groupby(table["actual"]).mean()
        counts = table["actual"].value_counts() // trainings
        by_class = [
            {
                "class": c,
                "recall": float(recall.get(c, 0)),
                "average_precision": 0.64,
                "images": int(counts.get(c, 0)),
            }
            for c in preprocessor.classes
        ]
        files[f"test/{name}.json"] = metrics_of(row, by_class)
        write_analysis(top / "analysis" / name)
    write_tables(top, histories, tables, preprocessor.classes)
    write_label_issues(top, list(range(30)), [7])
    zeros = dict.fromkeys(("train", "validation", "test"), 0)
    files |= {
        "arrays/info.json": vars(preprocessor),
        "arrays/corrections.json": {
            change: {"train": 0, "test": 0} for change in ("excluded", "relabeled")
        },
        "comparison.json": {
            "reference": "baseline",
            "level": 0.95,
            "margin": 0.01,
            "models": rows,
            "without_leaks": None,
        },
        "champion.json": {"model": names[-1]},
        "split.json": {
            "rows": {"train": images, "validation": 80, "test": images},
            "held_out": True,
            "skipped": {"train": 0, "test": 0},
            "multi_frame": {"train": 0, "test": 0},
            **dict.fromkeys(
                ("duplicates", "near_duplicates"),
                {"within": zeros, "across": zeros, "groups": [], "conflicts": []},
            ),
            "leaked": {"validation": 0, "test": 0},
            "grouped": None,
            "classes": [
                {"class": c, "train": 3, "validation": 1, "test": 2} for c in preprocessor.classes
            ],
        },
        "versions/report.json": {"numpy": "2.4"},
        "export.json": {
            "images": images,
            "onnx": {"not_written": ["."]},
            "litert": {"not_written": ["."]},
        },
    }
    for path, content in files.items():
        (top / path).parent.mkdir(exist_ok=True)
        (top / path).write_text(json.dumps(content))
    (top / "samples.png").write_bytes(png(np.zeros((4, 4), np.uint8)))


def build(top: Path) -> subprocess.CompletedProcess[str]:
    (top / "plots").mkdir(exist_ok=True)
    (top / "plots/vega.js").write_text(vega_script(), "utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pipeline.report", *ARGUMENTS],
        cwd=top, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small inputs and the report on them."""
    top = tmp_path_factory.mktemp("report")
    write_outputs(top)
    done = build(top)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"report: 3 models, \d\.\d MB -> plots/report.html\n", done.stdout)
    return top


def test_the_page_shows_labels_that_are_probably_wrong_and_how_many_were_examined(built):
    text = (built / "plots/report.html").read_text("utf-8")
    labels = " ".join(text.partition('<section id="labels">')[2].partition("</section>")[0].split())
    for expected in (
        "1,200 training and 0 test images were excluded (preprocess.exclude); 3 training and 4 "
        "test labels were corrected (preprocess.relabel).",
        "1 of the 3,000 training images that at least one training held out for validation, listed "
        "in data/label_issues/train.csv. The other 1,000 of 4,000 were not examined; split.method: "
        "folds examines all.",
        "label <b>&lt;script&gt;alert(1)&lt;/script&gt;</b><br>suggested <b>NA</b>",
        '2 of 3 trainings agree<br><span title="train/1.png">train/<wbr>1.png</span>',
        "0 of the 6 test images. If you correct only",
    ):
        assert expected in labels
    assert labels.count("<li>") == 1


def test_the_page_shows_duplicates_and_the_verdict_without_leaked_test_images(built):
    text = (built / "plots/report.html").read_text("utf-8")
    data = " ".join(text.partition('<section id="data">')[2].partition("</section>")[0].split())
    for expected in (
        "1 test image of 6 has a duplicate in training or validation:",
        "Without it, 5 test images remain:",
        "better, without leaks",
        "Images belong to 4 groups (split.group). 2 groups are in two splits of the data set.",
        "Near-duplicates: 1 group,",
        'alt="validation: train/2.png"',
    ):
        assert expected in data
    # images of near-duplicates are those of the rows with their ids
    pictures = re.findall(r'<figure><img src="([^"]+)" alt="(\w+):', data)
    assert [split for _, split in pictures] == ["validation", "test"]
    assert pictures[0][0] != pictures[1][0]


def test_the_page_says_how_many_trials_of_a_search_preceded_the_verdict(built):
    header = " ".join((built / "plots/report.html").read_text("utf-8").split())
    header = header.partition("<header>")[2].partition("</header>")[0]
    assert header.count("a search trained") == 1
    assert (
        "a search trained batchnorm 1,234 times with different settings (search/batchnorm.json). "
        "It used validation images only: the test accuracy is not affected, but the validation "
        "accuracy is too high on average."
    ) in header


def test_the_page_says_that_its_split_is_the_first_seeds(built):
    text = (built / "plots/report.html").read_text("utf-8")
    assert "This section describes the split of the first seed, 0." in text


def test_the_verdict_compares_the_champion_with_the_reference():
    assert results.verdict(ROWS, "batchnorm", 0.95) == (
        "Cannot tell whether batchnorm is better or worse than baseline: between −1.0 and +2.0 "
        "points; one training each."
    )
    assert results.verdict(ROWS, "plain", 0.95) == ("plain is better than baseline by 3.0 points.")


def test_if_the_champion_is_the_reference_the_verdict_is_about_the_second_best():
    rows = [
        model_row("baseline", 0.9),
        model_row("plain", 0.5, **difference_to_reference("worse", -0.4)),
        model_row("batchnorm", 0.6, **difference_to_reference("worse", -0.3)),
    ]
    sentence = results.verdict(rows, "baseline", 0.95)
    assert sentence == "batchnorm is worse than baseline by 3.0 points."


def test_the_verdict_about_a_single_model_is_its_accuracy():
    sentence = results.verdict(ROWS[:1], "baseline", 0.95).replace("\N{NO-BREAK SPACE}", " ")
    assert sentence == (
        "baseline classifies 50.0 % of the test images correctly (95 % interval 40.0 % to 60.0 %). "
        "There is no other model to compare it with."
    )


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_images_that_more_trainings_misclassify_come_first_then_those_with_more_confidence():
    images = np.arange(6, dtype=np.float32)[:, None, None, None] * np.full((4, 4, 1), 0.2)
    mistakes = parts.mistakes("baseline", predictions("baseline"), images, PREPROCESSOR, 30)
    assert [(row["image"], row["wrong"], row["confidence"]) for row in mistakes] == [
        (1, 3, pytest.approx(0.8)), (3, 2, 0.95), (5, 1, 0.5),
    ]  # fmt: skip
    assert [row["id"] for row in mistakes] == ["test/1.png", "test/3.png", "test/5.png"]
    assert (mistakes[0]["actual"], mistakes[0]["predicted"]) == (SCRIPT, "NA")
    assert np.unique(np.asarray(decode(mistakes[0]["picture"]))).tolist() == [51]  # 0.2 of 255
    assert len(parts.mistakes("baseline", predictions("baseline"), images, PREPROCESSOR, 2)) == 2


def test_the_predicted_class_of_a_misclassified_image_is_the_most_frequent_wrong_one():
    def table(confidence: list[float]) -> pd.DataFrame:
        columns = {
            "seed": range(4),
            "id": "1.png",
            "actual": "a",
            "predicted": ["b", "a", "c", "b"],
        }
        return pd.DataFrame({**columns, "confidence": confidence})

    (error,) = parts.misclassified(table([0.5, 0.99, 0.9, 0.4])).to_dict("records")
    assert (error["predicted"], error["wrong"]) == ("b", 3)
    assert error["confidence"] == pytest.approx(0.6)  # of b, c and b
    (error,) = parts.misclassified(table([0.5, 0.99, 0.9, 0.4])[:3]).to_dict("records")
    assert error["predicted"] == "c"  # b is as frequent, but less confident


def test_thumbnails_are_small_and_have_the_colours_of_the_image():
    red = np.zeros((200, 100, 3), np.uint8)
    red[..., 0] = 255
    image = decode(parts.thumbnail(red))
    assert image.size == (48, 96)
    assert image.getpixel((20, 20)) == (255, 0, 0)


def test_bins_of_the_reliability_diagram_are_open_on_the_left_and_count_images_per_training():
    table = pd.DataFrame({
        "seed": [0, 1, 0, 1],
        # (5/15, 6/15] contains 0.4, its upper end; 0.41 is in (6/15, 7/15]
        "actual": list("aaaa"), "predicted": list("abaa"), "confidence": [0.4, 0.39, 0.41, 1.0],
    })  # fmt: skip
    rows = charts.reliability_rows({"one": table})
    assert [(row["over"] * 15, row["images"]) for row in rows] == [(5, 1), (6, 0.5), (14, 0.5)]
    assert rows[0]["accuracy"] == 0.5
    assert rows[0]["confidence"] == pytest.approx(0.395)


def test_accuracy_over_coverage_is_that_of_the_most_confident_images_of_each_training():
    # 20 images; of the first training the two least confident are wrong, of the second the two most
    correct = [np.arange(20) >= 2, np.arange(20) < 18]
    table = pd.concat(
        pd.DataFrame({
            "seed": seed, "actual": "a", "predicted": np.where(correct[seed], "a", "b"),
            "confidence": np.linspace(0.5, 1, 20),
        })
        for seed in (0, 1)
    )  # fmt: skip
    rows = {row["coverage"]: row for row in charts.coverage_rows({"one": table})}
    assert list(rows) == [number / 20 for number in range(1, 21)]
    assert (rows[0.5]["images"], rows[0.5]["accuracy"]) == (10, pytest.approx((1 + 0.8) / 2))
    assert rows[0.9]["accuracy"] == pytest.approx((1 + 16 / 18) / 2)
    assert rows[1.0]["accuracy"] == pytest.approx(0.9)


def test_the_page_checks_required_accuracies_on_the_test_images(built):
    text = (built / "plots/report.html").read_text("utf-8").replace("\N{NO-BREAK SPACE}", " ")
    table = text[text.index("Test accuracy of the images that predict --accuracy classifies") :]
    cells = re.findall(r'<td class="number([^"]*)">(\D.*|.*<small>.*)</td>', table)
    # an interval below the required accuracy is marked
    assert cells[:3] == [
        (" warn", "85.0 %<small>80.0 % to 89.0 %</small><small>coverage 80.0 %</small>"),
        ("", "no image"), ("", "not shown"),
    ]  # fmt: skip
    assert "an object of none of the classes may still be" in text


def test_the_confusion_matrix_sums_over_trainings_and_has_the_share_of_the_actual_class():
    rows = charts.confusion_rows({"baseline": predictions("baseline")})
    a, b, c = CLASSES
    assert {
        (row["actual"], row["predicted"]): (row["predictions"], row["share"]) for row in rows
    } == {
        (a, a): (3, 0.5), (a, b): (3, 0.5),
        (b, b): (4, 4 / 6), (b, c): (2, 2 / 6),
        (c, c): (5, 5 / 6), (c, a): (1, 1 / 6),
    }  # fmt: skip


def test_pictures_of_an_analysis_have_the_order_of_its_list(tmp_path):
    write_analysis(tmp_path)
    analysis = parts.analysis(tmp_path)
    assert [picture["title"] for picture in analysis["pictures"]] == ["of z", "of a"]
    assert np.unique(np.asarray(decode(analysis["pictures"][1]["picture"]))).tolist() == [255]
    assert analysis["columns"] == ["name", "type", "output shape", "parameters"]
    assert analysis["total"] == ["", "", "", "14,480"]
    assert analysis["rows"] == [["conv", "Conv2D", "8×8×16", "14,480"], ["NA", "Dense", "10", "0"]]
    (tmp_path / "filters/a.png").unlink()
    with pytest.raises(PipelineError, match=r"filters/a\.png: no such file\. Run `dvc repro`"):
        parts.analysis(tmp_path)


def test_versions_list_the_stages_that_depend_on_them(built):
    assert parts.versions(built / "versions") == [
        {"package": "matplotlib", "version": "3.10", "stages": "plot"},
        {"package": "numpy", "version": "2.4", "stages": "plot, report"},
    ]


@pytest.mark.slow
def test_the_page_is_below_2_mb_and_has_the_same_bytes_in_a_second_run(built):
    page = built / "plots/report.html"
    before = page.read_bytes()
    assert len(before) < 2e6
    assert build(built).returncode == 0
    assert page.read_bytes() == before


def test_the_report_says_why_a_model_is_the_champion():
    rows = [{"model": "a", "val_accuracy": 0.5}, {"model": "b", "val_accuracy": 0.75}]

    def reason(setting: str, rows: list[dict], champion: str) -> str:
        text = results.champion_reason(setting, rows, champion)
        return text.replace("\N{NO-BREAK SPACE}", " ")

    assert reason("a", rows, "a") == "named in params.yaml"
    assert reason("auto", rows, "b") == "best mean validation accuracy: 75.0 %"
    assert reason("auto", rows[:1], "a") == "the only model"
    rows.append({"model": "c", "val_accuracy": 0.75})
    assert reason("auto", rows, "b") == (
        "best mean validation accuracy: 75.0 %, tied with c; then the fewest parameters, then the "
        "first in the table"
    )
    rows.append({"model": "d", "val_accuracy": 0.75})
    assert "75.0 %, tied with 2 others; then" in reason("auto", rows, "b")


def test_a_folder_of_images_is_called_by_its_name():
    assert results.source("folder", "data/photos") == "the folder photos"
    assert results.source("cifar10", "data/folder") == "cifar10"


def test_the_installed_version_is_chosen_from_several_locked_ones():
    installed = np.__version__
    assert parts.installed_version("numpy", f"0.1, {installed}") == installed
    assert parts.installed_version("numpy", "0.1, 0.2") == "0.1 or 0.2"
    assert parts.installed_version("no-such-package", "0.1, 0.2") == "0.1 or 0.2"
    assert parts.installed_version("numpy", "0.1") == "0.1"


def test_fewer_misclassified_images_per_model_are_shown_of_many_models():
    assert [parts.mistakes_per_model(models) for models in (1, 8, 12, 500)] == [30, 30, 20, 1]


def test_a_missing_input_is_an_error_of_one_line(project, quick_stage):
    write_outputs(project)
    (project / "curves.csv").unlink()
    done = quick_stage("pipeline.report", *ARGUMENTS)
    assert done.stderr == "error: curves.csv: no such file. Run `dvc repro`\n"


def test_the_layer_table_of_each_model_ends_with_a_total(built):
    text = (built / "plots/report.html").read_text("utf-8")
    footers = re.findall(r"<tfoot>(.*?)</tfoot>", text)
    assert [re.findall(r">([^<>]+)<", footer) for footer in footers] == [["total", "14,480"]] * 3


def test_confused_classes_of_each_model_are_listed(built):
    text = (built / "plots/report.html").read_text("utf-8")
    table = text[
        text.index("Confused classes as a") : text.index("Test accuracy of each class as a")
    ]
    # baseline confuses three pairs of classes, batchnorm one, and plain none
    assert re.findall(r"<tr><td title=\"(\w+)\">", table) == ["baseline"] * 3 + ["batchnorm"]


def test_settings_are_shown_without_the_gate_and_the_models_that_are_not_compared(built):
    text = (built / "plots/report.html").read_text("utf-8")
    settings = text[text.index("<pre>") : text.index("</pre>")]
    assert "\n  epochs: 20\n" in settings
    assert "\n  batchnorm:\n    architecture: batchnorm\n" in settings
    assert "gate" not in settings
    assert "airnet" not in settings


def test_slices_and_columns_that_are_no_slices_are_shown(built):
    page = (built / "plots/report.html").read_text("utf-8")
    assert "patient is not shown: it has 1,200 different values." in page
    for value in ("A &amp; &lt;b&gt;", "(empty)"):
        assert f'<th scope="row">camera</th><td>{value}</td>' in page
    assert page.count('warn" data-value="-0.1"') == 3  # of each model, the slice that is worse


def test_contradictory_labels_are_reported(built):
    page = " ".join((built / "plots/report.html").read_text("utf-8").split())
    assert (
        "1 image has copies with different labels, for example train c.png (a), test d.png (b). "
        "At least one of these labels is wrong."
    ) in page


def test_the_report_says_why_a_format_was_not_exported(built):
    text = (built / "plots/report.html").read_text("utf-8")
    start = text.index("Exported formats of batchnorm")
    rows = re.findall(r"<tr>(.*?)</tr>", text[start : text.index("Package versions", start)])
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows[1:]]
    assert cells == [
        ["onnx", "4,092,119", "1.2e-06", "100.0\N{NO-BREAK SPACE}%", ""],
        ["litert", "", "", "", "no &lt;words&gt; for this"],
    ]


def test_one_training_of_one_model_has_a_report(project, quick_stage):
    write_many(project, models=1, classes=2, trainings=1)
    (project / "plots").mkdir()
    (project / "plots/vega.js").touch()
    done = quick_stage("pipeline.report", *ARGUMENTS)
    assert (done.returncode, done.stderr) == (0, "")
    page = " ".join((project / "plots/report.html").read_text("utf-8").split())
    assert "There is no other model to compare it with." in page
    assert "Intervals count the chance of the test images, not that of the seed" in page
    assert not re.search(r"wrong in \d|ensemble of|±(?!\d)", page)


# In the browser. ---------------------------------------------------------------------------------


Open = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Open a file in a browser without a network; fail on requests, dialogs and errors."""
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def record(error: object) -> None:
        problems.append(str(error))

    def record_dialog(dialog: Dialog) -> None:
        problems.append(dialog.message)
        dialog.dismiss()

    def record_error(message: ConsoleMessage) -> None:
        if message.type == "error":
            problems.append(message.text)

    def record_request(request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            problems.append(request.url)

    def visit(path: Path, width: int = 1280, charts: int = 6, **options: Any) -> Page:
        viewport: ViewportSize = {"width": width, "height": 900}
        context = browser.new_context(offline=True, viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", record)
        page.on("dialog", record_dialog)
        page.on("console", record_error)
        page.on("request", record_request)
        page.goto(path.as_uri())
        if charts:
            page.wait_for_function(
                f"document.querySelectorAll('svg.marks, canvas.marks').length >= {charts}"
            )
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(built: Path, visit: Open) -> Page:
    return visit(built / "plots/report.html")


@in_browser
def test_the_page_draws_its_charts_without_a_network(page):
    question = "Cannot tell whether batchnorm is better or worse than baseline"
    assert page.inner_text("h1") == question
    assert page.inner_text(".lead").startswith("Between −1.0 and +2.0 points;")
    # 3 trainings of 3 models
    assert page.locator("[data-chart=accuracies] .mark-symbol path[aria-label]").count() == 9
    # 2 epochs of 3 models in 2 splits: means over the trainings
    assert page.locator("[data-chart=accuracy] .mark-symbol path[aria-label]").count() == 12
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0


@in_browser
def test_every_image_has_an_alternative_text(page):
    alts = page.eval_on_selector_all("img", "images => images.map((image) => image.alt)")
    # samples, 4 misclassified images, 2 near-duplicates, a label issue, and 2 pictures of each of 3
    # models
    assert len(alts) == 14
    assert all(alts)
    assert (
        f"test/1.png: true {SCRIPT}, predicted NA by baseline, 80.0\xa0%, wrong in 3 of 3" in alts
    )


@in_browser
def test_a_class_name_with_html_in_it_stays_text(page):
    assert SCRIPT in page.inner_text("#mistakes .mistakes li:first-child")
    assert page.locator("[name=actual] option").all_inner_texts() == ["any", *CLASSES]
    labels = page.locator("[data-chart=confusion] .role-axis-label text").all_text_contents()
    prefixes = [label.removesuffix("…") for label in labels]  # long names are truncated
    assert all(any(name.startswith(prefix) for name in CLASSES) for prefix in prefixes)
    assert len(set(prefixes)) == len(CLASSES)
    page.locator("[data-chart=confusion] .layer_1_marks text").first.hover()  # its tooltip
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert page.locator("script").count() == 2


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"#comparison .sortable tbody tr > :nth-child({number})").all_inner_texts()


@in_browser
def test_the_table_is_sorted_numerically_by_mouse_and_keyboard(page):
    assert column(page, 10) == ["32,906", "9,000", "100,000"]
    page.get_by_role("button", name="parameters").click()
    assert column(page, 10) == ["9,000", "32,906", "100,000"]
    page.keyboard.press("Enter")  # the button has the focus
    assert column(page, 10) == ["100,000", "32,906", "9,000"]
    heading = page.locator("#comparison th", has_text="parameters")
    assert heading.get_attribute("aria-sort") == "descending"

    difference = page.get_by_role("button", name="difference↕")
    difference.focus()
    page.keyboard.press("Space")
    # the reference has no difference and comes last in both directions
    assert [text.split("\n")[0] for text in column(page, 3)] == ["+30.0", "+33.0", ""]
    page.keyboard.press("Space")
    assert [text.split("\n")[0] for text in column(page, 3)] == ["+33.0", "+30.0", ""]
    assert page.locator("[aria-sort]").count() == 1


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on 12 models, one with a name of 100 letters, and 100 classes."""
    top = tmp_path_factory.mktemp("many")
    write_many(top, models=12, classes=100)
    done = build(top)
    assert (done.returncode, done.stderr) == (0, "")
    return top / "plots/report.html"


def marks_of(page: Page, chart: str) -> dict[str, tuple[str, str]]:
    """Return colour and outline of each model's marks in a chart."""
    marks = page.eval_on_selector_all(
        f"[data-chart={chart}] .mark-symbol path[aria-label]",
        "marks => marks.map((mark) => [mark.getAttribute('aria-label'), "
        "mark.getAttribute('stroke') ?? mark.getAttribute('fill'), mark.getAttribute('d')])",
    )
    styles = {}
    for label, colour, path in marks:
        if model := re.search(r"model: ([^;]+)", label):
            styles[model[1]] = (colour, re.sub(r"[-\d.]+", "", path))
    return styles


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_of_12_models_has_its_own_style_in_all_charts(many, visit, scheme):
    page = visit(many, color_scheme=scheme)
    legend = page.eval_on_selector_all(
        "#training .legend button",
        "buttons => buttons.map((button) => [button.dataset.model, button.querySelector('path')"
        ".getAttribute('fill')])",
    )
    colours = dict(legend)
    assert len(set(colours.values())) == len(legend) == 12
    styles = chart_style.styles(list(colours))
    assert colours == {name: style.colour for name, style in styles.items()}
    for chart in ("accuracies", "accuracy", "loss", "classes", "reliability"):
        marks = marks_of(page, chart)
        assert {name: mark[0] for name, mark in marks.items()} == colours, chart
        assert len(set(marks.values())) == 12, chart  # by shape if colours are equal


@in_browser
def test_a_model_is_highlighted_with_the_legend_by_keyboard(many, visit):
    page = visit(many)
    button = page.locator("#training .legend button").nth(1)
    button.focus()
    page.keyboard.press("Enter")
    faded = "[data-chart=reliability] .mark-symbol path[opacity='0.12']"
    page.wait_for_selector(faded, state="attached")
    assert (
        page.locator("[aria-pressed=true]").evaluate_all(
            "buttons => buttons.map((button) => button.dataset.model)"
        )
        == ["model1"] * 4
    )
    assert "model: model1;" not in "".join(
        page.locator(faded).evaluate_all("marks => marks.map((mark) => mark.ariaLabel)")
    )
    page.keyboard.press("Enter")
    page.wait_for_selector(faded, state="detached")


def test_only_diagrams_are_marked_for_inversion_on_a_dark_page(tmp_path):
    top = tmp_path / "analyze"
    write_analysis(top)
    analysis = json.loads((top / "analysis.json").read_text())
    (top / "layers.png").write_bytes((top / "filters/a.png").read_bytes())
    analysis["pictures"].append({"file": "layers.png", "title": "layers", "alt": "layers"})
    (top / "analysis.json").write_text(json.dumps(analysis))
    pictures = parts.analysis(top)["pictures"]
    assert [picture["diagram"] for picture in pictures] == [False, False, True]


@in_browser
def test_legends_cover_no_data(many, visit):
    page = visit(many)
    # only the confusion matrix has a legend inside the chart, below its axes
    assert page.locator("[data-chart] .role-legend").count() == 1
    for legend in page.locator(".legend").all():
        assert legend.evaluate("(element) => !element.closest('.chart')")


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_with_12_models_and_a_long_name_does_not_scroll_horizontally(many, visit, width):
    page = visit(many, width)
    page.eval_on_selector_all(
        "details", "details => details.forEach((element) => element.open = true)"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
    heights = page.eval_on_selector_all(
        "#mistakes, [data-chart]", "elements => elements.map((element) => element.offsetHeight)"
    )
    assert max(heights) < 3300  # 24 misclassified images, each with its file
    # a long name leaves room for the numbers in its row
    name = page.locator("#comparison .sortable tbody tr:last-child > :first-child")
    assert "…" in name.inner_text()
    assert name.get_attribute("title") == "a" * 70 + "-" + "b" * 29
    assert name.evaluate("(element) => element.offsetWidth") < 330


@in_browser
def test_a_button_shows_24_more_misclassified_images(many, visit):
    page = visit(many)
    cards = page.locator("#mistakes .mistakes li:visible")
    count = int(page.locator("form output").inner_text().split(" of ")[1])
    assert cards.count() == 24 < count
    more = page.get_by_role("button", name="Show 24 more")
    more.focus()
    page.keyboard.press("Enter")
    assert cards.count() == 48
    # the first new image has the focus
    assert page.evaluate("document.activeElement === document.querySelectorAll('.mistakes li')[24]")
    page.locator("form[data-for=mistakes] [name=model]").select_option(index=1)
    assert cards.count() <= 20
    assert not page.locator(".more").is_visible()


def labels_of(page: Page, chart: str, axis: int) -> list[str]:
    axes = page.locator(f"[data-chart={chart}] .role-axis:has(.role-axis-label)")
    return axes.nth(axis).locator(".role-axis-label text").all_text_contents()


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_epochs_are_whole_numbers_and_the_axis_title_says_that_losses_are_logarithmic(
    many, visit, width
):
    page = visit(many, width)
    for chart in ("accuracy", "loss"):
        assert labels_of(page, chart, 0) == ["1", "2", "3"]
    assert len(labels_of(page, "loss", 1)) >= 2
    titles = page.locator("[data-chart=loss] .role-axis-title").all_text_contents()
    assert "loss (nats), logarithmic" in titles


@in_browser
def test_axes_and_tooltips_show_percentages(page):
    assert labels_of(page, "reliability", 0)[-1] == "100\N{NO-BREAK SPACE}%"
    page.locator("[data-chart=reliability] .mark-symbol path[aria-label]").first.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert re.search(r"\d\.\d\N{NO-BREAK SPACE}%", page.inner_text("#vg-tooltip-element"))


@in_browser
def test_bins_with_few_images_are_hollow_and_not_connected(page):
    # no bin can have 10 of the 6 images
    fills = page.eval_on_selector_all(
        "[data-chart=reliability] .mark-symbol path[aria-label]",
        "marks => marks.map((mark) => mark.getAttribute('fill-opacity'))",
    )
    assert set(fills) == {"0"}
    assert {colour for colour, _ in marks_of(page, "reliability").values()} == set(
        chart_style.COLOURS[:3]
    )
    assert page.locator("[data-chart=reliability] .mark-line path").count() == 1  # the diagonal
    assert "fewer than 10" in page.inner_text("#confidence")


@in_browser
def test_the_printed_page_is_light_and_its_tables_fit(many, visit):
    page = visit(many, 1000, color_scheme="dark")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 990})  # A4 within its margins
    for table in page.locator("table:visible").all():
        assert table.evaluate("(element) => element.getBoundingClientRect().right") <= 700
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 30, 35)"
    assert page.locator("nav:visible, form:visible").count() == 0


@in_browser
def test_misclassified_images_are_filtered_by_classes_and_model(page):
    form = page.locator("form[data-for=mistakes]")
    count = form.locator("output")
    assert count.inner_text() == "4 of 4"
    form.locator("[name=actual]").select_option(CLASSES[2])
    form.locator("[name=predicted]").select_option(SCRIPT)
    assert count.inner_text() == "2 of 4"
    form.locator("[name=model]").select_option("batchnorm")
    assert count.inner_text() == "1 of 4"
    (card,) = page.locator("#mistakes .mistakes li:visible").all_inner_texts()
    assert card.split("\n") == [
        f"true {CLASSES[2]}", f"predicted {SCRIPT}", "75.0\xa0%, batchnorm", "wrong in 1 of 3",
        "test/5.png",
    ]  # fmt: skip
    form.locator("[name=predicted]").select_option("NA")
    assert count.inner_text() == "0 of 4"


@in_browser
def test_the_confusion_matrix_shows_the_selected_model(page):
    cells = page.locator("[data-chart=confusion] .layer_1_marks text")
    # at first the champion: one of 18 predictions is wrong
    assert sorted(cells.all_text_contents()) == ["1", "5", "6", "6"]
    page.locator("form[data-for=confusion] select").select_option("plain")
    page.wait_for_function(
        "document.querySelectorAll('[data-chart=confusion] .layer_1_marks text').length === 3"
    )
    assert cells.all_text_contents() == ["6", "6", "6"]


@in_browser
def test_tabs_are_operated_with_arrow_keys(page):
    inside = page.locator("#inside")
    tabs = inside.get_by_role("tab")
    assert tabs.all_inner_texts() == ["baseline", "batchnorm", "plain"]
    tabs.first.focus()
    for key, name in (
        ("ArrowRight", "batchnorm"), ("End", "plain"), ("ArrowRight", "baseline"),
        ("ArrowLeft", "plain"), ("Home", "baseline"),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.textContent") == name
        assert inside.locator("[aria-selected=true]").all_inner_texts() == [name]
        assert inside.get_by_role("tabpanel").count() == 1
        assert inside.get_by_role("tabpanel", name=name).is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "tabpanel"


@in_browser
def test_charts_follow_the_colour_scheme(page):
    label = "getComputedStyle(document.querySelector('.role-axis-label text')).fill"
    assert page.evaluate(label) == "rgb(90, 97, 107)"
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{label} === 'rgb(163, 171, 182)'")


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_accessibility_problem(built, visit, scheme, width):
    page = visit(built / "plots/report.html", width, color_scheme=scheme)
    page.eval_on_selector_all(
        "details", "details => details.forEach((element) => element.open = true)"
    )
    violations = Axe().run(page)["violations"]
    assert [
        (violation["id"], node["html"])
        for violation in violations
        for node in violation["nodes"]
        if violation["impact"] in ("serious", "critical")
    ] == []
    assert page.evaluate("document.documentElement.scrollWidth") == width  # no horizontal scrolling


@in_browser
def test_the_page_can_be_read_without_javascript(built, visit):
    page = visit(built / "plots/report.html", charts=0, java_script_enabled=False)
    assert page.locator("#mistakes .mistakes li:visible").count() == 4
    assert page.locator("#inside .panel:visible").count() == 3
    assert page.locator("form:visible").count() == 0


@pytest.fixture
def dvc_plots(project: Path, built: Path) -> Callable[[], Path]:
    """Run `dvc plots show` with the repository's configuration, and return its page."""
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], check=True)
    for name in ("config", "plots.html"):
        shutil.copy(REPOSITORY / ".dvc" / name, project / ".dvc")
    shutil.copytree(REPOSITORY / ".dvc/plots", project / ".dvc/plots")
    (project / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    (project / "plots").mkdir()
    shutil.copy(built / "plots/vega.js", project / "plots")

    def show() -> Path:
        subprocess.run([*dvc, "plots", "show"], check=True, capture_output=True)
        return project / "dvc_plots/index.html"

    return show


@pytest.fixture
def plots_page(project: Path, built: Path, dvc_plots: Callable[[], Path]) -> Path:
    """The page of `dvc plots show` for two small files."""
    (project / "plots/history.csv").write_text("epoch,accuracy\n1,0.5\n2,0.75\n")
    (project / "plots/predictions.csv").write_text("actual,predicted\ncat,dog\ndog,dog\n")
    (project / "dvc.yaml").write_text(
        "plots:\n"
        "  - plots/history.csv: {template: linear, x: epoch, y: accuracy}\n"
        "  - plots/predictions.csv: {template: confusion, x: predicted, y: actual}\n"
    )
    return dvc_plots()


@in_browser
def test_dvc_plots_draw_models_in_colours_and_training_dashed(project, built, visit, dvc_plots):
    shutil.copy(built / "curves.csv", project / "plots/learning_curves.csv")
    plots = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text("utf-8"))["plots"][:2]
    (project / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    page = visit(dvc_plots(), charts=2)
    lines = page.eval_on_selector_all(
        ".mark-line path[aria-label]",
        "lines => lines.map((line) => [line.getAttribute('stroke'), "
        "line.getAttribute('stroke-dasharray')])",
    )
    # one line for the mean of 3 trainings of each of 3 models
    expected = [(colour, dash) for colour in chart_style.COLOURS[:3] for dash in ("1,0", "4,4")]
    assert sorted(map(tuple, lines)) == sorted(expected * 2)


@in_browser
def test_dvc_plots_draw_the_epochs_of_a_first_run_that_still_trains(project, visit, dvc_plots):
    rows = [
        {"epoch": epoch, "accuracy": 0.5, "loss": 1.0, "val_accuracy": 0.4, "val_loss": 1.1}
        for epoch in (1, 2)
    ]
    for model, seed in (("baseline", 0), ("baseline", 1), ("batchnorm", 0)):
        live_curves.show(model, seed, rows)
    plots = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text("utf-8"))["plots"]
    (project / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    page = visit(dvc_plots(), charts=2)  # of the other files, none exists yet
    # of each model, a line for training and one for validation
    assert page.locator(".mark-line path[aria-label]").count() == 2 * 2 * 2


@in_browser
def test_dvc_plots_draw_without_a_network(plots_page, visit):
    page = visit(plots_page, charts=2)
    assert not page.locator("#missing").is_visible()


def test_dvc_plots_load_no_script_from_another_host(plots_page):
    assert not re.findall(r'src="https?:', plots_page.read_text("utf-8"))


@in_browser
def test_dvc_plots_say_which_file_is_missing(plots_page, browser):
    (plots_page.parents[1] / "plots/vega.js").unlink()
    page = browser.new_page()
    page.goto(plots_page.as_uri())
    page.wait_for_selector("#missing:visible")
    assert "dvc repro inputs writes it" in page.inner_text("#missing").replace("\n", " ")
    page.close()
