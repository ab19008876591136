"""Several frames of one episode in one pass.

Axes: k chunk step, d action dim.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .network import Frame, State
from .policy import Policy, frame_of, inputs_together, numbers_of
from .states import join_episodes, split_episodes


def act_in_row(policy: Policy, given: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """`act` at several frames of its episode in a row, in one pass; for recorded ones, where what
    was carried out between is known. `given` are the arguments of `prepared` for each, the first
    three at least; executed is None before the first frame alone.

    What comes out is as frame by frame, up to the order of sums, but for "timing": it is not there.
    And "normalised" is: the chunk in network units [k d].
    """
    network, prepared = policy.network, []
    for i, each in enumerate(given):
        one = policy.prepared(*each)
        if i:
            one["first"] = np.array(False)
            if "past" in one:
                one["past"] = policy.normalised_past(each[2], one.get("measured"))
        prepared.append(one)
    with torch.inference_mode():
        inputs = inputs_together([policy] * len(prepared), prepared)
        _, frame, _ = frame_of(network, inputs)
        begins = split_episodes(network.initial(frame), len(prepared))[0]
        state = begins if prepared[0]["first"] else policy.state
        states: list[State] = []
        for i, seen in enumerate(split_episodes(network.seen(frame), len(prepared))):
            assert isinstance(seen, Frame | torch.Tensor)
            state = network.remember(state, seen, inputs.first[i : i + 1])
            states.append(state)
        window = join_episodes(states)
        assert window is not None
        action, probability = numbers_of(network.conclude(window, inputs))
    return [
        {
            **policy.commit_step(own if network.keeps else None, one, sure, frame.get("measured")),
            "normalised": policy._chunk,
        }
        for own, one, sure, frame in zip(states, action, probability, prepared, strict=True)
    ]
