"""What it is expected to cost to go on with a chunk at a step, instead of planning anew: a small
network over signals that are cheap to compute, where a pass of the backbone is not.

It sees how old the chunk is, how sure the policy was of its actions, the actions around the next
one, and the picture's luminance now and at the chunk's pass. `experiments.replay --trigger` learns
it from recorded episodes, of which it is known what going on had cost. numpy and the standard
library only.

Axes: f signals, k chunk step, d action dim, h w cells of a picture.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np

from .calibration import keys

# A signal is clipped at so many deviations from its mean: one unlike all in training must not
# dominate.
FAR = 5.0
LEAST_DOUBT = 1e-4  # the lower bound of 1 - confidence, so that its logarithm is finite

Cells = dict[str, np.ndarray]  # by camera: mean luminance, 0 to 255, [h w]
Layer = tuple[np.ndarray, np.ndarray]  # kernel [inputs outputs], bias [outputs]


class Regret:
    """Standardised signals through linear layers with ReLU between them -> one number; above 0,
    planning anew pays.
    """

    def __init__(self, mean: np.ndarray, deviation: np.ndarray, layers: Sequence[Layer]) -> None:
        """Raises ValueError for layers that do not fit each other, and what is not finite."""
        self.mean, self.deviation, self.layers = mean, deviation, tuple(layers)
        width = len(mean) if mean.ndim == 1 else -1
        good = mean.shape == deviation.shape and width > 0 and bool((deviation > 0).all())
        for kernel, bias in self.layers:
            good = good and kernel.shape == (width, len(bias)) and bias.ndim == 1
            width = len(bias)
        arrays = (mean, deviation, *(x for layer in self.layers for x in layer))
        if (
            not good
            or not self.layers
            or width != 1
            or not all(np.isfinite(x).all() for x in arrays)
        ):
            raise ValueError(
                f"trigger.regret: expected finite layers from {mean.shape} signals to 1, got "
                f"{[kernel.shape for kernel, _ in self.layers]}; fit the trigger again"
            )

    def __call__(self, signals: np.ndarray) -> float:
        """Signals [f] -> what going on is expected to cost more than a pass now; NaN where a signal
        is.

        Raises ValueError for another number of signals than it was learnt from.
        """
        if signals.shape != self.mean.shape:
            raise ValueError(
                f"trigger.regret: expected {len(self.mean)} signals, as it was learnt from, got"
                f" {signals.shape}; the cameras, their size or the chunk are not those of the"
                " artefact that the trigger was fitted for"
            )
        x = np.clip((signals - self.mean) / self.deviation, -FAR, FAR)
        for i, (kernel, bias) in enumerate(self.layers):
            x = (x if i == 0 else np.maximum(x, 0)) @ kernel + bias
        return float(x[0])

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`: float32 in base64."""
        layers = [
            {"kernel": _packed(kernel), "bias": _packed(bias)} for kernel, bias in self.layers
        ]
        return {"mean": _packed(self.mean), "deviation": _packed(self.deviation), "layers": layers}

    @classmethod
    def from_json(cls, body: Any) -> "Regret":
        """Raises ValueError for missing, unknown or wrong fields."""
        values = keys(body, "trigger.regret", ("mean", "deviation", "layers"))
        if not isinstance(values["layers"], list):
            raise ValueError(
                f"trigger.regret: expected a list of layers, got {type(values['layers']).__name__}"
            )
        pairs = [
            keys(layer, "trigger.regret: a layer", ("kernel", "bias")) for layer in values["layers"]
        ]
        layers = [(_unpacked(pair["kernel"]), _unpacked(pair["bias"])) for pair in pairs]
        return cls(_unpacked(values["mean"]), _unpacked(values["deviation"]), layers)


def signals(
    chunk: np.ndarray, step: int, sure: Sequence[float] | None, now: Cells, then: Cells
) -> np.ndarray:
    """What to judge by whether action `step` >= 1 of a chunk [k d] is executed, float32 [f].

    Args:
        chunk: in robot units.
        sure: confidence of each action of the chunk; None where the policy does not say.
        now, then: the pictures at this step and at the chunk's pass, of the same cameras and sizes.
    """
    doubts = np.zeros(2)
    if sure is not None:
        doubt = np.log(np.maximum(1 - np.asarray(sure[1 : step + 1], np.float64), LEAST_DOUBT))
        doubts = np.array([doubt[-1], doubt.max()])
    done, after = chunk[:step].sum(0), chunk[min(step + 1, len(chunk) - 1)]
    pictures = [
        part.ravel() for name in sorted(now) for part in (now[name], now[name] - then[name])
    ]
    parts = [np.array([step]), doubts, chunk[step - 1], chunk[step], after, done, *pictures]
    return np.concatenate(parts).astype(np.float32)


def _packed(x: np.ndarray) -> dict[str, Any]:
    data = np.ascontiguousarray(x, "<f4").tobytes()
    return {"shape": list(x.shape), "float32": base64.b64encode(data).decode("ascii")}


def _unpacked(body: Any) -> np.ndarray:
    values = keys(body, "trigger.regret: an array", ("shape", "float32"))
    try:
        return np.frombuffer(base64.b64decode(values["float32"], validate=True), "<f4").reshape(
            values["shape"]
        )
    except (TypeError, ValueError, binascii.Error) as error:
        raise ValueError(
            f"trigger.regret: expected an array of float32 in base64: {error}"
        ) from error
