"""Facts beside the arrays of a checkpoint: JSON, compared place by place."""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def check_same(what: str, saved: Any, now: Any) -> None:
    """Raises ValueError naming the places in which two JSON values differ."""
    different = differences(saved, now)
    if different:
        raise ValueError(
            f"{what} differ from those of this run:\n  "
            + "\n  ".join(different[:12])
            + "\nresuming would train on other numbers; restore the data and configuration, or use"
            " a new work directory"
        )


def differences(saved: Any, now: Any, path: str = "") -> list[str]:
    """A line for each place in which two JSON values differ."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        out = []
        for key in sorted(saved.keys() | now.keys()):
            below = f"{path}/{key}" if path else key
            if key not in now or key not in saved:
                out.append(f"{below}: only in {'the checkpoint' if key in saved else 'this run'}")
            else:
                out += differences(saved[key], now[key], below)
        return out
    if isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        pairs = enumerate(zip(saved, now, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}[{i}]")]
    return [] if saved == now else [f"{path}: checkpoint {saved!r}, this run {now!r}"]


def library_versions() -> dict[str, str]:
    """{name: version} of the libraries that a run's numbers depend on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON copy; numpy numbers and arrays become lists of Python numbers."""

    def plain(other: Any) -> Any:
        if isinstance(other, np.ndarray | np.generic | jnp.ndarray):
            return np.asarray(other).tolist()
        raise ValueError(
            f"checkpoint: expected JSON values in meta and data, got {type(other).__name__}:"
            f" {other!r}"
        )

    return json.loads(json.dumps(value, default=plain))
