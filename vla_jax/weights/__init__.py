"""Checkpoints of other projects -> our parameters, sharded. Begin with pretrained.py.

torch_files.py reads .pt and DeepSpeed without unpickling anything but tensors.
"""
