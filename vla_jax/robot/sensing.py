"""What a robot's sensors give, and what of it the network sees: the same code where training data
are read and beside a robot. It is copied into every artefact: numpy and resize.py, nothing else.

A config has its sensors in one line (model.sensors), name=kind:sizes, and behind another colon the
tokens of each where they are not the kind's own:

    imu=vector:10x6     numbers of the samples since the frame before: 10 at most, of 6 numbers
                        (an IMU, forces and torques, joint torques)
    front=scan:180      distances of 180 beams of a 2-D LiDAR
    cloud=points:128x3  128 points of a 3-D LiDAR, x y z
    wrist=depth:32      a depth map in metres, seen at 32 x 32 pixels
    finger=tactile:32   a picture of touch, uint8 RGB, seen at 32 x 32 pixels
    command=audio:16000x3  speech, mono, 16000 samples a second, the first 3 seconds of it

NaN and infinity are numbers that are not there, and a depth of 0 is none, as cameras write it. A
sample (a row, a beam, a point, a pixel) counts when all of its numbers are there.

Axes: r samples since the frame before, n beams or points, c numbers of a sample, h w pixels, s
samples of sound, f frames of sound.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .resize import resize

# Of sound: seconds of a window and from one to the next, as speech recognition has them, and bands.
WINDOW, HOP, MELS = 0.025, 0.010, 40
QUIET = 8.0  # powers of ten below the loudest band that are still told apart (as Whisper)
FAR = 100.0  # m; a depth map that is all beyond is not in metres
NEAREST = 0.01  # m; nearer is as near

Normalise = Callable[[np.ndarray], np.ndarray]


class Kind(NamedTuple):
    """A kind of sensor.

    Attributes:
        sizes: what the config's sizes are, in words; as many.
        tokens: that its encoder makes unless the config says another number.
        shape: sizes -> shape of a reading as the network sees it, numbers of a sample last.
        values: (sensor, raw, lead) -> values [*lead *shape], NaN where there is none. `raw` has
            `lead` axes before a reading's own. Raises ValueError for what is no reading.
        fitted: normalised by statistics of the data; else its values are in one unit everywhere.
        lasting: a reading stands until the next one comes, to the end of the episode.
    """

    sizes: tuple[str, ...]
    tokens: int
    shape: Callable[..., tuple[int, ...]]
    values: Callable[["Sensor", Any, int], np.ndarray]
    fitted: bool = False
    lasting: bool = False


class Reading(NamedTuple):
    """What the network sees of a sensor: values [... *shape], and which samples are there,
    [... *shape] without the last axis; where one is not, its values are 0.
    """

    values: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sensor:
    """A sensor of a policy: its name, one of KINDS, sizes in the words of that kind, and the tokens
    that it becomes in every frame.
    """

    name: str
    kind: str
    sizes: tuple[int, ...]
    tokens: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a reading as the network sees it; the numbers of a sample last."""
        return KINDS[self.kind].shape(*self.sizes)

    @property
    def dtype(self) -> type:
        """Of the values."""
        return np.uint8 if self.kind == "tactile" else np.float32

    @property
    def fitted(self) -> bool:
        """Whether statistics of the data normalise it."""
        return KINDS[self.kind].fitted

    @property
    def lasting(self) -> bool:
        """Whether a reading stands until the next one comes."""
        return KINDS[self.kind].lasting

    def values(self, raw: Any, lead: int = 0) -> np.ndarray:
        """Readings [*lead *shape] in the sensor's unit, NaN where there is none, of raw ones with
        `lead` axes before their own. Raises ValueError, which names the sensor, for what is none.
        """
        return KINDS[self.kind].values(self, raw, lead)

    def seen(self, values: np.ndarray, normalise: Normalise | None) -> Reading:
        """What the network sees of `values`; `normalise` takes [... c] where the sensor is
        fitted.
        """
        if values.dtype == np.uint8:
            return Reading(values, np.ones(values.shape[:-1], bool))
        mask = np.isfinite(values).all(-1)
        there = np.where(mask[..., None], values, 0)
        scaled = there if normalise is None else normalise(there)
        return Reading(np.where(mask[..., None], scaled, 0).astype(np.float32), mask)

    def absent(self, *lead: int) -> Reading:
        """No reading at all."""
        shape = (*lead, *self.shape)
        return Reading(np.zeros(shape, self.dtype), np.zeros(shape[:-1], bool))

    def error(self, problem: str) -> ValueError:
        """That it is given something else."""
        return ValueError(f"sensors[{self.name!r}] ({self.kind}): {problem}")


