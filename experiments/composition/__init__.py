"""A config becomes data, and what a run prints and draws. Begin with sources.py; the model is made
by the composition table, vla_jax/build.py.
"""
