"""How recorded episodes ended, where their files say it (Dataset.outcome).

Of steps the last one counts, as next.success of LeRobot says: an episode in which a step before it
succeeded, and the last did not, is neither a success nor a failure. Texts are looked through for
words, as DROID's paths have them (".../success/...", ".../failure/...").
"""

import re
from typing import Any

import h5py
import numpy as np

from data_pipelines.files import tfrecord
from data_pipelines.files.features import OF_EPISODE
from data_pipelines.files.sensors import Fail
from data_pipelines.files.tfds_folder import AGAIN

UNKNOWN, FAILURE, SUCCESS = -1, 0, 1

# "unsuccessful" is none of them.
SUCCEEDED = re.compile(r"(?<![a-z])success", re.IGNORECASE)
FAILED = re.compile(r"(?<![a-z])fail", re.IGNORECASE)


def of_numbers(values: np.ndarray) -> int:
    """Of a number for each step [T ...], or one of the whole episode: 1 is a success, 0 is none."""
    good = np.asarray(values, np.float64).reshape(-1) >= 0.5
    if not len(good) or not np.isfinite(np.asarray(values, np.float64)).all():
        return UNKNOWN
    return SUCCESS if good[-1] else UNKNOWN if good.any() else FAILURE


def of_text(text: str) -> int:
    """Of words; neither or both: unknown."""
    good, bad = SUCCEEDED.search(text) is not None, FAILED.search(text) is not None
    return UNKNOWN if good == bad else SUCCESS if good else FAILURE


def of_value(value: Any) -> int:
    """Of what is said of a whole episode: a number, a text, or None where nothing is said."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return of_text(value)
    return UNKNOWN if value is None else of_numbers(np.asarray(value))


def of_record(key: str, features: dict[str, Any], record: tfrecord.Record, fail: Fail) -> int:
    """Of an RLDS record; `key` "" says nothing. Raises what `fail` makes of one without it."""
    if not key:
        return UNKNOWN
    value = features.get(key if key.startswith(OF_EPISODE) else f"steps/{key}")
    if isinstance(value, tfrecord.Spans) and len(value.offset) == 1:
        at = int(value.offset[0])
        return of_value(record.data[at : at + int(value.length[0])])
    if not isinstance(value, np.ndarray) or not len(value):
        raise fail(None, key, "expected how the episode ended (Dataset.outcome)", AGAIN)
    return of_numbers(value)


def of_hdf5(key: str, group: h5py.Group) -> int:
    """Of an episode's group: a dataset of numbers for each step, or an attribute. Raises ValueError
    where it is neither.
    """
    if not key:
        return UNKNOWN
    stored = group.get(key)
    if isinstance(stored, h5py.Dataset) and stored.dtype.kind in "fiub":
        return of_numbers(stored[()])
    if key in group.attrs:
        return of_value(group.attrs[key])
    raise ValueError(
        f"{group.name}: expected the outcome {key!r} (Dataset.outcome) as numbers of each step or"
        f" as an attribute, got neither; there are {', '.join(sorted([*group, *group.attrs]))}"
    )
