"""How it is trained. Begin with train.py: the state, one step, the loop.

optim.py: AdamW, schedules, freezing. checkpoint.py: complete or ignored. augment.py: images inside
the step. metrics.py, reports.py and wandb_run.py: what a run says of itself.
"""
