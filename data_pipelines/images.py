"""Encoded camera frames to the pixels the network sees."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def decode(
    data: bytes | np.ndarray, size: int, bgr: bool = False, resize: str = "lanczos"
) -> UInt8[np.ndarray, "size size 3"]:
    """RGB pixels of a JPEG, a PNG or a decoded frame, squashed to size x size with an antialiasing
    filter.

    The JPEG is decoded exactly (libjpeg's accurate integer transform), not in TensorFlow's default
    fast way.

    Args:
        data: the encoded image, or uint8 RGB [h w 3].
        size: pixels, height and width.
        bgr: the image was stored with its red and blue swapped.
        resize: the filter, one of types.RESIZES.

    Raises ValueError when the bytes are not a whole image.
    """
    image = _open(data)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling[resize.upper()])
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[..., ::-1]) if bgr else pixels


def raw(data: bytes | np.ndarray, bgr: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a JPEG or PNG at the size it was recorded in; arguments and errors as of
    `decode`.
    """
    pixels = np.asarray(_open(data))
    return np.ascontiguousarray(pixels[..., ::-1]) if bgr else pixels


def thumbnail(
    data: bytes | np.ndarray, height: int, bgr: bool = False
) -> UInt8[np.ndarray, "height w 3"]:
    """RGB pixels of a JPEG or PNG for people to look at, `height` rows of them and as wide as it
    was; arguments and errors as of `decode`.
    """
    image = _open(data)
    width = max(1, round(image.width * height / image.height))
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    return np.ascontiguousarray(pixels[..., ::-1]) if bgr else pixels


def size(data: bytes | np.ndarray) -> tuple[int, int]:
    """Height and width of an image that decodes. Raises ValueError when it does not."""
    width, height = _open(data).size
    return height, width


def _open(data: bytes | np.ndarray) -> Image.Image:
    """As RGB: gray three times, alpha dropped."""
    if isinstance(data, np.ndarray):
        return Image.fromarray(data)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as encoded:
            # In Pillow's words, what has 16 bits a pixel or more ("I;16", "I"): depth, not colour.
            if encoded.mode[0] in "IF":
                raise ValueError(
                    "image: expected 8 bits a channel, got a picture of mode"
                    f" {encoded.mode} {encoded.size}: depth? name a colour camera"
                )
            return encoded.convert("RGB")
    except (OSError, SyntaxError) as error:  # a broken PNG raises the latter
        raise ValueError(
            f"image: expected a whole JPEG or PNG, got {len(data)} bytes beginning {data[:8]!r}"
        ) from error
