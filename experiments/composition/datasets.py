"""Which datasets a run reads, and where they are."""

from ml_collections import ConfigDict

from data_pipelines import mixture
from data_pipelines.datasets import DATASETS, Dataset, lerobot, user
from data_pipelines.datasets.mixtures import MIXTURES
from data_pipelines.files import remote


def members(config: ConfigDict) -> list[tuple[Dataset, float]]:
    """The datasets of the config's mixture and their weights. Those of data.datasets are known
    beside ours, and LeRobot folders under data.root, which describe themselves.
    """
    known, mixtures = dict(DATASETS), dict(MIXTURES)
    if config.data.datasets:
        own, own_mixtures = user.load(config.data.datasets)
        known, mixtures = known | own, mixtures | own_mixtures
    known |= lerobot.found(root(config), config.data.mixture, known | mixtures)
    return [
        (known[name], weight)
        for name, weight in mixture.resolve(config.data.mixture, known, mixtures)
    ]


def root(config: ConfigDict) -> str:
    """data.root as a URL or an absolute path."""
    return remote.absolute(config.data.root)


def missing(config: ConfigDict) -> list[str]:
    """What stands against reading the mixture here, one entry each, with what mends it."""
    lines = []
    where, wanted = root(config), members(config)
    datasets = [dataset for dataset, _ in wanted]
    unfit = mixture.misfits(datasets, tuple(config.model.cameras))
    if unfit:
        lines.append(
            f"data: {len(unfit)} reasons why the mixture {config.data.mixture!r} cannot be learnt"
            " together\n"
            + "".join(f"    {line}\n" for line in unfit)
            + "    leave them out (a list of (name, weight) as data.mixture in a config file), or"
            " change model.cameras"
        )
    absent = mixture.problems(where, datasets)
    if absent:
        lines.append(
            f"data: {len(absent)} of {len(wanted)} datasets of the mixture {config.data.mixture!r}"
            f" are not under {where}\n"
            + "".join(f"    {line}\n" for line in absent)
            + "    or --config.data.root=DIR where they are, or --config.data.mixture=bridge"
        )
    return lines
