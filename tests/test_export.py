"""Export: the same predictions without Keras, from raw pixels."""

import ast
import dataclasses
import json
import os
import re
import sys
import zipfile
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import ExifTags, Image, ImageOps

from pipeline import export
from pipeline.architectures import pretrained
from pipeline.config.schema import Activation, Model
from pipeline.core.errors import PipelineError
from pipeline.data import calibration
from pipeline.data.calibration import Calibration
from pipeline.data.preprocessor import Preprocessor, store
from pipeline.tools.predict import predict_files
from pipeline.training import building
from tests.conftest import EXPORT, REPOSITORY, png, write_arrays

CLASSES = ["Ελλάδα", "bright, white"]
PREPROCESSOR = Preprocessor(CLASSES, [2, 2, 1], "standardize", [0.5], [0.25])
BLACK, WHITE = np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 255, np.uint8)


def save(folder: Path, model: keras.Model, preprocessor: Preprocessor = PREPROCESSOR) -> None:
    """Save a model of 2×2 grayscale images, and 300 test images: half black, half white."""
    model.save(folder / "champion.keras")
    store(folder / "champion.keras", preprocessor)
    labels = np.arange(300) % 2
    images = PREPROCESSOR.normalized(np.stack([BLACK, WHITE])[labels])
    write_arrays(folder / "arrays/test", images, labels)
    (folder / "arrays/info.json").write_text(json.dumps({**vars(preprocessor), "skipped": {}}))


@pytest.fixture
def champion(project):
    """A project with a model whose logits are 2 and the sum of the pixels."""
    images = keras.Input((2, 2, 1))
    dense = keras.layers.Dense(2)
    model = keras.Model(images, dense(keras.layers.Flatten()(images)))
    dense.set_weights([np.array([[0.0, 1.0]] * 4), np.array([2.0, 0.0])])
    save(project, model)
    return project


# standardized, black is -2 and white 2: logits (2, -8) and (2, 8); 1 / (1 + e^10), 1 / (1 + e^6)
PROBABILITIES = np.array([[0.9999546, 0.0000454], [0.0024726, 0.9975274]])


def test_both_formats_take_raw_pixels_and_contain_the_class_names(champion, capsys):
    export.main(EXPORT)
    expected = "export: onnx, litert: agree with Keras on 256 test images -> export\n"
    assert capsys.readouterr() == (expected, "")
    images = np.stack([BLACK, WHITE])

    session = onnxruntime.InferenceSession(champion / "export/champion.onnx")
    (probabilities,) = session.run(["probabilities"], {"images": images})
    assert probabilities == pytest.approx(PROBABILITIES, abs=1e-6)
    assert session.get_inputs()[0].shape == ["n", "h", "w", 1]
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES

    runner = Interpreter(model_path=str(champion / "export/champion.tflite")).get_signature_runner()
    assert runner(images=images)["probabilities"] == pytest.approx(PROBABILITIES, abs=1e-6)
    with zipfile.ZipFile(champion / "export/champion.tflite") as archive:
        assert archive.read("labels.txt").decode().splitlines() == CLASSES
        assert "intensity_range.json" not in archive.namelist()

    metrics = json.loads((champion / "export.json").read_text())
    assert (metrics["images"], metrics["enlarged"]) == (256, 32)
    for name, file in (("onnx", "champion.onnx"), ("litert", "champion.tflite")):
        assert 0 <= metrics[name]["largest_difference"] < 1e-6
        assert metrics[name]["agreement"] == 1
        assert metrics[name]["bytes"] == (champion / "export" / file).stat().st_size


