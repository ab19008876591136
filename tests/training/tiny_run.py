"""A tiny model, its data and a whole run of it, for the tests of training; also a command, for
those of processes.

python -m tests.training.tiny_run --workdir DIR --mesh 1,1,1 --steps 6 [--silent 5]

Several of them join as real runs do, by JAX_COORDINATOR_ADDRESS and the rest.
"""

import argparse
import dataclasses
import resource
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vla_jax import params, sharding
from vla_jax.models import lora
from vla_jax.models.transformer import Linear
from vla_jax.training import hosts, metrics, optim, train
from vla_jax.training import state as training_state
from vla_jax.training.checkpoint import Checkpointer, complete_steps
from vla_jax.training.clock import Clock
from vla_jax.training.patience import resumed
from vla_jax.training.profiler import Profiler
from vla_jax.types import Batch, Objective, Observation

B, T, K, D, L, WIDTH, LAYERS = 8, 2, 3, 4, 5, 8, 3
UNITS = train.Units(("x", "y", "z", "gripper"), np.array([[2.0] * D, [10.0] * D], np.float32))
META = {
    "statistics": {"toy": {"actions": {"mean": [0.0, 1.0], "count": 7}}},
    "cameras": ["primary"],
}
DATA = {"seed": 0, "digest": "abc"}


class Block(nnx.Module):
    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.ones((WIDTH,)), logical=("embed",))
        self.up = Linear((WIDTH, 2 * WIDTH), ("embed", "mlp"), False, rngs)
        self.down = Linear((2 * WIDTH, WIDTH), ("mlp", "embed"), False, rngs)

    def __call__(self, x):
        return x + self.down(jnp.tanh(self.up(x * self.scale[None, None])))


class Group(nnx.Module):
    """A named part: Group(vision=..., embed=...)."""

    def __init__(self, **parts):
        for name, part in parts.items():
            setattr(self, name, part)


@dataclasses.dataclass(frozen=True)
class Scales:
    loss_weights: tuple[tuple[str, float], ...] = (("action", 1.0),)


class Tiny(nnx.Module):
    """Obeys the contract of the train step: loss(batch, key) -> Objective, and its weights."""

    def __init__(self, rngs, noise=0.1):
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return Block(rngs)

        table = nnx.Param(
            0.3 * jax.random.normal(rngs.params(), (16, WIDTH)), logical=("vocab", "embed")
        )
        self.backbone = Group(
            vision=Linear((4 * 4 * 3, WIDTH), (None, "vision"), False, rngs),
            embed=Group(embedding=table),
            decoder=Group(layers=make(rngs)),
        )
        self.head = Linear((WIDTH, K * D), ("embed", None), True, rngs)
        self.noise = noise
        self.config = Scales()

    def loss(self, batch, key):
        dtype = self.head.kernel.dtype
        pixels = batch.obs.images[0].reshape(batch.actions.shape[0], T, -1).astype(dtype) / 255
        x = self.backbone.vision(pixels)  # b t c
        x = x + self.backbone.embed.embedding[...][batch.obs.prompt].mean(1)[:, None]
        x, _ = jax.lax.scan(lambda x, layer: (layer(x), None), x, self.backbone.decoder.layers)
        x = x + self.noise * jax.random.normal(key, x.shape, dtype)
        error = self.head(x).reshape(-1, T, K, D).astype(jnp.float32) - batch.actions
        mask = batch.action_mask.astype(jnp.float32)
        squared = (error**2 * mask).sum((1, 2, 3))
        pairs = {
            "arm": (squared, mask.sum((1, 2, 3))),
            "l1": ((jnp.abs(error) * mask).sum((1, 2)), mask.sum((1, 2))),
        }
        return Objective({"action": squared.sum()}, jax.lax.stop_gradient(pairs))

    def mask_counts(self, batch):
        return {"action": batch.action_mask.sum(dtype=jnp.float32)}


def make_batch(position, rows=None):
    """A pure function of the position, as the loader's."""
    random = np.random.default_rng([7, position])
    images = random.integers(0, 256, (B, T, 4, 4, 3), np.uint8)
    prompt = random.integers(0, 16, (B, L))
    target = (
        images.mean((2, 3, 4))[:, :, None, None] / 128
        - 1
        + prompt.mean(1)[:, None, None, None] / 16
    )
    batch = Batch(
        obs=Observation(
            images=(images,),
            image_mask=np.ones((B, T, 1), bool),
            proprio=np.zeros((B, T, 2), np.float32),
            proprio_mask=np.zeros((B, 2), bool),
            prompt=prompt,
            prompt_mask=np.ones((B, L), bool),
            step_mask=np.ones((B, T), bool),
        ),
        actions=np.broadcast_to(target, (B, T, K, D)).astype(np.float32),
        action_mask=random.random((B, T, K, D)) < 0.8,
        dataset_id=random.integers(0, 2, (B,)),
    )
    return batch if rows is None else jax.tree.map(lambda x: x[rows], batch)


def batches(start, rows=None):
    position = start
    while True:
        yield make_batch(position, rows)
        position += 1


def config(**changes):
    defaults = {
        "steps": 6,
        "batch_size": B,
        "dtype": "float32",
        "ema": 0.9,
        "log_every": 1,
        "eval_every": 3,
        "save_every": 3,
    }
    return train.TrainConfig(**{**defaults, **changes})


