"""What draws MuJoCo's worlds without a screen: EGL or OSMesa, whichever is there."""

import os
import subprocess
import sys

RENDERERS = {
    "egl": "apt-get install libegl1 libgl1-mesa-dri",
    "osmesa": "apt-get install libosmesa6",
}
OTHER = f"try another MUJOCO_GL of {', '.join(RENDERERS)}"
# Asks for a context as mujoco.Renderer does, where a failure leaves nothing half imported.
_PROBE = """
import mujoco
from OpenGL import GL
context = mujoco.GLContext(8, 8)
context.make_current()
print("renderer:", GL.glGetString(GL.GL_RENDERER).decode())
context.free()
"""


def choose(world: str) -> str:
    """What draws here: MUJOCO_GL, which is chosen where nobody did, and the device. To be called
    before MuJoCo is imported. Raises ValueError in the name of the world, saying what to install,
    where nothing draws.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if not chosen and "mujoco" in sys.modules:
        raise ValueError(
            f"{world}: mujoco was imported before what draws was chosen; set MUJOCO_GL to one of"
            f" {', '.join(RENDERERS)}"
        )
    failed = {}
    for name in (chosen,) if chosen else RENDERERS if sys.platform == "linux" else ("cgl",):
        device, failed[name] = _probed(name)
        if device:
            os.environ["MUJOCO_GL"] = name
            return f"{name}: {device}"
    said = "; ".join(f"{name}: {why}" for name, why in failed.items())
    raise ValueError(
        f"{world}: expected a renderer that draws without a screen, got none ({said}); "
        + (" or ".join(RENDERERS.values()))
        + (f"; or unset MUJOCO_GL={chosen}" if chosen else "")
    )


def _probed(name: str) -> tuple[str, str]:
    """What draws with this MUJOCO_GL, or "" and why nothing does."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env={**os.environ, "MUJOCO_GL": name},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode == 0:
        return done.stdout.rpartition("renderer: ")[2].strip(), ""
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith(" ")]
    return "", lines[-1] if lines else f"exit {done.returncode}"
