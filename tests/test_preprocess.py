"""Preprocess: decoding, normalization, bad images and stored arrays."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
import sklearn.datasets
from PIL import Image, ImageChops

from pipeline import preprocess
from pipeline.config.schema import Preprocess
from pipeline.core.errors import PipelineError
from pipeline.data import arrays
from pipeline.data.preprocessor import Preprocessor
from pipeline.ingest import decoding, images, parquet
from pipeline.ingest.parquet import Example
from tests.conftest import REPOSITORY, grey, png, write_arrays

# a minimal test split, with one image of each class
TEST = [grey(0, 0), grey(255, 1)]


def prepare(
    top: Path,
    train: list[Example],
    test: list[Example] = TEST,
    validation: list[Example] | None = None,
    **options,
) -> dict:
    """Write raw data and preprocess it; return the contents of info.json."""
    splits = {"train": train, "test": test}
    if validation is not None:
        splits["validation"] = validation
    sizes = {split: len(examples) for split, examples in splits.items()}
    parquet.write(top / "raw", parquet.Dataset(["cat", "dog"], "a test", sizes, splits))
    return preprocess.preprocess(top / "raw", top / "arrays", settings(**options))


def settings(**options) -> Preprocess:
    defaults = {
        "normalize": "unit", "image_size": None, "resize": "stretch", "dtype": "float32",
        "on_bad_image": "error", "intensity_range": None, "max_megapixels": 250,
        "exclude": None, "relabel": None,
    }  # fmt: skip
    return Preprocess.model_validate({**defaults, **options})


def read(top: Path, split: str = "train") -> np.ndarray:
    """Return all images of a split, `(n, h, w, c)`."""
    return arrays.load(top / "arrays" / split)[0][:]


def test_unit_divides_by_255_and_grayscale_has_one_channel(tmp_path):
    info = prepare(tmp_path, [grey(0, 1), grey(255, 0)], [grey(51, 1), grey(51, 0)])
    images, labels = arrays.load(tmp_path / "arrays/train")
    assert (images.shape, len(images)) == ((2, 2, 3, 1), 2)
    assert images[:].tolist() == [[[[0.0]] * 3] * 2, [[[1.0]] * 3] * 2]
    assert (images[:].dtype, labels.dtype) == (np.float32, np.int64)
    assert labels.tolist() == [1, 0]
    assert np.allclose(read(tmp_path, "test"), 0.2)
    assert info == {
        "classes": ["cat", "dog"], "image_shape": [2, 3, 1], "normalize": "unit",
        "mean": [0.5], "std": [0.5], "intensity_range": None, "max_megapixels": 250,
        "resize": "stretch",
        "high_byte": {"train": 0, "test": 0}, "multi_frame": {"train": 0, "test": 0},
        "skipped": {"train": 0, "test": 0}, "validation": 0,
    }  # fmt: skip


def test_standardize_uses_only_the_training_images(tmp_path):
    test = [grey(255, 0), grey(255, 1)]
    prepare(tmp_path, [grey(0, 0), grey(255, 1)], test, normalize="standardize")
    # train: mean 0.5, standard deviation 0.5
    assert set(read(tmp_path).ravel().tolist()) == {-1.0, 1.0}
    assert set(read(tmp_path, "test").ravel().tolist()) == {1.0}


def test_standardize_is_per_channel_and_accepts_a_constant_channel(tmp_path):
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, :, 0] = 255  # red: half of the pixels; green: none; blue: all
    colour[..., 2] = 255
    both = [Example(png(colour), label, "a") for label in (0, 1)]
    prepare(tmp_path, both, both, normalize="standardize")
    image = read(tmp_path)[0]
    assert image[..., 0].tolist() == [[1.0, 1.0], [-1.0, -1.0]]
    assert image[..., 1:].tolist() == np.zeros((2, 2, 2)).tolist()


def test_statistics_are_exact():
    histogram = np.zeros((1, 256), np.int64)
    histogram[0, [0, 51, 255]] = 1, 2, 1  # 0, 0.2, 0.2, 1
    mean, std = preprocess.statistics(histogram)
    assert mean.tolist() == pytest.approx([0.35])
    # deviations 0.35, 0.15, 0.15, 0.65: squares 0.1225, 0.0225, 0.0225, 0.4225
    assert std.tolist() == pytest.approx([np.sqrt(0.59 / 4)])


def test_images_decoded_in_parallel_stay_in_order(tmp_path):
    count = 8 * parquet.GROUP_ROWS + 5  # nine groups: enough for worker processes
    prepare(tmp_path, [grey(i % 256, i % 2, str(i)) for i in range(count)])
    values = (np.arange(count) % 256).astype(np.float32)
    assert np.array_equal(read(tmp_path)[:, 0, 0, 0], values / np.float32(255))


def test_with_one_color_image_all_images_have_three_channels(tmp_path):
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 255
    test = [Example(png(red), 0, "red"), grey(0, 1)]
    info = prepare(tmp_path, [grey(255, 0), grey(0, 1)], test)
    assert info["image_shape"] == [2, 3, 3]
    assert read(tmp_path)[0].tolist() == [[[1.0] * 3] * 3] * 2
    assert read(tmp_path, "test")[0, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_images_are_resized_to_image_size(tmp_path):
    info = prepare(tmp_path, [grey(51), grey(51, 1, size=(9, 5))], image_size=[4, 6])
    assert info["image_shape"] == [4, 6, 1]
    assert np.allclose(read(tmp_path), 0.2)


@pytest.mark.parametrize(("resize", "share"), [("stretch", 1), ("crop", 1), ("pad", 0.5)])
def test_images_are_stretched_cropped_or_padded_and_info_says_which(tmp_path, resize, share):
    portrait, landscape = grey(255, size=(8, 4)), grey(255, 1, size=(4, 8))
    info = prepare(tmp_path, [portrait, landscape], image_size=[4, 4], resize=resize)
    assert info["resize"] == resize
    upright, wide = read(tmp_path)[..., 0]
    # half of a padded image is black: the left and right or the upper and lower quarter
    assert upright.mean() == wide.mean() == share
    assert np.array_equal(upright, wide.T)
    assert upright[:, 1:3].min() == 1


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_different_sizes_without_image_size_are_refused(tmp_path, on_bad_image):
    train = [grey(1), grey(1, 1, id="b.png", size=(9, 5))]
    with pytest.raises(
        PipelineError,
        match=r"b\.png: must have the size of the first image, 2×3 pixels\. Got 9×5\. Set pre",
    ):
        prepare(tmp_path, train, on_bad_image=on_bad_image)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]  # no incomplete output


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# (h, w) = (2, 4): the left half is the first colour, the right half the second
def halves(mode: str, left, right) -> Image.Image:
    image = Image.new(mode, (4, 2), left)
    image.paste(right, (2, 0, 4, 2))
    return image


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize(("encoded", "left", "right"), [
    (encode(halves("RGB", RED, BLUE), "PNG"), RED, BLUE),
    (encode(halves("RGB", RED, BLUE), "BMP"), RED, BLUE),
    (encode(halves("RGB", RED, BLUE), "WEBP", lossless=True), RED, BLUE),
    (encode(halves("L", 10, 200), "PNG"), (10,) * 3, (200,) * 3),
    (encode(halves("1", 0, 1), "PNG"), (0,) * 3, (255,) * 3),
    (encode(halves("LA", (10, 0), (200, 255)), "PNG"), (10,) * 3, (200,) * 3),
    # transparency is ignored
    (encode(halves("RGBA", (*RED, 255), (*BLUE, 128)), "PNG"), RED, BLUE),
    (encode(halves("RGB", RED, BLUE).quantize(2), "PNG"), RED, BLUE),
    (encode(halves("RGB", RED, BLUE).quantize(2), "GIF"), RED, BLUE),
    # magenta and yellow ink: red; cyan and magenta: blue
    (encode(halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), "TIFF"), RED, BLUE),
], ids="RGB BMP WebP grey bilevel grey+alpha RGBA palette GIF CMYK".split())  # fmt: skip
def test_every_mode_and_format_is_decoded(encoded, left, right):
    decoded = images.decode(images.open_image(encoded, 1), "x", (2, 4, 3), resize=None)
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == [[[*left]] * 2 + [[*right]] * 2] * 2


@pytest.mark.parametrize(("mode", "red", "blue"), [
    ("RGB", RED, BLUE), ("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)),
])  # fmt: skip
def test_jpeg_is_decoded_up_to_compression_loss(mode, red, blue):
    large = halves(mode, red, blue).resize((32, 16), Image.Resampling.NEAREST)
    encoded = encode(large, "JPEG", quality=95, subsampling=0)
    decoded = images.decode(images.open_image(encoded, 1), "x", (16, 32, 3), resize=None)
    assert np.abs(decoded[:, :16].astype(int) - RED).max() <= 3
    assert np.abs(decoded[:, 16:].astype(int) - BLUE).max() <= 3


@pytest.mark.parametrize(("kind", "options"), [
    ("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}),
    ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
])  # fmt: skip
def test_the_first_frame_of_animated_and_multi_page_files_is_used_and_counted(
    tmp_path, kind, options
):
    first, second = (halves("RGB", *colors) for colors in ((RED, BLUE), (BLUE, RED)))
    several = encode(first, kind, save_all=True, append_images=[second], **options)
    single = encode(first, kind, **options)
    for encoded, is_multi_frame in ((several, True), (single, False)):
        image = images.open_image(encoded, 1)
        assert image.info[images.MULTI_FRAME] == is_multi_frame
        decoded = images.decode(image, "x", (2, 4, 3), resize=None).astype(int)
        assert np.abs(decoded[:, :2] - RED).max() <= 3
        assert np.abs(decoded[:, 2:] - BLUE).max() <= 3
    train = [Example(several, 0, "a"), Example(single, 1, "b"), Example(several, 1, "c")]
    assert prepare(tmp_path, train, train[:2])["multi_frame"] == {"train": 2, "test": 1}


def test_photos_of_phones_with_a_preview_are_single_images():
    photo = halves("RGB", RED, BLUE).resize((32, 16))
    encoded = encode(photo, "MPO", save_all=True, append_images=[photo.resize((4, 2))])
    image = images.open_image(encoded, 1)
    assert (image.size, image.info[images.MULTI_FRAME]) == ((32, 16), False)


def test_heic_is_read_if_pi_heif_is_installed():
    pytest.importorskip("pi_heif")
    # 16×8 pixels, the left half red, the right half blue, written by pillow-heif
    encoded = (REPOSITORY / "tests/halves.heic").read_bytes()
    image = images.open_image(encoded, 1)
    assert (image.size, image.mode, image.info[images.MULTI_FRAME]) == ((16, 8), "RGB", False)
    pixels = np.asarray(image).astype(int)
    assert np.abs(pixels[:, :8] - RED).max() <= 3
    assert np.abs(pixels[:, 8:] - BLUE).max() <= 3
    with pytest.raises(images.BadImage, match="has 0.000128 megapixels, more than"):
        images.open_image(encoded, 0.0001)
    for damaged in (encoded[:100], encoded[:500]):
        with pytest.raises(images.BadImage, match="is damaged|is not an image"):
            images.open_image(damaged, 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("orientation", "expected"), [
    (1, [[1, 2, 3], [4, 5, 6]]),
    (3, [[6, 5, 4], [3, 2, 1]]),  # rotate by 180 degrees
    (6, [[4, 1], [5, 2], [6, 3]]),  # rotate by 90 degrees clockwise
    (8, [[3, 6], [2, 5], [1, 4]]),  # counterclockwise
])  # fmt: skip
def test_exif_orientation_is_applied(kind, orientation, expected):
    pixels = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    encoded = encode(pixels, kind, exif=with_orientation(orientation))
    assert np.asarray(images.open_image(encoded, 1)).tolist() == expected
    photo = encode(Image.new("RGB", (4, 2)), "JPEG", exif=with_orientation(orientation))
    assert images.open_image(photo, 1).size == ((4, 2) if orientation < 5 else (2, 4))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A generated image of 12 megapixels with shapes and texture of every size."""
    random = np.random.default_rng(0)
    photo = Image.new("RGB", (4000, 3000), (128,) * 3)
    for width, share in ((4, 0.5), (40, 0.2), (500, 0.1), (4000, 0.03)):
        size = (width, width * 3 // 4)
        noise = Image.frombytes("RGB", size, random.bytes(3 * size[0] * size[1]))
        layer = noise.point([round(share * (value - 128)) + 128 for value in range(256)] * 3)
        photo = ImageChops.add(photo, layer.resize(photo.size), offset=-128)
    return photo


@pytest.mark.parametrize(("mode", "orientation", "resize"), [
    ("RGB", 1, "stretch"), ("RGB", 6, "crop"), ("L", 8, "pad"), ("CMYK", 3, "crop"),
])  # fmt: skip
def test_large_jpegs_are_decoded_at_a_reduced_size_without_visible_difference(
    photo, mode, orientation, resize
):
    encoded = encode(photo.convert(mode), "JPEG", quality=90, exif=with_orientation(orientation))
    full, reduced = (images.open_image(encoded, 12, target) for target in (None, (224, 224)))
    # a half of 3000 is more than twice 224, and so is a quarter; an eighth is less
    size = (1000, 750) if orientation < 5 else (750, 1000)
    assert (full.size, reduced.size) == (tuple(4 * side for side in size), size)
    shape = (224, 224, 1 if mode == "L" else 3)
    expected, pixels = (
        images.decode(image, "x", shape, resize).astype(int) for image in (full, reduced)
    )
    difference = np.abs(expected - pixels)
    assert difference.max() <= 2
    assert difference.mean() < 0.2


@pytest.mark.parametrize(("size", "kind", "target", "expected"), [
    ((64, 64), "JPEG", (16, 16), (32, 32)),
    ((64, 64), "JPEG", (4, 4), (8, 8)),
    ((64, 64), "JPEG", (4, 16), (32, 32)),  # the longer side of the target counts
    ((64, 64), "JPEG", (17, 17), (64, 64)),  # a half is less than twice the target
    ((64, 62), "JPEG", (4, 4), (32, 31)),  # 62 is no multiple of 8 or 4
    ((64, 63), "JPEG", (4, 4), (64, 63)),
    ((64, 64), "JPEG", None, (64, 64)),
    ((64, 64), "PNG", (4, 4), (64, 64)),
])  # fmt: skip
def test_jpegs_are_reduced_to_at_least_twice_the_target_by_a_factor_of_both_sides(
    size, kind, target, expected
):
    assert images.open_image(encode(Image.new("RGB", size), kind), 1, target).size == expected


def test_predict_reads_a_large_jpeg_as_in_training(tmp_path, photo):
    encoded = encode(photo.resize((256, 192)), "JPEG")
    train = [Example(encoded, label, "large.jpg") for label in (0, 1)]
    info = prepare(tmp_path, train, train, image_size=[24, 24], resize="crop")
    preprocessor = Preprocessor.of(info)
    pixels = preprocessor.apply(images.open_for(encoded, preprocessor))
    assert np.array_equal(read(tmp_path)[0], pixels)
    assert images.open_for(encoded, preprocessor).size == (64, 48)
    info = prepare(tmp_path, train, train)
    assert info["image_shape"] == [192, 256, 3]  # not reduced without image_size


def ramp(low: int, high: int, kind: str = "PNG", dtype=np.uint16) -> bytes:
    """Encode an image (2, n) of all integers from `low` to `high`, ascending and descending."""
    values = np.arange(low, high + 1)
    return encode(Image.fromarray(np.stack([values, values[::-1]]).astype(dtype)), kind)


@pytest.mark.parametrize(("kind", "dtype"), [
    ("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", ">u2"), ("TIFF", np.int32),
    ("TIFF", np.float32),
])  # fmt: skip
def test_12_bits_in_16_keep_all_256_levels(tmp_path, kind, dtype):
    deep = ramp(0, 4095, kind, dtype)
    info = prepare(tmp_path, [Example(deep, 0, "a"), Example(deep, 1, "b")] * 2, [
        Example(deep, 0, "c"), Example(deep, 1, "d")])  # fmt: skip
    assert info["intensity_range"] == [0, 4095]
    assert info["image_shape"] == [2, 4096, 1]
    up, down = np.rint(read(tmp_path)[0, ..., 0] * 255)
    assert np.array_equal(up, down[::-1])
    levels, counts = np.unique(up, return_counts=True)
    assert levels.tolist() == list(range(256))
    # a level is 4095 / 255 = 16.06 values wide; the first and the last level, half of that
    assert (counts[0], counts[-1]) == (9, 9)
    assert set(counts[1:-1].tolist()) == {16, 17}
    assert up[[0, 8, 9, 2047, 2048, 4095]].tolist() == [0, 0, 1, 127, 128, 255]


def test_the_intensity_range_is_that_of_the_training_images_and_others_are_clipped(tmp_path):
    train = [Example(ramp(1000, 1010), 0, "a"), Example(ramp(1500, 1510), 1, "b")]
    test = [Example(ramp(1250, 1260), 0, "c"), Example(ramp(0, 10), 1, "d"),
            Example(ramp(65525, 65535), 1, "e")]  # fmt: skip
    info = prepare(tmp_path, train, test, validation=test)
    assert info["intensity_range"] == [1000, 1510]
    # two values per level: every second value is halfway, and is rounded to the even level
    assert np.rint(read(tmp_path)[0, 0, :, 0] * 255).tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5]
    middle, below, above = np.rint(read(tmp_path, "test")[:, 0, :2, 0] * 255).tolist()
    assert (middle, below, above) == ([125, 126], [0, 0], [255, 255])


