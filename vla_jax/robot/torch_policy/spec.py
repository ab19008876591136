"""What an artefact's files say of the numbers, images and readings that go into a policy and come
out of it.
"""

from typing import Any

import numpy as np

from ..relative import of_json, to_absolute, to_relative
from ..sensing import Sensor


def image_sizes(config: dict[str, Any]) -> dict[str, int]:
    """Pixels of a side of each camera's images, in the order of the cameras, from config.json:
    "sizes" is there where they differ.
    """
    image = config["image"]
    return {name: image.get("sizes", {}).get(name, image["size"]) for name in config["cameras"]}


class Spec:
    """What a vector's numbers mean and how they are normalised: vla_jax.actions.ActionSpec, as JSON
    holds it.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        self.names = tuple(body["names"])
        self.binary, self._constant = list(body["binary"]), list(body["constant"])
        self.arm = [i for i in range(len(self.names)) if i not in self.binary]
        self._steps = [
            (
                np.array([-np.inf if v is None else v for v in step["low"]]),
                np.array([np.inf if v is None else v for v in step["high"]]),
                np.array(step["offset"], np.float64),
                np.array(step["scale"], np.float64),
            )
            for step in body["steps"]
        ]
        # Nothing was in artefacts of before 2026-11-29.
        self.relative = of_json(body.get("relative", ()))

    def normalise(self, values: np.ndarray, state: np.ndarray | None = None) -> np.ndarray:
        """Robot units [... d] to network units, float32. `state` [... p], in robot units, is that
        of the frame where the values' chunk starts, for dims that are relative to it.
        """
        x = to_relative(self.relative, values, state)
        for low, high, offset, scale in self._steps:
            x = (np.clip(x, low, high) - offset) / scale
        return x.astype(np.float32)

    def unnormalise(self, values: np.ndarray, state: np.ndarray | None = None) -> np.ndarray:
        """Network units [... d] to robot units, float32: the inverse with the same state; binary
        dims leave as 0 or 1, constant ones within their range.
        """
        x = np.array(values, np.float64)
        for _, _, offset, scale in reversed(self._steps):
            x = x * scale + offset
        for i in self._constant:
            x[..., i] = np.clip(x[..., i], self._steps[0][0][i], self._steps[0][1][i])
        x[..., self.binary] = x[..., self.binary] > 0.5
        return to_absolute(self.relative, x, state).astype(np.float32)


def sensors_of(config: dict[str, Any]) -> tuple[Sensor, ...]:
    """Those of a config.json; one of before 2026-11-29 has none."""
    return tuple(
        Sensor(each["name"], each["kind"], tuple(each["sizes"]), each["tokens"])
        for each in config.get("sensors", ())
    )
