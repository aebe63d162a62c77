"""Images: convert one encoded image to pixels."""

import io
import logging
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from pipeline.core.errors import PipelineError
from pipeline.data.preprocessor import Preprocessor, to_pixels

EIGHT_BITS = ("L", "RGB")
FULL_RANGE = (0, 65535)  # of 16-bit images
HIGH_BYTE_MODES = ("RGB", "RGBA", "CMYK")  # 8-bit modes in which Pillow opens 16-bit color
HIGH_BYTE = "high_byte"
MULTI_FRAME = "multi_frame"
# Formats whose frames belong to one picture: previews and depth maps of phones, or layers.
ONE_PICTURE = ("MPO", "PSD")
# HEIC, the format of many phones, which Pillow reads with pi-heif.
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# exceptions that Pillow raises for damaged files
DAMAGED = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, ArithmeticError, RuntimeError,
    struct.error, ImageCms.PyCMSError,
)  # fmt: skip
# Large JPEGs are decoded at a reduced size of at least this many times the size that is needed.
OVERSAMPLING = 2
REDUCTIONS = (8, 4, 2)  # of libjpeg that keep the quality
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# Pillow's log messages do not name the file; errors are reported here with its name
logging.getLogger("PIL").addHandler(logging.NullHandler())


class BadImage(Exception):
    """An encoded image that cannot be used; the message is the reason, without the file name."""


class ColorAmongGrayscale(Exception):
    """The first image is grayscale and a later one is not: all must be decoded in color."""


def open_image(
    encoded: bytes, max_megapixels: float, target: Sequence[int] | None = None
) -> Image.Image:
    """Open an encoded image, and apply its EXIF orientation.

    Args:
        encoded: Contents of an image file.
        max_megapixels: Larger images are refused.
        target: Height and width that the image will be resized to. Large JPEGs are then decoded at
            a reduced size, as in `_reduce`. None: full size.

    Returns:
        An image of mode RGB or L; grayscale images of more than 8 bits have mode I;16, I (32 bits)
        or F (floating point). Of 16-bit color images, Pillow reads only the high 8 bits;
        `info[HIGH_BYTE]` is then true. Of animated and multi-page files it is the first frame;
        `info[MULTI_FRAME]` is then true.

    Raises:
        BadImage: The image is empty, damaged, too large or of an unknown format.
    """
    with _opened(encoded, max_megapixels) as file:
        is_16_bit = bool(re.search(";16[BLN]", str(file.tile)))
        high_byte = is_16_bit and file.mode in HIGH_BYTE_MODES
        is_multi_frame = _is_multi_frame(file)
        if target:
            _reduce(file, target)
        image: Image.Image = file
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
        image = _simplified(image)
        image.info |= {HIGH_BYTE: high_byte, MULTI_FRAME: is_multi_frame}
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise BadImage("must have finite pixels (has NaN or infinity)")
    return image


@contextmanager
def _opened(encoded: bytes, max_megapixels: float) -> Iterator[ImageFile.ImageFile]:
    """Open an encoded image, which is decoded in the block.

    Raises:
        BadImage: The image is empty, damaged, too large or of an unknown format.
    """
    if not encoded:
        raise BadImage("is empty")
    # Pillow checks this for embedded images too; up to twice the limit it only warns
    Image.MAX_IMAGE_PIXELS = int(max_megapixels * 1e6)
    is_heic = encoded[4:8] == b"ftyp" and encoded[8:12] in HEIC_BRANDS
    needs_pi_heif = is_heic and not _reads_heic()
    try:
        with warnings.catch_warnings():
            # warnings about metadata and palettes do not name the file, and do not affect pixels
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        if needs_pi_heif:
            raise BadImage(
                "is HEIC, which needs pi-heif: run `uv sync --inexact --group heic`, or convert it "
                "to JPEG or PNG"
            ) from None
        raise BadImage("is not an image, or has an unknown format") from None
    except TOO_LARGE as error:
        pixels = re.search(r"\d+", str(error))
        raise BadImage(
            f"has {int(pixels[0]) / 1e6 if pixels else 0:.6g} megapixels, more than "
            f"preprocess.max_megapixels: {max_megapixels:g} (raise it, or shrink the image)"
        ) from None
    except DAMAGED as error:
        raise BadImage(f"is damaged ({error})") from None


def _is_multi_frame(file: ImageFile.ImageFile) -> bool:
    return getattr(file, "is_animated", False) and file.format not in ONE_PICTURE


class Header(NamedTuple):
    """What is known of an image without keeping its pixels."""

    height: int
    width: int
    """Both after the EXIF orientation has been applied"""
    is_multi_frame: bool
    """Whether the file is animated or has several pages"""


