"""RLDS and LeRobot files -> batches, in the order of this list; never imports TensorFlow.

files/         paths and URLs, records, episodes; store.py, the file of an index; fingerprint.py,
               whether files are those it was made from
reading.py     files -> blocks, one a shard; joining.py, blocks -> what an index holds
index.py       what is known of a dataset after one pass; stats, report, quarantine
selection.py   what is trained on, held out, left out
standardise.py datasets/   what the numbers of a dataset mean, as data
order.py windows.py        which window comes when, what is in it: pure functions
frames.py images.py readings.py buffers.py   decoding, into memory that is used again
mixture.py config.py assemble.py loader.py   what is read together; batches
image_text_table.py image_text.py   images with texts about them
builders/ convert.py       writes data: the embedded set, CALVIN; one format as the other

Begin with `open` below, then loader.py. Axes are those of vla_jax/types.py; and here N steps of a
split, E episodes, V visits, T raw steps of an episode, f frames of a visit, r rows of a batch,
n as many as there are.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import data_pipelines.config
    import data_pipelines.datasets
    import data_pipelines.loader
    import vla_jax.actions


def open(
    root: str | Path,
    datasets: "str | data_pipelines.datasets.Dataset | Sequence[tuple[str, float]]",
    config: "data_pipelines.config.LoaderConfig | None" = None,
    split: str = "train",
    encode: Callable[[str], np.ndarray] | None = None,
    normalise: "Sequence[vla_jax.actions.Rule]" = ("q99",),
) -> "data_pipelines.loader.Loader":
    """A loader over datasets under `root`, whose indexes are built when they are first opened.

    Args:
        root: folder or URL that holds the datasets.
        datasets: name of a dataset or mixture in data_pipelines/datasets or of a LeRobot folder
            under `root`, (name, weight) pairs, or a description of your own dataset.
        config: what a window holds and how windows are drawn; None = LoaderConfig().
        split: which one to read; "val" is held out of "train" where a dataset has no other.
        encode: an instruction to its token ids [n], as a policy's tokenizer gives them. None = its
            UTF-8 bytes (0 to 255): enough to read the words back, not what a model was trained on.
        normalise: how actions become network units, see ActionSpec.fit. Always fitted to "train".

    Raises ValueError when files are missing (and says what brings them) or damaged, and when they
    do not fit together or the config.
    """
    from data_pipelines import mixture
    from data_pipelines.config import LoaderConfig
    from data_pipelines.datasets import DATASETS, Dataset, lerobot
    from data_pipelines.datasets.mixtures import MIXTURES
    from data_pipelines.files import remote
    from data_pipelines.index import open_index
    from data_pipelines.loader import Loader

    if isinstance(datasets, Dataset):
        pairs = [(datasets, 1.0)]
    else:
        known = DATASETS | lerobot.found(str(root), datasets, DATASETS | MIXTURES)
        resolved = mixture.resolve(datasets, known, MIXTURES)
        pairs = [(known[name], weight) for name, weight in resolved]
    absent = mixture.problems(remote.absolute(root), [dataset for dataset, _ in pairs])
    if absent:
        raise ValueError("\n".join(absent))
    config = config or LoaderConfig()
    members = [
        mixture.Member.fit(
            open_index(root, dataset), split, weight, normalise, config.chunk, config.sensors
        )
        for dataset, weight in pairs
    ]
    return Loader(members, config, encode or _utf8)


def _utf8(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
