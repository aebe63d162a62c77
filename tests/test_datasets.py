"""Data sets and download: what lands in data/raw, and what is said when nothing can."""

import json
import os
import re
import socket
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
    assert raw.describe(tmp_path / "train.parquet") == ("a test", ["cat", "dog"])
    assert raw.labels(tmp_path / "train.parquet").tolist() == [0]


def test_raw_files_are_byte_stable_and_read_in_groups(tmp_path):
    examples = [grey(i % 256, 0, str(i)) for i in range(raw.GROUP_ROWS + 3)]
    for name in ("one", "two"):
        raw.write(tmp_path / name, dataset(train=examples))
    one, two = (tmp_path / name / "train.parquet" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert pq.read_metadata(one).num_row_groups == 2
    assert raw.read_group(one, 1) == examples[raw.GROUP_ROWS :]


def test_a_validation_split_follows_the_training_images_in_groups_of_its_own(tmp_path):
    train, test = [grey(1, 0, "a"), grey(2, 1, "b")], [grey(3, 0, "c")]
    validation = [grey(4, 1, "d"), grey(5, 1, "e"), grey(6, 1, "f")]
    raw.write(tmp_path, dataset(validation=validation, train=train, test=test))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.parquet", "train.parquet"]
    path = tmp_path / "train.parquet"
    assert [raw.read_group(path, group) for group in (0, 1)] == [train, validation]
    assert [raw.num_validation(tmp_path / f"{n}.parquet") for n in ("train", "test")] == [3, 0]
    with pytest.raises(PipelineError, match=r"a test: validation holds no images"):
        raw.write(tmp_path, dataset(train=train, validation=[], test=test))


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


@pytest.mark.parametrize("name", [
    "a\x1b[31mred", "a\nb", "a\x9bb", "\u202egnp.exe", "</script><script>alert(1)", "<!--<script>",
    " ", "",
])  # fmt: skip
def test_class_names_that_a_terminal_or_a_page_would_obey_are_refused(tmp_path, name):
    parts = {"train": [grey(1)]}
    unsafe = raw.Dataset(["cat", name], "a test", {"train": 1}, parts)
    with pytest.raises(PipelineError, match=r"a test: names of classes must be text") as refused:
        raw.write(tmp_path / "raw", unsafe)
    assert repr(name) in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    # the letters of every script, and what stands in real data sets, pass
    for good in (
        "/a/abbey",
        "tabby, tabby cat",
        "a <i> & $b$",
        "Käse",
        "می\u200cخواهم",
        "👩\u200d🔬",
    ):
        raw.write(tmp_path / "raw", raw.Dataset(["cat", good], "a test", {"train": 1}, parts))


def test_a_split_shorter_than_its_source_says_is_refused(tmp_path):
    short = raw.Dataset(["cat", "dog"], "a test", {"train": 2}, {"train": [grey(1)]})
    with pytest.raises(PipelineError, match=r"a test: train must hold 2 images\. Got 1\. Fetch"):
        raw.write(tmp_path / "raw", short)
    assert list(tmp_path.iterdir()) == []


def test_digits_are_the_1797_of_scikit_learn_in_fixed_parts():
    loaded = digits.load("digits", "", 0.5, 1)
    train, test = list(loaded.splits["train"]), list(loaded.splits["test"])
    assert (len(train), len(test)) == (1437, 360)  # a fifth of 1797, rounded up
    assert not {e.id for e in train} & {e.id for e in test}
    # fixed: these ids, whatever share and seeds are in params.yaml
    assert [e.id for e in test[:3]] == ["digits_21", "digits_24", "digits_28"]
    # 174 to 183 images a class in all, so 35 to 37 in a fifth
    assert set(np.bincount([e.label for e in test])) <= {35, 36, 37}


def write_images(top: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((2, 2), number, np.uint8)))


def load_folder(top: Path, share: float = 0.2, seed: int = 0) -> raw.Dataset:
    return folder.load("folder", str(top), share, seed)


