"""Preprocess: pixels to normalized arrays."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import arrays, preprocess, raw
from pipeline.errors import PipelineError
from pipeline.raw import Example
from tests.conftest import grey, png


def prepare(top: Path, train: list[Example], test: list[Example], **settings) -> dict:
    sizes = {"train": len(train), "test": len(test)}
    splits = {"train": train, "test": test}
    raw.write(top / "raw", raw.Dataset(["cat", "dog"], "a test", sizes, splits))
    settings = {"normalize": "unit", "image_size": None, **settings}
    return preprocess.preprocess(top / "raw", top / "arrays", **settings)


def test_unit_divides_by_255_and_greyscale_stays_one_channel(tmp_path):
    info = prepare(tmp_path, [grey(0, 1), grey(255, 0)], [grey(51, 1)])
    images, labels = arrays.load(tmp_path / "arrays/train")
    assert images.tolist() == [[[[0.0]] * 3] * 2, [[[1.0]] * 3] * 2]  # (2, 2, 3, 1)
    assert (images.dtype, labels.dtype) == (np.float32, np.int64)
    assert labels.tolist() == [1, 0]
    assert isinstance(images, np.memmap)
    images, labels = arrays.load(tmp_path / "arrays/test")
    assert np.allclose(images, 0.2)
    assert info == {
        "classes": ["cat", "dog"], "image_shape": [2, 3, 1], "normalize": "unit",
        "mean": [0.5], "std": [0.5],
    }  # fmt: skip


def test_standardize_uses_the_training_images_only(tmp_path):
    prepare(tmp_path, [grey(0), grey(255)], [grey(255)], normalize="standardize")
    # train: mean 0.5, standard deviation 0.5
    assert set(arrays.load(tmp_path / "arrays/train")[0].ravel().tolist()) == {-1.0, 1.0}
    assert set(arrays.load(tmp_path / "arrays/test")[0].ravel().tolist()) == {1.0}


def test_standardize_is_per_channel_and_survives_a_flat_one(tmp_path):
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, :, 0] = 255  # red: half on; green: none; blue: all
    colour[..., 2] = 255
    prepare(
        tmp_path,
        [Example(png(colour), 0, "a")],
        [Example(png(colour), 0, "b")],
        normalize="standardize",
    )
    image = arrays.load(tmp_path / "arrays/train")[0][0]
    assert image[..., 0].tolist() == [[1.0, 1.0], [-1.0, -1.0]]
    assert image[..., 1:].tolist() == np.zeros((2, 2, 2)).tolist()


def test_statistics_are_exact():
    histogram = np.zeros((1, 256), np.int64)
    histogram[0, [0, 51, 255]] = 1, 2, 1  # 0, 0.2, 0.2, 1
    mean, std = preprocess.statistics(histogram)
    assert mean.tolist() == pytest.approx([0.35])
    # deviations 0.35, 0.15, 0.15, 0.65: squares 0.1225, 0.0225, 0.0225, 0.4225
    assert std.tolist() == pytest.approx([np.sqrt(0.59 / 4)])


def test_many_groups_in_processes_are_the_images_in_order(tmp_path):
    count = 8 * raw.GROUP_ROWS + 5  # nine groups: enough for the processes to be used
    prepare(tmp_path, [grey(i % 256, id=str(i)) for i in range(count)], [grey(1)])
    images, _ = arrays.load(tmp_path / "arrays/train")
    values = (np.arange(count) % 256).astype(np.float32)
    assert np.array_equal(images[:, 0, 0, 0], values / np.float32(255))


def test_a_colour_image_among_grey_ones_makes_all_colour(tmp_path):
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 255
    info = prepare(tmp_path, [grey(255), grey(0)], [Example(png(red), 0, "red")])
    assert info["image_shape"] == [2, 3, 3]
    assert arrays.load(tmp_path / "arrays/train")[0][0].tolist() == [[[1.0] * 3] * 3] * 2
    assert arrays.load(tmp_path / "arrays/test")[0][0, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_image_size_resizes(tmp_path):
    info = prepare(tmp_path, [grey(51), grey(51, size=(9, 5))], [grey(51)], image_size=[4, 6])
    assert info["image_shape"] == [4, 6, 1]
    assert np.allclose(arrays.load(tmp_path / "arrays/train")[0], 0.2)


def test_differing_sizes_without_image_size_are_refused(tmp_path):
    with pytest.raises(
        PipelineError,
        match=r"b\.png: is 9×5 pixels, the first image 2×3\. Set preprocess\.image_size",
    ):
        prepare(tmp_path, [grey(1), grey(1, id="b.png", size=(9, 5))], [grey(1)])
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]  # nothing half-written


def test_damaged_images_are_named(tmp_path):
    whole = grey(1, size=(40, 40))
    for image in (b"", b"not an image", whole.image[:60]):
        with pytest.raises(PipelineError, match=r"bad\.png: cannot be read as an image"):
            prepare(tmp_path, [grey(1, size=(40, 40)), Example(image, 0, "bad.png")], [whole])


def test_sixteen_bit_images_are_refused(tmp_path):
    deep = Example(png(np.zeros((2, 3), np.uint16)), 0, "deep.png")
    with pytest.raises(
        PipelineError, match=r"deep\.png: must have 8 bits a channel\. Got mode I;16"
    ):
        prepare(tmp_path, [grey(1), deep], [grey(1)])


def test_photographs_are_turned_the_way_the_camera_was_held():
    import io

    from PIL import Image

    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to the right
    Image.new("RGB", (4, 2)).save(buffer, "JPEG", exif=exif)
    assert preprocess.open_image(Example(buffer.getvalue(), 0, "photo")).size == (2, 4)


def test_stage_writes_info(project, stage):
    raw.write(
        project / "raw",
        raw.Dataset(["a"], "t", {"train": 1, "test": 1}, {"train": [grey(0)], "test": [grey(0)]}),
    )
    done = stage("pipeline.preprocess", "--raw", "raw", "--arrays", "arrays")
    assert done.stdout == "preprocess: 2 × 3 × 1 images, unit -> arrays\n", done.stderr
    assert json.loads((project / "arrays/info.json").read_text())["classes"] == ["a"]


@pytest.mark.parametrize(("content", "message"), [
    (b"\x93NUMPY\x01", "no array"),
    (np.zeros(3, np.float32), r"must be float32 of rank 4\. Got float32 of rank 1"),
    (np.zeros((1, 2, 2, 1)), r"must be float32 of rank 4\. Got float64"),
    (np.zeros((2, 2, 2, 1), np.float32), r"2 images, 1 labels"),
    (None, r"no such file\. Run `dvc repro preprocess`"),
])  # fmt: skip
def test_arrays_that_preprocess_did_not_write_are_refused(tmp_path, content, message):
    np.save(tmp_path / "labels.npy", np.zeros(1, np.int64))
    if isinstance(content, bytes):
        (tmp_path / "images.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "images.npy", content)
    with pytest.raises(PipelineError, match=message):
        arrays.load(tmp_path)


def test_pickled_arrays_are_not_unpickled(tmp_path):
    np.save(tmp_path / "images.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(PipelineError, match="images.npy: no array"):
        arrays.load(tmp_path)
