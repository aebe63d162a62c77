"""Preprocessor: what a trained model takes and answers, kept in its file.

A member of the .keras archive that Keras passes over: a model then needs no params.yaml to be
used, and is never fed by one that has changed since.
"""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import require_file

if TYPE_CHECKING:
    from PIL import Image

MEMBER = "preprocessing.json"


@dataclass(frozen=True)
class Preprocessor:
    """What preprocess did to the training images."""

    classes: list[str]
    """Names, in the order of the logits"""
    image_shape: list[int]
    """h, w and c"""
    normalize: str
    """unit or standardize"""
    mean: list[float]
    """Of each channel, of pixels in [0, 1]"""
    std: list[float]
    # files that were written before these were kept have none
    intensity_range: list[float] | None = None
    """What became 0 and 255 of grey images of more than 8 bits; None: there were none"""
    max_megapixels: float = 250
    """Images with more were refused"""

    @classmethod
    def of(cls, info: dict[str, Any]) -> "Preprocessor":
        """Take what matters from data/arrays/info.json."""
        return cls(**{name: info[name] for name in cls.__dataclass_fields__ if name in info})

    def shift_and_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what is taken from pixels in [0, 1], and what they are then divided by: `(c,)`."""
        if self.normalize == "unit":
            return np.zeros(len(self.mean), np.float32), np.ones(len(self.mean), np.float32)
        std = np.array(self.std, np.float32)
        # a channel without contrast has nothing to divide by
        return np.array(self.mean, np.float32), np.where(std > 0, std, 1).astype(np.float32)

    def apply(self, image: "Image.Image") -> np.ndarray:
        """Return an image of any size and mode as the model takes it: `(h, w, c)` float32."""
        height, width, channels = self.image_shape
        return self.normalized(to_pixels(image, (height, width, channels)))

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """Return uint8 pixels `(…, c)` as the model takes them, float32."""
        return self.standardize(pixels / np.float32(255))

    def standardize(self, images: np.ndarray) -> np.ndarray:
        """Turn float32 images `(…, c)` in [0, 1], in place, into what the model takes."""
        shift, scale = self.shift_and_scale()
        images -= shift
        images /= scale
        return images

    def visible(self, images: np.ndarray) -> np.ndarray:
        """Return images `(…, c)` that the model takes as they looked, in [0, 1]."""
        shift, scale = self.shift_and_scale()
        return np.clip(images * scale + shift, 0, 1)

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """Return the uint8 pixels that images `(…, c)` as the model takes them were made of."""
        return np.rint(self.visible(images) * 255).astype(np.uint8)


def to_pixels(image: "Image.Image", shape: tuple[int, int, int]) -> np.ndarray:
    """Return an image as `(h, w, c)` uint8, resized from another size (antialiased bilinear).

    Args:
        image: With 8 bits a channel, of any mode.
        shape: `(h, w, c)`; c is 1, for grey, or 3.
    """
    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:  # which would copy it
        image = image.convert(mode)
    if image.size != (width, height):
        from PIL.Image import Resampling  # training does not need it

        image = image.resize((width, height), Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)


def store(path: Path, preprocessing: Preprocessor) -> None:
    """Add it to a .keras file; equal contents give equal bytes."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(MEMBER), json.dumps(asdict(preprocessing)))


def read(path: Path) -> Preprocessor:
    """Return what a .keras file keeps.

    Raises:
        PipelineError: There is no such file, it is damaged, or it was not trained here.
    """
    models = ", ".join(str(model) for model in sorted(path.parent.glob("*.keras")))
    require_file(path, f"Models: {models}" if models else "Run `dvc repro`")
    try:
        with zipfile.ZipFile(path) as archive:
            return Preprocessor(**json.loads(archive.read(MEMBER)))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise PipelineError(
            f"{path}: must be a .keras file that this pipeline wrote, with {MEMBER} in it. "
            f"Got {error}. Run `dvc repro`"
        ) from None
