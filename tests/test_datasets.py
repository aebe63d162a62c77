"""Data sets and download: what lands in data/raw, and what is said when nothing can."""

import json
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline import raw
from pipeline.datasets import digits, folder
from pipeline.errors import PipelineError
from tests.conftest import grey, png

CIFAR10 = Path(os.environ.get("TFDS_DATA_DIR", "")) / "cifar10" / "3.0.2"
needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.is_dir(), reason="TFDS_DATA_DIR has no cifar10/3.0.2"
)


def dataset(**splits):
    sizes = {name: len(examples) for name, examples in splits.items()}
    return raw.Dataset(["cat", "dog"], "a test", sizes, splits)


def test_raw_files_are_read_by_pandas(tmp_path):
    raw.write(tmp_path, dataset(train=[grey(7, 1, "a/1.png"), grey(8, 0, "a/2.png")]))
    table = pd.read_parquet(tmp_path / "train.parquet")
    assert table["label"].tolist() == [1, 0]
    assert table["id"].tolist() == ["a/1.png", "a/2.png"]
    assert table["image"][0] == {"bytes": grey(7).image, "path": "a/1.png"}


def test_raw_files_keep_class_names_where_hugging_face_looks(tmp_path):
    raw.write(tmp_path, dataset(train=[grey(7)]))
    metadata = pq.read_schema(tmp_path / "train.parquet").metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"_type": "ClassLabel", "names": ["cat", "dog"]}
    assert metadata[b"source"] == b"a test"
    assert raw.classes(tmp_path / "train.parquet") == ["cat", "dog"]


def test_raw_files_are_byte_stable_and_read_in_groups(tmp_path):
    examples = [grey(i % 256, 0, str(i)) for i in range(raw.GROUP_ROWS + 3)]
    for name in ("one", "two"):
        raw.write(tmp_path / name, dataset(train=examples))
    one, two = (tmp_path / name / "train.parquet" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert pq.read_metadata(one).num_row_groups == 2
    assert raw.read_group(one, 1) == examples[raw.GROUP_ROWS :]


def test_large_images_make_small_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "GROUP_BYTES", 100)
    examples = [raw.Example(bytes(60), 0, str(i)) for i in range(5)]  # two pass 100 bytes
    raw.write(tmp_path, dataset(train=examples))
    path = tmp_path / "train.parquet"
    assert [len(raw.read_group(path, group)) for group in range(3)] == [2, 2, 1]


@pytest.mark.parametrize(("examples", "message"), [
    ([grey(1, 2, "x.png")], r"train image x\.png: label must be in \[0, 2\)\. Got 2"),
    ([grey(1, -1, "x.png")], r"label must be in \[0, 2\)\. Got -1"),
    ([], r"a test: train holds no images"),
])  # fmt: skip
def test_wrong_examples_leave_no_file(tmp_path, examples, message):
    with pytest.raises(PipelineError, match=message):
        raw.write(tmp_path, dataset(train=examples))
    assert list(tmp_path.iterdir()) == []


def test_digits_are_the_1797_of_scikit_learn_in_fixed_parts():
    loaded = digits.load("digits", "")
    train, test = list(loaded.splits["train"]), list(loaded.splits["test"])
    assert (len(train), len(test)) == (1437, 360)  # a fifth of 1797, rounded up
    assert not {e.id for e in train} & {e.id for e in test}
    # fixed: these ids, whatever the seed in params.yaml
    assert [e.id for e in test[:3]] == ["digits_21", "digits_24", "digits_28"]
    # 174 to 183 images a class in all, so 35 to 37 in a fifth
    assert set(np.bincount([e.label for e in test])) <= {35, 36, 37}


def write_images(top: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((2, 2), number, np.uint8)))


def test_folder_takes_classes_from_the_folders_of_train(tmp_path):
    write_images(
        tmp_path, "train/dog/b.png", "train/cat/z.PNG", "train/cat/a.jpg", "test/dog/c.png"
    )
    (tmp_path / "train/cat/.DS_Store").write_text("not an image")
    write_images(tmp_path, "train/cat/.ipynb_checkpoints/a.png")
    loaded = folder.load("folder", str(tmp_path))
    assert loaded.classes == ["cat", "dog"]
    assert loaded.sizes == {"train": 3, "test": 1}
    assert [(e.id, e.label) for e in loaded.splits["train"]] == [
        ("train/cat/a.jpg", 0), ("train/cat/z.PNG", 0), ("train/dog/b.png", 1),
    ]  # fmt: skip
    (only,) = loaded.splits["test"]
    assert only.image == (tmp_path / "test/dog/c.png").read_bytes()