def parse(text: str) -> tuple[Sensor, ...]:
    """The sensors of a config's line, see the top of this file. Raises ValueError for another."""
    sensors = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([a-z]\w*)=(\w+):(\d+(?:x\d+)*)(?::(\d+))?", part)
        if match is None or match[2] not in KINDS:
            raise ValueError(
                f"model.sensors: expected name=kind:sizes with a kind of {', '.join(KINDS)}, as in"
                f" imu=vector:10x6,front=scan:180, got {part!r}"
            )
        name, kind, sizes = match[1], KINDS[match[2]], tuple(map(int, match[3].split("x")))
        tokens = int(match[4]) if match[4] else kind.tokens
        if len(sizes) != len(kind.sizes) or min((*sizes, tokens)) < 1:
            raise ValueError(
                f"model.sensors: {name}: expected {' x '.join(kind.sizes)} (and tokens), all 1 or"
                f" more, got {part!r}"
            )
        sensors.append(Sensor(name, match[2], sizes, tokens))
    names = [sensor.name for sensor in sensors]
    if len(set(names)) != len(names):
        raise ValueError(f"model.sensors: expected each name once, got {', '.join(names)}")
    return tuple(sensors)


def readings(
    sensors: tuple[Sensor, ...],
    given: Mapping[str, Any] | None,
    normalise: Mapping[str, Normalise],
    kept: dict[str, Reading],
) -> dict[str, Reading]:
    """What the network sees of what a robot gives at a frame, sensor by sensor; those that it does
    not give are absent. `kept` holds those that last, of the frames before, and is updated.

    Raises ValueError for a sensor that the policy does not have, and for what is no reading.
    """
    given = dict(given or {})
    unknown = sorted(map(str, given.keys() - {sensor.name for sensor in sensors}))
    if unknown:
        known = ", ".join(sensor.name for sensor in sensors) or "none"
        raise ValueError(f"sensors: expected those of the policy ({known}), got {unknown}")
    out = {}
    for sensor in sensors:
        raw, name = given.get(sensor.name), sensor.name
        if raw is None:
            out[name] = kept.get(name, sensor.absent())
        elif sensor.fitted and name not in normalise:
            raise sensor.error(
                "expected nothing: the data of this robot had no such sensor, so nobody knows how"
                " its numbers are normalised; leave it out, or train with data that have it"
            )
        else:
            out[name] = sensor.seen(sensor.values(raw), normalise.get(name))
    kept.update({sensor.name: out[sensor.name] for sensor in sensors if sensor.lasting})
    return out


