"""Every dataset we can read, by name."""

from data_pipelines.datasets.blocks import BLOCKS
from data_pipelines.datasets.bridge import BRIDGE
from data_pipelines.datasets.dataset import Dataset, Standardised

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (BLOCKS, BRIDGE)}

__all__ = ["DATASETS", "Dataset", "Standardised"]
