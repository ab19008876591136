"""Encoded frames -> arrays."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def decode(encoded: bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """A JPEG or PNG as RGB, resized to a square with Lanczos (antialiased) where its size differs.

    Pillow decodes JPEG exactly (equal to TensorFlow's INTEGER_ACCURATE); the aspect ratio is not kept, as in the field.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        rgb = image.convert("RGB")
        if rgb.size != (size, size):
            rgb = rgb.resize((size, size), Image.Resampling.LANCZOS)
        return np.asarray(rgb)
