"""Robot policies on top of vision-language models. `load_policy` opens what was trained:

    policy = vla_jax.load_policy("runs/demo/policy")    # a run, an import or an artefact
    policy.reset("push the red block left")
    actions = policy.act({"primary": image}, state)     # once per control step: float32 [k d]

Importing this brings neither JAX nor torch: of what runs beside a robot nothing needs the one, and
much not the other.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import vla_jax.robot.realtime
    import vla_jax.types


def load_policy(
    folder: Path | str,
    *,
    dataset: str | Sequence[str] | None = None,
    step: int | None = None,
    tokenizer: Path | str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> "vla_jax.types.Policy":
    """The policy in a folder: of a run or an import in JAX, of an artefact in torch.

    `reset(instruction)` begins an episode. `act(images, proprio)` gives the next k actions, float32
    [k d], in the robot's units; images are uint8 RGB [h w 3] of any size, one per camera by name,
    proprio [p] is the state in the robot's units where the policy sees it. `act(images,
    sensors={"imu": ...})` gives readings of sensors where the policy has them
    (vla_jax/robot/sensing.py), `underway=` the plan that goes on meanwhile where it flows
    (vla_jax/robot/realtime.py).

    Args:
        folder: a run's work directory, its checkpoints directory, what import_weights wrote, or
            what export wrote.
        dataset: whose robot this is: it says how numbers are normalised. Of several, which have the
            same robot, the first that the policy knows. May be left out when it knows one.
        step: of the checkpoint; by default the best where a run marks it, else the newest.
        tokenizer: its folder, where the checkpoint's has moved.
        device: "cpu", "cuda", ..., as JAX or torch says it. None: JAX's default device; for torch
            the CPU.
        dtype: "float32" or "bfloat16": what the backbone computes in. None: for a run or an import
            its config's model.act_dtype, for an artefact float32.

    Raises ValueError for a folder that is none of these or damaged, and for a dataset that is
    unknown, or not said where there are several.
    """
    folder = Path(folder).expanduser()
    if (folder / "model.safetensors").is_file():
        if step is not None or tokenizer is not None:
            raise ValueError(
                f"{folder}: is an artefact, which has one step and its own tokenizer; leave out"
                " step and tokenizer"
            )
        return _torch_policy(folder, dataset, device or "cpu", dtype or "float32")
    from vla_jax import saved  # JAX, which a robot's computer has not
    from vla_jax.training.checkpoint import complete_steps, within

    directory = within(folder)
    if not complete_steps(directory):
        raise ValueError(
            f"{folder}: expected a work directory, a checkpoints directory or an artefact, found"
            " neither a complete checkpoint nor model.safetensors; give the --workdir of pretrain"
            " or the --out of import_weights or export"
        )
    opened = saved.open_checkpoint(directory, step, None if tokenizer is None else Path(tokenizer))
    return saved.jax_policy(opened, _known(folder, dataset, opened.specs), device, dtype)


def _torch_policy(
    folder: Path, dataset: str | Sequence[str] | None, device: str, dtype: str
) -> "_TorchPolicy":
    from vla_jax.robot import torch_policy

    policy = torch_policy.load(folder, device, dtype)
    stats = json.loads((folder / "norm_stats.json").read_text(encoding="utf-8"))
    return _TorchPolicy(policy, _known(folder, dataset, stats["datasets"]))


def _known(folder: Path, dataset: str | Sequence[str] | None, datasets: Iterable[str]) -> str:
    """The dataset that is meant."""
    names = list(datasets)
    if dataset is None and len(names) == 1:
        return names[0]
    if not names:
        raise ValueError(
            f"{folder}: has no action spec: a backbone gets one with the data at the first training"
        )
    wanted = [dataset] if isinstance(dataset, str) else list(dataset or ())
    found = [name for name in wanted if name in names]
    if not found:
        raise ValueError(
            f"{folder}: dataset: expected one of {', '.join(names)}, got"
            f" {' or '.join(map(repr, wanted)) or None}; each normalises the robot's numbers in its"
            " own way"
        )
    return found[0]


class _TorchPolicy:
    """types.Policy for an artefact, whose own policy says more than the actions."""

    def __init__(self, policy: Any, dataset: str) -> None:
        self._policy, self._dataset = policy, dataset

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those of which it wants an image."""
        return tuple(self._policy.cameras)

    def sessions(self, n: int) -> "list[_TorchPolicy]":
        """`n` policies on this network, for as many episodes at once; see `act_together`."""
        return [_TorchPolicy(self._policy.new_session(), self._dataset) for _ in range(n)]

    def reset(self, instruction: str) -> None:
        """Begins an episode. Raises ValueError when the instruction has too many tokens."""
        self._policy.reset(instruction, self._dataset)

    def act(
        self,
        images: dict[str, np.ndarray],
        proprio: np.ndarray | None = None,
        *,
        sensors: Mapping[str, Any] | None = None,
        underway: "vla_jax.robot.realtime.Underway | None" = None,
    ) -> np.ndarray:  # float32 [k d]
        """The next k actions; see load_policy. Raises ValueError for missing or unknown cameras,
        images that are not uint8 RGB, missing state, what is no reading of a sensor, and as
        robot.realtime.check.
        """
        fitted = self._fitted(images)
        return self._policy.act(fitted, proprio, sensors=sensors, underway=underway)["actions"]

    @staticmethod
    def act_together(
        policies: "Sequence[_TorchPolicy]", seen: "Sequence[vla_jax.types.Seen]"
    ) -> list[np.ndarray]:
        """`act` of several sessions in one pass, as each would alone up to the order of sums.
        Raises as `act` does.
        """
        from vla_jax.robot.torch_policy.policy import act_together

        own = [policy._policy for policy in policies]
        prepared = [
            policy._policy.prepared(
                policy._fitted(each.images),
                each.proprio,
                each.executed,
                None,
                each.sensors,
                each.underway,
            )
            for policy, each in zip(policies, seen, strict=True)
        ]
        return [out["actions"] for out in act_together(own, prepared)]

    def _fitted(self, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The frames at the network's sizes."""
        from vla_jax.robot.resize import resize

        sizes, filter = self._policy.sizes, self._policy.resize
        return {
            name: resize(image, sizes[name], filter) if name in sizes else image
            for name, image in images.items()
        }
