"""The action expert beside openpi's formulas (tests/openpi_reference.py), and what it promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.composition import spaces
from experiments.configs import oxe_paligemma
from experiments.openpi import names
from tests import openpi_reference as openpi
from tests.fakes import make_batch
from vla_jax import build, build_heads, params
from vla_jax.models.backbones import paligemma
from vla_jax.models.heads.expert import ExpertHead
from vla_jax.models.heads.flow import draw
from vla_jax.params import Params
from vla_jax.types import ActionTokens, Batch, Future

KEY, K, D, P = jax.random.key(0), openpi.CHUNK, 7, 5
PI0 = {"time": "concat", "state": "expert"}
PI05 = {"time": "adaptive", "state": "backbone"}
STATE_NAMES = ("a", "b", "c", "d", "e")


def config_of(options: dict, words: str = "tiny,expert", **fields):
    """A tiny policy with openpi's sizes."""
    config = oxe_paligemma.get_config(words)
    config.model.cameras = ("primary", "wrist")
    config.model.chunk, config.model.window = K, 2
    config.model.proprio = options.get("state") == "expert"
    config.model.state_names = STATE_NAMES
    config.model.update(fields)
    options = {"inner": 64, "padded": openpi.PADDED, "bound": 0.0, **options}
    config.model.head_options = ",".join(f"{name}={value!r}" for name, value in options.items())
    config = spaces.resolve(config)
    config.model.action_binary = ()  # in openpi all dims flow alike
    return config


def policy(config, pi05: bool) -> tuple[object, Params]:
    """The policy's graphdef, and its parameters of a tiny openpi checkpoint; jittered readouts."""
    make = build.model(config)
    graphdef, shapes, _ = params.abstract(make)
    sizes = paligemma.CONFIGS["tiny"]
    head = build_heads.head_config(config, build.backbone_config(config))
    arrays = openpi.arrays(pi05)
    flat = {
        name: np.asarray(entry.transform(arrays[entry.source]))
        for name, entry in names.jax_names(sizes, head).items()
    }
    rng = np.random.default_rng(1)
    for name in shapes.keys() - flat.keys():
        flat[name] = rng.standard_normal(shapes[name].shape).astype(np.float32)
    assert flat.keys() == shapes.keys()
    assert all(flat[name].shape == shapes[name].shape for name in flat)
    return graphdef, flat


def example(b: int = 2, t: int = 2) -> Batch:
    """Frames with a missing camera, a padded prompt, a late start, and steps past the end."""
    batch = make_batch(b=b, t=t, k=K, d=D, image_size=32)
    rng = np.random.default_rng(3)
    mask = batch.action_mask.copy()
    mask[0, -1, 2:] = False
    obs = batch.obs._replace(
        proprio=rng.uniform(-1, 1, (b, t, P)).astype(np.float32),
        proprio_mask=np.arange(P)[None] < np.array([[P], [3]])[:b],
    )
    return batch._replace(obs=obs, action_mask=mask)


def seen_by_openpi(config, graphdef, flat, obs) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """What openpi's model is given of every frame: prefix tokens, their mask, the padded state."""
    frames = jax.jit(lambda flat: params.merge(graphdef, flat).sequence(obs))(flat)
    cut = frames.valid.shape[1] - config.model.readouts
    state = np.where(obs.proprio_mask[:, None], obs.proprio, 0).reshape(-1, P)
    state = np.pad(state, ((0, 0), (0, openpi.PADDED - P)))
    return (np.asarray(frames.tokens[:, :cut]), np.asarray(frames.valid[:, :cut])), state


@pytest.fixture(scope="module", params=[PI0, PI05], ids=["pi0", "pi05"])
def made(request):
    """(config, graphdef, parameters, whether pi0.5)."""
    pi05 = request.param is PI05
    config = config_of(request.param)
    return config, *policy(config, pi05), pi05


