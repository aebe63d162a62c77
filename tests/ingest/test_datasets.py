"""Data sets and download: the contents of data/raw, and errors of sources."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import download
from pipeline.core.errors import PipelineError
from pipeline.ingest import parquet
from pipeline.ingest.datasets import digits, folder
from tests.conftest import REPOSITORY, grey, png

CIFAR10 = Path(os.environ.get("TFDS_DATA_DIR", "")) / "cifar10" / "3.0.2"
needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.is_dir(), reason="TFDS_DATA_DIR has no cifar10/3.0.2"
)


def dataset(**splits):
    sizes = {name: len(examples) for name, examples in splits.items()}
    return parquet.Dataset(["cat", "dog"], "a test", sizes, splits)


def test_pandas_reads_raw_files(tmp_path):
    parquet.write(tmp_path, dataset(train=[grey(7, 1, "a/1.png"), grey(8, 0, "a/2.png")]))
    table = pd.read_parquet(tmp_path / "train.parquet")
    assert table["label"].tolist() == [1, 0]
    assert table["id"].tolist() == ["a/1.png", "a/2.png"]
    assert table["image"][0] == {"bytes": grey(7).image, "path": "a/1.png"}


def test_raw_files_have_class_names_in_hugging_face_metadata(tmp_path):
    parquet.write(tmp_path, dataset(train=[grey(7)]))
    metadata = pq.read_schema(tmp_path / "train.parquet").metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"_type": "ClassLabel", "names": ["cat", "dog"]}
    assert metadata[b"source"] == b"a test"
    assert parquet.describe(tmp_path / "train.parquet") == ("a test", ["cat", "dog"])
    assert parquet.labels(tmp_path / "train.parquet").tolist() == [0]


def test_equal_examples_give_equal_bytes_in_row_groups(tmp_path):
    examples = [grey(i % 256, 0, str(i)) for i in range(parquet.GROUP_ROWS + 3)]
    for name in ("one", "two"):
        parquet.write(tmp_path / name, dataset(train=examples))
    one, two = (tmp_path / name / "train.parquet" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert pq.read_metadata(one).num_row_groups == 2
    assert parquet.read_group(one, 1) == examples[parquet.GROUP_ROWS :]


def test_a_validation_split_follows_the_training_images_in_separate_row_groups(tmp_path):
    train, test = [grey(1, 0, "a"), grey(2, 1, "b")], [grey(3, 0, "c")]
    validation = [grey(4, 1, "d"), grey(5, 1, "e"), grey(6, 1, "f")]
    parquet.write(tmp_path, dataset(validation=validation, train=train, test=test))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.parquet", "train.parquet"]
    path = tmp_path / "train.parquet"
    assert [parquet.read_group(path, group) for group in (0, 1)] == [train, validation]
    assert [parquet.num_validation(tmp_path / f"{n}.parquet") for n in ("train", "test")] == [3, 0]
    with pytest.raises(PipelineError, match=r"a test: validation must contain images\. Got none"):
        parquet.write(tmp_path, dataset(train=train, validation=[], test=test))


def test_large_images_give_small_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP_BYTES", 100)
    examples = [parquet.Example(bytes(60), 0, str(i)) for i in range(5)]  # two exceed 100 bytes
    parquet.write(tmp_path, dataset(train=examples))
    path = tmp_path / "train.parquet"
    assert [len(parquet.read_group(path, group)) for group in range(3)] == [2, 2, 1]


@pytest.mark.parametrize(("examples", "message"), [
    ([grey(1, 2, "x.png")], r"train image x\.png: label must be in \[0, 2\)\. Got 2"),
    ([grey(1, -1, "x.png")], r"label must be in \[0, 2\)\. Got -1"),
    ([], r"a test: train must contain images\. Got none"),
])  # fmt: skip
def test_invalid_examples_leave_no_file(tmp_path, examples, message):
    with pytest.raises(PipelineError, match=message):
        parquet.write(tmp_path, dataset(train=examples))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [
    "a\x1b[31mred", "a\nb", "a\x9bb", "\u202egnp.exe", "</script><script>alert(1)", "<!--<script>",
    " ", "",
])  # fmt: skip
def test_class_names_that_are_unsafe_on_terminals_or_pages_are_refused(tmp_path, name):
    parts = {"train": [grey(1)]}
    unsafe = parquet.Dataset(["cat", name], "a test", {"train": 1}, parts)
    with pytest.raises(PipelineError, match=r"a test: class names must be text") as refused:
        parquet.write(tmp_path / "raw", unsafe)
    assert repr(name) in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    # letters of all scripts and names of real data sets are accepted
    for safe in (
        "/a/abbey",
        "tabby, tabby cat",
        "a <i> & $b$",
        "Käse",
        "می\u200cخواهم",
        "👩\u200d🔬",
    ):
        parquet.write(
            tmp_path / "raw", parquet.Dataset(["cat", safe], "a test", {"train": 1}, parts)
        )


def test_a_split_with_too_few_images_is_refused(tmp_path):
    short = parquet.Dataset(["cat", "dog"], "a test", {"train": 2}, {"train": [grey(1)]})
    with pytest.raises(PipelineError, match=r"a test: train must contain 2 images\. Got 1\. Dow"):
        parquet.write(tmp_path / "raw", short)
    assert list(tmp_path.iterdir()) == []


def test_digits_are_the_1797_of_scikit_learn_with_a_fixed_test_split():
    loaded = digits.load("digits", "", 0.5, 1)
    train, test = list(loaded.splits["train"]), list(loaded.splits["test"])
    assert (len(train), len(test)) == (1437, 360)  # a fifth of 1797, rounded up
    assert not {e.id for e in train} & {e.id for e in test}
    # the same ids for every test_share and test_seed
    assert [e.id for e in test[:3]] == ["digits_21", "digits_24", "digits_28"]
    # a fifth of 174 to 183 images of each class
    assert set(np.bincount([e.label for e in test])) <= {35, 36, 37}


def write_images(top: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((2, 2), number, np.uint8)))


def load_folder(top: Path, share: float = 0.2, seed: int = 0) -> parquet.Dataset:
    return folder.load("folder", str(top), share, seed)


def test_the_folders_in_train_are_the_classes(tmp_path):
    write_images(
        tmp_path, "train/dog/b.png", "train/cat/z.PNG", "train/cat/a.jpg", "test/dog/c.png",
        "test/cat/c.png",
    )  # fmt: skip
    (tmp_path / "train/cat/.DS_Store").write_text("not an image")
    write_images(tmp_path, "train/cat/.ipynb_checkpoints/a.png")
    loaded = load_folder(tmp_path)
    assert loaded.classes == ["cat", "dog"]
    assert loaded.source == f"folder {tmp_path} (2 hidden or system files left out)"
    assert loaded.sizes == {"train": 3, "test": 2}
    assert [(e.id, e.label) for e in loaded.splits["train"]] == [
        ("train/cat/a.jpg", 0), ("train/cat/z.PNG", 0), ("train/dog/b.png", 1),
    ]  # fmt: skip
    _, dog = loaded.splits["test"]
    assert dog.image == (tmp_path / "test/dog/c.png").read_bytes()


def test_every_file_in_a_class_folder_is_included_and_a_readme_outside_is_not(tmp_path):
    write_images(tmp_path, "test/cat/a.png", "test/dog/a.png", "train/dog/deep/er/b.png")
    for name in ("notes.txt", "empty", "photo.jpg.part"):
        (tmp_path / "train/cat").mkdir(exist_ok=True)
        (tmp_path / "train/cat" / name).touch()
    (tmp_path / "train/README.md").touch()
    assert [e.id for e in load_folder(tmp_path).splits["train"]] == [
        "train/cat/empty", "train/cat/notes.txt", "train/cat/photo.jpg.part",
        "train/dog/deep/er/b.png",
    ]  # fmt: skip


BOTH = ["train/cat/a.png", "train/dog/a.png", "test/cat/a.png", "test/dog/a.png"]


@pytest.mark.parametrize(("names", "message"), [
    (["test/cat/a.png"], r"train: no such folder\. Put images in .*train/<class>/"),
    (["train/.a.png", "test/cat/a.png"], r"train: must contain a folder of images for each cl"),
    ([".a.png"], r": must contain a folder of images for each class\. Got none"),
    ([*BOTH, "test/bird/a.png"], r"test/bird: no such class in .*train\. Classes: cat, dog$"),
    ([*BOTH, "train/a.png"], r"train/a\.png: must be in the folder of a class\. Move it"),
    (["cat/a.png", "dog/a.png", "a.JPG"], r"a\.JPG: must be in the folder of a class"),
    ([*BOTH, "train/no/.x"], r"train must contain images of every class\. Got none of no"),
    (BOTH[:3], r"test must contain images of every class\. Got none of dog\. Add some, or rem"),
    (["train/cat/a.png", "test/cat/a.png"], r"must have 2 or more classes\. Got only cat\. Add an"),
    (["train/cat/a.png"], r"must have 2 or more classes\. Got only cat"),
    (["Train/cat/a.png", "training/cat/a.png", "test/cat/a.png"],
     r": Train and training are both the train split\. Put their images into one"),
    ([*BOTH, "val/cat/a.png", "Valid/cat/a.png"], r": Valid and val are both the validation spl"),
    (["TEST/cat/a.png", "val/cat/a.png"], r"train: no such folder\. Put images in .*train/<cl"),
    ([*BOTH, "val/bird/a.png"], r"val/bird: no such class in .*train\. Classes: cat, dog$"),
    ([*BOTH[:2], "val/cat/a.png"], r"test must contain images of every class\. Got none of dog"),
    (["cat/a.png", "cat/b.png"], r"must have 2 or more classes\. Got only cat"),
    ([*(f"cat/{i}.png" for i in range(9)), "dog/a.png"],
     r"too few images of dog \(1 of 10\) to hold out 20 %\. Add some, move test_share towards"),
    # a fifth of 2 is 0.4, which is rounded to 0
    ([*(f"cat/{i}.png" for i in range(98)), "dog/a.png", "dog/b.png"],
     r"test must contain images of every class\. Got none of dog\. Add some, or remove"),
])  # fmt: skip
def test_invalid_folders_are_refused(tmp_path, names, message):
    write_images(tmp_path, *names)
    with pytest.raises(PipelineError, match=message):
        load_folder(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(
        PipelineError, match=r"none: no such folder\. Put images in .*none/<class>/"
    ):
        load_folder(tmp_path / "none")


def ids_of(loaded: parquet.Dataset) -> dict[str, list[str]]:
    return {split: [e.id for e in examples] for split, examples in loaded.splits.items()}


@pytest.mark.parametrize(("train", "validation", "test"), [
    ("train", "val", "test"), ("Train", "VALID", "Test"), ("training", "validation", "TESTING"),
])  # fmt: skip
def test_split_folders_have_their_usual_names_in_any_case(tmp_path, train, validation, test):
    write_images(tmp_path, *(f"{split}/{name}/a.png" for split in (train, test)
                             for name in ("cat", "dog")), f"{validation}/dog/v.png")  # fmt: skip
    loaded = load_folder(tmp_path)
    assert loaded.classes == ["cat", "dog"]
    assert loaded.source == f"folder {tmp_path}"
    assert list(loaded.sizes.items()) == [("train", 2), ("validation", 1), ("test", 2)]
    assert ids_of(loaded) == {
        "train": [f"{train}/cat/a.png", f"{train}/dog/a.png"],
        "validation": [f"{validation}/dog/v.png"],
        "test": [f"{test}/cat/a.png", f"{test}/dog/a.png"],
    }


def test_without_a_test_folder_the_validation_split_is_the_test_split(tmp_path):
    write_images(tmp_path, *BOTH[:2], "Val/cat/v.png", "Val/dog/w.png")
    loaded = load_folder(tmp_path)
    assert loaded.source == f"folder {tmp_path} (no {tmp_path}/test: Val is the test split)"
    assert ids_of(loaded) == {"train": BOTH[:2], "test": ["Val/cat/v.png", "Val/dog/w.png"]}


def test_other_folders_beside_splits_are_ignored_and_reported(tmp_path):
    write_images(tmp_path, *BOTH, "extra/cat/a.png", "test1/b.png")
    loaded = load_folder(tmp_path)
    assert loaded.source == f"folder {tmp_path} ({tmp_path}/extra, {tmp_path}/test1 not read)"
    assert loaded.sizes == {"train": 2, "test": 2}


@pytest.mark.parametrize(("names", "message"), [
    (["seg_train/cat/a.png", "seg_test/cat/a.png"], r"splits\. Got seg_test, seg_train\. Rename"),
    (["train1/cat.1.png", "test1/1.png"], r"not look like splits\. Got test1, train1\. Rename"),
    (["TrainingSet/cat/a.png", "dogs/a.png"], r"look like splits\. Got TrainingSet\. Ren"),
    (["cat/a.png", "dog/a.png", "val/cat/b.png", "val/dog/b.png"], r"splits\. Got val\. Rename"),
    (["a/cat/1.png", "a/dog/1.png", "b/Cat/1.png", "b/Dog/1.png"],
     r"must not contain the same folders, as splits do\. Got a and b with cat, dog\. Rename"),
    (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png", "dog/test/1.png"],
     r"must not contain the same folders, as splits do\. Got cat and dog with test, train\."),
    ([*(f"train/{fold}/{c}/1.png" for fold in ("1", "2") for c in ("cat", "dog")), *BOTH[2:]],
     r"train: class folders must not contain .* Got 1 and 2 with cat, dog\."),
])  # fmt: skip
def test_class_folders_that_look_like_splits_are_refused(tmp_path, names, message):
    write_images(tmp_path, *names)
    with pytest.raises(PipelineError, match=message):
        load_folder(tmp_path)


@pytest.mark.parametrize("names", [
    ["cat/session1/a.png", "cat/session2/a.png", "dog/session3/a.png"],
    ["cat/images/a.png", "dog/images/a.png"],
    ["cat/day/a.png", "cat/night/a.png", "cat/c.png", "dog/day/a.png", "dog/night/a.png"],
    ["valid/a.png", "invalid/a.png"],
    ["contest/a/1.png", "trainer/a/1.png"],
])  # fmt: skip
def test_images_in_subfolders_belong_to_the_class_above(tmp_path, names):
    write_images(tmp_path, *names, *(name.replace(".png", "2.png") for name in names))
    loaded = load_folder(tmp_path, share=0.5)
    assert set(loaded.classes) == {name.split("/")[0] for name in names}
    examples = [e for split in loaded.splits.values() for e in split]
    assert len(examples) == 2 * len(names)
    assert all(e.id.startswith(f"{loaded.classes[e.label]}/") for e in examples)


def test_system_files_are_left_out_and_counted(tmp_path):
    system_files = (
        "cat/@eaDir/a.png/SYNOFILE_THUMB_M.png", "cat/Thumbs.db", "cat/.ipynb_checkpoints/a.png",
        "@eaDir/cat/a.png", "__MACOSX/cat/._a.png", "$RECYCLE.BIN/b.png", "dog/more/@eaDir/b.png",
    )  # fmt: skip
    write_images(tmp_path, *BOTH, *(f"train/{name}" for name in system_files))
    loaded = load_folder(tmp_path)
    assert loaded.classes == ["cat", "dog"]
    assert loaded.source == f"folder {tmp_path} (7 hidden or system files left out)"
    assert ids_of(loaded)["train"] == ["train/cat/a.png", "train/dog/a.png"]


@pytest.mark.parametrize("top", ["", "train/"])
def test_without_a_test_folder_a_stratified_test_split_is_held_out(tmp_path, top):
    counts = {"cat": 40, "dog": 15, "fox": 5}
    write_images(tmp_path, *(f"{top}{c}/{i:02}.png" for c, n in counts.items() for i in range(n)))
    loaded = load_folder(tmp_path)
    train, test = ([(e.id, e.label) for e in loaded.splits[split]] for split in ("train", "test"))
    # a fifth of 40, 15 and 5
    assert np.bincount([label for _, label in test]).tolist() == [8, 3, 1]
    assert loaded.sizes == {"train": 48, "test": 12}
    assert train == sorted(train)
    files = [(f"{top}{c}/{i:02}.png", k) for k, c in enumerate(counts) for i in range(counts[c])]
    assert sorted(train + test) == files  # each is in exactly one split
    assert loaded.source == (
        f"folder {tmp_path} (no {tmp_path}/test: 20 % of the images held out as test split, seed 0)"
    )
    assert [e.id for e in load_folder(tmp_path).splits["test"]] == [id for id, _ in test]
    assert [e.id for e in load_folder(tmp_path, seed=1).splits["test"]] != [id for id, _ in test]
    assert load_folder(tmp_path, share=0.5).sizes == {"train": 30, "test": 30}


def test_unicode_forms_of_a_name_are_the_same_class(tmp_path):
    composed, decomposed = "K\u00e4se", "Ka\u0308se"
    write_images(tmp_path, f"train/{composed}/a.png", "train/Brot/b.png")
    write_images(tmp_path, f"test/{decomposed}/c.png", "test/Brot/d.png")
    loaded = folder.load("folder", str(tmp_path), 0.2, 0)
    assert loaded.classes == ["Brot", composed]
    assert [e.label for e in loaded.splits["test"]] == [0, 1]


def test_two_folders_with_equivalent_names_are_refused(tmp_path):
    write_images(tmp_path, "train/K\u00e4se/a.png", "train/Ka\u0308se/b.png", "train/Brot/c.png")
    if len(list((tmp_path / "train").iterdir())) < 3:
        pytest.skip("the file system treats both names as equal")
    with pytest.raises(
        PipelineError, match=r"train: two folders are named K\u00e4se, with differen"
    ):
        load_folder(tmp_path)


def test_pipes_and_links_to_folders_are_listed_without_blocking(tmp_path):
    write_images(tmp_path, *BOTH)
    write_images(tmp_path, "elsewhere/deep/a.png")
    os.mkfifo(tmp_path / "train/cat/pipe.png")
    (tmp_path / "train/cat/linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PipelineError, match=r"cannot read 2 files: .*linked, .*pipe\.png\. Fix"):
        load_folder(tmp_path)


def test_links_to_files_outside_are_read_and_never_written_through(project, edit, quick_stage):
    """DVC creates such links to its cache; others may come with a folder of images."""
    write_images(project, "outside/secret.png", "photos/train/cat/a.png", *(
        f"photos/{name}" for name in BOTH[1:]))  # fmt: skip
    (project / "photos/train/cat/b.png").symlink_to(project / "outside/secret.png")
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    # outputs that are links to the cache are replaced
    (project / "cache").mkdir()
    (project / "cache/train.parquet").write_text("last good")
    (project / "raw").mkdir()
    (project / "raw/train.parquet").symlink_to(project / "cache/train.parquet")
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    done = quick_stage("pipeline.download", "--raw", "raw")
    assert done.returncode == 0, done.stderr
    examples = parquet.read_group(project / "raw/train.parquet", 0)
    assert [e.id for e in examples] == ["train/cat/a.png", "train/cat/b.png", "train/dog/a.png"]
    changed = {p for p in project.rglob("*") if p.is_file() and p.read_bytes() != before.get(p)}
    assert changed == {project / "raw/train.parquet", project / "raw/test.parquet"}
    assert (project / "cache/train.parquet").read_text() == "last good"


def test_a_class_folder_with_a_terminal_code_in_its_name_is_reported_safely(
    project, edit, quick_stage
):
    write_images(project / "photos", *BOTH, "train/a\x1b[2Jb/a.png", "test/a\x1b[2Jb/a.png")
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    done = quick_stage("pipeline.download", "--raw", "raw")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: folder photos: class names must be text without control characters, `</` and "
        "`<!--`. Got 'a\\x1b[2Jb'. Rename them\n"
    )
    assert not (project / "raw").exists()


def test_unreadable_files_and_names_that_are_not_utf_8_are_listed(tmp_path):
    write_images(tmp_path, "train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "test/dog/d.png")
    for name in ("one.png", "two.png"):
        (tmp_path / "train/cat" / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(PipelineError, match=r"cannot read 2 files: .*one\.png, .*two\.png\. Fix"):
        folder.load("folder", str(tmp_path), 0.2, 0)
    for name in ("one.png", "two.png"):
        (tmp_path / "train/cat" / name).unlink()
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/train/cat/caf\xe9.png"))).write_bytes(b"")
    with pytest.raises(PipelineError, match=r"1 name must be UTF-8: b'.*caf\\xe9\.png'\. Rename"):
        folder.load("folder", str(tmp_path), 0.2, 0)


def test_download_of_a_folder(project, edit, stage):
    write_images(project / "photos", *BOTH, "train/cat/b.png")
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    done = stage("pipeline.download", "--raw", "raw")
    assert (
        done.stdout
        == "download: folder photos: 3 train, 2 test images, 2 classes (cat 3, dog 2) -> raw\n"
    )
    assert done.stderr == ""


def test_class_counts_have_a_bounded_length():
    labels = [np.array([0, 0, 1]), np.array([1, 1])]
    assert download.class_counts(["cat", "dog"], labels) == "cat 2, dog 3"
    names = [f"c{i:02}" for i in range(100)]
    # i + 1 images of class i, but 200 of c42
    labels = [np.repeat(np.arange(100), np.where(np.arange(100) == 42, 200, np.arange(100) + 1))]
    assert download.class_counts(names, labels) == (
        "c00 1, c01 2, c02 3, c03 4, c04 5, c05 6, c06 7, c07 8, c08 9, c09 10, and 90 more; "
        "smallest c00 1, largest c42 200"
    )


def test_a_validation_folder_is_the_validation_split_for_every_seed(project, edit, quick_stage):
    write_images(project / "photos", *(f"{split}/{c}/{i}.png" for c in ("cat", "dog") for split, n
                                       in (("train", 6), ("val", 2), ("test", 3))
                                       for i in range(n)))  # fmt: skip
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    done = quick_stage("pipeline.download", "--raw", "raw")
    assert done.stdout == (
        "download: folder photos: 12 train, 4 validation, 6 test images, "
        "2 classes (cat 11, dog 11) -> raw\n"
    ), done.stderr
    assert quick_stage("pipeline.preprocess", *"--raw raw --arrays arrays".split()).returncode == 0
    edit("seeds: [0]", "seeds: [0, 7]")
    done = quick_stage("pipeline.split", *"--arrays arrays --split splits --metrics m.json".split())
    assert "12 train, 4 validation rows (from the data set)" in done.stdout
    for seed in (0, 7):
        rows = np.load(project / f"splits/{seed}.npz")["validation"]
        assert rows.tolist() == [12, 13, 14, 15]


def test_the_held_out_test_split_depends_on_test_seed_and_not_on_seeds(project, edit, quick_stage):
    write_images(project / "photos", *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)))
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    done = quick_stage("pipeline.download", "--raw", "one")
    assert done.stdout == (
        "download: folder photos (no photos/test: 20 % of the images held out as test split, "
        "seed 0): 16 train, 4 test images, 2 classes (cat 10, dog 10) -> one\n"
    )
    edit("seeds: [0]", "seeds: [0, 7]")
    quick_stage("pipeline.download", "--raw", "two")
    edit("test_seed: 0", "test_seed: 7")
    quick_stage("pipeline.download", "--raw", "three")
    one, two, three = (
        (project / name / "test.parquet").read_bytes() for name in ("one", "two", "three")
    )
    assert one == two != three


def test_without_network_and_copy_an_error_follows_within_seconds(project, edit, stage):
    edit("dataset: digits", "dataset: cifar10")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        start = time.monotonic()
        done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="none", HTTPS_PROXY=proxy)
    assert time.monotonic() - start < 20  # 8 on an idle machine
    assert done.returncode == 1
    assert done.stderr == (
        "error: cifar10: www.cs.toronto.edu cannot be reached, and "
        f"{project}/none/cifar10/3.0.2 is not a prepared copy. "
        "Set TFDS_DATA_DIR to a prepared copy, or `dataset: digits` to run offline\n"
    )
    assert not (project / "raw").exists()


@pytest.mark.slow
def test_a_network_that_never_responds_is_an_error_within_seconds(project, edit, stage):
    edit("dataset: digits", "dataset: cifar10")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="none", HTTPS_PROXY=proxy)
    assert time.monotonic() - start < 20  # 8 on an idle machine
    assert done.stderr.startswith("error: cifar10: www.cs.toronto.edu cannot be reached, ")


@pytest.mark.slow
@pytest.mark.parametrize(("status", "message"), [(200, "checksum"), (404, "404")])
def test_a_wrong_download_is_an_error_in_one_line(project, edit, stage, status, message):
    """fashion_mnist is downloaded over plain HTTP, so a proxy can act as its server."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"something else")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    edit("dataset: digits", "dataset: fashion_mnist")
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        proxy = f"http://127.0.0.1:{server.server_port}"
        done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="tfds", HTTP_PROXY=proxy)
        server.shutdown()
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.match(
        rf"error: fashion_mnist: the download failed: .*{message}.* Set TFDS_DATA_DIR", last
    )
    assert "Traceback" not in done.stderr
    assert not (project / "raw").exists()


