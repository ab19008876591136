"""What the head fast costs beside the language model that it asks, both in JAX, turn by turn.

    plan    the tokens of a frame (of a window, with history "interleaved") -> actions in robot
            units: the pass over them, the string of n tokens behind its keys and values, the chunk
            that it says, on the host
    ideal   that pass with the scores of the first token, and n - 1 steps of the language model
            alone behind a cache of the same length: of a token that is given, the cache with it and
            the scores of the tokens that may follow. They are one program, which chooses and keeps
            no token, looks for no end and decodes nothing

The ratios are of plan to ideal, and of both without the pass: what choosing, keeping, ending,
decoding and the host cost on top of the steps.

Random weights end by chance, with no chunk. Those of `writing` write a string that says one: what
the language model's blocks give is nothing there, so that a token follows from the last one. They
compute it as ever.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from experiments.benchmarks import turns
from vla_jax import build_heads
from vla_jax import params as flat
from vla_jax.models import fast_vocabulary
from vla_jax.models.decoding import extend
from vla_jax.models.fast_vocabulary import FastVocabulary
from vla_jax.models.heads.fast import FastHead
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.robot.held import at_rest, is_none
from vla_jax.saved import SavedPolicy
from vla_jax.types import Array, HeadContext, Prefix

ROUNDS = 10
CHUNKS = 2_000  # that a vocabulary is fitted on
GROWTH = 3.0  # of the words of one token of a string to the next


class Ratio(NamedTuple):
    """Tokens of the string with its end; medians over the turns: seconds of the pass and of one
    step, wall, and the ratios to the ideal, of the whole plan and of what is behind the pass.
    """

    tokens: int
    pass_s: float
    step_s: float
    wall: float
    cpu: float
    behind_wall: float
    behind_cpu: float


# -------------------------------------------------------------------------------- what it writes


def chunks(config: ConfigDict) -> Float[np.ndarray, "n k d"]:
    """Generated ones, normalised: slow waves, and grippers that close once at most."""
    rng, k, d = np.random.default_rng(0), config.model.chunk, len(config.model.action_names)
    step, size = np.arange(k)[None, :, None], (CHUNKS, 1, d)
    turn = rng.uniform(0, 0.5, size) * step + rng.uniform(0, 2 * np.pi, size)
    out = rng.uniform(0, 1, size) * np.sin(turn)
    closes = np.where(step < rng.integers(-3 * k, 4 * k, size), -1.0, 1.0)
    binary = list(build_heads.binary(config))
    out[..., binary] = closes[..., binary]
    return out


def vocabulary(config: ConfigDict) -> FastVocabulary:
    """Fitted on the generated chunks."""
    names, fast = tuple(config.model.action_names), config.model.fast
    return fast_vocabulary.fit(chunks(config), names, "generated", fast.scale, fast.tokens)


def string(config: ConfigDict, known: FastVocabulary) -> list[int]:
    """The tokens with their end of a generated chunk: as many as they have on average, no two
    alike.
    """
    strings = known.encode(chunks(config))
    usual = round(np.mean([len(each) for each in strings]))
    distinct = (each for each in strings if len(each) == usual == len(set(each)))
    return [*next(distinct), known.end]


def writing(params: Mapping[str, np.ndarray], tokens: list[int], end: int) -> dict[str, np.ndarray]:
    """The parameters of a PaliGemma policy as ones that write these tokens, no two alike, whatever
    they see. `end` is one more than the largest id of a token.

    Token i's word is w_i = GROWTH^i (e_i + e_i+1) on axes e, the readout's e_0. So w_i+1 has the
    largest product with w_i: three to two of w_i's own.
    """
    out, table = dict(params), "backbone/embed/embedding"
    for name in ("attn/o/kernel", "mlp/down/kernel"):
        path = f"backbone/decoder/layers/blocks/{name}"
        out[path] = np.zeros_like(out[path])
    axes = np.eye(out[table].shape[1], dtype=np.float32)
    words = out[table].copy()
    words[end - 1 - max(tokens) : end] = 0.0  # the end is the largest token, and the first id
    for i, token in enumerate(tokens):
        words[end - 1 - token] = GROWTH**i * (axes[i] + axes[i + 1])
    readouts = np.zeros_like(out["readout_embedding"]) + axes[:1]
    return out | {table: words, "readout_embedding": readouts}


# ---------------------------------------------------------------------------------- what it costs


class _Programs(NamedTuple):
    """Of parameters and more.

    Attributes:
        see: -> the tokens of the frames.
        look: those -> what stands before the string, and the scores of its first token.
        plan: those -> the chunk.
        write: what stands before the string -> the chunk, and the ids of its tokens.
        steps: that and tokens [n 1] -> the scores behind the last of them.
    """

    see: Callable[..., Any]
    look: Callable[..., tuple[Prefix, Array]]
    plan: Callable[..., Array]
    write: Callable[..., tuple[Array, Int[Array, "1 q"]]]
    steps: Callable[..., Array]


def measure(source: SavedPolicy, dtype: str, rounds: int = ROUNDS) -> Ratio:
    """The ratios for a policy with the head fast, for the string that it writes of one picture. Of
    a string without any token before its end one step is counted.
    """
    graphdef, _, _ = flat.abstract(source.build)
    params = {name: jnp.asarray(x, dtype) for name, x in source.params.items()}
    model = cast(VLA, flat.merge(graphdef, params))
    end = cast(FastHead, model.head).config.end_token
    programs, to_robot = _programs(graphdef, model.config, source), _to_robot(source)
    frames = programs.see(params)
    prefix, _ = programs.look(params, frames)
    ids = np.asarray(programs.write(params, prefix)[1])[0]
    before_end = int(np.argmax([*(ids == end), True]))
    asked = ids[: max(1, before_end), None]
    runs: dict[str, Callable[[], Any]] = {
        "plan": lambda: to_robot(programs.plan(params, frames)),
        "pass": lambda: programs.look(params, frames),
        "written": lambda: to_robot(programs.write(params, prefix)[0]),
        "steps": lambda: programs.steps(params, prefix, asked),
    }
    plan, whole, written, alone = turns.seconds(runs, rounds).values()
    wall, cpu = np.median(plan / (whole + alone), axis=0)
    behind_wall, behind_cpu = np.median(written / alone, axis=0)
    pass_s, steps_s = (float(np.median(own[:, 0])) for own in (whole, alone))
    ratios = map(float, (wall, cpu, behind_wall, behind_cpu))
    return Ratio(min(len(ids), before_end + 1), pass_s, steps_s / len(asked), *ratios)


def _programs(graphdef: Any, config: VLAConfig, source: SavedPolicy) -> _Programs:
    t = config.window if config.history == "interleaved" else 1
    obs, key = turns.frames(source, config.action_dim, t), jax.random.key(0)

    def of(params: Any) -> VLA:
        return cast(VLA, flat.merge(graphdef, params))

    def context(params: Any, frames: Any) -> HeadContext:
        return of(params).prefix_context(frames, t, None)

    def scores(params: Any, prefix: Prefix) -> Array:
        model = of(params)
        id_range = cast(FastHead, model.head).config.token_range
        return model.backbone.logits(prefix.hidden[:, None], id_range)

    def look(params: Any, frames: Any) -> tuple[Prefix, Array]:
        prefix = context(params, frames).prefix
        return prefix, scores(params, prefix)

    def write(params: Any, prefix: Prefix) -> tuple[Array, Array]:
        model = of(params)
        head = cast(FastHead, model.head)
        ids, _ = head.decode_tokens(HeadContext(prefix=prefix, backbone=model.backbone), key)
        return head.actions(ids), ids

    def steps(params: Any, prefix: Prefix, tokens: Int[Array, "n 1"]) -> Array:
        def step(now: Any, token: Any) -> Any:
            longer = extend(of(params).backbone, now[0], token)
            return (longer, scores(params, longer)), None

        return jax.lax.scan(step, (prefix, scores(params, prefix)), tokens)[0][1]

    return _Programs(
        jax.jit(lambda params: of(params).sequence(obs)),
        jax.jit(look),
        jax.jit(lambda params, frames: of(params).head.act(context(params, frames), key)[:, -1]),
        jax.jit(write),
        jax.jit(steps),
    )


def _to_robot(source: SavedPolicy) -> Callable[[Float[Array, "1 k d"]], np.ndarray]:
    """What follows a network's chunk: its actions on the host, in robot units."""
    io = source.io(next(iter(source.specs)))
    spec, measured = io.action_spec, np.zeros(len(io.state_spec.names), np.float32)

    def convert(chunk: Float[Array, "1 k d"]) -> np.ndarray:
        values = np.asarray(chunk, np.float32)[0]
        if is_none(values):
            return at_rest(spec, io.motion, len(values), None, measured)
        return spec.unnormalise(values[:, io.action_places], measured)

    return convert
