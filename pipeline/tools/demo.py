"""Demo: a page in the browser: drop an image, see its classes.

    make demo       Ctrl-C ends it

Not a stage. It answers at 127.0.0.1 alone, and loads nothing from elsewhere; images that are
dropped on it are deleted when it is ended, by Ctrl-C or by closing the terminal.

Reads   models/*.keras; data/arrays/test, for images to begin with
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
from scipy.special import softmax

from pipeline.core.errors import PipelineError, one_line, run
from pipeline.core.files import read_json
from pipeline.data import arrays, preprocessor
from pipeline.data.preprocessor import Preprocessor
from pipeline.ingest.images import BadImage, open_for
from pipeline.reporting.drawing import colormaps
from pipeline.runtime import select_backend
from pipeline.tools.predict import seen, top_classes

if TYPE_CHECKING:
    import gradio
    import keras

HOST = "127.0.0.1"  # nobody else's
CHAMPION = "champion"
TOP = 5  # classes to name
EXAMPLES = 8  # test images to begin with
SHOWN = 480  # pixels, the longer side of a heat map
UPLOAD = "100mb"
GIVEN = "The image"
ENLARGED = f'img[alt="{GIVEN}"] {{object-fit: contain !important}}'  # also one of 8×8 pixels
UNSEEN = "Where it looks"
SEEN = "What the model sees"
EXPECTED = """A model knows images like those it was trained on. Under *What the model sees*, check
that yours has the same colours (light on dark, or dark on light) and margin as the test images."""


def models(folder: Path) -> dict[str, Path]:
    """Return the trained models by name, the champion first.

    Raises:
        PipelineError: There is none.
    """
    # not those that train is writing
    named = (path for path in sorted(folder.glob("*.keras")) if not path.name.startswith("."))
    paths = {path.stem: path for path in named}
    if not paths:
        raise PipelineError(f"{folder}: must hold a .keras file. Got none. Run `make repro`")
    return dict(sorted(paths.items(), key=lambda item: item[0] != CHAMPION))


def trained(path: Path) -> tuple["keras.Model", Preprocessor]:
    """Return a model of one level and what it takes, as its file is now.

    Raises:
        PipelineError: The file is no longer there, or damaged.
    """
    return _trained(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=4)
def _trained(path: Path, written: int) -> tuple["keras.Model", Preprocessor]:
    from pipeline.analysis.network import unnested
    from pipeline.runtime import backend

    kept = preprocessor.read(path)
    return unnested(backend.load(path)), kept


def answer(path: Path, encoded: bytes) -> dict[str, float]:
    """Return the probabilities of the most likely classes, the first of equals first.

    Raises:
        BadImage: It cannot be read.
        PipelineError: The model cannot be.
    """
    model, kept = trained(path)
    logits = model.predict_on_batch(kept.apply(open_for(encoded, kept))[None])
    return dict(top_classes(softmax(logits[0]), kept.classes, TOP))


def looks(path: Path, encoded: bytes, name: str) -> Image.Image | None:
    """Draw on an image where a model looks for a class.

    None if it does not know the class, or has no feature map.

    Raises: As `answer`.
    """
    from pipeline.analysis.grad_cam import grad_cam

    model, kept = trained(path)
    if name not in kept.classes:  # chosen while another model was asked
        return None
    image = open_for(encoded, kept)
    heat = grad_cam(model, kept.apply(image)[None], np.array([kept.classes.index(name)]))
    return None if heat is None else overlaid(image, heat[0])


def sight(path: Path, encoded: bytes) -> Image.Image:
    """Return an image as a model sees it, each pixel a square.

    Raises: As `answer`.
    """
    _, kept = trained(path)
    return seen(kept.apply(open_for(encoded, kept)), kept)


def overlaid(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Lay a heat map `(h, w)` in [0, 1] over an image of any size and mode; bright is 1."""
    scale = SHOWN / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    below = image.convert("L").convert("RGB").resize((width, height))
    colours = colormaps["inferno"](heat, bytes=True)[..., :3]  # (h, w, 3) uint8
    above = Image.fromarray(colours).resize(below.size, Image.Resampling.BILINEAR)
    return Image.blend(below, above, 0.6)


