"""Demo: classify images in the browser.

    make demo       Ctrl-C ends it

Not a stage. It listens on 127.0.0.1 only and loads nothing from other hosts. Dropped images are
deleted when it ends, by Ctrl-C or by closing the terminal.

Reads   models/champion.keras, models/MODEL/SEED.keras; data/arrays/test, for example images
"""

import argparse
import os
import signal
import tempfile
from collections.abc import Callable
from functools import lru_cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.core.errors import PipelineError, one_line, run
from pipeline.core.files import read_json
from pipeline.core.text import counted
from pipeline.data import arrays, calibration
from pipeline.data.calibration import Calibration
from pipeline.data.preprocessor import Preprocessor, to_size
from pipeline.data.preprocessor import read as read_preprocessor
from pipeline.ingest.images import BadImage, open_for
from pipeline.reporting.drawing import colormaps
from pipeline.runtime import select_backend
from pipeline.tools.predict import to_picture, top_classes

if TYPE_CHECKING:
    import gradio
    import keras

HOST = "127.0.0.1"  # reachable from this machine only
CHAMPION = "champion"
TOP = 5  # number of classes shown
EXAMPLES = 8  # number of test images offered
HEAT_MAP_SIDE = 480  # pixels, the longer side
MAX_UPLOAD = "100mb"
IMAGE_TEXT = "The image"
CSS = f'img[alt="{IMAGE_TEXT}"] {{object-fit: contain !important}}'  # enlarges small images
HEAT_MAP_TEXT = "Where the model looks"
INPUT_TEXT = "What the model sees"
ADVICE = """A model classifies images like those it was trained on. Under *What the model sees*,
check that your image has the same colours (light on dark, or dark on light) and margin as the test
images."""


def find_models(folder: Path) -> dict[str, Path]:
    """Return the paths of all trainings by name, such as baseline-0, the champion first.

    Raises:
        PipelineError: The folder holds no model.
    """
    # Hidden files are models that train is still writing. The model card's folder has a copy of the
    # champion.
    files = [
        path
        for pattern in ("*.keras", "*/*.keras")
        for path in folder.glob(pattern)
        if not path.name.startswith(".") and path.parent != folder / CHAMPION
    ]
    if not files:
        raise PipelineError(f"{folder}: must hold a .keras file. Got none. Run `make repro`")
    # seeds in numerical order: 2 is shorter than 10
    files.sort(key=lambda path: (path.stem != CHAMPION, path.parent, len(path.stem), path.stem))
    return {"-".join(path.relative_to(folder).with_suffix("").parts): path for path in files}


def load(path: Path) -> tuple["keras.Model", Preprocessor, Calibration]:
    """Return a model without nested models, and what its file holds; cached until that changes.

    Raises:
        PipelineError: The file no longer exists or is damaged.
    """
    return _load(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=4)
def _load(path: Path, modified: int) -> tuple["keras.Model", Preprocessor, Calibration]:
    from pipeline.analysis.network import unnested
    from pipeline.runtime import backend

    preprocessor = read_preprocessor(path)
    return unnested(backend.load(path)), preprocessor, calibration.read(path)


def predict(path: Path, encoded: bytes) -> dict[str, float]:
    """Return the probabilities of the most likely classes, in descending order.

    Args:
        path: The model.
        encoded: The image file.

    Raises:
        BadImage: The image cannot be read.
        PipelineError: The model cannot be read.
    """
    model, preprocessor, calibrated = load(path)
    logits = model.predict_on_batch(preprocessor.apply(open_for(encoded, preprocessor))[None])
    return dict(top_classes(calibrated.probabilities(logits)[0], preprocessor.classes, TOP))


def draw_grad_cam(path: Path, encoded: bytes, class_name: str) -> Image.Image | None:
    """Draw the Grad-CAM heat map of a class over an image.

    Returns:
        The picture, or None if the model does not know the class or has no feature map.

    Raises: As `predict`.
    """
    from pipeline.analysis.grad_cam import grad_cam

    model, preprocessor, _ = load(path)
    classes = preprocessor.classes
    if class_name not in classes:  # selected before the model was changed
        return None
    inputs = preprocessor.apply(open_for(encoded, preprocessor))[None]
    heat = grad_cam(model, inputs, np.array([classes.index(class_name)]))
    if heat is None:
        return None
    image = open_for(encoded, preprocessor, (HEAT_MAP_SIDE, HEAT_MAP_SIDE))
    return overlay(image, heat[0], preprocessor)


def draw_input(path: Path, encoded: bytes) -> Image.Image:
    """Return an image as the model sees it, enlarged unsmoothed.

    Raises: As `predict`.
    """
    _, preprocessor, _ = load(path)
    return to_picture(preprocessor.apply(open_for(encoded, preprocessor)), preprocessor)


def overlay(image: Image.Image, heat: np.ndarray, preprocessor: Preprocessor) -> Image.Image:
    """Blend a heat map with the image that it belongs to, cropped or padded as for the model.

    Args:
        image: An image of any size and mode.
        heat: `(h, w)` in [0, 1], bright at 1.
        preprocessor: The preprocessing of the model. A stretched image keeps its aspect ratio here.
    """
    input_height, input_width, _ = preprocessor.image_shape
    shown = image.size if preprocessor.resize == "stretch" else (input_width, input_height)
    scale = HEAT_MAP_SIDE / max(shown)
    width, height = (max(1, round(side * scale)) for side in shown)
    background = to_size(image.convert("L"), (width, height), preprocessor.resize).convert("RGB")
    colours = colormaps["inferno"](heat, bytes=True)[..., :3]  # (h, w, 3) uint8
    foreground = Image.fromarray(colours).resize(background.size, Image.Resampling.BILINEAR)
    return Image.blend(background, foreground, 0.6)


