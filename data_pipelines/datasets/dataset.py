"""What one dataset (RLDS, LeRobot, HDF5) is: where its images, words and numbers are, and what its
actions mean.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from data_pipelines.datasets import targets
from data_pipelines.datasets.names import EEF, OPEN
from data_pipelines.standardise import Recipe, Standardised
from vla_jax.robot.relative import Relative

__all__ = ["Dataset", "Standardised"]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Description of one dataset. Feature keys are relative to a step, e.g. "observation/image_0",
    LeRobot's as they are, "observation.images.front", HDF5's to an episode, "obs/agentview_rgb".

    Attributes:
        name: our word for it, used in mixtures and messages.
        version: TFDS version; "" of LeRobot and HDF5.
        cameras: slot ("primary", "secondary", "wrist") -> feature key of an encoded image of 8 bits
            a channel. Grayscale becomes RGB with three equal channels; alpha is dropped, whatever
            it hides. Depth and other numbers in pictures are refused.
        language: feature key of the instruction, of a step or ("episode_metadata/...") of the whole
            episode; "task" of a LeRobot dataset is the task of each frame; of HDF5 an attribute, as
            files/hdf5.py says. Several: alternatives, of which one that is not empty is drawn for
            each window. "": the files have none.
        control_hz: steps per second after `standardise`; None where nobody says.
        download: command (or sentence) that brings it under a data root, with {root} where that
            goes.
        standardise: raw columns (name -> [T_raw, ...]) to the house convention. May keep fewer
            steps than it gets.
        state_names: one word per state dim after standardisation; () without a recorded state.
        action_names: one word per action dim after standardisation.
        action_units: the unit of each action dim by its name, without those that nobody says.
        state_units: the same of the state.
        binary: action dims in [0, 1] that mean open or closed.
        targets: what the actions are, one of targets.TARGETS: "absolute", "delta", "relative"; ""
            where nobody says, which is read as "delta" of dims called x ... yaw.
        relative_to: for targets="relative" action dim -> the state dim that it is learnt relative
            to; the others stay absolute. By default every dim that is not binary is relative to the
            state dim of its name.
        rotations: action dims that are angles or rotations, by what they are: "angle" (radians
            modulo a full turn, each by itself), "euler", "quat_xyzw", "quat_wxyz", "rot6d",
            "axis_angle" (vla_jax/robot/rotations.py; several of a kind one after the other). A
            relative one is composed, not subtracted, and its state dims hold the same.
        tfds_name: folder and TFDS name; `name` when left out. The files are in
            root/tfds_name/version, LeRobot's and HDF5's in root/tfds_name.
        columns: name -> feature key of the numbers that `standardise` wants. Leave it out for a
            Recipe, which knows.
        revision: raise it when `standardise` changes its result: indexes made by an older one are
            then rebuilt.
        sensors: name -> feature key of a sensor, or (feature key, what its numbers are multiplied
            by: 0.001 for depth in millimetres). Numbers of a step, NaN and infinity where nothing
            was measured; pictures; of a whole episode ("episode_metadata/...") its sound. What
            they are a config says (model.sensors).
        robot: as it is commonly called; "" where we do not know.
        bgr: slots whose pictures are stored blue first.
        blanked: Octo trains on it without its instructions, as uninformative. We keep them, as
            OpenVLA does.
        instruction: what every step is told that the files have no words for.
        require: feature of the whole episode that must be true; other episodes are not read. "" =
            all are.
        pattern: `require` is a text, in which this regular expression must be found.
        outcome: what says how an episode ended: a number of each step, of which the last counts, or
            a number or text of the whole episode ("episode_metadata/...", of LeRobot a column of
            meta/episodes, of HDF5 an attribute), as files/outcomes.py says. "": nothing does.
        first_frame: feature of the whole episode: the number of its first step in the recording
            that it was cut from. Episodes that share steps are then held out together.
        segments: the records are play, and the episodes are the described stretches in them, which
            may overlap.
        episodes: in all splits, where known.
        notes: what one has to know before training on it.
    """

    name: str
    version: str
    cameras: dict[str, str]
    language: str | tuple[str, ...]
    control_hz: float | None
    download: str
    standardise: Callable[[dict[str, np.ndarray]], Standardised]
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = EEF
    action_units: dict[str, str] = dataclasses.field(default_factory=dict)
    state_units: dict[str, str] = dataclasses.field(default_factory=dict)
    binary: tuple[int, ...] = (EEF.index("gripper"),)
    targets: str = ""
    relative_to: dict[str, str] = dataclasses.field(default_factory=dict)
    rotations: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    tfds_name: str = ""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    sensors: dict[str, str | tuple[str, float]] = dataclasses.field(default_factory=dict)
    revision: int = 1
    robot: str = ""
    bgr: tuple[str, ...] = ()
    blanked: bool = False
    instruction: str = ""
    require: str = ""
    pattern: str = ""
    outcome: str = ""
    first_frame: str = ""
    segments: bool = False
    episodes: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tfds_name", self.tfds_name or self.name)
        if isinstance(self.standardise, Recipe):
            object.__setattr__(self, "columns", self.standardise.columns)
        if not self.languages and not self.instruction and not self.segments:
            raise ValueError(
                f"{self.name}: expected a feature with words (language) or words for all episodes"
                " (instruction), got neither"
            )
        if any(not 0 <= dim < len(self.action_names) for dim in self.binary):
            raise ValueError(
                f"{self.name}: binary: expected dims of the {len(self.action_names)} in"
                f" action_names, got {self.binary}; give binary=() where none is"
            )
        if len(set(self.action_names)) != len(self.action_names):
            raise ValueError(
                f"{self.name}: action_names: expected different words, got {self.action_names}"
            )
        if self.pattern and not self.require:
            raise ValueError(
                f"{self.name}: expected in `require` what `pattern` looks at, got none"
            )
        try:
            self._check_targets()
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def _check_targets(self) -> None:
        if self.targets not in targets.TARGETS:
            raise ValueError(f"targets: expected one of {targets.TARGETS}, got {self.targets!r}")
        if self.relative_to and self.targets != "relative":
            raise ValueError(
                f"relative_to: expected with targets='relative' alone, got {self.targets!r}"
            )
        pairs = self._pairs()
        targets.relation(pairs, self.rotations, self.action_names, self.state_names)
        targets.check_binary(pairs, self.action_names, self.binary)
        targets.check_units(pairs, self.action_units, self.state_units)

    def _pairs(self) -> dict[str, str]:
        if self.targets != "relative" or self.relative_to:
            return self.relative_to
        return targets.by_name(self.action_names, self.binary, self.state_names)

    @property
    def relative(self) -> tuple[Relative, ...]:
        """The dims that are learnt relative to the state, as ActionSpec has them."""
        return targets.relation(self._pairs(), self.rotations, self.action_names, self.state_names)

    @property
    def positions(self) -> bool:
        """Whether actions are positions to be reached, and no motions."""
        return self.targets in ("absolute", "relative")

    @property
    def action_labels(self) -> tuple[str, ...]:
        """What figures call the action dims: "x (m)", without a unit where nobody says."""
        binary = {self.action_names[dim]: OPEN for dim in self.binary}
        return _labels(self.action_names, binary | self.action_units)

    @property
    def state_labels(self) -> tuple[str, ...]:
        """The same of the state."""
        return _labels(self.state_names, self.state_units)

    @property
    def sensor_keys(self) -> dict[str, tuple[str, float]]:
        """The feature key and the factor of each sensor."""
        return {
            name: (said, 1.0) if isinstance(said, str) else said
            for name, said in self.sensors.items()
        }

    @property
    def languages(self) -> tuple[str, ...]:
        """The feature keys of the instruction and its alternatives."""
        keys = (self.language,) if isinstance(self.language, str) else self.language
        return tuple(key for key in keys if key)


def _labels(names: tuple[str, ...], units: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name} ({units[name]})" if units.get(name) else name for name in names)
