"""The parts of experiments.rollout. episodes.py: a policy acts in a world. results.py: what became
of it, kept through kills, and its figures. films.py: pictures of it.
"""
