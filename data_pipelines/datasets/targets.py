"""What actions aim at: absolute targets, motions per step, or targets relative to the robot's state
where their chunk starts.

    absolute   positions to be reached, learnt as they are recorded: joint positions, poses
    delta      motions during a step, in the base frame; at rest they are 0
    relative   recorded as positions to be reached, learnt as their difference to the state at the
               frame where the chunk starts (openpi's DeltaActions); a policy gives positions back
"""

from collections.abc import Mapping

from vla_jax.robot import rotations
from vla_jax.robot.relative import Relative

# "": nobody says. A gripper that is open or closed stays what it is in all of them.
TARGETS = ("", "absolute", "delta", "relative")


def relation(
    relative_to: Mapping[str, str],
    turns: Mapping[str, tuple[str, ...]],
    action_names: tuple[str, ...],
    state_names: tuple[str, ...],
) -> tuple[Relative, ...]:
    """What learning relative targets takes, as ActionSpec has it.

    Args:
        relative_to: action dim -> state dim.
        turns: Dataset.rotations: the others are plain numbers.

    Raises ValueError for a name that is no dim, and a rotation of which only a part is relative.
    """
    for what, given, known in (
        ("action_names", [*relative_to], action_names),
        ("state_names", [*relative_to.values()], state_names),
        ("action_names", [name for names in turns.values() for name in names], action_names),
    ):
        foreign = [name for name in given if name not in known]
        if foreign:
            raise ValueError(
                f"relative_to, rotations: expected names of {what} ({', '.join(known) or 'none'}),"
                f" got {', '.join(foreign)}"
            )
    groups: list[tuple[str, tuple[str, ...]]] = []
    for kind, names in turns.items():
        width = 1 if kind == "angle" else rotations.WIDTHS.get(kind, 0)
        if not width or not names or len(names) % width:
            raise ValueError(
                "rotations: expected angle or one of"
                f" {', '.join(f'{k} ({n} names each)' for k, n in rotations.WIDTHS.items())}, got"
                f" {kind!r} with {len(names)} names"
            )
        groups += [(kind, names[i : i + width]) for i in range(0, len(names), width)]
    turning = [name for _, names in groups for name in names]
    if len(turning) != len(set(turning)):
        raise ValueError(f"rotations: expected each name once, got {', '.join(turning)}")
    plain = tuple(name for name in relative_to if name not in turning)
    parts = []
    for kind, names in (*groups, ("number", plain)):
        own = [name for name in names if name in relative_to]
        if own and len(own) < len(names):
            raise ValueError(
                f"relative_to: expected all of the rotation {', '.join(names)} or none of it, got"
                f" {', '.join(own)}"
            )
        if own:
            parts.append(
                Relative(
                    kind,
                    tuple(action_names.index(name) for name in own),
                    tuple(state_names.index(relative_to[name]) for name in own),
                )
            )
    return tuple(parts)


def check_binary(
    pairs: Mapping[str, str], action_names: tuple[str, ...], binary: tuple[int, ...]
) -> None:
    """Raises ValueError for a binary dim that is to be relative."""
    names = [action_names[i] for i in binary if action_names[i] in pairs]
    if names:
        raise ValueError(
            f"relative_to: {', '.join(names)}: a binary dim means open or closed, whatever the"
            " state: leave it out"
        )


def by_name(
    action_names: tuple[str, ...], binary: tuple[int, ...], state_names: tuple[str, ...]
) -> dict[str, str]:
    """All dims that are not binary, each to the state dim of its name. Raises ValueError where the
    state has none of that name.
    """
    names = [name for i, name in enumerate(action_names) if i not in binary]
    lacking = [name for name in names if name not in state_names]
    if lacking:
        raise ValueError(
            f"targets='relative': expected a state dim for each of {', '.join(names)}, got none for"
            f" {', '.join(lacking)} among {', '.join(state_names) or 'none'}; say in relative_to"
            " which action dims are relative to which state dims; the others stay absolute"
        )
    return dict(zip(names, names, strict=True))


def check_units(
    pairs: Mapping[str, str], action_units: Mapping[str, str], state_units: Mapping[str, str]
) -> None:
    """Raises ValueError for an action and a state dim that have different units."""
    for action, state in pairs.items():
        ours, theirs = action_units.get(action), state_units.get(state)
        if ours and theirs and ours != theirs:
            raise ValueError(
                f"relative_to: expected one unit for {action} and the state's {state}, got {ours}"
                f" and {theirs}; convert one of them in `standardise`"
            )