def test_the_intensity_range_of_16_bit_images_is_in_both_files(champion):
    model = keras.saving.load_model(champion / "champion.keras")
    save(champion, model, dataclasses.replace(PREPROCESSOR, intensity_range=[0.0, 4095.0]))
    export.main(EXPORT)
    session = onnxruntime.InferenceSession(champion / "export/champion.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["intensity_range"]) == [0, 4095]
    assert json.loads(metadata["classes"]) == CLASSES
    with zipfile.ZipFile(champion / "export/champion.tflite") as archive:
        assert json.loads(archive.read("intensity_range.json")) == [0, 4095]


def test_both_formats_give_the_probabilities_of_the_temperature(champion):
    calibration.store(champion / "champion.keras", Calibration(temperature=4.0))
    export.main(EXPORT)
    metrics = json.loads((champion / "export.json").read_text())
    images = np.stack([BLACK, WHITE])
    for name, file in (("onnx", "champion.onnx"), ("litert", "champion.tflite")):
        probabilities = export.FORMATS[name].load(champion / "export" / file)(images)
        # 1 / (1 + e^(10 / 4)) and 1 / (1 + e^(6 / 4))
        assert probabilities[0, 1] == pytest.approx(0.0758582, abs=1e-6)
        assert probabilities[1, 0] == pytest.approx(0.1824255, abs=1e-6)
        assert metrics[name]["agreement"] == 1


@pytest.fixture
def photographer(champion):
    """Models of the lower half's brightness, and a photograph that is stored sideways."""
    model = keras.saving.load_model(champion / "champion.keras")
    weights = np.array([[0.0, -1.0], [0.0, -1.0], [0.0, 1.0], [0.0, 1.0]])
    model.layers[-1].set_weights([weights, np.array([2.0, 0.0])])
    save(champion, model)
    export.main(EXPORT)
    (champion / "models").mkdir()
    (champion / "export").rename(champion / "models/export")
    picture = np.full((30, 40, 3), 255, np.uint8)
    picture[:, :20] = 0  # the left half, which is the upper half of the photograph
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(picture).save(champion / "photo.jpg", quality=95, exif=exif)
    return champion


def test_the_lines_in_the_documentation_classify_a_photograph(photographer, capsys):
    for runtime in ("onnxruntime", "ai_edge_litert"):
        run_documented_lines(runtime, capsys)


def run_documented_lines(runtime: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs/using.md").read_text("utf-8")
    (program,) = re.findall(rf"```python\n((?:(?!```)[\s\S])*{runtime}[\s\S]*?)```", page)
    imports = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.ImportFrom)]
    modules = {str(node.module).split(".")[0] for node in imports}
    modules |= set(re.findall(r"^import (\w+)", program, re.M))
    assert modules <= {"json", "zipfile", "numpy", "PIL", runtime}
    capsys.readouterr()
    exec(compile(program, "docs/using.md", "exec"), {})
    # the filter of an upper pixel has 1/7 of its area on white, that of a lower one 6/7. These are
    # -10/7 and 10/7 standardized, so the logits are (2, 40/7). Not rotated, they would be (2, 0)
    name, probability = capsys.readouterr().out.rsplit(maxsplit=1)
    assert (name, float(probability)) == (CLASSES[1], pytest.approx(0.9762, abs=0.005))


def write_pictures(folder: Path, count: int) -> list[str]:
    """Write noisy pictures of four colored quarters, of many sizes and aspect ratios."""
    random = np.random.default_rng(0)
    files = []
    for number in range(count):
        height, width = np.exp(random.uniform(np.log(4), np.log(200), 2)).astype(int).tolist()
        colors = Image.fromarray(random.integers(0, 256, (2, 2, 3)).astype(np.uint8))
        quarters = np.asarray(colors.resize((width, height), Image.Resampling.NEAREST))
        noise = random.integers(-40, 41, quarters.shape)
        pixels = np.clip(quarters + noise, 0, 255).astype(np.uint8)
        files.append(str(folder / f"{number}.png"))
        Path(files[-1]).write_bytes(png(pixels))
    return files


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_images_of_many_sizes_get_the_probabilities_of_predict(resize, tmp_path):
    preprocessor = Preprocessor(
        ["a", "b", "c"], [24, 20, 3], "standardize", [0.5] * 3, [0.2, 0.3, 0.25], resize=resize
    )
    keras.utils.set_random_seed(0)
    network = keras.Sequential([
        keras.Input((24, 20, 3)), keras.layers.Conv2D(8, 3, 2, activation="relu"),
        keras.layers.Conv2D(16, 3, 2, activation="relu"), keras.layers.Flatten(),
        keras.layers.Dense(3),
    ])  # fmt: skip
    serving = export.serving_model(network, preprocessor, temperature=1.0)

    def probabilities(images: np.ndarray) -> np.ndarray:
        return keras.ops.convert_to_numpy(keras.ops.softmax(network(images)))

    files = write_pictures(tmp_path, 256)
    if photographs := os.environ.get("CATS_VS_DOGS_DIR"):
        files += map(str, sorted(Path(photographs, "test").rglob("*.jpg"))[:64])
    predictions = predict_files(files, preprocessor, [probabilities])
    expected = np.array([prediction.probabilities for prediction in predictions])
    assert expected.std(axis=0).min() > 0.05
    for name, format in export.FORMATS.items():
        format.write(serving, tmp_path / format.file, {"classes": preprocessor.classes})
        exported = format.load(tmp_path / format.file)
        images = (ImageOps.exif_transpose(Image.open(file)).convert("RGB") for file in files)
        received = np.concatenate([exported(np.asarray(image)[None]) for image in images])
        # measured: 0.002, where less than 1 % of the values differ by one level. For photographs,
        # which `predict` decodes at a reduced size, it is 0.003
        assert np.abs(received - expected).max() < 0.006, name


