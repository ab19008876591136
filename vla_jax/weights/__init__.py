"""Files of others -> arrays of ours, born sharded, strict. Begin with pretrained.py.

torch_files.py reads .pt and DeepSpeed without unpickling anything but tensors.
"""
