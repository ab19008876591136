"""Which axes of a config's parameters are dims with names, so that a policy can begin as one of
another robot (vla_jax/training/transfer.py).
"""

from ml_collections import ConfigDict

from vla_jax import build_heads
from vla_jax.training.transfer import NamedAxis


def named_axes(config: ConfigDict) -> dict[str, NamedAxis]:
    """Of the parameters that may have an axis of action dims, numbers of the state or robots: that
    axis, and what stands at each of its places.
    """
    model = config.model
    grippers = tuple(model.action_binary)
    arm = tuple(name for name in model.action_names if name not in grippers)

    def of_chunk(dims: tuple[str, ...]) -> tuple[str, ...]:
        steps = [f"of step {k + 1} of {model.chunk}" for k in range(model.chunk)]
        return tuple(f"{name} {step}" for step in steps for name in dims)

    last, options = f"layers/{len(model.head_mlp)}", build_heads.options_of(model.head_options)
    step = tuple(model.action_names)  # what the head oft reads of one
    if options.get("readout") == "discrete":
        bins = [f"in bin {i + 1} of {model.bins}" for i in range(model.bins)]
        step = (*(f"{name} {each}" for name in arm for each in bins), *grippers)
    outputs = {
        f"head/outputs/arm/{last}": of_chunk(arm),
        f"head/outputs/gripper/{last}": of_chunk(grippers),
        f"head/gripper/{last}": of_chunk(grippers),  # the head flow's
        "head/velocity": arm,
        "head/output": step,
    }
    inputs = {
        "head/noisy": arm,
        "past/arm": arm,
        "past/gripper": grippers,
        "state/arm": tuple(name for name in model.state_names if name != "gripper"),
    }
    if model.head == "expert" and not options.get("padded"):
        outputs["head/action_out"] = inputs["head/action_in"] = tuple(model.action_names)
        inputs["head/state"] = tuple(model.state_names)
    return {
        **{f"{name}/kernel": NamedAxis(1, dims) for name, dims in outputs.items()},
        **{f"{name}/bias": NamedAxis(0, dims) for name, dims in outputs.items()},
        **{f"{name}/kernel": NamedAxis(0, dims) for name, dims in inputs.items()},
        "embodiment/table": NamedAxis(0, tuple(model.embodiments)),
    }
