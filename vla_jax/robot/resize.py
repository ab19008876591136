"""Resizing a frame as the training data was resized, without Pillow: the same bytes as its filters.

    image = resize(frame, 224, "lanczos")  # uint8 RGB [h w 3] of any size -> [224 224 3], squashed

Pillow filters along one axis, rounds to bytes, then filters along the other and rounds again, with
weights in fixed point. They are whole multiples of 2^-22, so that sums of weight * byte are exact
in float64 in any order, and matrix products give its very numbers. One file to copy, Python 3.8 and
numpy only: this runs on the robot's computer.

Filters, stretched by the scale where the image shrinks (torchvision's Resize of a Pillow image is
the same; of a tensor not: bicubic there was up to 12 of 255 off on noise):

    lanczos   sinc(x) sinc(x / 3) for |x| < 3
    bicubic   Keys' cubic with a = -1/2, for |x| < 2
    bilinear  1 - |x| for |x| < 1
"""

from __future__ import annotations  # Python 3.8, beside client.py

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# Bits after the point of a weight: of 32, Pillow keeps 8 for the byte and 2 for the lobes'
# overshoot.
PRECISION = 22
# Outputs of one matrix product: their inputs overlap, and the rest of a full matrix would be zeros.
# For products as small as this OpenBLAS starts no threads, which would cost more than they save,
# most of all on busy cores.
BLOCK = 8


class Block(NamedTuple):
    """Outputs [start, stop) of a line, from its inputs [first, last) with weights [last - first,
    stop - start].
    """

    start: int
    stop: int
    first: int
    last: int
    weights: np.ndarray


class Filter(NamedTuple):
    """The weight at a distance in pixels, 0 from `reach` on."""

    reach: int
    weight: Callable[[np.ndarray], np.ndarray]


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.sinc(x) * np.sinc(x / 3)


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return 1 - np.abs(x)


FILTERS = {
    "lanczos": Filter(3, _lanczos),
    "bicubic": Filter(2, _bicubic),
    "bilinear": Filter(1, _bilinear),
}


def resize(image: np.ndarray, size: int, filter: str) -> np.ndarray:
    """A frame uint8 RGB [h w 3] at [size size 3]: the bytes of Pillow's `resize((size, size),
    LANCZOS)`, or of another of FILTERS.

    Raises ValueError for another dtype, shape or filter, and a size below 1.
    """
    if filter not in FILTERS:
        raise ValueError(f"resize: filter: expected one of {', '.join(FILTERS)}, got {filter!r}")
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
    ):
        got = (
            f"{image.dtype} {image.shape}"
            if isinstance(image, np.ndarray)
            else type(image).__name__
        )
        raise ValueError(
            f"resize: expected a uint8 RGB image [h w 3], got {got}; convert it to bytes first"
        )
    if size < 1 or 0 in image.shape:
        raise ValueError(
            f"resize: expected at least one pixel on each side, got {image.shape} to {size}"
        )
    height, width = image.shape[:2]
    if height == width == size:
        return image.copy()
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float64)  # 3 h w
    # Pillow 13 begins with the height where it loses more than twice as many pixels as the width;
    # else with the width.
    height_first = height > size and 2 * (width - size) < height - size
    for resize_axis in (_height, _width) if height_first else (_width, _height):
        planes = resize_axis(planes, size, filter)
    return np.ascontiguousarray(planes.astype(np.uint8).transpose(1, 2, 0))


def _width(planes: np.ndarray, size: int, filter: str) -> np.ndarray:
    """[3 h w] -> [3 h size]. An axis of that size already is not filtered."""
    height, width = planes.shape[1:]
    if width == size:
        return planes
    out = np.empty((3, height, size))
    for block in blocks(width, size, filter):
        np.matmul(
            planes[:, :, block.first : block.last],
            block.weights,
            out=out[:, :, block.start : block.stop],
        )
    return _rounded(out)


def _height(planes: np.ndarray, size: int, filter: str) -> np.ndarray:
    """[3 h w] -> [3 size w]."""
    height, width = planes.shape[1:]
    if height == size:
        return planes
    out = np.empty((3, size, width))
    for block in blocks(height, size, filter):
        np.matmul(
            block.weights.T,
            planes[:, block.first : block.last],
            out=out[:, block.start : block.stop],
        )
    return _rounded(out)


@lru_cache(maxsize=16)
def blocks(length: int, size: int, filter: str) -> tuple[Block, ...]:
    """The weights that turn a line of `length` into one of `size`. Kept: they depend on nothing
    else.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    reach = FILTERS[filter].reach * stretch
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), length)
    pixel = np.arange(length)[:, None]
    x = (pixel - centre + 0.5) / stretch  # length size
    inside = (pixel >= first) & (pixel < last) & (np.abs(x) < FILTERS[filter].reach)
    weights = np.where(inside, FILTERS[filter].weight(x), 0.0)
    weights /= weights.sum(0)
    fixed = np.trunc(weights * 2**PRECISION + np.copysign(0.5, weights)) / 2**PRECISION
    made = []
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        low, high = int(first[start]), int(last[stop - 1])
        made.append(
            Block(start, stop, low, high, np.ascontiguousarray(fixed[low:high, start:stop]))
        )
    return tuple(made)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 255, halves upwards; in place."""
    values += 0.5
    np.floor(values, out=values)
    return np.clip(values, 0, 255, out=values)
