"""Corrections: images that a person excludes, and labels that a person corrects."""

import re

import numpy as np
import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, sha256
from pipeline.data import arrays, rows
from pipeline.ingest import corrections, parquet
from tests.conftest import grey

CLASSES = ["cat", "dog"]
IDS = ["a.png", "b, c.png", "d.png", "7", "7"]


@pytest.mark.parametrize("content", [
    "d.png\nb, c.png\n", "\ufeffd.png\r\n\r\nb, c.png", 'id,label\nd.png,cat\n"b, c.png",\n',
    'given,id\ncat,"b, c.png"\ndog,d.png\n',
])  # fmt: skip
def test_images_to_exclude_are_a_list_or_a_column_of_ids(tmp_path, content):
    (tmp_path / "exclude").write_text(content, "utf-8", newline="")
    read = corrections.read(str(tmp_path / "exclude"), None, IDS, CLASSES)
    assert read.excluded == {"d.png", "b, c.png"}
    assert not read.labels


def test_labels_to_correct_are_columns_of_ids_and_class_names(tmp_path):
    (tmp_path / "relabel.csv").write_text("id,label,given,score\nd.png,dog,cat,0.9\na.png,cat,,\n")
    read = corrections.read(None, str(tmp_path / "relabel.csv"), IDS, CLASSES)
    assert read.correct(IDS, np.array([0, 1, 0, 1, 0])).tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(("exclude", "relabel", "message"), [
    ("a.png\nx.png\n", "id,label\n",
     "exclude.txt: line 2: id must be that of one image. Got 'x.png', which no images have. "),
    ("7\n", "id,label\n", "exclude.txt: line 1: id must be that of one image. Got '7', which 2 "),
    ("", "id,label\na.png,dog\nd.png,bird\n",
     "relabel.csv: line 3: label must be one of cat, dog. Got 'bird'. Correct or remove the line"),
    ("", "id,label\na.png,dog\na.png,dog\n",
     "relabel.csv: line 3: must name an image that exclude and relabel name only once. "
     "Got 'a.png' again. Correct or remove the line"),
    ("a.png\n", "id,label\na.png,dog\n", "relabel.csv: line 2: must name an image that exclude"),
    ("", "id,class\n", "relabel.csv: the first line must name id and label and other columns"),
    ("", None, "relabel.csv: no such file. Create it, or set preprocess.relabel to null"),
])  # fmt: skip
def test_an_invalid_line_is_an_error_with_its_file_and_number(tmp_path, exclude, relabel, message):
    (tmp_path / "exclude.txt").write_text(exclude)
    if relabel is not None:
        (tmp_path / "relabel.csv").write_text(relabel)
    files = str(tmp_path / "exclude.txt"), str(tmp_path / "relabel.csv")
    with pytest.raises(PipelineError, match=re.escape(f"{tmp_path}/{message}")):
        corrections.read(*files, IDS, CLASSES)


def test_preprocess_applies_and_counts_the_corrections(project, edit, quick_stage):
    # the first image, of another size, and one of the validation split are excluded
    splits = {
        "train": [grey(0, 0, "t0", size=(5, 5)), grey(51, 1, "t1"), grey(102, 1, "t2"),
                  grey(0, 1, "t3")],
        "validation": [grey(255, 0, "v0"), grey(255, 1, "v1")],
        "test": [grey(0, 0, "s0"), grey(51, 0, "s1")],
    }  # fmt: skip
    sizes = {split: len(examples) for split, examples in splits.items()}
    parquet.write(project / "raw", parquet.Dataset(CLASSES, "a test", sizes, splits))
    (project / "corrections").mkdir()
    (project / "corrections/out.txt").write_text("t0\nv1\n")
    # t2 has this label already
    (project / "corrections/labels.csv").write_text("id,label\nt1,cat\nt2,dog\ns1,dog\n")
    edit("  exclude:\n", "  exclude: corrections/out.txt\n")
    edit("  relabel:\n", "  relabel: corrections/labels.csv\n")
    done = quick_stage("pipeline.preprocess", "--raw", "raw", "--arrays", "arrays")
    assert done.stdout == (
        "preprocess: 2 × 3 × 1 images, unit, 2 images excluded, 2 labels corrected -> arrays\n"
    ), done.stderr
    images, labels = arrays.load(project / "arrays/train")
    assert rows.ids(project / "arrays", "train") == ["t1", "t2", "t3", "v0"]
    assert np.allclose(images[:][:, 0, 0, 0], [0.2, 0.4, 0, 1])
    assert labels.tolist() == [0, 1, 1, 0]
    assert arrays.load(project / "arrays/test")[1].tolist() == [0, 1]
    assert read_json(project / "arrays/corrections.json") == {
        "excluded": {"train": 2, "test": 0}, "relabeled": {"train": 1, "test": 1}
    }  # fmt: skip
    (project / "corrections/out.txt").write_text("t1\nt0\nnone\n")
    done = quick_stage("pipeline.preprocess", "--raw", "raw", "--arrays", "arrays")
    assert done.stderr.startswith(
        "error: corrections/out.txt: line 3: id must be that of one image"
    )


def test_correcting_a_test_label_changes_no_input_of_training(project, edit, quick_stage):
    examples = [grey(0, 0, "a"), grey(255, 1, "b")]
    splits = {"train": examples, "test": [*examples, grey(51, 1, "c")]}
    parquet.write(project / "raw", parquet.Dataset(CLASSES, "t", {"train": 2, "test": 3}, splits))
    (project / "corrections").mkdir()
    (project / "corrections/labels.csv").write_text("id,label\nc,cat\n")
    hashes = []
    for setting in ("  relabel:\n", "  relabel: corrections/labels.csv\n"):
        edit("  relabel:\n", setting)
        done = quick_stage("pipeline.preprocess", "--raw", "raw", "--arrays", "arrays")
        assert done.returncode == 0, done.stderr
        files = sorted(path for path in (project / "arrays").rglob("*") if path.is_file())
        hashes.append({str(path.relative_to(project / "arrays")): sha256(path) for path in files})
    before, after = hashes
    # train depends on train/ and info.json
    changed = {name for name, value in before.items() if after[name] != value}
    assert changed == {"corrections.json", "test/labels.npy", "test/SHA256SUMS"}
