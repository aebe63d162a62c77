"""Predict: a trained model classifies images without reading params.yaml."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from pipeline import download, evaluate, preprocess
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data import calibration
from pipeline.data.calibration import Calibration, Threshold
from pipeline.data.predictions import read_table
from pipeline.data.preprocessor import Preprocessor, store
from pipeline.tools import predict
from tests.conftest import REPOSITORY, png


def save_model(path: Path, dark: float = 2.0, **preprocessing: Any) -> None:
    """Save a model of 2×2 grey images; the logit of `bright` is the sum of the pixels."""
    images = keras.Input((2, 2, 1))
    dense = keras.layers.Dense(2)
    network = keras.Model(images, dense(keras.layers.Flatten()(images)))
    dense.set_weights([np.array([[0.0, 1.0]] * 4), np.array([dark, 0.0])])
    path.parent.mkdir(parents=True, exist_ok=True)
    network.save(path)
    settings = {"normalize": "unit", "mean": [0.5], "std": [0.25], **preprocessing}
    store(path, Preprocessor(["dark", "bright"], [2, 2, 1], **settings))


@pytest.fixture
def model(project):
    """A model whose logit of `dark` is 2."""
    save_model(project / "model.keras")
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


# softmax of four white pixels: e^4 / (e^4 + e^2)
WHITE = {"class": "bright", "probability": pytest.approx(0.880797, abs=1e-6)}
DARK = {"class": "dark", "probability": pytest.approx(0.119203, abs=1e-6)}


def test_classes_are_ranked_with_their_probabilities(model, capsys):
    (model / "white.png").write_bytes(white())
    rows = as_json(capsys, "white.png")
    assert rows == [{"file": "white.png", "predictions": [WHITE, DARK]}]
    assert sum(p["probability"] for p in rows[0]["predictions"]) == pytest.approx(1)
    assert as_json(capsys, "--top", "1", "white.png")[0]["predictions"] == [WHITE]


@pytest.mark.parametrize(("mode", "kind"), [
    ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("RGB", "JPEG"), ("RGBA", "WEBP"),
    ("CMYK", "JPEG"), ("YCbCr", "JPEG"),
])  # fmt: skip
def test_images_of_any_size_and_mode_are_classified(model, capsys, mode, kind):
    (model / "image").write_bytes(white(mode, (31, 17), kind))
    (row,) = as_json(capsys, "image")
    assert row["predictions"][0]["class"] == "bright"
    assert row["predictions"][0]["probability"] == pytest.approx(0.880797, abs=0.01)


def test_intensity_range_and_size_limit_are_those_of_training(model, capsys):
    preprocessor = Preprocessor(
        ["dark", "bright"], [2, 2, 1], "unit", [0.5], [0.25], [0, 4000], 0.01
    )
    network = keras.saving.load_model("model.keras")
    network.save("model.keras")  # removes the stored preprocessor
    store(model / "model.keras", preprocessor)
    # 4000 of 4000 is white and 4095 is clipped to it; in the full 16-bit range neither is white
    for number, value in enumerate((4000, 4095)):
        Image.fromarray(np.full((2, 2), value, np.uint16)).save(f"{number}.png")
    for row in as_json(capsys, "0.png", "1.png"):
        assert row["predictions"] == [WHITE, DARK]
    Image.new("L", (200, 60)).save("large.png")
    with pytest.raises(SystemExit, match="1"):
        predict.main(["--model", "model.keras", "large.png"])
    assert capsys.readouterr().err == (
        "error: large.png: has 0.012 megapixels, more than preprocess.max_megapixels: 0.01 "
        "(raise it, or shrink the image)\n"
    )


@pytest.mark.parametrize(("resize", "probability"), [("crop", 0.880797), ("pad", 0.5)])
def test_a_portrait_photo_is_resized_as_in_training(project, capsys, resize, probability):
    save_model(project / "model.keras", resize=resize)
    photo = np.full((8 if resize == "pad" else 16, 4), 255, np.uint8)
    if resize == "crop":
        photo[:4] = photo[12:] = 0  # cut off, so that four white pixels remain
    # a padded photo has two white and two black pixels: e^2 / (e^2 + e^2)
    (project / "photo.png").write_bytes(png(photo))
    (row,) = as_json(capsys, "photo.png")
    bright = {p["class"]: p["probability"] for p in row["predictions"]}["bright"]
    assert bright == pytest.approx(probability, abs=1e-6)


def test_probabilities_are_those_of_the_temperature_in_the_file(model, capsys):
    (model / "white.png").write_bytes(white())
    calibration.store(model / "model.keras", Calibration(temperature=4.0))
    # e^(4/4) / (e^(4/4) + e^(2/4))
    (row,) = as_json(capsys, "white.png")
    assert row["predictions"][0] == {
        "class": "bright", "probability": pytest.approx(0.622459, abs=1e-6)
    }  # fmt: skip


@pytest.fixture
def validated(model):
    """The model with results on 1,000 validation images; white is bright with 0.88, half is 0.5."""
    (model / "white.png").write_bytes(white())
    (model / "half.png").write_bytes(png(np.array([[0, 0], [255, 255]], np.uint8)))
    (model / "notes.txt").write_text("no image")
    rows = [Threshold(0.8, 500, 499), Threshold(0.5, 1000, 900)]
    calibration.store(model / "model.keras", Calibration(1.0, 1000, rows))
    return model


def predict_with(accuracy: str, *argv: str) -> None:
    predict.main(["--model", "model.keras", "--accuracy", accuracy, *argv])


def test_images_below_the_confidence_that_an_accuracy_needs_are_unsure(validated, capsys):
    # 499 of 500 show 98.6 %, at an error of 2.5 %
    predict_with("0.98", "white.png", "half.png")
    out, err = capsys.readouterr()
    assert "│ white.png │ bright │      0.8808 │ dark 0.1192                │" in out
    assert "│ half.png  │ unsure │      0.5000 │ dark 0.5000, bright 0.5000 │" in out
    assert out.endswith(
        "predict: 1 of 2 images classified, 1 unsure (probability below 0.8)\n"
        "predict: 500 of 1,000 validation images reach it, and 499 of those are correct: with 95 % "
        "confidence, at least 98 % of new images like them will be\n"
    )
    # 900 of 1,000 show 87.9 %, so no image is unsure
    predict_with("0.87", "white.png", "half.png")
    assert "predict: 2 of 2 images classified, 0 unsure" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        predict_with("0.98", "--json", "white.png", "half.png", "notes.txt")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("unsure") for row in rows] == [False, True, None]
    assert rows[0]["predictions"] == [WHITE, DARK]


def test_an_accuracy_that_the_validation_images_cannot_show_is_refused(validated):
    with pytest.raises(
        PipelineError,
        match=r"model\.keras: --accuracy must be at most 0\.988, the "
        r"highest that its 1,000 validation images can show\. Got 0\.99\. Lower",
    ):
        predict_with("0.99", "white.png")  # fmt: skip
    save_model(validated / "model.keras")
    with pytest.raises(PipelineError, match=r"model\.keras: .* without validation images, or by"):
        predict_with("0.5", "white.png")


@pytest.mark.parametrize(("argv", "message"), [
    ("--accuracy 99", r"--accuracy: must be in \(0, 1\), such as 0.95. Got 99"),
    ("--accuracy high", r"--accuracy: must be in \(0, 1\), such as 0.95. Got high"),
    ("--accuracy 0.9 --ensemble", "--accuracy: not allowed with argument --ensemble"),
])  # fmt: skip
def test_an_invalid_accuracy_is_refused(capsys, argv, message):
    with pytest.raises(SystemExit):
        predict.main([*argv.split(), "white.png"])
    assert re.search(message, capsys.readouterr().err)


@pytest.fixture
def ensemble(model, monkeypatch):
    """Two trainings of the champion, with logits of `dark` of 2 and 4; a third is not used."""
    monkeypatch.setattr(predict, "REPOSITORY", model)
    save_model(model / "models/mine/0.keras", dark=2.0)
    save_model(model / "models/mine/10.keras", dark=4.0)
    save_model(model / "models/mine/3.keras", dark=9.0)
    (model / "metrics/test").mkdir(parents=True)
    (model / "metrics/champion.json").write_text('{"model": "mine"}')
    trainings = [
        {"seed": seed, "sha256": sha256(model / f"models/mine/{seed}.keras")} for seed in (0, 10)
    ]
    (model / "metrics/test/mine.json").write_text(json.dumps({"seeds": trainings}))
    (model / "white.png").write_bytes(white())
    return model


def test_an_ensemble_averages_the_probabilities_of_all_trainings_of_the_champion(ensemble, capsys):
    predict.main(["--ensemble", "--json", "--seen", "seen", "white.png"])
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    # 0.880797 and 1/2, since both logits of the second training are 4
    assert row["predictions"] == [
        {"class": "bright", "probability": pytest.approx((0.880797 + 0.5) / 2, abs=1e-6)},
        {"class": "dark", "probability": pytest.approx((0.119203 + 0.5) / 2, abs=1e-6)},
    ]
    assert [path.name for path in (ensemble / "seen").iterdir()] == ["0001-white.png"]


@pytest.mark.parametrize(("missing", "message"), [
    ("metrics/champion.json", r"metrics/champion\.json: no such file\. Run `dvc repro`"),
    ("metrics/test/mine.json", r"metrics/test/mine\.json: no such file\. Run `dvc repro`"),
    ("models/mine/10.keras", r"mine/10\.keras: no such file\. Run `dvc pull` or `dvc repro`"),
])  # fmt: skip
def test_an_ensemble_without_all_its_files_is_refused(ensemble, missing, message):
    (ensemble / missing).unlink()
    with pytest.raises(PipelineError, match=message):
        predict.main(["--ensemble", "white.png"])


def test_an_ensemble_of_metrics_of_an_older_version_is_refused(ensemble):
    (ensemble / "metrics/test/mine.json").write_text('{"accuracy": 0.9, "answers": []}')
    with pytest.raises(PipelineError, match=r"mine\.json: must list the trainings of the model"):
        predict.main(["--ensemble", "white.png"])


def test_an_ensemble_with_a_file_that_was_not_evaluated_is_refused(ensemble):
    save_model(ensemble / "models/mine/10.keras", dark=5.0)
    with pytest.raises(
        PipelineError, match=r"10\.keras: not the file that was evaluated\. Run `dvc"
    ):
        predict.main(["--ensemble", "white.png"])


def test_an_ensemble_of_trainings_with_other_preprocessing_is_refused(ensemble):
    path, metrics = ensemble / "models/mine/10.keras", ensemble / "metrics/test/mine.json"
    before = sha256(path)
    save_model(path, normalize="standardize")
    metrics.write_text(metrics.read_text().replace(before, sha256(path)))
    with pytest.raises(PipelineError, match=r"mine: all trainings must have the same preproc"):
        predict.main(["--ensemble", "white.png"])


def test_an_ensemble_and_a_model_exclude_each_other(model, capsys):
    with pytest.raises(SystemExit):
        predict.main(["--ensemble", "--model", "model.keras", "white.png"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_folder_is_replaced_by_its_files_without_hidden_ones(model, capsys):
    for name in ("b.png", "a/c.png", "a/.hidden.png", ".git/d.png"):
        (model / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (model / "images" / name).write_bytes(white())
    rows = as_json(capsys, "images", "images/b.png")
    assert [row["file"] for row in rows] == ["images/a/c.png", "images/b.png", "images/b.png"]


def test_an_image_is_read_from_standard_input(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(white())))
    assert as_json(capsys, "-") == [{"file": "-", "predictions": [WHITE, DARK]}]


def test_images_of_several_batches_keep_their_order(model, capsys, monkeypatch):
    monkeypatch.setattr(predict, "batch_size", lambda shape: 2)
    levels = [0, 255, 128, 64, 255]
    for number, level in enumerate(levels):
        (model / f"{number}.png").write_bytes(png(np.full((2, 2), level, np.uint8)))
    rows = as_json(capsys, "--top", "1", *(f"{number}.png" for number in range(5)))
    # the sum of the four pixels exceeds 2 from level 128 on
    expected = ["dark", "bright", "bright", "dark", "bright"]
    assert [row["predictions"][0]["class"] for row in rows] == expected


def test_unreadable_files_are_reported_and_the_others_are_classified(model, quick_stage):
    (model / "a.png").write_bytes(white())
    (model / "b.txt").write_text("no image")
    (model / "c.png").write_bytes(white(size=(64, 64))[:70])
    Image.new("F", (2, 2)).save(model / "d.tiff")  # training refuses it too
    (model / "e.png").write_bytes(white())
    names = ["a.png", "b.txt", "c.png", "d.tiff", "e.png"]
    done = quick_stage("pipeline.tools.predict", "--model", "model.keras", "--json", *names)
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    assert errors[0] == "error: b.txt: is not an image, or has an unknown format"
    assert errors[1].startswith("error: c.png: is damaged (")
    assert errors[2:] == [
        "error: d.tiff: has pixels of 32 bits (mode F), whose values of black and white are not "
        "known: convert it to 8 or 16 bits, or train with preprocess.intensity_range"
    ]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in rows] == names
    assert [row.get("error", "")[:5] for row in rows] == ["", "is no", "is da", "has p", ""]
    assert rows[0]["predictions"] == rows[4]["predictions"] == [WHITE, DARK]


def test_images_are_written_as_the_model_sees_them_without_smoothing(model, capsys):
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


def test_a_broken_link_in_a_folder_is_reported(model, capsys):
    (model / "images").mkdir()
    (model / "images/a.png").symlink_to("nowhere")
    with pytest.raises(SystemExit, match="1"):
        predict.main(["--model", "model.keras", "images"])
    expected = "error: images/a.png: cannot be read (No such file or directory)\n"
    assert capsys.readouterr() == ("", expected)


def test_markup_and_control_codes_in_names_are_printed_as_text(model, capsys):
    name = "[red]a\x1b[31m.png"
    (model / name).write_bytes(white())
    predict.main(["--model", "model.keras", name])
    out, _ = capsys.readouterr()
    assert r"│ [red]a\x1b[31m.png │ bright │      0.8808 │ dark 0.1192 │" in out
    (model / "bad\x1b[31m.png").write_bytes(b"no")
    with pytest.raises(SystemExit, match="1"):
        predict.main(["--model", "model.keras", "bad\x1b[31m.png"])
    expected = "error: bad\\x1b[31m.png: is not an image, or has an unknown format\n"
    assert capsys.readouterr() == ("", expected)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGPIPE")
def test_a_closed_pipe_ends_it_without_a_message(model):
    (model / "white.png").write_bytes(white())
    argv = [sys.executable, "-m", "pipeline.tools.predict", "--model", "model.keras", "white.png"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, env={
        **os.environ, "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize(("argv", "message"), [
    ("gone.png", r"^gone\.png: no such file or folder\. Name another$"),
    ("--model models/gone.keras gone.png", r"^gone\.png: no such file or folder\. Name another$"),
    ("empty", r"empty: must hold images\. Got an empty folder"),
    ("--model gone.keras model.keras", r"gone\.keras: no such file\. Models: model\.keras$"),
    ("--model models/gone.keras model.keras",
     r"^models/gone\.keras: no such file\. Name another, or run `dvc repro`$"),
    ("--model params.yaml model.keras", r"params\.yaml: must be a \.keras file"),
])  # fmt: skip
def test_missing_files_and_models_are_refused(model, argv, message):
    (model / "empty").mkdir()
    with pytest.raises(PipelineError, match=message):
        predict.main(["--model", "model.keras", *argv.split()])


def test_if_there_is_no_champion_yet_the_pipeline_must_run_first(model, monkeypatch):
    monkeypatch.setattr(predict, "CHAMPION", model / "models/champion.keras")
    with pytest.raises(PipelineError, match=r"/champion\.keras: no such file\. Run `dvc repro`$"):
        predict.main(["model.keras"])


def test_an_unknown_backend_is_refused(model, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "abacus")
    with pytest.raises(PipelineError, match="KERAS_BACKEND: must be .* Got abacus"):
        predict.main(["--model", "model.keras", "model.keras"])


@pytest.mark.parametrize("top", ["0", "-1", "many"])
def test_a_number_of_classes_below_1_is_refused(model, capsys, top):
    with pytest.raises(SystemExit):
        predict.main(["--top", top, "model.keras"])
    assert f"argument --top: must be 1 or more. Got {top}" in capsys.readouterr().err


def test_the_default_model_does_not_depend_on_the_working_directory():
    assert predict.CHAMPION.parent.is_dir()
    assert predict.CHAMPION.name == "champion.keras"
    assert predict.CHAMPION.is_absolute()


def write_photos(top: Path) -> None:
    """Write colour noise in images of various sizes as SPLIT/CLASS/*.png."""
    random = np.random.default_rng(0)
    for name in ("train/blue", "train/red", "test/blue", "test/red"):
        (top / name).mkdir(parents=True)
        for number in range(12):
            height, width = random.integers(8, 40, 2)
            pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
            (top / name / f"{number}.png").write_bytes(png(pixels))


def test_predictions_equal_those_of_evaluate_after_params_have_changed(project, edit, capsys):
    write_photos(project / "photos")
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    edit("normalize: unit", "normalize: standardize")
    edit("image_size:", "image_size: [8, 6]")
    edit("resize: stretch", "resize: crop")
    edit("precision: auto\n  # true", "precision: float32\n  # true")  # under evaluate
    download.main("--raw raw".split())
    preprocess.main("--raw raw --arrays arrays".split())
    images = keras.Input((8, 6, 3))
    keras.utils.set_random_seed(0)
    network = keras.Model(images, keras.layers.Dense(2)(keras.layers.Flatten()(images)))
    (project / "models").mkdir()
    network.save(project / "models/0.keras")
    info = json.loads((project / "arrays/info.json").read_text())
    store(project / "models/0.keras", Preprocessor.of(info))
    (project / "split").mkdir()
    count = len(np.load(project / "arrays/train/labels.npy"))
    np.savez(project / "split/0.npz", train=np.arange(1), validation=np.arange(1, count))
    evaluate.main([
        "baseline", "--models", "models", "--arrays", "arrays", "--split", "split",
        "--metrics", "test.json", "--predictions", "predictions", "--confusion", "confusion.csv",
    ])  # fmt: skip
    (project / "models/0.keras").rename("model.keras")

    edit("normalize: standardize", "normalize: unit")
    edit("image_size: [8, 6]", "image_size: [64, 64]")
    edit("resize: crop", "resize: pad")
    capsys.readouterr()
    rows = as_json(capsys, "photos/test")
    table = read_table(project / "predictions", [0])
    assert set(table["predicted"]) == {"blue", "red"}
    assert [Path(row["file"]).parent.name for row in rows] == table["actual"].tolist()
    top = [row["predictions"][0] for row in rows]
    assert [prediction["class"] for prediction in top] == table["predicted"].tolist()
    confidence = [prediction["probability"] for prediction in top]
    assert confidence == pytest.approx(table["confidence"].tolist(), abs=2e-6)
