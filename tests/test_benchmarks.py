import json
from pathlib import Path

import pytest

from benchmarks import data, report
from benchmarks.__main__ import main
from benchmarks.harness import alternate, process, python, summarize
from pipeline.core.errors import PipelineError
from pipeline.data import arrays


def result(**own) -> dict:
    samples = {
        "cnn-pipeline": [{"images/s": 30.0}, {"images/s": 20.0}, {"images/s": 40.0}],
        "plain Keras": [{"images/s": 10.0}, {"images/s": 20.0}, {"images/s": 16.0}],
    }
    about = {"cnn-pipeline": {"precision": "bfloat16"}}
    alone = {"cnn-pipeline": [{"s": 1.25}]}
    return {
        "benchmark": "train",
        "date": "2026-01-02 03:04",
        "quick": False,
        "machine": {"device": "Some Processor", "cores": 2, "memory_gib": 8},
        "versions": {"python": "3.11.7", "backend": "tensorflow 2.21.0"},
        "comparisons": [
            summarize("train x", "images/s", samples, about),
            summarize("repro", "s", alone),
        ],
        **own,
    }


def test_ways_take_turns_there_and_back(capsys):
    turns: list[str] = []

    def way(name: str):
        def turn() -> dict[str, float]:
            turns.append(name)
            return {"s": float(len(turns))}

        return turn

    samples = alternate({name: way(name) for name in "ABC"}, runs=3)
    assert "".join(turns) == "ABC" + "CBA" + "ABC"
    assert samples["A"] == [{"s": 1.0}, {"s": 6.0}, {"s": 7.0}]
    assert capsys.readouterr().out.splitlines()[3] == "  run 2/3  C: 4 s"


def test_more_images_a_second_are_better():
    done = result()["comparisons"][0]
    # medians 30 and 16; run by run 3, 1 and 2.5
    assert done["against"] == {"plain Keras": {"ratio": 1.875, "min": 1.0, "max": 3.0}}
    ours = done["ways"]["cnn-pipeline"]
    assert (ours["median"], ours["min"], ours["max"]) == (30.0, 20.0, 40.0)
    assert ours["precision"] == "bfloat16"
    assert done["ways"]["plain Keras"]["samples"][2] == {"images/s": 16.0}
    assert done["n"] == 3


def test_fewer_seconds_are_better():
    samples = {"a": [{"s": 1.0, "MiB": 9.0}, {"s": 2.0, "MiB": 9.0}], "b": [{"s": 4.0}] * 2}
    assert summarize("", "s", samples)["against"]["b"] == {"ratio": 4 / 1.5, "min": 2, "max": 4}


def test_a_row_for_each_pair_and_for_a_way_alone():
    assert report.rows([result()]) == [
        ("train x", "30 images/s, bfloat16", "plain Keras", "16 images/s",
         "1.88×", "1.00× to 3.00×", "3"),
        ("repro", "1.25 s", "", "", "", "", "1"),
    ]  # fmt: skip


def test_machines_are_named_once():
    other = {"device": "Other", "cores": 4, "memory_gib": 9}
    lines = report.made_on(
        [result(), result(benchmark="predict"), result(quick=True, machine=other)]
    )
    rest = "python 3.11.7, tensorflow 2.21.0; 2026-01-02"
    assert lines == [
        f"train, predict: Some Processor, 2 cores, 8 GiB; {rest}",
        f"train: Other, 4 cores, 9 GiB; {rest}; quick: fewer images",
    ]


def test_a_process_is_measured_and_its_failure_told(tmp_path: Path):
    sample = process(python("-c", "import time; time.sleep(0.2)"), tmp_path)
    assert sample["s"] >= 0.2  # what sleep promises
    assert sample["MiB"] > 1
    with pytest.raises(PipelineError, match=r"(?s)status 1 of .*ZeroDivisionError"):
        process(python("-c", "1 / 0"), tmp_path)


def test_report_writes_picture_and_page(tmp_path: Path, monkeypatch, capsys):
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n" + "old\n".join(report.MARKERS) + "after\n")
    (tmp_path / "train.json").write_text(json.dumps(result()))
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.__main__.PAGE", page)
    main(["--report"])
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
    before, between, after = report.in_page(page.read_text())
    assert (before, after) == ("before\n", "after\n")
    assert between == report.markdown([result()])
    assert "| repro | 1.25 s |  |  |  |  | 1 |" in between
    assert "1.88×" in capsys.readouterr().out


def test_random_images_are_as_the_stages_expect_them(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PARTS", {"train": 20, "test": 5})
    assert data.prepare(tmp_path, quick=True) == "random images of CIFAR-10's shape"
    images, labels = arrays.load(tmp_path / "data/arrays/train")
    assert images.shape == (20, 32, 32, 3)
    assert labels.max() < data.CLASSES


def test_an_unknown_name_is_refused():
    with pytest.raises(PipelineError, match=r"no file benchmarks/trian\.py"):
        main(["trian"])


def test_page_shows_the_committed_results(committed):
    page = committed("docs/benchmarks.md").read_text("utf-8")
    assert report.in_page(page)[1] == report.markdown(report.read(committed("benchmarks/results")))


def test_committed_results_have_every_field(committed):
    for found in report.read(committed("benchmarks/results")):
        assert not found["quick"]
        assert set(found["machine"]) == {"device", "cores", "memory_gib"}
        assert {"python", "keras", "backend", "numpy"} <= set(found["versions"])
        for done in found["comparisons"]:
            assert {len(way["samples"]) for way in done["ways"].values()} == {done["n"]}
            # a training of minutes is repeated for as many seeds, not more
            assert done["n"] >= (3 if found["benchmark"] == "accuracy" else 5)
