"""Benchmarks: samples are taken alternately and summarized; the report shows all results."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import data, false_alarms, report, trainings
from benchmarks.__main__ import main
from benchmarks.harness import alternate, process, python, summarize
from pipeline.core.errors import PipelineError
from pipeline.data import arrays
from pipeline.stats import correctness


def result(**changes) -> dict:
    """Return the stored result of a benchmark with two comparisons."""
    samples = {
        "cnn-pipeline": [{"images/s": 30.0}, {"images/s": 20.0}, {"images/s": 40.0}],
        "plain Keras": [{"images/s": 10.0}, {"images/s": 20.0}, {"images/s": 16.0}],
    }
    about = {"cnn-pipeline": {"precision": "bfloat16"}}
    single = {"cnn-pipeline": [{"s": 1.25}]}
    return {
        "benchmark": "train",
        "date": "2026-01-02 03:04",
        "quick": False,
        "machine": {"device": "Some Processor", "cores": 2, "memory_gib": 8},
        "versions": {"python": "3.11.7", "backend": "tensorflow 2.21.0"},
        "comparisons": [
            summarize("train x", "images/s", samples, about),
            summarize("repro", "s", single),
        ],
        **changes,
    }


def test_variants_alternate_and_every_second_run_is_reversed(capsys):
    order: list[str] = []

    def variant(name: str):
        def measure() -> dict[str, float]:
            order.append(name)
            return {"s": float(len(order))}

        return measure

    samples = alternate({name: variant(name) for name in "ABC"}, runs=3)
    assert "".join(order) == "ABC" + "CBA" + "ABC"
    assert samples["A"] == [{"s": 1.0}, {"s": 6.0}, {"s": 7.0}]
    assert capsys.readouterr().out.splitlines()[3] == "  run 2/3  C: 4 s"


def test_more_images_per_second_are_better():
    comparison = result()["comparisons"][0]
    # medians 30 and 16; ratios of single runs 3, 1 and 2.5
    assert comparison["against"] == {"plain Keras": {"ratio": 1.875, "min": 1.0, "max": 3.0}}
    ours = comparison["ways"]["cnn-pipeline"]
    assert (ours["median"], ours["min"], ours["max"]) == (30.0, 20.0, 40.0)
    assert ours["precision"] == "bfloat16"
    assert comparison["ways"]["plain Keras"]["samples"][2] == {"images/s": 16.0}
    assert comparison["n"] == 3


def test_fewer_seconds_are_better():
    samples = {"a": [{"s": 1.0, "MiB": 9.0}, {"s": 2.0, "MiB": 9.0}], "b": [{"s": 4.0}] * 2}
    assert summarize("", "s", samples)["against"]["b"] == {"ratio": 4 / 1.5, "min": 2, "max": 4}


def test_each_comparison_and_each_single_variant_is_a_row():
    assert report.rows([result()]) == [
        ("train x", "30 images/s, bfloat16", "plain Keras", "16 images/s",
         "1.88×", "1.00× to 3.00×", "3"),
        ("repro", "1.25 s", "", "", "", "", "1"),
    ]  # fmt: skip


def test_each_machine_is_described_once():
    other = {"device": "Other", "cores": 4, "memory_gib": 9}
    lines = report.describe_machines(
        [result(), result(benchmark="predict"), result(quick=True, machine=other)]
    )
    rest = "python 3.11.7, tensorflow 2.21.0; 2026-01-02"
    assert lines == [
        f"train, predict: Some Processor, 2 cores, 8 GiB; {rest}",
        f"train: Other, 4 cores, 9 GiB; {rest}; quick: fewer images",
    ]


def test_a_process_is_measured_and_its_failure_is_an_error(tmp_path: Path):
    sample = process(python("-c", "import time; time.sleep(0.2)"), tmp_path)
    assert sample["s"] >= 0.2  # sleep takes at least that long
    assert sample["MiB"] > 1
    with pytest.raises(PipelineError, match=r"(?s)Got exit status 1: .*ZeroDivisionError"):
        process(python("-c", "1 / 0"), tmp_path)


def test_the_report_writes_picture_and_page(tmp_path: Path, monkeypatch, capsys):
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n" + "old\n".join(report.MARKERS) + "after\n")
    (tmp_path / "train.json").write_text(json.dumps(result()))
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.__main__.PAGE", page)
    main(["--report"])
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
    before, between, after = report.split_page(page.read_text())
    assert (before, after) == ("before\n", "after\n")
    assert between == report.markdown([result()])
    assert "| repro | 1.25 s |  |  |  |  | 1 |" in between
    assert "1.88×" in capsys.readouterr().out


def test_random_images_have_the_format_of_the_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SPLITS", {"train": 20, "test": 5})
    assert data.prepare(tmp_path, quick=True) == "random images of CIFAR-10's shape"
    images, labels = arrays.load(tmp_path / "data/arrays/train")
    assert images.shape == (20, 32, 32, 3)
    assert labels.max() < data.CLASSES


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(PipelineError, match="names must be of train, .* Got trian"):
        main(["trian"])


def test_the_page_shows_the_committed_results(committed):
    page = committed("docs/benchmarks.md").read_text("utf-8")
    assert report.split_page(page)[1] == report.markdown(
        report.read(committed("benchmarks/results"))
    )


def test_committed_results_have_every_field(committed):
    for stored in report.read(committed("benchmarks/results")):
        assert not stored["quick"]
        assert set(stored["machine"]) == {"device", "cores", "memory_gib"}
        assert {"python", "keras", "backend", "numpy"} <= set(stored["versions"])
        for comparison in stored["comparisons"]:
            variants = comparison["ways"].values()
            assert {len(variant["samples"]) for variant in variants} == {comparison["n"]}
            assert comparison["n"] >= 5


def trained(model: str, seed: int, correct: list[bool], **changes: Any) -> dict:
    """Return the record of a training."""
    machine = {
        "settings": "a",
        "device": "A",
        "precision": "float32",
        "backend": "tensorflow 2.21.0",
        "threads": "1",
    }
    packed = correctness.pack(np.array(correct), np.array(["cat"] * len(correct)))
    return {"model": model, "seed": seed, **machine, "train_seconds": 9.6, "accuracy": 0.5,
            "correct": packed, **changes}  # fmt: skip


def test_trainings_that_are_recorded_are_not_run_again(tmp_path, monkeypatch):
    ran = []

    def train(folder, params, model, seed, mirror) -> dict:
        ran.append((model, seed))
        return trained(model, seed, [True, False])

    monkeypatch.setattr(trainings, "train", train)
    monkeypatch.setattr(trainings, "prepare", lambda *_: None)
    monkeypatch.setattr(trainings, "describe", lambda: {"machine": {"device": "A"}})
    path = tmp_path / "digits.jsonl"

    def record(models: list[str], seeds: list[int]) -> None:
        trainings.record("digits", models, seeds, False, tmp_path, path)

    record(["baseline", "batchnorm"], [0])
    record(["baseline", "batchnorm"], [0, 1])
    assert ran == [("baseline", 0), ("batchnorm", 0), ("baseline", 1), ("batchnorm", 1)]
    assert [(line["model"], line["seed"]) for line in trainings.read(path)] == ran
    monkeypatch.setattr(trainings, "describe", lambda: {"machine": {"device": "B"}})
    record(["baseline"], [0])
    assert len(ran) == 5


def test_only_trainings_of_the_same_machine_and_settings_are_compared():
    half, whole = [True, False] * 50, [True] * 100
    recorded = [
        trained("a", 0, whole, settings="old"),
        trained("a", 0, half),
        trained("a", 1, half),
        trained("b", 0, whole, mirrored_accuracy=0.9),
        trained("b", 1, whole, mirrored_accuracy=0.8),
        trained("b", 0, half, device="B"),
    ]
    lines = trainings.table(recorded, margin=1.0, order=["b", "a"]).splitlines()
    b, a, alone = (line for line in lines if line.startswith(("| a ", "| b ")))
    assert b == "| b | 2 | 100.0 % [96.3, 100.0] | 0.0 | 85.0 % |  | 10 s (10 to 10) |"
    # Wilson's interval of 50 of 100
    assert a.startswith("| a | 2 | 50.0 % [40.4, 59.6] | 0.0 |  | worse than b by 50.0 points [")
    assert alone.startswith("| b | 1 | 50.0 % [40.4, 59.6] |  |  |  |")


def test_trainings_with_the_same_predictions_give_no_false_alarm():
    correct = np.ones((10, 1000), bool)
    assert false_alarms.shares(correct, 3, 0.01, draws=20) == {"as good as": 1.0}


def test_few_comparisons_of_trainings_of_one_model_are_false_alarms(committed):
    result = json.loads(committed("benchmarks/results/false_alarms.json").read_text())
    page = committed("docs/comparing.md").read_text("utf-8")
    for verdicts in result["verdicts"].values():
        alarms = verdicts.get("better", 0) + verdicts.get("worse", 0)
        assert alarms <= 0.06
        assert f"{alarms:.1%}".replace("%", " %") in page
