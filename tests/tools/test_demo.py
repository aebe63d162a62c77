"""Demo: what the page answers, and that it does so in a real browser, on this machine alone."""

import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
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
from pipeline.data import preprocessor
from pipeline.data.preprocessor import Preprocessor
from pipeline.tools import demo
from tests.conftest import CHROMIUM, REPOSITORY, in_browser, png, write_arrays

pytestmark = pytest.mark.xdist_group("demo")  # one server for all
LEFT = "<i>left</i>"
KEPT = Preprocessor([LEFT, "right"], [8, 8, 1], "unit", [0.5], [0.5])
HALF = np.zeros((8, 8), np.uint8)
HALF[:, :4] = 255  # white on the left


def sides(kernel: tuple[int, int]) -> keras.Model:
    """The logit of a side is twice the share of it that is white; by one look at each."""
    images = keras.Input((8, 8, 1))
    convolution = L.Conv2D(1, kernel, strides=kernel, use_bias=False)
    x = L.Flatten()(convolution(images))
    network = keras.Model(images, L.Dense(2, use_bias=False)(x))
    convolution.set_weights([np.full((*kernel, 1, 1), 2 / 32, np.float32)])
    network.layers[-1].set_weights([np.eye(2, dtype=np.float32)])
    return network


def flat() -> keras.Model:
    """Says that all is on the right; it has no feature map."""
    network = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(2)])
    network.layers[-1].set_weights([np.zeros((64, 2), np.float32), np.array([0, 2], np.float32)])
    return network


def save(network: keras.Model, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    network.save(path)
    preprocessor.store(path, KEPT)
    return path


def write_test_images(folder: Path, count: int, channels: int = 1) -> np.ndarray:
    """Write arrays of images of one colour each, of every second class."""
    shade = np.array([1, 2, 3], np.uint8)[:channels] * np.ones((8, 8, 1), np.uint8)
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] * shade  # (n, 8, 8, c)
    kept = {**vars(KEPT), "mean": [0.5] * channels, "std": [0.5] * channels}
    write_arrays(folder / "test", Preprocessor(**kept).normalized(pixels), np.arange(count) % 2)
    (folder / "info.json").write_text(json.dumps(kept))
    return pixels


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(sides((8, 4)), tmp_path / "models/champion.keras")


# e^2 / (e^2 + 1), of a white half and a black one
WHITE, BLACK = pytest.approx(0.880797, abs=1e-6), pytest.approx(0.119203, abs=1e-6)


def test_answer_names_the_likely_classes_first(model):
    assert list(demo.answer(model, png(HALF)).items()) == [(LEFT, WHITE), ("right", BLACK)]
    assert list(demo.answer(model, png(HALF[:, ::-1])).items())[0] == ("right", WHITE)


def test_where_it_looks_is_bright_and_the_rest_dark(model):
    drawn = demo.looks(model, png(HALF), LEFT)
    assert drawn is not None
    assert drawn.size == (480, 480)
    # 0.6 of inferno's ends, (252, 254, 164) and (0, 0, 3), over 0.4 of white and of black
    assert drawn.getpixel((0, 120)) == (253, 254, 200)
    assert drawn.getpixel((479, 120)) == (0, 0, 1)


def test_what_the_model_sees_is_its_own_pixels_as_squares(model):
    large = np.repeat(np.repeat(HALF, 3, axis=0), 3, axis=1)  # 24×24, shown to it as 8×8
    picture = demo.sight(model, png(large))
    assert picture.size == (256, 256)
    # 8×8 pixels of 32: the edge between the fourth and the fifth column is sharp
    assert [picture.getpixel((x, 9)) for x in (0, 95, 160, 255)] == [255, 255, 0, 0]


def test_a_network_without_feature_maps_looks_nowhere(tmp_path):
    path = save(flat(), tmp_path / "models/flat.keras")
    assert demo.looks(path, png(HALF), LEFT) is None


def test_overlay_takes_any_mode_and_shape():
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        drawn = demo.overlaid(Image.new("RGB", (3, 5), "white").convert(mode), np.ones((2, 2)))
        assert drawn.size == (288, 480)
        assert drawn.getpixel((9, 9)) == (253, 254, 200), mode
    assert demo.overlaid(Image.new("L", (2000, 1)), np.ones((2, 2))).size == (480, 1)


def test_a_model_that_was_trained_again_answers_anew_and_one_that_is_gone_not_at_all(model):
    assert next(iter(demo.answer(model, png(HALF)))) == LEFT
    save(flat(), model)
    os.utime(model, (1, 1))  # an instant that differs, whatever the disk's clock can tell
    assert next(iter(demo.answer(model, png(HALF)))) == "right"
    model.unlink()
    with pytest.raises(PipelineError, match=r"champion\.keras: no such file"):
        demo.answer(model, png(HALF))


def test_a_class_that_a_model_does_not_know_is_not_looked_for(model):
    assert demo.looks(model, png(HALF), "cat") is None


def test_champion_is_the_first_of_the_models(tmp_path):
    for name in ("wide", "champion", "airnet", ".7.part.baseline"):  # still being written
        (tmp_path / f"{name}.keras").touch()
    (tmp_path / "champion.onnx").touch()
    assert list(demo.models(tmp_path)) == ["champion", "airnet", "wide"]


