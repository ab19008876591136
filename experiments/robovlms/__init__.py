"""RoboVLMs in our terms, for experiments.import_weights.

config.py: its JSON config. keys.py: what its other keys mean. names.py: its parameters.
"""
