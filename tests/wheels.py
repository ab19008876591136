"""Marks of tests that need a package with no wheel somewhere (setup.cfg says where)."""

from importlib.util import find_spec

import pytest

needs_tensorflow = pytest.mark.skipif(
    find_spec("tensorflow") is None or find_spec("tensorflow_datasets") is None,
    reason="tensorflow and tensorflow-datasets are not installed: they have wheels for some"
    " platforms only",
)
needs_rlds = pytest.mark.skipif(
    find_spec("rlds") is None,
    reason="rlds is not installed: it has a wheel for Linux x86-64 only",
)