def test_folder_takes_classes_from_the_folders_of_train(tmp_path):
    write_images(
        tmp_path, "train/dog/b.png", "train/cat/z.PNG", "train/cat/a.jpg", "test/dog/c.png",
        "test/cat/c.png",
    )  # fmt: skip
    (tmp_path / "train/cat/.DS_Store").write_text("not an image")
    write_images(tmp_path, "train/cat/.ipynb_checkpoints/a.png")
    loaded = load_folder(tmp_path)
    assert loaded.classes == ["cat", "dog"]
    assert loaded.source == f"folder {tmp_path}"
    assert loaded.sizes == {"train": 3, "test": 2}
    assert [(e.id, e.label) for e in loaded.splits["train"]] == [
        ("train/cat/a.jpg", 0), ("train/cat/z.PNG", 0), ("train/dog/b.png", 1),
    ]  # fmt: skip
    _, last = loaded.splits["test"]
    assert last.image == (tmp_path / "test/dog/c.png").read_bytes()


def test_whatever_lies_in_a_class_is_handed_on_and_a_readme_beside_is_not(tmp_path):
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
    (["train/.a.png", "test/cat/a.png"], r"train: must hold a folder of images for each class"),
    ([".a.png"], r": must hold a folder of images for each class\. Got none"),
    ([*BOTH, "test/bird/a.png"], r"test/bird: no such class in .*train\. Classes: cat, dog$"),
    ([*BOTH, "train/a.png"], r"train/a\.png: is in no class\. Move it into a folder of .*train"),
    (["cat/a.png", "dog/a.png", "a.JPG"], r"a\.JPG: is in no class"),
    ([*BOTH, "train/no/.x"], r"train must hold images of every class\. Got none of no\. Add"),
    (BOTH[:3], r"test must hold images of every class\. Got none of dog\. Add some, or remove"),
    (["train/cat/a.png", "test/cat/a.png"], r"must have 2 or more classes\. Got cat only\. Add an"),
    (["train/cat/a.png"], r"must have 2 or more classes\. Got cat only"),
    (["cat/a.png", "cat/b.png"], r"must have 2 or more classes\. Got cat only"),
    ([*(f"cat/{i}.png" for i in range(9)), "dog/a.png"],
     r"too few images of dog \(1\) to set 20 % apart as test part\. Add some, move test_share"),
    # a fifth of 2 is 0.4: rounded to none
    ([*(f"cat/{i}.png" for i in range(98)), "dog/a.png", "dog/b.png"],
     r"too few images of dog \(2\) to set 20 % apart"),
])  # fmt: skip
def test_wrong_folders_are_refused(tmp_path, names, message):
    write_images(tmp_path, *names)
    with pytest.raises(PipelineError, match=message):
        load_folder(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(
        PipelineError, match=r"none: no such folder\. Put images in .*none/<class>/"
    ):
        load_folder(tmp_path / "none")


@pytest.mark.parametrize("top", ["", "train/"])
def test_without_test_folder_a_stratified_part_is_set_apart(tmp_path, top):
    counts = {"cat": 40, "dog": 15, "fox": 5}
    write_images(tmp_path, *(f"{top}{c}/{i:02}.png" for c, n in counts.items() for i in range(n)))
    loaded = load_folder(tmp_path)
    train, test = ([(e.id, e.label) for e in loaded.splits[split]] for split in ("train", "test"))
    # a fifth of 40, 15 and 5
    assert np.bincount([label for _, label in test]).tolist() == [8, 3, 1]
    assert loaded.sizes == {"train": 48, "test": 12}
    assert train == sorted(train)
    every = [(f"{top}{c}/{i:02}.png", k) for k, c in enumerate(counts) for i in range(counts[c])]
    assert sorted(train + test) == every  # so none stands in both
    assert loaded.source == (
        f"folder {tmp_path} (no {tmp_path}/test: 20 % of the images set apart as test part, seed 0)"
    )
    assert [e.id for e in load_folder(tmp_path).splits["test"]] == [id for id, _ in test]
    assert [e.id for e in load_folder(tmp_path, seed=1).splits["test"]] != [id for id, _ in test]
    assert load_folder(tmp_path, share=0.5).sizes == {"train": 30, "test": 30}


def test_a_class_is_one_however_its_letters_are_encoded(tmp_path):
    composed, decomposed = "K\u00e4se", "Ka\u0308se"
    write_images(tmp_path, f"train/{composed}/a.png", "train/Brot/b.png")
    write_images(tmp_path, f"test/{decomposed}/c.png", "test/Brot/d.png")
    loaded = folder.load("folder", str(tmp_path), 0.2, 0)
    assert loaded.classes == ["Brot", composed]
    assert [e.label for e in loaded.splits["test"]] == [0, 1]


def test_two_folders_with_one_name_are_refused_and_none_is_lost(tmp_path):
    write_images(tmp_path, "train/K\u00e4se/a.png", "train/Ka\u0308se/b.png", "train/Brot/c.png")
    if len(list((tmp_path / "train").iterdir())) < 3:
        pytest.skip("a file system that takes both names for one")
    with pytest.raises(
        PipelineError, match=r"train: two folders are called K\u00e4se, in differen"
    ):
        load_folder(tmp_path)


def test_pipes_and_linked_folders_inside_a_class_are_listed_and_not_waited_for(tmp_path):
    write_images(tmp_path, *BOTH)
    write_images(tmp_path, "elsewhere/deep/a.png")
    os.mkfifo(tmp_path / "train/cat/pipe.png")
    (tmp_path / "train/cat/linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        PipelineError, match=r"2 files cannot be read: .*linked, .*pipe\.png\. Mend"
    ):
        load_folder(tmp_path)


def test_a_link_that_leads_out_of_the_folder_is_read_and_nothing_is_written_through_it(
    project, edit, stage
):
    """DVC makes such links itself, into its cache; a folder that came with some may lie."""
    write_images(project, "outside/secret.png", "photos/train/cat/a.png", *(
        f"photos/{name}" for name in BOTH[1:]))  # fmt: skip
    (project / "photos/train/cat/b.png").symlink_to(project / "outside/secret.png")
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    # outputs that are links too, as from a cache: they are replaced, not written through
    (project / "cache").mkdir()
    (project / "cache/train.parquet").write_text("last good")
    (project / "raw").mkdir()
    (project / "raw/train.parquet").symlink_to(project / "cache/train.parquet")
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    done = stage("pipeline.download", "--raw", "raw")
    assert done.returncode == 0, done.stderr
    examples = raw.read_group(project / "raw/train.parquet", 0)
    assert [e.id for e in examples] == ["train/cat/a.png", "train/cat/b.png", "train/dog/a.png"]
    changed = {p for p in project.rglob("*") if p.is_file() and p.read_bytes() != before.get(p)}
    assert changed == {project / "raw/train.parquet", project / "raw/test.parquet"}
    assert (project / "cache/train.parquet").read_text() == "last good"


def test_a_class_folder_with_a_terminal_code_in_its_name_is_one_harmless_line(project, edit, stage):
    write_images(project / "photos", *BOTH, "train/a\x1b[2Jb/a.png", "test/a\x1b[2Jb/a.png")
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    done = stage("pipeline.download", "--raw", "raw")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: folder photos: names of classes must be text without control characters, `</` and "
        "`<!--`. Got 'a\\x1b[2Jb'. Rename them\n"
    )
    assert not (project / "raw").exists()


