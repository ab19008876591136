"""What a policy says of recorded windows, as they are and with something changed that it should
heed: how much of its skill it owes to the words and to the pictures.

Axes: b batch, k chunk step, d action dim.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vla_jax import sharding
from vla_jax.models.vla import VLA
from vla_jax.params import Params, merge
from vla_jax.types import Observation

GREY = 128  # of a blank picture: about what networks take for 0

Change = Callable[[Observation], Observation]  # of this process's rows


class Policy(NamedTuple):
    """The policy of a run on the devices: `act` gives the chunks [b k d], in network
    units, of a batch of observations that is split over the mesh; its number seeds heads that draw.
    """

    act: Callable[[Observation, int], Any]
    place: Callable[[Any], Any]  # this process's rows -> global arrays
    chunk: int


def program(graphdef: nnx.GraphDef, mesh: Mesh) -> Callable[..., Any]:
    """What `act` of a Policy compiles: (weights, observation, number) -> the chunks [b k d]."""

    def chunks(weights: Params, obs: Observation, number: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.key(0), number)
        with sharding.activations_over(mesh):
            return cast(VLA, merge(graphdef, weights)).act(obs, key)

    return chunks


def asked(
    policy: Policy,
    obs: Observation,
    number: int,
    changes: Sequence[Change],
    placed: Observation | None = None,
) -> list[Any]:
    """The chunks [b k d] of a batch of this process's rows, and with each of the `changes`: one
    program, begun and not waited for. `placed` is the batch on the devices where it is there
    already; only what a change changes goes there once more.
    """
    whole = policy.place(obs) if placed is None else placed
    out = [policy.act(whole, number)]
    for change in changes:
        other = change(obs)
        fields = {
            name: getattr(other, name)
            for name in Observation._fields
            if getattr(other, name) is not getattr(obs, name)
        }
        out.append(policy.act(whole._replace(**policy.place(fields)), number))
    return out


def blanked(ids: np.ndarray, length: int) -> Change:
    """A change that replaces every prompt of a batch by the given ids."""

    def replace(obs: Observation) -> Observation:
        prompt = np.zeros_like(obs.prompt)
        prompt[:, : len(ids)] = ids
        mask = np.broadcast_to(np.arange(length) < len(ids), prompt.shape)
        return obs._replace(prompt=prompt, prompt_mask=np.ascontiguousarray(mask))

    return replace


def swapped(obs: Observation) -> Observation:
    """A change that gives every row the prompt of the next one that has another: of the rows behind
    it, then from the first one on. Nothing changes where all have the same.
    """
    prompt = np.asarray(obs.prompt)
    b = len(prompt)
    order = (np.arange(b)[:, None] + np.arange(b)) % b  # b b: itself, the next one, ...
    others = (prompt[order] != prompt[:, None]).any(-1)
    given = order[np.arange(b), others.argmax(1)]
    return obs._replace(prompt=prompt[given], prompt_mask=np.asarray(obs.prompt_mask)[given])


def unseen(obs: Observation) -> Observation:
    """A change that makes every picture one grey."""
    return obs._replace(images=tuple(np.full_like(image, GREY) for image in obs.images))