def test_examples_are_test_images_to_the_bit(tmp_path):
    for channels in (1, 3):
        pixels = write_test_images(tmp_path / "arrays", 15, channels)
        found = demo.examples(tmp_path / "arrays", tmp_path)
        assert [label for _, label in found] == [LEFT] * 8  # rows 0, 2, 4, … 14
        read = np.stack([np.asarray(Image.open(path)) for path, _ in found])
        assert np.array_equal(read, pixels[::2, ..., 0] if channels == 1 else pixels[::2])
    assert demo.examples(tmp_path / "nowhere", tmp_path) == []


def test_nothing_to_show_is_one_line(tmp_path, stage):
    done = stage("pipeline.tools.demo", "--models", "models")
    expected = "error: models: must hold a .keras file. Got none. Run `make repro`\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_without_gradio_it_says_how_to_get_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(PipelineError, match="Run `uv sync --inexact --group demo`"):
        demo.main(["--models", str(model.parent)])


# In the browser. ---------------------------------------------------------------------------------


class Server(NamedTuple):
    folder: Path
    process: subprocess.Popen[str]
    url: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo of three models, one of them none, and 15 test images; it keeps what it is given
    in `temporary`."""
    top = tmp_path_factory.mktemp("demo")
    save(sides((8, 4)), top / "models/champion.keras")
    save(flat(), top / "models/flat.keras")
    (top / "models/<b>bad.keras").write_text("no archive")
    write_test_images(top / "data/arrays", 15)
    (top / "temporary").mkdir()
    # with a proxy that is not there: it asks nobody outside
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    env = {**os.environ, **proxies, "PYTHONPATH": str(REPOSITORY)}
    env |= {"BROWSER": "true", "TF_CPP_MIN_LOG_LEVEL": "3", "TMPDIR": str(top / "temporary")}
    with (
        (top / "log.txt").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.tools.demo"],
            cwd=top, env=env, text=True, stdout=subprocess.PIPE, stderr=log,
        ) as process,
    ):  # fmt: skip
        assert process.stdout
        said = process.stdout.readline().split()
        assert said[:1] == ["demo:"], (top / "log.txt").read_text()
        yield Server(top, process, said[1])
        process.kill()


@pytest.fixture
def page(server: Server, browser: Browser) -> Iterator[Page]:
    """The page; fails on what it loads from elsewhere or complains of."""
    faults: list[str] = []
    page = browser.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
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


def shown(page: Page, said: str) -> Image.Image:
    """Return the picture that says what it shows, once it is there."""
    picture = page.get_by_alt_text(said, exact=True)
    expect(picture).to_be_visible(timeout=30_000)
    source = picture.get_attribute("src")
    assert source
    with urllib.request.urlopen(source) as response:
        return Image.open(io.BytesIO(response.read()))


@in_browser
def test_a_dropped_image_is_answered_and_what_speaks_for_a_class_is_shown(page):
    drop(page, png(HALF))
    picture = shown(page, f"Where champion looks for {LEFT}")
    assert picture.getpixel((0, 0)) == (253, 254, 200)
    expect(page.get_by_test_id(f"{LEFT}-confidence-set")).to_contain_text("88%")
    # the other class, which nothing in the image speaks for
    page.get_by_test_id("right-confidence-set").click()
    picture = shown(page, "Where champion looks for right")
    assert picture.getpixel((479, 0)) == (0, 0, 1)


@in_browser
def test_another_model_answers_anew(page):
    drop(page, png(HALF))
    shown(page, f"Where champion looks for {LEFT}")
    page.get_by_label("Model").click()
    page.get_by_role("option", name="flat").click()
    expect(page.get_by_text("flat has nothing to show")).to_be_visible(timeout=30_000)
    expect(page.get_by_test_id("right-confidence-set")).to_contain_text("88%")


@in_browser
def test_a_test_image_is_taken_as_it_is(page):
    page.get_by_label("Thumbnail 8 of 8").click()
    picture = shown(page, "The image")
    assert np.unique(np.asarray(picture)).tolist() == [14]
    shown(page, f"Where champion looks for {LEFT}")
    assert np.unique(np.asarray(shown(page, "What the model sees"))).tolist() == [14]


@in_browser
def test_what_is_no_model_is_told_in_words_and_its_name_is_text(page):
    drop(page, png(HALF))
    page.get_by_label("Model").click()
    page.get_by_role("option", name="<b>bad").click()
    said = page.get_by_text("models/<b>bad.keras: must be a .keras file that this pipeline wrote")
    expect(said).to_be_visible(timeout=30_000)


@in_browser
def test_what_is_no_image_is_told_in_words(page):
    drop(page, b"not an image")
    expect(page.get_by_text("is no image, or of an unknown kind")).to_be_visible(timeout=30_000)


# the last: it ends the server
def test_it_listens_on_this_machine_alone_and_leaves_nothing(server):
    connections = psutil.Process(server.process.pid).net_connections("inet")
    listening = {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    if CHROMIUM:  # what the tests before have dropped
        assert any(path.name == "half.png" for path in (server.folder / "temporary").rglob("*"))
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(120) == 0
    assert list((server.folder / "temporary").iterdir()) == []
    assert (server.folder / "log.txt").read_text() == ""