class Server(ThreadingHTTPServer):
    kind: str
    over: threading.Event


class Handler(BaseHTTPRequestHandler):
    """Acts as the server of fashion_mnist, and fails as `server.kind` says."""

    server: Server

    def do_HEAD(self):
        self.send_response(503 if self.server.kind == "out of service" else 200)
        self.end_headers()

    def do_GET(self):
        if self.server.kind == "never answers":
            self.server.over.wait()
            return
        self.send_response(503 if self.server.kind == "too busy" else 200)
        large = self.server.kind == "large"
        self.send_header("Content-Length", str(2**22 if large else 1000))
        self.end_headers()
        with suppress(ConnectionError):  # the client aborts when its disk is full
            self.wfile.write(bytes(2**22 if large else 100))
        self.wfile.flush()
        if self.server.kind == "falls silent":
            self.server.over.wait()

    def log_message(self, *_):
        pass


def test_a_data_set_larger_than_the_disk_is_an_error_in_one_line(project, edit, stage, mount):
    mount("size=1m")
    edit("dataset: digits", "dataset: fashion_mnist")
    with serving("large") as proxy:
        done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="disk", HTTP_PROXY=proxy)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: fashion_mnist: {project}/disk/fashion_mnist/3.0.1: [Errno 28] No space left on "
        "device. Free some space, or set TFDS_DATA_DIR to a folder on another disk"
    )
    assert "Traceback" not in done.stderr
    assert not (project / "raw").exists()


