"""What every host of a run must have alike: config, code, libraries, data. hosts.Hosts compares
it.
"""

import hashlib
import json
import platform
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.index import Split
from data_pipelines.mixture import Member
from vla_jax.saved_config import flatten
from vla_jax.training.facts import library_versions

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("vla_jax", "data_pipelines", "experiments")
ROWS = 4  # steps of each dataset looked at; the frames of a step are one read each


def program(config: ConfigDict) -> dict[str, Any]:
    """{name: JSON-able} of what a process computes with."""
    own = flatten(config.to_dict())
    del own["data.root"]  # each host may have a copy of its own; what is in it is compared
    return {
        **{f"config.{name}": value for name, value in own.items()},
        **{f"code of {package}": _code(REPOSITORY / package) for package in PACKAGES},
        **{f"version of {name}": version for name, version in library_versions().items()},
        "version of python": platform.python_version(),
    }


def data(identity: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """{name: JSON-able} of what it reads, from `cotraining.identity` and `sources.meta`."""
    statistics = json.dumps(meta["statistics"], sort_keys=True).encode()
    return {
        **{f"data.{name}": value for name, value in flatten(identity).items()},
        "tokenizer": meta["tokenizer"]["sha256"],
        "statistics": hashlib.sha256(statistics).hexdigest()[:16],
    }


def rows(members: list[Member], seed: int, step: int) -> dict[str, str]:
    """{name: crc} of ROWS steps of every dataset as they lie on the disk, encoded frames included:
    the same steps on every host, others at every `step`.
    """
    out = {}
    for number, member in enumerate(members):
        split = member.index.splits[member.split]
        chosen = np.random.default_rng([seed, step, number]).integers(len(split.actions), size=ROWS)
        name = f"rows of {member.index.dataset.name} drawn for step {step}"
        out[name] = f"{_crc(split, chosen):08x}"
    return out


def _crc(split: Split, chosen: np.ndarray) -> int:
    crc = 0
    for row in chosen.tolist():
        crc = zlib.crc32(split.actions[row].tobytes() + split.state[row].tobytes(), crc)
        for slot in sorted(split.frames):
            (picture,) = split.pictures(slot, np.array([row]))
            crc = zlib.crc32(bytes(picture), crc)
    return crc


def _code(package: Path) -> str:
    """A hash of the Python files below a folder, names included."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]
