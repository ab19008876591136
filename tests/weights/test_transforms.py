"""Positions of images, carried over to images of other sizes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vla_jax.weights import transforms


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize(("before", "after"), [(4, 6), (4, 8), (6, 4), (2, 7), (5, 1)])
def test_positions_are_interpolated_as_torch_does(before: int, after: int, extra: int) -> None:
    x = np.random.default_rng(0).normal(size=(extra + before**2, 3)).astype(np.float32)
    grid = torch.from_numpy(x[extra:].reshape(1, before, before, 3)).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    fitted = transforms.Positions(after**2, extra)(x)
    np.testing.assert_array_equal(fitted[:extra], x[:extra])
    expected = wanted[0].permute(1, 2, 0).reshape(-1, 3).numpy()
    np.testing.assert_allclose(fitted[extra:], expected, atol=2e-6)


def test_positions_of_the_same_size_are_not_copied() -> None:
    x = np.ones((17, 2), np.float32)
    assert transforms.Positions(16, 1)(x) is x


def test_a_table_that_is_no_squares_keeps_its_shape() -> None:
    """The load then refuses it by name."""
    assert transforms.Positions(16)(np.ones((17, 2), np.float32)).shape == (17, 2)