@contextmanager
def serving(kind: str) -> Iterator[str]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.kind, server.over = kind, threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.over.set()
        server.shutdown()


@pytest.mark.slow
def test_a_failing_server_is_an_error_in_one_line_in_time(project, stage):
    program = """if True:
        import os, sys
        from pipeline.ingest.datasets import tfds
        from pipeline.core.errors import PipelineError
        tfds.READ_TIMEOUT, tfds.MAX_RETRIES = 1, 1
        for proxy in sys.argv[1:]:
            os.environ["HTTP_PROXY"] = proxy
            try:
                tfds.load("fashion_mnist", "", 0.2, 0)
            except PipelineError as error:
                print(" ".join(str(error).split()))
    """
    (project / "program.py").write_text(program)
    kinds = ["out of service", "too busy", "never answers", "falls silent", "cuts the stream"]
    with ExitStack() as stack:
        proxies = [stack.enter_context(serving(kind)) for kind in kinds]
        done = stage("program", *proxies, TFDS_DATA_DIR="tfds")
    # TFDS prints other lines
    lines = [line for line in done.stdout.splitlines() if line.startswith("fashion_mnist: ")]
    assert len(lines) == 5, done.stdout + done.stderr
    service, busy, never, silent, cut = lines
    assert re.match(
        r"fashion_mnist: fashion-mnist\.\S+ is out of service \(status 503\), and", service
    )
    for line, reason in ((busy, "503"), (never, "timed out"), (silent, "timed out"),
                         (cut, "IncompleteRead")):  # fmt: skip
        assert re.match(
            rf"fashion_mnist: the download failed: .*{reason}.* Set TFDS_DATA_DIR", line
        )
    assert not list(project.glob("tfds/fashion_mnist/*/*.tfrecord*"))


