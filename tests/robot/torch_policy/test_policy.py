"""The torch policy's episode around a network that answers with chunks given in advance."""

import numpy as np
import torch

from vla_jax.robot.torch_policy import Policy
from vla_jax.robot.torch_policy.heads import Head
from vla_jax.robot.torch_policy.network import Frame, Inputs, Network, State, Step
from vla_jax.robot.torch_policy.tokenizer import Tokenizer
from vla_jax.robot.torch_policy.tokens import ActionToken

SIZE, CHUNK = 4, 3
NAMES = ("x", "yaw", "gripper")
# Network units are (robot units - offset) / scale for the arm; the gripper is 0 or 1 in both.
OFFSET, SCALE = np.array([0.1, -0.2, 0.0]), np.array([0.5, 2.0, 1.0])


class ChunkNetwork(Network):
    """A network with a past-action token that answers step i with `chunks[i]`, and keeps what it
    was told of the action before.
    """

    def __init__(self, chunks: np.ndarray) -> None:
        torch.nn.Module.__init__(self)  # no parameters: nothing here is computed
        self.chunks, self.pasts = list(chunks), []
        self.state, self.past, self.head = None, ActionToken(2, 3, [2]), Head()
        self.readout_embedding = torch.zeros(1)
        self.masks_dims, self.masks_state, self.embodiment = False, False, None
        self.state_dims = 0

    def vision(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images[:, 0].float()]

    def frame(self, visual: list[torch.Tensor], inputs: Inputs) -> Frame:
        assert inputs.past is not None
        self.pasts.append(inputs.past[0].numpy())
        return Frame(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, dtype=torch.bool), None, None)

    def initial(self, frame: Frame) -> None:
        return None

    def step(self, state: State, frame: Frame, inputs: Inputs) -> tuple[State, Step]:
        chunk = torch.from_numpy(self.chunks.pop(0))[None]
        return None, Step(torch.zeros(1, 1, 2), chunk, None)


class TwoTokens(Tokenizer):
    """Every instruction is the ids 1 and 2."""

    def __init__(self) -> None:
        pass

    def encode(self, instruction: str) -> list[int]:
        return [1, 2]


def make_policy(chunks: np.ndarray) -> tuple[Policy, ChunkNetwork]:
    network = ChunkNetwork(chunks)
    config = {
        "image": {"size": SIZE, "resize": "bicubic"},
        "cameras": ["primary"],
        "prompt": {"length": 4},
    }
    step = {"low": [None] * 3, "high": [None] * 3, "offset": OFFSET.tolist()}
    action = {
        "names": list(NAMES),
        "binary": [2],
        "constant": [],
        "steps": [{**step, "scale": SCALE.tolist()}],
    }
    stats = {"datasets": {"blocks": {"action": action, "state": None}}}
    policy = Policy(network, config, stats, TwoTokens())
    policy.reset("push the red block")
    return policy, network


def test_the_past_action_is_the_first_of_the_last_chunk_unless_another_was_executed() -> None:
    """Three actions that differ in every chunk, so that no other action of it can stand for the
    first. Golden files never see this: their replay always says what was executed.
    """
    chunks = np.random.default_rng(0).uniform(-1, 1, (4, CHUNK, 3)).astype(np.float32)
    chunks[:, :, 2] = [0.9, 0.1, 0.2]  # the gripper's probability: open first, then closed
    policy, network = make_policy(chunks)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    executed = np.float32([0.3, 0.4, 0.0])
    policy.act({"primary": image})
    policy.act({"primary": image})
    policy.act({"primary": image}, executed=executed)
    policy.act({"primary": image})
    np.testing.assert_array_equal(network.pasts[0], 0)  # nothing was done before
    np.testing.assert_allclose(network.pasts[1], [*chunks[0, 0, :2], 1], atol=1e-6)
    np.testing.assert_allclose(network.pasts[2], (executed - OFFSET) / SCALE, atol=1e-6)
    np.testing.assert_allclose(network.pasts[3], [*chunks[2, 0, :2], 1], atol=1e-6)
