"""Demo: its predictions and pictures, and its page in a real browser."""

import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import psutil
import pytest
from keras import layers as L
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from pipeline.core.errors import PipelineError
from pipeline.data import calibration
from pipeline.data.calibration import Calibration
from pipeline.data.preprocessor import Preprocessor, store
from pipeline.tools import demo
from tests.conftest import CHROMIUM, REPOSITORY, in_browser, png, write_arrays

pytestmark = pytest.mark.xdist_group("demo")  # all tests share one server
LEFT = "<i>left</i>"
PREPROCESSOR = Preprocessor([LEFT, "right"], [8, 8, 1], "unit", [0.5], [0.5])
HALF = np.zeros((8, 8), np.uint8)
HALF[:, :4] = 255  # white on the left


def sides(kernel: tuple[int, int]) -> keras.Model:
    """Return a model whose logit of a side is twice the white share of that side."""
    images = keras.Input((8, 8, 1))
    convolution = L.Conv2D(1, kernel, strides=kernel, use_bias=False)
    x = L.Flatten()(convolution(images))
    network = keras.Model(images, L.Dense(2, use_bias=False)(x))
    convolution.set_weights([np.full((*kernel, 1, 1), 2 / 32, np.float32)])
    network.layers[-1].set_weights([np.eye(2, dtype=np.float32)])
    return network


def without_feature_map() -> keras.Model:
    """Return a model that always predicts `right` and has no feature map."""
    network = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(2)])
    network.layers[-1].set_weights([np.zeros((64, 2), np.float32), np.array([0, 2], np.float32)])
    return network


def save(network: keras.Model, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    network.save(path)
    store(path, PREPROCESSOR)
    return path


def write_test_images(folder: Path, count: int, channels: int = 1) -> np.ndarray:
    """Write arrays of single-colour images with alternating classes; return their pixels."""
    shade = np.array([1, 2, 3], np.uint8)[:channels] * np.ones((8, 8, 1), np.uint8)
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] * shade  # (n, 8, 8, c)
    info = {**vars(PREPROCESSOR), "mean": [0.5] * channels, "std": [0.5] * channels}
    write_arrays(folder / "test", Preprocessor(**info).normalized(pixels), np.arange(count) % 2)
    (folder / "info.json").write_text(json.dumps(info))
    return pixels


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(sides((8, 4)), tmp_path / "models/champion.keras")


# softmax of a white and a black half: e^2 / (e^2 + 1)
WHITE, BLACK = pytest.approx(0.880797, abs=1e-6), pytest.approx(0.119203, abs=1e-6)


def test_the_most_likely_class_comes_first(model):
    assert list(demo.predict(model, png(HALF)).items()) == [(LEFT, WHITE), ("right", BLACK)]
    assert list(demo.predict(model, png(HALF[:, ::-1])).items())[0] == ("right", WHITE)


def test_the_probabilities_are_those_of_the_temperature_in_the_file(model):
    calibration.store(model, Calibration(temperature=2.0))
    # e^(2/2) / (e^(2/2) + 1)
    assert demo.predict(model, png(HALF))[LEFT] == pytest.approx(0.731059, abs=1e-6)


def test_the_heat_map_is_bright_only_where_the_model_looks(model):
    picture = demo.draw_grad_cam(model, png(HALF), LEFT)
    assert picture is not None
    assert picture.size == (480, 480)
    # 0.6 of inferno's ends, (252, 254, 164) and (0, 0, 3), plus 0.4 of white and of black
    assert picture.getpixel((0, 120)) == (253, 254, 200)
    assert picture.getpixel((479, 120)) == (0, 0, 1)


def test_the_input_of_the_model_is_shown_without_smoothing(model):
    large = np.repeat(np.repeat(HALF, 3, axis=0), 3, axis=1)  # 24×24; the model sees 8×8
    picture = demo.draw_input(model, png(large))
    assert picture.size == (256, 256)
    # each of the 8×8 pixels is 32 wide: the edge between columns 4 and 5 is sharp
    assert [picture.getpixel((x, 9)) for x in (0, 95, 160, 255)] == [255, 255, 0, 0]