@pytest.mark.long
def test_repeated_exports_are_identical_whatever_the_training_backend(project, stage):
    images = keras.Input((2, 2, 1))
    x = images
    for _ in range(4):  # the converter merges equal weights, and keeps one at random
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 1, activation="relu")(x))
    network = keras.Model(images, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    save(project, network, dataclasses.replace(PREPROCESSOR, resize="pad"))  # the most branches
    exports = []
    for seed, backend in (("1", "tensorflow"), ("2", "jax")):
        done = stage("pipeline.export", *EXPORT, PYTHONHASHSEED=seed, KERAS_BACKEND=backend)
        assert (done.returncode, done.stderr) == (0, "")
        outputs = [project / "export.json", *sorted((project / "export").iterdir())]
        exports.append([path.read_bytes() for path in outputs])
    assert len(exports[0]) == 3
    assert exports[0] == exports[1]


def test_probabilities_are_compared_with_those_of_keras():
    expected = np.array([[0.5, 0.5], [0.2, 0.8]], np.float32)
    near = expected + np.array([[-0.00012, 0.00012], [0, 0]], np.float32)
    # the predicted class of the first image changes, where Keras had equal probabilities
    assert export.compare(near, expected) == {"largest_difference": 0.00012, "agreement": 0.5}
    for wrong in (expected + 0.002, expected * np.nan):
        with pytest.raises(export.NotWritten, match=r"from those of Keras by at most 0\.001\. Got"):
            export.compare(wrong, expected)


def test_a_missing_package_is_named_and_nothing_is_written(champion, monkeypatch):
    (champion / "export").mkdir()
    (champion / "export/champion.tflite").write_text("last good")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(PipelineError, match=r"litert needs a package: .* Run `uv sync --inexact`"):
        export.main(EXPORT)
    assert (champion / "export/champion.tflite").read_text() == "last good"
    assert not (champion / "export.json").exists()


def test_a_format_that_does_not_support_a_network_gives_the_reason(champion, stage):
    images = keras.Input((2, 2, 1))
    x = keras.ops.erfinv(0.1 * keras.layers.Flatten()(images))
    save(champion, keras.Model(images, keras.layers.Dense(2)(x)))
    (champion / "export").mkdir()
    (champion / "export/champion.onnx").write_text("of another network")
    done = stage("pipeline.export", *EXPORT)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split(", ")[0] for line in lines] == [
        "export: onnx: not written", "export: litert: not written"
    ]  # fmt: skip
    rows = json.loads((champion / "export.json").read_text())
    assert "Erfinv" in rows["onnx"]["not_written"][0]
    assert "Erfinv" in rows["litert"]["not_written"][0]
    assert list((champion / "export").iterdir()) == []