def test_intensity_range_can_be_set_and_does_not_change_8_bit_images(tmp_path):
    deep = encode(Image.fromarray(np.full((2, 3), 300, np.uint16)), "PNG")
    train = [grey(7, 0, size=(2, 3)), Example(deep, 1, "deep")]
    # 255 (300 - 200) / 500 = 51
    for intensity_range, expected, level in (([200, 700], [200, 700], 51), (None, [300, 300], 0)):
        info = prepare(tmp_path, train, intensity_range=intensity_range)
        assert info["intensity_range"] == expected
        assert np.rint(read(tmp_path)[:, 0, 0, 0] * 255).tolist() == [7, level]


def test_without_16_bit_training_images_the_full_range_is_used(tmp_path):
    test = [grey(7, 0, size=(1, 2)), Example(encode(
        Image.fromarray(np.array([[0x1000, 0xFFFF]], np.uint16)), "PNG"), 1, "deep")]  # fmt: skip
    info = prepare(tmp_path, [grey(0, 0, size=(1, 2)), grey(1, 1, size=(1, 2))], test)
    assert info["intensity_range"] is None
    assert np.rint(read(tmp_path, "test")[1].ravel() * 255).tolist() == [16, 255]  # 4096 / 257


@pytest.mark.slow
def test_the_intensity_range_does_not_depend_on_processes_or_bad_files(tmp_path):
    random = np.random.default_rng(0)
    examples = [Example(encode(Image.fromarray(
        random.integers(0, 4096, (2, 3)).astype(np.uint16)), "PNG"), i % 2, str(i))
        for i in range(8 * parquet.GROUP_ROWS + 5)]  # fmt: skip
    # two 32-bit images and a color image, for which all images are decoded again
    for row, value in ((300, -100), (301, 4200)):
        wide = Image.fromarray(np.full((2, 3), value, np.int32))
        examples[row] = Example(encode(wide, "TIFF"), 0, "wide")
    examples[700] = Example(png(np.full((2, 3, 3), 9, np.uint8)), 1, "colour")
    examples[1000:1001] = bad(0, names=["half.png"])
    info = prepare(tmp_path / "all", examples, on_bad_image="skip")
    assert info["intensity_range"] == [-100, 4200]
    assert info["image_shape"] == [2, 3, 3]
    assert info["skipped"] == {"train": 1, "test": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.core.cpu.available_cores", lambda: range(1))
        prepare(tmp_path / "one", examples, on_bad_image="skip")
    all_cores, one_core = (tmp_path / name / "arrays/train/images.npy" for name in ("all", "one"))
    assert all_cores.read_bytes() == one_core.read_bytes()


def test_16_bit_color_images_are_read_by_their_high_byte_and_counted(project, quick_stage):
    """Pillow reads only the high byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        sums = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + sums

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)  # 1×1, 16 bits, RGB
    pixel = zlib.compress(b"\0" + struct.pack(">HHH", 0x0FFF, 0x1234, 0xFFFF))
    deep = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")
    assert np.asarray(images.open_image(deep, 1)).tolist() == [[[0x0F, 0x12, 0xFF]]]
    plain = Example(png(np.zeros((1, 1, 3), np.uint8)), 0, "8 bits")
    parts = {"train": [plain, Example(deep, 1, "a")], "test": [plain, Example(deep, 1, "b")]}
    parquet.write(project / "raw", parquet.Dataset(["a", "b"], "t", dict.fromkeys(parts, 2), parts))
    done = quick_stage("pipeline.preprocess", "--raw", "raw", "--arrays", "arrays")
    assert done.stdout == (
        "preprocess: 1 × 1 × 3 images, unit, high 8 bits of 2 images in 16-bit color -> arrays\n"
    ), done.stderr


@pytest.mark.parametrize(("lab", "rgb"), [
    ((100, 0, 0), (255, 255, 255)), ((0, 0, 0), (0, 0, 0)), ((54.3, 80.8, 69.9), (255, 0, 0)),
])  # fmt: skip
def test_cielab_is_converted(lab, rgb):
    """Lightness is 0 to 255, a and b are signed bytes; the illuminant is D50."""
    lightness, a, b = lab
    pixel = bytes([round(lightness * 2.55), round(a), round(b)])
    image = images.open_image(encode(Image.frombytes("LAB", (1, 1), pixel), "TIFF"), 1)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - rgb).max() <= 6  # rounding of L, a and b to bytes


@pytest.mark.slow
def test_images_larger_than_max_megapixels_are_refused(tmp_path):
    solid = encode(Image.new("L", (14_000, 13_000), 51), "PNG")
    files = [Example(solid, 0, "large.png"), grey(0, 1)]
    prepare(tmp_path, files, image_size=[2, 2])
    assert np.allclose(read(tmp_path)[0], 0.2)
    with pytest.raises(PipelineError, match=(
        r"Got 1 that are not: large\.png has 182 megapixels, more than "
        r"preprocess\.max_megapixels: 181\.5 \(raise it, or shrink the image\)\. Replace"
    )):  # fmt: skip
        prepare(tmp_path, files, image_size=[2, 2], max_megapixels=181.5)
    files += [grey(0, 0)]
    info = prepare(tmp_path, files, image_size=[2, 2], max_megapixels=1, on_bad_image="skip")
    assert info["skipped"] == {"train": 1, "test": 0}
    assert info["max_megapixels"] == 1


def test_pillow_prints_no_warnings():
    """The images have transparent palettes, truncated metadata, extra samples or many pixels."""
    palette = Image.new("P", (3, 2))
    palette.putpalette([9, 9, 9, 8, 8, 8])
    transparent = encode(palette, "PNG", transparency=b"\0\x80")
    exif = Image.Exif()
    exif[0x010E] = "a description that is longer than four bytes"
    truncated = exif.tobytes()[:-30]
    metadata = encode(Image.new("RGB", (3, 2)), "JPEG", exif=truncated)
    tiff = bytearray(encode(Image.new("RGB", (3, 2)), "TIFF"))
    position = tiff.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel, one SHORT
    tiff[position + 8 : position + 10] = struct.pack("<H", 9)
    code = f"""if True:
        from pipeline.ingest import images
        for encoded in {[transparent, metadata, bytes(tiff), WHOLE]!r}:
            try:
                print(images.open_image(encoded, 0.001).mode)
            except images.BadImage as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "RGB", "RGB", "is not an image, or has an unknown format",
        "has 0.0016 megapixels, more than preprocess.max_megapixels: 0.001 (raise it, or shrink "
        "the image)",
    ]  # fmt: skip


