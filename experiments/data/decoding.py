"""Bytes of a JPEG or PNG file to red, green and blue, as a viewer shows them."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from experiments.common.errors import UserError

FORMATS = ("JPEG", "PNG")  # no other decoder sees the bytes: one of them runs programs
LARGEST_IMAGE = 2**26  # pixels
BYTES_PER_PIXEL = 8  # of the largest kind, 16 bits for each of four channels
ORIENTATION = 0x0112  # the tag of EXIF
BIT_DEPTH = 24  # the byte of a PNG that has it
# How to turn what is stored into what is shown.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns from 89 million pixels on, and reads them.
warnings.simplefilter("error", Image.DecompressionBombWarning)
# Many photos have damaged EXIF; it says nothing then, also not on the terminal.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


def decode(data: bytes, name: str) -> Image.Image:
    """The image in ``data``, as red, green and blue, 8 bits of each.

    Of 16 bits the upper 8 remain; what is transparent is laid over white; CMYK, grey,
    palettes and bilevel images become colours; of an animation, or of several images
    in one file, the first one is taken; and the image is turned as its EXIF or XMP
    orientation says. Where a PNG of 16 bits for each of three colours has one that is
    transparent, all are that share its upper 8.

    Args:
      data: the content of a file.
      name: how errors call it.

    Raises:
      UserError: it is not a whole image, or has more than 67,108,864 pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise Image.DecompressionBombError
            if image.format == "PNG":
                _scale_key(image, data[BIT_DEPTH])
            return _turned(_colours(image), _orientation(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(
            f"{name}: must have at most {LARGEST_IMAGE:,} pixels; make it smaller"
        ) from None
    except UnidentifiedImageError:  # its text is the object's address
        raise UserError(f"{name}: not a JPEG or PNG image") from None
    except Exception as error:  # the decoders raise many classes
        raise UserError(f"{name}: not a whole JPEG or PNG image ({error})") from None


def _scale_key(image: Image.Image, bits: int) -> None:
    """Makes 8 bits of the colour that is transparent, as Pillow does of all others."""
    key = image.info.get("transparency")
    if isinstance(key, tuple) and bits == 16:
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
    elif isinstance(key, int) and image.mode in ("1", "L") and bits < 8:
        image.info["transparency"] = key * 255 // (2**bits - 1)


def _colours(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which convert() would cut off at 255
        samples = np.asarray(image)
        high = (samples >> 8).astype(np.uint8)
        if "transparency" in image.info:
            high[samples == image.info["transparency"]] = 255
        return Image.fromarray(high).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        paper = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(paper, clear).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image
