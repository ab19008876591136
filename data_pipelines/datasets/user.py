"""Datasets that are described outside of this repository, in a Python file of the user's."""

import importlib.util
from pathlib import Path

from data_pipelines.datasets import DATASETS
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.mixtures import MIXTURES, Mixture


def load(path: str) -> tuple[dict[str, Dataset], dict[str, Mixture]]:
    """DATASETS and, if it has them, MIXTURES of a file. The file is executed.

    Raises ValueError when there is no such file, or it does not define what it must, or takes one of our names.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"data.datasets: expected a Python file, found none at {file.absolute()}")
    spec = importlib.util.spec_from_file_location(f"vla_jax_datasets_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"data.datasets: expected a Python file ending in .py, got {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    datasets, mixtures = getattr(module, "DATASETS", None), getattr(module, "MIXTURES", {})
    if not isinstance(datasets, dict) or not datasets or not isinstance(mixtures, dict):
        raise ValueError(
            f"{file}: expected DATASETS = {{name: Dataset(...)}} and, if wanted, MIXTURES = {{name: ((name, weight), "
            f"...)}}, got {type(datasets).__name__} and {type(mixtures).__name__}"
        )
    for name, dataset in datasets.items():
        if not isinstance(dataset, Dataset) or dataset.name != name:
            raise ValueError(
                f"{file}: DATASETS[{name!r}]: expected a data_pipelines.datasets.Dataset of that name, got "
                f"{type(dataset).__name__} {getattr(dataset, 'name', '')!r}"
            )
    taken = sorted(set(datasets) & set(DATASETS) | set(mixtures) & set(MIXTURES))
    if taken:
        raise ValueError(f"{file}: {', '.join(taken)}: these names are ours; choose others")
    return datasets, mixtures
