"""Film strips of the first episodes that succeeded and of the first that did not: each is written
when its episode ends, and in one picture at the end.

The pictures that the policy saw are not kept: an episode is gone through once more with the actions
that were carried out.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.composition import film
from experiments.composition.plots import plt, save
from experiments.rolling.episodes import begin
from experiments.sims import Sim

FIRST = 2  # successes, and as many failures
FOLDER = "strips"


def wanted(rows: list[dict[str, Any]]) -> list[int]:
    """The episodes that there are strips of, of those that ended."""
    good = [row["episode"] for row in rows if row["outcome"] == "success"]
    bad = [row["episode"] for row in rows if row["outcome"] != "success"]
    return [*good[:FIRST], *bad[:FIRST]]


def keep(sim: Sim, seed: int, number: int, actions: list[np.ndarray], out: Path) -> None:
    """Writes out/strips/NUMBER.png: the episode in which these actions [d] were carried out."""
    begin(sim, seed, number)
    shown, frames = film.steps(len(actions)), []
    for i, action in enumerate(actions):
        if i in shown:
            frames.append(next(iter(sim.observe()[0].values())))
        sim.step(action)
    (out / FOLDER).mkdir(exist_ok=True)
    Image.fromarray(film.joined(frames)).save(out / FOLDER / f"{number}.png")


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Writes out/film.png, all strips with what they are of."""
    chosen = [row for row in rows if row["episode"] in wanted(rows)]
    figure, axes = plt.subplots(len(chosen), 1, figsize=(12, 1.7 * len(chosen)), squeeze=False)
    for axis, row in zip(axes[:, 0], chosen, strict=True):
        axis.imshow(Image.open(out / FOLDER / f"{row['episode']}.png"))
        axis.set_title(
            f"episode {row['episode']}, {row['task']}, words {row['wording']}: {row['outcome']}"
            f" after {row['steps']} steps",
            size=9,
            loc="left",
        )
        axis.axis("off")
    save(figure, out / "film.png")
