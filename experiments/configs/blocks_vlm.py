"""What a pretrained vision-language model is to a robot, in small: the backbone of blocks.py learns
to say what stands on the table, and no action counts.

    python -m data_pipelines.builders.blocks --out runs/demo/data
    python -m data_pipelines.builders.blocks_captions --out runs/demo/data --train 6000 --val 200
    python -m experiments.pretrain --config=blocks_vlm.py --workdir=runs/demo/vlm
    python -m experiments.pretrain --config=blocks.py --config.steps=4000 --config.batch_size=32
    --config.model.weights=runs/demo/vlm/checkpoints
    --config.model.tokenizer=runs/demo/vlm/tokenizer --workdir=DIR

Its own head, the robot's state and readouts are in the program and get no gradient; of its
checkpoints the others take the backbone alone.
"""

from ml_collections import ConfigDict

from experiments.configs import blocks


def get_config(arg: str = "") -> ConfigDict:
    """The config of blocks.py for captions and answers alone; `arg` as there."""
    config = blocks.get_config(arg)
    config.batch_size = 32
    config.eval_every = config.save_every = 500
    config.loss.arm = config.loss.gripper = 0.0
    config.objectives.image_text.weight = 1.0
    config.objectives.image_text.dataset = "blocks_captions"
    config.objectives.image_text.length = 24
    return config
