"""Augmentation: each operation against its formula, one draw per window and camera, nothing when it
is off.
"""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.fakes import make_batch
from vla_jax.training import augment as module
from vla_jax.training.augment import (
    AugmentConfig,
    augment,
    augmented,
    colour,
    crop,
    rotate_hue,
    saturate,
    shift,
)

FULL = AugmentConfig(
    crop_scale=(0.7, 1.0),
    crop_ratio=(0.8, 1.25),
    brightness=0.2,
    contrast=(0.8, 1.2),
    saturation=(0.8, 1.2),
    hue=0.05,
    shift=(3, 1),
)
KEY = jax.random.key(0)


def frames(b=3, t=2, size=12, seed=0, smooth=False):
    draw = np.random.default_rng(seed)
    if smooth:
        ramp = np.linspace(0, 255, size)
        picture = np.stack(
            np.broadcast_arrays(ramp[:, None], ramp[None], 0.5 * (ramp[:, None] + ramp)), -1
        )
        return np.broadcast_to(picture.astype(np.uint8), (b, t, size, size, 3)).copy()
    return draw.integers(0, 256, (b, t, size, size, 3), dtype=np.uint8)


def pair(**changes):
    return frames(**changes), frames(**changes, seed=1)


def test_off_changes_nothing_and_compiles_to_nothing():
    images = pair()
    assert augment(images, KEY, AugmentConfig()) == images
    jaxpr = jax.make_jaxpr(lambda x, key: augment(x, key, AugmentConfig()))(images, KEY)
    assert not jaxpr.eqns


# One program, for images of one shape, compiles in a fraction of the time that its operations take
# one by one.
augment_fully = jax.jit(lambda images, key: augment(images, key, FULL))


def test_draws_depend_on_the_key_alone():
    images = pair(b=4, t=3)
    a, b = augment_fully(images, KEY), augment_fully(images, KEY)
    for x, y in zip(a, b, strict=True):
        assert x.shape == images[0].shape
        assert x.dtype == jnp.uint8
        np.testing.assert_array_equal(x, y)
    assert (np.asarray(augment_fully(images, jax.random.key(1))[0]) != np.asarray(a[0])).any()


def test_all_frames_of_a_window_change_alike_and_windows_and_cameras_do_not():
    picture = frames(b=1, t=1)
    same = np.broadcast_to(picture, (4, 3, 12, 12, 3)).copy()
    augmented = [np.asarray(x) for x in augment_fully((same, same), KEY)]
    for camera in augmented:
        for t in (1, 2):
            np.testing.assert_array_equal(camera[:, t], camera[:, 0])
        assert len({window.tobytes() for window in camera}) == 4
    assert (augmented[0] != augmented[1]).any()


def test_the_whole_is_what_the_parts_do():
    images = pair(b=4, t=3)

    @jax.jit
    def parts(frames, key):
        out = []
        for camera, pad in enumerate(FULL.shift):
            keys = jax.random.split(jax.random.fold_in(key, camera), 3)
            x = shift(frames[camera], keys[0], pad).astype(jnp.float32) / 255
            x = colour(crop(x, keys[1], FULL), keys[2], FULL)
            out.append(jnp.round(x * 255).astype(jnp.uint8))
        return out

    for whole, made in zip(augment_fully(images, KEY), parts(images, KEY), strict=True):
        np.testing.assert_array_equal(whole, made)


@pytest.mark.parametrize("pad", [1, 4])
def test_shift_is_a_slice_of_the_edge_padded_window(pad):
    images = frames(b=64, size=9)
    shifted = np.asarray(shift(images, KEY, pad))
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
    seen = set()
    for window, out in zip(padded, shifted, strict=True):
        fits = [
            (y, x)
            for y in range(2 * pad + 1)
            for x in range(2 * pad + 1)
            if (window[:, y : y + 9, x : x + 9] == out).all()
        ]
        assert fits
        seen.add(fits[0])
    rows, columns = zip(*seen, strict=True)
    assert (min(rows), max(rows), min(columns), max(columns)) == (0, 2 * pad, 0, 2 * pad)


def test_crop_is_bilinear_at_pixel_centres(monkeypatch):
    x = frames(b=1, t=1, size=8).astype(np.float32) / 255
    monkeypatch.setattr(
        module.jax.random,
        "uniform",
        lambda key, shape, minval=0.0, maxval=1.0: jnp.full(shape, maxval),
    )
    # The lower right corner, 0.6 x 0.6.
    cropped = np.asarray(crop(x, KEY, AugmentConfig(crop_scale=(0.25, 0.36))))[0, 0]
    for i, j in ((0, 0), (3, 5), (7, 7)):
        at = [min(max((0.4 + (k + 0.5) / 8 * 0.6) * 8 - 0.5, 0), 7) for k in (i, j)]
        (y, fy), (z, fz) = ((min(int(a), 6), a - min(int(a), 6)) for a in at)
        rows = x[0, 0, y : y + 2, z : z + 2]
        expected = (rows[0, 0] * (1 - fz) + rows[0, 1] * fz) * (1 - fy) + (
            rows[1, 0] * (1 - fz) + rows[1, 1] * fz
        ) * fy
        np.testing.assert_allclose(cropped[i, j], expected, atol=1e-6)


