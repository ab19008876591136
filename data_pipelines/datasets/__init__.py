"""The datasets this repository can read. A new one is a file here and a line in DATASETS."""

from data_pipelines.datasets import (
    arms,
    blocks,
    bridge,
    calvin,
    droid,
    franka,
    joint,
    libero,
    metaworld,
    navigation,
    rtx,
)
from data_pipelines.datasets.dataset import Dataset, Standardised

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        blocks.BLOCKS,
        *bridge.FAMILY,
        *rtx.FAMILY,
        *franka.FAMILY,
        *arms.FAMILY,
        *joint.FAMILY,
        *navigation.FAMILY,
        *droid.FAMILY,
        *libero.FAMILY,
        *metaworld.FAMILY,
        *calvin.FAMILY,
    )
}

__all__ = ["DATASETS", "Dataset", "Standardised"]
