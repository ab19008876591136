"""A hand that pushes the named block of three in the named direction: tiny, from nothing, in
minutes on a CPU. What `make demo` trains.

    python -m data_pipelines.builders.blocks --out runs/demo/data
    python -m experiments.pretrain --config=blocks.py --workdir=runs/demo/policy
    python -m experiments.rollout --policy runs/demo/policy --sim blocks --out DIR

oxe_paligemma.py:tiny (words behind the colon, a head or lora, mean what they mean there) but for
what this task needs less of or more of. One frame at a time: all that an action depends on is in
the picture, the state and the words. So there is no time for the head to fuse: an MLP. Where the
hand is need not be read off the picture. Colours are told apart after 650 to 1,300 steps, it
depends on chance when: the loss falls once more there. Sentences have 10 tokens at most.
"""

from ml_collections import ConfigDict

from experiments.configs import oxe_paligemma


def get_config(arg: str = "") -> ConfigDict:
    """The config of oxe_paligemma.py:tiny with this file's data; `arg` holds the words of
    experiments/composition/presets.py, without sizes.
    """
    config = oxe_paligemma.tiny_mlp(arg)
    config.steps = 3_000
    config.batch_size = 64
    config.model.prompt_length = 16
    config.model.proprio = True
    return config
