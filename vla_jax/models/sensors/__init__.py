"""Sensors as tokens of a frame. Begin with tokens.py; each other file is an encoder of one form.

series.py    samples in a row: vectors over time, beams of a scan, frames of sound
points.py    points in any order
picture.py   depth maps and pictures of touch

vla_jax/robot/sensing.py says what sensors are, vla_jax/build.py which kind has which encoder.
"""
