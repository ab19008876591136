"""Any policy of ours onto your own robot: "my 40 episodes".

    python -m experiments.pretrain --config=finetune.py:RUN/checkpoints --config.data.root=ROOT
    --config.data.mixture=NAME --workdir=DIR [--then=evaluate,export,replay]
    python -m experiments.pretrain --config=finetune.py:RUN/checkpoints,lora ...   # adapters only

RUN is a run's work directory; the folder of an import does as well. What the policy is made of
(model.*) and its loss are that run's, everything else is new, the data's statistics too. What
differs on the new robot is overridden as ever (--config.model.cameras=primary,wrist,
--config.model.chunk=16, --config.model.proprio=True). Dims of actions and state are the data's:
those that the policy has are taken over by their names. Parameters that no longer fit, or of which
only some dims do, begin at random, which --config.model.allow_missing=head/* has to allow: the
table that says what is kept, dropped and new comes before anything is read.

The numbers:
- Learning rate: that of the run, whose parameters are used to it; 2e-5 where the run trained
  adapters. Octo fine-tunes at the rate of its pretraining too (3e-4); openpi at 2.5e-5. Adapters:
  rank 16 as openpi's, at OpenVLA's 5e-4.
- Half a cosine down to a tenth of it, after 1,000 steps of warm-up or a tenth of the run; 32
  windows a step, 30,000 steps at most: openpi's.
- 20 epochs, evaluated 20 times or more; the run ends when 10 evaluations in a row were no better
  than the best, whose checkpoint is the policy. It is as many as that because a policy may get
  worse first, while the rate rises. A tenth of the episodes is held out, where the data have no
  split for it.
- Images are augmented as in oxe_paligemma.py, whatever the run did: on 40 episodes of the demo's
  kind (all parameters, one seed) the held-out loss was 0.019 with it, 0.026 without.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.composition import presets
from experiments.configs import oxe_paligemma
from vla_jax.saved_config import of_checkpoint
from vla_jax.training.checkpoint import complete_steps, load_meta


def get_config(arg: str = "") -> ConfigDict:
    """The config that goes on from a checkpoint; `arg` is its folder, and perhaps "lora".

    Raises ValueError for other words, and where there is no complete checkpoint.
    """
    words = [word.strip() for word in arg.split(",") if word.strip()]
    folders = [word for word in words if word != "lora"]
    if len(folders) != 1 or not complete_steps(Path(folders[0]).expanduser()):
        raise ValueError(
            "--config=finetune.py:RUN/checkpoints[,lora]: expected the checkpoints of one run or"
            f" import, got {arg!r}"
            + ", where no complete one is"
            * (len(folders) == 1)
            + "\n    python -m experiments.pretrain --config=finetune.py:RUN/checkpoints"
            " --config.data.root=ROOT --config.data.mixture=NAME --workdir=DIR"
        )
    start = Path(folders[0]).expanduser()
    saved = of_checkpoint(load_meta(start), start)

    config = oxe_paligemma.get_config()
    config.steps = 30_000
    config.epochs = 20.0
    config.batch_size = 32
    config.log_every = 10
    config.eval_every = 200
    config.early_stop = 10
    config.data.mixture = ""  # yours
    config.data.held_out = "0.1"
    config.data.ram_budget = 4 * 2**30

    config.model = ConfigDict(_tuples(saved.model.to_dict()))
    config.model.start = str(start)
    config.model.start_state = "params"
    config.model.weights = "none"
    config.model.tokenizer = ""  # that of the start: its embeddings are of its ids
    config.model.allow_missing = ()
    config.model.action_dim = 0  # and the names: those of the new robot
    config.model.action_names = config.model.action_binary = ()
    config.model.state_names = config.model.embodiments = ()
    config.loss = ConfigDict(_tuples(saved.loss.to_dict()))

    config.optim.lr = 2e-5 if saved.lora.rank else saved.optim.lr
    config.optim.schedule = "half_cosine"
    config.optim.min_lr_scale = 0.1
    config.optim.warmup_steps = 1_000
    config.optim.warmup_epochs = 0.0
    presets.apply(config, presets.parse("lora" if "lora" in words else ""))
    return config


def same_robot(config: ConfigDict) -> None:
    """Gives `get_config`'s the data of the start and the dims of its robot: there are no others."""
    start = Path(config.model.start)
    saved = of_checkpoint(load_meta(start), start)
    for name in ("action_dim", "action_names", "action_binary", "state_names", "embodiments"):
        config.model[name] = _tuples(saved.model.to_dict()[name])
    config.data = ConfigDict(_tuples(saved.data.to_dict()))


def otherwise(arg: str) -> ConfigDict:
    """`get_config` for the same robot where it learns from something else than demonstrations: by
    trial, or from preferences. Nothing is done to pictures, and what only learning needs is new.
    """
    config = get_config(arg)
    same_robot(config)
    config.epochs = 0.0
    config.early_stop = 0
    config.eval_every = 0
    config.model.allow_missing = ("critic/*",)
    presets.as_they_are(config)
    return config


def _tuples(value: Any) -> Any:
    """As config files write it, of what JSON gives back: tuples for lists."""
    if isinstance(value, dict):
        return {name: _tuples(each) for name, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