@pytest.mark.slow
def test_a_data_set_that_is_not_for_classification_is_refused(project, edit, stage):
    edit("dataset: digits", "dataset: titanic")
    done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="none")
    assert "error: titanic: must have an `image` and a `label`. Got age, boat" in done.stderr


PREPARE = """if True:
    import sys, numpy as np, tensorflow as tf, tensorflow_datasets as tfds
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(28, 28, 1), dtype=np.uint8),
        "label": tfds.features.ClassLabel(num_classes=10),
    })
    def rows(n):
        for i in range(n):
            yield {"image": np.full((28, 28, 1), i, np.uint8), "label": i % 10}
    def dataset(n):
        shape, label = tf.TensorSpec((28, 28, 1), tf.uint8), tf.TensorSpec((), tf.int64)
        signature = {"image": shape, "label": label}
        return tf.data.Dataset.from_generator(lambda: rows(n), output_signature=signature)
    three = {"train": 12, "validation": 11, "test": 10}
    for folder, name, config, version, parts in (
        ("whole", "mnist", None, "3.0.1", {"train": 12, "test": 10}),
        ("half", "mnist", None, "3.0.1", {"train": 50}),
        ("letters", "emnist", "letters", "3.1.0", three),
    ):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name, config=config, version=version, features=features, data_dir=folder,
            split_datasets={name: dataset(n) for name, n in parts.items()},
        )
"""


