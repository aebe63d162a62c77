"""Split: validation rows, folds and groups, duplicates and contradictory labels."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import split
from pipeline.core.errors import PipelineError
from pipeline.data import arrays, rows
from tests.conftest import write_arrays


def test_the_split_file_is_the_same_in_every_version_of_python(tmp_path):
    train, validation = np.arange(6), np.arange(6, 8)
    arrays.write_split(tmp_path / "s.npz", train, validation)
    content = (tmp_path / "s.npz").read_bytes()
    # a ZIP header of version 2.0 (not 4.5 of ZIP64), dated 1980-01-01, with the real size of
    # train.npy: a NumPy header of 128 bytes and 6 rows of 8 bytes
    assert struct.unpack("<4s5H3I2H", content[:30]) == (
        b"PK\3\4", 20, 0, 0, 0, 33, zlib.crc32(content[39:215]), 176, 176, 9, 0,
    )  # fmt: skip
    read_train, read_validation = arrays.read_split(tmp_path / "s.npz", 8)
    assert np.array_equal(read_train, train)
    assert np.array_equal(read_validation, validation)


INFO = json.dumps({
    "classes": ["even", "odd"], "skipped": {"train": 3, "test": 1},
    "multi_frame": {"train": 2, "test": 0}, "validation": 0,
})  # fmt: skip


ARGUMENTS = "--arrays arrays --split splits --metrics m.json".split()


def test_a_class_without_validation_images_is_reported(project, quick_stage):
    for split_name, values, labels in (
        ("train", range(100), [0] * 98 + [1] * 2),
        ("test", [200, 201], [0, 1]),
    ):
        write_arrays(project / "arrays" / split_name, images(*values), np.array(labels))
    (project / "arrays/info.json").write_text(INFO)
    argv = ("pipeline.split", "--arrays", "arrays", "--split", "splits", "--metrics", "m.json")
    assert "split: warning: no validation images of odd" in quick_stage(*argv).stdout


@pytest.mark.parametrize("split_name", ["train", "test"])
def test_modified_arrays_are_refused_and_the_previous_split_stays(project, split_name):
    for name in ("train", "test"):
        write_arrays(project / "arrays" / name, images(*range(10)), np.arange(10) % 2)
    labels = np.arange(10) % 2
    labels[3] = 7
    np.save(project / f"arrays/{split_name}/labels.npy", labels)
    (project / "arrays/info.json").write_text(INFO)
    (project / "splits").mkdir()
    (project / "splits/0.npz").write_text("last good")
    message = (
        rf"arrays/{split_name}/labels\.npy: must be the array that preprocess wrote, .* Run `dvc"
    )
    with pytest.raises(PipelineError, match=message):
        split.main("--arrays arrays --split splits --metrics m.json".split())
    assert (project / "splits/0.npz").read_text() == "last good"
    assert not (project / "m.json").exists()


def images(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


def test_duplicates_are_counted_within_and_across_splits():
    # image 1 is three times in train and once in test; 2 in validation and test; 3 twice in test
    values = [1, 1, 2, 1, 4, 3, 2, 1, 3]
    splits = ["train", "train", "validation", "train", "train", "test", "test", "test", "test"]
    groups = split.exact_groups(split.describe(images(*values)).digests)
    labels = np.array([0, 1, 0, 0, 0, 1, 0, 0, 1])
    summary = split.summarize(groups, splits, list("abcdefghi"), labels, ["cat", "dog"])
    assert summary["within"] == {"train": 2, "validation": 0, "test": 1}
    assert summary["across"] == {"train_validation": 0, "train_test": 1, "validation_test": 1}
    assert summary["groups"] == [
        ["train a", "train b", "train d", "test h"],
        ["validation c", "test g"],
        ["test f", "test i"],
    ]
    assert summary["conflicts"] == [
        ["train a (cat)", "train b (dog)", "train d (cat)", "test h (cat)"]
    ]
    assert split.leaked(groups, splits, "validation") == []
    assert split.leaked(groups, splits, "test") == [6, 7]


def test_duplicates_are_found_when_images_are_read_in_chunks(monkeypatch):
    monkeypatch.setattr(split, "READ_VALUES", 2)
    assert split.exact_groups(split.describe(images(5, 6, 7, 8, 5)).digests) == [[0, 4]]


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 8, 8, 1), dtype=np.float32)


def test_a_group_of_near_duplicates_has_the_exact_copies_of_its_images():
    pictures = noise(20)
    pictures[3] = 0.5 * pictures[2]  # darker
    pictures[7] = pictures[3]
    pictures[9] = pictures[8]  # exact copies only
    contents = split.describe(pictures)
    assert split.near_groups(contents, np.zeros(20, int)) == [[2, 3, 7]]


def test_test_images_with_a_near_duplicate_in_train_are_listed(project, quick_stage):
    pictures = noise(32)
    pictures[31] = 0.8 * pictures[5, :, ::-1]  # test image 1 is a darker mirror image
    pictures[20] = pictures[21]
    for name, part in (("train", pictures[:30]), ("test", pictures[30:])):
        write_arrays(project / "arrays" / name, part, np.arange(len(part)) % 2)
    (project / "arrays/info.json").write_text(INFO)
    done = quick_stage("pipeline.split", *ARGUMENTS)
    assert "split: warning: 1 test image with a duplicate in train or validation" in done.stdout
    metrics = json.loads((project / "m.json").read_text())
    split_of_5 = "validation" if 5 in read_rows("splits/0.npz", 30)[1] else "train"
    assert metrics["near_duplicates"]["groups"] == [
        [f"{split_of_5} train/5.png", "test test/1.png"]
    ]
    assert len(metrics["duplicates"]["groups"]) == 1
    assert metrics["leaked_test_rows"] == [1]


def read_rows(path: str, num_rows: int) -> tuple[list[int], list[int]]:
    train, validation = arrays.read_split(Path(path), num_rows)
    return train.tolist(), validation.tolist()


def test_with_folds_each_image_is_held_out_by_one_seed(project, edit):
    for name, values in (("train", range(30)), ("test", [50, 51])):
        write_arrays(project / "arrays" / name, images(*values), np.arange(len(values)) % 2)
    (project / "arrays/info.json").write_text(INFO)
    edit("seeds: [0]", "seeds: [4, 2, 9]")
    edit("method: holdout", "method: folds")
    split.main(ARGUMENTS)
    held_out = []
    for seed in (4, 2, 9):
        train, validation = read_rows(f"splits/{seed}.npz", 30)
        assert np.bincount(np.array(validation) % 2).tolist() == [5, 5]
        held_out += validation
    assert sorted(held_out) == list(range(30))


def test_folds_of_a_data_set_with_a_validation_split_are_refused(project, edit):
    for name in ("train", "test"):
        write_arrays(project / "arrays" / name, images(*range(10)), np.arange(10) % 2)
    (project / "arrays/info.json").write_text(json.dumps({**json.loads(INFO), "validation": 4}))
    edit("seeds: [0]", "seeds: [0, 1]")
    edit("method: holdout", "method: folds")
    with pytest.raises(PipelineError, match=r"split\.method must be holdout, because the data set"):
        split.main(ARGUMENTS)


@pytest.mark.parametrize("method", ["holdout", "folds"])
def test_images_of_a_patient_stay_in_one_split(project, edit, quick_stage, method):
    labels = np.arange(60) % 2
    patients = np.arange(60) // 4  # 15 patients with 4 images, 2 of each class
    for name, rows_of in (("train", np.arange(56)), ("test", np.arange(54, 60))):
        write_arrays(project / "arrays" / name, images(*rows_of), labels[rows_of])
        values = [{"patient": f"p{patients[row]}"} for row in rows_of]
        ids = [f"{name}/{row}.png" for row in rows_of]
        rows.write(project / "arrays", name, pa.table({"id": ids, "metadata": values}))
    (project / "arrays/info.json").write_text(INFO)
    edit("seeds: [0]", "seeds: [0, 1]")
    edit("method: holdout", f"method: {method}")
    edit("  group:", "  group: patient")
    done = quick_stage("pipeline.split", *ARGUMENTS)
    for seed in (0, 1):
        train, validation = read_rows(f"splits/{seed}.npz", 56)
        assert not set(patients[train]) & set(patients[validation])
        assert 8 <= len(validation) <= 28
    # test has two images of patient 13 (rows 54 and 55), who is also in train or validation
    assert "split: warning: 1 group in two splits of the data set. See m.json" in done.stdout
    grouped = json.loads((project / "m.json").read_text())["grouped"]
    assert grouped["groups"] == 15
    assert grouped["across"]["train_validation"] == 0


def test_stage_writes_rows_and_counts_and_warns_of_leaks(project, stage):
    for split_name, values in (("train", range(10)), ("test", [20, 3])):
        labels = np.arange(len(values)) % 2
        write_arrays(project / "arrays" / split_name, images(*values), labels)
    (project / "arrays/info.json").write_text(INFO)
    done = stage("pipeline.split", *"--arrays arrays --split splits --metrics m.json".split())
    assert done.stdout == (
        "split: 8 train, 2 validation rows (held out) -> splits\n"
        "split: warning: 1 test image with a duplicate in train or validation. See m.json\n"
    ), done.stderr
    metrics = json.loads((project / "m.json").read_text())
    assert metrics["skipped"] == {"train": 3, "test": 1}
    assert metrics["multi_frame"] == {"train": 2, "test": 0}
    assert metrics["rows"] == {"train": 8, "validation": 2, "test": 2}
    assert metrics["held_out"] is True
    assert metrics["classes"] == [
        {"class": "even", "train": 4, "validation": 1, "test": 1},
        {"class": "odd", "train": 4, "validation": 1, "test": 1},
    ]
    rows = np.load(project / "splits/0.npz")
    assert (rows["train"].dtype, len(rows["validation"])) == (np.int64, 2)


@pytest.mark.parametrize(("own", "expected", "origin"), [
    (0, list(range(10)), "10 train, 0 validation rows (held out)"),
    (3, list(range(7)), "7 train, 3 validation rows (from the data set)"),
])  # fmt: skip
def test_a_share_of_0_holds_nothing_out_and_keeps_a_validation_split(
    project, edit, quick_stage, own, expected, origin
):
    for split_name, values in (("train", range(10)), ("test", [20, 21])):
        write_arrays(project / "arrays" / split_name, images(*values), np.arange(len(values)) % 2)
    (project / "arrays/info.json").write_text(json.dumps({**json.loads(INFO), "validation": own}))
    edit("seeds: [0]", "seeds: [0, 7]")
    edit("validation: 0.2", "validation: 0")
    edit("champion: auto", "champion: baseline")
    done = quick_stage("pipeline.split", *ARGUMENTS)
    assert done.stdout == f"split: {origin} -> splits\n", done.stderr  # and no warning
    for seed in (0, 7):
        assert read_rows(f"splits/{seed}.npz", 10)[0] == expected
    metrics = json.loads((project / "m.json").read_text())
    assert metrics["rows"] == {"train": 10 - own, "validation": own, "test": 2}
    assert metrics["held_out"] is False


def test_every_seed_holds_out_its_own_images_and_adding_one_changes_no_other(project, edit):
    for split_name, values in (("train", range(40)), ("test", [50, 51])):
        write_arrays(project / "arrays" / split_name, images(*values), np.arange(len(values)) % 2)
    (project / "arrays/info.json").write_text(INFO)
    argv = "--arrays arrays --split splits --metrics m.json".split()
    edit("seeds: [0]", "seeds: [3, 1]")
    split.main(argv)
    before = {path.name: path.read_bytes() for path in (project / "splits").iterdir()}
    metrics = (project / "m.json").read_bytes()
    assert set(before) == {"1.npz", "3.npz"}
    held_out = []
    for name in before:
        rows, validation = arrays.read_split(project / "splits" / name, 40)
        assert sorted([*rows, *validation]) == list(range(40))
        assert [sum(validation % 2 == label) for label in (0, 1)] == [4, 4]  # of each class
        held_out.append(validation.tolist())
    assert held_out[0] != held_out[1]

    edit("seeds: [3, 1]", "seeds: [3, 7, 1]")
    split.main(argv)
    after = {path.name: path.read_bytes() for path in (project / "splits").iterdir()}
    assert set(after) == {"1.npz", "3.npz", "7.npz"}
    assert {name: after[name] for name in before} == before
    # the counts and duplicates are those of the first seed's split
    assert (project / "m.json").read_bytes() == metrics


def test_the_validation_split_of_a_data_set_is_used_for_every_seed(project, edit, quick_stage):
    for split_name, values in (("train", range(10)), ("test", [20, 21])):
        write_arrays(project / "arrays" / split_name, images(*values), np.arange(len(values)) % 2)
    info = {**json.loads(INFO), "validation": 3}
    (project / "arrays/info.json").write_text(json.dumps(info))
    edit("seeds: [0]", "seeds: [0, 7]")
    done = quick_stage("pipeline.split", *"--arrays arrays --split splits --metrics m.json".split())
    assert done.stdout == "split: 7 train, 3 validation rows (from the data set) -> splits\n", (
        done.stderr
    )
    for seed in (0, 7):
        train, validation = arrays.read_split(project / f"splits/{seed}.npz", 10)
        assert train.tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert validation.tolist() == [7, 8, 9]
    metrics = json.loads((project / "m.json").read_text())
    assert metrics["held_out"] is False
    assert metrics["rows"] == {"train": 7, "validation": 3, "test": 2}


def test_an_image_in_two_classes_is_reported_as_a_conflict(project, quick_stage):
    for split_name, values in (("train", [0, 1, 2, 3, 4, 5, 6, 6]), ("test", [20, 21])):
        write_arrays(project / "arrays" / split_name, images(*values), np.arange(len(values)) % 2)
    (project / "arrays/info.json").write_text(json.dumps({**json.loads(INFO), "validation": 2}))
    done = quick_stage("pipeline.split", *"--arrays arrays --split splits --metrics m.json".split())
    assert done.stdout.splitlines()[1:] == [
        "split: warning: 1 image in two classes, so a label is wrong, for example validation "
        "train/6.png (even), validation train/7.png (odd). See m.json"
    ], done.stderr
    conflicts = json.loads((project / "m.json").read_text())["duplicates"]["conflicts"]
    assert conflicts == [["validation train/6.png (even)", "validation train/7.png (odd)"]]
