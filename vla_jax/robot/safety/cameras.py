"""Whether a camera still shows the world: pictures that do not change, show nothing, have red and
blue exchanged, or look like nothing in the training data. numpy and the standard library only.

    frozen   the same bytes for `frozen_after` frames; of a real camera noise alone forbids it
    blank    hardly any contrast in any channel: black, a lens cap, the one colour of an unplugged
             camera
    swapped  FEATURES leave what the training data's frames had, and would not with red and blue
             exchanged
    unlike   FEATURES leave it, either way

The last two need what `statistics` makes of frames of the training data; export writes it into an
artefact (norm_stats.json, "cameras" of a dataset). A frame may leave the range of those by MARGIN
of its width, or by ROOM where that is more.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

CAUSES = ("frozen", "blank", "swapped", "unlike")
# Of a frame, in bytes: means and standard deviations of its channels, and means of red minus blue
# over the tenth of the pixels where it is least, all of them, and the tenth where it is most. A
# quantile would jump from one colour to another where both cover about that part of the picture.
FEATURES = (
    "mean red", "mean green", "mean blue", "std red", "std green", "std blue",
    "least red - blue", "mean red - blue", "most red - blue",
)  # fmt: skip
STD, OPPONENT = slice(3, 6), slice(6, 9)
EXCHANGED = [2, 1, 0, 5, 4, 3, 8, 7, 6]  # where each feature comes from with red and blue exchanged
SIDE = 40  # pixels of a side that are looked at, about
FLAT = 4.0  # bytes: standard deviation of every channel of a blank frame at most
MARGIN, ROOM = 0.5, 12.0
FROZEN_AFTER = 10  # frames, where no limits say another number

Causes = dict[str, tuple[str, ...]]


def features(image: np.ndarray) -> np.ndarray:
    """FEATURES [9] of a frame uint8 [h w 3]."""
    step = max(1, min(image.shape[:2]) // SIDE)
    pixels = image[::step, ::step].reshape(-1, 3).T.astype(np.float64, order="C")
    opponent = np.sort(pixels[0] - pixels[2])
    tenth = max(1, len(opponent) // 10)
    ends = [opponent[:tenth].mean(), opponent.mean(), opponent[-tenth:].mean()]
    return np.concatenate([pixels.mean(1), pixels.std(1), ends])


def statistics(frames: Iterable[np.ndarray]) -> dict[str, Any]:
    """What a camera's frames of the training data had, as JSON holds it: of each of FEATURES the
    lowest, the highest and the mean.
    """
    rows = np.array([features(frame) for frame in frames])
    if not len(rows):
        raise ValueError("cameras: expected at least one frame, got none")
    ends = {"low": rows.min(0), "high": rows.max(0), "mean": rows.mean(0)}
    return {"frames": len(rows), **{name: values.tolist() for name, values in ends.items()}}


class CameraWatch:
    """Looks at every frame of a robot, one after the other."""

    def __init__(self, frozen_after: int = FROZEN_AFTER) -> None:
        self._frozen_after = frozen_after
        self._last: dict[str, tuple[np.ndarray, int]] = {}  # camera -> frame, how often in a row

    def look(
        self, images: Mapping[str, np.ndarray], known: Mapping[str, Any] | None = None
    ) -> Causes:
        """What is wrong with these frames, uint8 [h w 3] by camera: cause -> cameras, in the order
        of CAUSES. `known` is `statistics` by camera; without it only frozen and blank ones show.
        """
        found: dict[str, list[str]] = {cause: [] for cause in CAUSES}
        for name, image in images.items():
            last, times = self._last.get(name, (None, 0))
            same = last is not None and np.array_equal(last, image)
            self._last[name] = image, times + 1 if same else 1
            if same and times + 1 >= self._frozen_after:
                found["frozen"].append(name)
            seen = features(image)
            if (seen[STD] <= FLAT).all():
                found["blank"].append(name)
            elif known is not None and name in known and (cause := _unlike(seen, known[name])):
                found[cause].append(name)
        return {cause: tuple(names) for cause, names in found.items() if names}


def _unlike(seen: np.ndarray, known: Mapping[str, Any]) -> str | None:
    low, high = np.array(known["low"]), np.array(known["high"])
    room = np.maximum(MARGIN * (high - low), ROOM)
    if ((low - room <= seen) & (seen <= high + room)).all():
        return None
    exchanged = seen[EXCHANGED].copy()
    exchanged[OPPONENT] *= -1
    return "swapped" if ((low - room <= exchanged) & (exchanged <= high + room)).all() else "unlike"