@pytest.mark.slow
def test_a_prepared_data_set_of_tfds_needs_no_network(project, edit, stage):
    """Small data sets written by TFDS: one has only a train split, one is a configuration."""
    edit("dataset: digits", "dataset: mnist")
    (project / "prepare.py").write_text(PREPARE)
    assert stage("prepare").returncode == 0
    done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="half")
    assert done.stdout.endswith(
        "mnist/3.0.1 (no test split: 20 % of the images held out as test split, seed 0): "
        "40 train, 10 test images, 10 classes (0 5, 1 5, 2 5, 3 5, 4 5, 5 5, 6 5, 7 5, 8 5, 9 5) "
        "-> raw\n"
    ), done.stderr
    test = parquet.read_group(project / "raw/test.parquet", 0)
    assert sorted(e.label for e in test) == list(range(10))
    done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="whole")
    assert "mnist/3.0.1: 12 train, 10 test images, 10 classes (0 3, 1 3, 2 2, 3" in done.stdout
    assert sorted(e.label for e in parquet.read_group(project / "raw/train.parquet", 0)) == sorted(
        i % 10 for i in range(12)
    )
    edit("dataset: mnist", "dataset: emnist/letters")
    done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="letters")
    assert done.stdout == (
        "download: TensorFlow Datasets emnist/letters/3.1.0: 12 train, 11 validation, 10 test "
        "images, 37 classes (0 5, 1 4, 2 3, 3 3, 4 3, 5 3, 6 3, 7 3, 8 3, 9 3, and 27 more; "
        "smallest 10 0, largest 0 5) -> raw\n"
    ), done.stderr


