"""Preprocessor: class names and preprocessing of a model, stored in its .keras file.

Keras ignores the additional file in its archive. A stored model can then be used without
params.yaml, and always gets the preprocessing that it was trained with.
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
    """Class names of a model, and the preprocessing of its training images."""

    classes: list[str]
    """Class names in the order of the logits"""
    image_shape: list[int]
    """h, w and c"""
    normalize: str
    """`unit` (pixels in [0, 1]) or `standardize` ((pixel - mean) / std)"""
    mean: list[float]
    """Mean of each channel, for pixels in [0, 1]"""
    std: list[float]
    """Standard deviation of each channel, for pixels in [0, 1]"""
    # model files of older versions lack the following fields
    intensity_range: list[float] | None = None
    """Values of grayscale images of more than 8 bits that became 0 and 255; None: no such images"""
    max_megapixels: float = 250
    """Larger images were refused"""
    resize: str = "stretch"
    """How images of another size were resized: `stretch`, `crop` or `pad`, see `to_size`"""

    @classmethod
    def of(cls, info: dict[str, Any]) -> "Preprocessor":
        """Create a preprocessor from the contents of data/arrays/info.json."""
        return cls(**{name: info[name] for name in cls.__dataclass_fields__ if name in info})

    def shift_and_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Return shift and scale, each `(c,)` float32: the model takes (pixel - shift) / scale.

        Pixels are in [0, 1].
        """
        if self.normalize == "unit":
            return np.zeros(len(self.mean), np.float32), np.ones(len(self.mean), np.float32)
        std = np.array(self.std, np.float32)
        # a constant channel has a standard deviation of 0, and is only shifted
        return np.array(self.mean, np.float32), np.where(std > 0, std, 1).astype(np.float32)

    def apply(self, image: "Image.Image") -> np.ndarray:
        """Convert an image of any size and mode to the model's input, `(h, w, c)` float32."""
        height, width, channels = self.image_shape
        return self.normalized(to_pixels(image, (height, width, channels), self.resize))

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """Convert uint8 pixels `(…, c)` to the model's input, float32."""
        return self.standardize(pixels / np.float32(255))

    def standardize(self, images: np.ndarray) -> np.ndarray:
        """Normalize float32 images `(…, c)` in [0, 1] in place, and return them."""
        shift, scale = self.shift_and_scale()
        images -= shift
        images /= scale
        return images

    def visible(self, images: np.ndarray) -> np.ndarray:
        """Undo the normalization of images `(…, c)`; return pixels in [0, 1]."""
        shift, scale = self.shift_and_scale()
        return np.clip(images * scale + shift, 0, 1)

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """Undo the normalization of images `(…, c)`; return uint8 pixels."""
        return np.rint(self.visible(images) * 255).astype(np.uint8)


def to_pixels(image: "Image.Image", shape: tuple[int, int, int], resize: str) -> np.ndarray:
    """Convert an image to pixels `(h, w, c)` uint8, resized if needed.

    Args:
        image: An image of any mode with 8 bits per channel.
        shape: `(h, w, c)`; c is 1 (grayscale) or 3 (RGB).
        resize: As in `to_size`.
    """
    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:  # converting to the same mode would copy the image
        image = image.convert(mode)
    return np.asarray(to_size(image, (width, height), resize)).reshape(shape)


def to_size(image: "Image.Image", size: tuple[int, int], resize: str) -> "Image.Image":
    """Resize an image (antialiased bilinear); return it unchanged if it has the size.

    Args:
        image: An image of mode L or RGB.
        size: Width and height.
        resize: `stretch` changes the aspect ratio. `crop` keeps it: the image fills the size, and
            what extends beyond it on both sides is cut off. `pad` keeps it too: the whole image is
            centered on black.
    """
    from PIL import Image, ImageOps  # imported here: training does not need Pillow

    if image.size == size:
        return image
    bilinear = Image.Resampling.BILINEAR
    if resize == "crop":
        return ImageOps.fit(image, size, bilinear)
    if resize == "pad":
        # not ImageOps.pad, which fails if a side of a narrow image rounds to 0. In integers, since
        # exported models have no double precision and must round in the same way
        is_wider = image.width * size[1] > image.height * size[0]
        side, length = (size[0], image.width) if is_wider else (size[1], image.height)
        width, height = (max(1, (2 * old * side + length) // (2 * length)) for old in image.size)
        canvas = Image.new(image.mode, size)
        corner = ((size[0] - width) // 2, (size[1] - height) // 2)
        canvas.paste(image.resize((width, height), bilinear), corner)
        return canvas
    return image.resize(size, bilinear)


def store(path: Path, preprocessor: Preprocessor) -> None:
    """Add a preprocessor to a .keras file; equal contents give equal bytes."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(MEMBER), json.dumps(asdict(preprocessor)))


def read(path: Path, remedy: str = "Run `dvc repro`") -> Preprocessor:
    """Return the preprocessor stored in a .keras file.

    Args:
        path: The file.
        remedy: What to do if neither the file nor another model in its folder exists.

    Raises:
        PipelineError: The file does not exist, is damaged, or holds no preprocessor.
    """
    models = ", ".join(str(model) for model in sorted(path.parent.glob("*.keras")))
    require_file(path, f"Models: {models}" if models else remedy)
    try:
        with zipfile.ZipFile(path) as archive:
            return Preprocessor(**json.loads(archive.read(MEMBER)))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise PipelineError(
            f"{path}: must be a .keras file that this pipeline wrote, with {MEMBER} in it. "
            f"Got {error}. Run `dvc repro`"
        ) from None
