"""Images: one encoded image as pixels."""

import io
import logging
import re
import struct
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from pipeline.core.errors import PipelineError
from pipeline.data.preprocessor import Preprocessor, to_pixels

EIGHT_BITS = ("L", "RGB")
FULL_RANGE = (0, 65535)  # of 16 bits
CUT = ("RGB", "RGBA", "CMYK")  # modes of 8 bits that colour of 16 bits is opened in
HIGH_BYTE = "high_byte"
# Brands of files that Pillow does not read: a phone's photographs.
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# what Pillow raises for damaged files
DAMAGED = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, ArithmeticError, RuntimeError,
    struct.error, ImageCms.PyCMSError,
)  # fmt: skip
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# what it logs names no file; what it raises, we report with the file's name
logging.getLogger("PIL").addHandler(logging.NullHandler())


class BadImage(Exception):
    """A file that is no image, damaged, too large, or whose white is not known; says which."""


class ColourAmongGrey(Exception):
    """The first image is grey and a later one is not: all must be decoded in colour."""


def open_image(encoded: bytes, max_megapixels: float) -> Image.Image:
    """Open an encoded image, turned the way its camera was held.

    Returns:
        Of mode RGB or L; a grey one of more than 8 bits is I;16, I (32 bits) or F (floating
        point). Colour of 16 bits has its high 8, since Pillow reads no more of
        it, and `info[HIGH_BYTE]` says so.

    Raises:
        BadImage: It cannot be.
    """
    if not encoded:
        raise BadImage("is empty")
    # Pillow checks it for images within files, too. Up to twice as many it would only warn
    Image.MAX_IMAGE_PIXELS = int(max_megapixels * 1e6)
    try:
        with warnings.catch_warnings():
            # of metadata and palettes, without the file's name, and no pixel depends on them
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file = Image.open(io.BytesIO(encoded))
            cut = bool(re.search(";16[BLN]", str(file.tile))) and file.mode in CUT
            image: Image.Image = file
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            image = _simplified(image)
            image.info[HIGH_BYTE] = cut
    except UnidentifiedImageError:
        if encoded[4:8] == b"ftyp" and encoded[8:12] in HEIC:
            raise BadImage("is HEIC, which cannot be read: convert it to JPEG or PNG") from None
        raise BadImage("is no image, or of an unknown kind") from None
    except TOO_LARGE as error:
        pixels = re.search(r"\d+", str(error))
        raise BadImage(
            f"has {int(pixels[0]) / 1e6 if pixels else 0:.6g} megapixels, more than "
            f"preprocess.max_megapixels: {max_megapixels:g} (raise it, or shrink the image)"
        ) from None
    except DAMAGED as error:
        raise BadImage(f"is damaged ({error})") from None
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise BadImage("must have finite pixels (has NaN or infinity)")
    return image


def _simplified(image: Image.Image) -> Image.Image:
    """Bring every mode of a file to one of those that `open_image` returns."""
    if image.mode in EIGHT_BITS or image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return image
    if image.mode == "LAB":
        return _from_lab().apply(image)
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


@lru_cache(maxsize=1)
def _from_lab() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def extremes(image: Image.Image) -> tuple[float, float] | None:
    """Return the lowest and the highest pixel of a grey image of more than 8 bits."""
    if image.mode in EIGHT_BITS:
        return None
    pixels = np.asarray(image)
    return float(pixels.min()), float(pixels.max())


def to_8_bits(image: Image.Image, intensity_range: Sequence[float] | None) -> Image.Image:
    """Bring a grey image of more than 8 bits to 8; others are returned as they are.

    Args:
        image: From `open_image`.
        intensity_range: What becomes 0 and 255, with everything beyond; None: not known, so that
            16 bits count in full.

    Raises:
        BadImage: It has 32 bits, and the range is not known.
    """
    if image.mode in EIGHT_BITS:
        return image
    if intensity_range is None and not image.mode.startswith("I;16"):
        raise BadImage(
            f"is read as numbers of 32 bits (mode {image.mode}), whose black and white are not "
            "known: convert it to 8 or 16 bits, or train with preprocess.intensity_range"
        )
    low, high = intensity_range or FULL_RANGE
    factor = 255 / ((high - low) or 1)  # images of a single value become black
    pixels = np.asarray(image)  # (h, w)
    scaled = np.empty(pixels.shape, np.uint8)
    rows = max(1, 2**20 // image.width)  # at a time: bounds memory where images are large
    for start in range(0, image.height, rows):
        part = np.clip(pixels[start : start + rows].astype(np.float32), low, high)
        scaled[start : start + rows] = np.rint((part - low) * factor)
    return Image.fromarray(scaled)


def open_for(encoded: bytes, kept: Preprocessor) -> Image.Image:
    """Open an encoded image, with 8 bits a channel, as a model's training images were.

    Raises:
        BadImage: It cannot be.
    """
    return to_8_bits(open_image(encoded, kept.max_megapixels), kept.intensity_range)


def decode(image: Image.Image, name: str, shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    """Return an image as pixels of a given shape.

    Args:
        image: From `to_8_bits`.
        name: For the message.
        shape: `(h, w, c)` to return; c is 1 or 3.
        resize: Whether to resize an image of another size (antialiased bilinear).

    Returns:
        `(h, w, c)` uint8.

    Raises:
        PipelineError: It has another size, without `resize`.
        ColourAmongGrey: c is 1, and the image has colour.
    """
    height, width, channels = shape
    if channels == 1 and image.mode != "L":
        raise ColourAmongGrey
    if image.size != (width, height) and not resize:
        raise PipelineError(
            f"{name}: is {image.height}×{image.width} pixels, "
            f"the first image {height}×{width}. Set preprocess.image_size: [height, width]"
        )
    return to_pixels(image, shape)