@pytest.mark.slow
def test_a_damaged_tfrecord_is_an_error_and_the_previous_files_stay(project, edit, stage):
    damage = """if True:
        import shutil
        from pathlib import Path
        from pipeline import download
        from pipeline.ingest import parquet
        from pipeline.ingest.datasets import tfds
        from pipeline.core.errors import PipelineError
        folder = Path("whole/mnist/3.0.1").absolute()
        intact = shutil.copytree(folder, "intact")
        def flip_bit(record):
            content = bytearray(record.read_bytes())
            content[len(content) // 2] ^= 1
            record.write_bytes(content)
        def truncate(record):
            record.write_bytes(record.read_bytes()[:-7])
        def empty(record):
            record.write_bytes(b"")
        for damage in (flip_bit, truncate, empty, Path.unlink):
            shutil.rmtree(folder)
            shutil.copytree(intact, folder)
            record, = folder.glob("*test.tfrecord*")
            damage(record)
            try:
                parquet.write(Path("raw"), tfds.load("mnist", "", 0.2, 0))
            except PipelineError as error:
                print(error)
    """
    (project / "program.py").write_text(f"{PREPARE}\n{damage}")
    (project / "raw").mkdir()
    (project / "raw/test.parquet").write_text("last good")
    done = stage("program", TFDS_DATA_DIR="whole")
    lines = [line for line in done.stdout.splitlines() if line.startswith("mnist: ")]
    assert len(lines) == 4, done.stdout + done.stderr
    for line in lines:
        assert re.match(
            rf"mnist: test of {project}/whole/mnist/3\.0\.1 is damaged: .*\. Delete that folder",
            line,
        )
    assert [path.name for path in project.glob("raw/*")] == ["test.parquet"]
    assert (project / "raw/test.parquet").read_text() == "last good"
    assert not (project / ".raw.part").exists()


