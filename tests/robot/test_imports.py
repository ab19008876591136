"""Safety and mobile run beside a robot: with numpy and the standard library, and nothing else of
ours.
"""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys

# vla_jax itself imports numpy alone, until load_policy is called; of what is in it, only these.
OURS = {"vla_jax", "vla_jax.robot", "vla_jax.robot.safety", "vla_jax.robot.safety.limits",
        "vla_jax.robot.safety.braking", "vla_jax.robot.safety.decision",
        "vla_jax.robot.safety.filter", "vla_jax.robot.safety.cameras",
        "vla_jax.robot.safety.bounds", "vla_jax.robot.safety.commands",
        "vla_jax.robot.safety.state", "vla_jax.robot.events",
        "vla_jax.robot.events.trigger", "vla_jax.robot.events.calibration",
        "vla_jax.robot.events.regret",
        "vla_jax.robot.mobile", "vla_jax.robot.navigation", "vla_jax.robot.resize",
        "vla_jax.robot.conventions",
        "vla_jax.robot.runtime"}
allowed = {"numpy", *sys.stdlib_module_names, *sys.builtin_module_names}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name not in OURS and name.partition(".")[0] not in allowed:
            raise ImportError(f"refused: {name}")

sys.meta_path.insert(0, Refuse())
import numpy as np
from vla_jax.robot import conventions, mobile, navigation, resize, runtime
from vla_jax.robot.safety.limits import STOP_CAUSES, Limits
from vla_jax.robot.safety.filter import Reading, SafetyFilter

for name in ("jax", "flax", "torch", "jaxtyping", "vla_jax.actions"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} was not refused")
six = (1.0,) * 6
limits = Limits(10.0, six, six, six, (-1.0,) * 6, six, (1.0,), None, 1.0, 0.5, None, "hold",
                dict.fromkeys(STOP_CAUSES), 0, 10, {}, 10)
now = [0.0]
safety = SafetyFilter(limits, 1.0, lambda: now[0])
safety.reset("test", pose=np.zeros(6))
safety.rest()
now[0] = 0.1
sent = safety.step([0.001, 0, 0, 0, 0, 0, 1], Reading(0.1))
resize.resize(np.zeros((4, 6, 3), np.uint8), 3, "lanczos")
conventions.Calvin().act(sent)
print(mobile.to_base(sent).tolist())
"""


def test_robot_modules_import_numpy_and_the_standard_library_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0.001, 0.0, 0.0]\n"
