"""How torch's threads wait for each other on a CPU; imported before torch, which reads it once.

By default a thread that is done with its part spins until the others are too. Where the CPU has
other work, the one it waits for does not run meanwhile, and each of a frame's hundreds of products
costs a turn of the scheduler. Asleep they cost a wake-up. Whoever sets one of NAMES, or imports
torch before, has what they chose.
"""

import os

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

if not any(name in os.environ for name in NAMES):
    os.environ["OMP_WAIT_POLICY"] = "passive"