def test_a_model_without_feature_maps_has_no_heat_map(tmp_path):
    path = save(without_feature_map(), tmp_path / "models/flat.keras")
    assert demo.draw_grad_cam(path, png(HALF), LEFT) is None


def test_images_of_any_mode_and_shape_get_a_heat_map():
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        image = Image.new("RGB", (3, 5), "white").convert(mode)
        picture = demo.overlay(image, np.ones((2, 2)), PREPROCESSOR)
        assert picture.size == (288, 480)
        assert picture.getpixel((9, 9)) == (253, 254, 200), mode
    assert demo.overlay(Image.new("L", (2000, 1)), np.ones((2, 2)), PREPROCESSOR).size == (480, 1)


def test_the_heat_map_lies_on_the_part_of_the_image_that_the_model_sees():
    # white, with black ends that a crop cuts off
    image = Image.new("L", (8, 24))
    image.paste(255, (0, 8, 8, 16))
    for resize, middle, edge in (("crop", 200, 200), ("pad", 200, 98)):
        preprocessor = replace(PREPROCESSOR, resize=resize)
        picture = demo.overlay(image, np.ones((2, 2)), preprocessor)
        assert picture.size == (480, 480)
        # blue is 0.6 * 164, plus 0.4 * 255 where the image is white
        assert np.asarray(picture)[240, [240, 9], 2].tolist() == [middle, edge]


def test_a_retrained_model_is_loaded_again_and_a_deleted_one_is_refused(model):
    assert next(iter(demo.predict(model, png(HALF)))) == LEFT
    save(without_feature_map(), model)
    os.utime(model, (1, 1))  # a different time, whatever the resolution of the file system
    assert next(iter(demo.predict(model, png(HALF)))) == "right"
    model.unlink()
    with pytest.raises(PipelineError, match=r"champion\.keras: no such file"):
        demo.predict(model, png(HALF))


def test_a_class_that_the_model_does_not_know_has_no_heat_map(model):
    assert demo.draw_grad_cam(model, png(HALF), "cat") is None


