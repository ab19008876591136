"""Whether a folder is of the variant that a config names: what shapes do not show, as the base of a
rotary embedding, would otherwise be read wrong without a word.
"""

import dataclasses
from typing import Any

# What a run may choose, whatever a release has.
CHOSEN = ("image_size", "other_sizes", "remat", "layers", "has_lm_head")


def check(where: Any, wanted: Any, found: Any) -> None:
    """Raises ValueError naming every number of the config `found` in the folder `where` that is
    another one in `wanted`; both are the same dataclass.
    """
    problems = _differences(wanted, found, "")
    if problems:
        raise ValueError(
            f"weights {where}: config.json is of another variant:\n  "
            + "\n  ".join(problems)
            + "\nset model.variant to the folder's"
        )


def _differences(wanted: Any, found: Any, prefix: str) -> list[str]:
    out = []
    for field in dataclasses.fields(wanted):
        name, pair = (
            f"{prefix}{field.name}",
            (getattr(wanted, field.name), getattr(found, field.name)),
        )
        if dataclasses.is_dataclass(pair[0]):
            out += _differences(*pair, f"{name}.")
        elif field.name not in CHOSEN and pair[0] != pair[1]:
            out.append(f"{name}: expected {pair[0]!r}, got {pair[1]!r}")
    return out