@pytest.mark.slow
@needs_cifar10
def test_cifar10_is_read_from_the_prepared_copy(project, edit, stage):
    edit("dataset: digits", "dataset: cifar10")
    done = stage("pipeline.download", "--raw", "raw", HTTPS_PROXY="http://127.0.0.1:9")
    assert "cifar10/3.0.2: 50000 train, 10000 test images, 10 classes" in done.stdout, done.stderr
    first = parquet.read_group(project / "raw/train.parquet", 0)[0]
    assert (first.id, first.label, first.image[:4]) == ("train_16399", 1, b"\x89PNG")
    done = stage("pipeline.preprocess", "--raw", "raw", "--arrays", "arrays")
    assert done.returncode == 0, done.stderr
    info = json.loads((project / "arrays/info.json").read_text())
    # published: 0.4914, 0.4822, 0.4465 and 0.2470, 0.2435, 0.2616
    assert np.round(info["mean"], 4).tolist() == [0.4914, 0.4822, 0.4465]
    assert np.round(info["std"], 4).tolist() == [0.247, 0.2435, 0.2616]
    images = np.load(project / "arrays/train/images.npy", mmap_mode="r")
    assert (images.shape, images.dtype) == ((50000, 32, 32, 3), np.float32)


LOOK_ALIKES = """if True:
    import io, json, os, sys
    from pathlib import Path
    import numpy as np, tensorflow_datasets as tfds
    from pipeline.ingest import parquet
    from pipeline.ingest.datasets import tfds as ours
    from pipeline.core.errors import PipelineError

    YES, NO, PARTLY = [0, 1, 0, 1], [-1, -1], [0, -1]
    SETS = {
        "food101": {"train": YES, "validation": YES[:2]},
        "flowers": {"train": YES, "test": YES, "validation": YES[:2]},
        "i_naturalist": {"train": YES, "mini": YES, "val": YES[:2], "test": NO},
        "cars196": {"train": 5 * YES, "test": PARTLY},
        "unlabelled": {"train": NO, "test": YES},
        "unlabelled_alone": {"train": PARTLY},
        "unlabelled_validation": {"train": YES, "validation": NO, "test": YES},
        "many": {"train": 100 * YES, "test": 10 * YES},
        "riegeli": {"train": YES, "test": YES},
    }

    class Set(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SETS]

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "mask": tfds.features.Image(shape=(None, None, 3)),
                "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
                **({} if self.builder_config.name == "many" else {"id": tfds.features.Text()}),
            }))

        def _split_generators(self, manager):
            parts = SETS[self.builder_config.name]
            return {part: self._generate_examples(part, labels) for part, labels in parts.items()}

        def _generate_examples(self, part, labels):
            for number, label in enumerate(labels):
                yield number, {
                    "image": np.full((2, 1 + number % 2, 3), number % 256, np.uint8),
                    "label": label,
                    "mask": io.BytesIO(b"cannot be decoded"),
                    "boxes": number % 3 * [tfds.features.BBox(0.0, 0.0, 1.0, 1.0)],
                    **({} if self.builder_config.name == "many" else {"id": f"{part} {number}"}),
                }

    class Fetched(Set):
        \"\"\"Its default format is ArrayRecord.\"\"\"

        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="flowers")]

        def __init__(self, **options):
            super().__init__(**{"file_format": "array_record", **options})

    def load(name, copy):
        link = Path(os.environ["TFDS_DATA_DIR"])
        link.unlink(missing_ok=True)
        link.symlink_to(copy)
        try:
            loaded = ours.load(name, "", 0.2, 0)
            parquet.write(Path("raw", copy, name), loaded)
            return {"source": loaded.source, "sizes": loaded.sizes}
        except PipelineError as error:
            return {"error": str(error)}

    for name in SETS:
        tfds.builder(f"set/{name}", data_dir="tfrecord").download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=18 if name == "many" else 1)
        )
    tfds.builder("set/many", data_dir="array_record", file_format="array_record"
        ).download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=18))
    info = Path("tfrecord/set/riegeli/1.0.0/dataset_info.json")
    info.write_text(info.read_text().replace('"tfrecord"', '"riegeli"'))
    results = {name: load(f"set/{name}", "tfrecord") for name in SETS}
    results["array_record"] = load("set/many", "array_record")
    results["fetched"] = load("fetched/flowers", "none")
    record, = Path("array_record/set/many/1.0.0").glob("*train*-00003-*")
    content = bytearray(record.read_bytes())
    flipped = content.copy()
    flipped[len(flipped) // 2] ^= 1
    for damage, bytes in (("flipped", flipped), ("cut", content[:-7]), ("empty", b"")):
        record.write_bytes(bytes)
        results[damage] = load("set/many", "array_record")
    record.unlink()
    results["missing"] = load("set/many", "array_record")
    Path("results.json").write_text(json.dumps(results))
"""
one_group = pytest.mark.xdist_group("look_alikes")  # written once


