"""Writes a trained policy as a PyTorch artefact and proves that it is the same policy. Torch is
allowed here.
"""
