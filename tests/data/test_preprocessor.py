"""Preprocessing: what a model's file keeps of how its images were made."""

import io
import json
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.data import preprocessor
from pipeline.data.preprocessor import Preprocessor
from pipeline.ingest import images

UNIT = Preprocessor(["cat", "dog"], [2, 2, 3], "unit", [0.5, 0.0, 0.2], [0.25, 1.0, 0.1])
STANDARDIZED = Preprocessor(["cat", "dog"], [2, 2, 3], "standardize", UNIT.mean, UNIT.std)


def test_standardized_images_are_shown_as_they_were():
    shown = STANDARDIZED.visible(np.array([[[2.0, 0.3, -1.0]]]))
    assert shown == pytest.approx(np.array([[[1.0, 0.3, 0.1]]]))


def test_pixels_are_normalized_as_in_training():
    pixels = np.array([[[255, 0, 51]]], np.uint8)
    assert UNIT.normalized(pixels) == pytest.approx(np.array([[[1.0, 0.0, 0.2]]]))
    assert STANDARDIZED.normalized(pixels) == pytest.approx(np.array([[[2.0, 0.0, 0.0]]]))
    assert STANDARDIZED.normalized(pixels).dtype == np.float32


@pytest.mark.parametrize("kept", [UNIT, STANDARDIZED], ids=["unit", "standardize"])
def test_every_pixel_comes_back_as_it_was(kept):
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    again = kept.pixels(kept.normalized(pixels))
    assert again.dtype == np.uint8
    assert np.array_equal(again, pixels)


def test_a_channel_without_contrast_is_only_shifted():
    flat = Preprocessor(["a"], [1, 1, 1], "standardize", [0.2], [0.0])
    assert flat.normalized(np.array([[[255]]], np.uint8)) == pytest.approx(np.array([[[0.8]]]))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_an_image_of_any_size_and_mode_fits(mode):
    image = Image.new("RGB", (7, 5), "white").convert(mode)
    assert UNIT.apply(image) == pytest.approx(np.ones((2, 2, 3)), abs=0.01)
    grey = Preprocessor(["a"], [3, 4, 1], "unit", [0.5], [0.5])
    assert grey.apply(image) == pytest.approx(np.ones((3, 4, 1)), abs=0.01)


@pytest.fixture
def saved(tmp_path):
    model = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Flatten()])
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def test_it_is_kept_in_the_file_which_keras_loads_as_ever(saved):
    preprocessor.store(saved, STANDARDIZED)
    assert preprocessor.read(saved) == STANDARDIZED
    assert keras.saving.load_model(saved).input_shape == (None, 2, 2, 3)


def test_info_may_hold_more():
    info = {**vars(UNIT), "skipped": {"train": 1}}
    assert Preprocessor.of(info) == UNIT


def test_a_file_from_before_16_bits_had_a_range_takes_them_in_full(saved):
    old = {k: v for k, v in vars(UNIT).items() if k not in ("intensity_range", "max_megapixels")}
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr(preprocessor.MEMBER, json.dumps(old))
    kept = preprocessor.read(saved)
    assert (kept.intensity_range, kept.max_megapixels) == (None, 250)
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 257, 0x8000, 0xFFFF]], np.uint16)).save(buffer, "PNG")
    # 2**15 / 257 = 127.502
    assert np.asarray(images.open_for(buffer.getvalue(), kept)).tolist() == [[0, 1, 128, 255]]


def test_a_file_without_it_is_refused(saved, tmp_path):
    with pytest.raises(PipelineError, match=r"model\.keras: must be a \.keras file .* `dvc repro"):
        preprocessor.read(saved)
    (tmp_path / "no.keras").write_text("no")
    with pytest.raises(PipelineError, match=r"no\.keras: must be .* Got File is not a zip file"):
        preprocessor.read(tmp_path / "no.keras")
    with pytest.raises(PipelineError, match=r"gone\.keras: no such file"):
        preprocessor.read(tmp_path / "gone.keras")
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr(preprocessor.MEMBER, "{}")  # of a later version, say
    with pytest.raises(PipelineError, match=r"model\.keras: must be .*missing 5 required"):
        preprocessor.read(saved)