@pytest.fixture(scope="module")
def look_alikes(tmp_path_factory) -> tuple[Path, dict]:
    """The folder and results of loading small data sets that TFDS has written."""
    pytest.importorskip("array_record", reason="TFDS installs it on Linux only")
    folder = tmp_path_factory.mktemp("look_alikes")
    for copy in ("tfrecord", "array_record", "none"):
        (folder / copy).mkdir()
    (folder / "program.py").write_text(LOOK_ALIKES)
    done = subprocess.run(
        [sys.executable, "-m", "program"], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TFDS_DATA_DIR": str(folder / "copy")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "results.json").read_text())


def ids(path: Path) -> list[str]:
    return [e.id for g in range(pq.read_metadata(path).num_row_groups)
            for e in parquet.read_group(path, g)]  # fmt: skip


@one_group
@pytest.mark.parametrize(("name", "note", "sizes"), [
    ("flowers", "", {"train": 4, "validation": 2, "test": 4}),
    ("food101", " (no test split: validation is the test split)", {"train": 4, "test": 2}),
    ("i_naturalist", " (no labelled test split: val is the test split)", {"train": 4, "test": 2}),
    # a fifth of 20
    ("cars196", " (no labelled test split: 20 % of the images held out as test split, seed 0)",
     {"train": 16, "test": 4}),
    ("unlabelled_validation", " (no labelled validation split)", {"train": 4, "test": 4}),
])  # fmt: skip
def test_labelled_splits_of_tfds_are_used_and_unlabelled_ones_ignored(
    look_alikes, name, note, sizes
):
    folder, results = look_alikes
    source = f"TensorFlow Datasets set/{name}/1.0.0{note}"
    assert results[name] == {"source": source, "sizes": sizes}
    parts = {part: ids(folder / f"raw/tfrecord/set/{name}/{part}.parquet")
             for part in ("train", "test")}  # fmt: skip
    origin = {part: {id.split()[0] for id in part_ids} for part, part_ids in parts.items()}
    tests = {"flowers": "test", "food101": "validation", "i_naturalist": "val", "cars196": "train",
             "unlabelled_validation": "test"}  # fmt: skip
    assert origin["test"] == {tests[name]}
    # train.parquet contains the validation split after the training images
    assert origin["train"] == ({"train", "validation"} if name == "flowers" else {"train"})
    assert not set(parts["train"]) & set(parts["test"])


@one_group
@pytest.mark.parametrize("name", ["unlabelled", "unlabelled_alone"])
def test_an_unlabelled_train_split_of_tfds_is_refused(look_alikes, name):
    folder, results = look_alikes
    assert results[name] == {
        "error": f"set/{name}: every image of train must have a label. Got -1. Choose another "
        "data set, or sort the images into class folders and use `dataset: folder`"
    }
    assert not (folder / f"raw/tfrecord/set/{name}").exists()


@one_group
def test_other_features_of_tfds_are_not_decoded(look_alikes):
    """Every data set has masks that cannot be decoded, and a varying number of boxes."""
    folder, _ = look_alikes
    path = folder / "raw/tfrecord/set/flowers/test.parquet"
    assert sorted(ids(path)) == ["test 0", "test 1", "test 2", "test 3"]
    sizes = {Image.open(io.BytesIO(e.image)).size for e in parquet.read_group(path, 0)}
    assert sizes == {(1, 2), (2, 2)}


@one_group
def test_array_record_and_tfrecord_give_the_same_bytes(look_alikes):
    """18 files of 22 or 23 rows: TFDS reads 16 rows each of 16 files in turn."""
    folder, results = look_alikes
    assert results["array_record"] == results["many"]
    assert results["many"]["sizes"] == {"train": 400, "test": 40}
    for part in ("train", "test"):
        one, two = (folder / f"raw/{copy}/set/many/{part}.parquet"
                    for copy in ("tfrecord", "array_record"))  # fmt: skip
        assert one.read_bytes() == two.read_bytes()
    assert ids(one)[0] == "set-test.tfrecord-00000-of-00018__0"


@one_group
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing"])
def test_a_damaged_array_record_is_an_error_in_one_line(look_alikes, damage):
    folder, results = look_alikes
    assert re.fullmatch(
        rf"set/many: train of {folder}/copy/set/many/1\.0\.0 is damaged: .+\. Delete that "
        "folder to download it again, or set TFDS_DATA_DIR to an intact copy",
        results[damage]["error"],
    )


@one_group
def test_tfds_prepares_data_sets_as_tfrecord(look_alikes):
    folder, results = look_alikes
    assert results["fetched"] == {
        "source": "TensorFlow Datasets fetched/flowers/1.0.0",
        "sizes": {"train": 4, "validation": 2, "test": 4},
    }
    prepared = folder / "none/fetched/flowers/1.0.0"
    assert len(list(prepared.glob("*.tfrecord-*"))) == 3
    assert not list(prepared.glob("*.array_record-*"))


@one_group
def test_an_unsupported_file_format_of_tfds_is_refused(look_alikes):
    folder, results = look_alikes
    assert results["riegeli"] == {
        "error": f"set/riegeli: files of {folder}/copy/set/riegeli/1.0.0 must be tfrecord or "
        "parquet or array_record here. Got riegeli. Set TFDS_DATA_DIR to another folder"
    }


def test_a_configuration_of_a_data_set_can_be_chosen(project, edit, stage):
    edit("dataset: digits", "dataset: emnist/letters")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="none", HTTPS_PROXY=proxy,
                     HTTP_PROXY=proxy)  # fmt: skip
    assert re.fullmatch(
        r"error: emnist/letters: \S+ cannot be reached, and "
        rf"{project}/none/emnist/letters/\S+ is not a prepared copy\. Set TFDS_DATA_DIR .*\n",
        done.stderr,
    )