def test_if_one_format_fails_the_other_is_still_written(champion, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("unsupported operation")

    monkeypatch.setitem(export.FORMATS, "onnx", export.FORMATS["onnx"]._replace(write=fail))
    export.main(EXPORT)
    assert capsys.readouterr().out.splitlines() == [
        "export: onnx: not written, ValueError: unsupported operation",
        "export: litert: agree with Keras on 256 test images -> export",
    ]
    assert [path.name for path in (champion / "export").iterdir()] == ["champion.tflite"]
    rows = json.loads((champion / "export.json").read_text())
    assert rows["onnx"] == {"not_written": ["ValueError: unsupported operation"]}
    assert rows["litert"]["agreement"] == 1


def test_a_file_with_other_predictions_than_keras_is_removed(champion, monkeypatch):
    right = export.FORMATS["litert"]
    wrong = right._replace(load=lambda path: lambda images: 1 - right.load(path)(images))
    monkeypatch.setitem(export.FORMATS, "litert", wrong)
    export.main(EXPORT)
    assert [path.name for path in (champion / "export").iterdir()] == ["champion.onnx"]
    (reason,) = json.loads((champion / "export.json").read_text())["litert"]["not_written"]
    # for black, 0.99995 instead of 0.00005
    assert reason == (
        "probabilities must differ from those of Keras by at most 0.001. Got a difference of 1"
    )


# the smallest network of each family in keras.applications, and its smallest image size
FAMILIES = {
    "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "efficientnet_v2_b0": 32,
    "inception_resnet_v2": 75, "inception_v3": 75, "mobilenet": 32, "mobilenet_v2": 32,
    "mobilenet_v3_small": 32, "nasnet_mobile": 32, "resnet50": 32, "resnet50_v2": 32, "vgg16": 32,
    "xception": 71,
}  # fmt: skip


def export_network(network: keras.Model, folder: Path) -> dict[str, dict]:
    """Export a network of RGB images in both formats; return the rows of metrics/export.json."""
    shape = [*network.input_shape[1:]]
    preprocessor = Preprocessor(CLASSES, shape, "standardize", [0.5] * 3, [0.2, 0.3, 0.25])
    pixels = np.random.default_rng(0).integers(0, 256, (8, *shape)).astype(np.uint8)
    # random weights predict nearly the same for all images, which would hide errors: rescale them
    logits = network.predict(preprocessor.normalized(pixels), verbose=0)
    kernel, bias = network.layers[-1].get_weights()
    scale = logits.std(axis=0).mean()
    network.layers[-1].set_weights([kernel / scale, (bias - logits.mean(axis=0)) / scale])
    serving = export.serving_model(network, preprocessor, temperature=2.0)
    expected = serving.predict(pixels, verbose=0)["probabilities"]
    assert expected.std(axis=0).min() > 0.05
    return {
        name: export.write(name, folder, serving, preprocessor, [pixels], expected)
        for name in export.FORMATS
    }


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_can_be_exported(activation, tmp_path):
    network = keras.Sequential([
        keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, activation=activation),
        keras.layers.Flatten(), keras.layers.Dense(2),
    ])  # fmt: skip
    for name, row in export_network(network, tmp_path).items():
        assert row.get("largest_difference", 1) < 1e-5, (name, row)


def test_a_network_that_downscales_images_can_be_exported(tmp_path):
    model = Model(architecture="baseline", build={"downscale": 4})
    network = building.build(model, (35, 35, 3), 2, seed=0)  # 3 rows and columns are left out
    for name, row in export_network(network, tmp_path).items():
        assert row.get("largest_difference", 1) < 1e-5, (name, row)


@pytest.mark.long
@pytest.mark.parametrize("base", FAMILIES)
def test_a_network_of_every_family_can_be_exported(base, tmp_path):
    keras.utils.set_random_seed(0)
    shape = (FAMILIES[base], FAMILIES[base], 3)
    network = pretrained.build(shape, 2, base=base, weights=None)
    for name, row in export_network(network, tmp_path).items():
        assert "not_written" not in row, (name, row)


def test_every_family_of_networks_is_exported():
    # each family is a separate module
    modules = {
        function.__module__.rsplit(".", 1)[1]
        for name, function in vars(keras.applications).items()
        if name[0].isupper()
    }
    tested = {pretrained._find(base).__module__.rsplit(".", 1)[1] for base in FAMILIES}
    assert modules - tested == {"vgg19"}  # in the family of vgg16


def test_a_full_disk_is_not_reported_as_an_unsupported_network():
    with pytest.raises(OSError, match="No space left"), export.converter_errors("onnx"):
        raise OSError(28, "No space left on device")


def test_images_with_other_preprocessing_are_refused(champion):
    info = {**vars(PREPROCESSOR), "normalize": "unit"}
    (champion / "arrays/info.json").write_text(json.dumps(info))
    with pytest.raises(PipelineError, match=r"champion\.keras: must have the preprocessing of"):
        export.main(EXPORT)
