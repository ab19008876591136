"""What a pretrained vision-language model is to a robot, in small: the backbone of calvin_tiny.py
learns to say where blocks are, and no action counts.

    python -m data_pipelines.builders.calvin_demonstrations --out runs/calvin/data --processes 2
    python -m data_pipelines.builders.calvin_boxes --out runs/calvin/data
    python -m experiments.pretrain --config=calvin_vlm.py --workdir=runs/calvin/vlm
    python -m experiments.pretrain --config=calvin_tiny.py
    --config.model.weights=runs/calvin/vlm/checkpoints
    --config.model.tokenizer=runs/calvin/vlm/tokenizer --workdir=DIR

Its own head, the robot's state and readouts are in the program and get no gradient; of its
checkpoints the others take the backbone alone.
"""

from ml_collections import ConfigDict

from experiments.configs import calvin_tiny


def get_config(arg: str = "") -> ConfigDict:
    """The config of calvin_tiny.py for boxes alone; `arg` as there."""
    config = calvin_tiny.get_config(arg)
    config.steps = 4_000
    config.batch_size = 48
    config.eval_every = config.save_every = 1_000
    config.optim.lr = 1e-3
    config.loss.arm = config.loss.gripper = 0.0
    config.objectives.image_text.weight = 1.0
    config.objectives.image_text.dataset = "calvin_boxes"
    config.objectives.image_text.length = 24
    return config
