"""Loaders over the embedded dataset, and how their batches are read and compared."""

import dataclasses
import threading

import jax
import numpy as np

from data_pipelines.config import LoaderConfig
from data_pipelines.datasets import DATASETS
from data_pipelines.loader import Loader
from data_pipelines.mixture import Member

BLOCKS = DATASETS["blocks"]
BASE = LoaderConfig(
    window=3,
    chunk=4,
    cameras=("primary",),
    image_size=(32,),
    prompt_length=40,
    batch_size=7,
    seed=5,
    ram_budget=10**9,
    windows_per_visit=64,
    shuffle=True,
)


def encode(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def member(index, split="train", weight=1.0, rules=("q99",)):
    return Member.fit(index, split, weight, rules)


def make(*members, rows=None, **changes):
    """A loader over members, or indexes whose split "train" is read."""
    fitted = [each if isinstance(each, Member) else member(each) for each in members]
    return Loader(fitted, dataclasses.replace(BASE, **changes), encode, rows)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def take(loader, start, count):
    """Batches as a training run reads them, kept."""
    stream = loader.batches(start)
    try:
        return [jax.tree.map(np.array, next(stream)) for _ in range(count)]
    finally:
        stream.close()


def loaders():
    """The threads of loaders and decoders that are running."""
    return [
        thread for thread in threading.enumerate() if thread.name.startswith(("loader", "decode"))
    ]