def test_crops_keep_the_asked_share_and_ratio_and_stay_inside():
    """On a ramp the corners tell where the crop was."""
    size, b = 64, 200
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[None]), -1)
    x = np.broadcast_to(picture, (b, 1, size, size, 3))
    config = AugmentConfig(crop_scale=(0.5, 0.8), crop_ratio=(0.8, 1.25))
    out = np.asarray(crop(x, KEY, config))[:, 0]
    # Pixels 8 and 55: the outermost may have been clipped to the border. The ramp has 63 steps.
    height = (out[:, 55, 0, 0] - out[:, 8, 0, 0]) * 63 / 47
    width = (out[:, 0, 55, 1] - out[:, 0, 8, 1]) * 63 / 47
    area, ratio = height * width, width / height
    assert 0.5 - 0.001 < area.min() < 0.53
    assert 0.77 < area.max() < 0.8 + 0.001
    assert 0.8 - 0.001 < ratio.min() < 0.83
    assert 1.2 < ratio.max() < 1.25 + 0.001
    assert out.min() >= 0
    assert out.max() <= 1


def test_brightness_and_contrast_follow_their_formulas(monkeypatch):
    x = frames().astype(np.float32) / 255
    monkeypatch.setattr(
        module.jax.random, "uniform", lambda key, shape, minval, maxval: jnp.full(shape, maxval)
    )
    bright = colour(x, KEY, AugmentConfig(brightness=0.3))
    np.testing.assert_allclose(bright, np.clip(x + 0.3, 0, 1), atol=1e-6)
    mean = x.mean((2, 3), keepdims=True)
    contrast = colour(x, KEY, AugmentConfig(contrast=(0.5, 1.5)))
    np.testing.assert_allclose(contrast, np.clip((x - mean) * 1.5 + mean, 0, 1), atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.7, 50.0])
def test_saturation_is_that_of_hsv(factor):
    pixels = np.random.default_rng(0).random((200, 3)).astype(np.float32)
    pixels[:3] = [[0.5, 0.5, 0.5], [0, 0, 0], [1, 0, 0]]
    saturated = np.asarray(saturate(jnp.asarray(pixels), jnp.full((1, 1), factor)))
    for rgb, out in zip(pixels, saturated, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*rgb.tolist())
        np.testing.assert_allclose(out, colorsys.hsv_to_rgb(h, min(s * factor, 1.0), v), atol=1e-5)


@pytest.mark.parametrize("turns", [-0.5, -0.05, 0.0, 0.21, 0.5])
def test_hue_is_that_of_hsv(turns):
    pixels = np.random.default_rng(0).random((200, 3)).astype(np.float32)
    pixels[:4] = [[0.5, 0.5, 0.5], [0, 0, 0], [1, 0, 0], [1, 1, 0]]
    rotated = np.asarray(rotate_hue(jnp.asarray(pixels), jnp.full((1, 1), turns)))
    for rgb, out in zip(pixels, rotated, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*rgb.tolist())
        np.testing.assert_allclose(out, colorsys.hsv_to_rgb((h + turns) % 1.0, s, v), atol=1e-5)


def test_cameras_may_differ_in_size():
    images = (frames(size=12), frames(size=7))
    out = jax.eval_shape(lambda images: augment(images, KEY, FULL), images)
    assert [x.shape for x in out] == [(3, 2, 12, 12, 3), (3, 2, 7, 7, 3)]


@pytest.mark.slow
def test_any_mesh_draws_the_same():
    images = pair(b=8)
    alone = jax.jit(lambda x, key: augment(x, key, FULL))(images, KEY)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    split = jax.jit(lambda x, key: augment(x, key, FULL), out_shardings=where)(
        jax.device_put(images, where), KEY
    )
    for x, y in zip(alone, split, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": True}, r"augment.flip: expected False"),
        ({"crop_scale": (0.5, 1.1)}, r"augment.crop_scale: expected 0 < low <= high <= 1"),
        ({"contrast": (1.2, 0.8)}, r"augment.contrast: expected 0 < low <= high"),
        ({"hue": 0.7}, r"hue in \[0, 0.5\]"),
        ({"shift": (-1,)}, "shift >= 0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**changes)


def test_a_shift_per_camera_is_asked_for():
    with pytest.raises(
        ValueError, match=r"augment.shift: expected one number per camera \(1\), got \(3, 1\)"
    ):
        augment((frames(),), KEY, FULL)


def test_windows_of_clips_are_drawn_each_for_itself():
    obs = make_batch(b=6, t=2).obs
    clips = jax.tree.map(lambda x: x.reshape(3, 2, 1, *x.shape[1:]), obs)
    flat, paired = (augmented(each, KEY, FULL).images for each in (obs, clips))
    for one, other in zip(flat, paired, strict=True):
        assert other.shape == (3, 2, 1, *one.shape[1:])
        np.testing.assert_array_equal(other.reshape(one.shape), one)


def test_words_are_left_out_each_for_itself_and_the_others_close_up():
    there = np.arange(9)[None] < np.array([9, 6] * 200)[:, None]
    prompt = np.where(there, np.arange(1, 10)[None], 0).astype(np.int32)
    obs = make_batch().obs._replace(prompt=prompt, prompt_mask=there)
    assert augmented(obs, KEY, AugmentConfig()).prompt is prompt
    out = augmented(obs, KEY, AugmentConfig(word_dropout=0.25))
    left = [row[mask].tolist() for row, mask in zip(out.prompt, out.prompt_mask, strict=True)]
    assert all(row == sorted(row) for row in left)
    assert all(
        row[0] == 1 and row[-1] == last for row, last in zip(left, [9, 6] * 200, strict=True)
    )
    assert (out.prompt_mask == (out.prompt > 0)).all()
    assert (np.diff(out.prompt_mask.astype(int), axis=1) <= 0).all()
    share = np.mean([[word in row for word in range(2, 9)] for row in left[::2]], axis=0)
    assert np.abs(share - 0.75).max() < 0.1
    assert any((2 in row) != (3 in row) for row in left)
    assert out.images == obs.images
