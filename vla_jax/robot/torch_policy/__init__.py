"""A trained policy in PyTorch, standalone: torch, numpy, safetensors and the standard library,
nothing else.

The exporter copies this folder into every artefact as `policy_torch`; hence the relative imports.

    from policy_torch import load                # with the artefact's folder on sys.path
    policy = load("artefact", device="cuda", dtype="bfloat16")
    policy.reset("put the red block on the plate")
    out = policy.act({"primary": image})         # see policy.py

    python -B -m policy_torch                    # in the artefact: replays golden.npz on this
                                                 machine
"""

from . import waiting  # before torch  # isort: skip
from .folder import load, verify
from .in_row import act_in_row
from .policy import Policy, act_together

__all__ = ["Policy", "act_in_row", "act_together", "load", "verify", "waiting"]
