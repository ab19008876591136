"""What a policy's numbers are called: where a config does not say it, by the descriptions of its
datasets. Once known, it stands in the config, and so with every run and checkpoint.
"""

from ml_collections import ConfigDict

from data_pipelines import mixture
from data_pipelines.datasets import Dataset
from experiments.composition import datasets
from vla_jax.actions import places


def resolve(config: ConfigDict) -> ConfigDict:
    """Fills in model.action_dim, action_names, action_binary, state_names and embodiments where
    they are left to the data; no file of these is read. Returns the config.

    Raises ValueError for datasets that one policy cannot learn from, and for names or a number that
    are not those of the data.
    """
    model, members = config.model, [dataset for dataset, _ in datasets.members(config)]
    space = mixture.action_space(members)
    if not model.action_names:
        if model.action_dim not in (0, len(space.names)):
            raise ValueError(
                f"model.action_dim: expected {len(space.names)}, of"
                f" {', '.join(each.name for each in members)} ({', '.join(space.names)}), or 0:"
                f" from the data; got {model.action_dim}"
            )
        model.action_names, model.action_binary = space
    _check_fixed(config, members, space)
    model.action_dim = len(model.action_names)
    if model.proprio and not model.state_names:
        model.state_names = mixture.state_space(members)
    if model.embodiment and not model.embodiments:
        model.embodiments = tuple(each.name for each in members)
    return config


def problems(config: ConfigDict) -> list[str]:
    """What `resolve` would raise, as lines; the config stays as it is."""
    try:
        resolve(config.copy_and_resolve_references())
    except ValueError as error:
        return [str(error)]
    return []


def _check_fixed(config: ConfigDict, members: list[Dataset], space: mixture.Space) -> None:
    """Raises ValueError where names that the config fixes are not such as the data have."""
    model = config.model
    names, binary = tuple(model.action_names), tuple(model.action_binary)
    if model.action_dim not in (0, len(names)) or len(set(names)) != len(names):
        raise ValueError(
            f"model.action_dim: expected {len(names)}, the number of model.action_names"
            f" ({', '.join(names)}), which differ, got {model.action_dim}"
        )
    for each in members:
        try:
            places(each.action_names, names)
        except ValueError as error:
            raise ValueError(
                f"model.action_names: {each.name}: {error}; give --config.model.action_names=() to"
                " have them from the data"
            ) from None
    other = {name for name in space.names if (name in space.binary) != (name in binary)}
    if other or not set(binary) <= set(names):
        raise ValueError(
            f"model.action_binary: expected the binary dims of the data ({', '.join(space.binary)})"
            f" among model.action_names, got {', '.join(binary) or 'none'}"
        )