def test_the_first_bad_files_are_listed_and_the_others_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_reads_heic", lambda: False)  # as if pi-heif was not installed
    # the header of a HEIC file
    heic = b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHEmiafheic" + bytes(40)
    files = [Example(heic, i % 2, f"IMG_{i:04}.HEIC") for i in range(300)]
    with pytest.raises(PipelineError) as refused:
        prepare(tmp_path, [*files, *TEST])
    text = str(refused.value)
    assert (
        "Got 300 that are not: IMG_0000.HEIC is HEIC, which needs pi-heif: run "
        "`uv sync --inexact --group heic`, or convert it to JPEG or PNG; IMG_0001.HEIC is" in text
    )
    assert "or PNG; and 290 more. R" in text
    assert len(text) < 1500


WHOLE = encode(Image.effect_noise((40, 40), 50), "JPEG")
NOISE = png(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
BAD = {
    "zero.jpg": (b"", "is empty"),
    "notes.txt": (b"a list of my cats", "is not an image, or has an unknown format"),
    "half.jpg": (WHOLE[: len(WHOLE) // 2], "is damaged (image file is truncated"),
    "half.png": (NOISE[: len(NOISE) // 2], "is damaged (image file is truncated"),
    "head.png": (NOISE[:20], "is damaged ("),
    "real.tiff": (
        encode(Image.new("F", (3, 2), float("nan")), "TIFF"), "must have finite pixels (has NaN",
    ),
}  # fmt: skip


def bad(label: int, prefix: str = "", names=tuple(BAD)) -> list[Example]:
    """Return one example of each kind of bad file."""
    return [Example(BAD[name][0], label, prefix + name) for name in names]


def test_all_bad_files_are_listed_in_one_error_and_the_previous_arrays_stay(tmp_path):
    good = [grey(0, 0), grey(255, 1)]
    prepare(tmp_path, good)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.parts[-3] == "arrays"}
    assert len(before) == 8
    train, test = bad(0, "train/"), bad(1, "test/", ["zero.jpg"])
    with pytest.raises(PipelineError) as refused:
        # the first file is bad, so the shape is that of another one
        prepare(tmp_path, [*train[:3], *good, *train[3:]], [*good, *test])
    text = str(refused.value)
    assert text.startswith("a test: every file must be a valid image. Got 7 that are not: ")
    positions = [text.index(f"train/{name} {reason}") for name, (_, reason) in BAD.items()]
    assert positions == sorted(positions)
    assert text.endswith(
        "test/zero.jpg is empty. Replace or remove them, or set preprocess.on_bad_image: skip"
    )
    assert {p: p.read_bytes() for p in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays", "raw"]


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_data_set_with_only_bad_files_is_refused(tmp_path, on_bad_image):
    files = bad(0) + bad(1)
    messages = {"error": "Got 24 that are not", "skip": r"train must contain .* none of cat, dog"}
    with pytest.raises(PipelineError, match=messages[on_bad_image]):
        prepare(tmp_path, files, files, on_bad_image=on_bad_image)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("normalize", ["unit", "standardize"])
def test_bad_files_can_be_skipped_and_are_counted(tmp_path, normalize, dtype):
    good = [grey(i % 256, i % 2, str(i)) for i in range(4 * parquet.GROUP_ROWS)]
    # bad files in the first group, throughout the second, and at the end
    mixed = bad(0) + good[:300] + bad(1) * 60 + good[300:] + bad(1)
    options = {"normalize": normalize, "dtype": dtype}
    prepare(tmp_path / "good", good, **options)
    test = [*bad(0, names=["zero.jpg"]), *TEST]
    info = prepare(tmp_path / "mixed", mixed, test, on_bad_image="skip", **options)
    assert info["skipped"] == {"train": 6 * 62, "test": 1}
    for name in ("images", "labels"):
        for split in ("train", "test"):
            one, two = (tmp_path / x / f"arrays/{split}/{name}.npy" for x in ("good", "mixed"))
            assert one.read_bytes() == two.read_bytes()


def test_a_validation_split_follows_the_training_images_and_does_not_change_statistics(
    tmp_path,
):
    splits = {
        "validation": [grey(255, 1, "v0"), *bad(0, names=["zero.jpg"]), grey(255, 0, "v1")],
        "train": [grey(0, 0, "t0"), *bad(1, names=["zero.jpg"]), grey(51, 1, "t1")],
        "test": TEST,
    }
    info = prepare(tmp_path, **splits, normalize="standardize", dtype="uint8", on_bad_image="skip")
    assert (info["validation"], info["skipped"]) == (2, {"train": 2, "test": 0})
    # the training pixels are 0 and 0.2
    assert np.allclose((info["mean"], info["std"]), 0.1)
    _, labels = arrays.load(tmp_path / "arrays/train")
    assert labels.tolist() == [0, 1, 1, 0]
    assert np.allclose(read(tmp_path)[:, 0, 0, 0], [-1, 1, 9, 9])


def test_training_and_validation_images_are_both_required(tmp_path):
    with pytest.raises(PipelineError, match=r"train must contain images of every class\. .* dog\."):
        prepare(tmp_path, [grey(0, 0)], validation=[grey(0, 1)])
    with pytest.raises(
        PipelineError, match=r"test: validation must contain valid images\. Got none"
    ):
        prepare(
            tmp_path, [grey(0, 0), grey(0, 1)], validation=bad(0, names=["zero.jpg"]),
            on_bad_image="skip",
        )  # fmt: skip


def test_a_class_without_images_is_refused_before_and_after_skipping(tmp_path):
    message = (
        r"a test: {} must contain images of every class\. Got none of dog\. Add some, or remove"
    )
    with pytest.raises(PipelineError, match=message.format("train")):
        prepare(tmp_path, [grey(0, 0)])
    with pytest.raises(PipelineError, match=message.format("test")):
        prepare(tmp_path, [grey(0, 0), grey(0, 1)], [grey(0, 0)])
    with pytest.raises(PipelineError, match=message.format("train")):
        prepare(tmp_path, [grey(0, 0), *bad(1)], on_bad_image="skip")
    with pytest.raises(PipelineError, match=message.format("test")):
        prepare(tmp_path, [grey(0, 0), grey(0, 1)], [grey(0, 0), *bad(1)], on_bad_image="skip")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_single_class_is_refused(tmp_path):
    examples = {"train": [grey(0)], "test": [grey(0)]}
    parquet.write(tmp_path, parquet.Dataset(["cat"], "a test", {"train": 1, "test": 1}, examples))
    with pytest.raises(PipelineError, match=r"a test: must have 2 or more classes\. Got only cat"):
        preprocess.preprocess(tmp_path, tmp_path / "arrays", settings())


def every_level(seed: int) -> list[Example]:
    """Return four RGB images (8, 32) with all 256 levels in each channel, in random order."""
    rng = np.random.default_rng(seed)
    levels = [np.stack([rng.permutation(256) for _ in range(3)], -1) for _ in range(4)]
    # fewer levels in the second channel, 4 in the third
    scaled = [(value // [1, 2, 64]).astype(np.uint8).reshape(8, 32, 3) for value in levels]
    return [Example(png(pixels), i % 2, str(i)) for i, pixels in enumerate(scaled)]


@pytest.mark.parametrize("normalize", ["unit", "standardize"])
def test_uint8_gives_the_same_float32_images_at_a_quarter_of_the_size(tmp_path, normalize):
    for dtype in ("float32", "uint8"):
        # the test split has levels that the training images lack
        test = [
            Example(png(np.arange(768, dtype=np.uint8).reshape(8, 32, 3)), i, "x") for i in (0, 1)
        ]
        prepare(tmp_path / dtype, every_level(0), test, normalize=normalize, dtype=dtype)
    for split in ("train", "test"):
        one, two = (tmp_path / dtype / "arrays" / split for dtype in ("float32", "uint8"))
        images, normalized = arrays.load(one)[0], arrays.load(two)[0]
        for rows in (slice(None), slice(1, 2), np.array([1, 0, 1]), 1, np.int64(0), -1):
            assert normalized[rows].dtype == np.float32
            assert normalized[rows].shape == images[rows].shape
            assert np.array_equal(images[rows].view(np.uint32), normalized[rows].view(np.uint32))
        sizes = [(path / "images.npy").stat().st_size - 128 for path in (one, two)]
        assert sizes == [4 * images.size, images.size]
    # uint8 pixels are not normalized
    assert np.load(two / "images.npy")[0].ravel().tolist() == [*range(256)] * 3


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_images_standardized_in_parallel_stay_in_order(tmp_path, dtype):
    count = 8 * parquet.GROUP_ROWS + 5
    train = [grey(i % 256, i % 2, str(i)) for i in range(count)]
    prepare(tmp_path, train, normalize="standardize", dtype=dtype)
    info = json.loads((tmp_path / "arrays/info.json").read_text())
    unit = (np.arange(count) % 256).astype(np.float32) / np.float32(255)
    values = (unit - np.float32(info["mean"])) / np.float32(info["std"])
    assert np.array_equal(read(tmp_path)[:, 1, 1, 0], values)


def test_reading_a_file_ten_times_as_large_takes_no_more_memory(tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        from pipeline.data import arrays
        images, labels = arrays.load(Path(sys.argv[1]))
        order = np.random.default_rng(0).permutation(len(images))
        for start in range(0, len(images), 64):
            assert images[start : start + 64].mean() == images[order[start : start + 64]].mean()
        print(*(line.split()[1] for line in open("/proc/self/status") if line[:6] == "VmHWM:"))
    """
    status = Path("/proc/self/status")
    if not status.is_file() or "VmHWM" not in status.read_text():
        pytest.skip("peak memory is read from /proc of Linux")
    peaks = []
    info = Preprocessor([], [32, 32, 3], "standardize", [0.5] * 3, [0.5] * 3)
    (tmp_path / "info.json").write_text(json.dumps(vars(info)))
    for dtype in ("float32", "uint8"):
        for count in (1000, 10_000):
            folder = tmp_path / f"{dtype} {count}"
            arrays.create(folder / "images.npy", (count, 32, 32, 3), dtype)
            np.save(folder / "labels.npy", np.zeros(count, np.int64))
            arrays.seal(folder)
            argv = [sys.executable, "-c", code, str(folder)]
            done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=True)
            peaks.append(int(done.stdout) / 1024)
    # the larger files have 117 and 29 MiB, the smaller ones a tenth
    assert peaks[1] - peaks[0] < 8
    assert peaks[3] - peaks[2] < 8


@pytest.mark.slow
def test_a_folder_of_photographs_in_many_formats(project, edit, quick_stage):
    """Two photographs of 427×640 pixels from scikit-learn, stored in many ways."""
    photos = Path(sklearn.datasets.__file__).parent / "images"
    for split in ("train", "test"):
        for name in ("china", "flower"):
            top = project / "photos" / split / name
            top.mkdir(parents=True)
            (top / "0.jpg").write_bytes((photos / f"{name}.jpg").read_bytes())
            with Image.open(photos / f"{name}.jpg") as photo:
                # rotated by 90 degrees, as its EXIF orientation says
                photo.rotate(90, expand=True).save(
                    top / "1.jpg", quality=95, exif=with_orientation(6)
                )
                photo.convert("CMYK").save(top / "2.JPEG", quality=95)
                photo.convert("RGBA").save(top / "3.png")
                photo.resize((320, 214)).save(top / "4.webp", quality=95)
                photo.convert("L").save(top / "5.bmp")
            (top / "notes.txt").write_text("mine")
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: photos")
    edit("image_size:", "image_size: [43, 64]")
    edit("on_bad_image: error", "on_bad_image: skip")
    edit("dtype: float32", "dtype: uint8")
    done = quick_stage("pipeline.download", "--raw", "raw")
    assert "14 train, 14 test images, 2 classes" in done.stdout, done.stderr
    done = quick_stage("pipeline.preprocess", "--raw", "raw", "--arrays", "arrays")
    assert "43 × 64 × 3 images, unit, 4 bad images skipped" in done.stdout, done.stderr
    images, labels = arrays.load(project / "arrays/train")
    assert labels.tolist() == [0] * 6 + [1] * 6
    for start in (0, 6):
        photo, *others, grayscale = images[start : start + 6]
        for other in others:
            assert np.abs(photo - other).mean() < 0.02
        # luma of ITU-R 601
        luma = photo @ np.array([0.299, 0.587, 0.114], np.float32)
        assert np.abs(luma[..., None] - grayscale).max() < 0.01
        assert np.abs(photo - photo[::-1]).mean() > 0.1


@pytest.mark.parametrize(("dtype", "needed", "smaller"), [
    ("float32", r"8e\+09", r", or set preprocess\.dtype: uint8"), ("uint8", r"2e\+09", ""),
])  # fmt: skip
def test_too_little_disk_space_is_an_error_before_decoding(tmp_path, dtype, needed, smaller):
    prepare(tmp_path, [grey(0, 0), grey(255, 1)])
    before = read(tmp_path)
    message = (
        rf"images\.npy: needs {needed} GB\. Got .* GB of free disk space\. "
        rf"Free some space or lower preprocess\.image_size{smaller}$"
    )
    with pytest.raises(PipelineError, match=message):
        prepare(tmp_path, [grey(0, 0), grey(255, 1)], image_size=[10**9, 10**9], dtype=dtype)
    assert np.array_equal(read(tmp_path), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays", "raw"]


def test_a_killed_worker_process_is_an_error_in_one_line():
    with (
        pytest.raises(PipelineError, match=r"preprocess: a worker process was killed, .* memory"),
        decoding.mapper(8) as parallel_map,
    ):
        list(parallel_map(os._exit, range(8)))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="requires Linux")
def test_on_one_core_no_worker_processes_are_started():
    code = """if True:
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as `taskset -c 0`
        from pipeline.ingest import decoding
        with decoding.mapper(8) as parallel_map:
            print(parallel_map is map)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_worker_processes_end_with_their_parent():
    code = """if True:
        import time
        from pipeline.ingest import decoding
        if __name__ == "__main__":
            with decoding.mapper(8) as parallel_map:
                list(parallel_map(abs, range(8)))
                print("ready", flush=True)
                list(parallel_map(time.sleep, [300] * 8))
    """
    running = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout
    assert running.stdout.readline() == "ready\n"
    assert psutil.Process(running.pid).children(recursive=True)
    running.kill()
    # the workers inherit standard output, which is closed when the last of them ends
    assert running.communicate(timeout=60)[0] == ""


def test_the_stage_writes_info_and_prints_the_number_of_skipped_images(project, edit, quick_stage):
    train = [grey(0, 0), grey(0, 1), Example(b"", 0, "bad.png")]
    sizes = {"train": 3, "test": 2}
    parquet.write(
        project / "raw", parquet.Dataset(["a", "b"], "t", sizes, {"train": train, "test": TEST})
    )
    argv = ("pipeline.preprocess", "--raw", "raw", "--arrays", "arrays")
    done = quick_stage(*argv)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "error: t: every file must be a valid image. Got 1 that are not: bad.png is empty. "
        "Replace or remove them, or set preprocess.on_bad_image: skip"
    )
    assert not (project / "arrays").exists()
    edit("on_bad_image: error", "on_bad_image: skip")
    done = quick_stage(*argv)
    line = "preprocess: 2 × 3 × 1 images, unit, 1 bad image skipped -> arrays\n"
    assert done.stdout == line, done.stderr
    assert json.loads((project / "arrays/info.json").read_text())["classes"] == ["a", "b"]
    edit("on_bad_image: skip", "on_bad_image: error")
    parquet.write(
        project / "raw",
        parquet.Dataset(
            ["a", "b"], "t", {"train": 2, "test": 2}, {"train": train[:2], "test": TEST}
        ),
    )
    assert quick_stage(*argv).stdout == "preprocess: 2 × 3 × 1 images, unit -> arrays\n"


def test_the_stage_prints_the_intensity_range(project, edit, quick_stage):
    train = [Example(ramp(0, 4095), label, "deep") for label in (0, 1)]
    sizes = {"train": 2, "test": 2}
    parquet.write(
        project / "raw", parquet.Dataset(["a", "b"], "t", sizes, {"train": train, "test": train})
    )
    argv = ("pipeline.preprocess", "--raw", "raw", "--arrays", "arrays")
    line = "preprocess: 2 × 4096 × 1 images, unit, {} scaled to 0 to 255 -> arrays\n"
    assert quick_stage(*argv).stdout == line.format("0 to 4095")
    edit("intensity_range:", "intensity_range: [-1024, 3071]")
    done = quick_stage(*argv)
    assert done.stdout == line.format("-1024 to 3071"), done.stderr
    assert read(project).max() == 1


@pytest.mark.parametrize(("content", "message"), [
    (b"\x93NUMPY\x01", "must be a NumPy array"),
    (np.zeros(3, np.float32), r"must be float32 or uint8 of rank 4\. Got float32 of rank 1"),
    (np.zeros((1, 2, 2, 1)), r"must be float32 or uint8 of rank 4\. Got float64"),
    (np.zeros((2, 2, 2, 1), np.float32), r"2 images, 1 labels"),
    (np.zeros((1, 2, 2, 1), np.uint8), r"info\.json: no such file\. Run `dvc repro`"),
    (None, r"no such file\. Run `dvc repro preprocess`"),
])  # fmt: skip
def test_invalid_arrays_are_refused(tmp_path, content, message):
    np.save(tmp_path / "labels.npy", np.zeros(1, np.int64))
    if isinstance(content, bytes):
        (tmp_path / "images.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "images.npy", content)
    arrays.seal(tmp_path)
    with pytest.raises(PipelineError, match=message):
        arrays.load(tmp_path)


@pytest.mark.parametrize("change", ["nan", "swap", "labels", "unsealed"])
def test_modified_arrays_are_refused(tmp_path, change):
    """NaN pixels, test images in place of training images, labels out of range, no checksums."""
    for part, value in (("train", 0.25), ("test", 0.5)):
        write_arrays(tmp_path / part, np.full((2, 2, 2, 1), value, np.float32), np.arange(2))
    train, name = tmp_path / "train", "images.npy"
    arrays.load(train)
    if change == "nan":
        np.save(train / name, np.full((2, 2, 2, 1), np.nan, np.float32))
    elif change == "swap":
        shutil.copy(tmp_path / "test" / name, train)
    elif change == "labels":
        name = "labels.npy"
        np.save(train / name, np.array([0, 7]))
    else:
        (train / "SHA256SUMS").unlink()
        name = "SHA256SUMS"
    expected = f"train/{name}: (must be the array that preprocess wrote|no such file).* Run `dvc"
    with pytest.raises(PipelineError, match=expected):
        arrays.load(train)


def test_sha256sum_verifies_the_checksums(tmp_path):
    if not shutil.which("sha256sum"):
        pytest.skip("sha256sum is not installed")
    write_arrays(tmp_path, np.zeros((2, 2, 2, 1), np.float32), np.arange(2))
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True)
    assert done.stdout == b"images.npy: OK\nlabels.npy: OK\n"


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "images.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(PipelineError, match=r"images\.npy: must be a NumPy array"):
        arrays.load(tmp_path)
