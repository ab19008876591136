"""An arm that is told what to do in ten tasks of Meta-World: small, from nothing, on a CPU.

    python -m data_pipelines.builders.metaworld --out runs/metaworld/data --processes 2
    python -m experiments.pretrain --config=metaworld.py --workdir=runs/metaworld/policy
    python -m experiments.rollout --policy runs/metaworld/policy --sim metaworld --out DIR

oxe_paligemma.py:tiny (words behind the colon, a head or lora, mean what they mean there) but for
what this task needs. Both cameras at the size they are drawn in, the hand's place as proprio. One
frame at a time, eight actions (a tenth of a second) at once: an MLP, as there is no time to fuse.
Shifted pictures are seen anew, by no more than goals are wide. Errors count by their size and not
its square: the last centimetre decides on a grip.
"""

from ml_collections import ConfigDict

from experiments.configs import oxe_paligemma


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py:tiny with this file's data; `arg` holds the words of
    experiments/composition/presets.py, without sizes.
    """
    config = oxe_paligemma.tiny_mlp(arg)
    config.steps = 12_000
    config.batch_size = 64
    config.log_every = 100
    config.eval_every = config.save_every = 1_000
    config.data.root = "runs/metaworld/data"
    config.data.mixture = "metaworld"
    config.augment.shift = (2, 2)
    config.loss.delta = 0.1
    config.model.chunk = 8
    config.model.cameras = ("primary", "wrist")
    config.model.image_size = 96
    config.model.image_sizes = (96, 64)
    config.model.proprio = True
    config.model.head_hidden = 256
    config.model.head_mlp = (256, 128)
    return config