def test_the_champion_is_followed_by_all_trainings(tmp_path):
    # one of them is still being written; champion/ is the folder of the model card
    for name in ("wide/10", "wide/2", "champion", "airnet/0", "wide/.7.part.3", "export/champion",
                 "champion/champion"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.with_name(f"{path.name}.{'onnx' if 'export' in name else 'keras'}").touch()
    models = demo.find_models(tmp_path)
    assert list(models) == ["champion", "airnet-0", "wide-2", "wide-10"]
    assert models["wide-2"] == tmp_path / "wide/2.keras"


def test_examples_are_exact_copies_of_test_images(tmp_path):
    for channels in (1, 3):
        pixels = write_test_images(tmp_path / "arrays", 15, channels)
        examples = demo.write_examples(tmp_path / "arrays", tmp_path)
        assert [label for _, label in examples] == [LEFT] * 8  # rows 0, 2, 4, … 14
        written = np.stack([np.asarray(Image.open(path)) for path, _ in examples])
        assert np.array_equal(written, pixels[::2, ..., 0] if channels == 1 else pixels[::2])
    assert demo.write_examples(tmp_path / "nowhere", tmp_path) == []


def test_a_folder_without_models_is_refused(tmp_path, stage):
    done = stage("pipeline.tools.demo", "--models", "models")
    expected = "error: models: must hold a .keras file. Got none. Run `make repro`\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_without_gradio_the_error_says_how_to_install_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(PipelineError, match="Run `uv sync --inexact --group demo`"):
        demo.main(["--models", str(model.parent)])


# In the browser.


class Server(NamedTuple):
    folder: Path
    process: subprocess.Popen[str]
    url: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo with two models, a damaged one and 15 test images; uploads go to `temporary`."""
    top = tmp_path_factory.mktemp("demo")
    save(sides((8, 4)), top / "models/champion.keras")
    save(without_feature_map(), top / "models/flat.keras")
    (top / "models/<b>bad.keras").write_text("no archive")
    write_test_images(top / "data/arrays", 15)
    (top / "temporary").mkdir()
    # a proxy that does not exist: the demo needs no other host
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    env = {**os.environ, **proxies, "PYTHONPATH": str(REPOSITORY)}
    env |= {"BROWSER": "true", "TMPDIR": str(top / "temporary")}
    with (
        (top / "log.txt").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.tools.demo"],
            cwd=top, env=env, text=True, stdout=subprocess.PIPE, stderr=log,
        ) as process,
    ):  # fmt: skip
        assert process.stdout
        words = process.stdout.readline().split()
        assert words[:1] == ["demo:"], (top / "log.txt").read_text()
        yield Server(top, process, words[1])
        process.kill()


@pytest.fixture
def page(server: Server, browser: Browser) -> Iterator[Page]:
    """The page; fails if it loads anything from another host or reports an error."""
    faults: list[str] = []
    page = browser.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.on("console", lambda entry: faults.append(entry.text) if entry.type == "error" else None)
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((server.url, "data:", "blob:"))
            else faults.append(request.url)
        ),
    )
    page.goto(server.url)
    page.get_by_label("Model").wait_for()
    yield page
    page.close()
    assert faults == []


def drop(page: Page, content: bytes, name: str = "half.png") -> None:
    page.locator("input[type=file]").first.set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": content}
    )


def wait_for_picture(page: Page, alt_text: str) -> Image.Image:
    """Return the picture with this alternative text, once it is visible."""
    picture = page.get_by_alt_text(alt_text, exact=True)
    expect(picture).to_be_visible(timeout=30_000)
    source = picture.get_attribute("src")
    assert source
    with urllib.request.urlopen(source) as response:
        return Image.open(io.BytesIO(response.read()))


@in_browser
def test_a_dropped_image_is_classified_and_heat_maps_are_shown(page):
    drop(page, png(HALF))
    picture = wait_for_picture(page, f"Where champion looks for {LEFT}")
    assert picture.getpixel((0, 0)) == (253, 254, 200)
    expect(page.get_by_test_id(f"{LEFT}-confidence-set")).to_contain_text("88%")
    # nothing in the image is evidence for the other class
    page.get_by_test_id("right-confidence-set").click()
    picture = wait_for_picture(page, "Where champion looks for right")
    assert picture.getpixel((479, 0)) == (0, 0, 1)


@in_browser
def test_selecting_another_model_classifies_the_image_again(page):
    drop(page, png(HALF))
    wait_for_picture(page, f"Where champion looks for {LEFT}")
    page.get_by_label("Model").click()
    page.get_by_role("option", name="flat").click()
    expect(page.get_by_text("flat has no heat map")).to_be_visible(timeout=30_000)
    expect(page.get_by_test_id("right-confidence-set")).to_contain_text("88%")


@in_browser
def test_an_example_is_classified_unchanged(page):
    page.get_by_label("Thumbnail 8 of 8").click()
    picture = wait_for_picture(page, "The image")
    assert np.unique(np.asarray(picture)).tolist() == [14]
    wait_for_picture(page, f"Where champion looks for {LEFT}")
    assert np.unique(np.asarray(wait_for_picture(page, "What the model sees"))).tolist() == [14]


@in_browser
def test_a_damaged_model_is_reported_and_its_name_is_shown_as_text(page):
    drop(page, png(HALF))
    page.get_by_label("Model").click()
    page.get_by_role("option", name="<b>bad").click()
    message = page.get_by_text(
        "models/<b>bad.keras: must be a .keras file that this pipeline wrote"
    )
    expect(message).to_be_visible(timeout=30_000)


@in_browser
def test_a_file_that_is_not_an_image_is_reported(page):
    drop(page, b"not an image")
    expect(page.get_by_text("is not an image, or has an unknown format")).to_be_visible(
        timeout=30_000
    )


# the last test, since it ends the server
def test_it_listens_on_this_machine_only_and_deletes_uploads(server):
    connections = psutil.Process(server.process.pid).net_connections("inet")
    listening = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    if CHROMIUM:  # then earlier tests have dropped images
        assert any(path.name == "half.png" for path in (server.folder / "temporary").rglob("*"))
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(120) == 0
    assert list((server.folder / "temporary").iterdir()) == []
    assert (server.folder / "log.txt").read_text() == ""