def check(encoded: bytes, max_megapixels: float) -> Header:
    """Check that an encoded image can be decoded, and return its size.

    JPEGs are decoded at an eighth of their size, which takes less time and finds the same damage.

    Raises:
        BadImage: The image is empty, damaged, too large or of an unknown format.
    """
    with _opened(encoded, max_megapixels) as file:
        width, height = file.size
        if file.getexif().get(ExifTags.Base.Orientation, 1) in TRANSPOSED:
            width, height = height, width
        is_multi_frame = _is_multi_frame(file)
        file.draft(None, (1, 1))
        file.load()
    return Header(height, width, is_multi_frame)


@lru_cache(maxsize=1)
def _reads_heic() -> bool:
    """Let Pillow read HEIC; return whether pi-heif, which is optional, is installed."""
    if not find_spec("pi_heif"):
        return False
    import pi_heif

    Image.init()  # Pillow's own formats come first: some AVIF files look like HEIC
    pi_heif.register_heif_opener()
    return True


def _reduce(file: ImageFile.ImageFile, target: Sequence[int]) -> None:
    """Let libjpeg decode a large JPEG at a reduced size; do nothing in other formats.

    The size is OVERSAMPLING times the target or more, whatever the orientation. The factor divides
    both sides: otherwise libjpeg adds a part of a pixel, which would shift the others.

    Args:
        file: A JPEG that is not decoded yet.
        target: Height and width that the image will be resized to.
    """
    needed = OVERSAMPLING * max(target)
    for factor in REDUCTIONS:
        width, height = (side // factor for side in file.size)
        if min(width, height) >= needed and (width * factor, height * factor) == file.size:
            file.draft(None, (width, height))
            return


def _simplified(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to one of the modes that `open_image` returns."""
    if image.mode in EIGHT_BITS or image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return image
    if image.mode == "LAB":
        return _lab_to_srgb().apply(image)
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def extremes(image: Image.Image) -> tuple[float, float] | None:
    """Return the lowest and highest pixel of a grayscale image of more than 8 bits.

    For 8-bit images, return None.
    """
    if image.mode in EIGHT_BITS:
        return None
    pixels = np.asarray(image)
    return float(pixels.min()), float(pixels.max())


def to_8_bits(image: Image.Image, intensity_range: Sequence[float] | None) -> Image.Image:
    """Scale a grayscale image of more than 8 bits to 8 bits; return 8-bit images unchanged.

    Args:
        image: From `open_image`.
        intensity_range: Values that become 0 and 255; values outside are clipped. None: the full
            range of 16 bits.

    Raises:
        BadImage: The image has 32 bits, and `intensity_range` is None.
    """
    if image.mode in EIGHT_BITS:
        return image
    if intensity_range is None and not image.mode.startswith("I;16"):
        raise BadImage(
            f"has pixels of 32 bits (mode {image.mode}), whose values of black and white are not "
            "known: convert it to 8 or 16 bits, or train with preprocess.intensity_range"
        )
    low, high = intensity_range or FULL_RANGE
    factor = 255 / ((high - low) or 1)  # images of a single value become black
    pixels = np.asarray(image)  # (h, w)
    scaled = np.empty(pixels.shape, np.uint8)
    rows = max(1, 2**20 // image.width)  # at a time; bounds memory for large images
    for start in range(0, image.height, rows):
        part = np.clip(pixels[start : start + rows].astype(np.float32), low, high)
        scaled[start : start + rows] = np.rint((part - low) * factor)
    return Image.fromarray(scaled)


def open_for(
    encoded: bytes, preprocessor: Preprocessor, target: Sequence[int] | None = None
) -> Image.Image:
    """Open an encoded image with 8 bits per channel, with the options of a trained model.

    Args:
        encoded: Contents of an image file.
        preprocessor: The preprocessing of the model.
        target: As in `open_image`; None: the size of the model's input.

    Raises:
        BadImage: The image cannot be used.
    """
    target = target or preprocessor.image_shape[:2]
    image = open_image(encoded, preprocessor.max_megapixels, target)
    return to_8_bits(image, preprocessor.intensity_range)


def decode(
    image: Image.Image, name: str, shape: tuple[int, int, int], resize: str | None
) -> np.ndarray:
    """Convert an image to pixels of a given shape.

    Args:
        image: From `to_8_bits`.
        name: Name of the image in error messages.
        shape: `(h, w, c)`; c is 1 (grayscale) or 3 (RGB).
        resize: How to resize images of other sizes, as in `to_size`; None: not at all.

    Returns:
        `(h, w, c)` uint8.

    Raises:
        PipelineError: The image has another size, and `resize` is None.
        ColorAmongGrayscale: c is 1, and the image is in color.
    """
    height, width, channels = shape
    if channels == 1 and image.mode != "L":
        raise ColorAmongGrayscale
    if image.size != (width, height) and resize is None:
        raise PipelineError(
            f"{name}: must have the size of the first image, {height}×{width} pixels. "
            f"Got {image.height}×{image.width}. Set preprocess.image_size: [height, width]"
        )
    return to_pixels(image, shape, resize or "stretch")