def write_examples(folder: Path, out: Path) -> list[tuple[str, str]]:
    """Write a few evenly spaced test images as PNG; return each path with its class.

    Args:
        folder: The arrays that preprocess wrote; if it wrote none, there are no examples.
        out: An existing folder for the images.
    """
    if not (folder / "test").is_dir():
        return []
    preprocessor = Preprocessor.of(read_json(folder / "info.json"))
    images, labels = arrays.load(folder / "test")
    rows = np.unique(np.linspace(0, len(images) - 1, EXAMPLES).astype(int))
    examples = []
    for row, image in zip(rows, preprocessor.pixels(images[rows]), strict=True):
        path = out / f"test {row + 1}.png"
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)
        examples.append((str(path), preprocessor.classes[labels[row]]))
    return examples


def page(models: dict[str, Path], examples: list[tuple[str, str]]) -> "gradio.Blocks":
    """Return the page.

    Args:
        models: As `find_models` returns them.
        examples: As `write_examples` returns them.
    """
    import gradio as gr

    def call(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except (BadImage, PipelineError) as error:
            # Gradio shows the message as HTML
            raise gr.Error(escape(one_line(str(error))), print_exception=False) from None

    def show_heat_map(name: str, file: str | None, class_name: str | None) -> Any:
        if file is None or class_name is None:
            return gr.Image(None, label=HEAT_MAP_TEXT, alt_text=HEAT_MAP_TEXT)
        picture = call(draw_grad_cam, models[name], Path(file).read_bytes(), class_name)
        text = f"Where {name} looks for {class_name}" if picture else f"{name} has no heat map"
        return gr.Image(picture, label=text, alt_text=text)

    def show(name: str, file: str | None) -> tuple[Any, Any, Any]:
        if file is None:
            return None, None, show_heat_map(name, None, None)
        encoded = Path(file).read_bytes()
        classes = call(predict, models[name], encoded)
        heat_map = show_heat_map(name, file, next(iter(classes)))
        return call(draw_input, models[name], encoded), classes, heat_map

    def select_class(name: str, file: str | None, event: gr.SelectData) -> Any:
        return show_heat_map(name, file, event.value)

    def select_example(event: gr.SelectData) -> str:
        return examples[event.index][0]

    with gr.Blocks(title="cnn-pipeline: what it sees", analytics_enabled=False) as blocks:
        gr.Markdown("# What does the model see, and where does it look?")
        with gr.Row():
            with gr.Column():
                model = gr.Dropdown(list(models), value=next(iter(models)), label="Model")
                image = gr.Image(label="Image", alt_text=IMAGE_TEXT, height=360)
                # hand over the file unchanged: the model's preprocessing opens and converts it
                image.preprocess = lambda file: file and file.path  # type: ignore
            with gr.Column():
                model_sees = gr.Image(
                    label=INPUT_TEXT, alt_text=INPUT_TEXT, interactive=False, format="png",
                    height=360,
                    buttons=["download", "fullscreen"],
                )  # fmt: skip
                gr.Markdown(ADVICE)
            with gr.Column():
                classes = gr.Label(label="Classes: select one to see where the model looks for it")
                heat_map = gr.Image(
                    label=HEAT_MAP_TEXT, interactive=False, format="png", height=360,
                    buttons=["download", "fullscreen"],
                )  # fmt: skip
        if examples:
            gr.Markdown("Or select one of these test images, shown with its class:")
            gallery = gr.Gallery(
                examples, show_label=False, columns=EXAMPLES, height=170, object_fit="contain",
                allow_preview=False, buttons=[],
            )  # fmt: skip
            gallery.select(select_example, None, image)
        # one call at a time, since they share a model
        limit: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        for change in (model.change, image.change):
            change(show, [model, image], [model_sees, classes, heat_map], **limit)
        classes.select(select_class, [model, image], heat_map, **limit)
    return blocks


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--arrays", type=Path, default=Path("data/arrays"))
    args = parser.parse_args(argv)

    # closing the terminal ends it like Ctrl-C, except under nohup
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    models = find_models(args.models)
    if find_spec("gradio") is None:
        raise PipelineError("gradio is not installed. Run `uv sync --inexact --group demo`")
    select_backend.use_default()
    load(next(iter(models.values())))  # so that the first image does not wait for it
    # Gradio checks that its server responds; this request must not go through a proxy
    no_proxy = os.environ.get("no_proxy", os.environ.get("NO_PROXY"))
    os.environ["no_proxy"] = f"{no_proxy},{HOST}" if no_proxy else HOST
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads are deleted with it
        (Path(folder) / "examples").mkdir()
        blocks = page(models, write_examples(args.arrays, Path(folder) / "examples"))
        _, url, _ = blocks.launch(
            server_name=HOST,
            share=False,
            inbrowser=True,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            footer_links=[],
            max_file_size=MAX_UPLOAD,
            css=CSS,
        )
        print(f"demo: {url} with {counted(len(models), 'model')}. Ctrl-C ends it", flush=True)
        blocks.block_thread()


if __name__ == "__main__":
    run(main)
