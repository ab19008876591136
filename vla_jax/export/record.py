"""What the JAX policy makes of a made-up episode, at three stages: the golden file of an artefact.

Axes: t steps, h w pixels, m visual tokens of all cameras, w their width, n readouts, c width, k
chunk step, d action dim, p proprio.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vla_jax.models.vla import VLA
from vla_jax.params import Params, merge
from vla_jax.policy import JaxPolicy
from vla_jax.policy_io import PolicyIO
from vla_jax.robot import rotations
from vla_jax.robot.sensing import Sensor
from vla_jax.robot.torch_policy.golden import given

Golden = dict[str, np.ndarray]
INSTRUCTION = "put the red block on the plate"


def episode(model: VLA, io: PolicyIO, steps: int) -> Golden:
    """Inputs of `steps` frames: images that drift, so that neighbouring frames are alike, and
    states
    and readings of sensors.
    """
    rng = np.random.default_rng(0)
    out = {}
    for name, size in zip(model.config.cameras, io.image_size, strict=True):
        first, last = rng.integers(0, 256, (2, size, size, 3))
        part = np.linspace(0, 1, steps)[:, None, None, None]
        noise = rng.integers(-8, 9, (steps, size, size, 3))
        out[f"image/{name}"] = np.clip((1 - part) * first + part * last + noise, 0, 255).astype(
            np.uint8
        )
    dims = len(io.state_spec.names)
    if (model.config.state is not None and dims) or io.action_spec.relative:
        normalised = rng.uniform(-1, 1, (steps, dims)).astype(np.float32)
        out["proprio"] = io.state_spec.unnormalise(normalised)
        for kind, _, state in io.action_spec.relative:  # made-up numbers are no rotation
            if kind in rotations.WIDTHS:
                rotation = rotations.matrix(kind, out["proprio"][:, state])
                out["proprio"][:, state] = rotations.from_matrix(kind, rotation)
    for sensor in model.config.sensors:
        out[f"sensor/{sensor.name}"] = _made_up(sensor, io, steps, rng)
    return out


def _made_up(sensor: Sensor, io: PolicyIO, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Raw readings of a sensor [steps ...], some of their samples NaN, and at every third step, or
    where the dataset has no such sensor, all of them.
    """
    if sensor.kind == "tactile":
        return rng.integers(0, 256, (steps, *sensor.shape), np.uint8)
    if sensor.kind == "audio":
        rate, seconds = sensor.sizes
        return rng.uniform(-1, 1, (steps, rate * seconds // 2)).astype(np.float32)
    raw = rng.uniform(-1, 1, (steps, *sensor.shape)).astype(np.float32)
    if sensor.fitted and sensor.name in io.sensor_specs:
        raw = io.sensor_specs[sensor.name].unnormalise(raw)
    raw = 10**raw if sensor.kind == "depth" else raw
    raw[rng.random(raw.shape[:2]) < 0.2] = np.nan
    raw[2::3] = np.nan
    return raw if not sensor.fitted or sensor.name in io.sensor_specs else np.full_like(raw, np.nan)


def instruction(io: PolicyIO) -> str:
    """As many words of INSTRUCTION as the prompt has room for."""
    words = INSTRUCTION.split()
    fitting = [
        n for n in range(len(words) + 1) if len(io.encode(" ".join(words[:n]))) <= io.prompt_length
    ]
    if not fitting:
        raise ValueError(
            "export: expected a prompt_length that holds an empty instruction, got"
            f" {io.prompt_length}"
        )
    return " ".join(words[: fitting[-1]])


def record(graphdef: nnx.GraphDef, params: Params, io: PolicyIO, steps: int) -> Golden:
    """Inputs and stages: vision [t m w], readout [t n c], action (normalised) and robot [t
    k d].

    It is what JaxPolicy does, taken apart by its own methods, in the dtype of `params`.
    """
    model = cast(VLA, merge(graphdef, params))
    golden = episode(model, io, steps)
    policy = JaxPolicy(graphdef, params, io)
    look = jax.jit(lambda params, images: _vision(cast(VLA, merge(graphdef, params)), images))
    said = instruction(io)
    policy.reset(said)
    stages: dict[str, list[Any]] = {"vision": [], "readout": [], "action": [], "robot": []}
    with jax.default_matmul_precision("highest"):
        for i in range(steps):
            images = {name: golden[f"image/{name}"][i] for name in model.config.cameras}
            stages["vision"].append(look(params, [images[name] for name in model.config.cameras]))
            proprio = golden["proprio"][i] if "proprio" in golden else None
            sensors = given(model.config.sensors, golden, i)
            stages["robot"].append(policy.act(images, proprio, sensors=sensors))
            made = policy.stages()
            stages["readout"].append(made.readout)
            stages["action"].append(made.action)
    golden |= {
        name: np.stack([np.asarray(x, np.float32) for x in values])
        for name, values in stages.items()
    }
    noise = _noise(model, io.seed, steps)
    if noise is not None:
        golden["noise"] = noise
    golden["instruction"] = np.array(said)
    return golden


def _vision(model: VLA, images: list[Any]) -> Any:
    """Visual tokens [m w] of an image of each camera."""
    frame = tuple(image[None] for image in images)
    cameras = model.encode_cameras(frame, np.ones((1, len(frame)), bool))
    return jnp.concatenate([each.tokens[0] for each in cameras])


def _noise(model: VLA, seed: int, steps: int) -> np.ndarray | None:
    """What the head draws at each step with JaxPolicy's keys."""
    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(steps)]
    drawn = [model.head.noise(key) for key in keys]
    return None if drawn[0] is None else np.stack([np.asarray(noise) for noise in drawn])
