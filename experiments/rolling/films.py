"""Film strips and videos of the first episodes that succeeded and of the first that did not: each
is written when its episode ends, and all strips in one picture at the end.

The pictures that the policy saw are not kept: an episode is gone through once more with the actions
that were carried out.
"""

from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from experiments.composition import film
from experiments.composition.plots import plt, save
from experiments.sims import Sim

FIRST = 2  # successes, and as many failures
STRIPS, VIDEOS = "strips", "videos"
SIDE = 256  # pixels that a video has from top to bottom, at least


def wanted(rows: list[dict[str, Any]]) -> list[int]:
    """The episodes that there are pictures of, of those that ended: the first by number, so that
    whoever is among them at the end was when it ended.
    """
    rows = sorted(rows, key=lambda row: row["episode"])
    good = [row["episode"] for row in rows if row["outcome"] == "success"]
    bad = [row["episode"] for row in rows if row["outcome"] not in ("success", "error")]
    return [*good[:FIRST], *bad[:FIRST]]


def keep(sim: Sim, actions: np.ndarray, out: Path, number: int) -> None:
    """Writes out/strips/NUMBER.png and out/videos/NUMBER.mp4 of the episode that has begun, in
    which these actions [d] are carried out.
    """
    shown, strip = film.steps(len(actions)), []
    for folder in (STRIPS, VIDEOS):
        (out / folder).mkdir(exist_ok=True)
    part = out / VIDEOS / f"{number}.part"
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=max(1, round(sim.control_hz)))
        stream.pix_fmt = "yuv420p"
        for i, action in enumerate(actions):
            pictures = list(sim.observe()[0].values())
            if i in shown:
                strip.append(pictures[0])
            picture = _large(pictures)
            if i == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            sim.step(action)
        container.mux(stream.encode())
    part.rename(out / VIDEOS / f"{number}.mp4")
    Image.fromarray(film.joined(strip)).save(out / STRIPS / f"{number}.png")


def _large(pictures: list[np.ndarray]) -> np.ndarray:
    """All cameras side by side, enlarged in whole pixels, with even sides as h264 wants them."""
    height = max(len(picture) for picture in pictures)
    padded = [np.pad(picture, ((0, height - len(picture)), (0, 0), (0, 0))) for picture in pictures]
    scale = 2 * -(-SIDE // (2 * height))
    return np.ascontiguousarray(film.joined(padded).repeat(scale, 0).repeat(scale, 1))


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Writes out/film.png, all strips with what they are of."""
    numbers = wanted(rows)
    chosen = [row for row in rows if row["episode"] in numbers]
    figure, axes = plt.subplots(len(chosen), 1, figsize=(12, 1.7 * len(chosen)), squeeze=False)
    for axis, row in zip(axes[:, 0], chosen, strict=True):
        axis.imshow(Image.open(out / STRIPS / f"{row['episode']}.png"))
        axis.set_title(
            f"episode {row['episode']}, {row['task']}, {row['wording']}: {row['outcome']}"
            f" after {row['steps']} steps",
            size=9,
            loc="left",
        )
        axis.axis("off")
    save(figure, out / "film.png")