class Setup:
    """Everything a run needs, short of its work directory."""

    def __init__(self, mesh, config, freeze=None, noise=0.1, lr=1e-2, adapters=None):
        freeze = optim.FreezeConfig() if freeze is None else freeze
        self.build = lambda rngs: Tiny(rngs, noise)
        if adapters is not None:
            self.build = lora.attach(self.build, adapters)
        self.mesh, self.config = mesh, config
        self.graphdef, self.shapes, logical = params.abstract(self.build)
        self.shardings = sharding.resolve(self.shapes, logical, mesh, large=1024)
        trainable, _ = optim.partition(self.shapes, freeze)
        optim_config = optim.OptimConfig(
            lr=lr, weight_decay=0.01, clip=1.0, schedule="cosine", warmup_steps=2
        )
        self.optimizer = optim.make_optimizer(optim_config, freeze, self.shapes, 100, 10)
        self.abstract = training_state.abstract_state(
            self.shapes, self.shardings, trainable, self.optimizer, config
        )
        self.step = train.make_train_step(
            self.graphdef, self.optimizer, config, self.abstract, UNITS
        )
        self.eval_step = train.make_eval_step(self.graphdef, config, self.abstract, UNITS)

        self._first = None

    def start(self):
        """A state at step 0; made once, because each making compiles."""
        if self._first is None:
            values = params.initialise(self.build, 0, self.shardings)
            state = training_state.init_state(values, self.abstract, self.optimizer)
            if jax.process_count() > 1:
                return state
            self._first = jax.device_get(state)
        return jax.tree.map(
            lambda value, like: jax.device_put(value.copy(), like.sharding),
            self._first,
            self.abstract,
        )

    def batch(self, position):
        own = sharding.rows(self.mesh, B)
        return sharding.global_batch(make_batch(position, own), self.mesh, B)

    def evaluate(self, state):
        return train.evaluate(
            self.eval_step, state, (self.batch(1000 + i) for i in range(2)), UNITS
        )

    def fit(self, workdir, feed=batches, peers=hosts.ALONE, patience=0, **changes):
        """Trains in `workdir`, continuing what is there; returns the final state. `patience` is
        that of early stopping, `changes` are to the loop's config.
        """
        config = dataclasses.replace(self.config, **changes)
        checkpointer = Checkpointer(Path(workdir) / "checkpoints", META, DATA)
        state = checkpointer.restore(self.abstract)
        state = self.start() if state is None else state
        done = int(state.step)
        recorder = metrics.Recorder(workdir, done, config.steps)

        def agree(step, state):
            peers.same(f"step {step}", hosts.replicas(state))

        clock = Clock(Path(workdir) / "goodput.json" if peers.index == 0 else None)
        clock.resume(done)
        profiler = Profiler(Path(workdir) / "profiles", recorder.say)
        stopping = None
        if patience:
            kept = complete_steps(Path(workdir) / "checkpoints")
            stopping = resumed(patience, Path(workdir) / "metrics.jsonl", done, kept)
            checkpointer.mark(stopping.step)
        hooks = train.Hooks(
            checkpointer, recorder, clock, profiler, self.evaluate, peers, agree, stopping
        )
        agree(done, state)
        try:
            with peers.together():
                return train.fit(
                    state, self.step, feed(done, sharding.rows(self.mesh, B)), config, hooks
                )
        finally:
            recorder.close()
            checkpointer.close()


def slow_batches(start, rows=None):
    """Leaves the parent of this process time to kill it between two steps."""
    for batch in batches(start, rows):
        time.sleep(0.1)
        yield batch


def drifted(state):
    """The state with this process's replica of the head's bias changed."""
    bias = state.params["head/bias"]
    own = [shard.data + 1e-3 for shard in bias.addressable_shards]
    other = jax.make_array_from_single_device_arrays(bias.shape, bias.sharding, own)
    return state._replace(params={**state.params, "head/bias": other})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--mesh", default="1,1,1")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--save_every", type=int, default=3)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--silent", type=float, default=30.0, help="see hosts.Times")
    parser.add_argument("--join", type=int, default=300, help="see hosts.Times")
    parser.add_argument("--patience", type=int, default=0, help="of early stopping")
    parser.add_argument("--worse", action="store_true", help="the held-out loss rises")
    parser.add_argument("--drift", action="store_true", help="this replica begins elsewhere")
    parser.add_argument("--file_size", type=int, default=0, help="more bytes fail, as a full disk")
    args = parser.parse_args()
    if args.file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (args.file_size, args.file_size))
    peers = hosts.join(hosts.Times(join=args.join, silent=args.silent))
    with peers.together():
        mesh = sharding.make_mesh(*map(int, args.mesh.split(",")))
        setup = Setup(mesh, config(steps=args.steps, save_every=args.save_every))
        feed = slow_batches if args.slow else batches
        if args.drift:
            begin = setup.start
            setup.start = lambda: drifted(begin())
        if args.worse:
            setup.evaluate = lambda state: {"loss": float(state.step)}
        setup.fit(args.workdir, feed, peers, args.patience)
    peers.close()


if __name__ == "__main__":
    main()
