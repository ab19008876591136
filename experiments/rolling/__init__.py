"""The parts of experiments.rollout. episodes.py: an episode in a world, and what it asks. worlds.py
and child.py: worlds at work, here or in processes of their own. actors.py: policies for several
worlds at once. running.py: brings both together. results.py: what became of it, kept through kills,
and figures; merging.py: of several machines. films.py: pictures of it.
"""