def test_files_that_cannot_be_read_and_names_that_are_no_text_are_listed(tmp_path):
    write_images(tmp_path, "train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "test/dog/d.png")
    for name in ("one.png", "two.png"):
        (tmp_path / "train/cat" / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(PipelineError, match=r"2 files cannot be read: .*one\.png, .*two\.png\. Me"):
        folder.load("folder", str(tmp_path), 0.2, 0)
    for name in ("one.png", "two.png"):
        (tmp_path / "train/cat" / name).unlink()
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/train/cat/caf\xe9.png"))).write_bytes(b"")
    with pytest.raises(PipelineError, match=r"1 names must be UTF-8: b'.*caf\\xe9\.png'\. Rename"):
        folder.load("folder", str(tmp_path), 0.2, 0)


def test_download_of_a_folder(project, edit, stage):
    write_images(project / "photos", *BOTH, "train/cat/b.png")
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    done = stage("pipeline.download", "--raw", "raw")
    assert done.stdout == "download: folder photos: 3 train, 2 test images, 2 classes -> raw\n"
    assert done.stderr == ""


def test_the_part_set_apart_is_told_and_does_not_move_with_seed(project, edit, stage):
    write_images(project / "photos", *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)))
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    done = stage("pipeline.download", "--raw", "one")
    assert done.stdout == (
        "download: folder photos (no photos/test: 20 % of the images set apart as test part, "
        "seed 0): 16 train, 4 test images, 2 classes -> one\n"
    )
    edit("seed: 0", "seed: 7")
    stage("pipeline.download", "--raw", "two")
    edit("test_seed: 0", "test_seed: 7")
    stage("pipeline.download", "--raw", "three")
    one, two, three = (
        (project / name / "test.parquet").read_bytes() for name in ("one", "two", "three")
    )
    assert one == two != three


