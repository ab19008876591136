"""The resize is Pillow's, byte for byte, on noise, on edges that overshoot, and on pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines import images
from data_pipelines.builders import blocks
from vla_jax.robot.resize import FILTERS, resize

# height, width, size: cameras, portrait ones, shrinking, growing, one axis unchanged, both
# directions at once.
SIZES = [
    (480, 640, 224), (240, 320, 224), (256, 256, 224), (180, 320, 32), (32, 32, 224),
    (224, 300, 224), (300, 224, 224),
    (100, 37, 64), (64, 48, 32), (64, 47, 32), (37, 100, 64), (24, 8, 32), (7, 5, 3), (1, 1, 4),
    (9, 700, 17),
]  # fmt: skip


def pillow(image: np.ndarray, size: int, filter: str = "lanczos") -> np.ndarray:
    """torchvision's Resize does the same with a Pillow image."""
    method = Image.Resampling[filter.upper()]
    return np.asarray(Image.fromarray(image).resize((size, size), method))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_bytes_are_pillows(height: int, width: int, size: int, filter: str) -> None:
    rng = np.random.default_rng(height + width)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    edges = (255 * (noise > 127)).astype(np.uint8)
    for image in (noise, edges):
        np.testing.assert_array_equal(resize(image, size, filter), pillow(image, size, filter))


@pytest.mark.parametrize("filter", FILTERS)
def test_a_frame_is_what_training_decodes(filter: str) -> None:
    frame = blocks.play(0, 0, 0).primary[0]
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    decoded = images.decode(buffer.getvalue(), 24, resize=filter)
    np.testing.assert_array_equal(resize(frame, 24, filter), decoded)


def test_the_right_size_stays_and_the_input_is_not_handed_out() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    same = resize(image, 8, "lanczos")
    np.testing.assert_array_equal(same, image)
    same[:] = 0
    assert image.any()


@pytest.mark.parametrize("view", ["swapped", "flipped", "cut"])
def test_views_of_other_memory_order(view: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = {"swapped": image[..., ::-1], "flipped": image[::-1], "cut": image[3:30, 5:41]}[view]
    expected = pillow(np.ascontiguousarray(image), 16)
    np.testing.assert_array_equal(resize(image, 16, "lanczos"), expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((4, 4, 3), np.float32),
            r"expected a uint8 RGB image \[h w 3\], got float32 \(4, 4, 3\)",
        ),
        (np.zeros((4, 4), np.uint8), r"got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"got uint8 \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
    ],
)
def test_what_is_no_picture_is_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize(image, 8, "lanczos")


def test_another_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="filter: expected one of lanczos, bicubic, bilinear"):
        resize(np.zeros((4, 4, 3), np.uint8), 8, "Lanczos")
