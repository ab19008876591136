"""The datasets this repository can read. A new one is a file here and a line in DATASETS."""

from data_pipelines.datasets import blocks, bridge
from data_pipelines.datasets.dataset import Dataset, Standardised

DATASETS: dict[str, Dataset] = {"bridge": bridge.BRIDGE, "blocks": blocks.BLOCKS}

__all__ = ["DATASETS", "Dataset", "Standardised"]
