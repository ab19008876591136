"""The policy a robot calls: uint8 images and an instruction in, actions in robot units out.

    policy = load("artefact", device="cuda", dtype="bfloat16")
    policy.reset("put the red block on the plate")
    while True:
        out = policy.act({"primary": image}, proprio)  # once per control step
        robot.move(out["actions"][0])

`out` holds
    actions     float32 [k d]: the next k actions; arm [k a] and gripper [k g] (1 = open) are its
                columns apart
    confidence  numbers in [0, 1] or None, see confidence.py
    held        True: the network wrote no whole chunk (the head fast), and "actions" hold the robot
                where it is: see held.py
    timing      milliseconds: vision, backbone (with the head), total

Axes: h w pixels, k chunk step, d action dim, a arm dims, g binary dims, p proprio, q action tokens.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..held import at_rest, is_none
from ..realtime import Underway, check, towards
from ..relative import finite, starting_state
from ..sensing import Reading, readings
from .confidence import confidence, unsure
from .network import SENSOR, Frame, Inputs, Network, State, Step, inputs_of
from .spec import Spec, image_sizes, sensors_of
from .states import join_episodes, split_episodes
from .tokenizer import Tokenizer


class Policy:
    """One robot's episode on a network. `config` is config.json, `state` the network's after the
    last step.
    """

    def __init__(
        self, network: Network, config: dict[str, Any], stats: dict[str, Any], tokenizer: Tokenizer
    ) -> None:
        self.network, self.config, self.tokenizer, self._stats = network, config, tokenizer, stats
        self._datasets = stats["datasets"]
        # The filter of resize.py for images (artefacts of before 2026-11-28 say "Lanczos").
        self.resize = config["image"]["resize"].lower()
        self.sizes, self.cameras = image_sizes(config), tuple(config["cameras"])
        # The policy's dims, among which a dataset's are. Artefacts of before 2026-11-29 do not say
        # them: all their datasets have the same.
        first = next(iter(self._datasets.values()))
        self.action_names = tuple(config.get("action_names") or first["action"]["names"])
        state = first["state"] or {"names": ()}
        self.state_names = tuple(config.get("state_names") or state["names"])
        self.sensors = sensors_of(config)
        self._prompt: dict[str, np.ndarray] | None = None
        self.stages: dict[str, torch.Tensor] = {}  # of the last `act`, for golden.py

    def reset(self, instruction: str, dataset: str | None = None, seed: int = 0) -> None:
        """Begins an episode.

        Args:
            instruction: what to do.
            dataset: whose robot this is: it says how the numbers are normalised. May be left out
                when there is one.
            seed: of heads that draw (flow, discrete with a temperature).

        Raises ValueError for an instruction that is too long, an unknown dataset, and none where
        there are several.
        """
        known = ", ".join(self._datasets)
        if dataset is None and len(self._datasets) != 1:
            raise ValueError(
                f"dataset: expected one of {known}, got None; each has its own normalisation"
            )
        name = next(iter(self._datasets)) if dataset is None else dataset
        if name not in self._datasets:
            raise ValueError(f"dataset: expected one of {known}, got {name!r}")
        ids, length = self.tokenizer.encode(instruction), self.config["prompt"]["length"]
        if len(ids) > length:
            raise ValueError(
                f"instruction: expected at most {length} tokens, got {len(ids)}: {instruction!r}"
            )
        body = self._datasets[name]
        self.action_spec = Spec(body["action"])
        self._motion = body.get("motion", ())  # dims that are 0 at rest
        self.targets = body.get("targets", "")  # whether actions are positions or motions, if known
        self.state_spec = Spec(body["state"]) if body["state"] else None
        # Where the dataset's dims stand among the policy's.
        self._dims = [self.action_names.index(each) for each in self.action_spec.names]
        own = self.state_spec.names if self.state_spec and self.network.state_dims else ()
        self._state_dims = [self.state_names.index(each) for each in own]
        self._state_mask: dict[str, np.ndarray] = {}
        if self.network.masks_state:
            there = np.isin(np.arange(len(self.state_names)), self._state_dims)
            self._state_mask["proprio_mask"] = there
        self._which: dict[str, np.ndarray] = {}
        if self.network.masks_dims:
            self._which["dims"] = np.isin(np.arange(len(self.action_names)), self._dims)
        if self.network.embodiment is not None:
            self._which["embodiment"] = np.array(self.config["embodiments"].index(name))
        self._sensor_specs = {name: Spec(each) for name, each in body.get("sensors", {}).items()}
        self._lasting: dict[str, Reading] = {}  # of sensors whose last reading stands
        # Of frames of the training data, by camera, see cameras.py; None: not known.
        self.camera_statistics: dict[str, Any] | None = body.get("cameras")
        padded = np.array(ids + [0] * (length - len(ids)), np.int64)
        self._prompt = {"prompt": padded, "prompt_mask": np.arange(length) < len(ids)}
        self.state: State = None
        self._last_action: np.ndarray | None = None  # [d], in robot units
        self._chunk: np.ndarray | None = None  # [k d], in network units
        self._planned: np.ndarray | None = None  # [k d], the same in robot units
        self._rng = np.random.default_rng(seed)

    def new_session(self) -> "Policy":
        """A policy on the same network for another episode; `act_together` runs several of them at
        once.
        """
        return Policy(self.network, self.config, self._stats, self.tokenizer)

    def act(
        self,
        images: dict[str, np.ndarray],
        proprio: np.ndarray | None = None,
        executed: np.ndarray | None = None,
        noise: np.ndarray | None = None,
        sensors: Mapping[str, Any] | None = None,
        underway: Underway | None = None,
    ) -> dict[str, Any]:
        """The next k actions at a new frame; see the top of this file.

        Args:
            images: uint8 RGB [size, size, 3] of exactly the config's cameras, each of its own size.
            proprio: the state [p] in robot units, for models that see it, and where the actions
                are relative to it.
            executed: the action [d] carried out since the last call, for models that see it; None:
                the first of the last chunk.
            noise: what the head draws, of the head's noise_shape; None: drawn with the seed of
                `reset`.
            sensors: readings by name, in the robot's units, see sensing.py. What is not there the
                policy does without; speech stands until the next comes.
            underway: the plan that goes on meanwhile, to which a chunk that flows then keeps.

        Raises ValueError for other cameras, sizes or dtypes, numbers that are missing or not
        finite, and as check of realtime.py. The episode then stands where it stood.
        """
        given = self.prepared(images, proprio, executed, noise, sensors, underway)
        return act_together([self], [given])[0]

    def prepared(
        self,
        images: dict[str, np.ndarray],
        proprio: np.ndarray | None = None,
        executed: np.ndarray | None = None,
        noise: np.ndarray | None = None,
        sensors: Mapping[str, Any] | None = None,
        underway: Underway | None = None,
    ) -> dict[str, np.ndarray]:
        """What `act` is given, checked, as this episode's part of Inputs by field; and as
        "measured" the state [p] in robot units that relative actions start from. The episode does
        not move on. Raises as `act` does.
        """
        if self._prompt is None:
            raise ValueError("Policy.act: expected reset(instruction) before the first frame")
        inputs = {
            "images": self._pixels(images),
            **self._prompt,
            **self._which,
            "first": np.array(self._chunk is None),
        }
        if self.network.state_dims:
            inputs |= self._state_inputs(proprio)
        if self.action_spec.relative:
            assert self.state_spec is not None  # `load` made sure
            parts, names = self.action_spec.relative, self.state_spec.names
            inputs["measured"] = starting_state(parts, names, proprio)
        if self.network.past is not None:
            if self._last_action is None:  # at the first frame the network does not look at it
                inputs["past"] = np.zeros(len(self.action_names), np.float32)
            else:
                last = self._last_action if executed is None else executed
                inputs["past"] = self.normalised_past(last, inputs.get("measured"))
        if noise is not None:
            if noise.shape != self.network.head.noise_shape:
                raise ValueError(
                    f"noise: expected shape {self.network.head.noise_shape}, got {noise.shape}"
                )
            inputs["noise"] = np.asarray(noise, np.float32)
        if underway is not None:
            inputs |= self._plan(underway, inputs.get("measured"))
        normalise = {name: spec.normalise for name, spec in self._sensor_specs.items()}
        # Last: what was refused above leaves no reading behind.
        seen = readings(self.sensors, sensors, normalise, self._lasting)
        for name, reading in seen.items():
            inputs[f"{SENSOR}{name}"], inputs[f"{SENSOR}{name}_mask"] = reading
        return inputs

    def _plan(self, underway: Underway, measured: np.ndarray | None) -> dict[str, np.ndarray]:
        """What the chunk is led to. Raises ValueError as check."""
        spec, head = self.action_spec, self.network.head
        shape = self.config["network"]["head"]["chunk"], len(self.action_names)
        check(underway, spec.names, shape[0], head.inpaints)
        plan, weight = towards(underway, lambda x: spec.normalise(x, measured), self._dims, shape)
        return {"plan": plan, "plan_weight": weight}

    def _state_inputs(self, proprio: np.ndarray | None) -> dict[str, np.ndarray]:
        """The dataset's state among the policy's numbers, and where the network masks, which of
        them it has.
        """
        state = np.zeros(len(self.state_names), np.float32)
        if self.state_spec and self._state_dims:
            state[self._state_dims] = self._normalised("proprio", proprio, self.state_spec)
        return {"proprio": state, **self._state_mask}

    def normalised_past(
        self, executed: np.ndarray | None, measured: np.ndarray | None
    ) -> np.ndarray:
        """The action [d] carried out before a frame, among the policy's dims in network units, as
        seen from the state measured at it. Raises as `act` does.
        """
        past = np.zeros(len(self.action_names), np.float32)
        past[self._dims] = self._normalised("executed", executed, self.action_spec, measured)
        return past

    def own(self, chunks: np.ndarray) -> np.ndarray:
        """Of normalised actions [... d] of the policy those of the dataset's dims."""
        return chunks[..., self._dims]

    def robot_units(self, chunks: np.ndarray, measured: np.ndarray | None = None) -> np.ndarray:
        """Normalised actions [... d] of the policy as those of the dataset's robot. `measured`
        [... p] are the states that relative ones start from.
        """
        return self.action_spec.unnormalise(self.own(chunks), measured)

    def drawn(self) -> np.ndarray:
        """The next step's noise, float32 of the head's noise_shape, for a head that draws."""
        discrete = self.config["network"]["head"]["kind"] == "discrete"
        draw = self._rng.gumbel if discrete else self._rng.standard_normal
        return np.asarray(draw(size=self.network.head.noise_shape), np.float32)

    def commit_step(
        self,
        state: State,
        action: np.ndarray,
        probability: np.ndarray | None,
        measured: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Records a step in the episode and returns what `act` does, but for the timing.

        Args:
            state: of the network after the step.
            action: its normalised chunk [k d], of the policy's dims; NaN: none.
            probability: of each number's token [q], for heads that write tokens.
            measured: of `prepared`, where it gives it.
        """
        if probability is not None:
            probability = self.own(probability.reshape(action.shape))
        own, none = self.own(action), is_none(action)
        if none:
            last = (len(action), self._last_action, measured)
            actions = at_rest(self.action_spec, self._motion, *last)
            own, sure = self.action_spec.normalise(actions, measured), unsure(len(action))
        else:
            sure = confidence(self.action_spec, own, probability, self._expected(measured))
            actions = self.action_spec.unnormalise(own, measured)
        self.state, self._last_action = state, actions[0]
        self._chunk, self._planned = own, actions
        return {
            "actions": actions,
            "arm": actions[:, self.action_spec.arm],
            "gripper": actions[:, self.action_spec.binary],
            "confidence": sure,
            "held": none,
        }

    def _expected(self, measured: np.ndarray | None) -> np.ndarray | None:
        """What the last chunk had in the place of the next action [d], in network units; None where
        it had none.
        """
        if self._chunk is None or len(self._chunk) < 2:
            return None
        if self._planned is not None and self.action_spec.relative:  # to another state
            return self.action_spec.normalise(self._planned[1], measured)
        return self._chunk[1]

    def _pixels(self, images: dict[str, np.ndarray]) -> np.ndarray:
        """Checked images, in the order of the cameras: uint8 [cameras h w 3], smaller ones in the
        upper left.
        """
        if set(images) != set(self.cameras):
            raise ValueError(f"images: expected the cameras {self.cameras}, got {tuple(images)}")
        largest = max(self.sizes.values())
        out = np.zeros((len(images), largest, largest, 3), np.uint8)
        for i, (name, size) in enumerate(self.sizes.items()):
            image = images[name]
            if (
                not isinstance(image, np.ndarray)
                or image.dtype != np.uint8
                or image.shape != (size, size, 3)
            ):
                got = (
                    f"{image.dtype} {image.shape}"
                    if isinstance(image, np.ndarray)
                    else type(image).__name__
                )
                raise ValueError(
                    f"images[{name!r}]: expected uint8 RGB of shape ({size}, {size}, 3), got {got};"
                    f" resize.resize(image, {size}, {self.resize!r}) does it as in training"
                )
            out[i, :size, :size] = image
        return out

    def _normalised(
        self,
        what: str,
        values: np.ndarray | None,
        spec: Spec,
        measured: np.ndarray | None = None,
    ) -> np.ndarray:
        return spec.normalise(finite(what, values, spec.names), measured)


def act_together(
    policies: Sequence[Policy], prepared: Sequence[dict[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """`act` for the episodes of several policies on one network, in one pass; `prepared` is of each
    one's `prepared`.

    What comes out is as when each acts alone, up to the order of sums.
    """
    network, b = policies[0].network, len(policies)
    on_one = all(policy.network is network for policy in policies)
    if not on_one or len({id(policy) for policy in policies}) != b:
        raise ValueError(
            "act_together: expected different policies on one network; `new_session` makes them"
        )
    start = time.perf_counter()
    led = any("plan" in given for given in prepared)
    # What is led is differentiated, which inference mode would not let.
    with torch.no_grad() if led else torch.inference_mode():
        inputs = inputs_together(policies, prepared)
        visual, frame, vision_done = frame_of(network, inputs)
        states = [
            initial if given["first"] else policy.state
            for policy, initial, given in zip(
                policies, split_episodes(network.initial(frame), b), prepared, strict=True
            )
        ]
        state, step = network.step(join_episodes(states), frame, inputs)
        action, probability = numbers_of(step)
    end = time.perf_counter()
    timing = {
        "vision": 1e3 * (vision_done - start),
        "backbone": 1e3 * (end - vision_done),
        "total": 1e3 * (end - start),
    }
    outs = []
    for i, (policy, own) in enumerate(zip(policies, split_episodes(state, b), strict=True)):
        seen = torch.cat([of_camera[i] for of_camera in visual])  # m w
        policy.stages = {"vision": seen, "readout": step.readout[i], "action": step.action[i]}
        measured = prepared[i].get("measured")
        out = policy.commit_step(own, action[i], probability[i], measured)
        outs.append({**out, "timing": timing})
    return outs


def inputs_together(
    policies: Sequence[Policy], prepared: Sequence[dict[str, np.ndarray]]
) -> Inputs:
    """What was prepared of each policy, as one, on the network's device."""
    network = policies[0].network
    if network.head.noise_shape is not None:
        prepared = [
            given if "noise" in given else {**given, "noise": policy.drawn()}
            for policy, given in zip(policies, prepared, strict=True)
        ]
    led = next((given for given in prepared if "plan" in given), None)
    if led is not None:  # the others are led nowhere
        nowhere = {name: np.zeros_like(led[name]) for name in ("plan", "plan_weight")}
        prepared = [{**nowhere, **given} for given in prepared]
    device = network.readout_embedding.device
    tensors = {
        name: torch.from_numpy(np.stack([given[name] for given in prepared])).to(device)
        for name in prepared[0]
        if name in Inputs._fields or name.startswith(SENSOR)
    }
    return inputs_of(tensors)


def frame_of(network: Network, inputs: Inputs) -> tuple[list[torch.Tensor], Frame, float]:
    """Visual tokens of each camera and the frame's tokens, and when the visual ones were done."""
    visual = network.vision(inputs.images)
    if inputs.images.device.type == "cuda":
        torch.cuda.synchronize(inputs.images.device)
    return visual, network.frame(visual, inputs), time.perf_counter()


def numbers_of(step: Step) -> tuple[np.ndarray, Sequence[np.ndarray | None]]:
    """Actions [b k d] and each one's probabilities [q]."""
    action = step.action.float().cpu().numpy()
    if step.probability is None:
        return action, [None] * len(action)
    return action, list(step.probability.cpu().numpy())