@pytest.mark.slow
def test_loss_is_that_of_openpis_joint_pass(made):
    """One attention over prefix and suffix, at 1e-5; and its loss, in which padding counts."""
    config, graphdef, flat, pi05 = made
    batch = example()
    prefix, state = seen_by_openpi(config, graphdef, flat, batch.obs)
    run = jax.jit(lambda flat: params.merge(graphdef, flat).loss(batch, KEY).sums["action"])
    mask = batch.action_mask & batch.obs.step_mask[:, :, None, None]
    actions = np.pad(np.where(mask, batch.actions, 0), [(0, 0)] * 3 + [(0, openpi.PADDED - D)])
    noise, time = (np.asarray(x, np.float64) for x in draw(KEY, actions.shape))
    x, there = time * noise + (1 - time) * actions, mask.any(-1).reshape(-1, K)
    x, at = x.reshape(-1, K, openpi.PADDED), time.reshape(-1)
    v = openpi.velocity(openpi.arrays(pi05), prefix, None if pi05 else state, x, at, there)
    error = (v.reshape(actions.shape) - (noise - actions)) ** 2
    counted = np.concatenate([mask, np.repeat(mask.any(-1)[..., None], openpi.PADDED - D, -1)], -1)
    each = (error * counted).sum(-1) / np.maximum(counted.sum(-1), 1)
    np.testing.assert_allclose(run(flat), each.sum(), rtol=1e-5)