def examples(folder: Path, out: Path) -> list[tuple[str, str]]:
    """Write a few test images, evenly spaced, as files; return these with their class.

    Args:
        folder: Arrays that preprocess wrote; where it wrote none, there are no examples.
    """
    if not (folder / "test").is_dir():
        return []
    kept = Preprocessor.of(read_json(folder / "info.json"))
    images, labels = arrays.load(folder / "test")
    rows = np.unique(np.linspace(0, len(images) - 1, EXAMPLES).astype(int))
    found = []
    for row, image in zip(rows, kept.pixels(images[rows]), strict=True):
        path = out / f"test {row + 1}.png"
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)
        found.append((str(path), kept.classes[labels[row]]))
    return found


def page(found: dict[str, Path], tests: list[tuple[str, str]]) -> "gradio.Blocks":
    """Return the page on models by name, with test images as `examples` gives them."""
    import gradio as gr

    def told(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except (BadImage, PipelineError) as error:
            # the page takes it for HTML
            raise gr.Error(escape(one_line(str(error))), print_exception=False) from None

    def look(name: str, file: str | None, label: str | None) -> Any:
        if file is None or label is None:
            return gr.Image(None, label=UNSEEN, alt_text=UNSEEN)
        drawn = told(looks, found[name], Path(file).read_bytes(), label)
        said = f"Where {name} looks for {label}" if drawn else f"{name} has nothing to show"
        return gr.Image(drawn, label=said, alt_text=said)

    def show(name: str, file: str | None) -> tuple[Any, Any, Any]:
        if file is None:
            return None, None, look(name, None, None)
        encoded = Path(file).read_bytes()
        likely = told(answer, found[name], encoded)
        return told(sight, found[name], encoded), likely, look(name, file, next(iter(likely)))

    def look_for(name: str, file: str | None, event: gr.SelectData) -> Any:
        return look(name, file, event.value)

    def take(event: gr.SelectData) -> str:
        return tests[event.index][0]

    with gr.Blocks(title="cnn-pipeline: what it sees", analytics_enabled=False) as blocks:
        gr.Markdown("# What does it see, and where does it look?")
        with gr.Row():
            with gr.Column():
                model = gr.Dropdown(list(found), value=next(iter(found)), label="Model")
                image = gr.Image(label="Image", alt_text=GIVEN, height=360)
                # the file as it was: the model's own preprocessing opens and converts it
                image.preprocess = lambda file: file and file.path  # type: ignore
            with gr.Column():
                model_sees = gr.Image(
                    label=SEEN, alt_text=SEEN, interactive=False, format="png", height=360,
                    buttons=["download", "fullscreen"],
                )  # fmt: skip
                gr.Markdown(EXPECTED)
            with gr.Column():
                classes = gr.Label(label="Classes: choose one to see where it looks for it")
                heat = gr.Image(
                    label=UNSEEN, interactive=False, format="png", height=360,
                    buttons=["download", "fullscreen"],
                )  # fmt: skip
        if tests:
            gr.Markdown("Or one of the test images, here with its class:")
            gallery = gr.Gallery(
                tests, show_label=False, columns=EXAMPLES, height=170, object_fit="contain",
                allow_preview=False, buttons=[],
            )  # fmt: skip
            gallery.select(take, None, image)
        # one at a time: they share a model
        alone: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        for changed in (model.change, image.change):
            changed(show, [model, image], [model_sees, classes, heat], **alone)
        classes.select(look_for, [model, image], heat, **alone)
    return blocks


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--arrays", type=Path, default=Path("data/arrays"))
    args = parser.parse_args(argv)

    # a terminal that is closed ends it as Ctrl-C does, but under nohup
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    found = models(args.models)
    if find_spec("gradio") is None:
        raise PipelineError("gradio is not installed. Run `uv sync --inexact --group demo`")
    select_backend.use_default()
    trained(next(iter(found.values())))  # before anyone waits for it
    # Gradio asks itself whether it answers, which a company's proxy would be sent
    spared = os.environ.get("no_proxy", os.environ.get("NO_PROXY"))
    os.environ["no_proxy"] = f"{spared},{HOST}" if spared else HOST
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads go with it
        (Path(folder) / "examples").mkdir()
        blocks = page(found, examples(args.arrays, Path(folder) / "examples"))
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
            max_file_size=UPLOAD,
            css=ENLARGED,
        )
        print(f"demo: {url} on {len(found)} models, until Ctrl-C", flush=True)
        blocks.block_thread()


if __name__ == "__main__":
    run(main)