def log_mel(samples: np.ndarray, rate: int, seconds: int) -> np.ndarray:
    """Sound in [-1, 1] as loudness of bands: [s] -> float32 [f MELS], about -1 to 1, NaN where the
    sound is over. What is said after `seconds` is cut off.

    Power of Hann windows in triangular bands, equally wide in mels (HTK's: 2595 log10(1 + f/700)),
    then log10, no less than QUIET below the loudest, plus 4, over 4, as Whisper has it.
    """
    width, hop = round(WINDOW * rate), round(HOP * rate)
    frames = round(seconds / HOP)
    samples = samples[: (frames - 1) * hop + width].astype(np.float64)
    count = max(0, (len(samples) - width) // hop + 1)
    out = np.full((frames, MELS), np.nan, np.float32)
    if not count:
        return out
    pieces = np.lib.stride_tricks.sliding_window_view(samples, width)[::hop][:count]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    power = np.abs(np.fft.rfft(pieces * window, axis=1)) ** 2
    loud = np.log10(np.maximum(power @ _bands(rate, width), 1e-10))
    out[:count] = (np.maximum(loud, loud.max() - QUIET) + 4) / 4
    return out


def _bands(rate: int, width: int) -> np.ndarray:
    """How much of each frequency of a window is in each band: [width // 2 + 1, MELS]."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)  # Hz
    frequency = np.fft.rfftfreq(width, 1 / rate)[:, None]
    up = (frequency - edges[None, :-2]) / np.diff(edges)[None, :-1]
    down = (edges[None, 2:] - frequency) / np.diff(edges)[None, 1:]
    return np.maximum(0, np.minimum(up, down))


def _numbers(sensor: Sensor, raw: Any) -> np.ndarray:
    """Plain numbers as float32, infinity as NaN."""
    try:
        array = np.asarray(raw)
    except ValueError as error:  # lists of different lengths
        raise sensor.error(f"expected an array of numbers, got {error}") from error
    if array.dtype.kind not in "fiub":
        raise sensor.error(f"expected numbers, got {array.dtype}")
    array = array.astype(np.float32)
    return np.where(np.isfinite(array), array, np.float32(np.nan))


def _vector(sensor: Sensor, raw: Any, lead: int) -> np.ndarray:
    """[r c], or [c] of one sample; fewer than r stand at the end."""
    array, (most, width) = _numbers(sensor, raw), sensor.sizes
    own = array.shape[lead:]
    if len(own) == 1:
        array, own = array[..., None, :], (1, *own)
    if len(own) != 2 or own[1] != width or own[0] > most:
        raise sensor.error(
            f"expected up to {most} samples of {width} numbers since the frame before, got shape"
            f" {own}; give the newest {most}, or change model.sensors"
        )
    before = [(0, 0)] * lead + [(most - own[0], 0), (0, 0)]
    return np.pad(array, before, constant_values=np.nan)


def _scan(sensor: Sensor, raw: Any, lead: int) -> np.ndarray:
    """[n] distances as [n 1]."""
    array, (beams,) = _numbers(sensor, raw), sensor.sizes
    if array.shape[lead:] not in ((beams,), (beams, 1)):
        raise sensor.error(
            f"expected {beams} beams, got shape {array.shape[lead:]}; give them all, NaN where a"
            " beam came back with nothing, or change model.sensors"
        )
    return array.reshape(*array.shape[:lead], beams, 1)


def _points(sensor: Sensor, raw: Any, lead: int) -> np.ndarray:
    """[n c] points; of more than n an even choice, behind fewer NaN."""
    array, (most, width) = _numbers(sensor, raw), sensor.sizes
    own = array.shape[lead:]
    if len(own) != 2 or own[1] != width:
        raise sensor.error(
            f"expected points of {width} numbers, [n {width}], got shape {own}; change"
            " model.sensors, or the numbers that are given of a point"
        )
    if own[0] > most:
        chosen = np.linspace(0, own[0] - 1, most).round().astype(int)
        return np.take(array, chosen, axis=lead)
    behind = [(0, 0)] * lead + [(0, most - own[0]), (0, 0)]
    return np.pad(array, behind, constant_values=np.nan)


def _depth(sensor: Sensor, raw: Any, lead: int) -> np.ndarray:
    """[h w] metres as twice the logarithm (base 10) of the nearest pixels, [size size 1]: 1 m is 0,
    0.3 m is -1, 3 m is 1.
    """
    array, (size,) = _numbers(sensor, raw), sensor.sizes
    if array.ndim == lead + 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != lead + 2 or not array.size:
        raise sensor.error(f"expected a depth map [h w], got shape {array.shape[lead:]}")
    rows, columns = (((np.arange(size) + 0.5) * n / size).astype(int) for n in array.shape[lead:])
    array = array[..., rows[:, None], columns[None]]
    there = array[array > 0]  # NaN is not
    if there.size and there.min() > FAR:
        raise sensor.error(
            f"expected metres, got {there.min():.4g} and more everywhere; give the data set's"
            " sensors its scale, as in ('observation/depth', 0.001) for millimetres, and metres"
            " beside the robot"
        )
    metres = np.where(array > 0, np.maximum(array, NEAREST), np.float32(np.nan))
    return 2 * np.log10(metres)[..., None]


def _tactile(sensor: Sensor, raw: Any, lead: int) -> np.ndarray:
    """uint8 RGB [h w 3] at the network's size."""
    array, (size,) = np.asarray(raw), sensor.sizes
    if array.dtype != np.uint8 or array.ndim != lead + 3 or array.shape[-1] != 3:
        raise sensor.error(
            f"expected uint8 RGB [h w 3], got {array.dtype} of shape {array.shape[lead:]}"
        )
    if array.shape[lead:-1] == (size, size):
        return array
    flat = [resize(picture, size, "lanczos") for picture in array.reshape(-1, *array.shape[lead:])]
    return np.stack(flat).reshape(*array.shape[:lead], size, size, 3)


def _audio(sensor: Sensor, raw: Any, lead: int) -> np.ndarray:
    """(samples [s], samples a second) of one episode as bands, see `log_mel`."""
    rate, seconds = sensor.sizes
    if lead or not isinstance(raw, tuple | list) or len(raw) != 2:
        raise sensor.error("expected a pair: samples [s] and how many a second there are")
    samples, given = np.asarray(raw[0]), raw[1]
    if samples.ndim != 1:
        raise sensor.error(
            f"expected one channel, samples [s], got shape {samples.shape}; mix stereo down:"
            " samples.mean(1)"
        )
    if given != rate:
        raise sensor.error(
            f"expected {rate} samples a second, got {given}; resample it (sox, librosa), or set"
            f" model.sensors to {sensor.name}=audio:{given}x{seconds} and train with it"
        )
    if samples.dtype.kind not in "fi":
        raise sensor.error(f"expected float in [-1, 1] or 16 bits, got {samples.dtype}")
    whole = samples.astype(np.float32) / (2**15 if samples.dtype.kind == "i" else 1)
    if not np.isfinite(whole).all():
        raise sensor.error("expected finite samples, got NaN or infinity; record it again")
    return log_mel(whole, rate, seconds)


KINDS: dict[str, Kind] = {
    "vector": Kind(("samples", "numbers"), 1, lambda r, c: (r, c), _vector, fitted=True),
    "scan": Kind(("beams",), 1, lambda n: (n, 1), _scan, fitted=True),
    "points": Kind(("points", "numbers"), 1, lambda n, c: (n, c), _points, fitted=True),
    "depth": Kind(("pixels",), 4, lambda size: (size, size, 1), _depth),
    "tactile": Kind(("pixels",), 4, lambda size: (size, size, 3), _tactile),
    "audio": Kind(
        ("samples a second", "seconds"),
        2,
        lambda rate, seconds: (round(seconds / HOP), MELS),
        _audio,
        lasting=True,
    ),
}
