"""The policy a robot calls: uint8 images and an instruction in, actions in robot units out.

    policy = load("artefact", device="cuda", dtype="bfloat16")
    policy.reset("put the red block on the plate")
    while True:
        out = policy.act({"primary": image}, proprio)     # once per control step, with its newest frame
        robot.move(out["actions"][0])

`out` holds
    actions     float32 [k d]: the next k actions; arm and gripper are its columns apart ([k a], [k g]; 1 = open)
    confidence  numbers in [0, 1] or None, see `confidence`
    timing      milliseconds: vision, backbone (with the head), total

Axes: h w pixels, k chunk step, d action dim, a arm dims, g binary dims, p proprio.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from .network import Network, State, Step
from .tokenizer import Tokenizer

SCHEMA = 1
SUMS = "SHA256SUMS"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(
    path: Path | str, device: str | torch.device = "cpu", dtype: str = "float32", compile: bool = False
) -> "Policy":
    """The policy of an artefact's folder.

    Args:
        path: the folder that experiments.export wrote.
        device: of torch.
        dtype: "float32" or "bfloat16": what the backbone computes in. The head always computes in float32.
        compile: with torch.compile; the first frames are then slow. Tokens of the head discrete are decoded without.

    Raises ValueError for a file that is damaged, missing or not the exporter's, another schema, and weights that do
    not fit.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    verify(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if config.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected artefact schema {SCHEMA}, got {config.get('schema')}; export it again")
    with torch.device("meta"):
        network = Network(config["network"])
    with safe_open(path / "model.safetensors", "pt", device=str(device)) as file:
        arrays = {name.replace("/", "."): file.get_tensor(name).to(DTYPES[dtype]) for name in file.keys()}  # noqa: SIM118
    _check_fit(path, network, arrays)
    network.load_state_dict(arrays, strict=True, assign=True)
    network.requires_grad_(False).eval()
    network.head.float()
    if compile:  # what has the same shapes at each frame
        network.vision = torch.compile(network.vision)  # type: ignore[method-assign]
        network.backbone.encode = torch.compile(network.backbone.encode)  # type: ignore[method-assign]
        network.head.act = torch.compile(network.head.act)  # type: ignore[method-assign]
    stats = json.loads((path / "norm_stats.json").read_text(encoding="utf-8"))
    return Policy(network, config, stats, Tokenizer.open(path / "tokenizer.json", config["prompt"]))


def verify(path: Path) -> None:
    """Raises ValueError unless the folder holds exactly the files of SHA256SUMS, each with its hash."""
    listed = path / SUMS
    if not listed.is_file():
        raise ValueError(f"{path}: expected an artefact with {SUMS}; experiments.export writes one")
    sums = dict(line.split("  ", 1)[::-1] for line in listed.read_text().splitlines())
    there = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    there = {name for name in there if name != SUMS and "__pycache__" not in name}
    wrong = [f"{name}: missing" for name in sorted(sums.keys() - there)]
    wrong += [f"{name}: not among the exported files" for name in sorted(there - sums.keys())]
    for name in sorted(sums.keys() & there):
        found = digest(path / name)
        if found != sums[name]:
            wrong.append(f"{name}: expected sha256 {sums[name]}, got {found}")
    if wrong:
        raise ValueError(f"{path}: not as it was exported:\n  " + "\n  ".join(wrong) + "\ncopy or export it again")


def digest(file: Path) -> str:
    """sha256 of a file."""
    sha = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


class Spec:
    """What a vector's numbers mean and how they are normalised: vla_jax.actions.ActionSpec, as JSON holds it."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.names, self.binary = tuple(body["names"]), list(body["binary"])
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

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Robot units to network units, float32."""
        x = np.array(values, np.float64)
        for low, high, offset, scale in self._steps:
            x = (np.clip(x, low, high) - offset) / scale
        return x.astype(np.float32)

    def unnormalise(self, values: np.ndarray) -> np.ndarray:
        """Network units to robot units, float32; binary dims leave as 0 or 1."""
        x = np.array(values, np.float64)
        for _, _, offset, scale in reversed(self._steps):
            x = x * scale + offset
        x[..., self.binary] = x[..., self.binary] > 0.5
        return x.astype(np.float32)


class Policy:
    """One robot's episode on a network. `config` is config.json."""

    def __init__(self, network: Network, config: dict[str, Any], stats: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.network, self.config, self.tokenizer = network, config, tokenizer
        self._datasets, self._size = stats["datasets"], config["image"]["size"]
        self.cameras = tuple(config["cameras"])
        self._device = network.readout_embedding.device
        self._prompt: tuple[torch.Tensor, torch.Tensor] | None = None
        self.stages: dict[str, torch.Tensor] = {}  # of the last `act`, for golden.py

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        """Begins an episode.

        Args:
            instruction: what to do.
            dataset: whose robot this is: it says how the numbers are normalised. May be left out when there is one.
            seed: of heads that draw (flow, discrete with a temperature).

        Raises ValueError for an instruction that is too long, an unknown dataset, and none where there are several.
        """
        known = ", ".join(self._datasets)
        if dataset is None and len(self._datasets) != 1:
            raise ValueError(f"dataset: expected one of {known}, got None; each has its own normalisation")
        name = next(iter(self._datasets)) if dataset is None else dataset
        if name not in self._datasets:
            raise ValueError(f"dataset: expected one of {known}, got {name!r}")
        ids, length = self.tokenizer.encode(instruction), self.config["prompt"]["length"]
        if len(ids) > length:
            raise ValueError(f"instruction: expected at most {length} tokens, got {len(ids)}: {instruction!r}")
        body = self._datasets[name]
        self.action_spec = Spec(body["action"])
        self.state_spec = Spec(body["state"]) if body["state"] else None
        padded = torch.tensor(ids + [0] * (length - len(ids)), device=self._device)
        self._prompt = padded, torch.arange(length, device=self._device) < len(ids)
        self._state: State = None
        self._last: np.ndarray | None = None
        self._chunk: np.ndarray | None = None
        self._rng = np.random.default_rng(seed)

    def act(
        self,
        images: dict[str, np.ndarray],
        proprio: np.ndarray | None = None,
        executed: np.ndarray | None = None,
        noise: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """The next k actions at a new frame; see the top of this file.

        Args:
            images: uint8 RGB [size, size, 3] of exactly the config's cameras.
            proprio: the state [p] in robot units, for models that see it.
            executed: the action [d] carried out since the last call, for models that see it; None: the first of the
                last chunk.
            noise: what the head draws, of the head's noise_shape; None: drawn with the seed of `reset`.

        Raises ValueError for other cameras, sizes or dtypes, and numbers that are missing or not finite. The episode
        then stands where it stood.
        """
        if self._prompt is None:
            raise ValueError("Policy.act: expected reset(instruction) before the first frame")
        pixels = self._pixels(images)
        state, past = self._proprio(proprio), self._past(executed)
        start = time.perf_counter()
        with torch.inference_mode():
            visual = self.network.vision(pixels)
            self._wait()
            seen = time.perf_counter()
            frame = self.network.frame(visual, self._prompt, state, past)
            self._state, step = self.network.step(self._state, frame, self._noise(noise))
            action = step.action.float().cpu().numpy()
        end = time.perf_counter()
        confidence = self._confidence(step, action)
        self._chunk, actions = action, self.action_spec.unnormalise(action)
        self._last = actions[0]
        self.stages = {"vision": visual, "readout": step.readout, "action": step.action}
        return {
            "actions": actions,
            "arm": actions[:, self.action_spec.arm],
            "gripper": actions[:, self.action_spec.binary],
            "confidence": confidence,
            "timing": {
                "vision": 1e3 * (seen - start), "backbone": 1e3 * (end - seen), "total": 1e3 * (end - start),
            },
        }  # fmt: skip

    def _confidence(self, step: Step, action: np.ndarray) -> dict[str, float | None]:
        """Numbers in [0, 1], 1 is sure; None where there is none.

        gripper: the probability of the gripper's state in the next action (the least sure one, with several).
        agreement: exp(-r), r the root mean square difference of the arm, in network units, between this chunk and the
            last one where they overlap (one control step apart); None at the first frame, for chunks of one action,
            and for the head discrete.
        token: the geometric mean of the probabilities of the next action's tokens, for the head discrete.
        """
        sure = np.maximum(action[0], 1 - action[0])[self.action_spec.binary]
        agreement = token = None
        if step.probability is not None:
            chosen = step.probability[: action.shape[1]].double().log().mean().exp()
            token = float(chosen)
        elif self._chunk is not None and len(action) > 1 and self.action_spec.arm:
            difference = (action[:-1] - self._chunk[1:])[:, self.action_spec.arm]
            agreement = float(np.exp(-np.sqrt(np.mean(difference.astype(np.float64) ** 2))))
        return {"gripper": float(sure.min()) if sure.size else None, "agreement": agreement, "token": token}

    def _pixels(self, images: dict[str, np.ndarray]) -> torch.Tensor:
        if set(images) != set(self.cameras):
            raise ValueError(f"images: expected the cameras {self.cameras}, got {tuple(images)}")
        size = self._size
        for name, image in images.items():
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != (size, size, 3):
                got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
                raise ValueError(
                    f"images[{name!r}]: expected uint8 RGB of shape ({size}, {size}, 3), got {got}; resize with "
                    f"{self.config['image']['resize']}, as in training"
                )
        return torch.from_numpy(np.stack([images[name] for name in self.cameras])).to(self._device)

    def _proprio(self, proprio: np.ndarray | None) -> torch.Tensor | None:
        if self.network.state is None:
            return None  # the model does not look
        assert self.state_spec is not None  # the exporter made sure
        return self._numbers("proprio", proprio, self.state_spec)

    def _past(self, executed: np.ndarray | None) -> torch.Tensor | None:
        if self.network.past is None or self._last is None:
            return None
        return self._numbers("executed", self._last if executed is None else executed, self.action_spec)

    def _numbers(self, what: str, values: np.ndarray | None, spec: Spec) -> torch.Tensor:
        found = np.asarray(np.nan if values is None else values, np.float32)
        if found.shape != (len(spec.names),) or not np.isfinite(found).all():
            raise ValueError(
                f"{what}: expected {len(spec.names)} finite numbers ({', '.join(spec.names)}), got {values}"
            )
        return torch.from_numpy(spec.normalise(found)).to(self._device)

    def _noise(self, noise: np.ndarray | None) -> torch.Tensor | None:
        shape = self.network.head.noise_shape
        if shape is None:
            return None
        if noise is None:
            draw = (
                self._rng.gumbel if self.config["network"]["head"]["kind"] == "discrete" else self._rng.standard_normal
            )
            noise = np.asarray(draw(size=shape))
        if noise.shape != shape:
            raise ValueError(f"noise: expected shape {shape}, got {noise.shape}")
        return torch.from_numpy(np.asarray(noise, np.float32)).to(self._device)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _check_fit(path: Path, network: Network, arrays: dict[str, torch.Tensor]) -> None:
    wanted = network.state_dict()
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - arrays.keys())]
    wrong += [f"{name} is not wanted" for name in sorted(arrays.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & arrays.keys()):
        if wanted[name].shape != arrays[name].shape:
            wrong.append(f"{name}: expected {tuple(wanted[name].shape)}, got {tuple(arrays[name].shape)}")
    if wrong:
        raise ValueError(f"{path}: model.safetensors does not fit config.json:\n  " + "\n  ".join(wrong))
