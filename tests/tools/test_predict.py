"""Predict: what a trained model says of images, whatever params.yaml says by now."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline import download, evaluate, preprocess
from pipeline.core.errors import PipelineError
from pipeline.data import preprocessor
from pipeline.data.preprocessor import Preprocessor
from pipeline.tools import predict
from tests.conftest import REPOSITORY, png


@pytest.fixture
def model(project, monkeypatch):
    """A model of 2×2 grey images whose logit of `bright` is the sum of its pixels, of `dark` 2."""
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")  # which it would leave set
    images = keras.Input((2, 2, 1))
    dense = keras.layers.Dense(2)
    network = keras.Model(images, dense(keras.layers.Flatten()(images)))
    dense.set_weights([np.array([[0.0, 1.0]] * 4), np.array([2.0, 0.0])])
    network.save(project / "model.keras")
    kept = Preprocessor(["dark", "bright"], [2, 2, 1], "unit", [0.5], [0.25])
    preprocessor.store(project / "model.keras", kept)
    (project / "params.yaml").write_text("not: [valid")
    return project


def white(mode: str = "L", size: tuple[int, int] = (2, 2), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "white").convert(mode).save(buffer, kind)
    return buffer.getvalue()


def as_json(capsys, *argv: str) -> list[dict]:
    predict.main(["--model", "model.keras", "--json", *argv])
    out, err = capsys.readouterr()
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


# e^4 / (e^4 + e^2), of four white pixels
WHITE = {"class": "bright", "probability": pytest.approx(0.880797, abs=1e-6)}
DARK = {"class": "dark", "probability": pytest.approx(0.119203, abs=1e-6)}


def test_classes_are_ranked_with_their_probabilities(model, capsys):
    (model / "white.png").write_bytes(white())
    found = as_json(capsys, "white.png")
    assert found == [{"file": "white.png", "predictions": [WHITE, DARK]}]
    assert sum(p["probability"] for p in found[0]["predictions"]) == pytest.approx(1)
    assert as_json(capsys, "--top", "1", "white.png")[0]["predictions"] == [WHITE]


@pytest.mark.parametrize(("mode", "kind"), [
    ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("RGB", "JPEG"), ("RGBA", "WEBP"),
    ("CMYK", "JPEG"), ("YCbCr", "JPEG"),
])  # fmt: skip
def test_any_size_and_mode(model, capsys, mode, kind):
    (model / "image").write_bytes(white(mode, (31, 17), kind))
    (found,) = as_json(capsys, "image")
    assert found["predictions"][0]["class"] == "bright"
    assert found["predictions"][0]["probability"] == pytest.approx(0.880797, abs=0.01)


def test_16_bits_and_size_are_taken_as_in_training(model, capsys):
    kept = Preprocessor(["dark", "bright"], [2, 2, 1], "unit", [0.5], [0.25], [0, 4000], 0.01)
    network = keras.saving.load_model("model.keras")
    network.save("model.keras")  # without what it kept
    preprocessor.store(model / "model.keras", kept)
    # 4000 of 4000 is white, 4095 is clipped to it, and of 16 bits in full neither is
    for number, value in enumerate((4000, 4095)):
        Image.fromarray(np.full((2, 2), value, np.uint16)).save(f"{number}.png")
    for found in as_json(capsys, "0.png", "1.png"):
        assert found["predictions"] == [WHITE, DARK]
    Image.new("L", (200, 60)).save("large.png")
    with pytest.raises(SystemExit, match="1"):
        predict.main(["--model", "model.keras", "large.png"])
    assert capsys.readouterr().err == (
        "error: large.png: has 0.012 megapixels, more than preprocess.max_megapixels: 0.01 "
        "(raise it, or shrink the image)\n"
    )


def test_a_folder_stands_for_what_is_below_it_and_not_hidden(model, capsys):
    for name in ("b.png", "a/c.png", "a/.hidden.png", ".git/d.png"):
        (model / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (model / "images" / name).write_bytes(white())
    found = as_json(capsys, "images", "images/b.png")
    assert [row["file"] for row in found] == ["images/a/c.png", "images/b.png", "images/b.png"]


def test_an_image_may_come_from_standard_input(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(white())))
    assert as_json(capsys, "-") == [{"file": "-", "predictions": [WHITE, DARK]}]


def test_more_images_than_a_batch_keep_their_order(model, capsys, monkeypatch):
    monkeypatch.setattr(predict, "batch_size", lambda shape: 2)
    levels = [0, 255, 128, 64, 255]
    for number, level in enumerate(levels):
        (model / f"{number}.png").write_bytes(png(np.full((2, 2), level, np.uint8)))
    found = as_json(capsys, "--top", "1", *(f"{number}.png" for number in range(5)))
    # the sum of the pixels is above 2 from 128 on
    expected = ["dark", "bright", "bright", "dark", "bright"]
    assert [row["predictions"][0]["class"] for row in found] == expected


def test_what_is_no_image_is_named_and_the_others_are_predicted(model, stage):
    (model / "a.png").write_bytes(white())
    (model / "b.txt").write_text("no image")
    (model / "c.png").write_bytes(white(size=(64, 64))[:70])
    Image.new("F", (2, 2)).save(model / "d.tiff")  # training refuses it too
    (model / "e.png").write_bytes(white())
    names = ["a.png", "b.txt", "c.png", "d.tiff", "e.png"]
    done = stage("pipeline.tools.predict", "--model", "model.keras", "--json", *names)
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    assert errors[0] == "error: b.txt: is no image, or of an unknown kind"
    assert errors[1].startswith("error: c.png: is damaged (")
    assert errors[2:] == [
        "error: d.tiff: is read as numbers of 32 bits (mode F), whose black and white are not "
        "known: convert it to 8 or 16 bits, or train with preprocess.intensity_range"
    ]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in rows] == names
    assert [row.get("error", "")[:5] for row in rows] == ["", "is no", "is da", "is re", ""]
    assert rows[0]["predictions"] == rows[4]["predictions"] == [WHITE, DARK]


def test_what_the_model_sees_is_written_as_pictures_without_smoothing(model, capsys):
    pixels = np.array([[0, 255], [128, 64]], np.uint8)
    for name in ("a.png", "b/a.png"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(png(pixels))
    (model / "c.txt").write_text("no image")
    predict.main(["--model", "model.keras", "--json", "--seen", "seen/here", "a.png", "b"])
    with pytest.raises(SystemExit, match="1"):
        predict.main(["--model", "model.keras", "--seen", "seen/here", "c.txt"])
    written = sorted((model / "seen/here").iterdir())
    assert [path.name for path in written] == ["0001-a.png", "0002-a.png"]
    with Image.open(written[1]) as picture:
        assert np.array_equal(np.asarray(picture), np.kron(pixels, np.ones((128, 128), np.uint8)))


def test_a_link_to_nothing_in_a_folder_is_an_error_of_its_own(model, capsys):
    (model / "images").mkdir()
    (model / "images/a.png").symlink_to("nowhere")
    with pytest.raises(SystemExit, match="1"):
        predict.main(["--model", "model.keras", "images"])
    expected = "error: images/a.png: cannot be read (No such file or directory)\n"
    assert capsys.readouterr() == ("", expected)


def test_the_table_shows_names_and_does_not_obey_them(model, capsys):
    name = "[red]a\x1b[31m.png"
    (model / name).write_bytes(white())
    predict.main(["--model", "model.keras", name])
    out, _ = capsys.readouterr()
    assert r"│ [red]a\x1b[31m.png │ bright │      0.8808 │ dark 0.1192 │" in out
    (model / "bad\x1b[31m.png").write_bytes(b"no")
    with pytest.raises(SystemExit, match="1"):
        predict.main(["--model", "model.keras", "bad\x1b[31m.png"])
    expected = "error: bad\\x1b[31m.png: is no image, or of an unknown kind\n"
    assert capsys.readouterr() == ("", expected)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGPIPE")
def test_who_reads_no_further_ends_it_without_a_word(model):
    (model / "white.png").write_bytes(white())
    argv = [sys.executable, "-m", "pipeline.tools.predict", "--model", "model.keras", "white.png"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, env={
        **os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize(("argv", "message"), [
    ("gone.png", r"gone\.png: no such file or folder"),
    ("empty", r"empty: must hold images\. Got an empty folder"),
    ("--model gone.keras model.keras", r"gone\.keras: no such file\. Models: model\.keras$"),
    ("--model models/gone.keras model.keras", r"gone\.keras: no such file\. Run `dvc repro`$"),
    ("--model params.yaml model.keras", r"params\.yaml: must be a \.keras file"),
])  # fmt: skip
def test_what_is_not_there_is_said_before_keras_is_loaded(model, argv, message):
    (model / "empty").mkdir()
    with pytest.raises(PipelineError, match=message):
        predict.main(["--model", "model.keras", *argv.split()])


def test_an_engine_that_is_not_installed_is_refused(model, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "abacus")
    with pytest.raises(PipelineError, match="KERAS_BACKEND: must be .* Got abacus"):
        predict.main(["--model", "model.keras", "model.keras"])


@pytest.mark.parametrize("top", ["0", "-1", "many"])
def test_no_classes_at_all_is_refused(model, capsys, top):
    with pytest.raises(SystemExit):
        predict.main(["--top", top, "model.keras"])
    assert f"argument --top: must be 1 or more. Got {top}" in capsys.readouterr().err


def test_the_champion_of_this_repository_is_found_from_any_working_directory():
    assert predict.CHAMPION.parent.is_dir()
    assert predict.CHAMPION.name == "champion.keras"
    assert predict.CHAMPION.is_absolute()


def write_photos(top: Path) -> None:
    """Write noise in colour, each image of a size of its own, as PART/CLASS/*."""
    random = np.random.default_rng(0)
    for name in ("train/blue", "train/red", "test/blue", "test/red"):
        (top / name).mkdir(parents=True)
        for number in range(12):
            height, width = random.integers(8, 40, 2)
            pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
            (top / name / f"{number}.png").write_bytes(png(pixels))


def test_test_images_are_answered_as_evaluate_did_though_params_have_changed(
    project, edit, capsys, monkeypatch
):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    write_photos(project / "photos")
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    edit("normalize: unit", "normalize: standardize")
    edit("image_size:", "image_size: [8, 6]")
    edit("precision: auto\n  # true", "precision: float32\n  # true")  # of evaluate
    download.main("--raw raw".split())
    preprocess.main("--raw raw --arrays arrays".split())
    images = keras.Input((8, 6, 3))
    keras.utils.set_random_seed(0)
    network = keras.Model(images, keras.layers.Dense(2)(keras.layers.Flatten()(images)))
    network.save(project / "model.keras")
    info = json.loads((project / "arrays/info.json").read_text())
    preprocessor.store(project / "model.keras", Preprocessor.of(info))
    argv = "--model model.keras --arrays arrays --metrics test.json --predictions predictions.csv"
    evaluate.main(argv.split())

    edit("normalize: standardize", "normalize: unit")
    edit("image_size: [8, 6]", "image_size: [64, 64]")
    capsys.readouterr()
    found = as_json(capsys, "photos/test")
    table = pd.read_csv(project / "predictions.csv")
    assert set(table["predicted"]) == {"blue", "red"}
    assert [Path(row["file"]).parent.name for row in found] == table["actual"].tolist()
    first = [row["predictions"][0] for row in found]
    assert [prediction["class"] for prediction in first] == table["predicted"].tolist()
    confidence = [prediction["probability"] for prediction in first]
    assert confidence == pytest.approx(table["confidence"].tolist(), abs=2e-6)
