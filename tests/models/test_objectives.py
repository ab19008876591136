"""The tasks beside the action: what they see, what they cost, and that nothing is left of one that
is off.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.fakes import FakeBackbone, jittered, make_batch
from vla_jax import params
from vla_jax.models.fast_vocabulary import blank
from vla_jax.models.heads.fast import FastConfig
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.objectives import (
    Caption,
    Encoded,
    FastStrings,
    ForwardConfig,
    ForwardPrediction,
    ImageTextTask,
    SensedPrediction,
    TextAlign,
    next_token,
    patches,
)
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.robot.sensing import Reading, Sensor
from vla_jax.training import metrics
from vla_jax.types import ActionTokens, Future, ImageText

T, K, D, M, E, KEY = 2, 2, 3, 2, 6, jax.random.key(0)
FORWARD = ForwardConfig(frames=M, cameras=2, tokens=2, width=16, depth=1, patch=4, image_size=8)
Q = 5  # tokens of a string at most
STRINGS = FastConfig(K, D, (2,), end=30, vocabulary=blank(K, ("x", "y", "grip"), 12), most=Q)
SCENE = Sensor("scene", "vector", (3, 2), 1)
MAKERS = {
    "forward": lambda width, rngs: ForwardPrediction(width, FORWARD, rngs),
    "caption": lambda width, rngs: Caption(),
    "image_text": lambda width, rngs: ImageTextTask(),
    "text_align": lambda width, rngs: TextAlign(width, E, rngs),
    "sensed": lambda width, rngs: SensedPrediction((2, width), 8, SCENE, rngs),
    "fast": lambda width, rngs: FastStrings(STRINGS),
}
TASKS = tuple(MAKERS)


def maker(*tasks, layout="prefix", history="head", cross=False):
    config = VLAConfig(
        T, K, D, ("primary", "wrist"), layout, history,
        loss_weights=(("action", 1.0), *((name, 0.1) for name in tasks)),
    )  # fmt: skip

    def make(rngs):
        head = MLPHead(16, HeadConfig(K, D, (2,), hidden=8, mlp=(8,)), rngs)
        makers = {name: MAKERS[name] for name in tasks}
        return VLA(FakeBackbone(rngs, cross=cross), head, config, rngs, makers)

    return make


def make_policy(*tasks, **fields):
    return jittered(maker(*tasks, **fields), 0.1)


def make_data(b=2):
    batch, rng = make_batch(b=b, t=T, k=K, d=D), np.random.default_rng(5)
    images = tuple(rng.integers(0, 256, (b, T, M, 8, 8, 3), dtype=np.uint8) for _ in range(2))
    target = np.zeros((b, 7), bool)
    target[:, 3:6] = True
    text = ImageText(
        images[0][:, 0, 0],
        rng.integers(1, 32, (b, 7)).astype(np.int32),
        np.arange(7)[None] < 6 * np.ones((b, 1)),
        target,
    )
    length = rng.integers(1, Q + 1, (b, T, 1))
    strings = ActionTokens(
        rng.integers(*STRINGS.token_range, (b, T, Q), dtype=np.int32), np.arange(Q) < length
    )
    read = Reading(rng.normal(size=(b, T, 3, 2)).astype(np.float32), np.ones((b, T, 3), bool))
    return batch._replace(
        obs=batch.obs._replace(sensors={"scene": read}),
        action_tokens=strings,
        future=Future(images, rng.random((b, T, M, 2)) < 0.7),
        text_target=rng.normal(size=(b, E)).astype(np.float32),
        image_text=text,
    )


@jax.jit(static_argnums=0)
def run(graphdef, flat, batch):
    model = params.merge(graphdef, flat)
    return model.loss(batch, KEY), model.mask_counts(batch)


@pytest.mark.parametrize(
    ("layout", "history", "cross"),
    [
        ("prefix", "head", False),
        pytest.param("robovlms", "head", False, marks=pytest.mark.slow),
        pytest.param("prefix", "interleaved", False, marks=pytest.mark.slow),
        pytest.param("prefix", "head", True, marks=pytest.mark.slow),
    ],
)
def test_every_task_has_a_loss_that_reaches_its_parameters(layout, history, cross):
    # Sensors are said from tokens of the sequence's own width.
    tasks = tuple(task for task in TASKS if task != "sensed" or not cross)
    graphdef, flat = make_policy(*tasks, layout=layout, history=history, cross=cross)
    batch = make_data()
    batch = batch._replace(obs=batch.obs._replace(step_mask=np.ones((2, T), bool)))

    @jax.jit
    def both(flat):
        def total(flat):
            model = params.merge(graphdef, flat)
            objective = model.loss(batch, KEY)
            return sum(objective.sums.values()), (objective, model.mask_counts(batch))

        return jax.value_and_grad(total, has_aux=True)(flat)

    (_, (objective, weights)), grads = jax.device_get(both(flat))
    assert set(objective.sums) == set(weights) == {"action", *tasks}
    for name in tasks:  # the metric's pairs are the task's sum and weight
        np.testing.assert_allclose(
            objective.metrics[name][0].sum(), objective.sums[name], rtol=1e-5
        )
        np.testing.assert_array_equal(objective.metrics[name][1].sum(), weights[name])
        assert 0 < objective.sums[name] < np.inf
    assert [n for n, g in grads.items() if not (np.isfinite(g).all() and np.any(g))] == []


@pytest.mark.slow
def test_auxiliary_tasks_do_not_change_the_action():
    """Queries stand behind the readouts, which do not see them; the texts are passes of
    their own. Strings stand behind all of it: no task reads them.
    """
    graphdef, flat = make_policy(*TASKS)
    plain, shapes, _ = params.abstract(maker())
    batch = make_data()
    alone, _ = run(plain, {name: flat[name] for name in shapes}, batch)
    together = run(graphdef, flat, batch)[0].sums
    np.testing.assert_allclose(alone.sums["action"], together["action"], rtol=1e-6)
    otherwise = run(graphdef, flat, with_other_strings(batch))[0].sums
    assert abs(otherwise.pop("fast") - together["fast"]) > 1e-2
    for name, total in otherwise.items():
        np.testing.assert_allclose(total, together[name], rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_task_that_is_off_costs_nothing():
    """By the FLOPs of the traced program and of its HLO: each task adds its own, and what is off
    adds none.
    """
    batch = make_data()

    def cost(*tasks):
        graphdef, flat = make_policy(*tasks)
        traced = jax.jit(
            jax.grad(lambda p: sum(params.merge(graphdef, p).loss(batch, KEY).sums.values()))
        ).trace(flat)
        return np.array(
            [metrics.count_flops(traced.jaxpr.jaxpr), traced.lower().cost_analysis()["flops"]]
        )

    plain, whole = cost(), cost(*TASKS)
    added = {name: whole - cost(*(other for other in TASKS if other != name)) for name in TASKS}
    assert all((flops > 0).all() for flops in added.values())
    # What they add is all there is above the plain policy: nothing of a task stays when it is
    # off.
    np.testing.assert_allclose(plain + sum(added.values()), whole, rtol=0.02)


def string_losses(flat, batch):
    """What the strings of layout "prefix" with one readout cost, frame by frame in numpy."""
    obs, given, width = batch.obs, batch.action_tokens, 16
    words, total = np.asarray(flat["backbone/words"]), 0.0
    for b, t in np.ndindex(obs.step_mask.shape):
        tiles = [image[b, t].reshape(2, 4, 2, 4, 3).swapaxes(1, 2).reshape(4, 48)
                 for image in obs.images]  # fmt: skip
        seen = (np.concatenate(tiles) / 127.5 - 1) @ np.asarray(flat["backbone/patches"])
        ids, there = given.ids[b, t], given.mask[b, t]
        parts = [seen, 2 * words[obs.prompt[b]], flat["readout_embedding"], 2 * words[ids[:-1]]]
        x = np.concatenate([np.asarray(part) for part in parts])
        cameras = np.repeat(obs.image_mask[b, t], 4)
        valid = np.concatenate([cameras, obs.prompt_mask[b], [True], there[:-1]])
        order = np.concatenate([np.zeros(len(seen) + 5, int), 1 + np.arange(Q)])
        at = np.maximum(np.cumsum(valid) - 1, 0)
        wave = np.sin(at[:, None] / 10.0 ** np.linspace(0, 2, width))
        q, k, v = np.split((x + wave) @ np.asarray(flat["backbone/qkv"]), 3, axis=-1)
        mask = (valid[None] & (order[None] <= order[:, None])) | np.eye(len(x), dtype=bool)
        weight = np.where(mask, np.exp(q @ k.T / 4), 0)
        x = x + weight / weight.sum(-1, keepdims=True) @ v @ np.asarray(flat["backbone/out"])
        x = x[-Q:] / np.sqrt((x[-Q:] ** 2).mean(-1, keepdims=True) + 1e-6)
        first, end = STRINGS.token_range
        logits = x @ words[first:end].T
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        cost = -log_p[np.arange(Q), ids - first][there].mean()
        steps = (batch.action_mask[b, t].any(-1) & obs.step_mask[b, t]).sum()
        total += cost * steps
    return total


def with_other_strings(batch):
    """Of other lengths too."""
    rng = np.random.default_rng(9)
    ids = rng.permutation(batch.action_tokens.ids, axis=2)
    there = np.arange(Q) < rng.integers(1, Q + 1, (2, T, 1))
    return batch._replace(action_tokens=ActionTokens(ids, there))


def test_strings_cost_what_they_do_by_hand():
    graphdef, flat = make_policy("fast")
    batch = make_data()
    objective, counts = run(graphdef, flat, batch)
    np.testing.assert_allclose(objective.sums["fast"], string_losses(flat, batch), rtol=1e-5)
    assert counts["fast"] == counts["action"] == objective.metrics["fast"][1].sum()
    other = with_other_strings(batch)
    changed, _ = run(graphdef, flat, other)
    np.testing.assert_allclose(changed.sums["fast"], string_losses(flat, other), rtol=1e-5)
    assert abs(changed.sums["fast"] - objective.sums["fast"]) > 1e-2
    np.testing.assert_allclose(changed.sums["action"], objective.sums["action"], rtol=1e-6)


@pytest.mark.parametrize("layout", ["prefix", "robovlms"])
def test_no_leak_from_the_caption_to_itself(layout):
    """The score of a word depends on the images and the words before it, not on itself, later ones
    or the prompt.
    """
    graphdef, flat = make_policy("caption", layout=layout)
    model, obs = params.merge(graphdef, flat), make_data().obs
    obs = obs._replace(
        prompt_mask=np.ones((2, 5), bool), prompt=np.array([[1, 5, 6, 7, 8]] * 2, np.int32)
    )
    target = np.arange(5)[None] > np.zeros((2, 1))

    @jax.jit
    def logits(obs):
        images = tuple(image[:, -1] for image in obs.images)
        return model.text_logits(images, obs.image_mask[:, -1], obs.prompt, obs.prompt_mask, target)

    before = logits(obs)
    for word in range(1, 5):
        changed = obs.prompt.copy()
        changed[:, word] = 20
        after = logits(obs._replace(prompt=changed))
        np.testing.assert_allclose(
            after[:, :word], before[:, :word], atol=1e-5
        )  # those that predict words 1 .. word
        assert np.abs(after[:, word:] - before[:, word:]).max() > 1e-3
    blind = logits(obs._replace(images=tuple(255 - image for image in obs.images)))
    assert np.abs(blind - before).max(axis=(0, 2)).min() > 1e-4


def test_next_token_by_hand():
    tokens = np.array([[1, 2, 3, 0]])
    logits = np.log(np.array([[[0.1, 0.2, 0.3, 0.4]] * 4], np.float32))
    total, count = next_token(logits, tokens, np.array([[False, True, True, False]]))
    np.testing.assert_allclose(total, [-np.log(0.3) - np.log(0.4)], rtol=1e-6)
    np.testing.assert_array_equal(count, [2])


def test_patches_by_hand():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)
    normalised = np.asarray(patches(image, 2))
    corner = image[0, :2, 2:].reshape(-1).astype(np.float32)
    expected = (corner - corner.mean()) / np.sqrt(corner.var() + 1e-6 * 255**2)
    np.testing.assert_allclose(normalised[0, 1], expected, atol=1e-4)
    assert normalised.shape == (1, 4, 12)


@pytest.mark.slow
def test_masked_frames_and_padded_steps_change_nothing():
    graphdef, flat = make_policy("forward", "text_align")
    batch = make_data()  # the first step of row 0 is before the episode
    images = tuple(
        np.where(
            (batch.future.mask & batch.obs.step_mask[:, :, None, None])[..., i, None, None, None],
            image,
            255 - image,
        )
        for i, image in enumerate(batch.future.images)
    )
    other = batch._replace(future=batch.future._replace(images=images))
    jax.tree.map(
        np.testing.assert_array_equal, run(graphdef, flat, batch), run(graphdef, flat, other)
    )


def test_a_task_without_its_data_is_refused():
    for task, field in (
        ("forward", "future"),
        ("text_align", "text_target"),
        ("fast", "action_tokens"),
    ):
        graphdef, shapes, _ = params.abstract(maker(task))
        with pytest.raises(ValueError, match=rf"Batch\.{field}"):
            run.eval_shape(graphdef, shapes, make_data()._replace(**{field: None}))


def test_patches_must_divide_the_image():
    with pytest.raises(ValueError, match="divisor of the image size 8"):
        ForwardConfig(1, 1, 1, 16, 1, 3, 8)


def test_a_reading_that_is_not_there_costs_nothing():
    graphdef, flat = make_policy("sensed")
    batch = make_data()
    whole, counts = run(graphdef, flat, batch)
    read = batch.obs.sensors["scene"]
    mask = read.mask.copy()
    mask[0] = False
    values = np.where(mask[..., None], read.values, 1e6).astype(np.float32)
    obs = batch.obs._replace(sensors={"scene": Reading(values, mask)})
    part, fewer = run(graphdef, flat, batch._replace(obs=obs))
    there = whole.metrics["sensed"][0][1]
    np.testing.assert_allclose(part.sums["sensed"], there, rtol=1e-5)
    assert fewer["sensed"] < counts["sensed"]
    with pytest.raises(ValueError, match=r"Batch\.obs\.sensors\['scene'\]: expected what this"):
        run(graphdef, flat, batch._replace(obs=batch.obs._replace(sensors={})))


def test_a_row_of_a_reading_is_told_by_its_token_of_each_camera():
    task = SensedPrediction((2, 4), 8, SCENE, nnx.Rngs(0))
    batch, rng = make_data(), np.random.default_rng(0)
    tokens = rng.normal(size=(2 * T, 2, 4, 4)).astype(np.float32)  # f cameras q c

    def loss(tokens, values):
        reading = Reading(values, np.ones(values.shape[:-1], bool))
        told = batch._replace(obs=batch.obs._replace(sensors={"scene": reading}))
        seen = Encoded(tokens.reshape(2 * T, 8, 4), None, None, None, None)
        return float(task.loss(seen, told)[0].sum())

    values = batch.obs.sensors["scene"].values
    whole = loss(tokens, values)
    order = np.array([2, 0, 1, 3])
    assert loss(tokens[:, :, order], values) != pytest.approx(whole, rel=1e-3)
    assert loss(tokens[:, :, order], values[:, :, order[:3]]) == pytest.approx(whole, rel=1e-5)
    for camera, token, counts in ((0, 0, True), (1, 2, True), (0, 3, False), (1, 3, False)):
        other = tokens.copy()
        other[:, camera, token] += 1.0
        assert (loss(other, values) != pytest.approx(whole, rel=1e-5)) == counts
