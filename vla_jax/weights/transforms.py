"""What is done to an array of a pretrained file to make it ours: views where numpy can."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

Transform = Callable[[np.ndarray], np.ndarray]


def as_is(x: np.ndarray) -> np.ndarray:
    """The array."""
    return x


def transposed(x: np.ndarray) -> np.ndarray:
    """torch Linear [out, in] -> kernel [in, out]."""
    return x.T


def conv_patches(x: np.ndarray) -> np.ndarray:
    """torch Conv2d [out, 3, p, p] -> kernel [p*p*3, out] of flattened (row, column, channel)
    patches.
    """
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def conv_frames(x: np.ndarray) -> np.ndarray:
    """torch Conv3d [out, 3, t, p, p] over t copies of one image -> kernel [p*p*3, out] as of
    `conv_patches`. Summed in float32.
    """
    return conv_patches(x.astype(np.float32).sum(2))


def row(x: np.ndarray) -> np.ndarray:
    """[c] -> [1, c]."""
    return x[None]


def first(x: np.ndarray) -> np.ndarray:
    """Drops a leading axis of one."""
    return x[0]


def merge_last(x: np.ndarray) -> np.ndarray:
    """The last two axes become one."""
    return x.reshape(*x.shape[:-2], -1)


def merge_first(x: np.ndarray) -> np.ndarray:
    """[layers, a, b, c] -> [layers, a*b, c]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def merge_to_last(x: np.ndarray) -> np.ndarray:
    """Every axis but the last becomes one."""
    return x.reshape(-1, x.shape[-1])


def einsum_heads(x: np.ndarray) -> np.ndarray:
    """big_vision einsum [layers, heads, in, head_dim] -> kernel [layers, in, heads*head_dim]."""
    return merge_last(x.transpose(0, 2, 1, 3))


def part(i: int) -> Transform:
    """Entry i of the second axis."""
    return lambda x: x[:, i]


def einsum_part(i: int) -> Transform:
    """big_vision stacked einsums, [layers, parts, ...] or [parts, ...] at layer level: part i as a
    kernel.
    """
    return lambda x: einsum_heads(x[:, i])


def fused(i: int, parts: int) -> Transform:
    """torch Linear of `parts` layers side by side, [parts*out, in]: layer i as a kernel [in, out].

    Rows that do not divide are rounded up, so that the shape of some part is wrong and the file is
    refused.
    """

    def take(x: np.ndarray) -> np.ndarray:
        size = -(-x.shape[0] // parts)
        return x[i * size : (i + 1) * size].T

    return take


@dataclasses.dataclass(frozen=True)
class Positions:
    """Learned positions [extra + s*s, c] of square images of s patches a side -> those of images of
    `patches` in all; the `extra` first rows (a class token's) stay. None changes where the sizes
    are equal. Otherwise bicubic between the patches' centres, with a = -0.75 and the border
    repeated, as `interpolate_pos_encoding` of transformers has it.

    Tables that are no square's stay as they are, and are refused by their shape.
    """

    patches: int
    extra: int = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        extra = self.extra
        before, after = math.isqrt(x.shape[0] - extra), math.isqrt(self.patches)
        if before**2 + extra != x.shape[0] or before == after:
            return x
        grid = x[extra:].astype(np.float32).reshape(before, before, -1)
        along = bicubic(before, after)
        grid = np.einsum("ij,kl,jlc->ikc", along, along, grid, optimize=True)
        return np.concatenate([x[:extra], grid.reshape(after**2, -1).astype(x.dtype)])


def bicubic(before: int, after: int) -> np.ndarray:
    """float32 [after, before]: what each new point takes of the old ones. Keys' convolution (IEEE
    TASSP 1981) with torch's a.
    """
    a, centres = -0.75, (np.arange(after) + 0.5) * before / after - 0.5
    left = np.floor(centres).astype(int)
    out = np.zeros((after, before))
    for i in range(-1, 3):
        x = np.abs(centres - (left + i))
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        index = np.clip(left + i, 0, before - 1)
        np.add.at(out, (np.arange(after), index), np.where(x <= 1, near, far))
    return out.astype(np.float32)


def pad_rows(rows: int) -> Transform:
    """Zero rows at the end, up to `rows`; an array that has them is not copied."""
    return lambda x: (
        np.concatenate([x, np.zeros((rows - x.shape[0], x.shape[1]), x.dtype)])
        if x.shape[0] < rows
        else x
    )
