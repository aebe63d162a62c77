"""Preprocessor: normalization of images, and the preprocessor stored in a model file."""

import io
import json
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.data.preprocessor import MEMBER, Preprocessor, read, store, to_size
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


# rows or columns of an image that is twice as long as wide
BANDS = np.tile(np.repeat(np.array([[0], [100], [200]], np.uint8), [2, 4, 2], axis=0), 4)


def resized(pixels: np.ndarray, size: tuple[int, int], resize: str) -> np.ndarray:
    return np.asarray(to_size(Image.fromarray(pixels), size, resize))


@pytest.mark.parametrize("turn", [False, True], ids=["portrait", "landscape"])
def test_crop_cuts_out_the_center_and_pad_adds_black(turn):
    bands = BANDS.T if turn else BANDS
    assert np.array_equal(resized(bands, (4, 4), "crop"), np.full((4, 4), 100))
    black = np.zeros((8, 2), np.uint8)
    padded = np.hstack([black, BANDS, black])
    assert np.array_equal(resized(bands, (8, 8), "pad"), padded.T if turn else padded)
    for resize in ("stretch", "crop", "pad"):
        assert np.array_equal(resized(bands, bands.shape[::-1], resize), bands)


def test_stretch_keeps_every_band():
    stretched = resized(BANDS, (4, 4), "stretch")
    # the middle band covers half of the height; its neighbors are antialiased
    assert (stretched[0] < 50).all()
    assert (stretched[3] > 150).all()


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_very_narrow_images_are_resized(resize):
    assert resized(np.full((1000, 1), 255, np.uint8), (4, 4), resize).max() == 255


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


def test_a_model_file_of_an_older_version_uses_all_16_bits_and_stretches(model_file):
    newer = ("intensity_range", "max_megapixels", "resize")
    old = {key: value for key, value in vars(UNIT).items() if key not in newer}
    with zipfile.ZipFile(model_file, "a") as archive:
        archive.writestr(MEMBER, json.dumps(old))
    preprocessor = read(model_file)
    assert [getattr(preprocessor, key) for key in newer] == [None, 250, "stretch"]
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