@pytest.mark.slow
def test_actions_are_those_of_openpis_joint_passes(made):
    """Ten steps behind a cached prefix, beside ten whole passes, at 1e-5."""
    config, graphdef, flat, pi05 = made
    obs = example().obs
    acted = jax.jit(lambda flat: params.merge(graphdef, flat).act(obs, KEY))(flat)
    (tokens, valid), state = seen_by_openpi(config, graphdef, flat, obs)
    newest = (tokens[1::2], valid[1::2])
    start = jax.random.normal(jax.random.fold_in(KEY, 1), (2, 1, K, openpi.PADDED))
    noise = np.asarray(start[:, 0], np.float64)
    expected = openpi.sample(openpi.arrays(pi05), newest, None if pi05 else state[1::2], noise)[
        ..., :D
    ]
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(acted, expected, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.slow
def test_loss_and_act_agree_and_windows_are_rollouts(made):
    """The l1 metric of the loss at the newest frame is the distance of act's actions."""
    _, graphdef, flat, _ = made
    batch = example(t=2)
    batch = batch._replace(action_mask=np.ones_like(batch.action_mask))
    batch.obs.step_mask[:, :-1] = False  # the newest frame alone counts
    metrics = jax.jit(lambda flat: params.merge(graphdef, flat).loss(batch, KEY).metrics)(flat)
    acted = jax.jit(lambda flat: params.merge(graphdef, flat).act(batch.obs, KEY))(flat)
    expected = np.abs(acted - batch.actions[:, -1]).sum(1)
    np.testing.assert_allclose(metrics["l1"][0], expected, rtol=1e-4, atol=1e-4)


def gradient(config, flat, batch, task: str = "action"):
    graphdef = params.abstract(build.training_model(config))[0]
    return jax.jit(
        jax.value_and_grad(lambda flat: params.merge(graphdef, flat).loss(batch, KEY).sums[task])
    )(flat)


@pytest.mark.slow
def test_scan_and_unroll_and_every_remat_compute_the_same():
    flat = policy(config_of(PI05), True)[1]
    batch, first = example(), None
    for layers, remat in (("unroll", "none"), ("scan", "full"), ("scan", "names"),
                          ("unroll", "dots")):  # fmt: skip
        value, grads = gradient(config_of(PI05, layers=layers, remat=remat), flat, batch)
        first = first or (value, grads)
        np.testing.assert_allclose(value, first[0], rtol=1e-6)
        for name, grad in grads.items():
            size = np.abs(first[1][name]).max()
            np.testing.assert_allclose(grad, first[1][name], atol=1e-5 * size + 1e-7, err_msg=name)
    # Of the backbone nothing behind the last layer's keys and values is looked at; nor a readout,
    # an output layer, a token that is in no prompt.
    dead = {name for name, grad in first[1].items() if not np.any(grad)}
    assert dead == {"backbone/decoder/norm/scale", "readout_embedding"}


@pytest.mark.slow
def test_insulated_the_backbone_learns_from_its_own_tasks_alone():
    """Exactly zero from the actions, and not from the captions."""
    flat = policy(config_of(PI0), False)[1]
    batch = example()
    values = []
    for insulated in (False, True):
        config = config_of({**PI0, "insulated": insulated})
        config.objectives.caption.weight = 0.1
        value, grads = gradient(config, flat, batch)
        values.append(value)
        own = [name for name in grads if name.startswith("head/")]
        assert all(np.any(grads[name]) for name in own)
        moved = [name for name in grads if name.startswith("backbone/") and np.any(grads[name])]
        assert (len(moved) == 0) == insulated
    assert values[0] == values[1]
    _, grads = gradient(config, flat, batch, "caption")
    assert all(np.any(grads[f"backbone/decoder/layers/blocks/attn/{x}/kernel"]) for x in "qkvo")
    assert not any(np.any(grad) for name, grad in grads.items() if name.startswith("head/"))


def with_strings(batch: Batch, config, seed: int) -> Batch:
    """Random strings of other lengths, of ids that they may have."""
    model, rng = config.model, np.random.default_rng(seed)
    end = build.backbone_config(config).vocab
    ids = rng.integers(end - model.fast.tokens, end, (2, 2, model.fast.most), dtype=np.int32)
    there = np.arange(model.fast.most) < rng.integers(1, model.fast.most + 1, (2, 2, 1))
    return batch._replace(action_tokens=ActionTokens(ids, there))


@pytest.mark.slow
def test_insulated_the_backbone_learns_from_strings_and_captions_alone():
    """objectives.fast beside the expert, which does not see the strings: it would read the
    answer.
    """
    config = config_of({**PI0, "insulated": True})
    flat = policy(config, False)[1]
    batch, graphdef = example(), params.abstract(build.model(config))[0]
    loss = jax.jit(lambda flat: params.merge(graphdef, flat).loss(batch, KEY).sums["action"])
    alone = loss(flat)
    config.objectives.fast.weight, config.objectives.caption.weight = 1.0, 0.1
    config.model.fast.tokens, config.model.fast.most = 40, 6
    graphdef = params.abstract(build.model(config))[0]
    tasks = ("action", "fast", "caption")

    @jax.jit
    def both(flat, batch):
        def sums(flat):
            found = params.merge(graphdef, flat).loss(batch, KEY).sums
            return jnp.stack([found[name] for name in tasks])

        values, back = jax.vjp(sums, flat)
        return values, [back(row)[0] for row in jnp.eye(len(tasks))]

    values, grads = jax.device_get(both(flat, with_strings(batch, config, 1)))
    acting, strings, captions = grads
    np.testing.assert_allclose(values[0], alone, rtol=1e-6)
    ours = {name for name in flat if name.startswith("backbone/")}
    assert not any(np.any(acting[name]) for name in ours)
    for name in (f"backbone/decoder/layers/blocks/attn/{x}/kernel" for x in "qkvo"):
        assert np.any(strings[name]), name
        assert np.any(captions[name]), name
    heads = [name for name in flat if name.startswith("head/")]
    assert all(np.any(acting[name]) for name in heads)
    assert not any(np.any(grad[name]) for name in heads for grad in (strings, captions))
    other, _ = both(flat, with_strings(batch, config, 2))
    np.testing.assert_allclose(other[0], alone, rtol=1e-6)
    assert abs(other[1] - values[1]) > 0.1


@pytest.mark.slow
def test_queries_of_another_task_are_not_seen():
    """What stands behind the readouts in training is not there in acting."""
    config = config_of(PI0)
    flat = policy(config, False)[1]
    batch = example()
    alone = gradient(config, flat, batch)[0]
    images = tuple(image[:, :, None] for image in batch.obs.images)
    batch = batch._replace(future=Future(images, np.ones((2, 2, 1, 2), bool)))
    config.objectives.forward.weight = 0.1
    config.objectives.forward.offsets = (1,)
    graphdef, shapes, _ = params.abstract(build.model(config))
    rng = np.random.default_rng(2)
    flat = flat | {
        name: rng.standard_normal(x.shape).astype(np.float32)
        for name, x in shapes.items()
        if name not in flat
    }
    loss = jax.jit(lambda flat: params.merge(graphdef, flat).loss(batch, KEY).sums["action"])
    np.testing.assert_allclose(loss(flat), alone, rtol=1e-6)


@pytest.mark.slow
def test_dims_that_a_robot_lacks_and_binary_ones():
    """They change nothing, wherever their parameters stand; a binary dim is a probability."""
    config = config_of({**PI0, "padded": 0, "bound": 1.0})
    config.model.action_binary = ("gripper",)
    graphdef, shapes, _ = params.abstract(build.model(config))
    rng = np.random.default_rng(0)
    flat = {
        name: rng.standard_normal(x.shape).astype(np.float32)
        * (x.shape[-2] ** -0.5 if len(x.shape) > 1 else 0.3)
        for name, x in shapes.items()
    }
    lacked, has = 1, [0, 2, 3, 4, 5, 6]
    other = dict(flat)
    for name, rows in (("head/action_in/kernel", lacked), ("head/action_out/kernel", (..., lacked)),
                       ("head/action_out/bias", lacked)):  # fmt: skip
        other[name] = flat[name].copy()
        other[name][rows] += 1
    batch = example()
    dims = np.ones((2, D), bool)
    dims[:, lacked] = False
    batch.action_mask[..., lacked] = False
    junk = np.where(batch.action_mask, batch.actions, np.nan).astype(np.float32)
    batch = batch._replace(obs=batch.obs._replace(action_dims=dims))

    @jax.jit
    def run(flat, actions):
        model = params.merge(graphdef, flat)
        given = batch._replace(actions=actions)
        return model.loss(given, KEY).sums["action"], model.act(given.obs, KEY)

    (loss, acted), (changed, otherwise) = run(flat, batch.actions), run(other, junk)
    np.testing.assert_allclose(loss, changed, rtol=1e-6)
    np.testing.assert_allclose(acted[..., has], otherwise[..., has], atol=1e-6)
    assert np.all(np.abs(acted) <= 1)
    assert np.all(acted[..., -1] >= 0)
    assert np.all(np.ptp(acted, axis=(0, 1))[has] > 1e-3)


def test_beside_the_released_backbone_it_is_openpis_gemma_300m():
    """311 M parameters, as openpi counts them, and the projections."""
    config = oxe_paligemma.get_config("expert")
    head = build_heads.head_config(spaces.resolve(config), build.backbone_config(config))
    shapes = params.abstract(lambda rngs: ExpertHead(2048, head, rngs))[1]
    count = {name: int(np.prod(x.shape)) for name, x in shapes.items()}
    inside = sum(size for name, size in count.items() if name.startswith(("layers/", "norm/")))
    assert inside == 18 * (2 * 1024 * 2048 + 2 * 1024 * 256 + 3 * 1024 * 4096 + 2048) + 1024
    assert round(inside / 1e6) == 311


def test_what_cannot_be_is_refused():
    def refused(match: str, options: dict, words: str = "tiny,expert", **fields):
        with pytest.raises(ValueError, match=match):
            build.model(config_of(options, words, **fields))

    refused(r"model\.head: expert: expected a backbone with rotary", {}, backbone="kosmos2")
    refused(r"model\.history: expected head or one_step with the head expert", {},
            history="interleaved")  # fmt: skip
    refused(r"expected time in .*, got 'clock'", {"time": "clock"})
    refused("padded of 7 or more.*got 4", {"padded": 4})
    with pytest.raises(ValueError, match=r"insulated=True expects a task .* objectives\.fast"):
        build.training_model(config_of({"insulated": True}))
    strings = config_of({}, "tiny,fast")
    strings.model.head_options = ""
    strings.objectives.fast.weight = 1.0
    with pytest.raises(ValueError, match=r"objectives\.fast: expected a head that writes no token"):
        build.model(strings)
    refused("an even model.head_hidden", {}, head_hidden=33)
    refused("options of the head expert .*insulated", {"speed": 1})
    with pytest.raises(ValueError, match=r"state='expert' expects model\.proprio=True"):
        dataclasses.replace(
            build_heads.head_config(config_of(PI05), build.backbone_config(config_of(PI05))),
            state="expert",
        )


@pytest.mark.slow
def test_the_loss_is_float32_from_bfloat16_parameters():
    config = config_of(PI0, window=1, cameras=("primary",))
    graphdef, flat = policy(config, False)
    flat = {name: jnp.asarray(x, jnp.bfloat16) for name, x in flat.items()}
    batch = make_batch(t=1, k=K, d=D, cameras=1, image_size=32)
    batch = batch._replace(
        obs=batch.obs._replace(
            proprio=np.zeros((2, 1, P), np.float32), proprio_mask=np.ones((2, P), bool)
        )
    )
    shapes = jax.eval_shape(lambda flat: params.merge(graphdef, flat).loss(batch, KEY), flat)
    assert shapes.sums["action"].dtype == jnp.float32