@pytest.mark.parametrize(("names", "message"), [
    (["test/cat/a.png"], r"train: no such folder\. Put images in .*train/<class>/"),
    (["train/cat/a.png"], r"test: no such folder"),
    (["train/.a.png", "test/cat/a.png"], r"train: must hold a folder of images for each class"),
    (["train/cat/a.png", "test/dog/a.png"], r"test/dog: no such class in .*train\. Classes: cat"),
    (["train/cat/a.txt", "test/cat/a.png"], r"train/cat/a\.txt: must be an image"),
    (["train/a.png", "train/cat/a.png", "test/cat/a.png"], r"train/a\.png: is in no class"),
    (["train/cat/a.png", "train/no/.x", "test/cat/a.png"], r"train/no: must hold images\. Got"),
])  # fmt: skip
def test_wrong_folders_are_refused(tmp_path, names, message):
    write_images(tmp_path, *names)
    with pytest.raises(PipelineError, match=message):
        folder.load("folder", str(tmp_path))


def test_download_of_a_folder(project, edit, stage):
    write_images(project / "photos", "train/cat/a.png", "train/dog/a.png", "test/cat/b.png")
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    done = stage("pipeline.download", "--raw", "raw")
    assert done.stdout == "download: folder photos: 2 train, 1 test images, 2 classes -> raw\n"
    assert done.stderr == ""


def test_no_network_and_no_copy_is_one_line_within_ten_seconds(project, edit, stage):
    edit("dataset: digits", "dataset: cifar10")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        start = time.monotonic()
        done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="none", HTTPS_PROXY=proxy)
    assert time.monotonic() - start < 10
    assert done.returncode == 1
    assert done.stderr == (
        "error: cifar10: www.cs.toronto.edu cannot be reached, and "
        f"{project}/none/cifar10/3.0.2 is no prepared copy. "
        "Set TFDS_DATA_DIR to a prepared copy, or `dataset: digits` to run offline\n"
    )
    assert not (project / "raw").exists()


def test_a_network_that_never_answers_is_given_up_within_ten_seconds(project, edit, stage):
    edit("dataset: digits", "dataset: cifar10")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="none", HTTPS_PROXY=proxy)
    assert time.monotonic() - start < 10
    assert done.stderr.startswith("error: cifar10: www.cs.toronto.edu cannot be reached, ")


@pytest.mark.parametrize(("status", "message"), [(200, "checksum"), (404, "404")])
def test_a_download_that_is_not_the_data_set_is_one_line(project, edit, stage, status, message):
    """fashion_mnist is fetched over plain HTTP, so a proxy can answer in its server's place."""

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


def test_a_data_set_that_is_not_for_classification_is_refused(project, edit, stage):
    edit("dataset: digits", "dataset: titanic")
    done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="none")
    assert "error: titanic: must have an `image` and a `label`. It has age, boat" in done.stderr


def test_any_prepared_data_set_of_tfds_works_without_network(project, edit, stage):
    """A small `mnist` written by TFDS itself, with a train part only at first."""
    prepare = """if True:
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
        for folder, parts in (("whole", {"train": 12, "test": 10}), ("half", {"train": 12})):
            tfds.dataset_builders.store_as_tfds_dataset(
                name="mnist", version="3.0.1", features=features, data_dir=folder,
                split_datasets={name: dataset(n) for name, n in parts.items()},
            )
    """
    edit("dataset: digits", "dataset: mnist")
    (project / "prepare.py").write_text(prepare)
    assert stage("prepare").returncode == 0
    done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="half")
    assert "error: mnist: must have train and test splits. It has train, not test." in done.stderr
    done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="whole")
    assert done.stdout.endswith("mnist/3.0.1: 12 train, 10 test images, 10 classes -> raw\n")
    assert sorted(e.label for e in raw.read_group(project / "raw/train.parquet", 0)) == sorted(
        i % 10 for i in range(12)
    )


@needs_cifar10
def test_cifar10_comes_from_the_prepared_copy_as_it_is(project, edit, stage):
    edit("dataset: digits", "dataset: cifar10")
    done = stage("pipeline.download", "--raw", "raw", HTTPS_PROXY="http://127.0.0.1:9")
    assert "cifar10/3.0.2: 50000 train, 10000 test images, 10 classes" in done.stdout, done.stderr
    first = raw.read_group(project / "raw/train.parquet", 0)[0]
    assert (first.id, first.label, first.image[:4]) == ("train_16399", 1, b"\x89PNG")
    done = stage("pipeline.preprocess", "--raw", "raw", "--arrays", "arrays")
    assert done.returncode == 0, done.stderr
    info = json.loads((project / "arrays/info.json").read_text())
    # published: 0.4914, 0.4822, 0.4465 and 0.2470, 0.2435, 0.2616
    assert np.round(info["mean"], 4).tolist() == [0.4914, 0.4822, 0.4465]
    assert np.round(info["std"], 4).tolist() == [0.247, 0.2435, 0.2616]
    images = np.load(project / "arrays/train/images.npy", mmap_mode="r")
    assert (images.shape, images.dtype) == ((50000, 32, 32, 3), np.float32)
