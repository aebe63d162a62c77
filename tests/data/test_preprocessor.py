"""Preprocessor: normalization of images, and the preprocessor stored in a model file."""

import io
import json
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.data.preprocessor import MEMBER, Preprocessor, read, store
from pipeline.ingest import images

UNIT = Preprocessor(["cat", "dog"], [2, 2, 3], "unit", [0.5, 0.0, 0.2], [0.25, 1.0, 0.1])
STANDARDIZED = Preprocessor(["cat", "dog"], [2, 2, 3], "standardize", UNIT.mean, UNIT.std)


def test_standardization_is_undone_for_display():
    visible = STANDARDIZED.visible(np.array([[[2.0, 0.3, -1.0]]]))
    assert visible == pytest.approx(np.array([[[1.0, 0.3, 0.1]]]))


def test_pixels_are_normalized_as_in_training():
    pixels = np.array([[[255, 0, 51]]], np.uint8)
    assert UNIT.normalized(pixels) == pytest.approx(np.array([[[1.0, 0.0, 0.2]]]))
    assert STANDARDIZED.normalized(pixels) == pytest.approx(np.array([[[2.0, 0.0, 0.0]]]))
    assert STANDARDIZED.normalized(pixels).dtype == np.float32


@pytest.mark.parametrize("preprocessor", [UNIT, STANDARDIZED], ids=["unit", "standardize"])
def test_every_pixel_is_restored_exactly(preprocessor):
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    restored = preprocessor.pixels(preprocessor.normalized(pixels))
    assert restored.dtype == np.uint8
    assert np.array_equal(restored, pixels)


def test_a_constant_channel_is_only_shifted():
    flat = Preprocessor(["a"], [1, 1, 1], "standardize", [0.2], [0.0])
    assert flat.normalized(np.array([[[255]]], np.uint8)) == pytest.approx(np.array([[[0.8]]]))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_an_image_of_any_size_and_mode_is_converted(mode):
    image = Image.new("RGB", (7, 5), "white").convert(mode)
    assert UNIT.apply(image) == pytest.approx(np.ones((2, 2, 3)), abs=0.01)
    grayscale = Preprocessor(["a"], [3, 4, 1], "unit", [0.5], [0.5])
    assert grayscale.apply(image) == pytest.approx(np.ones((3, 4, 1)), abs=0.01)


@pytest.fixture
def model_file(tmp_path):
    model = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Flatten()])
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def test_a_model_file_with_a_preprocessor_is_loaded_by_keras(model_file):
    store(model_file, STANDARDIZED)
    assert read(model_file) == STANDARDIZED
    assert keras.saving.load_model(model_file).input_shape == (None, 2, 2, 3)


def test_other_fields_of_info_are_ignored():
    info = {**vars(UNIT), "skipped": {"train": 1}}
    assert Preprocessor.of(info) == UNIT


def test_a_model_file_without_intensity_range_uses_all_16_bits(model_file):
    old = {k: v for k, v in vars(UNIT).items() if k not in ("intensity_range", "max_megapixels")}
    with zipfile.ZipFile(model_file, "a") as archive:
        archive.writestr(MEMBER, json.dumps(old))
    preprocessor = read(model_file)
    assert (preprocessor.intensity_range, preprocessor.max_megapixels) == (None, 250)
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 257, 0x8000, 0xFFFF]], np.uint16)).save(buffer, "PNG")
    # 2**15 / 257 = 127.502
    assert np.asarray(images.open_for(buffer.getvalue(), preprocessor)).tolist() == [
        [0, 1, 128, 255]
    ]


def test_a_file_without_preprocessor_is_refused(model_file, tmp_path):
    with pytest.raises(PipelineError, match=r"model\.keras: must be a \.keras file .* `dvc repro"):
        read(model_file)
    (tmp_path / "no.keras").write_text("no")
    with pytest.raises(PipelineError, match=r"no\.keras: must be .* Got File is not a zip file"):
        read(tmp_path / "no.keras")
    with pytest.raises(PipelineError, match=r"gone\.keras: no such file"):
        read(tmp_path / "gone.keras")
    with zipfile.ZipFile(model_file, "a") as archive:
        archive.writestr(MEMBER, "{}")  # as a later version might write
    with pytest.raises(PipelineError, match=r"model\.keras: must be .*missing 5 required"):
        read(model_file)
