"""Benchmarks: samples are taken alternately and summarized; the report shows all results."""

import importlib
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks import data, false_alarms, report, trainings
from benchmarks.__main__ import main, slug, store, wait
from benchmarks.cases import CASES
from benchmarks.harness import (
    OURS,
    Command,
    Variant,
    Worker,
    alternate,
    busy_elsewhere,
    compare,
    process,
    python,
    with_load,
)
from benchmarks.train import Setting
from pipeline.core.errors import PipelineError
from pipeline.data import arrays
from pipeline.stats import correctness


def samples(unit: str, values: list[float], load: float = 0.0) -> list[dict[str, float]]:
    return [{unit: value, "load": load} for value in values]


def result(**changes: Any) -> dict:
    """Return the stored result of a case."""
    return {
        "case": "train-baseline-32",
        "title": "train x",
        "unit": "images/s",
        "date": "2026-01-02 03:04",
        "machine": {"device": "A (1)", "cores": 2, "memory_gib": 8, "precision": "bfloat16"},
        "versions": {"python": "3.11.7", "backend": "tensorflow 2.21.0"},
        "facts": {
            OURS: {"precision": "bfloat16"},
            "PyTorch": {"precision": "bfloat16", "mode": "eager"},
        },
        "samples": {
            OURS: samples("images/s", [30, 20, 40], load=0.02),
            "PyTorch": samples("images/s", [10, 20, 16], load=0.25),
        },
        **changes,
    }


def test_variants_alternate_and_every_second_run_is_reversed(capsys):
    order: list[str] = []

    def variant(name: str):
        def measure() -> dict[str, float]:
            order.append(name)
            return {"s": float(len(order))}

        return measure

    measured = alternate({name: variant(name) for name in "ABC"}, runs=3)
    assert "".join(order) == "ABC" + "CBA" + "ABC"
    assert [sample["s"] for sample in measured["A"]] == [1, 6, 7]
    assert capsys.readouterr().out.splitlines()[3].startswith("  run 2/3  C: 4 s")


def test_the_ratio_is_the_median_of_the_ratios_of_single_runs():
    # more images per second are better: 30 / 10, 20 / 20 and 40 / 16
    assert report.ratios(result(), "PyTorch") == [3.0, 1.0, 2.5]
    assert report.rows([result()]) == [
        ("train x", "30 images/s, bfloat16", "PyTorch", "16 images/s, bfloat16, eager",
         "2.50×", "1.00× to 3.00×", "3", "0.25"),
    ]  # fmt: skip
    # fewer seconds are better: 4 / 1 and 4 / 2
    measured = {OURS: samples("s", [1, 2]), "b": samples("s", [4, 4])}
    assert report.ratios(result(unit="s", samples=measured), "b") == [4.0, 2.0]


@pytest.mark.slow
def test_only_other_programs_count_as_load(monkeypatch):
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    times = psutil.cpu_times()
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "cpu_times", lambda: times)  # nobody else does anything
        before = busy_elsewhere()
        subprocess.run(python("-c", spin), check=True)
        assert busy_elsewhere() - before < -0.25  # what a child used is subtracted
    # not a child: the shell that started it has ended
    subprocess.run(["sh", "-c", f"{shlex.join(python('-c', spin))} &"], check=True)
    assert with_load(wait)["load"] > 0.2


def test_a_load_above_a_tenth_of_a_core_is_warned_of():
    assert report.warn("x", samples("s", [1.0, 2.0], load=0.1)) == ""
    disturbed = samples("s", [1.0]) + samples("s", [1.0], load=0.11)
    assert report.warn("x", disturbed) == (
        "warning: x: other programs used up to 0.11 cores, more than 0.1. "
        "End them and measure again"
    )


WORK = """
import itertools
from benchmarks.harness import serve

def count_requests(pipe, name):
    requests = itertools.count(1)
    serve(pipe, lambda: {"name": name}, lambda: {"images/s": float(next(requests))})

def fail(pipe):
    pipe.close()
"""


