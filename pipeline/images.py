"""Images: one encoded image as pixels."""

import io
import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import PipelineError
from pipeline.preprocessing import to_pixels
from pipeline.raw import Example

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
# what Pillow raises for damaged files
DAMAGED = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, ArithmeticError, RuntimeError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip


class BadImage(Exception):
    """A file that is no image, damaged, or of a kind whose white is not known; says which."""


class ColourAmongGrey(Exception):
    """The first image is grey and a later one is not: all must be decoded in colour."""


def open_image(encoded: bytes) -> Image.Image:
    """Open an encoded image, turned the way its camera was held, with 8 bits a channel.

    Raises:
        BadImage: It cannot be.
    """
    if not encoded:
        raise BadImage("is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded))
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
    except UnidentifiedImageError:
        raise BadImage("is no image, or of an unknown kind") from None
    except DAMAGED as error:
        raise BadImage(f"is damaged ({error})") from None
    if image.mode.startswith("I;16"):  # grey; by the high byte, as Pillow reads colour of 16 bits
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise BadImage(f"must have 8 or 16 bits a channel (has mode {image.mode})")
    return image


def decode(example: Example, shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    """Decode one image.

    Args:
        example: Encoded image.
        shape: `(h, w, c)` to return; c is 1 or 3.
        resize: Whether to resize an image of another size (antialiased bilinear).

    Returns:
        `(h, w, c)` uint8.

    Raises:
        PipelineError: It has another size, without `resize`.
        BadImage: See `open_image`.
        ColourAmongGrey: c is 1, and the image has colour.
    """
    image = open_image(example.image)
    height, width, channels = shape
    if channels == 1 and image.mode not in GREY_MODES:
        raise ColourAmongGrey
    if image.size != (width, height) and not resize:
        raise PipelineError(
            f"{example.id}: is {image.height}×{image.width} pixels, "
            f"the first image {height}×{width}. Set preprocess.image_size: [height, width]"
        )
    return to_pixels(image, shape)
