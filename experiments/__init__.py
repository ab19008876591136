"""The commands, and what they are composed of; the only place that sees everything.

Every file here is a command (`python -m experiments.NAME --help`), and __main__.py starts each by
its name (`vla-jax NAME`). composition/: a config becomes model, data and optimizer. configs/: the
config files. sims/: worlds to act in. replaying/, rolling/, viewing/, benchmarks/, robovlms/: the
parts of one command each.
"""
