"""A base that is told in Korean how to get to a cup: tiny, from nothing, in minutes on a CPU.

    python -m data_pipelines.builders.navigation --out runs/navigation/data
    python -m experiments.pretrain --config=navigation.py --workdir=runs/navigation/policy
    python -m experiments.rollout --policy runs/navigation/policy --sim navigation --out DIR

oxe_paligemma.py:tiny (words behind the colon, a head or lora, mean what they mean there) but for
what this task needs less of or more of. One frame at a time: all that an action
depends on is in the picture and in the words, and a policy that carries out whole chunks sees no
two frames in a row. So there is no time for the head to fuse: an MLP. Sentences have 11 tokens at
most. Batches of 64, as half of all windows begin off the way.
"""

from ml_collections import ConfigDict

from experiments.configs import oxe_paligemma


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py:tiny with this file's data; `arg` holds the words of
    experiments/composition/presets.py, without sizes.
    """
    config = oxe_paligemma.tiny_mlp(arg)
    config.steps = 1_500
    config.batch_size = 64
    config.data.root = "runs/navigation/data"
    config.data.mixture = "navigation"
    config.model.prompt_length = 16
    return config
