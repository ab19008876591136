"""Datasets that are described outside of this repository, in a Python file of the user's."""

import importlib.util
from pathlib import Path
from types import ModuleType

from data_pipelines.datasets import DATASETS, lerobot
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.image_text import IMAGE_TEXT, ImageTextDataset
from data_pipelines.datasets.mixtures import MIXTURES, Mixture


def load(path: str) -> tuple[dict[str, Dataset], dict[str, Mixture]]:
    """DATASETS and, if it has them, MIXTURES of a file; beside IMAGE_TEXT both may be missing. The
    file is executed.

    Raises ValueError when there is no such file, or it does not define what it must, or takes one
    of our names.
    """
    module = _module(path)
    datasets, mixtures = getattr(module, "DATASETS", {}), getattr(module, "MIXTURES", {})
    described = datasets or getattr(module, "IMAGE_TEXT", {})
    if not isinstance(datasets, dict) or not described or not isinstance(mixtures, dict):
        raise ValueError(
            f"{module.__file__}: expected DATASETS = {{name: Dataset(...)}} and, if wanted,"
            f" MIXTURES = {{name: ((name, weight), ...)}}, got {type(datasets).__name__} and"
            f" {type(mixtures).__name__}"
        )
    for name, dataset in datasets.items():
        if not isinstance(dataset, Dataset) or dataset.name != name:
            raise ValueError(
                f"{module.__file__}: DATASETS[{name!r}]: expected a data_pipelines.datasets.Dataset"
                f" of that name, got {type(dataset).__name__} {getattr(dataset, 'name', '')!r}"
            )
    _check_names(module, set(datasets) & set(DATASETS) | set(mixtures) & set(MIXTURES))
    return datasets, mixtures


def known(root: str, name: str, path: str) -> dict[str, Dataset]:
    """All descriptions that a command may be asked for by `name`: ours, those of a user's file
    `path` ("": none), and that of a LeRobot folder `name` under `root` that neither describes.
    """
    described = DATASETS | (load(path)[0] if path else {})
    return described | lerobot.found(root, name, described)


def dataset(root: str, name: str, path: str) -> Dataset:
    """The one of `known` with that name. Raises ValueError where there is none."""
    described = known(root, name, path)
    if name not in described:
        raise ValueError(f"--dataset: expected one of {', '.join(described)}; got {name!r}")
    return described[name]


def image_text(path: str) -> dict[str, ImageTextDataset]:
    """IMAGE_TEXT of a file, {} when it has none. The file is executed. Raises ValueError as `load`
    does.
    """
    module = _module(path)
    datasets = getattr(module, "IMAGE_TEXT", {})
    for name, dataset in datasets.items():
        if not isinstance(dataset, ImageTextDataset) or dataset.name != name:
            raise ValueError(
                f"{module.__file__}: IMAGE_TEXT[{name!r}]: expected a"
                " data_pipelines.datasets.image_text.ImageTextDataset of that name, got"
                f" {type(dataset).__name__} {getattr(dataset, 'name', '')!r}"
            )
    _check_names(module, set(datasets) & set(IMAGE_TEXT))
    return datasets


def _module(path: str) -> ModuleType:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"data.datasets: expected a Python file, found none at {file.absolute()}")
    spec = importlib.util.spec_from_file_location(f"vla_jax_datasets_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"data.datasets: expected a Python file ending in .py, got {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_names(module: ModuleType, taken: set[str]) -> None:
    if taken:
        raise ValueError(
            f"{module.__file__}: {', '.join(sorted(taken))}: these names are ours; choose others"
        )