def test_workers_and_commands_are_warmed_up_and_measured(tmp_path, monkeypatch):
    (tmp_path / "work.py").write_text(WORK)  # a small module: its processes start fast
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("work")
    variants: dict[str, Variant] = {
        "worker": Worker(work.count_requests, "w"),
        "two": Worker(work.count_requests, "t", copies=2),
        "command": Command(tmp_path, ["sh", "-c", "echo >> ran"]),
    }
    compared = compare(variants, runs=2)
    assert compared["facts"] == {"worker": {"name": "w"}, "two": {"name": "t"}, "command": {}}
    rates = [[s.get("images/s") for s in taken] for taken in compared["samples"].values()]
    assert rates == [[1, 2], [2, 4], [None, None]]  # two copies do twice as much
    assert (tmp_path / "ran").read_text() == "\n\n\n"
    with pytest.raises(PipelineError, match="a variant ended early"):
        compare({"worker": Worker(work.fail)}, runs=1)


def test_a_process_is_measured_and_its_failure_is_an_error(tmp_path: Path):
    # sleep takes at least that long
    assert process(python("-c", "import time; time.sleep(0.2)"), tmp_path) >= 0.2
    with pytest.raises(PipelineError, match=r"(?s)Got exit status 1: .*ZeroDivisionError"):
        process(python("-c", "1 / 0"), tmp_path)


def test_a_quarter_as_many_images_are_validated_and_none_of_them_trained():
    train, validation = Setting("baseline", 32, 40_000).rows()
    assert (len(set(train)), len(set(validation))) == (40_000, 10_000)
    assert not set(train) & set(validation)
    train, validation = Setting("baseline", 128, 100_000).rows()
    assert (len(train), len(set(train)), len(validation)) == (100_000, 40_000, 25_000)


def test_a_result_replaces_the_older_one_of_its_case(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    for case, title in (("startup", "old"), ("train-baseline-32", "t"), ("startup", "new")):
        store(path, result(case=case, title=title))
    assert [line["title"] for line in report.read(path)] == ["t", "new"]  # in the order of CASES


def test_machines_stand_one_below_the_other(tmp_path: Path, monkeypatch, capsys):
    machine = {**result()["machine"], "precision": "float32"}
    other = result(machine=machine, title="train y", date="2026-02-03 04:05")
    assert slug(machine) == "a-1-2-cores-float32"
    for stored in (result(), result(case="startup"), other):
        store(tmp_path / f"speed/{slug(stored['machine'])}.jsonl", stored)
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n" + "old\n".join(report.MARKERS) + "after\n")
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.__main__.PAGE", page)
    main(["--report"])
    before, between, after = report.split_page(page.read_text())
    assert (before, after) == ("before\n", "after\n")
    assert between == report.markdown(report.read_all(tmp_path / "speed")) + "\n"
    first, second = between.split("### ")[1:]
    assert first.startswith("A (1), 2 cores, 8 GiB, `precision: auto` is bfloat16\n\n| ")
    assert (
        "\n\ntrain-baseline-32, startup: 2026-01-02, python 3.11.7, tensorflow 2.21.0.\n" in first
    )
    assert "is float32\n" in second
    assert "| train y | 30 images/s, bfloat16 | PyTorch |" in second
    assert "2.50×" in capsys.readouterr().out


def test_random_images_have_the_format_of_the_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SPLITS", {"train": 20, "test": 5})
    assert data.prepare(tmp_path, quick=True) == "random images of CIFAR-10's shape"
    images, labels = arrays.load(tmp_path / "data/arrays/train")
    assert images.shape == (20, 32, 32, 3)
    assert labels.max() < data.CLASSES


def test_an_unknown_case_is_refused():
    with pytest.raises(PipelineError, match="names must be of train-.* Got trian"):
        main(["trian"])


def test_the_page_shows_the_committed_results(committed):
    page = committed("docs/benchmarks.md").read_text("utf-8")
    stored = report.read_all(committed("benchmarks/results") / "speed")
    assert report.split_page(page)[1] == report.markdown(stored) + "\n"


def test_committed_results_have_every_field(committed):
    for path in (committed("benchmarks/results") / "speed").glob("*.jsonl"):
        for stored in report.read(path):
            assert stored["case"] in CASES
            assert slug(stored["machine"]) == path.stem
            assert {"python", "keras", "backend", "numpy"} <= set(stored["versions"])
            assert {len(taken) for taken in stored["samples"].values()} in ({3}, {5}, {7})


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
    assert b == "| b | 2 | 100.0 % [96.3, 100.0] | 0.0 | 85.0 % |  |  | 10 s (10 to 10) |"
    # Wilson's interval of 50 of 100
    assert a.startswith("| a | 2 | 50.0 % [40.4, 59.6] | 0.0 |  |  | worse than b by 50.0 points [")
    assert alone.startswith("| b | 1 | 50.0 % [40.4, 59.6] |  |  |  |  |")


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