def test_no_network_and_no_copy_is_one_line_within_seconds(project, edit, stage):
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
        f"{project}/none/cifar10/3.0.2 is no prepared copy. "
        "Set TFDS_DATA_DIR to a prepared copy, or `dataset: digits` to run offline\n"
    )
    assert not (project / "raw").exists()


def test_a_network_that_never_answers_is_given_up_within_seconds(project, edit, stage):
    edit("dataset: digits", "dataset: cifar10")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="none", HTTPS_PROXY=proxy)
    assert time.monotonic() - start < 20  # 8 on an idle machine
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


class Server(ThreadingHTTPServer):
    kind: str
    over: threading.Event


class Handler(BaseHTTPRequestHandler):
    """Answers in the place of fashion_mnist's own server, as the server's kind says."""

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
        with suppress(ConnectionError):  # of who has no space for more
            self.wfile.write(bytes(2**22 if large else 100))
        self.wfile.flush()
        if self.server.kind == "falls silent":
            self.server.over.wait()

    def log_message(self, *_):
        pass


def test_a_data_set_larger_than_the_disk_is_one_line(project, edit, stage, mount):
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


def test_a_server_that_is_busy_hangs_or_cuts_the_stream_is_one_line_in_time(project, stage):
    program = """if True:
        import os, sys
        from pipeline.datasets import tfds
        from pipeline.errors import PipelineError
        tfds.SECONDS_OF_SILENCE, tfds.RETRIES = 1, 1
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
    # among what TFDS prints itself
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


def test_a_data_set_that_is_not_for_classification_is_refused(project, edit, stage):
    edit("dataset: digits", "dataset: titanic")
    done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="none")
    assert "error: titanic: must have an `image` and a `label`. It has age, boat" in done.stderr


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
    for folder, parts in (("whole", {"train": 12, "test": 10}), ("half", {"train": 50})):
        tfds.dataset_builders.store_as_tfds_dataset(
            name="mnist", version="3.0.1", features=features, data_dir=folder,
            split_datasets={name: dataset(n) for name, n in parts.items()},
        )
"""


@pytest.mark.slow
def test_any_prepared_data_set_of_tfds_works_without_network(project, edit, stage):
    """A small `mnist` written by TFDS itself, once with a train part only."""
    edit("dataset: digits", "dataset: mnist")
    (project / "prepare.py").write_text(PREPARE)
    assert stage("prepare").returncode == 0
    done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="half")
    assert done.stdout.endswith(
        "mnist/3.0.1 (no test split: 20 % of the images set apart as test part, seed 0): "
        "40 train, 10 test images, 10 classes -> raw\n"
    ), done.stderr
    test = raw.read_group(project / "raw/test.parquet", 0)
    assert sorted(e.label for e in test) == list(range(10))
    done = stage("pipeline.download", "--raw", "raw", TFDS_DATA_DIR="whole")
    assert done.stdout.endswith("mnist/3.0.1: 12 train, 10 test images, 10 classes -> raw\n")
    assert sorted(e.label for e in raw.read_group(project / "raw/train.parquet", 0)) == sorted(
        i % 10 for i in range(12)
    )


@pytest.mark.slow
def test_a_damaged_tfrecord_is_one_line_and_the_last_good_files_stay(project, edit, stage):
    damage = """if True:
        import shutil
        from pathlib import Path
        from pipeline import raw
        from pipeline.datasets import tfds
        from pipeline.errors import PipelineError
        folder = Path("whole/mnist/3.0.1").absolute()
        kept = shutil.copytree(folder, "kept")
        def flipped(record):
            content = bytearray(record.read_bytes())
            content[len(content) // 2] ^= 1
            record.write_bytes(content)
        def cut(record):
            record.write_bytes(record.read_bytes()[:-7])
        def empty(record):
            record.write_bytes(b"")
        for damage in (flipped, cut, empty, Path.unlink):
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
            record, = folder.glob("*test.tfrecord*")
            damage(record)
            try:
                raw.write(Path("raw"), tfds.load("mnist", "", 0.2, 0))
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
            rf"mnist: test of {project}/whole/mnist/3\.0\.1 is damaged: .*\. Delete that folder, ",
            line,
        )
    assert [path.name for path in project.glob("raw/*")] == ["test.parquet"]
    assert (project / "raw/test.parquet").read_text() == "last good"
    assert not (project / ".raw.part").exists()


@pytest.mark.slow
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
